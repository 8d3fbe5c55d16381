"""Each command, each call that changes the disk failing or being the last: the old or the new state, never another."""

import hashlib
import io
import json
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from .faults import Fault

ERRORS = ("full", "read-only", "once")
STOPS = {"SIGTERM": 143, "SIGINT": 130}
TASK = ("--letters", 12, "--alphabet", 3, "--max-hops", 2)
CONSTRUCT = ("construct", *TASK, "--hops", 1, "--algorithm", "sequential", "--out", "m")
OTHER = ("construct", *TASK, "--hops", 2, "--algorithm", "sequential", "--out", "m")
EVAL = ("eval", "m", "--sequences", 2, "--plot")
TRAIN: tuple = ("train", "--layers", 1, "--d-model", 8, "--heads", 1, "--letters", 6, "--alphabet", 3, "--max-hops", 1)
TRAIN += ("--steps", 6, "--batch", 2, "--checkpoint-every", 2, "--log-every", 3, "--keep-every", 3, "--eval-every", 3)
TRAIN += ("--threads", 1)


@dataclass(frozen=True)
class Case:
    """A command, and what is there before it.

    Attributes:
        before: commands that make what is there.
        once: a second run is refused, for it has been done.
        quick: what it writes is computed already: only the writing is at stake.
        thorough: every fault is tried at every call, also where HOPINTERP_LONG is not in the environment.
    """

    words: tuple
    before: tuple = ()
    once: bool = False
    quick: bool = False
    thorough: bool = False


CASES = {
    "construct": Case(CONSTRUCT, once=True),
    "construct in new folders": Case((*CONSTRUCT[:-1], "new/er/m"), once=True),
    "construct --overwrite": Case((*OTHER, "--overwrite"), (CONSTRUCT,), thorough=True),
    "import": Case(
        ("import", "state.pt", "--heads", 1, "--letters", 6, "--alphabet", 3, "--max-hops", 1, "--out", "m"),
        ((":gpt2", "state.pt"),),
        once=True,
    ),
    "report": Case(("verify", "m", "--hops", 1, "--report", "r.html"), (CONSTRUCT,), quick=True),
    **{f"plot {kind}": Case((*EVAL, f"p.{kind}"), (CONSTRUCT,)) for kind in ("png", "svg", "pdf", "jpg")},
    "Verdict.save": Case((":save verdict", "v"), once=True, quick=True),
    "decompile --out": Case(("decompile", "m", "--hops", 1, "--out", "d"), (CONSTRUCT,), once=True, quick=True),
}
PAGES = [name for name in CASES if name.startswith(("report", "plot"))]


def leftovers(where: Path) -> list[str]:
    return [str(path.relative_to(where)) for path in sorted(where.rglob("*")) if path.name.startswith(".")]


def state(where: Path) -> dict[str, str]:
    """What a directory holds, temporaries apart."""
    hidden = {where / name for name in leftovers(where)}
    paths = [path for path in sorted(where.rglob("*")) if not hidden & {path, *path.parents}]
    digests = {path: hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "" for path in paths}
    return {str(path.relative_to(where)): digest for path, digest in digests.items()}


def everything(where: Path) -> set[str]:
    """What there is in a directory, temporaries too."""
    return {*(str(path.relative_to(where)) for path in where.rglob("*")), *state(where).values()}


def some_time_later(where: Path) -> None:
    """What has only just been made might be another process's."""
    for name in leftovers(where):
        os.utime(where / name, (time.time() - 60,) * 2)


def one_line(done, status: int = 2) -> str:
    assert done.status == status, done
    assert done.out == ""
    assert done.err.startswith("hopinterp: "), done.err
    assert done.err.count("\n") == 1, done.err
    return done.err


class Tried:
    """A case's states before and after, and the calls that lead from one to the other."""

    def __init__(self, server, case: Case, where: Path, old_page: bytes = b"") -> None:
        self.server, self.case, self.where = server, case, where
        self.template, first = where / "template", where / "first"
        self.template.mkdir()
        for words in case.before:
            assert server.run(*words, cwd=self.template).status == 0
        if old_page:
            (self.template / str(case.words[-1])).write_bytes(old_page)
        self.old = state(self.template)
        shutil.copytree(self.template, first)
        done = self.run(first, counted=True)
        assert done.status == 0, done.err
        self.calls, self.new = done.calls, state(first)
        assert self.old != self.new
        assert not leftovers(first)

    def run(self, where: Path, **settings):
        return self.server.run(*self.case.words, cwd=where, quick=self.case.quick, **settings)

    def points(self, how: str) -> range:
        """The calls at which one kind of fault is tried: every one, or one in three where the writing is that of others."""
        kinds = (*ERRORS, *STOPS)
        thorough = how == "kill" or self.case.thorough or "HOPINTERP_LONG" in os.environ
        return range(0 if thorough else kinds.index(how) % 3, len(self.calls), 1 if thorough else 3)

    def faulty(self, how: str, at: int):
        """The command with a fault, in a directory of its own."""
        where = self.where / f"{how}-{at}"
        shutil.copytree(self.template, where)
        return where, self.run(where, fault=Fault(at, how))

    def goes_on(self, where: Path) -> None:
        """The next run of the same command leaves what it is to leave, and nothing else."""
        if everything(where) == everything(self.template):  # as if nothing had been tried: the first run again
            return
        some_time_later(where)
        after, done = state(where), self.run(where)
        if after == self.new and self.case.once:
            assert "exists" in one_line(done)
        else:
            assert done.status == 0, done.err
        assert state(where) == self.new
        assert not leftovers(where)


@pytest.fixture(params=CASES, scope="module")
def tried(request, server, tmp_path_factory):
    # a page is written over an older one
    page = b"an older one" if request.param in PAGES else b""
    return Tried(server, CASES[request.param], tmp_path_factory.mktemp("tried"), page)


def test_the_calls_are_met(tried):
    """A disk under which nothing is called would prove nothing."""
    assert {"open", "write", "fsync"} <= set(tried.calls)
    assert {"rename", "replace"} & set(tried.calls)


def test_killed_at_any_call(tried):
    seen = []
    for at in tried.points("kill"):
        where, done = tried.faulty("kill", at)
        assert done.status == -9
        after = state(where)
        if after not in (tried.old, tried.new):
            after = recovered(tried, where, at)
        seen.append(after == tried.new)
        assert after in (tried.old, tried.new), (at, tried.calls[at])
        tried.goes_on(where)
    assert seen == sorted(seen)  # once new, always new
    assert not seen[0]


def recovered(tried, where: Path, at: int) -> dict[str, str]:
    """What is there once somebody has asked for it: a name may be gone between two renames."""
    if tried.case.before == (CONSTRUCT,):
        assert tried.calls[at] == "rename"
        assert tried.server.run("eval", "m", "--sequences", 2, cwd=where).status == 0
    return {name: digest for name, digest in state(where).items() if name in tried.old or digest}


@pytest.mark.parametrize("how", ERRORS)
def test_failing_at_any_call(tried, how):
    for at in tried.points(how):
        where, done = tried.faulty(how, at)
        after = state(where)
        if done.status == 0:
            assert after == tried.new, (at, tried.calls[at])
        elif "nor put back" in one_line(done):  # a disk that fails between two renames, and for good
            assert tried.calls[at] == "rename" != how
            assert recovered(tried, where, at) == tried.old
        else:
            assert "nothing was written" in done.err or "cannot" in done.err
            assert how == "read-only" or after == tried.old, (at, tried.calls[at], done.err)
            assert {name for name, digest in after.items() if digest} == {
                name for name, digest in tried.old.items() if digest
            }
        if how == "full":
            assert not leftovers(where), (at, tried.calls[at])
        tried.goes_on(where)


@pytest.mark.parametrize("how", STOPS)
def test_stopped_at_any_call(tried, how):
    for at in tried.points(how):
        where, done = tried.faulty(how, at)
        if tried.case.words[0].startswith(":"):
            assert done.status in (-15, 1)  # Python's own end: not the command's
        elif done.status:
            assert (
                one_line(done, STOPS[how]).rstrip()
                == f"hopinterp: {'interrupted' if how == 'SIGINT' else 'stopped by SIGTERM'}"
            )
        after = state(where)
        assert after in (tried.old, tried.new), (at, tried.calls[at])
        assert not leftovers(where), (at, tried.calls[at])
        tried.goes_on(where)


# -- training ----------------------------------------------------------------------------------------------------------


class Trained:
    """A training run, or the resuming of one that was killed half way, and what it comes to."""

    def __init__(self, server, words: tuple, template: Path) -> None:
        self.server, self.words, self.template = server, words, template
        whole = template.with_name(f"{template.name}-whole")
        shutil.copytree(template, whole)
        done = server.run(*words, cwd=whole, counted=True)
        assert done.status == 0, done.err
        self.calls, self.result = done.calls, self.of(whole)

    @staticmethod
    def of(where: Path):
        """What a run is judged by: its files, its weights, its metrics without their seconds."""
        names = sorted(str(path.relative_to(where)) for path in where.rglob("*"))
        weights = {
            str(path): hashlib.sha256((where / path).read_bytes()).hexdigest()
            for path in names
            if path.endswith(".safetensors")
        }
        lines = [json.loads(line) for line in (where / "r" / "metrics.jsonl").read_text().splitlines()]
        return names, weights, [{key: value for key, value in line.items() if key != "seconds"} for line in lines]

    def faulty(self, at: int, how: str):
        where = self.template.with_name(f"{self.template.name}-{how}-{at}")
        shutil.copytree(self.template, where)
        return where, self.server.run(*self.words, cwd=where, fault=Fault(at, how))

    def goes_on(self, where: Path) -> None:
        """Resumed, or started again where there was no run yet, it comes to the same, and leaves nothing else."""
        some_time_later(where)
        words = ("train", "--resume", "r") if (where / "r" / "config.json").exists() else self.words
        done = self.server.run(*words, cwd=where)
        assert done.status == 0, done.err
        assert self.of(where) == self.result


def checkpoint_step(where: Path) -> int:
    """How far the last checkpoint is; −1 for none."""
    path = where / "r" / "checkpoint.pt"
    return torch.load(io.BytesIO(path.read_bytes()), weights_only=True)["step"] if path.exists() else -1


@pytest.fixture(params=["new", "resumed"], scope="module")
def training(request, server, tmp_path_factory):
    template = tmp_path_factory.mktemp("training") / "run"
    template.mkdir()
    if request.param == "new":
        return Trained(server, (*TRAIN, "--out", "r"), template)
    done = server.run(*TRAIN, "--out", "r", cwd=template, fault=Fault(30, "kill"))
    assert done.status == -9
    assert checkpoint_step(template) == 2
    (template / "r" / "metrics.jsonl").write_text("{}\n" + (template / "r" / "metrics.jsonl").read_text())
    return Trained(server, ("train", "--resume", "r"), template)


@pytest.mark.parametrize("how", ["kill", *ERRORS, *STOPS])
def test_training_loses_nothing(training, how):
    """At any call: what is resumed comes to the same bits, and no checkpoint that was complete is lost."""
    steps, kinds = [], ("kill", *ERRORS, *STOPS)
    thorough = "HOPINTERP_LONG" in os.environ
    stride = 1 if thorough else 3 if how == "kill" else 8
    for at in range(0 if thorough else kinds.index(how) % stride, len(training.calls), stride):
        where, done = training.faulty(at, how)
        steps.append(checkpoint_step(where))
        if how == "kill":
            assert done.status == -9
        elif how in STOPS and done.status:
            line = one_line(done, STOPS[how])
            assert "go on with: hopinterp train --resume r" in line or steps[-1] < 0
        elif done.status:
            one_line(done)
        if how in STOPS:
            assert not leftovers(where)
        training.goes_on(where)
    if how in ("kill", *STOPS):
        assert steps == sorted(steps)
        assert steps[-1] > steps[0]
