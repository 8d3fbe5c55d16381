"""Sweeps: every activation of a kind patched in turn, position by position, exactly and without needless work."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hopinterp.engine.cached_run import Base, Layout, Run
from hopinterp.engine.suffix import Patches, carry
from hopinterp.errors import HopInterpError
from hopinterp.models.fused import FusedTransformer
from hopinterp.progress import Progress, Report

RESID_SITES = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")
MEMORY = 2**30
"""How many bytes a sweep may take for patched runs, unless told otherwise."""

Entries = Callable[[Base, Run], Float[Tensor, "layer unit position d_model"]]
_ROWS = 3000  # residual vectors carried at once; more are no faster


@torch.no_grad()
def resid_sweep(
    model: FusedTransformer,
    run_tokens: Int[Tensor, "..."],
    source_tokens: Int[Tensor, "..."],
    *,
    site: str = "resid_pre",
    read: int | Int[Tensor, "..."] | None = None,
    positions: Int[Tensor, "..."] | None = None,
    memory: int = MEMORY,
    report: Report | None = None,
) -> Float[Tensor, "layer cell batch d_vocab"]:
    """Logits at one position of each sequence, for every (block, position) whose vector is replaced by the source run's.

    Args:
        run_tokens: [batch, position], the sequences that are run and patched.
        source_tokens: likewise, the sequences whose activations are put in, one for each.
        site: the vector that is replaced, by TransformerLens's name (`hook_` left out).
        read: the position whose logits are wanted, one for all or [batch], one a sequence; the last by default.
        positions: [batch, chain], the positions to patch, for each sequence its own; by default every position of all.
        memory: bytes for the patched runs that are carried at once. Sequences are taken one after the other in any case.
        report: called after every sequence.

    Returns:
        [layer, position, batch, d_vocab]; with `positions`, the second dim runs over their columns.

    Raises:
        HopInterpError: tokens of different shapes, an unknown site, or positions that the sequences do not have.
    """
    if site not in RESID_SITES:
        raise HopInterpError(f"site is {site!r}; it must be one of {', '.join(RESID_SITES)}")
    entries, up = partial(_resid_entries, site), int(site != "resid_pre")
    return _Sweep.of(model, run_tokens, source_tokens, read, positions, up, entries).logits(memory, report)[:, 0]


@torch.no_grad()
def head_sweep(
    model: FusedTransformer,
    run_tokens: Int[Tensor, "..."],
    source_tokens: Int[Tensor, "..."],
    *,
    read: int | Int[Tensor, "..."] | None = None,
    positions: Int[Tensor, "..."] | None = None,
    memory: int = MEMORY,
    report: Report | None = None,
) -> Float[Tensor, "layer head cell batch d_vocab"]:
    """Logits at one position of each sequence, for every (block, head, position) whose z is replaced by the source run's.

    Takes what `resid_sweep` takes. A head writes to its own position only, so the patch is one of the next block's
    resid_pre: x_mid + (z′ − z) W_O, and what the MLP makes of it.
    """
    return _Sweep.of(model, run_tokens, source_tokens, read, positions, 1, _head_entries).logits(memory, report)


def _resid_entries(site: str, base: Base, source: Run) -> Float[Tensor, "layer unit position d_model"]:
    """A patch of each block's vector as one of a resid_pre, here or in the next block (see `_Sweep`)."""
    run, layers = base.run, range(len(base.layouts))
    if site == "resid_pre":
        return torch.stack([source.resid[layer] for layer in layers])
    if site == "resid_post":
        return torch.stack([source.resid[layer + 1] for layer in layers])
    if site == "mlp_out":
        return torch.stack([run.mid[layer] + source.mlp_out(layer) for layer in layers])
    mids = source.mid
    if site == "attn_out":
        mids = [run.resid[layer] + source.attn_out(layer) for layer in layers]
    return torch.stack([mid + layout.mlp_out(mid) for mid, layout in zip(mids, base.layouts, strict=True)])


def _head_entries(base: Base, source: Run) -> Float[Tensor, "layer head position d_model"]:
    """Likewise for each head's z: x_mid + (z′ − z) W_O, and what the MLP makes of it."""
    run, vectors = base.run, []
    for layer, layout in enumerate(base.layouts):
        w_o = run.model.parameters[f"blocks.{layer}.attn.W_O"]
        change = (source.z[layer] - run.z[layer])[0]
        mid = run.mid[layer] + change @ w_o
        none = (change == 0).all(-1)[..., None]  # then not a bit may differ, whatever the products' shapes
        vectors.append(torch.where(none, run.resid[layer + 1], mid + layout.mlp_out(mid)))
    return torch.stack(vectors)


@dataclass(frozen=True, eq=False)
class _Sweep:
    """What a sweep is over: pairs of sequences, the positions that are patched and the one that is read.

    Attributes:
        up, entries: every patch stands for one of a resid_pre, `up` blocks above its own, with the vector that `entries`
            gives from the run and the source run.
    """

    model: FusedTransformer
    run_tokens: Int[Tensor, "batch position"]
    source_tokens: Int[Tensor, "batch position"]
    read: Int[Tensor, " batch"]
    positions: Int[Tensor, "batch chain"]
    up: int
    entries: Entries

    @classmethod
    def of(
        cls,
        model: FusedTransformer,
        run_tokens: Int[Tensor, "..."],
        source_tokens: Int[Tensor, "..."],
        read: int | Int[Tensor, "..."] | None,
        positions: Int[Tensor, "..."] | None,
        up: int,
        entries: Entries,
    ) -> _Sweep:
        """Fill in what was left out, and check what was given."""
        if run_tokens.shape != source_tokens.shape or run_tokens.ndim != 2 or not run_tokens.numel():
            given = f"{list(run_tokens.shape)} and {list(source_tokens.shape)}"
            raise HopInterpError(f"tokens of both runs must be [batch, position], of one shape; got {given}")
        batch, n = run_tokens.shape
        if n > model.spec.n_ctx:
            raise HopInterpError(f"{n} tokens were given; the model has {model.spec.n_ctx} positions")
        reads = torch.as_tensor(n - 1 if read is None else read, device=run_tokens.device).long()
        if positions is None:
            positions = torch.arange(n, device=run_tokens.device)[None]
        if (
            reads.ndim > 1
            or reads.numel() not in (1, batch)
            or positions.ndim != 2
            or len(positions) not in (1, batch)
            or not positions.numel()
        ):
            given = f"{list(reads.shape)} and {list(positions.shape)}"
            raise HopInterpError(f"read is one position or [batch], positions are [batch, chain]; got {given}")
        for name, where in (("read", reads), ("positions", positions)):
            least, largest = (int(x) for x in where.aminmax())
            if not 0 <= least <= largest < n:
                raise HopInterpError(f"{name} has {least} to {largest}; the sequences have 0 to {n - 1}")
        return cls(model, run_tokens, source_tokens, reads.expand(batch), positions.expand(batch, -1), up, entries)

    def logits(self, memory: int, report: Report | None) -> Float[Tensor, "layer unit chain batch d_vocab"]:
        """Every patched run's logits, one pair of sequences after the other."""
        layouts = [Layout.of(self.model, layer) for layer in range(self.model.spec.n_layers)]
        found = []
        for pair, read in enumerate(self.read.tolist()):
            # one sequence, whose right-hand rest is not felt
            run, source = (Run.of(self.model, x[pair : pair + 1, : read + 1]) for x in (self.run_tokens, self.source_tokens))
            base = Base.of(run, layouts)
            found.append(self._pair(base, self.entries(base, source), self.positions[pair], memory))
            if report is not None:
                report(Progress("patching", pair + 1, len(self.read)))
        return torch.stack(found, dim=3)

    def _pair(
        self,
        base: Base,
        vectors: Float[Tensor, "layer unit position d_model"],
        positions: Int[Tensor, " chain"],
        memory: int,
    ) -> Float[Tensor, "layer unit chain d_vocab"]:
        layers, units, n, _ = vectors.shape
        shape = (layers, units, len(positions))
        differs = (vectors != torch.stack(base.run.resid[self.up :][:layers])).any(
            -1
        )  # a patch that changes nothing is none
        if self.up:
            differs[-1, :, :-1] = False  # nothing moves between positions any more
        logits = base.model.unembed(base.resid[-1][-1]).expand(*shape, -1).clone()
        within = (positions < n).nonzero()[:, 0]
        felt = differs[:, :, positions[within]].nonzero()
        layer, unit, column = felt[:, 0], felt[:, 1], within[felt[:, 2]]
        at = positions[column]
        patches = Patches(layer + self.up, at, vectors[layer, unit, at])
        logits[layer, unit, column] = carry(base, patches, min(_ROWS, memory // self._row_bytes()))
        return logits

    def _row_bytes(self) -> int:
        """What a row of a patched run takes: residual vectors and fans, or residual, query, key and value vectors."""
        spec = self.model.spec
        assert spec.d_head is not None
        assert spec.d_mlp is not None
        numbers = 4 * (spec.d_model + spec.d_mlp) + 8 * spec.n_heads * spec.d_head
        return numbers * self.model.parameters["embed.W_E"].element_size()
