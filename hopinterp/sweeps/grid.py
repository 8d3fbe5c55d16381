"""The grid of a sweep: the training settings of every cell and what is measured of each, from TOML or a preset, checked.

No torch is loaded until a cell's settings are checked.
"""

from __future__ import annotations

import difflib
import itertools
import json
import math
import tomllib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

from hopinterp.errors import HopInterpError
from hopinterp.files import digest, read_file
from hopinterp.training.config import PRESETS, TrainConfig
from hopinterp.whole import spans, whole

MOST_CELLS = 10_000
_LARGEST = 2**20  # bytes of a grid's file
_LONGEST = 120  # characters of a cell's name
_NAMED_KS = ("granted", "solved", "all")
IMPLIED = ("curriculum", "short_until")
"""Settings that `samples`, which says more of a cell, takes away."""
_DEFAULTS = {one.name: one.default for one in fields(TrainConfig)}


@dataclass(frozen=True)
class After:
    """What is measured of each model once it is trained.

    Attributes:
        sequences: fresh sequences a k on which err_k is measured.
        distinct: further ones a k, for the error on chains on which no letter repeats two hops apart.
        decompile, verify: at which k the model is decompiled, or judged, too: numbers ("3", "1-7"), "granted" (the largest
            that the theorem grants the model's depth), "solved" (those that it solves) or "all"; "" for none.

    Raises:
        HopInterpError: anything else.
    """

    sequences: int = 400
    distinct: int = 0
    decompile: str = ""
    verify: str = ""

    def __post_init__(self) -> None:
        whole("sequences", self.sequences, 2)
        whole("distinct", self.distinct, 0)
        for name in ("decompile", "verify"):
            value = getattr(self, name)
            if not isinstance(value, str) or not (value in ("", *_NAMED_KS) or spans(value)):
                raise HopInterpError(f"{name} is {value!r:.40}; it is {', '.join(_NAMED_KS)}, or numbers: 3, 1-7, 1,2,4")

    @classmethod
    def from_table(cls, given: Any) -> After:
        """From the table [after] of a grid, in which true stands for "granted", and a number or a list for numbers."""
        if not isinstance(given, Mapping):
            raise HopInterpError("after is no table")
        _refuse_unknown("[after]", given, [one.name for one in fields(cls)])
        return cls(**{name: _ks(value) if name in ("decompile", "verify") else value for name, value in given.items()})

    def at(self, asked: str, solved: Sequence[int], granted: int, most: int) -> list[int]:
        """The k that a word or numbers name, for a model of which this much is known.

        Args:
            solved: the k that it solves.
            granted: the largest that the theorem grants it.
            most: the largest of its task; numbers above it are left out.
        """
        named = {"": [], "granted": [granted], "solved": list(solved), "all": list(range(1, most + 1))}
        if asked in named:
            return named[asked]
        return sorted({k for first, last in spans(asked) for k in range(max(1, first), min(last, most) + 1)})


def _ks(value: Any) -> Any:
    if isinstance(value, bool):
        return "granted" if value else ""
    if isinstance(value, list):
        return ",".join(map(str, value))
    return str(value) if isinstance(value, int) else value


class Cell(NamedTuple):
    """One model of a sweep: its name, the preset that its settings start from, and all of them."""

    name: str
    preset: str
    config: TrainConfig

    @property
    def settings(self) -> dict[str, Any]:
        """The preset and every setting."""
        return {"preset": self.preset, **self.config.to_dict()}


@dataclass(frozen=True)
class Grid:
    """The cells of a sweep, and what is measured of each. `read`, `of_table` and `of_preset` make one."""

    cells: tuple[Cell, ...]
    after: After

    @classmethod
    def read(cls, path: Path) -> Grid:
        """From a TOML file; see `of_table`. Raises HopInterpError as that does, or where it is no TOML."""
        try:
            table = tomllib.loads(read_file(path, _LARGEST).decode("utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
            raise HopInterpError(f"{path} is no TOML ({' '.join(str(error).split())[:120]})") from None
        try:
            return cls.of_table(table)
        except HopInterpError as error:
            raise HopInterpError(f"{path}: {error}") from None

    @classmethod
    def of_table(cls, given: Mapping[str, Any]) -> Grid:
        """From settings by name.

        Args:
            given: keys as in TrainConfig. A list, or of a whole number a range in quotes ("0-7"), gives every cell one of
                its values; all else is shared. `preset` is what settings start from. Each table of `grid`, if there are
                any, is a grid of its own, whose settings stand before the shared ones. `after` is a table of `After`.

        Raises:
            HopInterpError: an unknown key, a value that is none, settings that contradict each other (the cell is named),
                two cells that are the same, or too many.
        """
        shared = {name: value for name, value in given.items() if name not in ("grid", "after")}
        tables = given.get("grid", [{}])
        if not isinstance(tables, list) or not tables or not all(isinstance(one, Mapping) for one in tables):
            raise HopInterpError("grid is no list of tables ([[grid]])")
        axes = [_axes({**shared, **one}) for one in tables]
        if (count := sum(math.prod(map(len, one.values())) for one in axes)) > MOST_CELLS:
            raise HopInterpError(f"the grid has {count:,} cells; at most {MOST_CELLS:,} are swept")
        return cls.of([cell for one in axes for cell in _cells(one)], After.from_table(given.get("after", {})))

    @classmethod
    def of_preset(cls, name: str, recipe: str = "full", seeds: str = "0", after: After | None = None) -> Grid:
        """One of the paper's grids (PAPER), trained by a preset of `TrainConfig`, once for each seed."""
        if name not in PAPER:
            raise HopInterpError(f"no preset {name!r:.40}; there are {', '.join(PAPER)}")
        if recipe not in RECIPES:
            raise HopInterpError(f"no recipe {recipe!r:.40}; there are {', '.join(RECIPES)}")
        tables = [{"preset": recipe, "seed": seeds, **one} for one in PAPER[name].tables]
        return cls.of([cell for one in tables for cell in _cells(_axes(one))], after or After())

    @classmethod
    def of(cls, found: Sequence[tuple[str, TrainConfig]], after: After) -> Grid:
        """From (preset, settings), which name the cells. Raises HopInterpError where two are the same."""
        names = _names([{"preset": preset, **config.to_dict()} for preset, config in found])
        first: dict[tuple[tuple[str, Any], ...], str] = {}
        for name, (_, config) in zip(names, found, strict=True):
            if (model := tuple(config.deciding().items())) in first:
                same = f"{first[model]} and {name}" if name != first[model] else f"two called {name}"
                raise HopInterpError(f"two cells are the same, but for what is recorded of them: {same}")
            first[model] = name
        cells = tuple(Cell(name, preset, config) for name, (preset, config) in zip(names, found, strict=True))
        for cell in cells:
            if after.verify and cell.config.alphabet < 3:
                raise HopInterpError(f"cell {cell.name}: alphabet is {cell.config.alphabet}; verify needs 3 letters")
            for what, asked in (("verify", after.verify), ("decompile", after.decompile)):
                if spans(asked) and not after.at(asked, [], 0, cell.config.max_hops):
                    raise HopInterpError(f"cell {cell.name}: {what} is {asked:.40}; its k go up to {cell.config.max_hops}")
        return cls(cells, after)

    def to_json(self) -> dict[str, Any]:
        """What a sweep's directory keeps of it."""
        return {"after": asdict(self.after), "cells": [{"name": cell.name, **cell.settings} for cell in self.cells]}

    @classmethod
    def from_json(cls, given: Any) -> Grid:
        """What `to_json` gave. Raises HopInterpError, KeyError or TypeError where it is something else."""
        cells = []
        for one in given["cells"]:
            settings = {name: value for name, value in one.items() if name not in ("name", "preset")}
            if (
                not (isinstance(one["name"], str) and isinstance(one["preset"], str))
                or Path(one["name"]).name != one["name"]
            ):
                raise TypeError("a cell's name is no file's name")
            cells.append(Cell(one["name"], one["preset"], TrainConfig.from_dict(settings)))
        return cls(tuple(cells), After(**given["after"]))


# -- from a table to cells --------------------------------------------------------------------------------------------


def _refuse_unknown(where: str, given: Iterable[str], known: Sequence[str]) -> None:
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            raise HopInterpError(f"{where} has no setting {name!r:.40}{f'; did you mean {near[0]}?' if near else ''}")


def _axes(table: Mapping[str, Any]) -> dict[str, Sequence[Any]]:
    """For each setting the values that it takes. Raises HopInterpError where one is unknown, or takes none."""
    _refuse_unknown("a grid", table, ["preset", *_DEFAULTS])
    axes = {name: _values(name, value) for name, value in table.items()}
    for name, values in axes.items():
        if not values:
            raise HopInterpError(f"{name} has no value: it is an empty list or range")
    return axes


def _values(name: str, given: Any) -> Sequence[Any]:
    default = _DEFAULTS.get(name)
    if isinstance(given, str) and type(default) is int:
        parts = [range(first, last + 1) for first, last in spans(given)]
        if not parts:
            raise HopInterpError(f"{name} is {given!r:.40}; a range of it is such as 0-7, or 0-3,6")
        if sum(map(len, parts)) > MOST_CELLS:
            raise HopInterpError(f"{name} is {given!r:.40}, more than {MOST_CELLS:,} values")
        return [value for part in parts for value in part]
    if not isinstance(given, list):
        return [given]
    if isinstance(default, tuple) and not any(isinstance(one, list) for one in given):
        return [given]  # one value that is itself several numbers
    return given


def _cells(axes: Mapping[str, Sequence[Any]]) -> Iterable[tuple[str, TrainConfig]]:
    """Every combination, the last setting changing fastest. Raises HopInterpError, which names the cell."""
    for values in itertools.product(*axes.values()):
        settings = dict(zip(axes, values, strict=True))
        preset = settings.pop("preset", "full")
        try:
            if not isinstance(preset, str) or preset not in PRESETS:
                raise HopInterpError(f"no preset {preset!r:.40}; there are {', '.join(PRESETS)}")
            yield preset, TrainConfig.preset(preset, **settings)
        except HopInterpError as error:
            varying = [f"{name}={_text(one)}" for name, one in zip(axes, values, strict=True) if len(axes[name]) > 1]
            raise HopInterpError(f"cell {','.join(varying)}: {error}" if varying else str(error)) from None


def _names(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """A name for each cell: of the settings that vary those that it takes to tell all cells apart, "layers=3,seed=1"."""
    groups, kept = [0] * len(found), []
    for name in sorted(found[0], key=lambda setting: setting in IMPLIED):
        values = [repr(one[name]) for one in found]
        finer = {pair: number for number, pair in enumerate(dict.fromkeys(zip(groups, values, strict=True)))}
        if len(finer) > len(set(groups)):
            kept.append(name)
            groups = [finer[pair] for pair in zip(groups, values, strict=True)]
    named = [",".join(f"{name}={_text(one[name])}" for name in kept or ["seed"]) for one in found]
    often = Counter(named)
    for number, name in enumerate(named):
        if len(name) > _LONGEST or (often[name] > 1 and kept):
            named[number] = f"{name[:_LONGEST]}-{digest(json.dumps(dict(found[number])).encode())[:8]}"
    return named


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return "-".join(map(str, value)) if isinstance(value, list | tuple) else str(value)[:40]


# -- the paper's grids ------------------------------------------------------------------------------------------------


class Preset(NamedTuple):
    """A grid of the paper: what it is, and its tables."""

    words: str
    tables: list[dict[str, Any]]


_DEPTHS = {"layers": [2, 3, 4, 5, 6]}
_NARROW, _WIDE = {"d_model": 128, "heads": 4}, {"d_model": 256, "heads": 8}
PAPER = {
    "paper-depths": Preset("depths 2 to 6, width 128, 4 heads, fresh samples", [_NARROW | _DEPTHS]),
    "paper-widths": Preset("the same, and with width 256 and 8 heads", [_NARROW | _DEPTHS, _WIDE | _DEPTHS]),
    "paper-samples": Preset(
        "depths 2 to 6 on fresh, 3,000 and 1,000 samples", [_NARROW | {"samples": [0, 3000, 1000]} | _DEPTHS]
    ),
}
"""The paper's Table 3."""
RECIPES = ("full", "paper")
"""Presets of `TrainConfig` that train a model of the paper's task."""
