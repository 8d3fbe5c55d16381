"""What each kind of evidence says about every block, in hops, and the controls that could have refuted it.

Every bar is the one that the evidence was judged by when it was gathered: it stands in the dataset's attrs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from hopinterp.evidence.kinds import KINDS, called

Resolved = int | tuple[int, int] | None
"""R(ℓ) by one kind of evidence: a number, two that are left open, or None where it is unclear."""


class Reading:
    """What one kind of evidence says of one block. A kind of your own overrides what it has something to say on."""

    def cells(self) -> Mapping[str, str]:
        """What stands in the table, by the label of its row."""
        return {}

    def resolved(self) -> Resolved:
        """R(ℓ)."""
        return None

    def span(self) -> tuple[int, int, int] | None:
        """R(ℓ) between the least and the largest that its uncertainty allows; None where growth cannot be read off it."""
        return None

    def objection(self, r: int) -> str:
        """Why the block cannot have resolved exactly r hops; empty if nothing says so."""
        del r
        return ""


@dataclass(frozen=True)
class Stands(Reading):
    """What a block's output stands for downstream, by transplants.

    Attributes:
        r: of the one prediction of "r hops done" that is singled out; None where none is.
        family: what was carried, pointer, content, occurrence or undecided; "none".
        close: every r whose share of the gap reaches the lower end of the leading one's interval.
    """

    r: int | None
    family: str = "none"
    close: frozenset[int] = frozenset()

    def cells(self) -> Mapping[str, str]:
        carried = "–" if self.r is None else self.family
        return {"stands for (transplants)": "?" if self.r is None else str(self.r), "carried as": carried}

    def resolved(self) -> int | None:
        return self.r

    def span(self) -> tuple[int, int, int] | None:
        if self.r is None:
            return None
        close = self.close | {self.r}
        return min(close), self.r, max(close)

    def objection(self, r: int) -> str:
        if self.r is None or self.r == r:
            return ""
        return f"its output stands for {self.r} hops done (transplants), not {r}"


@dataclass(frozen=True)
class Holds(Reading):
    """What can be read off a block, by probes. That more is held than a hypothesis says is no objection: what can be read
    need not be used.

    Attributes:
        surely: hops ≤ k that a probe reads for certain (see `probes.resolved`).
        perhaps: those and the ones whose interval reaches the bar: what is not in it is surely not held.
    """

    surely: frozenset[int]
    perhaps: frozenset[int]

    def cells(self) -> Mapping[str, str]:
        return {"holds at most (probes)": str(self.resolved())}

    def resolved(self) -> int:
        return max(self.surely, default=0)

    def span(self) -> tuple[int, int, int]:
        r = self.resolved()
        return r, r, max(self.perhaps, default=r)

    def objection(self, r: int) -> str:
        return "" if r in self.perhaps else f"it surely does not hold hop {r} (probes)"


@dataclass(frozen=True)
class Needed(Reading):
    """Where along the chain the answer still hangs on a block's output, by patching: its light cone.

    Attributes:
        surely: chain positions j ≥ 1 at which noise in the output breaks the answer, for certain.
        next: the nearest j ≥ 1 that carries at least half of what the most needed one carries, and more than places off the
            chain; k + 1 where none is needed, None where the evidence does not say.
        hops: k.
    """

    surely: frozenset[int]
    next: int | None
    hops: int

    def cells(self) -> Mapping[str, str]:
        pair = self.resolved()
        return {"still to go from (light cone)": "?" if pair is None else "–".join(map(str, sorted(set(pair))))}

    def resolved(self) -> tuple[int, int] | None:
        """R is j, or j − 1 if the next block goes to the position after the one that the pointer names."""
        return None if self.next is None else (min(self.next - 1, self.hops), min(self.next, self.hops))

    def objection(self, r: int) -> str:
        early = [j for j in self.surely if j < r]
        return f"the answer still needs find^{min(early)}(i), before hop {r} (light cone)" if early else ""


@dataclass(frozen=True)
class Attends(Reading):
    """The j of find^j that some head of the block attends to, as it runs. Reported; it objects to nothing."""

    hops: frozenset[int]

    def cells(self) -> Mapping[str, str]:
        return {"attends to find^j, j =": " ".join(map(str, sorted(self.hops))) or "–"}


@dataclass(frozen=True)
class Block:
    """One block, as all evidence at one k has it: a reading for each kind that has one, those that decide most first."""

    layer: int
    readings: Mapping[str, Reading]

    @property
    def stands_for(self) -> int | None:
        """r of the one prediction that transplants single out."""
        found = self.readings.get("transplant")
        return found.r if isinstance(found, Stands) else None

    @property
    def held(self) -> frozenset[int]:
        """Hops that probes read for certain."""
        found = self.readings.get("probe")
        return found.surely if isinstance(found, Holds) else frozenset()

    @property
    def attended(self) -> frozenset[int]:
        """The j of find^j that some head attends to."""
        found = self.readings.get("attention")
        return found.hops if isinstance(found, Attends) else frozenset()

    def objection(self, r: int) -> str:
        """The first reading's objection to R(ℓ) = r; empty if none has one."""
        return next(filter(None, (reading.objection(r) for reading in self.readings.values())), "")


def read_blocks(found: Mapping[str, xr.Dataset], hops: int, n_layers: int) -> tuple[Block, ...]:
    """Readings of every block at k = `hops` from the evidence by kind, each as its function returned it."""
    read = {name: called(kind.read) for name, kind in KINDS.items() if kind.read and name in found}
    return tuple(
        Block(layer, {name: one(found[name], layer, hops) for name, one in read.items()}) for layer in range(n_layers)
    )


def rows(blocks: tuple[Block, ...]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """The rows of the table: a label, then a cell a block."""
    table: dict[str, dict[int, str]] = {}
    for block in blocks:
        for reading in block.readings.values():
            for label, cell in reading.cells().items():
                table.setdefault(label, {})[block.layer] = cell
    layers = [block.layer for block in blocks]
    for label, cells in table.items():
        yield label, tuple(cells.get(layer, "") for layer in layers)


# -- one kind of evidence, one block ---------------------------------------------------------------------------------------


def read_transplant(found: xr.Dataset, layer: int, hops: int) -> Stands:
    """From what `transplant` found, without heads."""
    del hops
    row = found.sel(layer=layer)
    best = int(row.best)
    bar = np.fmax(row.chance, row.untrained)
    room = (1 - bar).where(bar < 1)
    reaches = (row.high - bar) / room >= float(row.share_low)
    close = frozenset(row.hop.values[reaches.any("family").values].tolist())
    return Stands(best if best >= 0 else None, str(row.best_family.item()), close)


def read_probe(found: xr.Dataset, layer: int, hops: int) -> Holds:
    """From what `probe` found."""
    row, bar = found.sel(layer=layer), float(found.attrs["bar"])

    def above(end: xr.DataArray) -> frozenset[int]:
        reached = end > row.baseline + bar * (1 - row.baseline)
        return frozenset(j for j in row.hop.values[reached.values].tolist() if j <= hops)

    return Holds(above(row.low), above(row.high))


def read_patch(found: xr.Dataset, layer: int, hops: int) -> Needed:
    """From what `patch` found by chain."""
    row = found.sel(layer=layer, metric="probability", where="at").sel(hop=slice(1, hops))
    needed = frozenset(row.hop.values[row.matters.values].tolist())
    effect = row.effect.where(row.low > row.off_chain_high)
    strong = row.hop.values[(effect >= 0.5 * effect.max()).values]
    if strong.size:
        return Needed(needed, int(strong.min()), hops)
    # exactly 0: nothing that is read there has changed
    surely_none = bool(((row.high < float(found.attrs["bar"])) | (row.effect == 0)).all())
    return Needed(needed, hops + 1 if surely_none else None, hops)


def read_attention(found: xr.Dataset, layer: int, hops: int) -> Attends:
    """From what `align` found, its bar in attrs."""
    row = found.sel(hops=hops, layer=layer)
    seen = (row.score_valid >= float(found.attrs["attended"])).any("head")
    return Attends(frozenset(j for j in row.hop.values[seen.values].tolist() if 1 <= j <= hops))


# -- controls --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Control:
    """What would have shown that a method finds hops where there are none.

    Attributes:
        name: in JSON and in reasons.
        words: what it says when it passes.
        passed: None where it cannot be measured.
        measure: what `value` is, in words joined by underscores.
        bar: what `value` must stay under; None where that is 0.
    """

    name: str
    words: str
    passed: bool | None
    measure: str
    value: float
    bar: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Without its name and words."""
        return {"passed": self.passed, self.measure: self.value} | ({} if self.bar is None else {"bar": self.bar})


def read_controls(found: Mapping[str, xr.Dataset], hops: int) -> dict[str, Control]:
    """The controls of every kind of evidence that has some."""
    made = [called(kind.controls)(found[name], hops) for name, kind in KINDS.items() if kind.controls and name in found]
    return {control.name: control for controls in made for control in controls}


def probe_controls(found: xr.Dataset, hops: int) -> list[Control]:
    """Probes of an untrained model, and of labels drawn at random."""
    probes, bar = found.sel(hop=slice(1, hops)), float(found.attrs["bar"])
    cheap = xr.where(probes.majority > probes.lower_hops, probes.majority, probes.lower_hops)
    gap = float(((probes.untrained - cheap) / (1 - cheap)).max())
    least = float(probes.selectivity.where(probes.held).min())
    untrained = "Probes of an untrained model of the same sizes hold nothing"
    selective = "What is held is read better than labels drawn at random"
    return [
        Control("untrained_probe", untrained, _under(gap, bar), "largest_share_of_the_gap", gap, bar),
        Control("selectivity", selective, _under(-least, 0.0), "least_of_held", least),
    ]


def patch_controls(found: xr.Dataset, hops: int) -> list[Control]:
    """Patching places that are not on the chain."""
    del hops
    low, high = (float(found[name].sel(metric="probability").max()) for name in ("off_chain_low", "off_chain_high"))
    bar = float(found.attrs["bar"])
    # few pairs leave an interval on both sides of the bar: that tells nothing
    passed = None if low < bar <= high else _under(high, bar)
    return [Control("off_chain", "Patching a place off the chain does not matter", passed, "largest_effect", high, bar)]


def transplant_controls(found: xr.Dataset, hops: int) -> list[Control]:
    """Transplants in an untrained model."""
    del hops
    bar, margin = found.chance.where(found.chance < 1), float(found.attrs["margin"])
    # what reaches r = 0 is the input itself, and the last block's output is the answer of any model
    moved = ((found.untrained_low - bar) / (1 - bar)).sel(hop=slice(1, None)).isel(layer=slice(None, -1))
    most = float(moved.max()) if moved.size else float("nan")
    words = "Blocks of an untrained model stand for nothing"
    return [Control("untrained_transplant", words, _under(most, margin), "largest_share_of_the_gap", most, margin)]


def _under(value: float, bar: float) -> bool | None:
    return None if math.isnan(value) else value < bar
