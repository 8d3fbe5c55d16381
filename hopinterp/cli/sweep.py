"""The command that trains and measures every cell of a grid: sweep."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hopinterp import signals
from hopinterp.cli.keep import NoCache
from hopinterp.cli.shared import (
    Dpi,
    Json,
    Plot,
    choices,
    command_line,
    print_json,
    show,
    whole,
    working,
)
from hopinterp.errors import HopInterpError
from hopinterp.files import check_file_target, write_file
from hopinterp.shown import legible
from hopinterp.sweeps.grid import PAPER, RECIPES, Grid
from hopinterp.training.config import PRESETS

if TYPE_CHECKING:
    import xarray as xr

ENGINES = ("local", "slurm", "debug")
"""For the shell to complete; what they are is known only where torch is imported."""


def sweep(
    grid: Annotated[
        Path | None,
        typer.Argument(
            help="A TOML file of settings as in `train`, each a value or a list; by default the one that --out keeps."
        ),
    ] = None,
    *,
    out: Annotated[Path, typer.Option(help="The sweep's directory: a run directory a cell, and results.nc.")],
    preset: Annotated[
        str,
        typer.Option(
            help="Instead of a file, a grid of the paper's Table 3: "
            + "; ".join(f"{name}: {one.words}" for name, one in PAPER.items())
            + ". None by default.",
            autocompletion=choices(*PAPER),
        ),
    ] = "",
    recipe: Annotated[
        str,
        typer.Option(
            help="Of --preset, how its cells are trained: "
            + "; ".join(f"{name}, {PRESETS[name].words}" for name in RECIPES)
            + ".",
            autocompletion=choices(*RECIPES),
        ),
    ] = "full",
    seeds: Annotated[str, typer.Option(help="Of --preset, its seeds: 0, 0-7 or 0,2.")] = "0",
    decompile: Annotated[
        str,
        typer.Option(
            help="Decompile each model too, at k: granted (the most that theory grants it), solved, all, or 1-7; else none."
        ),
    ] = "",
    verify: Annotated[str, typer.Option(help="Judge each model too, at k as for --decompile; else none.")] = "",
    engine: Annotated[
        str,
        typer.Option(
            help="local: processes of this machine; slurm: a cluster's jobs; debug: this process.",
            autocompletion=choices(*ENGINES),
        ),
    ] = "local",
    workers: Annotated[int | None, whole("Cells at a time; one a core by default, all of them on a cluster.", 1)] = None,
    threads: Annotated[
        int | None,
        whole(
            "Processor threads of a cell, on which its bits depend; by default cores/workers, at least 1; on a cluster 1.",
            1,
        ),
    ] = None,
    device: Annotated[
        str,
        typer.Option(
            help="auto (a resumed run: where it ran before), cpu, cuda or mps.",
            autocompletion=choices("auto", "cpu", "cuda", "mps"),
        ),
    ] = "auto",
    retries: Annotated[int, whole("How often a cell whose process was killed is started again.", 0, 1000)] = 2,
    slurm: Annotated[
        list[str] | None,
        typer.Option(
            help="KEY=VALUE for sbatch, once for each: partition=cpu, time=4:00:00 (default: a day).", metavar="KEY=VALUE"
        ),
    ] = None,
    csv: Annotated[Path | None, typer.Option(help="Also write a table into this file (.csv), a row a model and k.")] = None,
    no_cache: NoCache = False,
    plot: Plot = None,
    dpi: Dpi = 150,
    as_json: Json = False,
) -> None:
    """Train and measure every model of a grid, several at a time, and set what each learned in one table.

    The same command goes on where it was stopped or killed; what is done is not done again, and a grid may grow.
    """
    parameters = _parameters(slurm or [])
    if csv is not None:
        check_file_target(csv)
    if plot is not None:
        from hopinterp.views import plots

        plots.check_drawable(plot)
    asked = _grid(grid, preset, recipe, seeds, decompile, verify)
    from hopinterp.sweeps import sweep as sweeps

    try:
        with working("sweeping") as report:
            found = sweeps.sweep(
                asked, out, engine=engine, workers=workers, threads=threads, device=device, retries=retries,
                slurm=parameters, use_cache=not no_cache, report=report,
            )  # fmt: skip
    except KeyboardInterrupt as stopped:
        print(f"hopinterp: {signals.in_words(stopped)}; go on with: {legible(command_line())}", file=sys.stderr)
        sys.exit(signals.status(stopped))
    _tell(found, out, csv, plot, dpi, as_json)


def _parameters(given: list[str]) -> dict[str, str]:
    """What --slurm names, by key."""
    pairs = [one.partition("=") for one in given]
    if wrong := [one for one, (key, equals, value) in zip(given, pairs, strict=True) if not (key and equals and value)]:
        raise HopInterpError(f"--slurm is {wrong[0]!r:.80}; it is KEY=VALUE, such as partition=cpu")
    return {key: value for key, _, value in pairs}


def _grid(path: Path | None, preset: str, recipe: str, seeds: str, decompile: str, verify: str) -> Grid | None:
    """The grid that is asked for; None for the one that the directory keeps."""
    if path is not None and preset:
        raise HopInterpError("sweep takes a grid's file or --preset, not both")
    if not preset and (recipe, seeds) != ("full", "0"):
        raise HopInterpError("--recipe and --seeds are for --preset; a grid's file has its own")
    if path is None and not preset:
        if decompile or verify:
            raise HopInterpError("give the grid too: what is measured belongs to it")
        return None
    found = Grid.read(path) if path is not None else Grid.of_preset(preset, recipe, seeds)
    after = replace(found.after, decompile=decompile or found.after.decompile, verify=verify or found.after.verify)
    return Grid.of([(cell.preset, cell.config) for cell in found.cells], after)


def _tell(found: xr.Dataset, out: Path, csv: Path | None, plot: Path | None, dpi: int, as_json: bool) -> None:
    """Print and write what the sweep came to; the status is 1 where a cell failed."""
    from hopinterp.sweeps.results import FILE
    from hopinterp.views import frames, plots, sweeps

    if plot is not None:
        plots.write(sweeps.figure(found), plot, dpi)
    if csv is not None:
        write_file(csv, frames.of_sweep(found).to_csv(index=False).encode())
    if as_json:
        print_json(sweeps.sweep_json(found), out / FILE, csv, plot)
    else:
        show(sweeps.sweep_table(found), sweeps.sweep_reading(found), out / FILE, csv, plot)
    failures = {str(one.cell.item()): str(one.item()) for one in found.failure if one.item()}
    for name, why in failures.items():
        print(f"hopinterp: {name}: {legible(why)}", file=sys.stderr)
    if failures:
        raise typer.Exit(1)
