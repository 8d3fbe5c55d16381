"""What the axes of many figures have in common: blocks up the page, named lines, ticks, words on coloured cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.text import Text
from matplotlib.ticker import FixedLocator, NullFormatter

from hopinterp.evidence.reading.behaviour import SOLVED
from hopinterp.views.style import current
from hopinterp.views.style import words as typeset

FRAMES: Mapping[str, Any] = {"solid": (0, (1, 0)), "dashed": (0, (2.2, 1.6))}
"""Line styles of frames around cells."""

_MARGIN, _ROW = 0.1, 0.17  # inches: beside words, and a legend's row


def about(found: xr.Dataset, what: str, k: int | None = None) -> str:
    """The title of a figure: of which model, where its name is known, at which k, and what it shows.

    Args:
        k: the found one's own by default.
    """
    name = found.attrs.get("model", "")
    return typeset(f"{name}{', ' if name else ''}k = {found.attrs['hops'] if k is None else k}: {what}")


def heading(figure: Figure, words: str) -> None:
    """A title over several panels, on the left as every title is."""
    _widen(figure, figure.suptitle(words, x=0.01, ha="left", fontsize=10))


def panel_title(axes: Axes, words: str, left: float = 0.65, pad: float | None = None) -> None:
    """A title over one panel.

    Args:
        left: inches from the figure's left side to the panel's.
    """
    figure = axes.get_figure(root=True)
    assert figure is not None
    _widen(figure, axes.set_title(words, pad=pad), left)


def _widen(figure: Figure, words: Text | Legend, left: float = 0.0) -> None:
    """Make the figure so wide that words over or below its panels are not cut off."""
    figure.set_figwidth(max(figure.get_figwidth(), left + _inches(figure, words) + 2 * _MARGIN))


def _inches(figure: Figure, words: Text | Legend) -> float:
    return float(words.get_window_extent().width) / figure.dpi


def legend_below(figure: Figure, handles: Sequence[Artist], columns: int, fontsize: float = 7.5, **look: Any) -> None:
    """A legend below all panels, in as many columns, up to a number, as the figure's width has room for. To be drawn after
    the title, for which the figure may be widened."""
    room, most = figure.get_figwidth() - 2 * _MARGIN, min(columns, len(handles))
    for count in range(most, 0, -1):
        legend = figure.legend(handles=handles, loc="outside lower center", ncols=count, fontsize=fontsize, **look)
        if count == 1 or _inches(figure, legend) <= room:
            break
        legend.remove()
    _widen(figure, legend)
    more_rows = -(-len(handles) // count) + (len(handles) // -most)
    figure.set_figheight(figure.get_figheight() + more_rows * _ROW)


def words_below(figure: Figure, parts: Sequence[str], fontsize: float) -> None:
    """Remarks below all panels, in as few lines as the figure's width has room for."""
    room = figure.get_figwidth() - 2 * _MARGIN
    for each in range(len(parts), 0, -1):
        lines = ["   ".join(parts[start : start + each]) for start in range(0, len(parts), each)]
        drawn = figure.supxlabel("\n".join(lines), fontsize=fontsize)
        if _inches(figure, drawn) <= room:
            break
    _widen(figure, drawn)
    figure.set_figheight(figure.get_figheight() + (len(lines) - 1) * fontsize / 60)


def solved_line(axes: Axes, k: int, side: str) -> None:
    """The error up to which a k counts as solved, dotted, and named at one of its ends."""
    axes.axhline(100 * SOLVED, color=current().quiet, lw=0.8, ls=":")
    place, words = (k, 100 * SOLVED), f"solved: at most {100 * SOLVED:g}%"
    axes.annotate(
        words, place, xytext=(0, 2), textcoords="offset points", ha=side, color=current().quiet, fontsize=7, zorder=1
    )


def log2_ticks(axes: Axes, first: int, last: int) -> None:
    """A log2 axis of k: whole powers are named, every k between has a small tick."""
    axes.set_xscale("log", base=2)
    axes.set_xticks([2**n for n in range(12) if first <= 2**n <= last])
    axes.xaxis.set_major_formatter("{x:.0f}")
    axes.xaxis.set_minor_locator(FixedLocator(list(range(first, last + 1)) if last <= 64 else []))
    axes.xaxis.set_minor_formatter(NullFormatter())


def hop_ticks(axes: Axes, last: int) -> None:
    """An axis of hops 0 … last: each has a tick, as many as there is room for are named."""
    axes.set_xticks(range(0, last + 1, 1 if last <= 20 else 4))
    axes.xaxis.set_minor_locator(FixedLocator(list(range(last + 1))))


def unit_ticks(axes: Axes, values: xr.DataArray | xr.Dataset, edges: str = "") -> None:
    """Rows of heads (layer.head) or of blocks up the page, from a stacked dim `unit`.

    Args:
        edges: the colour of a line between blocks of heads; none by default.
    """
    places = [np.atleast_1d(unit).tolist() for unit in values.unit.values]
    heads = len(places[0]) > 1
    axes.set_yticks(range(len(places)), [".".join(map(str, place)) for place in places], fontsize=7 if heads else 9)
    axes.set_ylabel("layer.head" if heads else "block")
    axes.set_ylim(-0.5, len(places) - 0.5)
    for row in range(1, len(places) if edges else 0):
        if heads and places[row][0] != places[row - 1][0]:
            axes.axhline(row - 0.5, color=edges, lw=1.2)


def last_hop(axes: Axes, k: int) -> None:
    """Where the hops that are asked for end, on a map whose columns are hops: a dotted line, named."""
    axes.axvline(k + 0.5, color="white", lw=1.1, ls=":", path_effects=[withStroke(linewidth=2, foreground="black")])
    axes.annotate(
        f"up to k = {k}",
        (k + 0.5, 1),
        xycoords=("data", "axes fraction"),
        xytext=(-2, 1.5),
        textcoords="offset points",
        ha="right",
        va="bottom",
        fontsize=7,
        color=current().quiet,
    )


def over(colour: Any) -> str:
    """The ink of words on a cell of that colour."""
    return "white" if np.dot(to_rgb(colour), (0.3, 0.59, 0.11)) < 0.55 else "black"


def frame(axes: Axes, column: float, row: float, ink: str, line: str = "solid") -> None:
    """Around one cell of a map, within it."""
    look: dict[str, Any] = {"fill": False, "ec": ink, "lw": 1.2, "ls": FRAMES[line], "zorder": 3}
    axes.add_patch(Rectangle((column - 0.44, row - 0.42), 0.88, 0.84, **look))


def framed(words: str, line: str = "solid") -> Artist:
    """A frame in a legend."""
    return Rectangle((0, 0), 1, 1, fill=False, ec=current().text, lw=1.2, ls=FRAMES[line], label=words)


def ring(words: str = "") -> Line2D:
    """The mark around a point that is picked out, for a legend."""
    return Line2D([], [], ls="", marker="o", ms=8, mfc="none", mec=current().text, mew=1.1, label=words)
