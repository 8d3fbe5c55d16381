"""Where a sweep's jobs run, behind submitit's one interface: processes of this machine, Slurm, or this process itself."""

from __future__ import annotations

import logging
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from hopinterp.errors import HopInterpError
from hopinterp.sweeps.cells import Beat, Home, keep_job, kept_job

if TYPE_CHECKING:
    import submitit

    from hopinterp.sweeps.worker import Work

    Job: TypeAlias = "submitit.Job[None] | _Inline"

ENGINES = {
    "local": "processes of this machine",
    "slurm": "jobs of a Slurm cluster",
    "debug": "this process, one cell after the other",
}
_FOR_EVER = 365 * 24 * 60  # minutes that a local job may take
_DAY = 24 * 60  # minutes that a Slurm job may take, unless told; it is requeued, and goes on, when they are over
_REQUEUES = 1000
_ASK_EVERY = 5.0  # seconds between two questions to Slurm


@dataclass
class _Inline:
    """A job that runs in this process when it is asked whether it has ended; Ctrl-C is this process's own."""

    work: Work

    def done(self) -> bool:
        """Do it."""
        self.work()
        return True


@dataclass
class Engine:
    """Starts jobs, says which have ended, and tells them to stop.

    Attributes:
        name: one of ENGINES.
        threads: of each job.
        gpus: of this machine, one of which a local job gets where it asks for one.
        slurm: parameters of `sbatch`, by name.

    Raises:
        HopInterpError: another engine, or one that is not to be had here.
    """

    name: str
    threads: int
    gpus: Sequence[int] = ()
    slurm: Mapping[str, str] = field(default_factory=dict)
    _started: int = 0
    _since: dict[str, float] = field(default_factory=dict)
    _asked: float = float("-inf")
    _queued: frozenset[str] | None = None

    def __post_init__(self) -> None:
        if self.name not in ENGINES:
            raise HopInterpError(f"--engine is {self.name!r:.40}; it is {', '.join(ENGINES)}")
        if self.name == "slurm" and shutil.which("sbatch") is None:
            raise HopInterpError("--engine is slurm; there is no sbatch here")
        if self.slurm and self.name != "slurm":
            raise HopInterpError(f"--slurm is for --engine slurm; this is {self.name}")
        _quiet()

    @property
    def has_started(self) -> bool:
        """Whether any job was."""
        return self._started > 0

    def start(self, work: Work) -> Job:
        """Start a job in its folder, and keep there how it is found again.

        Raises:
            HopInterpError: it cannot be started.
        """
        if self.name == "debug":
            return _Inline(work)
        try:
            executor = self._executor(work.folder)
            with _undisturbed(), _environment(self.threads):
                job = executor.submit(work)
            self._started += 1
        except (OSError, ValueError, NameError, RuntimeError, subprocess.SubprocessError) as error:
            raise HopInterpError(f"a job cannot be started ({' '.join(str(error).split())[:300]})") from None
        self._since[job.job_id] = time.monotonic()
        keep_job(work.folder, {"engine": self.name, "id": str(job.job_id)})
        return job

    def _executor(self, folder: Path) -> submitit.Executor:
        import submitit

        executor: submitit.Executor
        if self.name == "slurm":
            executor = submitit.SlurmExecutor(folder, max_num_timeout=_REQUEUES)
            plain: dict[str, Any] = {"time": _DAY, "cpus_per_task": self.threads, "job_name": "hopinterp"}
            executor.update_parameters(**plain | slurm_parameters(self.slurm))
            return executor
        gpu = [self.gpus[self._started % len(self.gpus)]] if self.gpus else []
        executor = submitit.LocalExecutor(folder)
        executor.update_parameters(timeout_min=_FOR_EVER, gpus_per_node=len(gpu), visible_gpus=gpu)
        return executor

    def found(self, folder: Path | None) -> Job | None:
        """The job of an earlier sweep in a folder, where it is one of a cluster, which outlives machines; None otherwise."""
        kept = kept_job(folder)
        if folder is None or kept.get("engine") != "slurm" or not kept.get("id") or shutil.which("sbatch") is None:
            return None
        import submitit

        self._since[kept["id"]] = float("-inf")
        return submitit.SlurmJob(folder, kept["id"])

    def ended(self, job: Job) -> bool:
        """Whether a job runs no more, and will not."""
        if not isinstance(job, _clusters()):
            return job.done()
        if job.paths.result_pickle.exists():
            return True
        if time.monotonic() - self._asked > _ASK_EVERY:
            self._asked, self._queued = time.monotonic(), _queue()
        # one that was submitted after the queue was asked is not known yet
        return self._queued is not None and job.job_id not in self._queued and self._since[job.job_id] < self._asked

    def tell(self, home: Home, job: Job | None) -> bool:
        """Tell whoever works on a cell to stop: it then writes a checkpoint, and ends.

        Returns:
            Whether somebody could be told; one who has only just started cannot, yet.
        """
        if isinstance(job, _clusters()):
            with suppress(OSError, subprocess.SubprocessError):
                job.cancel(check=False)
            return True
        if self.name == "debug":
            return True
        beat = Beat.read(home.last_job())
        if not beat.is_here or not home.held():
            return False
        with suppress(OSError):
            os.kill(beat.pid, signal.SIGTERM)
        return True


def _clusters() -> type[submitit.SlurmJob[None]]:
    """The jobs that a cluster has, and its queue tells of."""
    import submitit

    return submitit.SlurmJob


def slurm_parameters(given: Mapping[str, str]) -> dict[str, Any]:
    """What `--slurm` names, as submitit takes it; what it does not know goes to `sbatch` as it is.

    Raises:
        HopInterpError: a time that is none, or a parameter that has to be a number.
    """
    from submitit.slurm.slurm import _get_default_parameters

    known = _get_default_parameters()
    parameters: dict[str, Any] = {}
    others: dict[str, str] = {}
    for dashed, value in given.items():
        name = dashed.replace("-", "_")
        if name == "time":
            parameters["time"] = minutes(value)
        elif name not in known or name in ("additional_parameters", "setup", "teardown", "srun_args", "use_srun"):
            others[dashed] = value
        else:
            parameters[name] = int(value) if re.fullmatch("[0-9]{1,9}", value) else value
    return parameters | ({"additional_parameters": others} if others else {})


def minutes(text: str) -> int:
    """A time as Slurm writes it ("90", "90:00", "1:30:00", "2-12", "2-12:30") in whole minutes.

    Raises:
        HopInterpError: it is none.
    """
    found = re.fullmatch(r"(?:([0-9]{1,4})-)?([0-9]{1,6})(?::([0-9]{1,2}))?(?::([0-9]{1,2}))?", text)
    if found is None:
        raise HopInterpError(f"--slurm time is {text!r:.40}; it is such as 90 (minutes), 1:30:00 or 2-12:00")
    days, *parts = (None if part is None else int(part) for part in found.groups())
    if days is not None or parts[2] is not None:
        hours, mins, seconds = (part or 0 for part in parts)
    else:
        hours, mins, seconds = 0, parts[0] or 0, parts[1] or 0
    total = ((days or 0) * 24 + hours) * 60 + mins + (seconds > 0)
    if not total:
        raise HopInterpError("--slurm time is 0")
    return total


def _queue() -> frozenset[str] | None:
    """The jobs in Slurm's queue; None where it cannot be asked. Accounts, which submitit asks, are not kept everywhere."""
    command = ["squeue", "--noheader", "--me", "--format=%i"]
    try:
        asked = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.SubprocessError):
        return None
    return None if asked.returncode else frozenset(asked.stdout.split())


@contextmanager
def _undisturbed() -> Iterator[None]:
    """What is started meanwhile never sees Ctrl-C or a closed terminal, which reach whole groups of processes: the sweep
    answers them, and tells its jobs. A signal that comes meanwhile is answered at the end."""
    blocked = {signal.SIGINT, signal.SIGHUP}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, blocked)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _environment(threads: int) -> Iterator[None]:
    """What is started meanwhile has so many threads, and imports nothing from the directory where it is started."""
    wanted = {"OMP_NUM_THREADS": str(threads), "PYTHONSAFEPATH": "1"}
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _quiet() -> None:
    """Submitit says what it does on standard output, where this process's results go."""
    import submitit.core.logger  # noqa: F401 (it sets the level when it is imported)

    logging.getLogger("submitit").setLevel(logging.CRITICAL)
