"""The front door: the `hopinterp` command parses, calls and prints. No science in it, and no torch until it is needed."""

from __future__ import annotations

import json
import re
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hopinterp.errors import HopInterpError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import xarray as xr
    from rich.table import Table

    from hopinterp.models.fused import FusedTransformer
    from hopinterp.task import HopTask
    from hopinterp.training.loop import Progress

_INTERRUPTED = 130

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Does layer ℓ of a k-hop transformer resolve 2^ℓ hops? Import or train a model, then look inside.",
)

Model = Annotated[str, typer.Argument(help="A model directory, or a shipped model's name.")]
Hops = Annotated[int, typer.Option(help="k, the hop count the model is asked for.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
Plot = Annotated[Path | None, typer.Option(help="Also draw the figure into this file (.png, .svg, .pdf).")]
Seed = Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Seed of every random choice.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]


def main() -> None:
    """Run the command: what a user can mend is one line on standard error and exit status 2."""
    # the base class of everything the parser raises, which typer does not name publicly
    usage_error: type[Exception] = typer.BadParameter.__bases__[0]
    try:
        status = app(standalone_mode=False) or 0
        if status == _INTERRUPTED:  # the parser turned Ctrl-C into this
            raise KeyboardInterrupt
        sys.exit(status)
    except HopInterpError as error:
        _fail(str(error))
    except usage_error as error:
        _fail(error.format_message())  # type: ignore[attr-defined]
    except (KeyboardInterrupt, typer.Abort):
        print("hopinterp: interrupted", file=sys.stderr)
        sys.exit(_INTERRUPTED)


def _fail(message: str) -> None:
    print("hopinterp: " + " ".join(message.split()), file=sys.stderr)
    sys.exit(2)


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
        _print_json({name: json.loads(card.to_json()) for name, card in cards.items()})
        return
    _show(tables.models_table(cards), f"{len(cards)} model(s) in {directory or 'trained_models'}.")


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
    with _working("measuring its errors"):
        errors = _measure(model, task, 100, seed)
    made = {"how": f"imported from {file.name}", "heads": heads}
    card = store.save(out, model, task, made, errors, overwrite)
    if as_json:
        _print_json(json.loads(card.to_json()))
        return
    _show(None, tables.model_reading(out, card))


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
                loop.train(config, out, device=_device(device), report=report, measure=_measure)
            else:
                assert resume is not None
                if given := [name for name, value in settings.items() if value is not None]:
                    raise HopInterpError(f"a resumed run has its own settings; --{given[0].replace('_', '-')} cannot change")
                where = None if device == "auto" else _device(device)
                loop.resume(resume, device=where, report=report, measure=_measure)
    except KeyboardInterrupt:
        print(f"hopinterp: interrupted; go on with: hopinterp train --resume {directory}", file=sys.stderr)
        sys.exit(_INTERRUPTED)
    from hopinterp.models import store
    from hopinterp.views import tables

    assert directory is not None
    _show(None, tables.model_reading(directory, store.read_card(directory / record.MODEL)))


def _measure(model: FusedTransformer, task: HopTask, sequences: int, seed: int = 0) -> dict[str, Any]:
    from hopinterp.evidence.behaviour import evaluate
    from hopinterp.views.tables import errors_json

    return errors_json(evaluate(model, task, sequences=sequences, seed=seed))


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


@app.command("eval")
def eval_(
    model: Model,
    hops: Annotated[str, typer.Option(help="Values of k: 8, 1-16 or 1,2,4.")] = "",
    sequences: Annotated[int, typer.Option(help="Sequences a k.")] = 100,
    seed: Seed = 0,
    dropout: Annotated[float, typer.Option(help="Dropout left on while answering (the published table: 0.1).")] = 0.0,
    device: Device = "auto",
    plot: Plot = None,
    as_json: Json = False,
) -> None:
    """err_k: the share of answers that are wrong, for each k."""
    from hopinterp.evidence.behaviour import evaluate
    from hopinterp.models import store
    from hopinterp.views import tables

    network, card = store.load_fused(model, _device(device))
    _check_drawable(plot)
    with _working("answering"):
        found = evaluate(network, card.task, _hop_range(hops, card.task.max_hops), sequences, seed, dropout)
    _draw(plot, "error_curve", found, title=f"{Path(model).name}: err_k")
    if as_json:
        _print_json(tables.errors_json(found))
    else:
        _show(tables.errors_table(found), tables.errors_reading(found, Path(model).name))


@app.command()
def attention(
    model: Model,
    hops: Hops,
    sequences: Annotated[int, typer.Option(help="Sequences to average over.")] = 50,
    seed: Seed = 0,
    device: Device = "auto",
    plot: Plot = None,
    as_json: Json = False,
) -> None:
    """Which find^j each head attends to."""
    from hopinterp.evidence.attention import align
    from hopinterp.models import store
    from hopinterp.views import tables

    network, card = store.load_fused(model, _device(device))
    _check_drawable(plot)
    with _working("reading attention patterns"):
        found = align(network, card.task, hops, sequences, seed)
    _draw(plot, "alignment_heatmap", found, k=hops, title=f"{Path(model).name}: alignment with find^j (cosine), k = {hops}")
    one = found.sel(k=hops)
    if as_json:
        _print_json(tables.attention_json(one, hops))
    else:
        _show(tables.attention_table(one), tables.attention_reading(one))


@app.command()
def probe(
    model: Model,
    hops: Hops,
    layer: Annotated[int | None, typer.Option(help="One block, counted from 0; every block by default.")] = None,
    target: Annotated[str, typer.Option(help="token: the letter at find^j(i); position: find^j(i) itself.")] = "token",
    method: Annotated[str, typer.Option(help="logistic, or ridge for a quick scan.")] = "logistic",
    sequences: Annotated[int, typer.Option(help="Held-out sequences.")] = 100,
    train_sequences: Annotated[int, typer.Option(help="Sequences to fit on.")] = 160,
    seed: Seed = 0,
    device: Device = "auto",
    plot: Plot = None,
    as_json: Json = False,
) -> None:
    """Which hops can be read off each block's output, linearly."""
    from hopinterp.evidence.probes import probe as run_probe
    from hopinterp.models import store
    from hopinterp.views import tables

    network, card = store.load_fused(model, _device(device))
    _check_drawable(plot)
    layers = None if layer is None else [layer]
    with _working("fitting probes"):
        found = run_probe(
            network, card.task, hops, target=target, layers=layers, method=method,  # type: ignore[arg-type]
            train_sequences=train_sequences, sequences=sequences, seed=seed,
        )  # fmt: skip
    _draw(plot, "probe_staircase", found, title=f"{Path(model).name}, k = {hops}: {target} at find^j(i), read from block ℓ")
    if as_json:
        _print_json(tables.probe_json(found))
    else:
        _show(tables.probe_table(found), tables.probe_reading(found))


def _hop_range(text: str, max_hops: int) -> list[int]:
    """ "8", "1-16" or "1,2,4" as numbers; 1 … max_hops for nothing."""
    if not text:
        return list(range(1, max_hops + 1))
    if not re.fullmatch(r"\d+(-\d+)?(,\d+(-\d+)?)*", text):
        raise HopInterpError(f"--hops is {text!r}; it is a number, a range or a list: 8, 1-16, 1,2,4")
    ks: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        ks += range(int(first), int(last or first) + 1)
    if not ks:
        raise HopInterpError(f"--hops is {text!r}, an empty range")
    return sorted(set(ks))


def _device(name: str) -> str:
    import torch

    found = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return next(kind for kind in ("cuda", "mps", "cpu") if found[kind])
    if name not in found:
        raise HopInterpError(f"--device is {name!r}; it is auto, cpu, cuda or mps")
    if not found[name]:
        raise HopInterpError(f"--device is {name}; this machine has none")
    return name


def _check_drawable(path: Path | None) -> None:
    if path is not None:
        from hopinterp.views import plots

        plots.check_drawable(path)


def _draw(path: Path | None, kind: str, found: xr.Dataset, **settings: Any) -> None:
    if path is None:
        return
    from hopinterp.views import plots

    plots.write(getattr(plots, kind)(found, **settings), path)


def _print_json(value: dict[str, Any]) -> None:
    from hopinterp.views import tables

    print(json.dumps(tables.finite(value), allow_nan=False))


def _show(table: Table | None, reading: str) -> None:
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console.width = 160  # a pipe or a file has no width to keep to
    if table is not None:
        console.print(table)
    console.print(reading, highlight=False, soft_wrap=True)


@contextmanager
def _working(what: str) -> Iterator[None]:
    """A spinner on standard error, where there is a terminal to see it."""
    from rich.console import Console

    with Console(stderr=True).status(what + " …"):
        yield
