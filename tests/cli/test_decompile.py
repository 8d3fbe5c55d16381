"""decompile: the program of a model, its figure and files, and what it refuses."""

import pytest

from hopinterp.decompile import decompiled
from hopinterp.decompile.decompilation import load_decompiled


def test_decompile(run, doubling, tmp_path):
    status, out, err = run("decompile", doubling, "--hops", 4, "--sequences", 20, "--plot", tmp_path / "tree.svg")
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert lines[-1] == "Explained: the routed model answers as the model does on 100.0% of inputs."
    assert "s, k = 4: 4 = one jump. Blocks reach 0, 1, 3, 4 hops (at most 2^ℓ − 1: 0, 1, 3, 7)." in lines
    assert (tmp_path / "tree.svg").read_text().startswith("<?xml")


def test_decompile_json_and_files(run_json, doubling, tmp_path):
    files = ("--out", tmp_path / "p", "--report", tmp_path / "p.html")
    found = run_json("decompile", doubling, "--hops", 4, "--sequences", 20, *files)
    assert (found["model"], found["hops"], found["derivations"], found["explained"]) == ("s", 4, [[4]], True)
    assert found.pop("wrote") == [str(tmp_path / "p.html"), str(tmp_path / "p")]
    assert load_decompiled(tmp_path / "p").to_json() == found
    page = (tmp_path / "p.html").read_text(encoding="utf-8")
    assert "<dt>Command</dt><dd><code>hopinterp decompile " in page
    assert "The program that the model runs" in page


def test_decompile_several(run, run_json, doubling, tmp_path):
    found = run_json("decompile", doubling, "--hops", "3-4", "--sequences", 20)
    assert {k: one["explained"] for k, one in found["by_hops"].items()} == {"3": False, "4": True}
    status, out, _ = run("decompile", doubling, "--hops", "all", "--sequences", 20, "--plot", tmp_path / "table.png")
    assert status == 0
    assert out.splitlines()[-1] == "s: 1 of 1 solved k explained: k = 4. Not solved: k = 1, 2, 3."
    assert (tmp_path / "table.png").stat().st_size > 5000


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--hops", "3"), "s does not solve k = 3: its error is"),
        (("--hops", "0"), "hops is 0: hop_0 is the input itself"),
        (("--hops", "5"), "hops is 5; this task has 0 to 4"),
        (("--hops", "some"), "--hops is 'some'"),
        (("--hops", "4", "--sequences", "3"), "--sequences"),
        ((), "--hops"),
        (("--hops", "4", "--plot", "tree.doc"), "cannot draw"),
    ],
)
def test_refused(refused, doubling, arguments, words):
    assert words in refused("decompile", doubling, *arguments)


def test_a_directory_that_exists_is_refused_before_the_work(refused, doubling, monkeypatch):
    def worked(*_, **__):
        raise AssertionError("it worked first")

    monkeypatch.setattr(decompiled, "decompile", worked)
    assert "exists; give another --out" in refused("decompile", doubling, "--hops", 4, "--out", doubling)


def test_an_interruption_leaves_nothing(run, doubling, tmp_path, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(decompiled, "decompile", interrupted)
    status, out, err = run("decompile", doubling, "--hops", 4, "--out", tmp_path / "p")
    assert (status, out, err) == (130, "", "hopinterp: interrupted\n")
    assert not (tmp_path / "p").exists()
