"""The files of a training run, each written whole or not at all, and what is read back when it goes on."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from hopinterp.errors import HopInterpError
from hopinterp.models.store import write_through
from hopinterp.training.config import TrainConfig
from hopinterp.training.run import Run

CONFIG, METRICS, CHECKPOINT, MODEL, SERIES = "config.json", "metrics.jsonl", "checkpoint.pt", "model", "series"


def read_config(directory: Path) -> TrainConfig:
    """The plan of a run. Raises HopInterpError where there is none."""
    try:
        return TrainConfig.from_dict(json.loads((directory / CONFIG).read_text()))
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise HopInterpError(f"{directory} is no training run: cannot read {CONFIG} ({error})") from None


@contextmanager
def alone_in(directory: Path) -> Iterator[None]:
    """Refuse a second process in a run directory. The lock goes with its process, however that ends."""
    if sys.platform == "win32":  # which has no flock
        yield
        return
    import fcntl

    handle = os.open(directory, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise HopInterpError(f"another process is training in {directory}") from None
        yield
    finally:
        os.close(handle)


class Log:
    """metrics.jsonl, a line a record, appended; and the same for TensorBoard, if asked."""

    def __init__(self, directory: Path | None, tensorboard: bool) -> None:
        self.path = directory / METRICS if directory is not None else None
        self.board = None
        if directory is not None and tensorboard:
            self.board = summary_writer()(str(directory / "tensorboard"))

    def write(self, run: Run, values: dict[str, Any]) -> None:
        """A record of some values, with where the run is and how well each k goes."""
        if self.path is None:
            return
        running = {str(k): round(float(error), 5) for k, error in enumerate(run.curriculum.errors)}
        record = {"step": run.step, "tokens": run.tokens, "seconds": round(run.seconds, 2), **values}
        record |= {"largest_hops": run.curriculum.largest, "running_errors": running}
        path = self.path
        if self.board is not None:
            for name, value in (values | {f"error/{k}": error for k, error in running.items()}).items():
                if isinstance(value, float):
                    self.board.add_scalar(name, value, run.step)
            self.board.flush()

        def append() -> None:
            with open(path, "a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")

        writing(path, append)


def summary_writer() -> Any:
    """TensorBoard's writer class. Raises HopInterpError where its package is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise HopInterpError("--tensorboard needs its package: pip install tensorboard") from None
    return SummaryWriter


def forget_after(path: Path, step: int) -> None:
    """Drop what was logged after the checkpoint, and a line that was cut short: these steps come again."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except (ValueError, KeyError):
            break
    write_file(path, "".join(line + "\n" for line in kept).encode())


def save_checkpoint(run: Run, directory: Path) -> None:
    """Everything that the next step depends on, in the place of the last checkpoint."""
    buffer = io.BytesIO()
    torch.save(run.state(), buffer)
    write_file(directory / CHECKPOINT, buffer.getvalue())


def write_file(path: Path, data: bytes) -> None:
    """A file whole or not at all: beside its place first, then renamed."""
    temporary = path.with_name(path.name + ".partial")

    def write() -> None:
        write_through(temporary, data)
        temporary.replace(path)

    try:
        writing(path, write)
    finally:
        temporary.unlink(missing_ok=True)


def writing(path: Path, action: Callable[[], None]) -> None:
    """Run what writes to a path; a disk that is full or closed to us becomes a HopInterpError."""
    try:
        action()
    except OSError as error:
        started = (path.parent / CHECKPOINT).exists()
        hint = "; the run can go on from its last checkpoint" if started else ""
        raise HopInterpError(f"cannot write {path} ({error.strerror}){hint}") from None
