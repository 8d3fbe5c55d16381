"""Runs of a circuit with live queries, patterns and values, clean keys, and all else from another sequence."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
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
from hopinterp.seeds import seeded
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
        generator = seeded(seed)
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

    def parts(self, most: int) -> Iterator[Pairs]:
        """The same pairs in parts of at most so many."""
        for part in torch.arange(len(self.base)).split(most):
            yield replace(self, base=self.base[part], partner=self.partner[part], position=self.position[part])

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


Streams = Float[Tensor, "place pair watched d_model"]
Written = Float[Tensor, "written pair watched d_model"]  # of all places, or of i alone
Heads = Float[Tensor, "place pair watched head d_head"]


@dataclass(frozen=True, eq=False)
class LiveState:
    """One circuit's run.

    Attributes:
        kept: what it keeps; `by_head`: places by their number, for each layer and head.
        streams: before every block, and after the last at i alone.
        values: of each block, less those of a stream whose every head output is the partner's.
        z: head outputs of each block.
    """

    kept: Sites
    by_head: Mapping[tuple[int, int], frozenset[int]]
    streams: list[Float[Tensor, "_ pair watched d_model"]]
    values: list[Heads]
    z: list[Heads]
    logits: Float[Tensor, "pair watched d_vocab"]

    def of_pairs(self, start: int, end: int) -> LiveState:
        """Of some of the pairs, as views."""
        streams, values, z = ([x[:, start:end] for x in xs] for xs in (self.streams, self.values, self.z))
        return LiveState(self.kept, self.by_head, streams, values, z, self.logits[start:end])

    @classmethod
    def joined(cls, states: Sequence[LiveState], order: Int[Tensor, " pair"]) -> LiveState:
        """The run of one circuit on the pairs of several runs, in another order."""
        streams, values, z = (
            [torch.cat(blocks, 1).index_select(1, order) for blocks in zip(*lists, strict=True)]
            for lists in zip(*((state.streams, state.values, state.z) for state in states), strict=True)
        )
        logits = torch.cat([state.logits for state in states])[order]
        return cls(states[0].kept, states[0].by_head, streams, values, z, logits)


@dataclass(frozen=True, eq=False)
class LiveRunner:
    """Runs circuits: sites that are kept are live, every other head output is the partner's, at the same position.

    A kept head at a place computes its query from the stream there, looks with it at the keys of the base's own clean run,
    and brings the values that its pattern gathers: at places of the chain and at those one before, those of the circuit's
    streams; at all other positions those of a stream whose every head output is the partner's. Embeddings and MLPs are live
    everywhere. Where find^j(i) − 1 is find^(j+1)(i) what is kept under one of the names is kept.

    Attributes:
        places: of the chain of i, then those one before each.
        keys: of each block, of the clean run.
        values: of each block, of a stream whose every head output is the partner's; `values_there`: at the places.
        empty: the circuit that keeps nothing.
        position: where the places are.
    """

    model: FusedTransformer
    pairs: Pairs
    places: tuple[Place, ...]
    keys: list[Float[Tensor, "head pair d_head position"]]
    values: list[Float[Tensor, "head pair position d_head"]]
    values_there: list[Heads]
    empty: LiveState
    position: Int[Tensor, "pair watched place"]

    @classmethod
    @torch.no_grad()
    def of(cls, model: FusedTransformer, pairs: Pairs, hops: int) -> LiveRunner:
        """With the clean runs and what stands in, on the places of k hops."""
        places = tuple(Place(at, back) for back in (0, 1) for at in range(hops + 1))
        position = pairs.places(places)
        used, within = torch.cat([pairs.base, pairs.partner]).unique(return_inverse=True)
        base, other = within.split(len(pairs.base))
        x = model.embed(pairs.batch.tokens[used, : int(position.max()) + 1])
        # nothing after the last place of a pair is seen: rows of the stream whose every head output is the partner's
        pair, seen = (torch.arange(x.shape[1]) <= position.flatten(1).amax(1)[:, None]).nonzero().T
        off = x[base[pair], seen]
        row = torch.zeros(len(pairs.base), x.shape[1], dtype=torch.long).index_put((pair, seen), torch.arange(len(pair)))
        there = row[torch.arange(len(row))[:, None, None], position].permute(2, 0, 1)
        partner = other[:, None, None]
        keys, values, values_there, others, streams = [], [], [], [], []
        for layer in range(model.spec.n_layers):
            q, k, v = model.qkv(model.norm(x, f"blocks.{layer}.ln1"), layer)
            z = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=model.scale)
            keys.append(k[base].permute(1, 0, 3, 2).contiguous())
            by_position = z.transpose(1, 2)
            others.append(by_position[partner, position].permute(2, 0, 1, 3, 4).contiguous())
            off_values = values_at(model, model.norm(off, f"blocks.{layer}.ln1"), layer)
            values.append(off_values[row].permute(2, 0, 1, 3).contiguous())
            values_there.append(off_values[there])
            streams.append(off[there])
            if layer + 1 < model.spec.n_layers:
                x = model.block_end(x + model.attn_out(z, layer), layer)
                aside = by_position[other[pair], seen]
                off = model.block_end(off + attn_out_at(model, aside, layer), layer)
        last = model.spec.n_layers - 1
        streams.append(model.block_end(streams[last][:1] + attn_out_at(model, others[last][:1], last), last))
        nothing = [torch.zeros_like(v) for v in values_there]
        empty = LiveState(frozenset(), {}, streams, nothing, others, model.unembed(streams[-1][0]))
        return cls(model, pairs, places, keys, values, values_there, empty, position)

    def of_pairs(self, start: int, end: int) -> LiveRunner:
        """For some of the pairs, with views of this one's tensors."""
        pairs = self.pairs
        base, partner, position = (x[start:end] for x in (pairs.base, pairs.partner, pairs.position))
        some = replace(pairs, base=base, partner=partner, position=position)
        keys, values, there = ([x[:, start:end] for x in xs] for xs in (self.keys, self.values, self.values_there))
        empty, position = self.empty.of_pairs(start, end), self.position[start:end]
        return LiveRunner(self.model, some, self.places, keys, values, there, empty, position)

    def reordered(self, order: Int[Tensor, " pair"]) -> LiveRunner:
        """With its pairs in another order. It takes this one's place, tensor by tensor: both at once would be a second
        model's worth of memory."""
        pairs, empty = self.pairs, self.empty
        some = replace(pairs, base=pairs.base[order], partner=pairs.partner[order], position=pairs.position[order])
        for tensors in (self.keys, self.values, self.values_there, empty.streams, empty.values, empty.z):
            for n, tensor in enumerate(tensors):
                tensors[n] = tensor.index_select(1, order)
        return replace(self, pairs=some, empty=replace(empty, logits=empty.logits[order]), position=self.position[order])

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

    @cached_property
    def _readers(self) -> list[set[int]]:
        """For each place those from which it can be seen: the place itself, and all that in any row are no earlier."""
        no_later = self.position[..., None] <= self.position[..., None, :]  # pair, watched, seen, seeing
        seen = (no_later & (self._counts > 0)[..., None]).flatten(0, 1).any(0)
        return [set(row.nonzero()[:, 0].tolist()) | {number} for number, row in enumerate(seen)]

    # -- runs ---------------------------------------------------------------------------------------------------------

    def run(self, kept: Iterable[Site]) -> LiveState:
        """A circuit from scratch."""
        return self._update(self.empty, frozenset(kept))

    def change(self, state: LiveState, *, add: Collection[Site] = (), remove: Collection[Site] = ()) -> LiveState:
        """A circuit with some sites more or fewer, computed only where it differs."""
        return self._update(state, (state.kept | frozenset(add)) - frozenset(remove))

    def wrong(self, state: LiveState) -> Bool[Tensor, "pair watched"]:
        """Where a circuit answers wrong."""
        return state.logits.argmax(-1) != self.pairs.answer

    def margin(self, state: LiveState) -> Float[Tensor, "pair watched"]:
        """The right answer's logit minus the largest other one."""
        answer = self.pairs.answer[..., None]
        return (state.logits.gather(-1, answer) - state.logits.scatter(-1, answer, -torch.inf).amax(-1, keepdim=True))[
            ..., 0
        ]

    def error(self, state: LiveState) -> float:
        """Share of positions that a circuit answers wrong."""
        return float(self.wrong(state).float().mean())

    @torch.no_grad()
    def _update(self, old: LiveState, kept: Sites) -> LiveState:
        """Block by block: heads are run again where their sites changed or read a stream that did."""
        before, now = old.by_head, self._by_head(old, kept)
        streams, values, zs, nowhere = [old.streams[0]], [], [], frozenset[int]()
        moved: set[int] = set()  # places whose stream before the block is not that of the old run
        told: set[int] = set()  # those whose stream may be another than that of the empty circuit
        for layer in range(self._depth):
            values.append(self._values(layer, streams[layer], old.values[layer], moved, told))
            again: dict[int, set[int]] = {}
            for head in range(self.model.spec.n_heads):
                mine, was = now.get((layer, head), nowhere), before.get((layer, head), nowhere)
                differs = self._shadows((mine ^ was) | mine.intersection(set().union(*(self._readers[n] for n in moved))))
                if layer + 1 == self._depth:
                    differs &= {0}
                if differs:
                    again[head] = differs
            live = _Live(layer, streams[layer], values[layer], sorted(told))
            zs.append(self._heads(live, old.z[layer], again, {head: now.get((layer, head), nowhere) for head in again}))
            told = told.union(*(self._shadows(mine) for (at, _), mine in now.items() if at == layer))
            moved = moved.union(*again.values())
            if layer + 1 == self._depth:
                moved &= {0}
            streams.append(self._end(live, zs[layer], moved, told, old.streams[layer + 1]))
        logits = self.model.unembed(streams[-1][0]) if moved else old.logits
        return LiveState(kept, now, streams, values, zs, logits)

    @property
    def _depth(self) -> int:
        return self.model.spec.n_layers

    def _values(self, layer: int, streams: Streams, old: Heads, moved: set[int], told: set[int]) -> Heads:
        """A block's values, less those of the empty circuit, with those of some places computed again."""
        if not moved:
            return old
        values = old.clone()
        values.index_fill_(0, _numbers(moved - told), 0)
        if moved & told:
            at = _numbers(moved & told)
            normed = self.model.norm(streams.index_select(0, at), f"blocks.{layer}.ln1")
            found = values_at(self.model, normed, layer) - self.values_there[layer].index_select(0, at)
            values.index_copy_(0, at, found)
        return values

    def _heads(self, live: _Live, z: Heads, again: Mapping[int, set[int]], kept: Mapping[int, frozenset[int]]) -> Heads:
        """A block's head outputs, run again for some heads at some places: live where kept, else the partner's."""
        if not again:
            return z
        z = z.clone()
        for head, places in again.items():
            made, partner = z[:, :, :, head], self.empty.z[live.layer]
            at = sorted(places & self._shadows(kept[head]))
            if len(at) < len(places):
                aside = _numbers(places.difference(at))
                made.index_copy_(0, aside, partner.index_select(0, aside)[:, :, :, head])
            if at:
                mask, here = self._mask(at, kept[head])[..., None], _numbers(at)
                other = partner.index_select(0, here)[:, :, :, head]
                made.index_copy_(0, here, torch.where(mask, self._brings(live, head, at), other))
        return z

    def _by_head(self, old: LiveState, kept: Sites) -> dict[tuple[int, int], frozenset[int]]:
        """Places by their number, for every head that is kept anywhere; only what changed is looked at."""
        found = dict(old.by_head)
        for site in old.kept ^ kept:
            unit = site.layer, site.head
            found[unit] = found.get(unit, frozenset()) ^ {self._number[site.place]}
        return found

    @cached_property
    def _number(self) -> dict[Place, int]:
        return {place: n for n, place in enumerate(self.places)}

    def _shadows(self, places: Collection[int]) -> set[int]:
        """With the places that stand for some of them in some rows."""
        names = len(self.places) // 2
        return {*places, *(n - names + 1 for n in places if names <= n < 2 * names - 1)}

    def _mask(self, at: list[int], kept: Collection[int]) -> Bool[Tensor, "place pair watched"]:
        """Where a head is kept, under this name or the other."""
        names = len(self.places) // 2
        columns = []
        for n in at:
            mine = torch.full(self.position.shape[:2], n in kept)
            if 1 <= n < names and n - 1 + names in kept:
                mine = mine | self._twice[..., n - 1]
            columns.append(mine)
        return torch.stack(columns)

    def _brings(self, live: _Live, head: int, at: list[int]) -> Float[Tensor, "place pair watched d_head"]:
        """What a head brings to some places by its live query; off the chain it reads the resampled values."""
        p, layer, name = self.model.parameters, live.layer, f"blocks.{live.layer}.attn."
        normed = self.model.norm(live.streams.index_select(0, _numbers(at)), f"blocks.{layer}.ln1")
        q = F.linear(normed, p[name + "W_Q"][head].T, p[name + "b_Q"][head]) * self.model.scale
        here = self.position[:, :, at].flatten(1)
        scores = q.permute(1, 2, 0, 3).flatten(1, 2) @ self.keys[layer][head]
        future = torch.arange(scores.shape[-1]) > here[..., None]
        pattern = scores.masked_fill_(future, -torch.inf).softmax(-1)
        z: Tensor = (pattern @ self.values[layer][head]).unflatten(1, (-1, len(at)))
        if told := live.told:
            there = self.position[:, :, None, told].expand(-1, -1, len(at), -1)
            weight = pattern.unflatten(1, (-1, len(at))).gather(3, there) * self._counts[:, :, None, told]
            z += weight @ live.read[head]
        return z.permute(2, 0, 1, 3)

    def _end(self, live: _Live, z: Heads, moved: set[int], told: set[int], old: Written) -> Written:
        """A block's output at the places that moved; elsewhere as it was."""
        if not moved:
            return old
        made, at, aside = old.clone(), _numbers(moved & told), _numbers(moved - told)
        made.index_copy_(0, aside, self.empty.streams[live.layer + 1].index_select(0, aside))
        if len(at):
            mid = live.streams.index_select(0, at) + attn_out_at(self.model, z.index_select(0, at), live.layer)
            made.index_copy_(0, at, self.model.block_end(mid, live.layer))
        return made


def _numbers(places: Iterable[int]) -> Int[Tensor, " place"]:
    """Some places' numbers, in order, for index_select and its like: much faster than indexing by a list."""
    return torch.tensor(sorted(places), dtype=torch.long)


@dataclass(frozen=True, eq=False)
class _Live:
    """What the heads of a block read in one circuit's run; `told`: places whose values are not those of the empty one."""

    layer: int
    streams: Streams
    values: Heads
    told: list[int]

    @cached_property
    def read(self) -> Float[Tensor, "head pair watched told d_head"]:
        """The values at those places."""
        return self.values.index_select(0, _numbers(self.told)).permute(3, 1, 2, 0, 4).contiguous()
