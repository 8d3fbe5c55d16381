"""The commands that only look at a model: eval, attention, probe."""

from __future__ import annotations

from typing import Annotated, get_args

import typer

from hopinterp.cli.shared import (
    Device,
    Dpi,
    Hops,
    Json,
    Layer,
    Model,
    Number,
    Plot,
    Seed,
    app,
    draw,
    hop_range,
    one_of,
    open_model,
    print_json,
    show,
    whole,
    working,
)


@app.command("eval")
def eval_(
    model: Model,
    hops: Annotated[str, typer.Option(help="Values of k: 8, 1-16 or 1,2,4.")] = "",
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
    """err_k: the share of answers that are wrong, for each k."""
    from hopinterp.evidence.reading.behaviour import evaluate
    from hopinterp.views import tables

    subject, task = open_model(model, device, plot)
    with working("answering") as report:
        ks = hop_range(hops, task.max_hops)
        found = evaluate(subject, task, ks, sequences, seed, dropout, report=report, distinct=distinct)
    draw(plot, dpi, "error_curve", found, title=f"{subject.name}: err_k")
    if as_json:
        print_json(tables.errors_json(found))
    else:
        show(tables.errors_table(found), tables.errors_reading(found, subject.name))


@app.command()
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
    draw(plot, dpi, "alignment_heatmap", found, k=hops, title=f"{subject.name}: alignment with find^j (cosine), k = {hops}")
    one = found.sel(hops=hops)
    if as_json:
        print_json(tables.attention_json(one, hops))
    else:
        show(tables.attention_table(one), tables.attention_reading(one))


@app.command()
def probe(
    model: Model,
    hops: Hops,
    layer: Layer = None,
    target: Annotated[str, typer.Option(help="token: the letter at find^j(i); position: find^j(i) itself.")] = "token",
    method: Annotated[str, typer.Option(help="logistic, or ridge for a quick scan.")] = "logistic",
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
            subject, task, hops, layers=layer, **settings,
            train_sequences=train_sequences, sequences=sequences, seed=seed, report=report,
        )  # fmt: skip
    title = f"{subject.name}, k = {hops}: {target} at find^j(i), read from block ℓ"
    draw(plot, dpi, "probe_staircase", found, title=title)
    if as_json:
        print_json(tables.probe_json(found))
    else:
        show(tables.probe_table(found), tables.probe_reading(found))
