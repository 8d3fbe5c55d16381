"""The figure of many models' verdicts at many k."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.patheffects import withStroke

from hopinterp.errors import HopInterpError
from hopinterp.judgement.surveys import Survey
from hopinterp.theory.hypotheses import HYPOTHESES
from hopinterp.views.axes import legend_below, panel_title
from hopinterp.views.style import current, style

PLAIN = {"linear by two": "#CC79A7", "beyond": "#882255", "mixed": "#E69F00", "undetermined": "#8C959F"}
"""Colours of the verdicts that name no hypothesis: none is a hypothesis's."""
_PALE = {"none": 0.08, "undetermined": 0.3}
_HATCHES = {"beyond": "////", "mixed": "....", "linear by two": "xxxx"}
"""For who prints in grey."""
_STRENGTH = {"full": 0.75, "slack": 0.4, None: 0.55}


@dataclass(frozen=True)
class Cell:
    """One model at one k: its verdict, and the hops that its blocks reach by the program (none: ())."""

    model: str
    hops: int
    verdict: str
    form: str | None = None
    pace: str | None = None
    reach: tuple[int, ...] = ()


def cells(found: Survey, name: str = "") -> Iterator[Cell]:
    """Of every k of a survey."""
    for k, one in found.verdicts.items():
        yield Cell(name or found.model, k, one.verdict, one.form, one.pace, tuple(one.to_json()["reach"]))


def ink(verdict: str) -> str:
    """A verdict's colour, in every view."""
    return PLAIN[verdict] if verdict in PLAIN else HYPOTHESES[verdict].ink


def verdict_table(given: Iterable[Cell], title: str = "") -> Figure:
    """Models across, k down: each cell has the colour of its verdict, strong at full pace and light where depth is to spare,
    and says what its blocks reach.

    Raises:
        HopInterpError: there is no cell.
    """
    found = list(given)
    if not found:
        raise HopInterpError("there is nothing to draw: no verdict was given")
    models = list(dict.fromkeys(cell.model for cell in found))
    ks = sorted({cell.hops for cell in found})
    with style():
        drawn = Figure(figsize=(1.0 + 1.45 * len(models), 1.2 + 0.26 * len(ks)))
        axes = drawn.subplots()
        for cell in found:
            _draw(axes, cell, models.index(cell.model), ks.index(cell.hops))
        axes.set_xlim(-0.5, len(models) - 0.5)
        axes.set_ylim(len(ks) - 0.5, -0.5)
        axes.set_xticks(range(len(models)), models)
        axes.set_yticks(range(len(ks)), map(str, ks))
        axes.set_ylabel("k")
        axes.xaxis.tick_top()
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        panel_title(axes, title or "What each model runs: verdict, and the hops that its blocks reach", pad=8)
        _legend(drawn, found)
        return drawn


def _draw(axes: Axes, cell: Cell, column: int, row: int) -> None:
    nothing = cell.verdict == "none"
    fill = _fill(cell.verdict, cell.pace)
    axes.add_patch(Rectangle((column - 0.48, row - 0.46), 0.96, 0.92, **fill))
    told = "fails" if nothing else " ".join(map(str, cell.reach)) or cell.verdict
    rim = [withStroke(linewidth=2.5, foreground=fill["facecolor"])]  # words stand clear of the hatch
    words = axes.text(column, row, told, ha="center", va="center", fontsize=7, path_effects=rim)
    words.set_color(current().quiet if nothing else current().text)


def _fill(verdict: str, pace: str | None) -> dict[str, Any]:
    """A cell's colour, mixed with the ground, and what tells it from others without colours."""
    strength = _PALE.get(verdict, _STRENGTH[pace])
    face = np.array(to_rgb(current().ink(ink(verdict)))) * strength + np.array(to_rgb(current().ground)) * (1 - strength)
    hatch = {"hatch": _HATCHES[verdict], "hatch_linewidth": 0.5} if verdict in _HATCHES else {}
    return {"facecolor": face, "edgecolor": current().ground, "linewidth": 0} | hatch


def _legend(drawn: Figure, found: list[Cell]) -> None:
    handles = []
    for verdict, pace in dict.fromkeys((cell.verdict, cell.pace) for cell in found if cell.verdict != "none"):
        paced = {"full": ", full pace", "slack": ", depth to spare", None: ""}[pace]
        handles.append(Patch(label=f"{verdict}{paced}", **_fill(verdict, pace)))
    handles.sort(key=lambda handle: str(handle.get_label()))
    if handles:
        legend_below(drawn, handles, 3, fontsize=7)
