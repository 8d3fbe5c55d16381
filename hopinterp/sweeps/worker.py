"""The work on one cell of a sweep, from wherever it stands: train, then measure. It runs in a process of its own."""

from __future__ import annotations

import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from hopinterp.devices import find_device
from hopinterp.errors import HopInterpError
from hopinterp.evidence.remembered import cached
from hopinterp.files import is_there
from hopinterp.models.card import read_card
from hopinterp.models.places import CHECKPOINT, MODEL
from hopinterp.signals import Stopped, at_work, raise_when_stopped, status
from hopinterp.sweeps.cells import Home, Pulse, alone_at, say_failed
from hopinterp.sweeps.grid import After
from hopinterp.sweeps.measure import measure
from hopinterp.training import loop
from hopinterp.training.config import TrainConfig


@dataclass(frozen=True)
class Work:
    """One cell's work, as submitit keeps it until a process calls it.

    Attributes:
        folder: of this job, for its signs of life.
        threads: of a run that begins; one that goes on has its own, on which its bits depend.
        device: of a run that begins; "auto" is the best that the machine has.
        use_cache: whether evidence is looked up in the cache.
        own_process: whether the process is there for this alone, so that signals are its to answer.
    """

    home: Home
    folder: Path
    config: dict[str, Any]
    after: After
    threads: int
    device: str
    use_cache: bool = True
    own_process: bool = True

    def __call__(self) -> None:
        """Do what is left to do; leave word of why where it cannot be done."""
        with self._signals(), at_work():
            pulse = Pulse(self.folder)  # its first sign of life says that signals are answered
            threads = torch.get_num_threads()
            try:
                with alone_at(self.home) as alone, cached() if self.use_cache else nullcontext():
                    if alone:  # else another process is at this cell, and brings it to its end
                        self._work(pulse)
            except HopInterpError as error:
                say_failed(self.folder, str(error))
            except Exception as error:
                traceback.print_exc()
                say_failed(self.folder, f"{type(error).__name__}: {error}")
            finally:
                torch.set_num_threads(threads)
                pulse.write()

    def checkpoint(self) -> Any:
        """The same work again: what is done is on the disk. Submitit asks for it when a job's time is up."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)

    def _work(self, pulse: Pulse) -> None:
        device = find_device(self.device)
        torch.set_num_threads(self.threads)
        if self.home.trained():
            pass
        elif self.home.started():
            its_own = is_there(self.home.run / CHECKPOINT)  # a checkpoint knows its device
            loop.resume(self.home.run, device=None if its_own else device, report=pulse)
        else:
            loop.train(TrainConfig.from_dict(self.config), self.home.run, device=device, report=pulse)
        pulse.trained()
        torch.set_num_threads(int(read_card(self.home.run / MODEL).made["threads"]))  # whoever measures: the same figures
        if not self.home.done(self.after):
            measure(self.home.run, self.after, device, pulse)

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """SIGTERM stops the work at its next checkpoint; so does the signal by which submitit says that time is up, and then
        the job goes on in another."""
        if not self.own_process:
            yield
            return
        time_is_up: list[int] = []
        requeue = signal.getsignal(signal.SIGUSR2)

        def stop(number: int, _frame: FrameType | None) -> None:
            time_is_up.append(number)
            signal.raise_signal(signal.SIGTERM)

        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # submitit passes by it
        raise_when_stopped()
        signal.signal(signal.SIGUSR2, stop)
        try:
            yield
        except (Stopped, KeyboardInterrupt) as stopped:
            if time_is_up and callable(requeue):
                requeue(time_is_up[0], None)
            sys.exit(status(stopped))
