"""What a sweep keeps on disk of each cell: its run, what was measured, the jobs that worked on it, and how far they are."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from hopinterp.errors import HopInterpError
from hopinterp.files import alone_in, read_json, recover, write_file
from hopinterp.models.places import CARD, CONFIG, MODEL
from hopinterp.progress import Progress
from hopinterp.sweeps.grid import After, Cell
from hopinterp.training.record import read_config

JOBS, MEASURED, PROGRAMS, VERDICTS = "jobs", "measured", "programs", "verdicts"
RESULTS, ASKED = "results.nc", "asked.json"
"""Of what was measured: the Dataset, and what had been asked for."""
_PROGRESS, _FAILED, _JOB = "progress.json", "failed.json", "job.json"
_BEAT = 2.0  # seconds between two signs of life
_PATIENCE = 5.0  # seconds that a worker waits for its cell's lock, which who only asks about it has for an instant


@dataclass(frozen=True)
class Home:
    """Where a cell lives in a sweep's directory: its run directory, and beside it the folder of its jobs."""

    sweep: Path
    name: str

    @property
    def run(self) -> Path:
        """The run directory, in which what was measured lies too."""
        return self.sweep / self.name

    @property
    def jobs(self) -> Path:
        """A folder for each job that ever worked on the cell, by its number."""
        return self.sweep / JOBS / self.name

    def trained(self) -> bool:
        """Whether the model is finished."""
        recover(self.run / MODEL)
        return (self.run / MODEL / CARD).is_file()

    def started(self) -> bool:
        """Whether there is a run to go on with."""
        return (self.run / CONFIG).is_file()

    def done(self, after: After) -> bool:
        """Whether the model is finished and has been measured as asked."""
        recover(self.run / MEASURED)
        if not (self.trained() and (self.run / MEASURED / RESULTS).is_file()):
            return False
        try:
            return bool(read_json(self.run / MEASURED / ASKED) == asdict(after))
        except HopInterpError:
            return False

    def check(self, cell: Cell) -> None:
        """Raise HopInterpError where a run is there that has other settings than the cell; what only records may differ. One
        that cannot be read is for its job to tell of."""
        try:
            there, wanted = read_config(self.run).deciding(), cell.config.deciding()
        except HopInterpError:
            return
        for name, value in wanted.items():
            if there[name] != value:
                raise HopInterpError(
                    f"{self.run} has other settings: {name} is {there[name]!r:.40}, the grid has {value!r:.40}; "
                    "give another --out"
                )

    def held(self) -> bool:
        """Whether a process is at work on the cell, whoever started it. A disk that knows no locks says no."""
        if not self.jobs.is_dir():
            return False
        try:
            with alone_in(self.jobs):
                return False
        except HopInterpError:
            return True

    def last_job(self) -> Path | None:
        """The folder of the last job."""
        numbers = _numbers(self.jobs)
        return self.jobs / str(max(numbers)) if numbers else None

    def new_job(self) -> Path:
        """A folder for a new job. Raises HopInterpError where it cannot be made."""
        folder = self.jobs / str(max(_numbers(self.jobs), default=0) + 1)
        try:
            folder.mkdir(parents=True)
        except OSError as error:
            raise HopInterpError(f"cannot write {folder} ({error.strerror})") from None
        return folder

    def cpu_seconds(self) -> tuple[float, float]:
        """What all its jobs took of processors, and what of that was training, by their last signs of life."""
        beats = [Beat.read(self.jobs / str(number)) for number in _numbers(self.jobs)]
        return sum(one.cpu_seconds for one in beats), sum(one.training_cpu_seconds for one in beats)


def _numbers(jobs: Path) -> list[int]:
    with suppress(OSError):
        return [int(name) for name in os.listdir(jobs) if name.isdecimal() and name.isascii()]
    return []


@dataclass(frozen=True)
class Beat:
    """A sign of life of a job: where it stands, and which process on which machine it is; of one that gave none, nothing."""

    what: str = ""
    done: int = 0
    total: int = 0
    cpu_seconds: float = 0.0
    training_cpu_seconds: float = 0.0
    host: str = ""
    pid: int = 0

    @classmethod
    def read(cls, folder: Path | None) -> Beat:
        """The last one of a job's folder."""
        if folder is None:
            return cls()
        try:
            given = read_json(folder / _PROGRESS)
            if {name: type(value) for name, value in given.items()} == _KINDS:
                return cls(**given)
        except (HopInterpError, AttributeError):
            pass
        return cls()

    @property
    def is_here(self) -> bool:
        """Whether its process is one of this machine."""
        return self.pid > 0 and self.host == socket.gethostname()


_KINDS = {name: type(value) for name, value in asdict(Beat()).items()}


class Pulse:
    """Writes signs of life as work goes on: a `Report`. A disk that takes none is no reason to stop."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / _PROGRESS
        self.started = time.process_time()
        self.training: float | None = None
        self.last, self.written = Progress("starting", 0, 1), float("-inf")
        self.write()

    def __call__(self, now: Progress) -> None:
        other = now.what.split(":")[-1] != self.last.what.split(":")[-1]  # "k = 3: probes" is one kind of work for every k
        self.last = now
        if other or time.monotonic() - self.written > _BEAT:
            self.write()

    def trained(self) -> None:
        """From now on nothing is training."""
        self.training = time.process_time() - self.started

    def write(self) -> None:
        """Write where the work stands now."""
        self.written, now = time.monotonic(), self.last
        used = time.process_time() - self.started
        trained = used if self.training is None else self.training
        beat = Beat(now.what, now.done, now.total, used, trained, socket.gethostname(), os.getpid())
        with suppress(HopInterpError):
            write_file(self.path, json.dumps(asdict(beat)).encode())


def say_failed(folder: Path, why: str) -> None:
    """Leave word of why a job failed. Raises HopInterpError where that cannot be written."""
    write_file(folder / _FAILED, json.dumps({"error": " ".join(why.split())}).encode())


def failed(folder: Path | None) -> str:
    """Why a job failed; nothing where it did not say so."""
    if folder is None or not (folder / _FAILED).is_file():
        return ""
    try:
        return str(read_json(folder / _FAILED)["error"])
    except (HopInterpError, KeyError, TypeError) as error:
        return f"{type(error).__name__}: {error}"


def last_words(folder: Path | None) -> str:
    """The last line that a job's process said, where it left no other word."""
    logs = sorted(folder.glob("*_log.err")) if folder is not None else []
    with suppress(OSError):
        lines = [line.strip() for log in logs for line in log.read_text("utf-8", "replace").splitlines() if line.strip()]
        return lines[-1][:200] if lines else ""
    return ""


def keep_job(folder: Path, record: Mapping[str, str]) -> None:
    """Keep by which engine and under which id a job runs, so that a later sweep finds it."""
    write_file(folder / _JOB, json.dumps(dict(record)).encode())


def kept_job(folder: Path | None) -> Mapping[str, str]:
    """What `keep_job` kept; nothing where it did not come to that."""
    with suppress(HopInterpError, AttributeError):
        given = read_json(folder / _JOB) if folder is not None else {}
        return {name: value for name, value in given.items() if isinstance(value, str)}
    return {}


@contextmanager
def alone_at(home: Home) -> Iterator[bool]:
    """Whether a cell is this process's own meanwhile: not where another is at work on it, and stays so for some seconds."""
    end = time.monotonic() + _PATIENCE
    with ExitStack() as held:
        while True:
            try:
                held.enter_context(alone_in(home.jobs))
                break
            except HopInterpError:
                if time.monotonic() > end:
                    yield False
                    return
                time.sleep(0.05)
        yield True
