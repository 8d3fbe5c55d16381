"""A training run from its first step to the finished model, with checkpoints from which it goes on bit for bit."""

from __future__ import annotations

import json
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from hopinterp.errors import HopInterpError
from hopinterp.evidence.reading.behaviour import error_table, evaluate
from hopinterp.models import store
from hopinterp.models.fused import FusedTransformer
from hopinterp.progress import Progress, Report
from hopinterp.training.config import TrainConfig
from hopinterp.training.record import (
    CHECKPOINT,
    CONFIG,
    METRICS,
    MODEL,
    SERIES,
    Log,
    alone_in,
    forget_after,
    read_config,
    save_checkpoint,
    summary_writer,
    write_file,
    writing,
)
from hopinterp.training.run import Run

_EVAL_SEQUENCES = 32
_FINAL_SEQUENCES = 400


def train(
    config: TrainConfig,
    directory: str | Path | None = None,
    *,
    device: str | torch.device = "cpu",
    report: Report | None = None,
) -> FusedTransformer:
    """Train a model; with a directory, as a run that can be resumed and that leaves the finished model there.

    Args:
        directory: a new run directory: config.json, metrics.jsonl, checkpoint.pt, series/ (with keep_every) and, at the
            end, model/, whose card has the errors on 400 fresh sequences a k. Every eval_every steps some go to the metrics.
        report: called after every step, with its `loss`, the largest k asked for (`largest_hops`), the running `error`
            there, and `tokens_per_second`; then after each k that is measured.

    Raises:
        HopInterpError: the directory exists or cannot be written, or the run diverges.
    """
    run = Run(config, device)
    if directory is None:
        return _go_on(run, None, report)
    directory = Path(directory)
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise HopInterpError(f"{directory} exists; give another --out, or --resume {directory}")
    if config.tensorboard:
        summary_writer()
    writing(directory, lambda: directory.mkdir(parents=True, exist_ok=True))
    with alone_in(directory):
        write_file(directory / CONFIG, json.dumps(config.to_dict(), indent=2).encode())
        save_checkpoint(run, directory)  # from the start: a resumed run must know its threads and its device
        return _go_on(run, directory, report)


def resume(
    directory: str | Path,
    *,
    device: str | torch.device | None = None,
    report: Report | None = None,
) -> FusedTransformer:
    """Go on with a run from its last checkpoint, to the same bits as if it had never stopped (on the same machine).

    Args:
        device: the one it ran on, unless given.

    Raises:
        HopInterpError: no run there, or a damaged one.
    """
    directory = Path(directory)
    config = read_config(directory)
    checkpoint = directory / CHECKPOINT
    if not checkpoint.exists():  # killed before its first one: no step was taken
        run = Run(config, device or "cpu")
    else:
        try:
            state = torch.load(checkpoint, map_location="cpu", weights_only=True)
            run = Run(config, device or state["device"])
            run.restore(state)
        except Exception as error:  # a file that was cut short fails in many ways
            reason = f"({type(error).__name__}); the run cannot go on from it"
            raise HopInterpError(f"{checkpoint} is damaged {reason}") from None
    with alone_in(directory):
        forget_after(directory / METRICS, run.step)
        for leftover in [*directory.glob(f".{MODEL}-*"), *directory.glob(f"{SERIES}/.*")]:
            shutil.rmtree(leftover, ignore_errors=True)  # of a run killed while it wrote a model
        return _go_on(run, directory, report)


def _go_on(run: Run, directory: Path | None, report: Report | None) -> FusedTransformer:
    config, log = run.config, Log(directory, run.config.tensorboard)
    started, first_tokens, before = time.monotonic(), run.tokens, run.seconds
    with _interrupts() as interrupted:
        while run.step < config.steps:
            loss = run.advance()
            elapsed = time.monotonic() - started
            run.seconds = before + elapsed
            if report is not None:
                largest = run.curriculum.largest
                details = {"loss": loss, "largest_hops": float(largest), "error": float(run.curriculum.errors[largest])}
                speed = (run.tokens - first_tokens) / elapsed
                report(Progress("training", run.step, config.steps, details | {"tokens_per_second": speed}))
            _keep_records(run, directory, log, loss)
            if directory is not None and (run.step % config.checkpoint_every == 0 or interrupted()):
                save_checkpoint(run, directory)
            if interrupted():
                raise KeyboardInterrupt
    model = _detached(run)
    if directory is not None:
        errors = error_table(evaluate(model, config.task, sequences=_FINAL_SEQUENCES, report=report))
        store.save(directory / MODEL, model, config.task, _made(run), errors, overwrite=True)
        save_checkpoint(run, directory)
    return model


def _keep_records(run: Run, directory: Path | None, log: Log, loss: float) -> None:
    """What is due at this step: a line of metrics, measured errors, a model of the series."""
    config = run.config
    if run.step % config.log_every == 0 or run.step == config.steps:
        log.write(run, {"loss": loss})
    if directory is not None and config.eval_every and run.step % config.eval_every == 0:
        measured = evaluate(_detached(run), config.task, sequences=_EVAL_SEQUENCES)
        log.write(run, {"eval": error_table(measured)["errors"]})
    if directory is not None and config.keep_every and run.step % config.keep_every == 0:
        place = directory / SERIES / f"{run.step:07d}"
        store.save(place, _detached(run), config.task, _made(run), overwrite=True)


@contextmanager
def _interrupts() -> Iterator[Callable[[], bool]]:
    """Whether Ctrl-C was pressed. It is answered between steps, where a checkpoint is whole; a second one at once."""
    pressed = False

    def remember(_signal: int, _frame: FrameType | None) -> None:
        nonlocal pressed
        if pressed:
            raise KeyboardInterrupt
        pressed = True

    if threading.current_thread() is not threading.main_thread():  # signals reach the main thread alone
        yield lambda: False
        return
    previous = signal.signal(signal.SIGINT, remember)
    try:
        yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, previous)


def _made(run: Run) -> dict[str, Any]:
    settings = {name: value for name, value in run.config.to_dict().items() if not name.endswith("_every")}
    how = f"trained for {run.step} steps by hopinterp"
    return {
        "how": how,
        "command": f"{run.config.command()} --threads {torch.get_num_threads()} --device {run.device.type}",
        "tokens": run.tokens,
        "seconds": round(run.seconds),
        "settings": settings,
        "device": run.device.type,
        "threads": torch.get_num_threads(),
    }


def _detached(run: Run) -> FusedTransformer:
    return FusedTransformer(run.spec, {name: p.detach().clone() for name, p in run.model.parameters.items()})
