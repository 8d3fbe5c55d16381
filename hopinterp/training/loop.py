"""A training run from its first step to the finished model, with checkpoints from which it goes on bit for bit."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import torch

from hopinterp.errors import HopInterpError
from hopinterp.evidence.reading.behaviour import error_table, evaluate
from hopinterp.files import alone_in, clear_leftovers, is_there, leftover, making, reason, recover
from hopinterp.memory import keep_memory, release_memory, require_memory
from hopinterp.models import store
from hopinterp.models.fused import FusedTransformer
from hopinterp.models.places import CHECKPOINT, CONFIG, MODEL
from hopinterp.progress import Progress, Report
from hopinterp.signals import held_back
from hopinterp.training.config import TrainConfig
from hopinterp.training.record import (
    METRICS,
    SERIES,
    Log,
    forget_after,
    read_checkpoint,
    read_config,
    save_checkpoint,
    summary_writer,
    wandb_package,
    write_in_run,
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
    if not isinstance(config, TrainConfig):
        raise HopInterpError(f"a {type(config).__name__} is no plan: train takes a TrainConfig")
    require_memory("a model and batches of these sizes", config.memory)
    if directory is None:
        return _go_on(Run(config, device), None, report)
    directory = Path(directory)
    if config.tensorboard:
        summary_writer()
    if config.wandb:
        wandb_package()
    with _new(directory):
        run = Run(config, device)
        write_in_run(directory / CONFIG, json.dumps(config.to_dict(), indent=2).encode())
        save_checkpoint(run, directory)  # from the start: a resumed run must know its threads and its device
        return _go_on(run, directory, report)


@contextmanager
def _new(directory: Path) -> Iterator[None]:
    """A new run's directory, for this process alone. Raises HopInterpError where there is a run, or cannot be one."""
    with ExitStack() as held:
        try:
            held.enter_context(making(directory))
        except FileExistsError:
            raise HopInterpError(f"{directory} exists; give another --out, or --resume {directory}") from None
        except (OSError, ValueError) as error:
            raise HopInterpError(f"cannot write {directory} ({reason(error)})") from None
        _check_new(directory)
        held.enter_context(alone_in(directory, "training"))
        _check_new(directory)  # by now no other process can come between
        yield


def _check_new(directory: Path) -> None:
    """Raise HopInterpError if there is more in a directory than what was left by a run that was killed as it began."""
    try:
        used = any(not leftover(path) for path in directory.iterdir())
    except OSError as error:
        raise HopInterpError(f"cannot read {directory} ({reason(error)})") from None
    if used:
        raise HopInterpError(f"{directory} exists; give another --out, or --resume {directory}")


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
    require_memory("a model and batches of these sizes", config.memory)
    _check_places(directory)
    with alone_in(directory, "training"):
        run = _last(config, directory, device)
        forget_after(directory / METRICS, run.step)
        recover(directory / MODEL)
        for place in (directory, directory / SERIES):
            clear_leftovers(place)
        return _go_on(run, directory, report)


def _check_places(directory: Path) -> None:
    """Raise HopInterpError where a run that goes on could not write all that it will, or not in its own directory."""
    for place in (directory / SERIES, directory / "tensorboard", directory / "wandb"):
        if place.is_symlink() or (is_there(place) and not place.is_dir()):
            raise HopInterpError(f"{place} is a symbolic link or no directory; a run writes in its own directory alone")
    series = [path for path in (directory / SERIES).glob("*") if not leftover(path)]
    for model in (directory / MODEL, *sorted(series)):
        store.check_free(model, overwrite=True)


def _last(config: TrainConfig, directory: Path, device: str | torch.device | None) -> Run:
    """A run as it was at its last checkpoint."""
    if not is_there(directory / CHECKPOINT):  # killed before its first one: no step was taken
        return Run(config, device or "cpu")
    state = read_checkpoint(directory, config)
    try:
        run = Run(config, device or state["device"])
        run.restore(state)
    except HopInterpError:
        raise
    except Exception as error:  # one that was made by hand, its digest too
        why = f"({type(error).__name__}: {error}); the run cannot go on from it"
        raise HopInterpError(f"{directory / CHECKPOINT} is damaged {why}") from None
    return run


def _go_on(run: Run, directory: Path | None, report: Report | None) -> FusedTransformer:
    config, log = run.config, Log(directory, run.config)
    keep_memory()
    started, first_tokens, before = time.monotonic(), run.tokens, run.seconds
    with closing(log), held_back() as stopped:  # between steps a checkpoint is whole
        while run.step < config.steps and not stopped():
            loss = run.advance()
            elapsed = time.monotonic() - started
            run.seconds = before + elapsed
            if report is not None:
                largest = run.curriculum.largest
                details = {"loss": loss, "largest_hops": float(largest), "error": float(run.curriculum.errors[largest])}
                speed = (run.tokens - first_tokens) / elapsed
                report(Progress("training", run.step, config.steps, details | {"tokens_per_second": speed}))
            _keep_records(run, directory, log, loss)
            if directory is not None and (stopped() or _is_due(run, config.checkpoint_every)):
                save_checkpoint(run, directory)
    model = run.averaged
    release_memory()
    if directory is not None:
        errors = error_table(evaluate(model, config.task, sequences=_FINAL_SEQUENCES, report=report))
        store.save(directory / MODEL, model, config.task, _made(run), errors, overwrite=True)
    return model


def _is_due(run: Run, every: int) -> bool:
    return run.step % every == 0 or run.step == run.config.steps


def _keep_records(run: Run, directory: Path | None, log: Log, loss: float) -> None:
    """What is due at this step: a line of metrics, measured errors, a model of the series."""
    config = run.config
    if _is_due(run, config.log_every):
        log.write(run, {"loss": loss})
    if directory is not None and config.eval_every and run.step % config.eval_every == 0:
        measured = evaluate(run.averaged, config.task, sequences=_EVAL_SEQUENCES)
        log.write(run, {"eval": error_table(measured)["errors"]})
    if directory is not None and config.keep_every and run.step % config.keep_every == 0:
        place = directory / SERIES / f"{run.step:07d}"
        store.save(place, run.averaged, config.task, _made(run), overwrite=True)


def _made(run: Run) -> dict[str, Any]:
    how = f"trained for {run.step} steps by hopinterp"
    return {
        "how": how,
        "command": f"{run.config.command()} --threads {torch.get_num_threads()} --device {run.device.type}",
        "tokens": run.tokens,
        "seconds": round(run.seconds),
        "settings": run.config.deciding(),
        "device": run.device.type,
        "threads": torch.get_num_threads(),
    }
