"""The front door to the workshop: the commands that list, import, construct and train models."""

from __future__ import annotations

import json
import math
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hopinterp.cli.shared import INTERRUPTED, Json, Seed, app, find_device, print_json, show, working
from hopinterp.errors import HopInterpError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from hopinterp.models.fused import FusedTransformer
    from hopinterp.task import HopTask
    from hopinterp.training.loop import Progress


@app.command()
def models(
    directory: Annotated[Path | None, typer.Argument(help="Look here instead of among the shipped models.")] = None,
    as_json: Json = False,
) -> None:
    """List the models that can be named."""
    from hopinterp.models import store
    from hopinterp.views import tables

    if directory is not None and not directory.is_dir():
        raise HopInterpError(f"no directory {directory}")
    cards = {path.name: store.read_card(path) for path in store.list_models(directory)}
    if as_json:
        print_json({name: json.loads(card.to_json()) for name, card in cards.items()})
        return
    show(tables.models_table(cards), f"{len(cards)} model(s) in {directory or 'trained_models'}.")


@app.command("import")
def import_(
    file: Annotated[Path, typer.Argument(help="A torch.save'd or safetensors GPT-2 state dict.")],
    heads: Annotated[int, typer.Option(help="Attention heads (shapes do not show them).")],
    out: Annotated[Path, typer.Option(help="The model directory to write.")],
    letters: Annotated[int | None, typer.Option(help="Letters in a sequence; two fewer than positions by default.")] = None,
    alphabet: Annotated[int, typer.Option(help="Size of the alphabet.")] = 4,
    max_hops: Annotated[int, typer.Option(help="The largest k.")] = 16,
    act: Annotated[str, typer.Option(help="The MLP's activation: gelu_new, gelu or relu.")] = "gelu_new",
    overwrite: Annotated[bool, typer.Option(help="Replace a model directory that is there.")] = False,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Import a Hugging Face GPT-2 checkpoint of the task, exactly."""
    from hopinterp.models import gpt2, store
    from hopinterp.views import tables

    model, task = gpt2.import_gpt2(
        file, heads, n_letters=letters, alphabet_size=alphabet, max_hops=max_hops, act_fn=act
    )  # fmt: skip
    store.check_free(out, overwrite)
    with working("measuring its errors"):
        errors = _measure(model, task, 100, seed)
    made = {"how": f"imported from {file.name}", "heads": heads}
    card = store.save(out, model, task, made, errors, overwrite)
    if as_json:
        print_json(json.loads(card.to_json()))
        return
    show(None, tables.model_reading(out, card))


@app.command()
def construct(
    out: Annotated[Path, typer.Option(help="The model directory to write.")],
    algorithm: Annotated[str, typer.Option(help="lookup, successor or sequential.")] = "lookup",
    hops: Annotated[int | None, typer.Option(help="k, which the model computes whatever it is asked.")] = None,
    multi_task: Annotated[
        bool, typer.Option("--multi-task", help="Instead read k from the first token, up to --max-hops.")
    ] = False,
    letters: Annotated[int, typer.Option(help="Letters in a sequence.")] = 98,
    alphabet: Annotated[int, typer.Option(help="Size of the alphabet.")] = 4,
    max_hops: Annotated[int, typer.Option(help="The largest k that has a token.")] = 16,
    overwrite: Annotated[bool, typer.Option(help="Replace a model directory that is there.")] = False,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Write a model whose weights are set by hand: the theorem's circuit, or one that it must be told from."""
    if (hops is None) != multi_task:
        raise HopInterpError("construct needs --hops K for a model of one k, or --multi-task for one that reads k")
    from hopinterp.models import store
    from hopinterp.task import HopTask
    from hopinterp.theory.construction import Construction
    from hopinterp.views import tables

    task = HopTask(letters, alphabet, max_hops)
    store.check_free(out, overwrite)
    made = Construction.of(task, hops, algorithm)
    with working("measuring its errors"):
        errors = _measure(made.fused, task, 100, seed, None if hops is None else [hops])
    if unscored := [k for k, error in errors["errors"].items() if math.isnan(error)]:
        raise HopInterpError(f"{letters} letters are too few: none of 100 sequences has a chain of {unscored[0]} links")
    how = {"how": f"constructed: {algorithm}, " + ("every k" if hops is None else f"k = {hops}")}
    card = store.save(out, made.fused, task, how | {"algorithm": algorithm, "hops": hops}, errors, overwrite)
    if as_json:
        print_json(json.loads(card.to_json()))
        return
    show(None, tables.model_reading(out, card))


@app.command()
def train(
    out: Annotated[Path | None, typer.Option(help="The run directory to make; the model will be in it.")] = None,
    resume: Annotated[
        Path | None, typer.Option(help="Go on with the run in this directory; all settings are its own.")
    ] = None,
    preset: Annotated[
        str, typer.Option(help="full: our recipe; quick: a tiny model in a minute; paper: as published.")
    ] = "full",
    layers: Annotated[int | None, typer.Option(help="Depth, the number of blocks.")] = None,
    d_model: Annotated[int | None, typer.Option(help="Width of the residual stream.")] = None,
    heads: Annotated[int | None, typer.Option(help="Attention heads a block.")] = None,
    act_fn: Annotated[str | None, typer.Option(help="gelu (erf), gelu_new or relu.")] = None,
    unembed: Annotated[str | None, typer.Option(help="learned, or identity as in the paper.")] = None,
    letters: Annotated[int | None, typer.Option(help="Letters in a sequence.")] = None,
    alphabet: Annotated[int | None, typer.Option(help="Size of the alphabet.")] = None,
    max_hops: Annotated[int | None, typer.Option(help="The largest k.")] = None,
    steps: Annotated[int | None, typer.Option(help="Gradient steps.")] = None,
    batch: Annotated[int | None, typer.Option(help="Sequences a step.")] = None,
    optimizer: Annotated[str | None, typer.Option(help="muon or adamw.")] = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate.")] = None,
    warmup: Annotated[int | None, typer.Option(help="Steps of linear warm-up.")] = None,
    decay: Annotated[
        float | None, typer.Option(help="Share of the run, at its end, over which the rate falls to 0.")
    ] = None,
    weight_decay: Annotated[float | None, typer.Option(help="Decay of the matrices.")] = None,
    beta2: Annotated[float | None, typer.Option(help="AdamW's second beta.")] = None,
    clip: Annotated[float | None, typer.Option(help="Largest gradient norm; 0 for no clipping.")] = None,
    dropout: Annotated[float | None, typer.Option(help="GPT-2's dropout, while training.")] = None,
    curriculum: Annotated[bool | None, typer.Option(help="Add k one at a time, ask hard k more often.")] = None,
    short_until: Annotated[
        tuple[float, float] | None, typer.Option(help="Shares of the run with 1/3 and 2/3 length.")
    ] = None,
    samples: Annotated[int | None, typer.Option(help="A fixed training set of this size (appendix G.5).")] = None,
    bf16: Annotated[bool | None, typer.Option(help="Matrix products in bfloat16.")] = None,
    compile: Annotated[bool | None, typer.Option(help="torch.compile; on a GPU with CUDA graphs.")] = None,
    tensorboard: Annotated[bool | None, typer.Option(help="Also write the metrics for TensorBoard.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, max=2**32 - 1, help="Seed of weights, data and dropout.")] = None,
    checkpoint_every: Annotated[int | None, typer.Option(help="Steps between checkpoints.")] = None,
    keep_every: Annotated[int | None, typer.Option(help="Keep the model every so many steps, for its dynamics.")] = None,
    log_every: Annotated[int | None, typer.Option(help="Steps between lines of metrics.jsonl.")] = None,
    eval_every: Annotated[int | None, typer.Option(help="Steps between measurements of every err_k; 0 for never.")] = None,
    threads: Annotated[int | None, typer.Option(help="Processor threads; the machine's choice by default.")] = None,
    device: Annotated[str, typer.Option(help="auto (a resumed run: where it ran before), cpu, cuda or mps.")] = "auto",
) -> None:
    """Train a model of the task, or go on with a run that was interrupted."""
    settings = {
        name: value for name, value in locals().items() if name not in ("out", "resume", "preset", "threads", "device")
    }
    import torch

    from hopinterp.training import loop, record
    from hopinterp.training.config import TrainConfig

    if (out is None) == (resume is None):
        raise HopInterpError("train needs --out for a new run, or --resume for one to go on with")
    if threads is not None:
        if threads < 1:
            raise HopInterpError(f"--threads is {threads}; at least 1 is needed")
        torch.set_num_threads(threads)
    directory = out or resume
    try:
        with _training_bar() as report:
            if out is not None:
                config = TrainConfig.preset(preset, **settings)
                loop.train(config, out, device=find_device(device), report=report, measure=_measure)
            else:
                assert resume is not None
                if given := [name for name, value in settings.items() if value is not None]:
                    raise HopInterpError(f"a resumed run has its own settings; --{given[0].replace('_', '-')} cannot change")
                where = None if device == "auto" else find_device(device)
                loop.resume(resume, device=where, report=report, measure=_measure)
    except KeyboardInterrupt:
        print(f"hopinterp: interrupted; go on with: hopinterp train --resume {directory}", file=sys.stderr)
        sys.exit(INTERRUPTED)
    from hopinterp.models import store
    from hopinterp.views import tables

    assert directory is not None
    show(None, tables.model_reading(directory, store.read_card(directory / record.MODEL)))


def _measure(
    model: FusedTransformer, task: HopTask, sequences: int, seed: int = 0, hops: list[int] | None = None
) -> dict[str, Any]:
    from hopinterp.evidence.reading.behaviour import evaluate
    from hopinterp.views.tables import errors_json

    return errors_json(evaluate(model, task, hops, sequences, seed))


@contextmanager
def _training_bar() -> Iterator[Callable[[Progress], None]]:
    """A bar on standard error: step, loss, K, error at K, tokens a second, time left."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (MofNCompleteColumn(), BarColumn(bar_width=20), TextColumn("{task.description}"), TimeRemainingColumn())
    bar = Bar(*columns, console=Console(stderr=True))
    shown = bar.add_task("starting", total=None)

    def report(now: Progress) -> None:
        bar.start()  # not before the first step: what cannot start gets one line and no bar
        text = f"loss {now.loss:.3f}  K {now.largest_hops}  error at K {100 * now.error:.1f}%"
        text += f"  {now.tokens_per_second / 1000:.1f}k tokens/s"
        bar.update(shown, total=now.steps, completed=now.step, description=text)

    try:
        yield report
    finally:
        if bar.live.is_started:
            bar.stop()
