"""The results of a sweep as one Dataset, cells × k, from what lies in its directory."""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from hopinterp.errors import HopInterpError
from hopinterp.evidence import datasets
from hopinterp.models.card import read_card
from hopinterp.models.places import MODEL
from hopinterp.sweeps.cells import MEASURED, RESULTS, Home, failed
from hopinterp.sweeps.grid import After, Cell
from hopinterp.sweeps.kept import kept_grid, kept_homes
from hopinterp.training.config import TrainConfig

FILE = RESULTS
LONG_NAMES: dict[str, str] = {
    "cell": "name of a cell of the sweep, and of its run directory",
    "status": "done, failed, trained (not yet measured), training (begun), or waiting",
    "failure": "why the cell failed",
    "no_verdict": "why there is no verdict at a k where one was asked for",
    "no_program": "why there is no program at a k where one was asked for",
    "verdict": "the law that the model follows; empty where that was not asked for",
    "form": "lookup or successor, where the evidence tells them apart",
    "pace": "of doubling: full, or slack where depth is to spare",
    "derivations": "jumps that add up to k, as sums",
    "explained": "whether the program explains the model",
    "reach": "R, the most hops that a block makes known by the program; NaN where there is none",
    "seconds": "what the training took, by the clock",
    "cpu_seconds": "what the cell took of processors, all its jobs together",
    "training_cpu_seconds": "what of that was training, steps that were repeated after a kill included",
    "tokens": "tokens trained on",
    "threads": "threads of the run, on which its bits depend",
    "device": "device of the run",
}
"""What each variable of a sweep's results is that other results do not have."""
_BY_CELL = ("seconds", "tokens", "threads", "device")  # what a cell's own Dataset has in its attrs
_ALWAYS: dict[str, np.dtype] = {name: np.dtype(float) for name in ("error", "low", "high", "reach")}
_ALWAYS |= {name: np.dtype(bool) for name in ("solved", "explained")}
_ALWAYS |= {name: np.dtype(str) for name in ("verdict", "form", "pace", "derivations", "no_verdict", "no_program")}
"""Variables that are there before any cell is done, with their dtypes."""
_FIRST = ("status", "error", "low", "high", "solved", "verdict", "form", "pace", "reach", "explained", "derivations")
_NO_RUN: dict[str, Any] = {"seconds": np.nan, "tokens": np.nan, "threads": 0, "device": ""}
_EMPTY: dict[str, Any] = {"U": "", "O": "", "b": False, "f": np.nan, "i": 0, "u": 0}


def collect(cells: Sequence[Cell], homes: Sequence[Home], after: After, failures: Mapping[str, str]) -> xr.Dataset:
    """What the cells of a sweep have come to so far; see `hopinterp.sweep_results`."""
    found: dict[str, xr.Dataset] = {}
    rows, failures = [], dict(failures)
    for home in homes:
        try:
            measured = read_measured(home) if home.done(after) else None
            rows.append(_run(home, measured))
            found |= {home.name: measured} if measured is not None else {}
        except HopInterpError as error:  # what is damaged takes nothing from the others
            failures[home.name] = str(error)
            rows.append(_NO_RUN)
    together = _together([home.name for home in homes], [cell.config for cell in cells], found)
    status = [_status(home, home.name in found, failures) for home in homes]
    together["status"] = "cell", np.array(status, dtype=str)
    together["failure"] = "cell", np.array([failures.get(home.name, "") for home in homes], dtype=str)
    used = zip(*(home.cpu_seconds() for home in homes), strict=True)
    for name, seconds in zip(("cpu_seconds", "training_cpu_seconds"), used, strict=True):
        together[name] = "cell", list(seconds)
    for name in _BY_CELL:
        together[name] = "cell", np.array([row[name] for row in rows])
    first = [name for name in _FIRST if name in together]
    ordered = together[[*first, *(str(name) for name in together.data_vars if name not in first)]]
    return _described(_with_settings(ordered, cells), cells, after, found)


def read_measured(home: Home) -> xr.Dataset:
    """What was measured of a cell. Raises HopInterpError where it cannot be read."""
    path = home.run / MEASURED / RESULTS
    try:
        return xr.load_dataset(path)
    except Exception as error:  # what is damaged fails in many ways
        why = f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
        raise HopInterpError(
            f"{path} is no result of a sweep ({why}); remove {path.parent}, and the cell is measured anew"
        ) from None


def last_failures(homes: Sequence[Home], after: After) -> dict[str, str]:
    """Why cells that nobody works on now have failed, by what their last jobs said."""
    told = {home.name: failed(home.last_job()) for home in homes if not home.done(after) and not home.held()}
    return {name: why for name, why in told.items() if why}


def _together(names: list[str], configs: list[TrainConfig], found: Mapping[str, xr.Dataset]) -> xr.Dataset:
    """The cells' Datasets along the dim `cell`, every k and every block that any has; nothing where one has nothing."""
    ks = list(range(1, max(one.max_hops for one in configs) + 1))
    layers = list(range(max(one.layers for one in configs)))
    coords: dict[str, Any] = {"cell": np.array(names, dtype=str), "hops": ks, "layer": layers}
    sizes = {"hops": len(ks), "layer": len(layers)}
    kinds: dict[Hashable, tuple[Hashable, ...]] = {name: ("hops", "layer")[: 1 + (name == "reach")] for name in _ALWAYS}
    kinds |= {name: one[name].dims for one in found.values() for name in one.data_vars}
    variables = {}
    for name, dims in kinds.items():
        parts = [
            found[cell][name].transpose(*dims).values if cell in found and name in found[cell] else None for cell in names
        ]
        dtypes = [part.dtype for part in parts if part is not None] or [_ALWAYS[str(name)]]
        dtype = np.result_type(*dtypes)
        if dtype.kind == "O":
            dtype = np.dtype(str)
        shape = (len(names), *(sizes[str(dim)] for dim in dims))
        whole: np.ndarray = np.full(shape, _EMPTY[dtype.kind], dtype=object if dtype.kind == "U" else dtype)
        for row, part in enumerate(parts):
            if part is not None:
                whole[row][tuple(map(slice, part.shape))] = part  # k from 1 and blocks from 0, without a gap
        variables[name] = ("cell", *dims), whole.astype(str) if dtype.kind == "U" else whole
    return xr.Dataset(variables, coords)


def _status(home: Home, done: bool, failures: Mapping[str, str]) -> str:
    if done:
        return "done"
    if home.name in failures:
        return "failed"
    return "trained" if home.trained() else "training" if home.started() else "waiting"


def _run(home: Home, measured: xr.Dataset | None) -> dict[str, Any]:
    """How a cell was trained; of one that is not, nothing."""
    if measured is not None:
        return {name: measured.attrs[name] for name in _BY_CELL}
    if home.trained():
        made = read_card(home.run / MODEL).made
        return {name: made[name] for name in _BY_CELL}
    return _NO_RUN


def _with_settings(together: xr.Dataset, cells: Sequence[Cell]) -> xr.Dataset:
    """With every setting that varies as a coordinate of the cells."""
    coords = {}
    for name, values in _settings(cells).items():
        if len({repr(value) for value in values}) > 1:
            plainly = [str(value) if isinstance(value, tuple) else value for value in values]
            coords[name] = ("cell", np.array(plainly))
    return together.assign_coords(coords)


def _settings(cells: Sequence[Cell]) -> dict[str, list[Any]]:
    every = [cell.settings for cell in cells]
    return {name: [one[name] for one in every] for name in every[0]}


def _described(together: xr.Dataset, cells: Sequence[Cell], after: After, found: Mapping[str, xr.Dataset]) -> xr.Dataset:
    """With the settings that all cells share, what was asked for, and a long name for each variable."""
    shared = {name: values[0] for name, values in _settings(cells).items() if name not in together.coords}
    asked = {
        "eval_sequences": after.sequences,
        "distinct": after.distinct,
        "decompile": after.decompile,
        "verify": after.verify,
    }
    first = next(iter(found.values()), None)
    measured = (
        {}
        if first is None
        else {name: np.asarray(first.attrs[name]).item() for name in ("level", "solved", "failed", "seed")}
    )
    together.attrs = {"version": metadata.version("hopinterp"), "settings": json.dumps(shared), **asked, **measured}
    for name in together.variables:
        if words := (datasets.LONG_NAMES | LONG_NAMES).get(str(name)):
            together[name].attrs["long_name"] = words
    return together


def sweep_results(directory: str | Path) -> xr.Dataset:
    """What a sweep has come to, also while it runs; or a file that it left (results.nc).

    Returns:
        Dims cell, hops (k) and layer. By cell and k all that `evaluate` returns, `verdict`, `form`, `pace`, `derivations`,
        `explained`, and by block `reach`; by cell `status`, `failure`, `seconds`, `cpu_seconds`, `training_cpu_seconds`,
        `tokens`, `threads`, `device`, and as coordinates the settings that vary; `attrs` has the others, as JSON, in
        `settings`. NaN, False, 0 or an empty word where there is nothing.

    Raises:
        HopInterpError: no sweep, or a damaged one.
    """
    place = Path(directory)
    if place.is_file():
        try:
            return xr.load_dataset(place)
        except Exception as error:
            raise HopInterpError(f"{place} holds no results ({type(error).__name__}: {error})") from None
    grid = kept_grid(place)
    homes = kept_homes(place, grid)
    return collect(grid.cells, homes, grid.after, last_failures(homes, grid.after))
