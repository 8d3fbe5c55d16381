"""Figures of one kind of evidence each, in one style; each function returns a matplotlib Figure."""

from __future__ import annotations

import io
import logging
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MultipleLocator

from hopinterp.errors import HopInterpError
from hopinterp.evidence.patching.effects import IN_PART, in_part
from hopinterp.files import check_file_target, write_file
from hopinterp.theory.hypotheses import exact
from hopinterp.views.axes import (
    about,
    frame,
    framed,
    heading,
    hop_ticks,
    last_hop,
    legend_below,
    log2_ticks,
    over,
    panel_title,
    ring,
    solved_line,
    unit_ticks,
)
from hopinterp.views.style import FAMILY_INK, FAMILY_MARKER, SHARES, current, style

# it remarks, once a figure, that it draws what is half transparent opaque
logging.getLogger("matplotlib.backends.backend_ps").setLevel(logging.ERROR)

_UNDATED = {"svg": {"Date": None}, "svgz": {"Date": None}, "pdf": {"CreationDate": None}}
_NOTHING = 0.02  # of the largest effect


def error_curve(found: xr.Dataset, title: str = "") -> Figure:
    """err_k against k on a log2 axis, with its intervals (the paper's Figure 2, one depth); where it was measured, also on
    chains on which no letter repeats two hops apart.

    Args:
        found: what `evaluate` returned.
    """
    shown = found.sel(hops=found.hops > 0)
    ks = shown.hops.values.tolist()
    if not ks:
        raise HopInterpError("there is nothing to draw on a log axis: no k above 0 was measured")
    with style() as one:
        figure = Figure(figsize=(5, 3))
        axes = figure.subplots()
        lines = {"": ("error", one.text, "o-")}
        if "distinct_error" in found:
            lines["distinct_"] = ("on chains without repeats", one.ink("#E69F00"), "s--")
        for prefix, (words, ink, look) in lines.items():
            middle, low, high = (100 * shown[f"{prefix}{name}"] for name in ("error", "low", "high"))
            axes.fill_between(ks, low, high, color=ink, alpha=0.2, lw=0)
            axes.plot(ks, middle, look, color=ink, ms=3.5, lw=1.2, label=words)
        solved_line(axes, min(ks), "left")
        log2_ticks(axes, min(ks), max(ks))
        axes.set(xlabel="hops k", ylabel="error on answered positions (%)", title=title)
        axes.set_ylim(bottom=-0.02 * max(2.0, 100 * float(shown.high.max())))
        band = Patch(color=one.quiet, alpha=0.3, lw=0, label="95% interval")
        axes.legend(handles=[*axes.get_legend_handles_labels()[0], band], loc="upper left")
        return figure


def alignment_heatmap(found: xr.Dataset, k: int, title: str = "") -> Figure:
    """Alignment of every head (rows, by block up the page) with find^j (columns), at one k (the paper's Figures 12 and 13).

    Args:
        found: what `align` returned.
    """
    values = found.score.sel(hops=k).stack(unit=("layer", "head")).transpose("unit", "hop")
    with style():
        figure = Figure(figsize=(1.9 + 0.3 * values.sizes["hop"], 0.22 * values.sizes["unit"] + 1.3))
        axes = figure.subplots()
        image = axes.imshow(values, cmap=SHARES, vmin=0, vmax=1, aspect="auto", interpolation="nearest")
        _numbers(axes, values.values, values.values >= 0.1)
        unit_ticks(axes, values, edges="white")
        hop_ticks(axes, values.sizes["hop"] - 1)
        last_hop(axes, k)
        axes.set(xlabel="j of find$^j$")
        panel_title(axes, title or about(found, "alignment with find^j (cosine)", k), pad=14)
        figure.colorbar(image, ax=axes, label="mean cosine over sequences", shrink=0.9)
        return figure


def _numbers(axes: Axes, values: np.ndarray, marked: np.ndarray, raised: float = 0.0) -> None:
    """Two decimals in the marked cells of a map of shares."""
    for row, column in np.argwhere(marked & np.isfinite(values)):
        cell = _cell(values[row, column])
        axes.text(
            column,
            row + raised,
            f"{values[row, column]:.2f}",
            ha="center",
            va="center",
            fontsize=5.5,
            color=over(cell),
            path_effects=[withStroke(linewidth=1.6, foreground=cell)],
            zorder=3.2,
        )


def _cell(value: float) -> Any:
    """The colour of a share's cell."""
    return mpl.colormaps[SHARES](float(value))


def probe_staircase(found: xr.Dataset, title: str = "") -> Figure:
    """Probe accuracy by block (up the page) and hop, held cells framed, with R(ℓ) of each hypothesis drawn over it; below,
    for every hop the bar that the lower end of an accuracy's interval must exceed to be held.

    Args:
        found: what `probe` returned, with every layer.
    """
    k, layers, hops = found.attrs["hops"], found.layer.values, found.hop.values
    with style():
        figure = Figure(figsize=(1.9 + 0.33 * len(hops), 0.42 * len(layers) + 2.2))
        axes, strip = figure.subplots(2, 1, sharex=True, height_ratios=[0.42 * len(layers), 0.3])
        image = axes.imshow(found.accuracy, cmap=SHARES, vmin=0, vmax=1, aspect="auto", interpolation="nearest")
        _numbers(axes, found.accuracy.values, np.ones(found.accuracy.shape, bool), raised=-0.27)
        for row, hop in np.argwhere(found.held.values):
            frame(axes, hop, row, over(_cell(found.accuracy[row, hop])))
        _theory_lines(axes, layers.tolist(), k)
        axes.set_yticks(range(len(layers)), layers)
        axes.set(ylabel="block", ylim=(-0.5, len(layers) - 0.5))
        panel_title(axes, title or about(found, f"{found.attrs['target']} at find^j(i), read from block ℓ"), pad=14)
        _bar(strip, found)
        last_hop(axes, k)
        strip.set_xlabel("hop j read at position i")
        hop_ticks(strip, int(hops[-1]))
        axes.tick_params(axis="x", which="both", labelbottom=False)
        handles = [*axes.get_legend_handles_labels()[0], framed("held: 95% lower end above the bar")]
        legend_below(figure, handles, 2, handlelength=2.5)
        figure.colorbar(image, ax=[axes, strip], label="held-out accuracy")
        return figure


def _theory_lines(axes: Axes, layers: list[int], k: int) -> None:
    """R(ℓ) of every hypothesis, block over block, side by side where they agree."""
    theory = exact().values()
    for shift, law in zip(np.linspace(-0.14, 0.14, len(theory)), theory, strict=True):
        steps = np.asarray([law.holds(layer, k)[0] for layer in layers])
        look: dict[str, Any] = {"color": current().ink(law.ink), "dashes": law.dashes, "marker": "o", "ms": 3.5}
        label = f"theory, R: {law.name} {', '.join(map(str, steps))}"
        axes.plot(
            steps + shift, range(len(layers)), lw=1.8, zorder=2.8, path_effects=current().rim(3.2), label=label, **look
        )


def _bar(axes: Axes, found: xr.Dataset) -> None:
    """What closes the share of the gap from the best cheaper explanation to 1 that is asked for: the largest of a block."""
    baseline = found.baseline.max("layer")
    bar = (baseline + found.attrs["bar"] * (1 - baseline)).values
    for hop, one in enumerate(bar):
        axes.text(hop, 0, f"{one:.2f}", ha="center", va="center", fontsize=5.5)
    axes.set(ylim=(-0.5, 0.5))
    axes.set_yticks([0], ["bar"])
    axes.tick_params(axis="y", length=0)


def _patched(found: xr.Dataset) -> str:
    """What was patched, for a title."""
    settings = found.attrs
    return about(found, f"{settings['direction']} {settings['site']}, {settings['pairs']} pairs")


def light_cone(found: xr.Dataset, metric: str, title: str = "") -> Figure:
    """Effect of patching at each chain position, and before it, by block (or head) up the page: where the answer's
    information is.

    Args:
        found: what `patch` returned, by="chain".
    """
    one = found.sel(metric=metric)
    rows = ("layer", "head") if "head" in one.dims else ("layer",)
    stacked = one.stack(unit=rows).transpose("unit", "hop", "where")
    marks = {"solid": stacked.matters, "dashed": in_part(stacked).transpose("unit", "hop", "where")}
    with style():
        height = 0.22 if "head" in one.dims else 0.32
        figure = Figure(figsize=(2.4 + 0.5 * one.sizes["hop"], 1.7 + height * stacked.sizes["unit"]))
        panels = figure.subplots(1, 2, sharey=True)
        titles = {"at": "at find$^j$(i)", "before": "at the position before it"}
        for axes, where in zip(panels, one["where"].values, strict=True):
            effect = stacked.effect.sel(where=where)
            image = axes.imshow(effect, cmap=SHARES, vmin=0, vmax=1, aspect="auto", interpolation="nearest")
            for line, marked in marks.items():
                for unit, j in np.argwhere(marked.sel(where=where).values):
                    frame(axes, j, unit, over(_cell(effect[unit, j])), line)
            _numbers(axes, effect.values, abs(effect.values) >= IN_PART)
            hop_ticks(axes, one.sizes["hop"] - 1)
            axes.set(xlabel="j", title=titles[str(where)])
        unit_ticks(panels[0], stacked, edges="white")
        unit_ticks(panels[1], stacked, edges="white")
        panels[1].set_ylabel("")
        panels[1].tick_params(axis="y", labelleft=False)
        words = metric.replace("_", " ")
        heading(figure, title or _patched(found))
        bar = f"matters: 95% interval above {found.attrs['bar']:.2f}"
        partly = framed(f"in part: {IN_PART:g} and more, above a place off the chain", "dashed")
        legend_below(figure, [framed(bar), partly], 2)
        figure.colorbar(image, ax=panels, label=f"effect ({words})", shrink=0.9)
        return figure


def patch_heatmap(found: xr.Dataset, metric: str, title: str = "") -> Figure:
    """Effect of patching at every position, by block or head up the page, as TransformerLens's patching pictures have it; of
    patching all positions at once, each block's or head's with its interval. The scale is the figure's own.

    Args:
        found: what `patch` returned, by="position" or by="all".
    """
    one = found.sel(metric=metric)
    stacked = one.stack(unit=("layer", "head") if "head" in one.dims else ("layer",))
    words, title = f"effect ({metric.replace('_', ' ')})", title or _patched(found)
    height = 1.2 + (0.22 if "head" in one.dims else 0.3) * stacked.sizes["unit"]
    with style():
        if "position" not in one.dims:
            return _effects_at_once(stacked, height, words, title)
        figure = Figure(figsize=(7.2, height))
        axes = figure.subplots()
        effect = stacked.effect.transpose("unit", "position")
        limit = float(abs(effect).max()) if bool(effect.notnull().any()) else 1.0
        scale: dict[str, Any] = {"cmap": current().signed, "vmin": -(limit or 1.0), "vmax": limit or 1.0}
        image = axes.imshow(effect, aspect="auto", interpolation="nearest", **scale)
        unit_ticks(axes, stacked, edges=current().quiet)
        axes.set(xlabel=f"position{_from_where_on(axes, effect.values, limit)}")
        panel_title(axes, title)
        axes.xaxis.set_minor_locator(MultipleLocator(1 if np.ptp(axes.get_xlim()) < 60 else 5))
        figure.colorbar(image, ax=axes, label=words, shrink=0.9)
        return figure


def _from_where_on(axes: Axes, effect: np.ndarray, limit: float) -> str:
    """Leave out the first positions, where next to nothing happens, if they are many; and say so."""
    largest = np.nan_to_num(abs(effect)).max(0)
    first = int(np.argmax(largest >= _NOTHING * limit))
    if first < len(largest) / 5:
        return " (0: the hop token)"
    axes.set_xlim(first - 0.5, len(largest) - 0.5)
    return f" (0 to {first - 1}: none over {largest[:first].max():.1g})"


def _effects_at_once(stacked: xr.Dataset, height: float, words: str, title: str) -> Figure:
    """A bar for each block or head, with its interval."""
    figure = Figure(figsize=(4.6, height))
    axes = figure.subplots()
    rows, effect = range(stacked.sizes["unit"]), stacked.effect.values
    ends = np.stack([effect - stacked.low, stacked.high - effect]).clip(0)
    axes.barh(rows, effect, height=0.7, color=current().ink("#4393C3"))
    axes.errorbar(effect, rows, xerr=ends, fmt="none", ecolor=current().text, elinewidth=1, capsize=2)
    axes.axvline(0, color=current().quiet, lw=0.8)
    unit_ticks(axes, stacked)
    axes.set(xlabel=f"{words}, 95% interval")
    panel_title(axes, title)
    return figure


def iia_by_r(found: xr.Dataset, title: str = "") -> Figure:
    """IIA of "r hops done" against r, a panel a block up the page, with its intervals, the chance of the strongest family,
    what the block stands for ringed, and what each hypothesis says that it stands for.

    Args:
        found: what `transplant` returned, without heads.
    """
    layers, k = found.layer.values.tolist(), int(found.attrs["hops"])
    with style():
        figure = Figure(figsize=(max(6.4, 2.4 + 0.26 * found.sizes["hop"]), 1.5 + 0.95 * len(layers)))
        panels = figure.subplots(len(layers), 1, sharex=True, sharey=True, squeeze=False)[::-1, 0]
        for axes, layer in zip(panels, layers, strict=True):
            _stands_for(axes, found.sel(layer=layer), k)
        panels[0].set_xlabel("r, hops done")
        hop_ticks(panels[0], int(found.hop.values[-1]))
        for axes in panels[1:]:
            axes.tick_params(axis="x", which="both", labelbottom=False)
        figure.supylabel("interchange intervention\naccuracy (IIA)", fontsize=9)
        handles = {one.get_label(): one for axes in panels for one in axes.get_legend_handles_labels()[0]}
        handles["ring"] = ring("what the block stands for")
        handles["band"] = Patch(color=current().quiet, alpha=0.3, lw=0, label="95% interval")
        heading(figure, title or about(found, "what a block's output stands for"))
        legend_below(figure, list(handles.values()), 3)
        return figure


def _stands_for(axes: Axes, unit: xr.Dataset, k: int) -> None:
    """One block's panel."""
    layer, one = int(unit.layer), current()
    theory = exact().values()
    for shift, law in zip(np.linspace(-0.09, 0.09, len(theory)), theory, strict=True):
        line: dict[str, Any] = {"color": one.ink(law.ink), "dashes": law.dashes}
        axes.axvline(law.holds(layer, k)[0] + shift, lw=1.3, alpha=0.8, zorder=1, label=f"theory: {law.name}", **line)
    lead = str(unit.leading_family.values)
    chance = np.fmax(unit.chance, unit.untrained).sel(family=lead)
    axes.step(unit.hop, chance, where="mid", color=one.quiet, lw=1, ls=":", label="chance, or an untrained model")
    for family in unit.family.values.tolist():
        row, ink = unit.sel(family=family), one.ink(FAMILY_INK[family])
        axes.fill_between(row.hop, row.low, row.high, color=ink, alpha=0.2, lw=0)
        look: dict[str, Any] = {"marker": FAMILY_MARKER[family], "ms": 3, "lw": 1, "zorder": 3 if family == lead else 2}
        axes.plot(row.hop, row.iia, color=ink, label=family, **look)
    best = int(unit.best)
    if best >= 0:
        axes.plot(best, unit.iia.sel(family=lead, hop=best), "o", ms=8, mfc="none", mec=one.text, mew=1.1, zorder=4)
    axes.set(ylim=(-0.06, 1.1), yticks=[0, 0.5, 1])
    axes.yaxis.set_minor_locator(MultipleLocator(0.25))
    words = f"block {layer}\n{unit.best_family.values} {best}" if best >= 0 else f"block {layer}\nnone"
    axes.annotate(words, (1.01, 0.5), xycoords="axes fraction", va="center", fontsize=8)


def check_drawable(target: Path) -> None:
    """Raise HopInterpError if no figure could be written here: ask before the work, not after it."""
    kinds = Figure().canvas.get_supported_filetypes()
    if target.suffix.lstrip(".") not in kinds:
        raise HopInterpError(f"cannot draw {target.name!r}: the ending must be one of {', '.join(sorted(kinds))}")
    check_file_target(target)


def write(figure: Figure, path: str | Path, dpi: int | None = None) -> None:
    """Save a figure whole or not at all; the format is the file's ending. The same figure is the same bytes.

    Args:
        dpi: dots an inch, where the format has dots; the figure's own by default.

    Raises:
        HopInterpError: a format that matplotlib does not write, or a place that cannot be written.
    """
    target = Path(path)
    check_drawable(target)
    buffer, kind = io.BytesIO(), target.suffix.lstrip(".")
    try:
        # the same figure is the same bytes: no date, and names that do not depend on the day. 42 is TrueType: there are
        # publishers who take no Type 3, which is matplotlib's own choice
        with mpl.rc_context({"svg.hashsalt": "hopinterp", "pdf.fonttype": 42, "ps.fonttype": 42}):
            figure.savefig(buffer, format=kind, dpi=dpi or "figure", metadata=_UNDATED.get(kind))
    except (OSError, ValueError, RuntimeError) as error:  # a writer that needs a program which is not there
        raise HopInterpError(f"cannot draw {target} ({' '.join(str(error).split())[:120]})") from None
    write_file(target, buffer.getvalue())
