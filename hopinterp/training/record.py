"""The files of a training run, each written whole or not at all, and what is read back when it goes on."""

from __future__ import annotations

import io
import json
import os
import re
import secrets
from pathlib import Path
from typing import Any

import torch

from hopinterp.errors import HopInterpError
from hopinterp.files import digest, is_there, parse_json, read_file, read_json, write_file
from hopinterp.models import torch_files
from hopinterp.models.places import CHECKPOINT, CONFIG
from hopinterp.training.config import TrainConfig
from hopinterp.training.run import Run

METRICS, SERIES = "metrics.jsonl", "series"
WANDB = "wandb.id"


def read_config(directory: Path) -> TrainConfig:
    """The plan of a run. Raises HopInterpError where there is none."""
    try:
        return TrainConfig.from_dict(read_json(directory / CONFIG))
    except HopInterpError as error:
        raise HopInterpError(f"{directory} is no training run: {error}") from None


class Log:
    """metrics.jsonl, a line a record, appended; and the same for TensorBoard and for Weights & Biases, if asked."""

    def __init__(self, directory: Path | None, config: TrainConfig) -> None:
        self.path = directory / METRICS if directory is not None else None
        self.board = self.remote = None
        if directory is not None and config.tensorboard:
            self.board = summary_writer()(str(directory / "tensorboard"))
        if directory is not None and config.wandb:
            self.remote = _wandb_run(directory, config)

    def write(self, run: Run, values: dict[str, Any]) -> None:
        """A record of some values, with where the run is and how well each k goes."""
        if self.path is None:
            return
        running = {str(k): round(float(error), 5) for k, error in enumerate(run.curriculum.errors)}
        record = {"step": run.step, "tokens": run.tokens, "seconds": round(run.seconds, 2), **values}
        record |= {"largest_hops": run.curriculum.largest, "running_errors": running}
        path = self.path
        named = values | {f"error/{k}": error for k, error in running.items()}
        numbers = {name: value for name, value in named.items() if isinstance(value, float)}
        if self.board is not None:
            for name, value in numbers.items():
                self.board.add_scalar(name, value, run.step)
            self.board.flush()
        if self.remote is not None:
            self.remote.log(numbers | {"tokens": run.tokens, "largest_hops": run.curriculum.largest}, step=run.step)

        try:
            with open(path, "a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        except OSError as error:
            raise HopInterpError(f"cannot write {path} ({error.strerror}){_can_go_on(path)}") from None

    def close(self) -> None:
        """Nothing more is written: what was kept back is sent."""
        if self.board is not None:
            self.board.close()
        if self.remote is not None:
            self.remote.finish()


def summary_writer() -> Any:
    """TensorBoard's writer class. Raises HopInterpError where its package is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise HopInterpError("--tensorboard needs its package: pip install tensorboard") from None
    return SummaryWriter


def wandb_package() -> Any:
    """Weights & Biases' package. Raises HopInterpError where it is not installed."""
    try:
        import wandb
    except ImportError:
        raise HopInterpError("--wandb needs its package, the extra [wandb]: pip install wandb") from None
    return wandb


def _wandb_run(directory: Path, config: TrainConfig) -> Any:
    """A run at Weights & Biases, kept under the run directory; one that is resumed goes on under the same id."""
    wandb, kept = wandb_package(), directory / WANDB
    if not is_there(kept):
        write_in_run(kept, secrets.token_hex(8).encode())
    run_id = read_file(kept, 100).decode("ascii", "replace")
    if not re.fullmatch("[0-9a-f]{16}", run_id):
        raise HopInterpError(f"{kept} holds no run's id; remove it, and the run goes on as a new one there")
    quiet = wandb.Settings(console="off", silent=True)
    project = os.environ.get("WANDB_PROJECT", "hopinterp")
    try:
        return wandb.init(
            project=project, name=directory.resolve().name, id=run_id, resume="allow", dir=str(directory),
            config=config.to_dict(), settings=quiet,
        )  # fmt: skip
    except (wandb.Error, OSError) as error:
        why = f"--wandb: {' '.join(str(error).split())[:200]}; WANDB_MODE=offline keeps the records here"
        raise HopInterpError(f"{why}{_can_go_on(kept)}") from None


def forget_after(path: Path, step: int) -> None:
    """Drop what was logged after the checkpoint, for these steps come again; and lines that are no records."""
    if not is_there(path):
        return
    kept = [line for line in read_file(path).decode("utf-8", "replace").splitlines() if 0 <= _step(line) <= step]
    write_in_run(path, "".join(line + "\n" for line in kept).encode())


def _step(line: str) -> float:
    """The step of a record; −1 of a line that is none."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return -1
    step = record.get("step") if isinstance(record, dict) else None
    return step if isinstance(step, int) and not isinstance(step, bool) else -1


def save_checkpoint(run: Run, directory: Path) -> None:
    """Everything that the next step depends on, in the place of the last checkpoint, with the run's settings and a digest of
    it all. `torch.load` reads it."""
    buffer = io.BytesIO()
    torch.save({**run.state(), "config": json.dumps(run.config.to_dict())}, buffer)
    data = buffer.getvalue()
    write_in_run(directory / CHECKPOINT, data + _sealed(data))


def read_checkpoint(directory: Path, config: TrainConfig) -> dict[str, Any]:
    """What `save_checkpoint` wrote.

    Raises:
        HopInterpError: it is damaged, its digest is not that of what it holds, or it is of a run with other settings.
    """
    path = directory / CHECKPOINT
    whole = read_file(path)
    length = len(_sealed(b""))
    data, seal = whole[:-length], whole[-length:]
    if seal != _sealed(data):
        raise HopInterpError(f"{path} is damaged: its digest is not that of what it holds; the run cannot go on from it")
    state: dict[str, Any] = torch_files.unpack(data, path)
    if not isinstance(state, dict) or not isinstance(settings := state.get("config"), str):
        raise HopInterpError(f"{path} is damaged: it does not say which run it is of; the run cannot go on from it")
    # one that an earlier version wrote lacks what only this one has
    kept = TrainConfig.from_dict(parse_json(settings.encode("utf-8", "replace"), path)).to_dict()
    now = config.to_dict()
    if changed := [name for name in now if kept[name] != now[name]]:
        name = changed[0]
        raise HopInterpError(
            f"{directory / CONFIG} is not the one that the run was started with: {name} is {now[name]!r:.40}, and was "
            f"{kept[name]!r:.40}"
        )
    return state


def _sealed(data: bytes) -> bytes:
    """The digest that a checkpoint ends with: torch's own checksums are not checked when it is loaded."""
    return b"\nsha256 " + digest(data).encode() + b"\n"


def write_in_run(path: Path, data: bytes) -> None:
    """`files.write_file` in a run's directory. Raises HopInterpError, with the hint that the run can go on where it can."""
    try:
        write_file(path, data)
    except HopInterpError as error:
        raise HopInterpError(f"{error}{_can_go_on(path)}") from None


def _can_go_on(path: Path) -> str:
    return "; the run can go on from its last checkpoint" if (path.parent / CHECKPOINT).exists() else ""
