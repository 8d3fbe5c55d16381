"""Model directories and training runs found in folders, and what an interrupted replacement left."""

import os

import pytest

from hopinterp import HopInterpError
from hopinterp.models import places, store


@pytest.fixture
def runs(tmp_path, small_model, small_task):
    """Runs as users have them: a finished one, a nested sweep, one that was stopped, and what is no model."""
    root = tmp_path / "runs"
    for place in ("quick/model", "quick/series/0000100", "sweeps/lr/a/model", "bare"):
        store.save(root / place, small_model, small_task, {"how": "by a test"})
    for place in ("quick", "sweeps/lr/a", "sweeps/lr/b"):
        (root / place).mkdir(exist_ok=True)
        for name in ("config.json", "checkpoint.pt"):
            (root / place / name).write_bytes(b"{}")
    (root / "notes").mkdir()
    (root / "notes" / "card.json.txt").write_text("")
    (root / "loop").symlink_to(root)
    return root


def below(root, paths):
    return [str(path.relative_to(root)) for path in paths]


def test_runs_are_found_however_deep(runs):
    found = places.search(runs)
    assert below(runs, found.models) == ["bare", "quick", "sweeps/lr/a"]
    assert below(runs, found.unfinished) == ["sweeps/lr/b"]
    for path in found.models:
        assert store.load_fused(path)


def test_a_folder_that_is_itself_one(runs):
    assert places.search(runs / "quick") == places.Listing([runs / "quick"])
    assert places.search(runs / "quick" / "model").models == [runs / "quick" / "model"]
    assert places.search(runs / "sweeps/lr/b").unfinished == [runs / "sweeps/lr/b"]
    assert below(runs, places.search(runs / "quick" / "series").models) == ["quick/series/0000100"]
    with pytest.raises(HopInterpError, match="cannot list"):
        places.search(runs / "nowhere")


def test_the_command_lists_them(runs, monkeypatch, capsys):
    import json
    import sys

    from hopinterp import cli

    monkeypatch.chdir(runs.parent)
    monkeypatch.setattr(cli, "raise_when_stopped", lambda: lambda: None)
    monkeypatch.setattr(cli, "let_end", lambda: None)
    for words in (["models", "runs"], ["models", "runs", "--json"]):
        monkeypatch.setattr(sys, "argv", ["hopinterp", *words])
        with pytest.raises(SystemExit) as done:
            cli.main()
        assert not done.value.code
    *lines, printed = capsys.readouterr().out.splitlines()
    assert "sweeps/lr/b is an unfinished run; go on with: hopinterp train --resume runs/sweeps/lr/b" in lines
    assert lines[-1] == "3 model(s) in runs."
    found = json.loads(printed)
    assert set(found) == {"bare", "quick", "sweeps/lr/a", "sweeps/lr/b"}
    assert found["sweeps/lr/b"] == {"unfinished": "hopinterp train --resume runs/sweeps/lr/b"}


def test_what_an_interrupted_replacement_left_comes_back(tmp_path, small_model, small_task):
    """A process that is killed between its two renames leaves the old model under a hidden name."""
    for name in ("a-b", "n" * 50):
        store.save(tmp_path / name, small_model, small_task, {"how": "by a test"})
        os.rename(tmp_path / name, tmp_path / f".{name}-{'0123456789ab'}.old")
    store.save(tmp_path / "c", small_model, small_task, {"how": "new"})
    store.save(tmp_path / ".c-0123456789ab.old", small_model, small_task, {"how": "old"})
    assert [path.name for path in store.list_models(tmp_path)] == ["a-b", "c"]
    assert store.read_card(tmp_path / "c").made == {"how": "new"}  # it is there: nothing takes its place
    assert (tmp_path / f".{'n' * 50}-0123456789ab.old").exists()  # its name may have been longer
    assert store.find(tmp_path / ("n" * 50)).exists()  # asked for by name it comes back


def test_a_name_is_that_of_the_directory(tmp_path, monkeypatch):
    (tmp_path / "deep").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "deep")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    monkeypatch.chdir(tmp_path / "deep")
    assert [places.model_name(path) for path in (".", "../link", tmp_path / "loop", "../gone/m")] == [
        "deep",
        "deep",
        "loop",
        "m",
    ]
