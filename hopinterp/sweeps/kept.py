"""A sweep's directory: the grid that it keeps, and where each cell lives in it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from importlib import metadata
from pathlib import Path

from hopinterp.errors import HopInterpError
from hopinterp.files import alone_in, leftover, making, read_json, reason, write_file
from hopinterp.models.places import CONFIG
from hopinterp.sweeps.cells import JOBS, Home
from hopinterp.sweeps.grid import Grid
from hopinterp.training.record import read_config

KEPT = "sweep.json"
_FORMAT = 1


@contextmanager
def alone(directory: Path) -> Iterator[None]:
    """A sweep's directory, made where there is none, for this process alone.

    Raises:
        HopInterpError: another sweep is at work there, it cannot be made, or it holds something else than a sweep.
    """
    with ExitStack() as held:
        try:
            held.enter_context(making(directory))
        except (OSError, ValueError) as error:
            raise HopInterpError(f"cannot write {directory} ({reason(error)})") from None
        held.enter_context(alone_in(directory, "sweeping"))
        if not (directory / KEPT).is_file() and any(not leftover(path) for path in directory.iterdir()):
            raise HopInterpError(f"{directory} holds something else than a sweep; give another --out")
        yield


def kept_grid(directory: Path) -> Grid:
    """The grid of a sweep's directory. Raises HopInterpError where there is none."""
    path = directory / KEPT
    if not path.is_file():
        raise HopInterpError(f"{directory} holds no sweep")
    given = read_json(path)
    if not isinstance(given, dict) or given.get("format") != _FORMAT:
        raise HopInterpError(f"{path} is no sweep's, or another version's")
    try:
        return Grid.from_json(given)
    except (KeyError, TypeError, AttributeError) as error:
        raise HopInterpError(f"{path} is no sweep's ({type(error).__name__}: {error})") from None


def keep_grid(directory: Path, grid: Grid, homes: list[Home]) -> None:
    """Keep the grid, its cells under the names of their homes."""
    kept = grid.to_json()
    for cell, home in zip(kept["cells"], homes, strict=True):
        cell["name"] = home.name
    text = json.dumps({"format": _FORMAT, "version": metadata.version("hopinterp"), **kept}, indent=1)
    write_file(directory / KEPT, text.encode() + b"\n")


def kept_homes(directory: Path, grid: Grid) -> list[Home]:
    """Where the cells of the grid that a directory keeps live."""
    return [Home(directory.absolute(), cell.name) for cell in grid.cells]


def find_homes(directory: Path, grid: Grid) -> list[Home]:
    """Where each cell of a grid lives: in the run that has its settings, whatever its name, else under its own name.

    Raises:
        HopInterpError: a run has that name and other settings.
    """
    runs = {}
    for name in sorted(os.listdir(directory)):
        if name != JOBS and (directory / name / CONFIG).is_file():
            with suppress(HopInterpError):
                runs[tuple(read_config(directory / name).deciding().items())] = name
    homes = [Home(directory.absolute(), runs.pop(tuple(cell.config.deciding().items()), cell.name)) for cell in grid.cells]
    for home, cell in zip(homes, grid.cells, strict=True):
        home.check(cell)
    return homes
