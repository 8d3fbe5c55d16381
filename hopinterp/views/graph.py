"""Figures of a circuit: which head of which block moves which hop, as measured, beside what each hypothesis builds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from hopinterp.errors import HopInterpError
from hopinterp.evidence.kinds import ATTENDED
from hopinterp.evidence.patching.effects import in_part
from hopinterp.task import HopTask
from hopinterp.theory.causal import CausalModel
from hopinterp.theory.hypotheses import exact, named
from hopinterp.views.axes import legend_below, panel_title
from hopinterp.views.style import current, style

Column = int | str
"""Where a head looks: j of find^j(i), or a place that is on no chain."""

_SIDE = ("previous", "k", "letter", "none")
_BOX, _ROW = 0.17, 0.55  # inches: from box to box in a stack, and a block of the theory's panels


@dataclass(frozen=True)
class Circuit:
    """Who moves what, block by block. Layers count from 0; −1 is the embedding.

    Attributes:
        n_layers: blocks.
        moves: (layer, column) → labels of the heads that look there.
        at, before: layer → chain positions j where the block's output matters for the answer: at find^j(i), or one before.
        partly: likewise, at find^j(i), where it matters in part.
        notes: layer → what else is known of the block.
    """

    n_layers: int
    moves: Mapping[tuple[int, Column], list[str]]
    at: Mapping[int, frozenset[int]] = field(default_factory=dict)
    before: Mapping[int, frozenset[int]] = field(default_factory=dict)
    partly: Mapping[int, frozenset[int]] = field(default_factory=dict)
    notes: Mapping[int, str] = field(default_factory=dict)

    @classmethod
    def expected(cls, algorithm: str, hops: int, n_layers: int) -> Circuit:
        """The first `n_layers` blocks of a constructed model: exact. Raises HopInterpError where no program was written."""
        task = HopTask(max_hops=hops)
        write = named(algorithm).program
        if write is None:
            raise HopInterpError(f"no circuit was written for the hypothesis {algorithm!r}")
        model = CausalModel(algorithm, write(task, hops), hops)
        names: dict[str, Column] = {"previous": "previous", "itself": 0, "same_letter": "letter"}
        moves: dict[tuple[int, Column], list[str]] = defaultdict(list)
        layers = range(min(n_layers, model.n_layers))
        for layer in layers:
            for head, target in enumerate(model.attends(layer)):
                column = target.hop if target.where == "find" else names.get(target.where)
                if column is not None:  # a head that only attends to the first token has nothing to move
                    moves[layer, column].append(f"{layer}.{head}")
        at, before = ({layer: model.light_cone(layer, offset) for layer in (-1, *layers)} for offset in (0, -1))
        notes = {layer: f"R = {model.resolved(layer)}" for layer in layers}
        return cls(model.n_layers, moves, at, before, notes=notes)

    @classmethod
    def seen(
        cls,
        attention: xr.Dataset,
        hops: int,
        cone: xr.Dataset | None = None,
        probes: xr.Dataset | None = None,
        transplants: xr.Dataset | None = None,
        least: float = ATTENDED,
    ) -> Circuit:
        """As the evidence has it: see `circuit_graph`."""
        one = attention.sel(hops=hops)
        moves: dict[tuple[int, Column], list[str]] = defaultdict(list)
        for layer in one.layer.values.tolist():
            for head in one["head"].values.tolist():
                unit = one.sel(layer=layer, head=head)
                label = f"{layer}.{head}" + _carries(transplants, layer, head)
                for column in _looks(unit, least):
                    moves[layer, column].append(label)
        at, before, partly = _places(cone, "at"), _places(cone, "before"), _places(cone, "at", partly=True)
        notes = {layer: _note(layer, probes, transplants) for layer in one.layer.values.tolist()}
        return cls(one.sizes["layer"], moves, at, before, partly, notes)


def circuit_graph(
    attention: xr.Dataset,
    hops: int,
    *,
    cone: xr.Dataset | None = None,
    probes: xr.Dataset | None = None,
    transplants: xr.Dataset | None = None,
    least: float = ATTENDED,
    title: str = "",
) -> Figure:
    """The circuit along the chain of i: a box is a head (block.head), its column the hop that it brings to i.

    A dot is a place that the answer depends on: the output of the block at find^j(i), half filled where in part, hollow
    where it is the position before. A diamond: a head reads there, but the answer depends on no such place alone, for
    other ways do the same. Bold wires end at i; thin ones are the same heads at the other positions that matter. Below, the
    same picture of the model that each hypothesis with a program constructs (exact; the first blocks, if they are deeper).

    Args:
        attention: what `align` returned; `hops`, the k of it that is drawn. A head stands at every find^j with which its
            `score_valid` is at least `least` (a half: a quarter of its squared norm), so one that mixes hops stands at
            several, and at "none" if there is no such.
        cone: what `patch` returned, by="chain"; its `matters` by probability.
        probes: what `probe` returned: R(ℓ) beside each block.
        transplants: what `transplant` returned: what a block stands for beside it; with heads=True what a head's output
            stands for in its box (c 3: content, r = 3; p pointer, o occurrence).

    Raises:
        HopInterpError: k = 0, which needs no circuit, or a k that was not measured.
    """
    if hops < 1 or hops not in attention.hops.values:
        raise HopInterpError(f"hops is {hops}; a circuit is drawn for one k ≥ 1 of those measured")
    seen = Circuit.seen(attention, hops, cone, probes, transplants, least)
    built = {name: one for name, one in exact().items() if one.program}
    theory = {name: Circuit.expected(name, hops, seen.n_layers) for name in built}
    with style():
        stack = max(len(heads) for heads in seen.moves.values())
        row = 0.42 + _BOX * stack
        width = max(8.0, 0.36 * (hops + 7) + 2.2)
        heights = [row * seen.n_layers + 0.9, _ROW * seen.n_layers + 0.9]
        figure = Figure(figsize=(width, sum(heights)))
        panels = figure.subplot_mosaic([["seen"] * len(built), list(built)], height_ratios=heights)
        _draw(panels["seen"], seen, hops, seen.n_layers, current().text, row, tight=False)
        panel_title(panels["seen"], title or f"seen, k = {hops}")
        for name, circuit in theory.items():
            _draw(panels[name], circuit, hops, seen.n_layers, current().ink(built[name].ink), _ROW, tight=True)
            deeper = f" (has {circuit.n_layers} blocks)" if circuit.n_layers > seen.n_layers else ""
            panels[name].set_title(name + deeper, color=current().ink(built[name].ink))
        for name in ("seen", next(iter(built))):
            panels[name].set_ylabel("output of block")
        _explain(figure)
        return figure


def _explain(figure: Figure) -> None:
    ink = current().text

    def mark(name: str) -> Line2D:
        return Line2D([], [], ls="", **_mark(name, ink, 4.0))

    marks = {
        "the answer at i hangs on the block's output here": mark("at"),
        "it does in part": mark("partly"),
        "it hangs on the position before": mark("before"),
        "read here, but no single place is needed": mark("read"),
        "a head (block.head), where it looks": Line2D(
            [], [], ls="", marker="s", ms=7, mfc=current().ground, mec=ink, mew=0.8
        ),
        "what heads do at other positions": Line2D([], [], color=current().quiet, lw=0.8),
    }
    for words, drawn in marks.items():
        drawn.set_label(words)
    legend_below(figure, list(marks.values()), 3)


def _mark(name: str, ink: str, size: float) -> dict[str, Any]:
    """How a place on the output of a block is drawn, by what the answer has to do with it."""
    look: dict[str, Any] = {"marker": "o", "ms": size, "mec": ink, "mew": 0.8, "mfc": ink}
    if name == "partly":
        return look | {"fillstyle": "left", "mfcalt": current().ground}
    if name == "read":
        return look | {"marker": "D", "ms": 0.8 * size, "mfc": current().ground}
    return look | ({"mfc": current().ground} if name == "before" else {})


def _draw(axes: Axes, circuit: Circuit, hops: int, n_layers: int, ink: str, row: float, tight: bool) -> None:
    """One panel, in text order: i on the right, find^k(i) on the left, places off the chain beyond i."""
    side = [name for name in _SIDE if any(column == name for _, column in circuit.moves)]
    columns: list[Column] = [*range(max([hops, *(c for _, c in circuit.moves if isinstance(c, int))]), -1, -1), *side]
    apart = 1.7 if tight else 1.0
    place = {column: float(n) for n, column in enumerate(columns)}
    place |= {column: place[0] + apart * (n + 1.2) for n, column in enumerate(side)}
    small, step = tight and len(columns) > 12, _BOX / row
    for j in range(hops + 1):
        axes.axvline(place[j], color=current().grid, lw=0.8, zorder=0)
    for (layer, column), heads in circuit.moves.items():
        if isinstance(column, int) and column:
            _wires(axes, circuit, layer, column, place, ink)
        for n, label in enumerate(heads):
            y = layer - 0.5 + step * (n - (len(heads) - 1) / 2)
            box = {
                "boxstyle": "round,pad=0.2",
                "fc": current().ground,
                "ec": ink if column != "none" else current().quiet,
                "lw": 0.8,
            }
            axes.text(place[column], y, label, ha="center", va="center", fontsize=4.5 if small else 6, bbox=box, zorder=4)
    places = {"before": circuit.before, "partly": circuit.partly, "at": circuit.at, "read": _read(circuit)}
    for name, marked in places.items():
        for layer, chain in marked.items():
            xs = [place[j] - (0.28 if name == "before" else 0) for j in sorted(chain) if j in place]
            axes.plot(xs, [layer] * len(xs), ls="", zorder=3, **_mark(name, ink, 3 if small else 4))
    for layer, note in circuit.notes.items():
        axes.annotate(note, (1.01, layer), xycoords=("axes fraction", "data"), fontsize=6.5, va="center", color=ink)
    axes.set(xlim=(-1.0, max(place.values()) + 0.7), ylim=(-1.3, n_layers - 0.7))
    names = ["i" if column == 0 else str(column) for column in columns]
    axes.set_xticks(list(place.values()), names, fontsize=5.5 if small else 7)
    for tick in axes.get_xticklabels()[len(columns) - len(side) :]:
        tick.set(rotation=35, ha="right")
    axes.set_yticks(range(-1, n_layers), ["embed", *map(str, range(n_layers))], fontsize=7)
    axes.tick_params(length=0)
    axes.set_xlabel("j of find$^j$(i), in text order", fontsize=8)


def _read(circuit: Circuit) -> dict[int, frozenset[int]]:
    """Where wires to i begin, on the output of the block before, at no place that the answer hangs on."""
    read: dict[int, frozenset[int]] = {}
    for layer, column in circuit.moves:
        if isinstance(column, int) and column and layer:
            read[layer - 1] = read.get(layer - 1, frozenset()) | {column}
    known = (circuit.at, circuit.partly)
    return {layer: chain.difference(*(one.get(layer, frozenset()) for one in known)) for layer, chain in read.items()}


def _wires(axes: Axes, circuit: Circuit, layer: int, hop: int, place: Mapping[Column, float], ink: str) -> None:
    """From find^hop(i) through the box to i; and the same move wherever both of its ends matter."""
    axes.plot([place[hop]] * 2 + [place[0]], [layer - 1, layer - 0.5, layer], color=ink, lw=1.3, zorder=2)
    to, start = (circuit.at.get(one, frozenset()) | circuit.partly.get(one, frozenset()) for one in (layer, layer - 1))
    for u in to - {0}:
        if u + hop in start:
            axes.plot(
                [place[u + hop]] * 2 + [place[u]], [layer - 1, layer - 0.5, layer], color=current().quiet, lw=0.8, zorder=1
            )


def _looks(unit: xr.Dataset, least: float) -> list[Column]:
    """Where one head looks."""
    hops: list[Column] = [j for j in unit.hop.values.tolist() if float(unit.score_valid.sel(hop=j)) >= least]
    fixed = {"previous": unit.previous_token, "k": unit.task_token}
    return hops + [name for name, score in fixed.items() if float(score) >= least] or ["none"]


def _carries(transplants: xr.Dataset | None, layer: int, head: int) -> str:
    if transplants is None or "head" not in transplants.dims or layer not in transplants.layer:
        return ""
    unit = transplants.sel(layer=layer, head=head)
    return f" {str(unit.best_family.values)[0]} {int(unit.best)}" if int(unit.best) >= 0 else ""


def _places(cone: xr.Dataset | None, where: str, partly: bool = False) -> dict[int, frozenset[int]]:
    if cone is None:
        return {}
    matters = (in_part(cone) if partly else cone.matters).sel(metric="probability", where=where)
    matters = matters.any("head") if "head" in matters.dims else matters
    return {
        layer: frozenset(matters.hop.values[matters.sel(layer=layer).values].tolist())
        for layer in matters.layer.values.tolist()
    }


def _note(layer: int, probes: xr.Dataset | None, transplants: xr.Dataset | None) -> str:
    parts = []
    if probes is not None and layer in probes.layer:
        parts.append(f"R = {int(probes.resolved.sel(layer=layer))}")
    if transplants is not None and "head" not in transplants.dims and layer in transplants.layer:
        unit = transplants.sel(layer=layer)
        parts.append(f"stands for {unit.best_family.values} {int(unit.best)}" if int(unit.best) >= 0 else "stands for none")
    return "\n".join(parts)
