"""Runs of a circuit with live queries, patterns and values, clean keys, and all else from another sequence."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hopinterp.decompile.nodes import Place
from hopinterp.decompile.tree_runs import attn_out_at, values_at
from hopinterp.errors import HopInterpError
from hopinterp.models.fused import FusedTransformer
from hopinterp.task import Batch, HopTask


@dataclass(frozen=True, order=True)
class Site:
    """A head at a place of the chain, whatever its pattern does there."""

    layer: int
    head: int
    place: Place

    def to_json(self) -> dict[str, Any]:
        """As the JSON result has it: `before` for the position before find^at(i)."""
        return {"layer": self.layer, "head": self.head, "at": self.place.at, "before": self.place.back > 0}

    def __str__(self) -> str:
        return f"{self.layer}.{self.head} at {self.place}"


Sites = frozenset[Site]


@dataclass(frozen=True, eq=False)
class Pairs:
    """Sequences, each with others that stand in for all that is not kept, and the positions i that are watched.

    Attributes:
        batch: the sequences; all ask for one k.
        base, partner: which sequence is watched, and which one stands in, at the same positions.
        position: i, drawn among the base's scored positions.
    """

    batch: Batch
    base: Int[Tensor, " pair"]
    partner: Int[Tensor, " pair"]
    position: Int[Tensor, "pair watched"]

    @classmethod
    def draw(cls, task: HopTask, hops: int, sequences: int, *, watched: int = 3, partners: int = 2, seed: int = 0) -> Pairs:
        """`watched` scored positions of each sequence that has as many, anew with each of its `partners`.

        Raises:
            HopInterpError: fewer than two of the sequences have a chain of k links.
        """
        generator = torch.Generator().manual_seed(seed)
        batch = task.sample(sequences, hops=hops, generator=generator)
        watched = min(watched, int(batch.scored.sum(1).max()))
        usable = (batch.scored.sum(1) >= max(watched, 1)).nonzero()[:, 0]
        if len(usable) < 2:
            raise HopInterpError(f"fewer than two of {sequences} sequences have a chain of {hops} links")
        base = usable.repeat_interleave(partners)
        shift = torch.rand(sequences, sequences - 1, generator=generator).argsort(1)[:, :partners] + 1
        partner = (base + shift[usable].flatten()) % sequences
        drawn = torch.rand(len(base), batch.tokens.shape[1], generator=generator).masked_fill(~batch.scored[base], -1)
        return cls(batch, base, partner, drawn.argsort(1, descending=True)[:, :watched])

    @property
    def answer(self) -> Int[Tensor, "pair watched"]:
        """hop_k(X)_i as a token."""
        return self.batch.labels[self.base].gather(1, self.position)

    def places(self, places: Sequence[Place]) -> Int[Tensor, "pair watched place"]:
        """Where each place of i's chain is."""
        at = torch.tensor([place.at for place in places])
        back = torch.tensor([place.back for place in places])
        found = self.batch.find[self.base[:, None, None], at, self.position[..., None]]
        return (found - back).clamp_min(0)


Streams = Float[Tensor, "pair watched place d_model"]
Heads = Float[Tensor, "pair watched place head d_head"]


@dataclass(frozen=True, eq=False)
class LiveState:
    """One circuit's run: what it keeps, the streams before every block and after the last, head outputs, and the answers."""

    kept: Sites
    streams: list[Streams]
    z: list[Heads]
    logits: Float[Tensor, "pair watched d_vocab"]


@dataclass(frozen=True, eq=False)
class LiveRunner:
    """Runs circuits: sites that are kept are live, every other head output is the partner's, at the same position.

    A kept head at a place computes its query from the stream there, looks with it at the keys of the base's own clean run,
    and brings the values that its pattern gathers: at places of the chain and at those one before, those of the circuit's
    streams; at all other positions those of a stream whose every head output is the partner's. Embeddings and MLPs are live
    everywhere. Where find^j(i) − 1 is find^(j+1)(i) what is kept under one of the names is kept.
    """

    model: FusedTransformer
    pairs: Pairs
    places: tuple[Place, ...]
    keys: list[Float[Tensor, "head pair d_head position"]]
    values: list[Float[Tensor, "head pair position d_head"]]
    values_there: list[Float[Tensor, "head pair watched place d_head"]]
    others: list[Heads]
    embedded: Streams
    position: Int[Tensor, "pair watched place"]

    @classmethod
    @torch.no_grad()
    def of(cls, model: FusedTransformer, pairs: Pairs, hops: int) -> LiveRunner:
        """With the clean runs and what stands in, on the places of k hops."""
        places = tuple(Place(at, back) for back in (0, 1) for at in range(hops + 1))
        position = pairs.places(places)
        n = int(position.max()) + 1
        tokens = pairs.batch.tokens[:, :n]
        x, off = model.embed(tokens), model.embed(tokens[pairs.base])
        rows = torch.arange(len(pairs.base))[:, None, None]
        embedded = off[rows, position]
        keys, values, there, others = [], [], [], []
        for layer in range(model.spec.n_layers):
            q, k, v = model.qkv(model.norm(x, f"blocks.{layer}.ln1"), layer)
            z = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=model.scale)
            keys.append(k[pairs.base].permute(1, 0, 3, 2).contiguous())
            aside = z[pairs.partner]
            others.append(aside.transpose(1, 2)[rows, position])
            off_values = values_at(model, model.norm(off, f"blocks.{layer}.ln1"), layer)
            values.append(off_values.permute(2, 0, 1, 3).contiguous())
            there.append(values[-1][:, rows, position])
            if layer + 1 < model.spec.n_layers:
                x = model.block_end(x + model.attn_out(z, layer), layer)
                off = model.block_end(off + model.attn_out(aside, layer), layer)
        return cls(model, pairs, places, keys, values, there, others, embedded, position)

    def split(self, parts: int) -> list[LiveRunner]:
        """Runners of as many shares of the pairs."""
        size = -(-len(self.pairs.base) // parts)
        return [self._part(slice(start, start + size)) for start in range(0, len(self.pairs.base), size)]

    def _part(self, rows: slice) -> LiveRunner:
        pairs = self.pairs
        of_pairs = replace(pairs, base=pairs.base[rows], partner=pairs.partner[rows], position=pairs.position[rows])
        return replace(
            self,
            pairs=of_pairs,
            keys=[x[:, rows] for x in self.keys],
            values=[x[:, rows] for x in self.values],
            values_there=[x[:, rows] for x in self.values_there],
            others=[x[rows] for x in self.others],
            embedded=self.embedded[rows],
            position=self.position[rows],
        )

    @property
    def whole(self) -> Sites:
        """Every head at every place."""
        spec = self.model.spec
        heads = [(layer, head) for layer in range(spec.n_layers) for head in range(spec.n_heads)]
        return frozenset(Site(*head, place) for head in heads for place in self.places)

    @cached_property
    def _twice(self) -> Bool[Tensor, "pair watched hop"]:
        """Where find^j(i) − 1 is find^(j+1)(i), j = 0 … k − 1."""
        names = len(self.places) // 2
        return self.position[..., names:-1] == self.position[..., 1:names]

    @cached_property
    def _counts(self) -> Float[Tensor, "pair watched place"]:
        """0 for a name of a position that has another, which stands for it."""
        counts = torch.ones_like(self.position, dtype=torch.float32)
        counts[..., len(self.places) // 2 : -1] -= self._twice.float()
        return counts

    # -- runs ---------------------------------------------------------------------------------------------------------

    def run(self, kept: Iterable[Site]) -> LiveState:
        """A circuit from scratch."""
        empty = LiveState(frozenset(), [self.embedded], [], self.embedded.new_empty(*self.position.shape[:2], 0))
        return self._update(empty, frozenset(kept))

    def change(self, state: LiveState, *, add: Collection[Site] = (), remove: Collection[Site] = ()) -> LiveState:
        """A circuit with some sites more or fewer, computed only where it differs."""
        return self._update(state, (state.kept | frozenset(add)) - frozenset(remove))

    def wrong(self, state: LiveState) -> Bool[Tensor, "pair watched"]:
        """Where a circuit answers wrong."""
        return state.logits.argmax(-1) != self.pairs.answer

    def error(self, state: LiveState) -> float:
        """Share of positions that a circuit answers wrong."""
        return float(self.wrong(state).float().mean())

    @torch.no_grad()
    def _update(self, old: LiveState, kept: Sites) -> LiveState:
        """Block by block: heads are run again whose sites changed, and those that read a stream that did."""
        fresh = not old.z
        before, now = self._by_head(old.kept), self._by_head(kept)
        streams, zs = [self.embedded], []
        moved: set[int] = set()  # places whose stream before the block is not that of the old run
        for layer in range(self._depth):
            z = self.others[layer] if fresh else old.z[layer]
            again: dict[int, set[int]] = {}
            for head in range(self.model.spec.n_heads):
                mine, was = now.get((layer, head), set()), before.get((layer, head), set())
                # what block 0 brings depends on no stream that a circuit changes
                differs = self._shadows(mine if moved and layer else mine ^ was) | self._shadows(mine ^ was)
                if layer + 1 == self._depth:
                    differs &= {0}
                if differs:
                    again[head] = differs
            z = self._heads(layer, streams[layer], z, again, {head: now.get((layer, head), set()) for head in again})
            zs.append(z)
            moved = moved.union(*again.values()) if not fresh else set(range(len(self.places)))
            if layer + 1 == self._depth:
                moved &= {0}
            streams.append(self._end(layer, streams[layer], z, moved, None if fresh else old.streams[layer + 1]))
        logits = self.model.unembed(streams[-1][:, :, 0]) if moved else old.logits
        return LiveState(kept, streams, zs, logits)

    @property
    def _depth(self) -> int:
        return self.model.spec.n_layers

    def _heads(
        self, layer: int, streams: Streams, z: Heads, again: Mapping[int, set[int]], kept: Mapping[int, set[int]]
    ) -> Heads:
        """A block's head outputs, run again for some heads at some places: live where kept, else the partner's."""
        if not again:
            return z
        z, normed = z.clone(), self.model.norm(streams, f"blocks.{layer}.ln1")
        for head, places in again.items():
            at = sorted(places)
            z[:, :, at, head] = self.others[layer][:, :, at, head]
            live = sorted(places & self._shadows(kept[head]))
            if live:
                brings, other = self._live(layer, head, normed, live), self.others[layer][:, :, live, head]
                z[:, :, live, head] = torch.where(self._mask(live, kept[head])[..., None], brings, other)
        return z

    def _by_head(self, kept: Sites) -> dict[tuple[int, int], set[int]]:
        """Places by their number, for every head that is kept anywhere."""
        number = {place: n for n, place in enumerate(self.places)}
        found: dict[tuple[int, int], set[int]] = {}
        for site in kept:
            found.setdefault((site.layer, site.head), set()).add(number[site.place])
        return found

    def _shadows(self, places: set[int]) -> set[int]:
        """With the places that stand for some of them in some rows."""
        names = len(self.places) // 2
        return places | {n - names + 1 for n in places if names <= n < 2 * names - 1}

    def _mask(self, at: list[int], kept: set[int]) -> Bool[Tensor, "pair watched place"]:
        """Where a head is kept, under this name or the other."""
        names = len(self.places) // 2
        columns = []
        for n in at:
            mine = torch.full(self.position.shape[:2], n in kept)
            if 1 <= n < names and n - 1 + names in kept:
                mine = mine | self._twice[..., n - 1]
            columns.append(mine)
        return torch.stack(columns, dim=-1)

    def _live(self, layer: int, head: int, normed: Streams, at: list[int]) -> Float[Tensor, "pair watched at d_head"]:
        """What a head brings to some places by its live query; off the chain it reads the resampled values."""
        p, name = self.model.parameters, f"blocks.{layer}.attn."
        watched = self.position.shape[1]
        q = F.linear(normed[:, :, at], p[name + "W_Q"][head].T, p[name + "b_Q"][head]) * self.model.scale
        here = self.position[:, :, at].flatten(1)
        scores = q.flatten(1, 2) @ self.keys[layer][head]
        future = torch.arange(scores.shape[-1]) > here[..., None]
        pattern = scores.masked_fill_(future, -torch.inf).softmax(-1)
        z: Tensor = (pattern @ self.values[layer][head]).unflatten(1, (watched, -1))
        if layer == 0:
            return z
        v = F.linear(normed, p[name + "W_V"][head].T, p[name + "b_V"][head]) - self.values_there[layer][head]
        there = self.position[:, :, None].expand(-1, -1, len(at), -1)
        weight = pattern.unflatten(1, (watched, -1)).gather(3, there) * self._counts[:, :, None]
        z += weight @ v
        return z

    def _end(self, layer: int, streams: Streams, z: Heads, touched: set[int], old: Streams | None) -> Streams:
        """A block's output at the places that were touched; elsewhere as it was."""
        if not touched:
            assert old is not None
            return old
        at = sorted(touched)
        after = self.model.block_end(streams[:, :, at] + attn_out_at(self.model, z[:, :, at], layer), layer)
        if len(at) == len(self.places):
            return after
        made = torch.zeros_like(streams) if old is None else old.clone()
        made[:, :, at] = after
        return made
