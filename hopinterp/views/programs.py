"""Figures of decompiled models: the tree of jumps that carries the answer, and where each head looks at each k."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import PathPatch, Rectangle
from matplotlib.path import Path

from hopinterp.decompile.decompilation import Decompilation
from hopinterp.decompile.nodes import START, Node, Place, derivations, told
from hopinterp.decompile.records import Decompiled
from hopinterp.decompile.routes import Route
from hopinterp.errors import HopInterpError
from hopinterp.views.axes import legend_below, over, panel_title, words_below
from hopinterp.views.style import INKS, LINES, current, style, words
from hopinterp.views.trends import hop_bar, hop_colours

Point = tuple[float, float]

_COLUMN, _WIDEST = 0.62, 8.2  # inches: between chain positions, and for all of them
_BOX, _GAP = 0.27, 0.28  # inches: of a head in a stack, between blocks
_STRAND = 0.045  # inches between derivations that share a jump


def figure(found: Decompiled | Decompilation, title: str = "") -> Figure:
    """The derivation tree of one k, or the hop table of several."""
    return derivation_tree(found, title) if isinstance(found, Decompiled) else hop_table(found, title)


# -- one k ------------------------------------------------------------------------------------------------------------


def derivation_tree(found: Decompiled, title: str = "") -> Figure:
    """The heads that carry the answer, blocks up the page, chain positions across in text order (i on the right): each jump
    is an arc from the position that a head looks at to the one where it stands, each derivation one line from the answer's
    letter up to i. Grey: heads that tell what the answer is not.

    Raises:
        HopInterpError: no derivation was found.
    """
    if not found.derivations:
        raise HopInterpError(f"there is nothing to draw: no derivation was found at k = {found.hops}")
    layout = _Layout.of(found)
    with style():
        drawn = Figure(figsize=(layout.width + 2.1, layout.height + 1.45 + 0.17 * _rows(len(found.derivations))))
        axes = drawn.subplots()
        _grid(axes, found, layout)
        _strands(axes, found, layout)
        _boxes(axes, found, layout)
        panel_title(axes, _title(found, title))
        _legend(drawn, found)
        return drawn


def _title(found: Decompiled, title: str) -> str:
    """What the tree shows: of a program that explains the model, how it adds up; else first that it does not, and why."""
    ways = len(found.derivations)
    if found.explained:
        hops = f"{found.hops} hop{'s' if found.hops > 1 else ''}"
        return (
            title or f"{words(found.name)} adds up {hops} {'in one way' if ways == 1 else f'in {ways} ways, side by side'}"
        )
    named = title or f"{words(found.name)}, k = {found.hops}"
    return f"{named}: not explained\n{', '.join(found.missed_briefly)}"


def _rows(count: int) -> int:
    return -(-count // 3)


@dataclass(frozen=True)
class _Layout:
    """Where everything is, in inches.

    Attributes:
        hops: the furthest chain position that is drawn.
        bands: lowest and highest y of each block; the letters are at 0.
        at: the middle of each node's box.
        column: from one chain position to the next.
    """

    hops: int
    column: float
    bands: Mapping[int, tuple[float, float]]
    at: Mapping[Node, Point]
    width: float
    height: float

    @classmethod
    def of(cls, found: Decompiled) -> _Layout:
        """Heads of one block that stand at one place are stacked."""
        nodes = sorted(found.tree.nodes)
        stacks: dict[tuple[int, Place], list[Node]] = {}
        for node in nodes:
            stacks.setdefault((node.layer, node.place), []).append(node)
        furthest = max([found.hops, *(node.target.at for node in nodes if node.target), *(n.place.at for n in nodes)])
        bands, y = {}, _GAP / 2
        for layer in range(found.tree.n_layers):
            tallest = max((len(stack) for (block, _), stack in stacks.items() if block == layer), default=1)
            bands[layer] = (y, y + tallest * _BOX + _GAP)
            y = bands[layer][1]
        at, column = {}, min(_COLUMN, _WIDEST / furthest)
        for (layer, place), stack in stacks.items():
            middle = sum(bands[layer]) / 2
            for number, node in enumerate(sorted(stack, key=lambda one: -(one.hop or 0))):
                at[node] = (_x(place, furthest, column), middle + (number - (len(stack) - 1) / 2) * _BOX)
        return cls(furthest, column, bands, at, furthest * column, y)

    def x(self, place: Place) -> float:
        """Of a place of the chain."""
        return _x(place, self.hops, self.column)


def _x(place: Place, furthest: int, column: float) -> float:
    return (furthest - place.at - 0.42 * place.back) * column


def _grid(axes: Axes, found: Decompiled, layout: _Layout) -> None:
    """Columns named by chain position, blocks with what they reach."""
    for j in range(layout.hops + 1):
        axes.axvline(layout.x(Place(j)), color=current().grid, lw=0.8, zorder=0)
    ticks = range(layout.hops + 1)
    axes.set_xticks([layout.x(Place(j)) for j in ticks], ["i", *map(str, ticks[1:])], fontsize=8)
    blocks = range(found.tree.n_layers)
    middle = {layer: (low + high) / 2 for layer, (low, high) in layout.bands.items()}
    axes.set_yticks([0.0, *(middle[layer] for layer in blocks)], ["letters", *(f"block {n}" for n in blocks)], fontsize=8)
    right = layout.width + 0.75
    for layer, (low, high) in layout.bands.items():
        if layer % 2 == 0:
            axes.axhspan(low, high, color=current().band, lw=0, zorder=-1)
        axes.text(right, middle[layer], found.reach_words[layer], fontsize=9, va="center", ha="center")
    top = layout.bands[blocks[-1]][1]
    axes.text(
        right, top + 0.06, "hops\nreached", fontsize=7.5, va="bottom", ha="center", color=current().quiet, linespacing=0.95
    )
    axes.set(xlim=(-0.4, right + 0.35), ylim=(-0.3, top + 0.4))
    axes.set_xlabel("j of find$^j$(i), in text order", fontsize=8)
    axes.tick_params(length=0)
    for side in axes.spines.values():
        side.set_visible(False)


def _strands(axes: Axes, found: Decompiled, layout: _Layout) -> None:
    """Every derivation in its own ink; those that leave one head, or come to one, run side by side. In grey, the jumps of
    heads on no derivation."""
    steps = _steps(found)
    for node in found.tree.nodes - {node for _, node, _ in steps}:
        if node.target is not None:
            below: list[Node | None] = [
                one for one in found.tree.nodes if one.place == node.target and one.layer < node.layer
            ]
            for source in below or [None]:
                _arc(axes, _source(layout, node, source), layout.at[node], (0.0, 0.0), current().quiet, ":", 0.9)
    starts = [_source(layout, node, source) for _, node, source in steps]
    for index, (number, node, _) in enumerate(steps):
        leaving = [one for one, start in zip(steps, starts, strict=True) if start == starts[index]]
        coming = [one for one in steps if one[1] == node]
        aside = (_slot(leaving, steps[index]), _slot(coming, steps[index]))
        _arc(axes, starts[index], layout.at[node], aside, *_look(number))
    letters = {start for start in starts if start[1] == 0}
    axes.plot([x for x, _ in letters], [0] * len(letters), "o", ms=3.5, color=current().quiet, zorder=3)


def _steps(found: Decompiled) -> list[tuple[int, Node, Node | None]]:
    """Of every derivation, by number, each jump: the node and the one that it reads, None for the letter."""
    paths = derivations(found.tree.nodes, found.hops)
    steps: list[tuple[int, Node, Node | None]] = []
    for number, jumps in enumerate(found.derivations):
        pairs = {pair for path in paths[jumps] for pair in zip(path, (*path[1:], None), strict=True)}
        steps += [(number, *pair) for pair in sorted(pairs, key=str)]
    return steps


def _slot(strands: list[tuple[int, Node, Node | None]], one: tuple[int, Node, Node | None]) -> float:
    """How far one of several strands runs beside their middle."""
    return (strands.index(one) - (len(strands) - 1) / 2) * _STRAND


def _look(number: int) -> tuple[str, Any]:
    """Ink and dashes of a derivation; by both, so that a print in grey tells them apart."""
    return current().ink(INKS[number % len(INKS)]), LINES[number % len(LINES)]


def _source(layout: _Layout, node: Node, source: Node | None) -> Point:
    """Where a node's arc begins: at the node that it reads, or at the letter."""
    if source is not None:
        return layout.at[source]
    assert node.target is not None
    return layout.x(node.target), 0.0


def _arc(axes: Axes, start: Point, end: Point, aside: Point, ink: str, dashes: Any, width: float = 1.5) -> None:
    """Up from where it reads, then over to the head; `aside`: how far beside both ends."""
    (x0, y0), (x1, y1) = start, end
    if abs(x1 - x0) < 0.05:
        points = [(x0 + aside[0], y0), (x1 + aside[1], y1)]
        codes = [Path.MOVETO, Path.LINETO]
    else:
        bend = y0 + 0.35 * (y1 - y0)
        points = [(x0 + aside[0], y0), (x0 + aside[0], bend), (x0 + aside[0], y1 - aside[1]), (x1, y1 - aside[1])]
        codes = [Path.MOVETO, *[Path.CURVE4] * 3]
    axes.add_patch(PathPatch(Path(points, codes), fc="none", ec=ink, lw=width, ls=dashes, zorder=2, capstyle="butt"))


def _boxes(axes: Axes, found: Decompiled, layout: _Layout) -> None:
    """Each head by block.head, with how far it jumps above the strands that come to it."""
    carrying = {effect.node for effect in found.tree.carrying}
    ways = Counter(step[1] for step in _steps(found))
    for node, (x, y) in layout.at.items():
        ink = current().text if node in carrying else current().quiet
        box = {"boxstyle": "round,pad=0.22", "fc": current().ground, "ec": ink, "lw": 0.9}
        axes.text(x, y, f"{node.layer}.{node.head}", ha="center", va="center", fontsize=7.5, bbox=box, zorder=4, color=ink)
        if node.target is not None and node.target != node.place:
            jump, above = f"{node.jump:+d}".replace("-", "−"), _STRAND * (max(ways[node], 1) - 1) / 2
            place: dict[str, Any] = {"xytext": (-12, 1.5), "textcoords": "offset points", "ha": "right", "va": "bottom"}
            rim = current().rim(1.5)
            axes.annotate(jump, (x, y + above), fontsize=6.5, color=ink, path_effects=rim, zorder=5, **place)
    letter, top = layout.x(Place(found.hops)), max(y for x, y in layout.at.values() if x == layout.x(START))
    axes.plot(letter, 0, "o", ms=6, color=current().text, zorder=4)
    axes.annotate("the answer's letter", (letter, 0), (8, -8), textcoords="offset points", fontsize=7.5, va="center")
    axes.annotate(
        "answer",
        (layout.x(START), top + 0.1),
        (0, 14),
        textcoords="offset points",
        fontsize=7.5,
        ha="center",
        arrowprops={"arrowstyle": "<-", "color": current().text, "lw": 0.9, "shrinkA": 0, "shrinkB": 1},
    )


def _legend(drawn: Figure, found: Decompiled) -> None:
    lines = []
    for number, jumps in enumerate(found.derivations):
        ink, dashes = _look(number)
        lines.append(Line2D([], [], color=ink, ls=dashes, lw=1.8, label=f"{found.hops} = {told(jumps)}"))
    if found.tree.aside:
        lines.append(Line2D([], [], color=current().quiet, ls=":", lw=0.9, label="tells what the answer is not"))
    legend_below(drawn, lines, 3, fontsize=8, handlelength=2.6)


# -- many k -----------------------------------------------------------------------------------------------------------

_SHORT = {"content-free": "·", "self": "i", "first": "k", "same letter": "="}
_MEANS = {"·": "by position alone", "i": "itself", "k": "the hop token", "=": "the same letter", "p": "previous token"}


def hop_table(found: Decompilation, title: str = "") -> Figure:
    """The hop that every head (rows, by block up the page) looks back at every k (columns), tested by intervention: above,
    the error with all patterns of all heads replaced by these rules at once, beside the model's own and with the rules
    shuffled. The paper's Figures 14 and 15, layers counted from 0. Framed: heads that carry the answer.

    Raises:
        HopInterpError: no k was solved.
    """
    if not found.by_hops:
        raise HopInterpError(f"there is nothing to draw: {found.name} solves none of these k")
    ks = list(found.by_hops)
    routes = found.by_hops[ks[0]].routes
    units = [(layer, head) for layer, block in enumerate(routes) for head in range(len(block))]
    last = max(part.hop or 0 for one in found.by_hops.values() for _, _, route in one.routing.heads for part in route.parts)
    colours, norm = hop_colours(max(last, 1))
    with style():
        drawn = Figure(figsize=(max(2.6 + 0.34 * len(ks), 6.0), 2.3 + 0.22 * len(units)))
        above, axes = drawn.subplots(2, 1, sharex=True, height_ratios=[0.9, 0.22 * len(units)])
        for column, k in enumerate(ks):
            one = found.by_hops[k]
            kept = {(effect.node.layer, effect.node.head) for effect in one.tree.carrying}
            for row, (layer, head) in enumerate(units):
                _cell(axes, (column, row), one.routes[layer][head], (layer, head) in kept, colours, norm)
        _frame(axes, ks, units)
        _errors(above, found, ks)
        panel_title(above, title or f"{words(found.name)}: the hop j that each head looks back", pad=17)
        hop_bar(drawn, [axes], colours, norm, "hop j")
        words_below(drawn, _key({text.get_text() for text in axes.texts}), fontsize=7)
        return drawn


def _cell(
    axes: Axes, at: tuple[int, int], route: Route, kept: bool, colours: mpl.colors.Colormap, norm: BoundaryNorm
) -> None:
    """One head at one k: a colour for each part of its rule, and its number."""
    column, row = at
    left = column - 0.5
    for part in route.parts:
        width = 1.0 if len(route.parts) == 1 else 0.5
        hop = part.hop if part.hop else None
        face = colours(norm(hop)) if hop is not None else current().band
        axes.add_patch(Rectangle((left, row - 0.5), width, 1, fc=face, ec="none"))
        mark = str(hop) if hop is not None else "p" if part.kind == "before hop" else _SHORT[part.kind]
        mark += "′" if hop is not None and part.kind == "before hop" else ""
        look: dict[str, Any] = {"ha": "center", "va": "center_baseline", "fontsize": 6.5 if width == 1 else 5}
        axes.text(left + width / 2, row, mark, color=current().quiet if hop is None else over(face), **look)
        left += width
    if kept:
        axes.add_patch(
            Rectangle(
                (column - 0.46, row - 0.4),
                0.92,
                0.8,
                fc="none",
                ec=current().text,
                lw=1.3,
                zorder=4,
                path_effects=current().rim(2.6),
            )
        )


def _key(marks: set[str]) -> list[str]:
    """What the marks of a hop table mean, of those that it has."""
    keys = [f"{mark}: {meaning}" for mark, meaning in _MEANS.items() if mark in marks]
    keys += ["j′: one before find$^j$(i)"] if any("′" in mark for mark in marks) else []
    return ["framed: carries the answer", "two halves: a mixture", *keys]


def _frame(axes: Axes, ks: list[int], units: list[tuple[int, int]]) -> None:
    for row, (layer, head) in enumerate(units):
        if row and layer != units[row - 1][0]:
            axes.axhline(row - 0.5, color=current().ground, lw=2.5, zorder=3)
        del head
    for column in range(1, len(ks)):
        axes.axvline(column - 0.5, color=current().ground, lw=0.8, zorder=3)
    axes.set_yticks(range(len(units)), [f"{layer}.{head}" for layer, head in units], fontsize=7)
    axes.set_xticks(range(len(ks)), list(map(str, ks)))
    axes.tick_params(length=0)
    axes.set(xlim=(-0.5, len(ks) - 0.5), ylim=(-0.5, len(units) - 0.5), xlabel="hops k asked for", ylabel="layer.head")
    for side in axes.spines.values():
        side.set_visible(False)


def _errors(axes: Axes, found: Decompilation, ks: list[int]) -> None:
    """The model's own error, on its routes, and with these shuffled, for every k."""
    own, routed = ([100 * found.by_hops[k].error[name] for k in ks] for name in ("own", "routed"))
    shuffled = [100 * found.by_hops[k].controls.means()["shuffled"] for k in ks]
    axes.plot(shuffled, "x", color=current().quiet, ms=4.5, label="routes shuffled")
    axes.plot(routed, "o", color=current().ink(INKS[4]), ms=4.5, label="on its routes")
    axes.plot(own, "_", color=current().text, ms=7, label="the model itself")
    axes.set(ylim=(-8, 108), yticks=[0, 50, 100], ylabel="error (%)")
    axes.tick_params(axis="x", length=0, labelbottom=False)
    axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 0.95), ncols=3, fontsize=7.5, handletextpad=0.1, columnspacing=0.9)
