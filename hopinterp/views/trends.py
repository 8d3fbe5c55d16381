"""Figures over many k, many depths or many steps of training; each function returns a matplotlib Figure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from hopinterp.errors import HopInterpError
from hopinterp.views.axes import heading, log2_ticks, over, panel_title, solved_line, unit_ticks
from hopinterp.views.style import INKS, LINES, MARKERS, current, style

Published = Mapping[str, Mapping[int, float]]
"""Errors that others measured: by name, then by k, as shares."""


def threshold(found: Mapping[str, xr.Dataset], published: Published | None = None, title: str = "") -> Figure:
    """err_k against k on a log2 axis, a line a model, with intervals (the paper's Figures 2 and 6 to 8).

    Args:
        found: what `evaluate` returned, by name. "depth 4" or "depth4" in a name gives a line its depth's ink and marker,
            the same in every figure; of several models of one depth the others are dashed.
        published: errors to draw beside them, on the same axes. A name in both has one look.
    """
    look = looks(sorted({*found, *(published or {})}, key=_in_order))
    with style() as one:
        figure = Figure(figsize=(8 if published else 5.4, 3.3))
        panels = figure.subplots(1, 2 if published else 1, sharex=True, sharey=True, squeeze=False)[0]
        for name in look:
            if name in found:
                shown = found[name].sel(hops=found[name].hops > 0)
                low, high = 100 * shown.low, 100 * shown.high
                panels[0].fill_between(shown.hops, low, high, color=look[name]["color"], alpha=0.25, lw=0)
                panels[0].plot(shown.hops, 100 * shown.error, label=name, **look[name])
            if name in (errors := published or {}):
                ks = [k for k in sorted(errors[name]) if k > 0]
                panels[1].plot(ks, [100 * errors[name][k] for k in ks], label=name, **look[name])
        ks = sorted({int(k) for axes in panels for line in axes.lines for k in line.get_xdata()})
        if not ks:
            raise HopInterpError("there is nothing to draw on a log axis: no k above 0 was measured")
        for axes, words in zip(panels, ("measured here", "published"), strict=False):
            solved_line(axes, ks[0], "left")
            axes.set(xlabel="hops k", title=words if published else title)
        log2_ticks(panels[0], ks[0], ks[-1])
        panels[0].set_ylabel("error on answered positions (%)")
        panels[0].set_ylim(bottom=-1.5)
        handles = {label: line for axes in panels for line, label in zip(*axes.get_legend_handles_labels(), strict=True)}
        handles["95% interval"] = Patch(color=one.quiet, alpha=0.3, lw=0)
        names = [*(name for name in look if name in handles), "95% interval"]
        figure.legend([handles[name] for name in names], names, loc="outside right center")
        if published and title:
            heading(figure, title)
        return figure


def _depth(name: str) -> int | None:
    told = re.search(r"depth[ -]?(\d+)", name)
    return int(told[1]) if told else None


def _in_order(name: str) -> tuple[float, str]:
    """By depth, and then by name."""
    return (_depth(name) or np.inf, name)


def looks(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Ink, marker and line of each name, in the order of their legend."""
    looks: dict[str, dict[str, Any]] = {}
    for number, name in enumerate(names):
        depth = _depth(name)
        before = sum(_depth(other) == depth for other in looks) if depth else 0
        other = current().ink(INKS[number % len(INKS)]), MARKERS[number % len(MARKERS)]
        ink, marker = current().depth(depth) if depth else other
        filled = {"mfc": current().ground} if before else {}
        looks[name] = {"color": ink, "marker": marker, "ms": 3.8, "lw": 1.3, "ls": LINES[before % len(LINES)], **filled}
    return looks


def argmax_map(found: xr.Dataset, title: str = "") -> Figure:
    """The find^j that every head (rows, by block up the page) agrees with best, for every k (columns): j as number and
    colour, and how well as strength of the colour (the paper's Figures 14 and 15).

    Args:
        found: what `align` returned, for many k.
    """
    best = found.best_hop.stack(unit=("layer", "head")).transpose("unit", "hops")
    score = found.best_score.stack(unit=("layer", "head")).transpose("unit", "hops")
    (rows, columns), last = best.shape, int(found.hop.max())
    colours, norm = hop_colours(last)
    with style():
        figure = Figure(figsize=(1.6 + 0.3 * columns, 1.2 + 0.22 * rows))
        axes = figure.subplots()
        strength = np.clip(score.values, 0, 1)[..., None]
        cells = colours(norm(best.values))[..., :3] * strength + np.array(to_rgb(current().ground)) * (1 - strength)
        axes.imshow(cells, aspect="auto", interpolation="nearest")
        for (row, column), j in np.ndenumerate(best.values):
            axes.text(column, row, str(j), ha="center", va="center", fontsize=6.5, color=over(cells[row, column]))
        unit_ticks(axes, best, edges=current().ground)
        axes.set_xticks(range(columns), found.hops.values)
        axes.tick_params(length=0)
        axes.set(xlabel="hops k asked for")
        panel_title(axes, title or "find$^j$ that a head agrees with best")
        hop_bar(figure, [axes], colours, norm, "j (faint: low cosine)")
        return figure


def dynamics(series: Sequence[tuple[int, xr.Dataset]], title: str = "") -> Figure:
    """When hops appear during training: err_k of every k against the step, or for probes the accuracy of every hop j ≤ k, a
    panel a block, with the cells that are held marked.

    Args:
        series: (step, what `evaluate` or `probe` returned), all of one kind.
    """
    if not series:
        raise HopInterpError("there is nothing to draw: the series has no steps")
    steps = [step for step, _ in series]
    together = xr.concat([one for _, one in series], dim=xr.Variable("step", steps)).sortby("step")
    return _learned_hops(together, title) if "accuracy" in together else _falling_errors(together, title)


def _falling_errors(found: xr.Dataset, title: str) -> Figure:
    colours, norm = hop_colours(int(found.hops.max()))
    with style():
        figure = Figure(figsize=(6, 3.3))
        axes = figure.subplots()
        for k in found.hops.values:
            one = found.sel(hops=k)
            axes.fill_between(found.step, 100 * one.low, 100 * one.high, color=colours(norm(k)), alpha=0.2, lw=0)
            axes.plot(found.step, 100 * one.error, ".-", color=colours(norm(k)), lw=1.2, ms=4)
        solved_line(axes, int(found.step.min()), "left")
        axes.set(xlabel="training step", ylabel="error on answered positions (%)", title=title or "err$_k$ during training")
        hop_bar(figure, [axes], colours, norm, "hops k")
        return figure


def _learned_hops(found: xr.Dataset, title: str) -> Figure:
    k, layers = int(found.attrs["hops"]), found.layer.values
    colours, norm = hop_colours(k)
    with style() as one:
        figure = Figure(figsize=(6, 1.2 + 1.15 * len(layers)))
        panels = figure.subplots(len(layers), 1, sharex=True, sharey=True, squeeze=False)[::-1, 0]
        for axes, layer in zip(panels, layers, strict=True):
            for j in range(k + 1):
                row = found.sel(layer=layer, hop=j)
                held = row.held.astype(bool)
                axes.plot(found.step, row.accuracy, color=colours(norm(j)), lw=1.2)
                axes.plot(found.step[held], row.accuracy[held], "o", color=colours(norm(j)), ms=4)
            axes.set(ylabel=f"block {layer}", ylim=(-0.04, 1.08), yticks=[0, 0.5, 1])
        panels[0].set_xlabel("training step")
        figure.supylabel("held-out accuracy", fontsize=9)
        heading(figure, title or f"hops that can be read off each block during training, k = {k}")
        figure.legend(
            handles=[Line2D([], [], ls="", marker="o", ms=4, color=one.text, label="held")], loc="outside lower left"
        )
        hop_bar(figure, panels.tolist(), colours, norm, "hop j")
        return figure


def hop_colours(last: int) -> tuple[mpl.colors.Colormap, BoundaryNorm]:
    """A colour for each of 0 … last, dark to bright, without the end that vanishes on the ground."""
    ends = (0.0, 0.92) if current().least is None else (0.2, 1.0)
    colours = mpl.colors.ListedColormap(mpl.colormaps["viridis"](np.linspace(*ends, last + 1)))
    return colours, BoundaryNorm(np.arange(last + 2) - 0.5, last + 1)


def hop_bar(figure: Figure, panels: Sequence[Axes], colours: mpl.colors.Colormap, norm: BoundaryNorm, label: str) -> None:
    bar = figure.colorbar(ScalarMappable(norm, colours), ax=panels, label=label, shrink=0.9)
    last = colours.N - 1
    bar.set_ticks(range(0, last + 1, max(1, last // 4)))
    bar.minorticks_off()
