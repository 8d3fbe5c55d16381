"""The commands that change what a model computes: patch, transplant."""

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
    Plot,
    Seed,
    choices,
    draw,
    one_of,
    open_model,
    print_json,
    show,
    whole,
    working,
)
from hopinterp.errors import HopInterpError

SITES = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "z", "q", "k", "v", "pattern")
BY, PAIRS, DIRECTIONS = ("chain", "position", "all"), ("resample", "one-link"), ("noising", "denoising")
METRICS = ("logit_difference", "probability", "accuracy")
MATCHES = ("nothing", "letter", "neighbour", "occurrence")
"""For the shell to complete; what they are is known only where torch is imported."""


@keeps
def patch(
    model: Model,
    hops: Hops,
    site: Annotated[
        str,
        typer.Option(
            help="resid_pre, resid_mid, resid_post, attn_out, mlp_out, or a head's z, q, k, v, pattern.",
            autocompletion=choices(*SITES),
        ),
    ] = "resid_post",
    by: Annotated[
        str,
        typer.Option(
            help="chain: find^j(i) and the place before it; position; or all at once.", autocompletion=choices(*BY)
        ),
    ] = "chain",
    pairs: Annotated[
        str,
        typer.Option(
            help="resample: an independent sequence; one-link: one letter changed.", autocompletion=choices(*PAIRS)
        ),
    ] = "resample",
    link: Annotated[int | None, whole("j of one-link pairs; drawn for each pair by default.")] = None,
    position: Annotated[
        int | None, whole("i, whose answer is watched; by position the last by default, else drawn.")
    ] = None,
    direction: Annotated[
        str | None,
        typer.Option(
            help="noising (default along the chain) or denoising (default by position).", autocompletion=choices(*DIRECTIONS)
        ),
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option(
            help="logit_difference (default by position), probability (default along the chain), accuracy.",
            autocompletion=choices(*METRICS),
        ),
    ] = None,
    sequences: Annotated[int, whole("Pairs of sequences to average over.")] = 100,
    memory: Annotated[int, whole("MiB for the activations of runs that are batched together.", 1)] = 256,
    seed: Seed = 0,
    device: Device = "auto",
    plot: Plot = None,
    dpi: Dpi = 150,
    as_json: Json = False,
) -> None:
    """Activation patching: where, at each block, the information is that the answer needs.

    For the sites outside the heads, and for z, only what a patch can change is computed. By position z is still a patch for
    every block, head and position: 1,980 a pair for depth5, about half a second on one core. 10 pairs show the picture; 100,
    the default, give narrow intervals. A head's q, k, v and pattern are patched by whole runs, some ten times as slow.
    """
    from hopinterp.evidence.patching import effects
    from hopinterp.evidence.patching.activation import patch as run_patch
    from hopinterp.evidence.patching.pairs import Kind
    from hopinterp.evidence.patching.positions import By
    from hopinterp.evidence.patching.runs import Direction
    from hopinterp.views import tables

    metric = one_of("--metric", metric or effects.default_metric(by), effects.METRICS)
    settings = {"by": one_of("--by", by, get_args(By)), "pairs": one_of("--pairs", pairs, get_args(Kind))}
    settings["direction"] = None if direction is None else one_of("--direction", direction, get_args(Direction))
    subject, task = open_model(model, device, plot)
    with working("patching") as report:
        found = run_patch(
            subject, task, hops, site=site, link=link, position=position, **settings,
            sequences=sequences, seed=seed, memory=memory * 2**20, report=report,
        )  # fmt: skip
    draw(plot, dpi, "light_cone" if by == "chain" else "patch_heatmap", found, metric=metric)
    kept = keep_datasets({"patch": found})
    if as_json:
        print_json(tables.patch_json(found, metric), plot, *kept)
    else:
        show(tables.patch_table(found, metric), tables.patch_reading(found, metric), plot, *kept)


@keeps
def transplant(
    model: Model,
    hops: Hops,
    layer: Layer = None,
    heads: Annotated[bool, typer.Option("--heads", help="Each head's output instead of the block's.")] = False,
    match: Annotated[
        str,
        typer.Option(
            help="What both sequences share at i: nothing, letter, neighbour (also the left one), occurrence.",
            autocompletion=choices(*MATCHES),
        ),
    ] = "nothing",
    next_agrees: Annotated[
        bool,
        typer.Option("--next-agrees", help="Count only where the base's next hop brings the letter that the source's does."),
    ] = False,
    sequences: Annotated[int, whole("Pairs of sequences.")] = 100,
    seed: Seed = 0,
    device: Device = "auto",
    plot: Plot = None,
    dpi: Dpi = 150,
    as_json: Json = False,
) -> None:
    """Interchange interventions: what each block's output stands for, "r hops done" or nothing of the kind."""
    from hopinterp.evidence.transplants.interchange import transplant as run_transplant
    from hopinterp.views import tables

    subject, task = open_model(model, device, plot)
    if heads and plot is not None:
        raise HopInterpError("the figure is of whole blocks: --plot and --heads do not go together")
    with working("transplanting") as report:
        found = run_transplant(
            subject, task, hops, layer, heads=heads, match=match, next_agrees=next_agrees,
            sequences=sequences, seed=seed, report=report,
        )  # fmt: skip
    draw(plot, dpi, "iia_by_r", found)
    kept = keep_datasets({"transplant": found})
    if as_json:
        print_json(tables.transplant_json(found), plot, *kept)
    else:
        show(tables.transplant_table(found), tables.transplant_reading(found), plot, *kept)
