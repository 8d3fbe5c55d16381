"""Runs of the model at the places of a tree only, with every head output outside it taken from another sequence."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hopinterp.decompile.nodes import START, Node, Nodes, Place, connected
from hopinterp.decompile.routes import Routing
from hopinterp.decompile.watched_rows import Rows
from hopinterp.models import blocks
from hopinterp.models.fused import FusedTransformer
from hopinterp.task import Batch

Stream = Float[Tensor, "row d_model"]
Heads = Float[Tensor, "row head d_head"]
Brought = Float[Tensor, "row d_head"]


@dataclass(frozen=True, eq=False)
class Outside:
    """What sequences bring to a tree from outside it, at every position: head outputs, [sequence, position, head, d_head].

    Attributes:
        z: of each block in the model's own run, with its own patterns: what a partner stands in with.
        null: of each block, what the rules for null rows gather from that run's values.
        v: of each block, the values themselves.
    """

    model: FusedTransformer
    routing: Routing
    batch: Batch
    z: list[Tensor]
    null: list[Tensor]
    v: list[Tensor]
    _routed: list[Tensor] = field(default_factory=list)  # the stream before each block of the routed run, as far as it went

    @classmethod
    @torch.no_grad()
    def of(cls, model: FusedTransformer, routing: Routing, batch: Batch) -> Outside:
        """Run the model on the batch."""
        outside = cls(model, routing, batch, [], [], [], [model.embed(batch.tokens)])
        x = outside._routed[0]
        for layer in range(model.spec.n_layers):
            q, k, v = model.qkv(model.norm(x, f"blocks.{layer}.ln1"), layer)
            z = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=model.scale)
            outside.z.append(z.transpose(1, 2))
            outside.v.append(v.transpose(1, 2).clone())  # a view would keep the queries and keys too
            first = torch.tensor([route.null == "first" for route in routing.routes[layer]], device=v.device)
            n = v.shape[2]
            null = torch.where(first[:, None, None], v[:, :, :1], routing.null_mean[layer, :, :n, :n] @ v)
            outside.null.append(null.transpose(1, 2))
            if layer + 1 < model.spec.n_layers:
                x = model.block_end(x + model.attn_out(z, layer), layer)
        return outside

    @torch.no_grad()
    def live(self, layer: int) -> Float[Tensor, "sequence position head d_head"]:
        """What a block's heads bring when all patterns are set by rule: for leaves, which no single place feeds."""
        for earlier in range(len(self._routed) - 1, layer):
            z = self._by_rule(earlier)
            mid = self._routed[earlier] + self.model.attn_out(z, earlier)
            self._routed.append(self.model.block_end(mid, earlier))
        return self._by_rule(layer).transpose(1, 2)

    def _by_rule(self, layer: int) -> Float[Tensor, "sequence head position d_head"]:
        _, _, v = self.model.qkv(self.model.norm(self._routed[layer], f"blocks.{layer}.ln1"), layer)
        z: Tensor = self.routing.pattern(self.batch, layer) @ v
        return z


def streams_before(
    model: FusedTransformer, tokens: Int[Tensor, "batch position"]
) -> list[Float[Tensor, "batch position d_model"]]:
    """The stream before every block, in the model's own run."""
    streams = [model.embed(tokens)]
    for layer in range(model.spec.n_layers - 1):
        q, k, v = model.qkv(model.norm(streams[-1], f"blocks.{layer}.ln1"), layer)
        z = blocks.attend(q, k, v, model.scale)
        streams.append(model.block_end(streams[-1] + model.attn_out(z, layer), layer))
    return streams


def values_at(
    model: FusedTransformer, normed: Float[Tensor, "*batch d_model"], layer: int
) -> Float[Tensor, "*batch head d_head"]:
    """What each head of a block would read at some places, from the normed stream there."""
    p, name = model.parameters, f"blocks.{layer}.attn."
    weight = p[name + "W_V"].transpose(1, 2).flatten(0, 1)
    found: Tensor = F.linear(normed, weight, p[name + "b_V"].flatten()).unflatten(-1, (model.spec.n_heads, -1))
    return found


def attn_out_at(
    model: FusedTransformer, z: Float[Tensor, "*batch head d_head"], layer: int
) -> Float[Tensor, "*batch d_model"]:
    """What a block's attention adds at some places, from what its heads gather there."""
    p, name = model.parameters, f"blocks.{layer}.attn."
    return blocks.attn_out(z, p[name + "W_O"], p[name + "b_O"])


@dataclass(frozen=True, eq=False)
class State:
    """One tree's run: the stream at each place it needs, before every block and after the last, the values read, and the
    answers; no rows of these, where the run ended before the last block."""

    nodes: Nodes
    streams: list[dict[Place, Stream]]
    values: list[dict[Place, Heads]]
    logits: Float[Tensor, "_row d_vocab"]


@dataclass(frozen=True, eq=False)
class TreeRunner:
    """Runs the model at the places of a tree only: kept nodes are live, every other head output is the partner's.

    A node that is not kept leaves its share of the head's output to the partner's: what that head brings in the partner's
    own run, with its own patterns, at the same place of the partner's chain (at the same position, where that chain is
    shorter). What is put in is thus a whole story of another chain, of which nothing tells of this one. On rows that are
    null for a kept node its head does what its rule says of null rows, with the partner's values: nothing of the chain is
    read there. Embeddings and MLPs stay live at every place. Two places can be one position (find^j(i) − 1 is find^(j+1)(i)
    for one link in three): it is computed for each of them, with what is kept there.

    Attributes:
        until: the block before which runs end, for trees of earlier blocks' nodes whose answers are not asked for.
    """

    model: FusedTransformer
    routing: Routing
    rows: Rows
    outside: Outside
    until: int | None = None
    _cache: dict[object, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, model: FusedTransformer, routing: Routing, rows: Rows) -> TreeRunner:
        """With what lies outside the tree computed from the rows' sequences."""
        return cls(model, routing, rows, Outside.of(model, routing, rows.batch))

    def on(self, rows: Rows) -> TreeRunner:
        """The same on some of its rows."""
        return replace(self, rows=rows, _cache={})

    # -- what does not depend on the tree -----------------------------------------------------------------------------

    def _position(self, place: Place) -> Int[Tensor, " row"]:
        return place.of(self.rows.chain)

    def _embedding(self, place: Place) -> Stream:
        key = ("embed", place)
        if key not in self._cache:
            at = self._position(place).clamp_min(0)
            p = self.model.parameters
            tokens = self.rows.batch.tokens[self.rows.sequence, at]
            self._cache[key] = p["embed.W_E"][tokens] + p["pos_embed.W_pos"][at]
        return self._cache[key]

    def _outside(self, name: str, layer: int, place: Place) -> Heads:
        key = (name, layer, place)
        if key not in self._cache:
            own, rows = self._position(place).clamp_min(0), self.rows
            there = place.of(rows.partner_chain)
            at = torch.where(there >= 0, there, own) if name == "z" else own
            self._cache[key] = self._everywhere(name, layer)[rows.sequence if name == "live" else rows.partner, at]
        return self._cache[key]

    def _everywhere(self, name: str, layer: int) -> Tensor:
        if name != "live":
            return (self.outside.z if name == "z" else self.outside.null)[layer]
        if (name, layer) not in self._cache:
            self._cache[name, layer] = self.outside.live(layer)
        return self._cache[name, layer]

    def _share(self, node: Node) -> tuple[Float[Tensor, "row 1"], Bool[Tensor, "row 1"]]:
        """A node's share of its head's output in every row, and where it reads its target and not a null row's rule."""
        key = ("share", node)
        if key not in self._cache:
            parts = self.routing.routes[node.layer][node.head].parts
            valid = [self._found(replace(node, kind=part.kind, hop=part.hop)) for part in parts]
            mine = next(n for n, part in enumerate(parts) if (part.kind, part.hop) == (node.kind, node.hop))
            share = torch.full(valid[0].shape, parts[mine].share)
            if len(parts) == 2:
                other = valid[1 - mine]
                share = torch.where(valid[mine] & ~other, 1.0, torch.where(~valid[mine] & other, 0.0, share))
            self._cache[key] = share[:, None]
            self._cache["valid", node] = valid[mine][:, None]
        return self._cache[key], self._cache["valid", node]

    def _found(self, node: Node) -> Bool[Tensor, " row"]:
        """Where the position that a part looks at exists (whether or not the tree has a name for it)."""
        here = self._position(node.place)
        if node.hop is None:
            return here >= 0
        find = self.rows.batch.find[self.rows.sequence, node.hop, here.clamp_min(0)]
        return (find > 0) & (here >= 0)

    # -- runs ---------------------------------------------------------------------------------------------------------

    def given(self, state: State, node: Node, brings: Brought) -> State:
        """A tree whose node brings something else than what it reads."""
        return self.given_all(state, {node: brings})

    def given_all(self, state: State, brings: Mapping[Node, Brought]) -> State:
        """A tree of which several nodes bring something else than what they read."""
        return self._update(state, state.nodes, brings)

    def brings(self, state: State, node: Node) -> Brought:
        """What a node brings in a tree's run, before its share is taken."""
        if node.target is None:
            return self._outside("live", node.layer, node.place)[:, node.head]
        _, valid = self._share(node)
        null = self._outside("null", node.layer, node.place)[:, node.head]
        return torch.where(valid, state.values[node.layer][node.target][:, node.head], null)

    def run(self, nodes: Nodes) -> State:
        """The tree from scratch."""
        nodes = connected(nodes)
        none = torch.empty(len(self.rows), 0)
        empty = State(frozenset(), [{} for _ in range(self._depth + 1)], [{} for _ in range(self._depth)], none)
        return self._update(empty, nodes)

    def without(self, state: State, removed: Collection[Node]) -> State:
        """A tree that lacks some nodes, computed only where it differs."""
        return self._update(state, connected(state.nodes - frozenset(removed)))

    def wrong(self, state: State) -> Bool[Tensor, " row"]:
        """Where a tree answers wrong."""
        return state.logits.argmax(-1) != self.rows.answer

    def error(self, state: State) -> float:
        """Share of rows that a tree answers wrong."""
        return float(self.wrong(state).float().mean())

    @property
    def _depth(self) -> int:
        return self.model.spec.n_layers if self.until is None else self.until

    @torch.no_grad()
    def _update(self, old: State, nodes: Nodes, given: Mapping[Node, Brought] | None = None) -> State:
        """Layer by layer: the places the tree needs, of which those are computed anew whose nodes or sources changed."""
        needed = _needed(nodes, self._depth)
        by_place = _by_place(nodes, self._depth)
        before = _by_place(old.nodes, self._depth)
        streams: list[dict[Place, Stream]] = [{p: self._embedding(p) for p in needed[0]}]
        values: list[dict[Place, Heads]] = []
        changed: set[Place] = set() if old.streams[0] else set(needed[0])
        for layer in range(self._depth):
            read = {n.target for ns in by_place[layer].values() for n in ns if n.target is not None}
            fresh = [p for p in read if p in changed or p not in old.values[layer]]
            values.append({p: old.values[layer][p] for p in read if p not in fresh})
            values[-1] |= self._values(layer, {p: streams[-1][p] for p in fresh})
            moved = [
                p
                for p in needed[layer + 1]
                if p in changed
                or p not in old.streams[layer + 1]
                or by_place[layer].get(p) != before[layer].get(p)
                or any(n.target in changed or (given and n in given) for n in by_place[layer].get(p, ()))
            ]
            streams.append({p: old.streams[layer + 1][p] for p in needed[layer + 1] if p not in moved})
            streams[-1] |= self._step(layer, {p: streams[layer][p] for p in moved}, by_place[layer], values[-1], given or {})
            changed = set(moved)
        logits = old.logits
        if self.until is None and (changed or not logits.shape[1]):
            logits = self.model.unembed(streams[-1][START])
        return State(nodes, streams, values, logits)

    def _values(self, layer: int, streams: Mapping[Place, Stream]) -> dict[Place, Heads]:
        if not streams:
            return {}
        normed = self.model.norm(torch.stack(list(streams.values())), f"blocks.{layer}.ln1")
        return dict(zip(streams, values_at(self.model, normed, layer), strict=True))

    def _step(
        self,
        layer: int,
        streams: Mapping[Place, Stream],
        nodes: Mapping[Place, Collection[Node]],
        values: Mapping[Place, Heads],
        given: Mapping[Node, Brought],
    ) -> dict[Place, Stream]:
        """One block at some places."""
        if not streams:
            return {}
        z = torch.stack([self._z(layer, place, nodes.get(place, ()), values, given) for place in streams])
        after = self.model.block_end(torch.stack(list(streams.values())) + attn_out_at(self.model, z, layer), layer)
        return dict(zip(streams, after, strict=True))

    def _z(
        self,
        layer: int,
        place: Place,
        nodes: Collection[Node],
        values: Mapping[Place, Heads],
        given: Mapping[Node, Brought],
    ) -> Heads:
        """All heads' outputs at one place."""
        partner = self._outside("z", layer, place)
        if not nodes:
            return partner
        z = partner.clone()
        for node in nodes:
            share, valid = self._share(node)
            if node.target is None:
                brings = given[node] if node in given else self._outside("live", layer, place)[:, node.head]
            else:
                read = given[node] if node in given else values[node.target][:, node.head]
                brings = torch.where(valid, read, self._outside("null", layer, place)[:, node.head])
            z[:, node.head] += share * (brings - partner[:, node.head])
        return z


def _needed(nodes: Nodes, depth: int) -> list[set[Place]]:
    """The places whose stream a tree needs before every block, and after the last."""
    needed = [{START}]
    for layer in reversed(range(depth)):
        needed.append(needed[-1] | {n.target for n in nodes if n.layer == layer and n.target is not None})
    return needed[::-1]


def _by_place(nodes: Nodes, depth: int) -> list[dict[Place, set[Node]]]:
    found: list[dict[Place, set[Node]]] = [{} for _ in range(depth)]
    for node in nodes:
        found[node.layer].setdefault(node.place, set()).add(node)
    return found
