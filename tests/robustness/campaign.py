"""One case of a campaign: the command in a forked process, with limits, and a judgement of what it said and left."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import importlib
import io
import os
import pkgutil
import random
import resource
import shutil
import signal
import stat
import sys
import tempfile
import traceback
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import hopinterp

SECONDS, BYTES = 10.0, 10**9
"""CPU time and resident memory that a case may take."""
_WALL = 60.0  # seconds until a case that waits is ended: a busy machine is slow
_ROOM = 3 * 10**9  # bytes that a case may ask for beside what it starts with, so that a bad one does no harm
_HASHED = 50 * 2**20
_LONGEST_LINE = 400

Snapshot = dict[str, str]
"""Paths under a folder → what is there."""


@dataclass(frozen=True)
class Outcome:
    """What a case did."""

    status: int
    out: str
    err: str
    seconds: float
    peak: int
    place: Path
    before: Snapshot
    after: Snapshot


@dataclass(frozen=True)
class Case:
    """One thing to try.

    Attributes:
        what: the mutation, in words.
        words: the command line.
        call: instead of a command, a function; a HopInterpError of it counts as the command's line.
        must: whether it has to be accepted or refused.
        wrong: what is wrong with an acceptance, if anything.
        makes: the paths, under the place, that an acceptance may make or change: these and all below them.
        tidies: the paths that may go or change even where it is refused: leftovers of killed processes.
        encoding: of standard output.
    """

    what: str
    words: tuple[str, ...] = ()
    call: Callable[[], object] | None = None
    must: Literal["accept", "refuse", "either"] = "either"
    wrong: Callable[[Outcome], str | None] = lambda _: None
    makes: tuple[str, ...] = ()
    tidies: tuple[str, ...] = ()
    encoding: str = "utf-8"


Generator = Callable[[random.Random, Path], Case]
"""Prepares a case in an empty folder, which is where it then runs."""


@dataclass
class Tally:
    """What came of the cases of one kind."""

    kind: str
    cases: int = 0
    accepted: int = 0
    refused: int = 0
    slowest: float = 0.0
    largest: int = 0
    bad: list[str] = field(default_factory=list)
    kinds: Counter[str] = field(default_factory=Counter)


def run(kind: str, generator: Generator, count: int, seed: int, first: int = 0) -> Tally:
    """`count` cases of a kind, each from its own seed."""
    tally = Tally(kind)
    for number in range(first, first + count):
        case, outcome, fault = run_one(kind, generator, seed, number)
        tally.cases += 1
        tally.accepted += outcome.status == 0
        tally.refused += outcome.status == 2
        tally.slowest = max(tally.slowest, outcome.seconds)
        tally.largest = max(tally.largest, outcome.peak)
        tally.kinds[f"{case.what.split(':')[0]}, {'accepted' if outcome.status == 0 else 'refused'}"] += 1
        if fault:
            words = " ".join(map(repr, case.words))[:200]
            tally.bad.append(f"--replay {kind}:{seed}:{number}  {case.what[:120]!r}  {words}  {fault}")
            print(tally.bad[-1], file=sys.stderr, flush=True)
    return tally


def run_one(kind: str, generator: Generator, seed: int, number: int) -> tuple[Case, Outcome, str | None]:
    """One case: it, what it did, and what is wrong with that."""
    with tempfile.TemporaryDirectory(prefix="case-") as folder:
        canary = Path(folder) / "canary"
        place = Path(folder) / "place"
        place.mkdir()
        with _at(place):
            case = generator(random.Random(f"{kind}:{seed}:{number}"), place)
            outcome = _outcome(case, place, Path(folder))
            fault = "it ran code from a file" if canary.exists() else _fault(case, outcome)
        for path in place.rglob("*"):  # what was closed opens again, to be removed
            if path.is_dir() and not path.is_symlink():
                path.chmod(0o700)
        return case, outcome, fault


@contextlib.contextmanager
def _at(place: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(place)
    try:
        yield
    finally:
        os.chdir(before)


# -- running ----------------------------------------------------------------------------------------------------------


def prepare() -> None:
    """Import all that commands import, so that a forked process has it already; and let none use the user's cache."""
    os.environ["HOPINTERP_CACHE"] = "off"
    for module in pkgutil.walk_packages(hopinterp.__path__, "hopinterp."):
        importlib.import_module(module.name)
    importlib.import_module("torch._dynamo")  # which optimisers import
    gc.collect()
    gc.freeze()  # what is there is not touched again, and so not copied


def _outcome(case: Case, place: Path, folder: Path) -> Outcome:
    before = snapshot(place)
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        _child(case, folder)
    _, waited, used = os.wait4(child, 0)
    status = os.waitstatus_to_exitcode(waited)
    out, err = ((folder / name).read_bytes().decode("utf-8", "replace") for name in ("out", "err"))
    seconds = used.ru_utime + used.ru_stime
    return Outcome(status, out, err, seconds, used.ru_maxrss * 1024, place, before, snapshot(place))


def _child(case: Case, folder: Path) -> None:
    """Be the command. Never returns."""
    status = 70
    try:
        signal.setitimer(signal.ITIMER_REAL, _WALL)
        resource.setrlimit(resource.RLIMIT_CPU, (int(2 * SECONDS), int(2 * SECONDS)))
        limit = _address_space() + _ROOM
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        for number, name in ((1, "out"), (2, "err")):
            handle = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            os.dup2(handle, number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sys.stdout = io.TextIOWrapper(open(1, "wb", closefd=False), encoding=case.encoding)  # noqa: SIM115
        sys.stderr = io.TextIOWrapper(open(2, "wb", closefd=False), encoding=case.encoding, errors="backslashreplace")  # noqa: SIM115
        status = _status_of(case)
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        with contextlib.suppress(Exception):
            traceback.print_exc()
            sys.stderr.flush()
        status = 1
    finally:
        os._exit(status)


def _status_of(case: Case) -> int:
    from hopinterp import cli
    from hopinterp.cli import commands

    sys.argv = ["hopinterp", *case.words]
    if case.call is not None:  # as the command would
        call = case.call
        vars(commands)["app"] = lambda **_: (call(), 0)[1]
    try:
        cli.main()
    except SystemExit as done:
        return done.code if isinstance(done.code, int) else int(done.code is not None)
    return 0


def _address_space() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return pages * os.sysconf("SC_PAGE_SIZE")


# -- judging ----------------------------------------------------------------------------------------------------------


def snapshot(place: Path) -> Snapshot:
    """What is under a folder; symbolic links are not followed."""
    found = {}
    for folder, folders, names in os.walk(place):
        for name in (*folders, *names):
            path = Path(folder) / name
            found[str(path.relative_to(place))] = _described(path)
    return found


def _described(path: Path) -> str:
    mode = path.lstat()
    if stat.S_ISLNK(mode.st_mode):
        return f"link to {os.readlink(path)}"
    if stat.S_ISREG(mode.st_mode):
        small = mode.st_size <= _HASHED
        return f"file {hashlib.sha256(path.read_bytes()).hexdigest() if small else mode.st_size}"
    return f"{stat.S_IFMT(mode.st_mode):o}"


def _fault(case: Case, outcome: Outcome) -> str | None:
    """What is wrong with what a case did; None if nothing is."""
    limits = _limits(outcome)
    if limits or outcome.status not in (0, 2):
        last = (outcome.err.strip().splitlines() or [""])[-1]
        return limits or f"status {outcome.status}: {last[:300]}"
    if shown := [c for c in outcome.out + outcome.err if c != "\n" and unicodedata.category(c) in ("Cc", "Cs")]:
        return f"the terminal gets the character {shown[0]!r}"
    if outcome.status == 2:
        return _fault_of_refusal(case, outcome)
    if outcome.err:
        return f"accepted, and says {outcome.err[:300]!r}"
    if case.must == "refuse":
        return "accepted"
    if changed := _changed(outcome, (*case.makes, *case.tidies)):
        return f"accepted, and changes {changed[:3]}"
    return case.wrong(outcome)


def _limits(outcome: Outcome) -> str | None:
    if outcome.status < 0:
        return f"ended by {signal.Signals(-outcome.status).name}"
    if outcome.seconds > SECONDS:
        return f"took {outcome.seconds:.1f} s"
    if outcome.peak > BYTES:
        return f"took {outcome.peak / 1e9:.2f} GB"
    return None


def _fault_of_refusal(case: Case, outcome: Outcome) -> str | None:
    if case.must == "accept":
        return f"refused: {outcome.err.strip()[:300]}"
    lines = outcome.err.splitlines()
    if len(lines) != 1 or not lines[0].startswith("hopinterp: ") or not outcome.err.endswith("\n"):
        return f"{len(lines)} lines: {outcome.err[:300]!r}"
    if len(lines[0]) > _LONGEST_LINE:
        return f"a line of {len(lines[0])} characters"
    if "not enough memory" in lines[0]:
        return "asks for all memory"
    if outcome.out:
        return f"refused, and prints {outcome.out[:200]!r}"
    if changed := _changed(outcome, case.tidies):
        return f"refused ({lines[0][:120]}), and changes {changed[:3]}"
    return None


def _changed(outcome: Outcome, allowed: tuple[str, ...]) -> list[str]:
    paths = outcome.before.keys() | outcome.after.keys()
    changed = sorted(path for path in paths if outcome.before.get(path) != outcome.after.get(path))
    return [path for path in changed if not any(path == one or path.startswith(one + "/") for one in allowed)]


def clear(folder: Path) -> None:
    """Remove a folder of samples."""
    shutil.rmtree(folder, ignore_errors=True)
