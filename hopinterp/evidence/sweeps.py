"""The patch bay: every activation of a kind patched in turn, position by position, exactly and without needless work."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hopinterp.errors import HopInterpError
from hopinterp.evidence.suffix import Block, Patches, Run, carry, unembed
from hopinterp.models.fused import FusedTransformer

ResidSite = Literal["resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out"]
RESID_SITES = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")
MEMORY = 2**30
"""How many bytes a sweep may take for activations, unless told otherwise."""

Report = Callable[[int, int], None]
_ROWS = 1024


@torch.no_grad()
def resid_sweep(
    model: FusedTransformer,
    run_tokens: Int[Tensor, "batch position"],
    source_tokens: Int[Tensor, "batch position"],
    *,
    site: ResidSite = "resid_pre",
    read: int | Int[Tensor, " batch"] | None = None,
    positions: Int[Tensor, "batch chain"] | None = None,
    memory: int = MEMORY,
    report: Report | None = None,
) -> Float[Tensor, "layer position batch d_vocab"]:
    """Logits at one position of each sequence, for every (block, position) whose vector is replaced by the source run's.

    Args:
        run_tokens: the sequences that are run and patched.
        source_tokens: the sequences whose activations are put in, one for each.
        site: the vector that is replaced, by TransformerLens's name (`hook_` left out).
        read: the position whose logits are wanted, one for all or one a sequence; the last by default.
        positions: the positions to patch, for each sequence its own (a chain); by default every position of all.
        memory: bytes; more sequences than fit are run in parts.
        report: called with the number of sequences that are done, and with their number in all.

    Returns:
        [layer, position, batch, d_vocab]. With `positions`, the second dim runs over their columns.

    Raises:
        HopInterpError: tokens of different shapes, an unknown site, or positions that the sequences do not have.
    """
    if site not in RESID_SITES:
        raise HopInterpError(f"site is {site!r}; it must be one of {', '.join(RESID_SITES)}")
    sweep = _Sweep.of(model, run_tokens, source_tokens, read, positions)
    return sweep.logits(lambda run, source: _resid_entries(model, run, source, site), memory, report)[:, 0]


@torch.no_grad()
def head_sweep(
    model: FusedTransformer,
    run_tokens: Int[Tensor, "batch position"],
    source_tokens: Int[Tensor, "batch position"],
    *,
    read: int | Int[Tensor, " batch"] | None = None,
    positions: Int[Tensor, "batch chain"] | None = None,
    memory: int = MEMORY,
    report: Report | None = None,
) -> Float[Tensor, "layer head position batch d_vocab"]:
    """Logits at one position of each sequence, for every (block, head, position) whose z is replaced by the source run's.

    Takes what `resid_sweep` takes. A head writes to its own position only, so the patch is one of the next block's
    resid_pre: x_mid + (z′ − z) W_O, and what the MLP makes of it.
    """
    sweep = _Sweep.of(model, run_tokens, source_tokens, read, positions)
    return sweep.logits(lambda run, source: _head_entries(model, run, source), memory, report)


def _resid_entries(
    model: FusedTransformer, run: Run, source: Run, site: ResidSite
) -> tuple[int, Float[Tensor, "layer unit batch position d_model"]]:
    """A patch of each block's vector as one of a resid_pre: how many blocks further up, and the vectors."""
    n_layers = model.spec.n_layers
    if site == "resid_pre":
        return 0, torch.stack(source.resid[:-1])[:, None]
    if site == "resid_post":
        return 1, torch.stack(source.resid[1:])[:, None]
    if site == "mlp_out":
        return 1, torch.stack([run.mid[layer] + source.mlp_out[layer] for layer in range(n_layers)])[:, None]
    mid = source.mid if site == "resid_mid" else [run.resid[layer] + source.attn_out[layer] for layer in range(n_layers)]
    return 1, torch.stack([x + Block(model, layer).mlp_out(x) for layer, x in enumerate(mid)])[:, None]


def _head_entries(
    model: FusedTransformer, run: Run, source: Run
) -> tuple[int, Float[Tensor, "layer head batch position d_model"]]:
    """Likewise for each head's z."""
    vectors = []
    for layer in range(model.spec.n_layers):
        block = Block(model, layer)
        change = torch.einsum("bphi,hid->hbpd", source.z[layer] - run.z[layer], model.parameters[f"blocks.{layer}.attn.W_O"])
        mid = run.mid[layer] + change
        vectors.append(mid + block.mlp_out(mid))
    return 1, torch.stack(vectors)


Entries = Callable[[Run, Run], tuple[int, Float[Tensor, "layer unit batch position d_model"]]]


@dataclass(frozen=True, eq=False)
class _Sweep:
    """What a sweep is over: pairs of sequences, the positions that are patched and the one that is read."""

    model: FusedTransformer
    run_tokens: Int[Tensor, "batch position"]
    source_tokens: Int[Tensor, "batch position"]
    read: Int[Tensor, " batch"]
    positions: Int[Tensor, "batch chain"]

    @classmethod
    def of(
        cls,
        model: FusedTransformer,
        run_tokens: Int[Tensor, "batch position"],
        source_tokens: Int[Tensor, "batch position"],
        read: int | Int[Tensor, " batch"] | None,
        positions: Int[Tensor, "batch chain"] | None,
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
        return cls(model, run_tokens, source_tokens, reads.expand(batch), positions.expand(batch, -1))

    def logits(
        self, entries: Entries, memory: int, report: Report | None
    ) -> Float[Tensor, "layer unit chain batch d_vocab"]:
        """Every patched run's logits, `memory` bytes' worth of sequences at a time."""
        pairs = torch.arange(len(self.read), device=self.read.device).split(self._pairs_at_once(memory))
        rows = max(1, min(_ROWS, memory // 2 // self._row_bytes()))
        parts: list[Tensor] = []
        for part in pairs:
            parts.append(self._part(part, entries, rows))
            if report is not None:
                report(sum(part.shape[3] for part in parts), len(self.read))
        return torch.cat(parts, dim=3)

    def _part(
        self, pairs: Int[Tensor, " batch"], entries: Entries, rows_at_once: int
    ) -> Float[Tensor, "layer unit chain batch d_vocab"]:
        run, source = (Run.of(self.model, tokens[pairs]) for tokens in (self.run_tokens, self.source_tokens))
        read, positions = self.read[pairs], self.positions[pairs]
        up, vectors = entries(run, source)
        rows = torch.arange(len(pairs), device=read.device)
        vectors = vectors[:, :, rows[:, None], positions].transpose(2, 3)  # layer, unit, chain, batch, d_model
        layer, _, column, sequence = (
            x.flatten() for x in torch.meshgrid(*map(torch.arange, vectors.shape[:-1]), indexing="ij")
        )
        patches = Patches(layer + up, sequence, positions[sequence, column], read[sequence], vectors.flatten(0, 3))
        logits = unembed(self.model, run.resid[-1][rows, read]).expand(*vectors.shape[:-1], -1).flatten(0, 3).clone()
        todo = _felt(patches, run)
        for group in _groups(patches, todo, rows_at_once):
            logits[group] = carry(self.model, run, patches[group])
        return logits.view(*vectors.shape[:-1], -1)

    def _pairs_at_once(self, memory: int) -> int:
        """How many pairs fit in half of the memory: two runs' activations, and a vector and logits for every patch."""
        spec = self.model.spec
        assert spec.d_head is not None
        runs = 2 * self.run_tokens.shape[1] * (4 * spec.d_model + 4 * spec.n_heads * spec.d_head)
        patches = spec.n_heads * self.positions.shape[1] * (4 * spec.d_model + 2 * spec.d_vocab)
        return max(1, memory // 2 // (spec.n_layers * (runs + patches) * self._itemsize))

    def _row_bytes(self) -> int:
        """What a row of a patched run takes: its residual, hidden, query, key and value vectors, and its scores."""
        spec = self.model.spec
        assert spec.d_head is not None
        assert spec.d_mlp is not None
        n = self.run_tokens.shape[1]
        return (6 * spec.d_model + spec.d_mlp + spec.n_heads * (8 * spec.d_head + n)) * self._itemsize

    @property
    def _itemsize(self) -> int:
        return self.model.parameters["embed.W_E"].element_size()


def _felt(patches: Patches, run: Run) -> Int[Tensor, " patch"]:
    """Which patches can change what is read: those that put another vector where it can be seen."""
    felt = patches.position <= patches.read
    for entry in patches.entry.unique().tolist():
        here = patches.entry == entry
        old = run.resid[entry][patches.sequence[here], patches.position[here]]
        felt[here] &= (old != patches.vector[here]).any(-1)
        if entry == len(run.resid) - 1:
            felt[here] &= patches.position[here] == patches.read[here]
    return felt.nonzero()[:, 0]


def _groups(patches: Patches, todo: Int[Tensor, " patch"], rows: int) -> list[Int[Tensor, " patch"]]:
    """Patches that are carried together: as many neighbours in position as make so many rows, sorted by entry."""
    todo = todo[patches.position[todo].argsort(descending=True, stable=True)]
    groups, begin, last = [], 0, 0
    for i, (position, read) in enumerate(zip(patches.position[todo].tolist(), patches.read[todo].tolist(), strict=True)):
        last = max(last, read) if i > begin else read
        if i > begin and (i + 1 - begin) * (last + 1 - position) > rows:
            groups.append(todo[begin:i])
            begin, last = i, read
    groups.append(todo[begin:])
    return [group[patches.entry[group].argsort(stable=True)] for group in groups if len(group)]
