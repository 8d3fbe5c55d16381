"""Figures of one kind of evidence each, in one style; each function returns a matplotlib Figure."""

from __future__ import annotations

import io
import logging
from pathlib import Path

import matplotlib as mpl
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import NullLocator

from hopinterp.errors import HopInterpError
from hopinterp.evidence.reading.behaviour import SOLVED
from hopinterp.files import check_file_target, write_file
from hopinterp.theory.hypotheses import exact
from hopinterp.views.style import FAMILY_INK, INKS, SHARES, current, style

# it remarks, once a figure, that it draws what is half transparent opaque
logging.getLogger("matplotlib.backends.backend_ps").setLevel(logging.ERROR)

_UNDATED = {"svg": {"Date": None}, "svgz": {"Date": None}, "pdf": {"CreationDate": None}}
_RIM = [withStroke(linewidth=2.6, foreground="black")]  # a white mark shows on bright cells too


def error_curve(found: xr.Dataset, title: str = "") -> Figure:
    """err_k against k on a log2 axis, with its intervals (the paper's Figure 2, one depth).

    Args:
        found: what `evaluate` returned.
    """
    shown = found.sel(hops=found.hops > 0)
    ks, ink = shown.hops.values.tolist(), current().ink(INKS[0])
    if not ks:
        raise HopInterpError("there is nothing to draw on a log axis: no k above 0 was measured")
    with style():
        figure = Figure(figsize=(5, 3))
        axes = figure.subplots()
        axes.fill_between(ks, 100 * shown.low, 100 * shown.high, color=ink, alpha=0.25, lw=0, label="95% interval")
        axes.plot(ks, 100 * shown.error, "o-", color=ink, ms=3.5, label="error")
        solved_line(axes, max(ks), "right")
        log2_ticks(axes, min(ks), max(ks))
        axes.set(xlabel="hops k", ylabel="error on answered positions (%)", title=title)
        axes.set_ylim(bottom=-0.02 * max(2.0, 100 * float(shown.high.max())))
        axes.legend(loc="upper left")
        return figure


def solved_line(axes: Axes, k: int, side: str) -> None:
    """The error under which a k counts as solved, dotted, and named at one of its ends."""
    axes.axhline(100 * SOLVED, color=current().quiet, lw=0.8, ls=":")
    place, words = (k, 100 * SOLVED), f"{100 * SOLVED:g}%"
    axes.annotate(words, place, xytext=(0, 2), textcoords="offset points", ha=side, color=current().quiet, fontsize=8)


def log2_ticks(axes: Axes, first: int, last: int) -> None:
    """A log2 axis of k with whole powers as its only ticks."""
    axes.set_xscale("log", base=2)
    axes.set_xticks([2**n for n in range(12) if first <= 2**n <= last])
    axes.xaxis.set_major_formatter("{x:.0f}")
    axes.xaxis.set_minor_locator(NullLocator())


def alignment_heatmap(found: xr.Dataset, k: int, title: str = "") -> Figure:
    """Alignment of every head (rows, by layer) with find^j (columns), at one k (the paper's Figures 12 and 13).

    Args:
        found: what `align` returned.
    """
    values = found.score.sel(hops=k).stack(unit=("layer", "head")).transpose("unit", "hop")
    with style():
        figure = Figure(figsize=(6.4, 0.22 * values.sizes["unit"] + 1.3))
        axes = figure.subplots()
        image = axes.imshow(values, cmap=SHARES, vmin=0, vmax=1, aspect="auto", interpolation="nearest")
        unit_ticks(axes, values, edges=True)
        axes.set_xticks(range(values.sizes["hop"]))
        axes.axvline(k + 0.5, color="white", lw=1, ls=":")
        axes.set(xlabel="j", title=title or f"alignment with find$^j$ (cosine), k = {k}")
        figure.colorbar(image, ax=axes, label="mean cosine over sequences", shrink=0.9)
        return figure


def unit_ticks(axes: Axes, values: xr.DataArray | xr.Dataset, edges: bool = False) -> None:
    """Rows of heads (layer.head) or of blocks, from a stacked dim `unit`; with edges, a white line between blocks."""
    places = [np.atleast_1d(unit).tolist() for unit in values.unit.values]
    heads = len(places[0]) > 1
    axes.set_yticks(range(len(places)), [".".join(map(str, place)) for place in places], fontsize=7 if heads else 9)
    axes.set_ylabel("layer.head" if heads else "block")
    for row in range(1, len(places) if edges else 0):
        if places[row][0] != places[row - 1][0]:
            axes.axhline(row - 0.5, color="white", lw=1.5)


def probe_staircase(found: xr.Dataset, title: str = "") -> Figure:
    """Probe accuracy by layer and hop, held cells marked, with R(ℓ) of each hypothesis drawn over it.

    Args:
        found: what `probe` returned, with every layer.
    """
    k, layers, hops = found.attrs["hops"], found.layer.values, found.hop.values
    with style():
        figure = Figure(figsize=(6.4, 0.42 * len(layers) + 1.8))
        axes = figure.subplots()
        image = axes.pcolormesh(hops, layers, found.accuracy, cmap=SHARES, vmin=0, vmax=1, shading="nearest")
        for layer, hop in np.argwhere(found.held.values):
            axes.plot(hops[hop], layers[layer], "s", ms=9, mfc="none", mec="black", mew=1.2, zorder=4)
        theory = exact().values()
        for shift, one in zip(np.linspace(-0.12, 0.12, len(theory)), theory, strict=True):
            steps = np.asarray([one.holds(layer, k)[0] for layer in layers.tolist()])
            label = f"{one.name}: {', '.join(map(str, steps))}"
            axes.plot(steps + shift, layers, color=current().ink(one.ink), dashes=one.dashes, lw=2, marker=".", label=label)
        axes.plot([], [], "s", ms=7, mfc="none", mec="black", label="held")
        axes.axvline(k + 0.5, color="white", lw=1, ls=":")
        axes.set_yticks(layers)
        axes.set_xticks(hops)
        axes.set(xlabel="hop j read at position i", ylabel="block", title=title or f"probes of each block's output, k = {k}")
        figure.legend(loc="outside lower center", ncols=2, fontsize=7.5, handlelength=2.5)
        figure.colorbar(image, ax=axes, label="held-out accuracy")
        return figure


def light_cone(found: xr.Dataset, metric: str, title: str = "") -> Figure:
    """Effect of patching at each chain position, and before it, by block (or head): where the answer's information is.

    Args:
        found: what `patch` returned, by="chain".
    """
    one = found.sel(metric=metric)
    rows = ("layer", "head") if "head" in one.dims else ("layer",)
    stacked = one.stack(unit=rows).transpose("unit", "hop", "where")
    with style():
        figure = Figure(figsize=(2 + 0.55 * one.sizes["hop"], 1.2 + 0.24 * stacked.sizes["unit"]))
        panels = figure.subplots(1, 2, sharey=True)
        titles = {"at": "at find$^j$(i)", "before": "one before it"}
        for axes, where in zip(panels, one["where"].values, strict=True):
            cell = stacked.sel(where=where)
            image = axes.imshow(cell.effect, cmap=SHARES, vmin=0, vmax=1, aspect="auto", interpolation="nearest")
            for unit, j in np.argwhere(cell.matters.values):
                axes.plot(j, unit, "s", ms=7, mfc="none", mec="white", mew=1.2, path_effects=_RIM)
            axes.set_xticks(range(one.sizes["hop"]), one.hop.values)
            axes.set(xlabel="j", title=titles[str(where)])
        unit_ticks(panels[0], stacked)
        words = metric.replace("_", " ")
        figure.suptitle(
            title or f"{found.attrs['site']}, {found.attrs['direction']}, k = {found.attrs['hops']}", fontsize=10
        )
        figure.colorbar(image, ax=panels, label=f"effect ({words})", shrink=0.9)
        return figure


def patch_heatmap(found: xr.Dataset, metric: str, title: str = "") -> Figure:
    """Effect of patching at every position, by block or head, as TransformerLens's patching pictures have it.

    Args:
        found: what `patch` returned, by="position" (or "all": one column).
    """
    one = found.effect.sel(metric=metric)
    rows = ("layer", "head") if "head" in one.dims else ("layer",)
    one = one if "position" in one.dims else one.expand_dims(position=["all"])
    stacked = one.stack(unit=rows).transpose("unit", "position")
    limit = max(1.0, float(abs(one).max()) if bool(one.notnull().any()) else 1.0)
    with style():
        figure = Figure(figsize=(7.2 if one.sizes["position"] > 1 else 3, 1.2 + 0.24 * stacked.sizes["unit"]))
        axes = figure.subplots()
        # effects have a sign: white is none
        image = axes.imshow(stacked, cmap=current().signed, vmin=-limit, vmax=limit, aspect="auto", interpolation="nearest")
        unit_ticks(axes, stacked)
        if one.sizes["position"] == 1:
            axes.set_xticks([])
        settings = found.attrs
        axes.set_title(title or f"{settings['site']}, {settings['direction']}, k = {settings['hops']}")
        axes.set_xlabel("position")
        figure.colorbar(image, ax=axes, label=f"effect ({metric.replace('_', ' ')})", shrink=0.9)
        return figure


def iia_by_r(found: xr.Dataset, title: str = "") -> Figure:
    """IIA of "r hops done" against r, a panel a block, with its intervals, the chance of the strongest family, and what the
    block stands for ringed.

    Args:
        found: what `transplant` returned, without heads.
    """
    layers = found.layer.values
    with style():
        figure = Figure(figsize=(1.1 + 1.9 * len(layers), 2.9))
        panels = figure.subplots(1, len(layers), sharey=True, squeeze=False)[0]
        for axes, layer in zip(panels, layers, strict=True):
            unit = found.sel(layer=layer)
            chance = np.fmax(unit.chance, unit.untrained).sel(family=unit.leading_family.values)
            axes.step(unit.hop, chance, where="mid", color=current().quiet, lw=1, ls=":", label="chance")
            for family in found.family.values.tolist():
                row, color = unit.sel(family=family), current().ink(FAMILY_INK[family])
                axes.fill_between(row.hop, row.low, row.high, color=color, alpha=0.2, lw=0)
                axes.plot(row.hop, row.iia, "o-", color=color, ms=3, lw=1, label=family)
            if int(unit.best) >= 0:
                place = unit.iia.sel(family=unit.leading_family.values, hop=unit.best.values)
                axes.plot(unit.best, place, "o", ms=9, mfc="none", mec=current().text, mew=1.2)
            axes.set(xlabel="r", title=f"block {layer}", ylim=(-0.03, 1.06))
            axes.xaxis.get_major_locator().set_params(integer=True)
        panels[0].set_ylabel("interchange accuracy (IIA)")
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
        figure.suptitle(title or f"what a block's output stands for, k = {found.attrs['hops']}", fontsize=10)
        return figure


def check_drawable(target: Path) -> None:
    """Raise HopInterpError if no figure could be written here: ask before the work, not after it."""
    kinds = Figure().canvas.get_supported_filetypes()
    if target.suffix.lstrip(".") not in kinds:
        raise HopInterpError(f"cannot draw {target.name!r}: the ending must be one of {', '.join(sorted(kinds))}")
    check_file_target(target)


def write(figure: Figure, path: str | Path) -> None:
    """Save a figure whole or not at all; the format is the file's ending.

    Raises:
        HopInterpError: a format that matplotlib does not write, or a place that cannot be written.
    """
    target = Path(path)
    check_drawable(target)
    buffer, kind = io.BytesIO(), target.suffix.lstrip(".")
    try:
        # the same figure is the same bytes: no date, and names that do not depend on the day
        with mpl.rc_context({"svg.hashsalt": "hopinterp"}):
            figure.savefig(buffer, format=kind, metadata=_UNDATED.get(kind))
    except (OSError, ValueError, RuntimeError) as error:  # a writer that needs a program which is not there
        raise HopInterpError(f"cannot draw {target} ({' '.join(str(error).split())[:120]})") from None
    write_file(target, buffer.getvalue())
