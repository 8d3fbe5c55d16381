"""compare, and eval of several models: tables, JSON, the overlaid figure, and what they refuse."""

import shutil
from types import SimpleNamespace

import pytest

import hopinterp as hi
from hopinterp.models import store


@pytest.fixture
def both(model, doubling):
    """An untrained model and one whose circuit is known, of one task."""
    return model, doubling


def test_compare_json(run_json, both, tmp_path):
    figure = tmp_path / "f.svg"
    found = run_json("compare", *both, "--hops", "3-4", "--sequences", 20, "--plot", figure)
    assert list(found["models"]) == ["m", "s"]
    alone = run_json("eval", both[0], "--hops", "3-4", "--sequences", 20)
    assert found["models"]["m"]["errors"] == alone["errors"]
    assert found["models"]["s"]["card"]["made"]["how"] == "by a test"
    compared = found["differences"]
    assert (compared["compared_with"], compared["same_task"], list(compared["models"])) == ("m", True, ["s"])
    four = {name: values["4"] for name, values in compared["models"]["s"].items()}
    assert four["difference"] == -found["models"]["m"]["errors"]["4"]
    assert four["difference_low"] < four["difference"] < four["difference_high"] < 0
    assert four["differs"]
    assert found["wrote"] == [str(figure)]
    drawn = figure.read_text()
    assert drawn.startswith("<?xml")
    assert all(f"<!-- {name} -->" in drawn for name in "ms")  # both stand in the legend


def test_compare_table(run, both):
    status, out, err = run("compare", *both, "--hops", "1,4", "--sequences", 20)
    assert (status, err) == (0, "")
    assert "s − m" in out
    assert "by a test" in out
    assert out.splitlines()[-1] == "s errs less at k = 4 and more at k = 1 than m."  # it was built for k = 4


def test_compare_with_verdicts(run, run_json, both, monkeypatch):
    """At the k of --hops, or the one that `verify` would choose: that of the card, or the theorem's."""

    def judged(subject, _task, k, **settings):
        said = f"{subject.name} at {k}, {settings['sequences']} sequences"
        return SimpleNamespace(headline=said, to_json=lambda: {"verdict": said})

    monkeypatch.setattr("hopinterp.judgement.verdict.verify", judged)
    _, out, _ = run("compare", *both, "--hops", "1-2", "--sequences", 20, "--verify")
    assert out.splitlines()[-2:] == ["m at 1, 20 sequences", "s at 4, 20 sequences"]
    found = run_json("compare", *both, "--hops", 3, "--sequences", 20, "--verify")
    assert {name: one["verdict"] for name, one in found["verdicts"].items()} == {
        "m": "m at 3, 20 sequences",
        "s": "s at 3, 20 sequences",
    }


def test_compare_programs(run_json, small_task, tmp_path):
    for name, algorithm in (("s", "successor"), ("l", "lookup")):
        store.save(tmp_path / name, hi.construct(small_task, 2, algorithm=algorithm), small_task, {"how": "by a test"})
    words = ("compare", tmp_path / "s", tmp_path / "l", "--hops", 2, "--sequences", 20, "--program")
    found = run_json(*words)["program"]
    assert found["programs"] == [{"model": "s", "hops": 2}, {"model": "l", "hops": 2}]
    assert set(found["derivations"]) == {"first", "both", "second"}
    assert found["rows"]["reach"] == ["0 1 2", "0 1 2"]


def test_eval_of_several(run, run_json, both, tmp_path):
    words = ("eval", *both, "--hops", "2,4", "--sequences", 20, "--distinct", 5)
    found = run_json(*words)["models"]
    assert list(found) == ["m", "s"]
    for name, path in zip("ms", both, strict=True):
        assert found[name]["errors"] == run_json("eval", path, *words[3:])["errors"]
    status, out, err = run(*words, "--plot", tmp_path / "f.png")
    assert (status, err) == (0, "")
    assert "m, no repeats" in out
    assert "s solves not even k = 2" in out
    assert out.splitlines()[0] == f"Wrote {tmp_path / 'f.png'}"


def test_models_of_one_name_are_told_apart(run_json, model, small_model, small_task, tmp_path):
    store.save(tmp_path / "other" / "m", small_model, small_task, {"how": "by a test"})
    found = run_json("eval", model, tmp_path / "other" / "m", "--hops", 1, "--sequences", 2)["models"]
    assert list(found) == [str(model), str(tmp_path / "other" / "m")]


def test_odd_names_stand_in_the_legend(run, model, tmp_path):
    for name in ("_a", "$b$"):
        shutil.copytree(model, tmp_path / name)
    assert run("eval", *(tmp_path / name for name in ("_a", "$b$")), "--sequences", 2, "--plot", tmp_path / "f.svg")[0] == 0
    drawn = (tmp_path / "f.svg").read_text()
    assert "<!--  _a -->" in drawn
    assert "<!-- $b$ -->" in drawn  # no formula


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("m",), "compare needs two models or more"),
        (("m", "m"), "the model 'm' is named twice"),
        (("m", "s", "--program"), "--program compares two models at one k"),
        (("m", "s", "--hops", "1-2", "--program"), "--program compares two models at one k"),
        (("m", "nowhere"), "no model 'nowhere'"),
        (("m", "s", "--hops", "5"), "hops is 5; this task has 0 to 4"),
        (("m", "s", "--plot", "f.docx"), "the ending must be one of"),
    ],
)
def test_compare_refuses(refused, both, tmp_path, monkeypatch, arguments, words):
    assert all(path.parent == tmp_path for path in both)
    monkeypatch.chdir(tmp_path)
    assert words in refused("compare", *arguments)
