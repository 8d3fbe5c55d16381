"""The gym: one training run, first step to finished model, with checkpoints from which it goes on bit for bit."""

from __future__ import annotations

import json
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from hopinterp.errors import HopInterpError
from hopinterp.models import store
from hopinterp.models.fused import FusedTransformer
from hopinterp.models.spec import ModelSpec
from hopinterp.task import Batch, HopTask
from hopinterp.training.config import TrainConfig
from hopinterp.training.curriculum import Curriculum
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

_EVAL_SEQUENCES = 32
_FINAL_SEQUENCES = 400

Measure = Callable[[FusedTransformer, HopTask, int], dict[str, Any]]


@dataclass(frozen=True)
class Progress:
    """What a step has to tell a progress bar."""

    step: int
    steps: int
    loss: float
    largest_hops: int
    error: float
    tokens_per_second: float


class Run:
    """The whole state of a training run: weights, optimisers, curriculum, generator, and how far it is.

    Weights are kept as matrices (W_Q of all heads side by side), which is how Muon sees them; `model` shows the same
    memory under HookedTransformer's names.
    """

    def __init__(self, config: TrainConfig, device: str | torch.device = "cpu") -> None:
        self.config, self.device = config, torch.device(device)
        self.spec: ModelSpec = config.spec
        initial = self.spec.initial_parameters(config.seed)
        self.matrices = {name: _as_matrix(name, p).to(self.device).contiguous() for name, p in initial.items()}
        for name, matrix in self.matrices.items():
            matrix.requires_grad_(self.spec.is_trained(name))
        self.learned = [matrix for matrix in self.matrices.values() if matrix.requires_grad]
        self.optimizers = _optimizers(config, self.matrices)
        self.curriculum = Curriculum(config)
        self.generator = torch.Generator().manual_seed(config.seed)
        # a stream far from that of the same seed, from which evaluation draws; torch's generator reads 32 bits of a seed
        apart = torch.Generator().manual_seed((config.seed + 2**31) % 2**32)
        self.fixed = config.task.sample(config.samples, generator=apart) if config.samples else None
        self.dropout = torch.Generator(self.device).manual_seed(config.seed)
        graphs = "reduce-overhead" if self.device.type == "cuda" else "default"
        self.forward = torch.compile(_logits, mode=graphs) if config.compile else _logits
        self.step = self.tokens = 0
        self.seconds = 0.0

    @property
    def model(self) -> FusedTransformer:
        """The model as it is now; gradients flow to the matrices."""
        return _model(self.spec, self.matrices)

    def advance(self) -> float:
        """One step; returns its loss.

        Raises:
            HopInterpError: the loss or its gradient is not finite. The weights are still those of the step before.
        """
        batch, positions = self._batch()
        _set_rate(self.optimizers, self.config, self.step)
        tokens, labels = batch.tokens.to(self.device), batch.labels.to(self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.bf16):
            rows = None if positions is None else positions.to(self.device)
            draws = {"dropout": self.config.dropout, "generator": self.dropout} if self.config.dropout else {}
            logits = self.forward(self.spec, self.matrices, tokens, rows, **draws).float()
        loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten())
        if not loss.isfinite():
            raise HopInterpError(f"the run diverged at step {self.step} (loss {loss.item()}); try a lower learning rate")
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.learned, self.config.clip or float("inf"))
        if not norm.isfinite():
            raise HopInterpError(f"the run diverged at step {self.step} (gradient {norm.item()}); try a lower learning rate")
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        wrong = (logits.argmax(-1) != labels).cpu() & batch.scored
        self.curriculum.update(batch.hops, wrong.sum(1), batch.scored.sum(1), self.step)
        self.step += 1
        self.tokens += tokens.numel()
        return loss.item()

    def _batch(self) -> tuple[Batch, Tensor | None]:
        if self.fixed is None:
            return self.curriculum.draw(self.step, self.generator)
        size = self.config.batch  # in order and without the remainder, as the authors' code goes through its samples
        start = self.step % (len(self.fixed) // size) * size
        part = slice(start, start + size)
        return Batch(self.fixed.task, self.fixed.tokens[part], self.fixed.labels[part], self.fixed.find1[part]), None

    def state(self) -> dict[str, Any]:
        """Everything that the next step depends on."""
        return {
            "step": self.step,
            "tokens": self.tokens,
            "seconds": self.seconds,
            "threads": torch.get_num_threads(),
            "device": self.device.type,
            "matrices": {name: matrix.detach() for name, matrix in self.matrices.items()},
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "curriculum": self.curriculum.state(),
            "generator": self.generator.get_state(),
            "dropout": self.dropout.get_state(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go back to a state. Sums depend on the number of threads, so that is restored as well."""
        torch.set_num_threads(state["threads"])
        with torch.no_grad():
            for name, matrix in self.matrices.items():
                matrix.copy_(state["matrices"][name])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.curriculum = Curriculum(self.config, **state["curriculum"])
        self.generator.set_state(state["generator"])
        self.dropout.set_state(state["dropout"])
        self.step, self.tokens, self.seconds = state["step"], state["tokens"], state["seconds"]


def train(
    config: TrainConfig,
    directory: str | Path | None = None,
    *,
    device: str | torch.device = "cpu",
    report: Callable[[Progress], None] | None = None,
    measure: Measure | None = None,
) -> FusedTransformer:
    """Train a model; with a directory, as a run that can be resumed and that leaves the finished model there.

    Args:
        directory: a new run directory: config.json, metrics.jsonl, checkpoint.pt, series/ (with keep_every) and, at the
            end, model/.
        report: called after every step.
        measure: (model, task, sequences) → error table, written to the metrics every eval_every steps and to the card.

    Raises:
        HopInterpError: the directory exists or cannot be written, or the run diverges.
    """
    run = Run(config, device)
    if directory is None:
        return _go_on(run, None, report, measure)
    directory = Path(directory)
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise HopInterpError(f"{directory} exists; give another --out, or --resume {directory}")
    if config.tensorboard:
        summary_writer()
    writing(directory, lambda: directory.mkdir(parents=True, exist_ok=True))
    with alone_in(directory):
        write_file(directory / CONFIG, json.dumps(config.to_dict(), indent=2).encode())
        save_checkpoint(run, directory)  # from the start: a resumed run must know its threads and its device
        return _go_on(run, directory, report, measure)


def resume(
    directory: str | Path,
    *,
    device: str | torch.device | None = None,
    report: Callable[[Progress], None] | None = None,
    measure: Measure | None = None,
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
        return _go_on(run, directory, report, measure)


def _go_on(
    run: Run, directory: Path | None, report: Callable[[Progress], None] | None, measure: Measure | None
) -> FusedTransformer:
    config, log = run.config, Log(directory, run.config.tensorboard)
    started, first_tokens, before = time.monotonic(), run.tokens, run.seconds
    with _interrupts() as interrupted:
        while run.step < config.steps:
            loss = run.advance()
            elapsed = time.monotonic() - started
            run.seconds = before + elapsed
            if report is not None:
                largest = run.curriculum.largest
                speed = (run.tokens - first_tokens) / elapsed
                report(Progress(run.step, config.steps, loss, largest, float(run.curriculum.errors[largest]), speed))
            _keep_records(run, directory, log, loss, measure)
            if directory is not None and (run.step % config.checkpoint_every == 0 or interrupted()):
                save_checkpoint(run, directory)
            if interrupted():
                raise KeyboardInterrupt
    model = _detached(run)
    if directory is not None:
        errors = measure(model, config.task, _FINAL_SEQUENCES) if measure is not None else {}
        store.save(directory / MODEL, model, config.task, _made(run), errors, overwrite=True)
        save_checkpoint(run, directory)
    return model


def _keep_records(run: Run, directory: Path | None, log: Log, loss: float, measure: Measure | None) -> None:
    """What is due at this step: a line of metrics, measured errors, a model of the series."""
    config = run.config
    if run.step % config.log_every == 0 or run.step == config.steps:
        log.write(run, {"loss": loss})
    if measure is not None and config.eval_every and run.step % config.eval_every == 0:
        log.write(run, {"eval": measure(_detached(run), config.task, _EVAL_SEQUENCES)["errors"]})
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


def _optimizers(config: TrainConfig, matrices: Mapping[str, Tensor]) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the blocks, AdamW for the rest; or AdamW for all, as the paper's code has it."""
    learned = {name: matrix for name, matrix in matrices.items() if matrix.requires_grad}
    betas = (0.9, config.beta2)
    if config.optimizer == "adamw":
        return [torch.optim.AdamW(learned.values(), lr=config.lr, betas=betas, weight_decay=config.weight_decay, fused=True)]
    inner = {name for name in learned if name.startswith("blocks.") and ".W_" in name}
    muon = torch.optim.Muon(
        [learned[name] for name in learned if name in inner],
        lr=config.lr,
        weight_decay=config.weight_decay,
        adjust_lr_fn="match_rms_adamw",
    )
    rest = [learned[name] for name in learned if name not in inner]
    return [muon, torch.optim.AdamW(rest, lr=config.lr, betas=betas, weight_decay=0.0, fused=True)]


def _set_rate(optimizers: list[torch.optim.Optimizer], config: TrainConfig, step: int) -> None:
    """Linear warm-up, a plateau, linear decay to 0."""
    up = (step + 1) / config.warmup if config.warmup else 1.0
    down = (config.steps - step) / (config.decay * config.steps) if config.decay else 1.0
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = config.lr * min(1.0, up, down)


def _logits(
    spec: ModelSpec, matrices: Mapping[str, Tensor], tokens: Tensor, positions: Tensor | None, **settings: Any
) -> Float[Tensor, "batch position d_vocab"]:
    """The forward pass over matrices: what torch.compile sees."""
    return _model(spec, matrices)(tokens, positions=positions, **settings)


def _model(spec: ModelSpec, matrices: Mapping[str, Tensor]) -> FusedTransformer:
    return FusedTransformer(spec, {name: _as_parameter(name, matrix, spec) for name, matrix in matrices.items()})


def _as_matrix(name: str, parameter: Tensor) -> Float[Tensor, "..."]:
    """A parameter as one matrix: heads side by side. Others stay as they are."""
    if name.endswith((".W_Q", ".W_K", ".W_V")):
        return parameter.transpose(0, 1).flatten(1)
    return parameter.flatten(0, 1) if name.endswith(".W_O") else parameter


def _as_parameter(name: str, matrix: Tensor, spec: ModelSpec) -> Float[Tensor, "..."]:
    """The inverse of `_as_matrix`, on the same memory."""
    if name.endswith((".W_Q", ".W_K", ".W_V")):
        return matrix.view(spec.d_model, spec.n_heads, -1).transpose(0, 1)
    return matrix.view(spec.n_heads, -1, spec.d_model) if name.endswith(".W_O") else matrix
