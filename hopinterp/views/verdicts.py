"""The figure of many models' verdicts at many k."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from hopinterp.errors import HopInterpError
from hopinterp.judgement.records import Survey
from hopinterp.theory.hypotheses import HYPOTHESES
from hopinterp.views.style import current, style

PLAIN = {"linear by two": "#CC79A7", "beyond": "#D55E00", "mixed": "#E69F00", "undetermined": "#57606A"}
"""Colours of the verdicts that name no hypothesis."""
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
        axes.set_title(title or "What each model runs: verdict, and the hops that its blocks reach", pad=8)
        _legend(drawn, found)
        return drawn


def _draw(axes: Axes, cell: Cell, column: int, row: int) -> None:
    nothing = cell.verdict == "none"
    strength = 0.08 if nothing else _STRENGTH[cell.pace]
    box = Rectangle(
        (column - 0.48, row - 0.46), 0.96, 0.92, facecolor=current().ink(ink(cell.verdict)), alpha=strength, linewidth=0
    )
    axes.add_patch(box)
    told = "fails" if nothing else " ".join(map(str, cell.reach)) or cell.verdict
    axes.text(column, row, told, ha="center", va="center", fontsize=7, color=current().quiet if nothing else current().text)


def _legend(drawn: Figure, found: list[Cell]) -> None:
    handles = []
    for verdict, pace in dict.fromkeys((cell.verdict, cell.pace) for cell in found if cell.verdict != "none"):
        paced = {"full": ", full pace", "slack": ", depth to spare", None: ""}[pace]
        handles.append(Patch(facecolor=current().ink(ink(verdict)), alpha=_STRENGTH[pace], label=f"{verdict}{paced}"))
    handles.sort(key=lambda handle: str(handle.get_label()))
    drawn.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=7)
