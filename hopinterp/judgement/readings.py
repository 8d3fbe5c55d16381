"""The clerk's desk: what each kind of evidence says about every block, in hops."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import xarray as xr

from hopinterp.evidence.reading.probes import BAR

ATTENDED = 0.5
"""A head attends to find^j where its cosine over non-null rows is at least this."""


@dataclass(frozen=True)
class BlockReading:
    """One block, as the evidence at one k has it. Hops count up to k.

    Attributes:
        held: hops that a probe reads for certain (see `probes.resolved`).
        perhaps_held: those and the ones whose interval reaches the bar: what is not in it is surely not held.
        stands_for: r of the one prediction of "r hops done" that transplants single out; None where none is.
        family: what was carried, pointer, content or occurrence; "none".
        not_told_apart: every r whose share of the gap reaches the lower end of the leading one's interval.
        needed: chain positions j ≥ 1 at which noise in the block's output breaks the answer, for certain.
        next_needed: the nearest j ≥ 1 that carries at least half of what the most needed one carries, and more than places
            off the chain; k + 1 where none is needed, None where the evidence does not say.
        attended: the j of find^j that some head of the block attends to, as it runs.
    """

    layer: int
    held: frozenset[int]
    perhaps_held: frozenset[int]
    stands_for: int | None
    family: str
    not_told_apart: frozenset[int]
    needed: frozenset[int]
    next_needed: int | None
    attended: frozenset[int]


def read_blocks(
    probe: xr.Dataset, transplant: xr.Dataset, patch: xr.Dataset, attention: xr.Dataset, hops: int
) -> tuple[BlockReading, ...]:
    """Readings of every block from what `probe`, `transplant`, `patch` (by chain) and `align` found at k = `hops`."""
    attention = attention.sel(k=hops)
    return tuple(
        BlockReading(
            layer,
            _held(probe.sel(layer=layer), "low", hops),
            _held(probe.sel(layer=layer), "high", hops),
            *_stands_for(transplant.sel(layer=layer)),
            *_needed(patch.sel(layer=layer, metric="probability", where="at"), hops, float(patch.attrs["bar"])),
            _attended(attention.sel(layer=layer), hops),
        )
        for layer in probe.layer.values.tolist()
    )


def _held(row: xr.Dataset, end: str, hops: int) -> frozenset[int]:
    reached = row[end] > row.baseline + BAR * (1 - row.baseline)
    return frozenset(j for j in row.hop.values[reached.values].tolist() if j <= hops)


def _stands_for(row: xr.Dataset) -> tuple[int | None, str, frozenset[int]]:
    best = int(row.best)
    bar = np.fmax(row.chance, row.untrained)
    room = (1 - bar).where(bar < 1)
    reaches = (row.high - bar) / room >= float(row.share_low)
    close = frozenset(row.hop.values[reaches.any("family").values].tolist())
    return (best if best >= 0 else None), str(row.best_family.item()), close


def _needed(row: xr.Dataset, hops: int, bar: float) -> tuple[frozenset[int], int | None]:
    row = row.sel(chain=slice(1, hops))
    needed = frozenset(row.chain.values[row.matters.values].tolist())
    effect = row.effect.where(row.low > row.off_chain_high)
    strong = row.chain.values[(effect >= 0.5 * effect.max()).values]
    if strong.size:
        return needed, int(strong.min())
    surely_none = bool(((row.high < bar) | (row.effect == 0)).all())  # exactly 0: nothing that is read there has changed
    return needed, hops + 1 if surely_none else None


def _attended(row: xr.Dataset, hops: int) -> frozenset[int]:
    seen = (row.score_valid >= ATTENDED).any("head")
    return frozenset(j for j in row.hop.values[seen.values].tolist() if 1 <= j <= hops)
