"""What the campaign damages: a model directory, a GPT-2 state dict, a training run half done, a saved verdict; all small."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from hopinterp.models import store
from hopinterp.models.fused import FusedTransformer
from hopinterp.models.spec import ModelSpec
from hopinterp.progress import Progress
from hopinterp.task import HopTask
from hopinterp.theory.construction import Construction
from hopinterp.training.config import TrainConfig

TASK = HopTask(12, 4, 4)
HEADS, WIDTH, LAYERS = 2, 16, 2
RUN = {"layers": 1, "d_model": 16, "heads": 2, "letters": 10, "max_hops": 2, "batch": 4, "steps": 6, "checkpoint_every": 3}

Files = dict[str, bytes]


def files_of(folder: Path) -> Files:
    """Every file under a folder, by its path there."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def write(folder: Path, files: Files) -> None:
    """Write files under a folder."""
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


@cache
def model() -> Files:
    """A model directory, untrained, with weights wide enough that its answers differ."""
    spec = ModelSpec.for_task(TASK, LAYERS, d_model=WIDTH, n_heads=HEADS)
    parameters = {name: p * (10 if "W_" in name else 1) for name, p in spec.initial_parameters(3).items()}
    with TemporaryDirectory() as folder:
        errors = {name: {"1": 0.5, "2": None} for name in ("errors", "low", "high")} | {"settings": {"sequences": 3}}
        made = {"how": "by a campaign", "hops": 2}
        store.save(Path(folder) / "m", FusedTransformer(spec, parameters), TASK, made, errors)
        return files_of(Path(folder) / "m")


@cache
def doubling() -> Files:
    """A constructed model's directory: there is something to find in it."""
    task = HopTask(20, 4, 4)
    with TemporaryDirectory() as folder:
        store.save(Path(folder) / "m", Construction.of(task, 2, "successor").fused, task, {"how": "constructed", "hops": 2})
        return files_of(Path(folder) / "m")


@cache
def gpt2() -> dict[str, Tensor]:
    """A GPT-2 state dict of the task's size, with Hugging Face's names."""
    generator = torch.Generator().manual_seed(5)

    def drawn(*shape: int) -> Tensor:
        return torch.empty(shape).normal_(0, 0.2, generator=generator)

    d = WIDTH
    state = {"wte.weight": drawn(TASK.d_vocab, d), "wpe.weight": drawn(TASK.n_positions + 1, d)}
    shapes = {"attn.c_attn": (d, 3 * d), "attn.c_proj": (d, d), "mlp.c_fc": (d, 4 * d), "mlp.c_proj": (4 * d, d)}
    for layer in range(LAYERS):
        for name, shape in shapes.items():
            state |= {f"h.{layer}.{name}.weight": drawn(*shape), f"h.{layer}.{name}.bias": drawn(shape[1])}
        for norm in ("ln_1", "ln_2"):
            state |= {f"h.{layer}.{norm}.weight": 1 + drawn(d), f"h.{layer}.{norm}.bias": drawn(d)}
    return state | {"ln_f.weight": 1 + drawn(d), "ln_f.bias": drawn(d), "lm_head.weight": drawn(TASK.d_vocab, d)}


def torch_saved(value: object) -> bytes:
    """What torch.save writes."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


@cache
def imported(heads: int = HEADS) -> bytes:
    """The weights file that importing `gpt2()` makes."""
    from hopinterp.models.gpt2 import convert

    with TemporaryDirectory() as folder:
        store.save(Path(folder) / "m", convert(gpt2(), heads), TASK, {"how": "imported"})
        return (Path(folder) / "m" / "model.safetensors").read_bytes()


def _in_a_process(work: Callable[[], object]) -> None:
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(1)
    os.waitpid(child, 0)


@cache
def run() -> Files:
    """A run directory as a process that was killed at step 4 of 6 leaves it: its checkpoint is of step 3."""
    from hopinterp.training import loop

    def stop(now: Progress) -> None:
        if now.done >= 4:
            os._exit(0)

    config = TrainConfig.preset("quick", **RUN, log_every=1, keep_every=2)
    with TemporaryDirectory() as folder:
        _in_a_process(lambda: loop.train(config, Path(folder) / "run", report=stop))
        found = files_of(Path(folder) / "run")
    assert {"checkpoint.pt", "config.json", "metrics.jsonl"} <= found.keys()
    return found


@cache
def finished() -> Files:
    """The same run when it has gone on to its end."""
    from hopinterp.training import loop

    with TemporaryDirectory() as folder:
        write(Path(folder) / "run", run())

        def finish() -> None:
            loop.resume(Path(folder) / "run")
            os._exit(0)

        _in_a_process(finish)
        return files_of(Path(folder) / "run")


@cache
def verdict() -> Files:
    """A saved verdict, its evidence and its program."""
    from hopinterp.judgement.verdict import verify

    task = HopTask(20, 4, 4)
    with TemporaryDirectory() as folder:
        verify(Construction.of(task, 2, "successor").fused, task, 2, sequences=20).save(Path(folder) / "v")
        return files_of(Path(folder) / "v")


@cache
def kept() -> tuple[Files, dict[str, str]]:
    """A cache with a dataset and a program in it; and by name what was measured, as text."""
    with TemporaryDirectory() as folder:
        told = {name: measure(Path(folder) / "c") for name, measure in MEASURED.items()}
        return files_of(Path(folder) / "c"), told


def _evaluated(cache: Path) -> str:
    from hopinterp.evidence.reading.behaviour import evaluate
    from hopinterp.evidence.remembered import cached

    with cached(cache, warn=lambda _: None):  # where a device or a directory is in the place of a file
        return json.dumps(evaluate(_known(), HopTask(20, 4, 4), [1, 2], sequences=4).to_dict())


def _decompiled(cache: Path) -> str:
    from hopinterp.decompile.decompiled import decompile
    from hopinterp.evidence.remembered import cached

    with cached(cache, warn=lambda _: None):  # where a device or a directory is in the place of a file
        return json.dumps(decompile(_known(), HopTask(20, 4, 4), 2, sequences=20).to_json())


MEASURED: dict[str, Callable[[Path], str]] = {"evaluated": _evaluated, "decompiled": _decompiled}
"""What is measured of a small model within a cache, as text."""


@cache
def _known() -> FusedTransformer:
    return Construction.of(HopTask(20, 4, 4), 2, "successor").fused


def card() -> dict[str, object]:
    """The sample model's card."""
    found: dict[str, object] = json.loads(model()["card.json"])
    return found
