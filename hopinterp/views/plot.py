"""The figure of what a function returned, by that function's name: `hi.plot.probe(hi.probe(…))`."""

from __future__ import annotations

from collections.abc import Mapping

import xarray as xr
from matplotlib.figure import Figure

from hopinterp.decompile.decompilation import Decompilation
from hopinterp.decompile.records import Decompiled
from hopinterp.errors import HopInterpError
from hopinterp.evidence.patching.effects import default_metric
from hopinterp.judgement.records import Verdict
from hopinterp.judgement.surveys import Survey
from hopinterp.views import graph, plots, programs, trends, verdicts
from hopinterp.views.plots import probe_staircase as probe
from hopinterp.views.plots import write as write
from hopinterp.views.sweeps import figure as sweep
from hopinterp.views.trends import dynamics as dynamics

__all__ = ["align", "decompile", "dynamics", "evaluate", "patch", "probe", "sweep", "transplant", "verify", "write"]


def evaluate(
    found: xr.Dataset | Mapping[str, xr.Dataset], published: trends.Published | None = None, title: str = ""
) -> Figure:
    """err_k against k: of one model, or of several by name, a line each.

    Args:
        published: errors that others measured, by name and k, to stand beside those of several models.
    """
    return plots.error_curve(found, title) if isinstance(found, xr.Dataset) else trends.threshold(found, published, title)


def align(found: xr.Dataset, hops: int | None = None, title: str = "") -> Figure:
    """Alignment of every head with every find^j at one k; of several k, the find^j that each head agrees with best.

    Args:
        hops: the k to draw, of several.
    """
    ks = found.hops.values.reshape(-1).tolist()
    if hops is None and len(ks) > 1:
        return trends.argmax_map(found, title)
    if hops is not None and hops not in ks:
        raise HopInterpError(f"hops is {hops}; measured were {', '.join(map(str, ks))}")
    return plots.alignment_heatmap(found, ks[0] if hops is None else hops, title)


def patch(found: xr.Dataset, metric: str | None = None, title: str = "") -> Figure:
    """Effects of patching: the light cone along the chain, else a map of positions.

    Args:
        metric: probability along the chain, else logit_difference, unless given.
    """
    by = found.attrs["by"]
    draw = plots.light_cone if by == "chain" else plots.patch_heatmap
    return draw(found, metric or default_metric(by), title)


def transplant(found: xr.Dataset, title: str = "") -> Figure:
    """What each block's output stands for. Raises HopInterpError for heads, of which there is a table alone."""
    if "head" in found.dims:
        raise HopInterpError("the figure is of whole blocks; of heads there is a table: hi.show")
    return plots.iia_by_r(found, title)


def decompile(found: Decompiled | Decompilation, title: str = "") -> Figure:
    """The derivation tree of one k, or the hop table of several."""
    return programs.figure(found, title)


def verify(found: Verdict | Survey, title: str = "") -> Figure:
    """The circuit that a verdict's evidence shows; of a survey, verdict and reach at every k."""
    if isinstance(found, Survey):
        return verdicts.verdict_table(verdicts.cells(found), title)
    seen = found.evidence
    if "attention" not in seen:
        raise HopInterpError("there is nothing to draw: this verdict was kept without its evidence")
    return graph.circuit_graph(
        seen["attention"], found.hops, cone=seen.get("patch"), probes=seen.get("probe"),
        transplants=seen.get("transplant"), title=title,
    )  # fmt: skip
