"""Where each sequence is patched, position by position or along its chain, and the results by those names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
import xarray as xr
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hopinterp.errors import HopInterpError
from hopinterp.evidence.patching.effects import Scale
from hopinterp.evidence.patching.pairs import Pairs
from hopinterp.progress import Report
from hopinterp.seeds import seeded

By = Literal["position", "chain", "all"]
WHERE = ("at", "before")
"""The two positions of each hop of the chain: find^j(i) itself, and the one before it."""


@dataclass(frozen=True, eq=False)
class Cells:
    """The positions at which each pair is patched, a column a cell, and which pairs count in which cell."""

    by: By
    positions: Int[Tensor, "pair cell"] | None
    counted: Bool[Tensor, "pair cell"] | None

    @classmethod
    def of(cls, pairs: Pairs, by: By, seed: int) -> Cells:
        """The cells of one result. Raises HopInterpError for an unknown `by`."""
        if by not in get_args(By):
            raise HopInterpError(f"by is {by!r}; it is position, chain or all")
        n, device = pairs.clean.tokens.shape[1], pairs.position.device
        if by == "all":
            return cls(by, None, None)
        if by == "position":
            return cls(by, torch.arange(n, device=device).expand(len(pairs), n), None)
        places = torch.stack([pairs.chain, pairs.chain - 1], dim=-1).flatten(1)
        control, exists = _off_chain(places, pairs.position, seed)
        counted = torch.cat([pairs.distinct.flatten(1), exists[:, None]], dim=1)
        return cls(by, torch.cat([places, control[:, None]], dim=1), counted)

    def dataset(
        self,
        values: Float[Tensor, "metric layer head cell pair"],
        scale: Scale,
        per_head: bool,
        seed: int,
        report: Report | None = None,
    ) -> xr.Dataset:
        """Effects by named dims, the control apart from the chain. Without heads the head axis, of length 1, goes."""
        values = values if per_head else values[:, :, 0]
        dims = ("layer", "head", "cell") if per_head else ("layer", "cell")
        counted = None if self.counted is None else self.counted.T
        cells = scale.effects(values, dims, seed, counted, report)
        cells = cells.assign_coords({dim: range(cells.sizes[dim]) for dim in dims[:-1]})
        if self.by == "all":
            return cells.isel(cell=0)
        if self.by == "position":
            return cells.rename(cell="position").assign_coords(position=range(values.shape[-2]))
        return self._along_chain(cells)

    def _along_chain(self, cells: xr.Dataset) -> xr.Dataset:
        """Two cells a hop, and last the control."""
        assert self.counted is not None
        hops = (cells.sizes["cell"] - 1) // 2
        named = cells.isel(cell=slice(None, -1)).assign_coords(
            hop=("cell", [j for j in range(hops) for _ in WHERE]), where=("cell", list(WHERE) * hops)
        )
        found = named.set_index(cell=("hop", "where")).unstack("cell").sel(where=list(WHERE))
        found["pairs"] = ("hop", "where"), self.counted[:, :-1].sum(0).view(hops, 2).cpu().numpy()
        control = cells.isel(cell=-1).rename(effect="off_chain", low="off_chain_low", high="off_chain_high")
        return found.merge(control)


def _off_chain(
    places: Int[Tensor, "pair place"], read: Int[Tensor, " pair"], seed: int
) -> tuple[Int[Tensor, " pair"], Bool[Tensor, " pair"]]:
    """A random position from 1 to i that is no place of the chain, and whether there is one."""
    n = int(read.max()) + 1
    free = torch.arange(n, device=read.device) <= read[:, None]
    free[:, 0] = False
    free.scatter_(1, places, False)
    drawn = torch.rand(free.shape, generator=seeded(seed)).to(read.device)
    return drawn.masked_fill(~free, -1).argmax(1), free.any(1)
