"""A sweep from its grid to its results: cells are started while there is room, watched, and started again where killed."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xarray as xr

from hopinterp.devices import cores, find_device, most_threads
from hopinterp.errors import HopInterpError
from hopinterp.files import clear_leftovers, write_file
from hopinterp.progress import Progress, Report
from hopinterp.sweeps.cells import JOBS, Beat, Home, failed, last_words, say_failed
from hopinterp.sweeps.engine import Engine
from hopinterp.sweeps.grid import Cell, Grid
from hopinterp.sweeps.kept import alone, find_homes, keep_grid, kept_grid
from hopinterp.sweeps.results import FILE, collect
from hopinterp.sweeps.worker import Work
from hopinterp.whole import whole

if TYPE_CHECKING:
    from hopinterp.sweeps.engine import Job

_LOOK_EVERY = 0.2  # seconds
_TELL_EVERY = 0.5


def sweep(
    grid: Grid | Mapping[str, Any] | str | Path | None,
    directory: str | Path,
    *,
    engine: str = "local",
    workers: int | None = None,
    threads: int | None = None,
    device: str = "auto",
    retries: int = 2,
    slurm: Mapping[str, str] | None = None,
    use_cache: bool = True,
    report: Report | None = None,
) -> xr.Dataset:
    """Train and measure every cell of a grid, each in a run directory of its own; go on where an earlier call stopped.

    What is done is not done again. A cell whose process is killed is started again from its checkpoint; one that fails is
    marked, and stops no other. What an earlier sweep's death left running here is waited for, not started twice.

    Args:
        grid: a `Grid`, what `Grid.of_table` takes, or a TOML file of that; None for the one that the directory keeps.
        directory: of the sweep. There a directory a cell, results.nc, and the grid.
        engine: local, slurm or debug, as in ENGINES.
        workers: cells at a time; by default one a core, and on a cluster all of them.
        threads: of each; by default as many as the machine has cores for them, and on a cluster one. Sums, and so a model's
            bits, depend on it; on the number of workers nothing does where it is given.
        device: of runs that begin: cpu, cuda, mps, or auto, the best that there is.
        retries: how often a cell whose process was killed is started again.
        slurm: what `sbatch` is given: partition, time, account, …
        use_cache: whether evidence is looked up in the cache.
        report: called as cells go on, in thousandths of the work that was left.

    Returns:
        As `sweep_results`.

    Raises:
        HopInterpError: the grid or a setting is wrong, a cell is there with other settings, or another sweep is at work
            there.
    """
    directory = Path(directory)
    found = None if grid is None else _grid(grid)
    if found is None:
        kept_grid(directory)  # asked before anything is made
    whole("retries", retries, 0, 1000)
    if engine != "slurm":  # a node may have another
        find_device(device)
    if "%" in str(directory.absolute()):
        raise HopInterpError(f"{directory}: submitit takes no % in a directory's name")
    with alone(directory):
        found = found or kept_grid(directory)
        homes = find_homes(directory, found)
        count, each = _shares(engine, len(found.cells), workers, threads)
        started = Engine(engine, each, _gpus(engine, device), slurm or {})
        keep_grid(directory, found, homes)
        work = _Sweep(found, homes, started, count, retries, device, use_cache, report)
        try:
            work.run()
        finally:
            results = collect(found.cells, homes, found.after, work.failures)
            write_file(directory / FILE, bytes(results.to_netcdf()))
    return results


def _grid(given: Grid | Mapping[str, Any] | str | Path) -> Grid:
    if isinstance(given, Grid):
        return given
    return Grid.of_table(given) if isinstance(given, Mapping) else Grid.read(Path(given))


def _shares(engine: str, cells: int, workers: int | None, threads: int | None) -> tuple[int, int]:
    """How many cells at a time, and how many threads each has."""
    most, here = most_threads(), cores()
    if workers is not None:
        whole("workers", workers, 1, most if engine != "slurm" else 10**6)
    if threads is not None:
        whole("threads", threads, 1, most)
    if engine == "slurm":
        return workers or cells, threads or 1
    if engine == "debug":
        return 1, threads or here
    count = workers or max(1, min(cells, here // (threads or 1)))
    return count, threads or max(1, here // count)


def _gpus(engine: str, device: str) -> list[int]:
    """The GPUs that local jobs are dealt out on, by their numbers."""
    if engine != "local" or device not in ("cuda", "auto"):
        return []
    import torch

    named = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    numbers = [int(one) for one in named.split(",")] if named and all(map(str.isdecimal, named.split(","))) else None
    return numbers or list(range(torch.cuda.device_count()))


@dataclass(eq=False)
class _Job:
    """A cell that is worked on: by a job that was started here, by one of a cluster, or by whoever holds its lock."""

    home: Home
    job: Job | None
    folder: Path | None
    told: bool = False


@dataclass(eq=False)
class _Sweep:
    """The cells of a sweep while it runs.

    Attributes:
        failures: why cells failed, by name.
    """

    grid: Grid
    homes: list[Home]
    engine: Engine
    workers: int
    retries: int
    device: str
    use_cache: bool
    report: Report | None
    failures: dict[str, str] = field(default_factory=dict)
    running: dict[str, _Job] = field(default_factory=dict)
    tries: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.cells = {home.name: cell for cell, home in zip(self.grid.cells, self.homes, strict=True)}
        self.home = {home.name: home for home in self.homes}
        left = [home for home in self.homes if not home.done(self.grid.after)]
        # the longest first: what is left at the end, when not all workers have work, is short
        self.waiting = sorted((one.name for one in left), key=lambda name: -_cost(self.cells[name]))
        self.at_first = {name: self._share(name) for name in self.waiting}

    def run(self) -> None:
        """Bring every cell to its end. Where this process is told to stop, so are its jobs, and they are waited for."""
        self._adopt()
        self._end_others()
        try:
            while self.waiting or self.running:
                for name in [name for name, one in self.running.items() if self._ended(one)]:
                    self._settle(name, self.running.pop(name))
                while self.waiting and len(self.running) < self.workers:
                    self._start(self.waiting.pop(0))
                self._say()
                if self.engine.name != "debug":
                    time.sleep(max(_LOOK_EVERY, 0.01 * len(self.running)))
        except BaseException:
            self._stop()
            raise

    def _adopt(self) -> None:
        """Find what an earlier sweep left running, and clear what killed ones left unfinished."""
        for home in self.homes:
            if (last := home.last_job()) is not None:
                clear_leftovers(last)
        for name in list(self.waiting):
            one = self._last(self.home[name])
            if not self._ended(one):
                self.waiting.remove(name)
                self.running[name] = one

    def _end_others(self) -> None:
        """Tell what an earlier sweep left running, at cells that this one has not, to stop; their runs can go on later."""
        directory = self.homes[0].sweep
        others = sorted(os.listdir(directory / JOBS)) if (directory / JOBS).is_dir() else []
        for home in (Home(directory, name) for name in others if name not in self.home):
            one = self._last(home)
            if not self._ended(one):
                self.engine.tell(home, one.job)

    def _last(self, home: Home) -> _Job:
        """The last job of a cell, whoever started it."""
        folder = home.last_job()
        return _Job(home, self.engine.found(folder), folder)

    def _start(self, name: str) -> None:
        """Start a cell's job. Raises HopInterpError where none could ever be started: then none can."""
        try:
            folder = self.home[name].new_job()
        except HopInterpError as error:
            self.failures[name] = str(error)
            return
        self.tries[name] = self.tries.get(name, 0) + 1
        try:
            self._submit(name, folder)
        except HopInterpError as error:
            if not self.engine.has_started:
                raise
            if self.tries[name] <= self.retries:
                self.waiting.append(name)
            else:
                self._fail(name, folder, str(error))

    def _fail(self, name: str, folder: Path, why: str) -> None:
        """Mark a cell as failed, here and in its last job's folder."""
        self.failures[name] = why
        with suppress(HopInterpError):  # a full disk, which is why it failed
            say_failed(folder, why)

    def _submit(self, name: str, folder: Path) -> None:
        home, cell = self.home[name], self.cells[name]
        work = Work(
            home, folder, cell.config.to_dict(), self.grid.after, self.engine.threads, self.device, self.use_cache,
            own_process=self.engine.name != "debug",
        )  # fmt: skip
        self.running[name] = _Job(home, self.engine.start(work), folder)

    def _ended(self, one: _Job) -> bool:
        """Whether nobody works on a cell any more. A worker may outlive the job that submitit knows of."""
        return (one.job is None or self.engine.ended(one.job)) and not one.home.held()

    def _settle(self, name: str, one: _Job) -> None:
        """A cell's job has ended: it is done, has failed, or is to be started again."""
        if one.home.done(self.grid.after):
            return
        if why := failed(one.folder):
            self.failures[name] = why
        elif self.tries.get(name, 0) <= self.retries:
            self.waiting.insert(0, name)
        else:
            said = f" ({words})" if (words := last_words(one.folder)) else ""
            often = f"{self.tries[name]} times" if self.tries[name] > 1 else "once"
            assert one.folder is not None  # it was started here
            self._fail(name, one.folder, f"its process ended {often} with nothing done{said}; see {one.folder}")

    def _stop(self) -> None:
        """Tell all jobs to stop, and wait until they have."""
        last = float("-inf")
        while self.running:
            if time.monotonic() - last > _TELL_EVERY:
                last = time.monotonic()
                for one in self.running.values():
                    one.told = one.told or self.engine.tell(one.home, one.job)
            if self.engine.name == "debug":
                return
            self.running = {name: one for name, one in self.running.items() if not self._ended(one)}
            time.sleep(_LOOK_EVERY / 4)

    def _say(self) -> None:
        if self.report is None:
            return
        total = sum(_cost(self.cells[name]) * (1 - share) for name, share in self.at_first.items())
        shares = {name: self.at_first[name] for name in self.waiting} | {name: self._share(name) for name in self.running}
        left = sum(_cost(self.cells[name]) * (1 - share) for name, share in shares.items())
        done = round(1000 * (1 - left / total)) if total else 1000
        done = done if self.waiting or self.running else 1000
        finished = len(self.cells) - len(self.waiting) - len(self.running) - len(self.failures)
        counts = {"running": float(len(self.running)), "waiting": float(len(self.waiting))}
        counts |= {"failed": float(len(self.failures))} if self.failures else {}
        self.report(Progress(f"sweeping  {finished} of {len(self.cells)} cells done", max(0, done), 1000, counts))

    def _share(self, name: str) -> float:
        """How much of a cell's work is done, roughly: training has most of it."""
        home, after = self.home[name], self.grid.after
        training = 0.7 if after.verify or after.decompile else 0.95
        if home.trained():
            return training
        beat = Beat.read(home.last_job())
        return training * beat.done / beat.total if beat.what == "training" and beat.total else 0.0


def _cost(cell: Cell) -> float:
    """How long a cell takes, in a unit that is the same for all: about the products of a training."""
    one = cell.config
    return one.steps * one.batch * one.letters * one.layers * one.d_model * (12.0 * one.d_model + one.letters)
