"""The commands that only look at a model: eval, attention, probe."""

from __future__ import annotations

from typing import Annotated, get_args

import typer

from hopinterp.cli.keep import keep_datasets, keeps
from hopinterp.cli.shared import (
    Device,
    Dpi,
    Hops,
    Json,
    Layer,
    Model,
    Models,
    Number,
    Plot,
    Seed,
    choices,
    draw,
    hop_range,
    measured,
    one_of,
    open_model,
    open_models,
    overlay,
    print_json,
    show,
    whole,
    working,
)

TARGETS, METHODS = ("token", "position"), ("logistic", "ridge")
"""For the shell to complete; what they are is known only where torch is imported."""


@keeps
def eval_(
    model: Models,
    hops: Annotated[
        str, typer.Option(help="Values of k: 8, 1-16 or 1,2,4; by default 1 to the largest of every model's task.")
    ] = "",
    sequences: Annotated[int, whole("Sequences a k.")] = 100,
    seed: Seed = 0,
    distinct: Annotated[int, whole("Further sequences a k, for the error on chains without repeats two hops apart.", 0)] = 0,
    dropout: Annotated[
        float,
        typer.Option(parser=Number(), metavar="FLOAT", help="Dropout left on while answering (the published table: 0.1)."),
    ] = 0.0,
    device: Device = "auto",
    plot: Plot = None,
    dpi: Dpi = 150,
    as_json: Json = False,
) -> None:
    """err_k: the share of answers that are wrong, for each k; several models side by side."""
    from hopinterp.views import side_by_side, tables

    opened = open_models(model, device, plot)
    ks = hop_range(hops, min(task.max_hops for _, task in opened.values()))
    found = measured(opened, ks, sequences=sequences, seed=seed, dropout=dropout, distinct=distinct)
    name, *others = found
    if not others:
        one = found[name]
        draw(plot, dpi, "error_curve", one, title=f"{name}: err_k")
        kept = keep_datasets({"eval": one})
        if as_json:
            print_json(tables.errors_json(one), plot, *kept)
        else:
            show(tables.errors_table(one), tables.errors_reading(one, name), plot, *kept)
        return
    overlay(plot, dpi, found)
    kept = keep_datasets({f"eval_{number}": one for number, one in enumerate(found.values(), 1)})
    if as_json:
        print_json({"models": {name: tables.errors_json(one) for name, one in found.items()}}, plot, *kept)
    else:
        readings = "\n".join(tables.errors_reading(one, name) for name, one in found.items())
        show(side_by_side.errors_side_by_side(found), readings, plot, *kept)


@keeps
def attention(
    model: Model,
    hops: Hops,
    sequences: Annotated[int, whole("Sequences to average over.")] = 50,
    seed: Seed = 0,
    device: Device = "auto",
    plot: Plot = None,
    dpi: Dpi = 150,
    as_json: Json = False,
) -> None:
    """Which find^j each head attends to."""
    from hopinterp.evidence.reading.attention import align
    from hopinterp.views import tables

    subject, task = open_model(model, device, plot)
    with working("reading attention patterns") as report:
        found = align(subject, task, hops, sequences, seed, report=report)
    draw(plot, dpi, "alignment_heatmap", found, k=hops)
    kept = keep_datasets({"attention": found})
    one = found.sel(hops=hops)
    if as_json:
        print_json(tables.attention_json(one, hops), plot, *kept)
    else:
        show(tables.attention_table(one), tables.attention_reading(one), plot, *kept)


@keeps
def probe(
    model: Model,
    hops: Hops,
    layer: Layer = None,
    target: Annotated[
        str,
        typer.Option(help="token: the letter at find^j(i); position: find^j(i) itself.", autocompletion=choices(*TARGETS)),
    ] = "token",
    method: Annotated[
        str, typer.Option(help="logistic, or ridge for a quick scan.", autocompletion=choices(*METHODS))
    ] = "logistic",
    furthest: Annotated[int | None, whole("The last hop to read; by default the task's largest.", 0)] = None,
    sequences: Annotated[int, whole("Held-out sequences.")] = 100,
    train_sequences: Annotated[int, whole("Sequences to fit on.")] = 160,
    seed: Seed = 0,
    device: Device = "auto",
    plot: Plot = None,
    dpi: Dpi = 150,
    as_json: Json = False,
) -> None:
    """Which hops can be read off each block's output, linearly."""
    from hopinterp.evidence.reading.probes import Method, Target
    from hopinterp.evidence.reading.probes import probe as run_probe
    from hopinterp.views import tables

    settings = {"target": one_of("--target", target, get_args(Target))}
    settings["method"] = one_of("--method", method, get_args(Method))
    subject, task = open_model(model, device, plot)
    with working("fitting probes") as report:
        found = run_probe(
            subject, task, hops, layers=layer, **settings, furthest=task.max_hops if furthest is None else furthest,
            train_sequences=train_sequences, sequences=sequences, seed=seed, report=report,
        )  # fmt: skip
    draw(plot, dpi, "probe_staircase", found)
    kept = keep_datasets({"probe": found})
    if as_json:
        print_json(tables.probe_json(found), plot, *kept)
    else:
        show(tables.probe_table(found), tables.probe_reading(found), plot, *kept)
