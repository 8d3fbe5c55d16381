"""Figures over many k, many depths or many steps of training; each function returns a matplotlib Figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, to_rgb
from matplotlib.figure import Figure

from hopinterp.errors import HopInterpError
from hopinterp.views.plots import log2_ticks, solved_line, unit_ticks
from hopinterp.views.style import INKS, MARKERS, current, style

Published = Mapping[str, Mapping[int, float]]
"""Errors that others measured: by name, then by k, as shares."""


def threshold(found: Mapping[str, xr.Dataset], published: Published | None = None, title: str = "") -> Figure:
    """err_k against k on a log2 axis, a line a depth, with intervals (the paper's Figures 2 and 6 to 8).

    Args:
        found: what `evaluate` returned, by name ("depth 4").
        published: errors to draw beside them, on the same axes. A name in both has one ink.
    """
    names = list(dict.fromkeys([*found, *(published or {})]))
    look = {name: (current().ink(INKS[n % len(INKS)]), MARKERS[n % len(MARKERS)]) for n, name in enumerate(names)}
    with style():
        figure = Figure(figsize=(8 if published else 5, 3.3))
        panels = figure.subplots(1, 2 if published else 1, sharex=True, sharey=True, squeeze=False)[0]
        for name, one in found.items():
            shown = one.sel(hops=one.hops > 0)
            ink, marker = look[name]
            panels[0].fill_between(shown.hops, 100 * shown.low, 100 * shown.high, color=ink, alpha=0.25, lw=0)
            panels[0].plot(shown.hops, 100 * shown.error, color=ink, marker=marker, ms=3.5, lw=1.3, label=name)
        for name, errors in (published or {}).items():
            ks = [k for k in sorted(errors) if k > 0]
            ink, marker = look[name]
            panels[1].plot(ks, [100 * errors[k] for k in ks], color=ink, marker=marker, ms=3.5, lw=1.3, label=name)
        ks = sorted({int(k) for axes in panels for line in axes.lines for k in line.get_xdata()})
        if not ks:
            raise HopInterpError("there is nothing to draw on a log axis: no k above 0 was measured")
        for axes, words in zip(panels, ("measured here, with 95% intervals", "published"), strict=False):
            solved_line(axes, ks[0], "left")
            axes.set(xlabel="hops k", title=words if published else title)
        log2_ticks(panels[0], ks[0], ks[-1])
        panels[0].set_ylabel("error on answered positions (%)")
        panels[0].set_ylim(bottom=-1.5)
        handles = {label: line for axes in panels for line, label in zip(*axes.get_legend_handles_labels(), strict=True)}
        figure.legend(handles.values(), handles.keys(), loc="outside right center")
        if published and title:
            figure.suptitle(title, fontsize=10)
        return figure


def argmax_map(found: xr.Dataset, title: str = "") -> Figure:
    """The find^j that every head (rows, by layer) agrees with best, for every k (columns): j as number and colour, and how
    well as strength of the colour (the paper's Figures 14 and 15).

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
            dark = cells[row, column] @ (0.3, 0.59, 0.11) < 0.6
            axes.text(column, row, str(j), ha="center", va="center", fontsize=6.5, color="white" if dark else "black")
        unit_ticks(axes, best, edges=True)
        axes.set_xticks(range(columns), found.hops.values)
        axes.tick_params(length=0)
        axes.set(xlabel="hops k asked for", title=title or "find$^j$ that a head agrees with best")
        hop_bar(figure, [axes], colours, norm, "j (pale: low cosine)")
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
        solved_line(axes, int(found.step.max()), "right")
        axes.set(xlabel="training step", ylabel="error on answered positions (%)", title=title or "err$_k$ during training")
        hop_bar(figure, [axes], colours, norm, "hops k")
        return figure


def _learned_hops(found: xr.Dataset, title: str) -> Figure:
    k, layers = int(found.attrs["hops"]), found.layer.values
    colours, norm = hop_colours(k)
    with style():
        figure = Figure(figsize=(1.4 + 2.1 * len(layers), 2.9))
        panels = figure.subplots(1, len(layers), sharey=True, squeeze=False)[0]
        for axes, layer in zip(panels, layers, strict=True):
            for j in range(k + 1):
                one = found.sel(layer=layer, hop=j)
                held = one.held.astype(bool)
                axes.plot(found.step, one.accuracy, color=colours(norm(j)), lw=1.2)
                axes.plot(found.step[held], one.accuracy[held], "o", color=colours(norm(j)), ms=4)
            axes.set(xlabel="training step", title=f"block {layer}", ylim=(-0.02, 1.05))
        panels[0].set_ylabel("held-out accuracy (●: held)")
        figure.suptitle(title or f"hops that can be read off each block during training, k = {k}", fontsize=10)
        hop_bar(figure, panels.tolist(), colours, norm, "hop j")
        return figure


def hop_colours(last: int) -> tuple[mpl.colors.Colormap, BoundaryNorm]:
    """A colour for each of 0 … last, dark to bright, ending before the yellow that vanishes on white."""
    colours = mpl.colors.ListedColormap(mpl.colormaps["viridis"](np.linspace(0, 0.92, last + 1)))
    return colours, BoundaryNorm(np.arange(last + 2) - 0.5, last + 1)


def hop_bar(figure: Figure, panels: Sequence[Axes], colours: mpl.colors.Colormap, norm: BoundaryNorm, label: str) -> None:
    bar = figure.colorbar(ScalarMappable(norm, colours), ax=panels, label=label, shrink=0.9)
    last = colours.N - 1
    bar.set_ticks(range(0, last + 1, max(1, last // 4)))
    bar.minorticks_off()
