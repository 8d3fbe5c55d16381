"""Each command, each call that reads failing as on a damaged device: one line and nothing changed, or the right result."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from .faults import Fault
from .test_crash_points import CONSTRUCT, TRAIN, Trained, leftovers, one_line, some_time_later, state

SIZE = ("--heads", 1, "--letters", 6, "--alphabet", 3, "--max-hops", 1)
CACHE = "import os; os.environ['HOPINTERP_CACHE'] = 'kept'"
KEEP = ("eval", "m", "--sequences", 2)


@dataclass(frozen=True)
class Case:
    """A command that reads, and what is there before it.

    Attributes:
        before: commands that make what is there.
        quick: what it shows is computed already: only the reading is at stake.
        python: what is run before each: what is kept says when it was, and is not compared.
        lists: it says what it could not read, and goes on.
    """

    words: tuple
    before: tuple = (CONSTRUCT,)
    python: str = ""
    quick: bool = False
    lists: bool = False


CASES = {
    "eval": Case(KEEP),
    "import": Case(("import", "s.pt", *SIZE, "--out", "n"), ((":gpt2", "s.pt"),)),
    "export": Case(("export", "m", "--out", "n")),
    "models": Case(("models", "."), lists=True),
    "load verdict": Case((":load", "verdict", "v"), ((":save verdict", "v"),), quick=True),
    "load program": Case((":load", "program", "d"), (CONSTRUCT, ("decompile", "m", "--hops", 1, "--out", "d")), quick=True),
    "what is kept": Case(KEEP, (CONSTRUCT, KEEP), CACHE),
    "cache": Case(("cache",), (CONSTRUCT, KEEP), CACHE, lists=True),
}


def points(calls: tuple[str, ...], stride: int) -> list[int]:
    """The calls at which a fault is tried: every one, or all that read from a file beside some of the many others."""
    every = range(len(calls))
    return [at for at in every if "HOPINTERP_LONG" in os.environ or at % stride == 0 or calls[at] == "read"]


@pytest.mark.parametrize("name", CASES)
def test_failing_at_any_call_that_reads(server, tmp_path, name):
    case, template, first = CASES[name], tmp_path / "template", tmp_path / "first"
    template.mkdir()

    def run(words, where: Path, **settings):
        return server.run(*words, cwd=where, quick=case.quick, before=case.python, **settings)

    for words in case.before:
        assert run(words, template).status == 0
    shutil.copytree(template, first)
    right = run(case.words, first, counted=True, reads=True)
    assert right.status == 0, right.err
    old, new = state(template), state(first)
    refused = 0
    assert {"open", "read"} <= set(right.calls)
    for at in points(right.calls, 6):
        where = tmp_path / f"at-{at}"
        shutil.copytree(template, where)
        done = run(case.words, where, fault=Fault(at, "unreadable"), reads=True)
        said = (at, right.calls[at], done.err)
        if done.status == 0:
            assert case.lists or done.out == right.out, said
            assert (state(where) == new) if not case.python else (state(where).keys() == new.keys()), said
        else:
            one_line(done)
            refused += 1
            assert state(where) == old, said
        if leftovers(where):  # what cannot be read cannot be removed either
            some_time_later(where)
            assert run(case.words, where).status == 0
            assert state(where) == new, said
            assert not leftovers(where), said
    assert refused or case.lists or case.python


def test_a_run_whose_files_cannot_be_read_goes_on_when_they_can(server, tmp_path):
    template = tmp_path / "run"
    template.mkdir()
    assert server.run(*TRAIN, "--out", "r", cwd=template, fault=Fault(30, "kill")).status == -9
    resume = ("train", "--resume", "r")
    training = Trained(server, resume, template)
    first = tmp_path / "first"
    shutil.copytree(template, first)
    calls = server.run(*resume, cwd=first, counted=True, reads=True).calls
    assert {"open", "read", "stat"} <= set(calls)
    for at in points(calls, 20):
        where = tmp_path / f"at-{at}"
        shutil.copytree(template, where)
        done = server.run(*resume, cwd=where, fault=Fault(at, "unreadable"), reads=True)
        if done.status:
            one_line(done)
        training.goes_on(where)
