"""The report's figures of each kind of evidence, each with what it shows and how to read it, in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import xarray as xr
from matplotlib.figure import Figure

from hopinterp.decompile.decompilation import Decompilation
from hopinterp.decompile.records import Decompiled
from hopinterp.views import graph, plots, programs, tables

_METRIC = "probability"

Evidence = Mapping[str, xr.Dataset]
"""Datasets by kind."""


@dataclass(frozen=True)
class Plate:
    """A figure of the report.

    Attributes:
        shows: what it shows, in words: for who cannot see it, and in bold below it.
        caption: how to read it.
    """

    title: str
    figure: Figure
    shows: str
    caption: str


def program_plates(program: Decompiled | None) -> Iterator[Plate]:
    """The heads that carry the answer, and the jumps that add up to k; nothing where no derivation was found."""
    if program is None or not program.derivations:
        return
    caption = (
        "A box is a head that carries the answer, in its block (up the page) at a chain position (across, i on the right);"
    )
    caption += " an arc leads from where it looks. Each line style is one way in which jumps add up to k."
    shows = program.headline if program.explained else f"Not explained: {'; '.join(program.missed)}. {program.headline}"
    yield Plate("Jumps that add up to k", programs.derivation_tree(program), shows, caption)


def hop_plate(found: Decompilation) -> Plate:
    """Where each head looks at each of several k."""
    caption = (
        "The hop that each head (row) looks back when the model is asked for k (column); above, what is left of the answers"
    )
    caption += " when all heads do just that."
    return Plate("Where each head looks at every k", programs.hop_table(found), found.reading.splitlines()[-1], caption)


def transplant_plates(found: Evidence, hops: int) -> Iterator[Plate]:
    """What each block's output stands for."""
    del hops
    caption = "How often the answer, once a block's output at i is another sequence's, is what \"r hops done\" predicts."
    caption += " Blocks go up the page. Ringed: what the block stands for; upright lines: R(ℓ) of each hypothesis."
    swaps = found["transplant"]
    shows = _last_line(tables.transplant_reading(swaps))
    yield Plate("What each block's output stands for", plots.iia_by_r(swaps), shows, caption)


def probe_plates(found: Evidence, hops: int) -> Iterator[Plate]:
    """What can be read off each block."""
    del hops
    caption = "Held-out accuracy of linear probes for the letter of every hop. Framed: held, the lower end of the accuracy's"
    caption += " 95% interval lies above the bar below, which leaves every cheaper explanation behind. Lines: R(ℓ) of each"
    caption += " hypothesis."
    shows = _last_line(tables.probe_reading(found["probe"]))
    yield Plate("What can be read off each block", plots.probe_staircase(found["probe"]), shows, caption)


def patch_plates(found: Evidence, hops: int) -> Iterator[Plate]:
    """What the answer still needs."""
    del hops
    cone = found["patch"]
    caption = "How much the answer at i suffers when a block's output on the chain is another sequence's. Framed: it"
    caption += (
        f" matters, the interval lies above {cone.attrs['bar']:.2f}; dashed: it does in part, more than off the chain."
    )
    shows = _last_line(tables.patch_reading(cone, _METRIC))
    yield Plate("The light cone: what the answer still needs", plots.light_cone(cone, _METRIC), shows, caption)


def attention_plates(found: Evidence, hops: int) -> Iterator[Plate]:
    """Which head moves which hop, with what other evidence says of the blocks; and every head's alignment."""
    attention = found["attention"]
    shows, least = tables.attention_reading(attention.sel(hops=hops)), float(attention.attrs["attended"])
    circuit = graph.circuit_graph(
        attention,
        hops,
        cone=found.get("patch"),
        probes=found.get("probe"),
        transplants=found.get("transplant"),
        least=least,
    )
    caption = "A box is a head (block.head), its column the hop that it brings to i: where its cosine with find^j is at"
    caption += (
        f" least {least:g}. A dot: the answer at i hangs on the block's output there, half filled: in part. A diamond: a"
    )
    caption += " head reads there, and other ways do the same. Below, the constructed models."
    yield Plate("Which head moves which hop", circuit, shows, caption)
    caption = "Mean cosine of each head's pattern with the 0/1 matrix of find^j (the paper's Figures 12 and 13, layers"
    caption += " counted from 0)."
    yield Plate("Attention and find^j", plots.alignment_heatmap(attention, hops), shows, caption)


def error_plate(behaviour: xr.Dataset, name: str) -> Plate:
    """err_k of every k that was measured."""
    caption = "err_k, the share of answered positions whose answer is wrong (the paper's Figure 2, one depth)."
    return Plate("Wrong answers at every k", plots.error_curve(behaviour), tables.errors_reading(behaviour, name), caption)


def _last_line(reading: str) -> str:
    """What was found, without what explains the terminal's table."""
    return reading.splitlines()[-1].partition(" In brackets")[0]
