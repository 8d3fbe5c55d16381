"""verify: the verdict, its report, and what it refuses."""

from datetime import datetime

import pytest

from hopinterp.models import store
from hopinterp.theory.construction import Construction


def test_verify(run, doubling, tmp_path):
    status, out, err = run("verify", doubling, "--sequences", 20, "--report", tmp_path / "r.html")
    assert (status, err) == (0, "")
    said = "s, k = 4: doubling (successor), at full pace. Blocks reach 0, 1, 3, 4 of at most 0, 1, 3, 7 hops."
    assert out.splitlines()[-1] == said
    assert "Lookup fails at block 2: its output stands for 3 hops done (transplants), not 2." in out
    assert "All 5 controls passed." in out
    page = (tmp_path / "r.html").read_text()
    assert "doubling" in page
    assert "<dt>Command</dt><dd><code>hopinterp verify " in page
    assert "<dt>Where from</dt><dd>by a test</dd>" in page  # as the model's card says
    assert sorted(path.name for path in tmp_path.iterdir()) == ["r.html", "s"]


def test_verify_json(run_json, doubling):
    found = run_json("verify", doubling, "--hops", 4, "--sequences", 20)
    names = {"verdict", "form", "hops", "error", "resolved", "attended", "theory", "growth", "controls", "capacity"}
    assert names <= set(found)
    assert (found["verdict"], found["form"], found["hops"]) == ("doubling", "successor", 4)
    assert found["resolved"] == {
        "program": [0, 1, 3, 4],
        "probe": [0, 1, 3, 4],
        "transplant": [0, 1, 3, 4],
        "light_cone": [[0, 1], [1, 2], [3, 4], [4, 4]],
    }
    assert found["attended"] == [[], [1], [2], [4]]
    assert (found["pace"], found["reach"], found["derivations"]) == ("full", [0, 1, 3, 4], [[4]])
    assert (found["explained"], found["program"]["explained"], found["decided_by"]) == (True, True, "program")
    assert found["model"] == "s"
    assert found["command"].startswith("hopinterp ")
    assert datetime.fromisoformat(found["date"]).tzinfo is not None
    assert found["version"]
    assert found["theory"]["successor"] == [0, 1, 3, 4]
    assert found["growth"][0] == {"layers": [1, 2], "by": "probe", "ratio": 3.0, "low": 3.0, "high": 3.0}
    assert (found["settings"]["solved"], found["settings"]["failed"]) == (0.01, 0.05)


def test_verify_every_k(run, run_json, tmp_path, small_task):
    made = Construction.of(small_task, None, "successor")
    store.save(tmp_path / "m", made.fused, small_task, {"how": "by a test"})
    status, out, _ = run("verify", tmp_path / "m", "--hops", "all", "--sequences", 40)
    assert status == 0
    assert "m: undetermined at k = 1, 2, 3; doubling (successor) at k = 4." in out
    assert "Capacity: every k ≤ 4 at 1%" in out
    found = run_json("verify", tmp_path / "m", "--hops", "3-4", "--sequences", 40)
    assert set(found["verdicts"]) == {"3", "4"}
    assert found["capacity"]["measured"] == 4


def test_verify_asks_for_the_theorem_s_k(run, model):
    """Two blocks: k < 2^1. An untrained model is told what it is."""
    _, out, _ = run("verify", model, "--sequences", 8)
    assert out.splitlines()[-1].startswith("m, k = 1: none. Its error is ")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--hops", "5"), "hops is 5; this task has 0 to 4"),
        (("--hops", "0"), "hops is 0: hop_0 is the input itself"),
        (("--hops", "some"), "--hops is 'some'"),
        (("--sequences", "1"), "--sequences"),
        (("--report", "nowhere/r.html"), "no directory nowhere"),
        (("--report", "r.pdf"), "the ending must be .html"),
    ],
)
def test_bad_verifications_get_one_line_and_nothing_is_written(refused, model, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    assert words in refused("verify", model, *arguments)
    assert [path.name for path in tmp_path.iterdir()] == ["m"]
