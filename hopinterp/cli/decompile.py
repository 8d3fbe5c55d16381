"""The command that decompiles: which head looks where, which jumps add up to k, and how far that explains the model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hopinterp.cli.shared import Dpi, Json, Model, Plot, Seed, app, hop_range, open_model, print_json, whole, working
from hopinterp.errors import HopInterpError

if TYPE_CHECKING:
    from hopinterp.decompile.decompilation import Decompilation
    from hopinterp.decompile.records import Decompiled


@app.command()
def decompile(
    model: Model,
    hops: Annotated[str, typer.Option(help="k: one number, several (4-16, 1,2,8), or all.")],
    sequences: Annotated[int, whole("Sequences that the model is run on with its routes.", 20)] = 200,
    every_way: Annotated[
        bool, typer.Option("--every-way", help="Find also the ways that do the work of others; takes longer.")
    ] = False,
    seed: Seed = 0,
    plot: Plot = None,
    dpi: Dpi = 150,
    out: Annotated[Path | None, typer.Option(help="Also save what was found to this directory.")] = None,
    as_json: Json = False,
) -> None:
    """The program that the model runs: where each head looks, which jumps add up to k; and the proof that it runs it."""
    from hopinterp.decompile.decompiled import decompile

    if out is not None and out.exists():
        raise HopInterpError(f"{out} exists; give another --out")
    subject, task = open_model(model, "cpu", plot)
    ks = hop_range("" if hops == "all" else hops, task.max_hops)
    settings: dict[str, Any] = {"sequences": sequences, "every_way": every_way, "seed": seed}
    found: Decompiled | Decompilation
    with working("decompiling") as report:
        if len(ks) == 1:
            found = decompile(subject, task, ks[0], report=report, **settings)
        else:
            found = decompile(subject, task, ks, report=report, **settings)
    if plot is not None:
        from hopinterp.views import plots, programs

        plots.write(programs.figure(found), plot, dpi)
    if out is not None:
        found.save(out)
    if as_json:
        print_json(found.to_json())
    else:
        print(found)
