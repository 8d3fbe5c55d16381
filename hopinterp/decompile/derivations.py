"""Which heads at which chain positions carry the answer: the tree of jumps that add up to k, with all else resampled."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hopinterp.decompile.routes import Kind, Part, Routing, run_routed
from hopinterp.errors import HopInterpError
from hopinterp.models.fused import FusedTransformer
from hopinterp.task import Batch, HopTask


@dataclass(frozen=True, order=True)
class Place:
    """A position named by the chain of i: find^at(i), or `back` positions before it."""

    at: int
    back: int = 0

    @property
    def letter(self) -> int | None:
        """j of the letter X_{find^j(i)} that stands there; the letter before find^j(i) is that of find^(j−1)(i). None for
        the letter two before, which the chain does not name."""
        return self.at - self.back if self.back <= 1 and self.at >= self.back else None

    def of(self, chain: Int[Tensor, "row chain"]) -> Int[Tensor, " row"]:
        """The position in every sequence; −1 where find^at(i) is null."""
        found = chain[:, self.at]
        return torch.where(found > self.back, found - self.back, -1)


START = Place(0)
FURTHEST_BACK = 2


@dataclass(frozen=True, order=True)
class Node:
    """One part of a head's rule at one place: a value that the head brings there.

    Attributes:
        layer, head: which head.
        place: where it stands, on the chain of i.
        kind, hop: the part of its rule; see `routes.Part`.
    """

    layer: int
    head: int
    place: Place
    kind: Kind
    hop: int | None = None

    @property
    def target(self) -> Place | None:
        """The place that it reads; None where that is no single place of the chain, so that nothing lies behind it.

        From a position before find^j(i), only the rules `self` and previous token lead to a place with a name.
        """
        if self.kind == "self":
            return self.place
        if self.kind == "before hop" and self.hop == 0:
            return Place(self.place.at, self.place.back + 1) if self.place.back < FURTHEST_BACK else None
        if self.hop is None or self.place.back:
            return None
        return Place(self.place.at + self.hop, int(self.kind == "before hop"))

    @property
    def jump(self) -> int:
        """How many hops further the letter is that stands where it reads; 0 where the chain does not name it."""
        letter = None if self.target is None else self.target.letter
        return 0 if letter is None or self.place.letter is None else letter - self.place.letter

    def to_json(self) -> dict[str, object]:
        """As the issue's JSON has it."""
        place = {"at": self.place.at, "before": self.place.back > 0}
        return {"layer": self.layer, "head": self.head, **place, "kind": self.kind, "hop": self.hop}

    def __str__(self) -> str:
        where = f"{self.place.at}{f'-{self.place.back}' if self.place.back else ''}"
        return f"{self.layer}.{self.head}@{where} {Part(self.kind, self.hop)}"


Nodes = frozenset[Node]


def connected(nodes: Iterable[Node]) -> Nodes:
    """The nodes that a path from i reaches: those at i, and those at a place that a connected node of a later block reads."""
    needed, found = {START}, set()
    by_layer: dict[int, list[Node]] = {}
    for node in nodes:
        by_layer.setdefault(node.layer, []).append(node)
    for layer in sorted(by_layer, reverse=True):
        here = [node for node in by_layer[layer] if node.place in needed]
        found |= set(here)
        needed |= {node.target for node in here if node.target is not None}
    return frozenset(found)


def reachable(routing: Routing) -> Nodes:
    """Every node that the routes can reach from i, up to the place one beyond the answer's.

    A head that looks at the hop token is no node: what stands there is the same in all sequences of one k.
    """
    needed, found = {START}, set()
    for layer in reversed(range(len(routing.routes))):
        here = {
            Node(layer, head, place, part.kind, part.hop)
            for head, route in enumerate(routing.routes[layer])
            for part in route.parts
            for place in needed
            if part.kind != "first"
        }
        # off the chain, and beyond what can name the answer, nothing is live
        here = {
            n
            for n in here
            if (n.target is None and n.hop is None) or (n.target and n.target.at <= min(routing.hops + 1, routing.task.max_hops))
        }
        found |= here
        needed |= {node.target for node in here if node.target is not None}
    return frozenset(found)


def derivations(nodes: Iterable[Node], hops: int) -> dict[tuple[int, ...], list[tuple[Node, ...]]]:
    """Paths of nodes, last block first, from i to a place where the letter of find^hops(i) stands; by their jumps."""
    found: dict[tuple[int, ...], list[tuple[Node, ...]]] = {}
    nodes = list(nodes)

    def walk(place: Place, layer: int, path: tuple[Node, ...]) -> None:
        if place.letter == hops:
            jumps = tuple(node.jump for node in path if node.target != node.place)
            found.setdefault(jumps, []).append(path)
        for node in nodes:
            if node.place == place and node.layer < layer and node.target is not None:
                walk(node.target, node.layer, (*path, node))

    walk(START, 1 + max((node.layer for node in nodes), default=0), ())
    return found


def on_derivations(nodes: Iterable[Node], hops: int) -> Nodes:
    """The nodes that lie on a derivation."""
    nodes = frozenset(nodes)
    # from i down: connected; from the answer up: those from whose target the answer's letter can be had
    good: dict[int, set[Place]] = {}
    alive: set[Node] = set()
    enough: set[Place] = {Place(hops), Place(hops + 1, 1)}
    for layer in range(1 + max((n.layer for n in nodes), default=-1)):
        good[layer] = set(enough)
        here = {n for n in nodes if n.layer == layer and n.target in enough}
        alive |= here
        enough |= {n.place for n in here}
    return connected(nodes) & connected(alive)


def reach(nodes: Iterable[Node], n_layers: int) -> list[int]:
    """The most hops that a node of a block ≤ ℓ makes known: its jump and what is known, by earlier nodes, where it reads."""
    nodes = sorted(nodes)
    known: dict[Place, int] = {}  # place -> the furthest hop known at it, counted from i's letter at START
    found, most = [], 0
    for layer in range(n_layers):
        new = {}
        for node in (n for n in nodes if n.layer == layer and n.target is not None):
            assert node.target is not None
            if node.target.letter is None or node.place.letter is None:
                continue
            furthest = max(known.get(node.target, 0), node.target.letter)
            new[node.place] = max(new.get(node.place, 0), furthest)
            most = max(most, furthest - node.place.letter)
        for place, furthest in new.items():
            known[place] = max(known.get(place, 0), furthest)
        found.append(most)
    return found


# -- pairs ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Rows:
    """Positions whose answers are watched, each with another sequence that stands in for all that is not kept.

    Attributes:
        batch: the sequences; all ask for one k.
        sequence, partner: which sequence each row watches, and which one stands in.
        position: i, drawn among the scored positions.
    """

    batch: Batch
    sequence: Int[Tensor, " row"]
    partner: Int[Tensor, " row"]
    position: Int[Tensor, " row"]

    @property
    def answer(self) -> Int[Tensor, " row"]:
        """hop_k(X)_i as a token."""
        return self.batch.labels[self.sequence, self.position]

    @cached_property
    def chain(self) -> Int[Tensor, "row chain"]:
        """find^j(i), j = 0 … max_hops."""
        return self.batch.find[self.sequence, :, self.position]

    def __len__(self) -> int:
        return len(self.sequence)

    @classmethod
    def draw(
        cls, task: HopTask, hops: int, sequences: int, *, positions: int = 2, partners: int = 2, seed: int = 0
    ) -> Rows:
        """`positions` scored positions of each sequence, each with `partners` other sequences of the same draw.

        Raises:
            HopInterpError: fewer sequences than partners need, or none of them has a chain of k links.
        """
        if sequences <= partners:
            raise HopInterpError(f"sequences is {sequences}; with {partners} partners each, {partners + 1} are needed")
        generator = torch.Generator().manual_seed(seed)
        batch = task.sample(sequences, hops=hops, generator=generator)
        order = torch.rand(batch.tokens.shape, generator=generator).masked_fill(~batch.scored, -1).argsort(1, descending=True)
        chosen = order[:, :positions]
        usable = batch.scored.gather(1, chosen)
        shift = torch.rand(sequences, sequences - 1, generator=generator).argsort(1)[:, :partners] + 1
        partner = (torch.arange(sequences)[:, None] + shift) % sequences
        sequence, which = usable.nonzero().T
        if not len(sequence):
            raise HopInterpError(f"none of {sequences} sequences has a chain of {hops} links")
        position = chosen[sequence, which].repeat_interleave(partners)
        return cls(batch, sequence.repeat_interleave(partners), partner[sequence].flatten(), position)


# -- runs of a tree ---------------------------------------------------------------------------------------------------

Stream = Float[Tensor, "row d_model"]
Heads = Float[Tensor, "row head d_head"]


@dataclass(frozen=True, eq=False)
class Resampled:
    """What the rows' sequences bring to the tree from outside it, for every block, sequence, position and head.

    Attributes:
        z: head outputs of the model's own run, with its own patterns: what a partner stands in with.
        null: what a head would bring by its rule for null rows, from the model's own run.
        live: what heads without a single place to look at (content-free, same letter) bring in the routed run.
    """

    z: list[Float[Tensor, "sequence position head d_head"]]
    null: list[Float[Tensor, "sequence position head d_head"]]
    live: list[Float[Tensor, "sequence position head d_head"]]

    @classmethod
    @torch.no_grad()
    def of(cls, model: FusedTransformer, routing: Routing, batch: Batch) -> Resampled:
        """Run the batch twice: on the model's own patterns, and on the routes."""
        z, null, live = [], [], []
        x = routed = model.embed(batch.tokens)
        for layer in range(model.spec.n_layers):
            q, k, v = model.qkv(model.norm(x, f"blocks.{layer}.ln1"), layer)
            own = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=model.scale)
            z.append(own.transpose(1, 2).contiguous())
            first = torch.tensor([route.null == "first" for route in routing.routes[layer]], device=v.device)
            n = v.shape[2]
            at_null = torch.where(first[:, None, None], v[:, :, :1], routing.null_mean[layer, :, :n, :n] @ v)
            null.append(at_null.transpose(1, 2).contiguous())
            _, _, v = model.qkv(model.norm(routed, f"blocks.{layer}.ln1"), layer)
            by_rule = routing.pattern(batch, layer) @ v
            live.append(by_rule.transpose(1, 2).contiguous())
            x, routed = (_block_end(model, s + model.attn_out(o, layer), layer) for s, o in ((x, own), (routed, by_rule)))
        return cls(z, null, live)


def _block_end(model: FusedTransformer, mid: Tensor, layer: int) -> Tensor:
    return mid if model.spec.attn_only else mid + model.mlp(model.norm(mid, f"blocks.{layer}.ln2"), layer)


@dataclass(frozen=True, eq=False)
class State:
    """One tree's run: the stream at each place it needs, before every block and after the last, and the values read there."""

    nodes: Nodes
    streams: list[dict[Place, Stream]]
    values: list[dict[Place, Heads]]
    logits: Float[Tensor, "row d_vocab"]


@dataclass(frozen=True, eq=False)
class TreeRunner:
    """Runs the model at the places of a tree only: kept nodes are live, every other head output is the partner's.

    A node that is not kept leaves its share of the head's output to the partner's own output of that head at the same
    position. Embeddings and MLPs stay live at every place. The same position under two names (find^j(i) is the position before
    find^(j+1)(i) in no training sequence, but find^j(i) − 1 can be find^(j+1)(i)) is computed twice, once for each name.
    """

    model: FusedTransformer
    routing: Routing
    rows: Rows
    outside: Resampled
    _cache: dict[object, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, model: FusedTransformer, routing: Routing, rows: Rows) -> TreeRunner:
        """With what lies outside the tree computed from the rows' sequences."""
        return cls(model, routing, rows, Resampled.of(model, routing, rows.batch))

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
            who = self.rows.sequence if name == "live" else self.rows.partner
            self._cache[key] = getattr(self.outside, name)[layer][who, self._position(place).clamp_min(0)]
        return self._cache[key]

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

    def run(self, nodes: Nodes) -> State:
        """The tree from scratch."""
        nodes = connected(nodes)
        empty = State(frozenset(), [{} for _ in range(self._depth + 1)], [{} for _ in range(self._depth)], torch.empty(0))
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
        return self.model.spec.n_layers

    @torch.no_grad()
    def _update(self, old: State, nodes: Nodes) -> State:
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
                or any(n.target in changed for n in by_place[layer].get(p, ()))
            ]
            streams.append({p: old.streams[layer + 1][p] for p in needed[layer + 1] if p not in moved})
            streams[-1] |= self._step(layer, {p: streams[layer][p] for p in moved}, by_place[layer], values[-1])
            changed = set(moved)
        logits = self.model.unembed(streams[-1][START]) if changed or not len(old.logits) else old.logits
        return State(nodes, streams, values, logits)

    def _values(self, layer: int, streams: Mapping[Place, Stream]) -> dict[Place, Heads]:
        if not streams:
            return {}
        p, name = self.model.parameters, f"blocks.{layer}.attn."
        x = self.model.norm(torch.stack(list(streams.values())), f"blocks.{layer}.ln1")
        weight = p[name + "W_V"].transpose(1, 2).flatten(0, 1)
        v = F.linear(x, weight, p[name + "b_V"].flatten()).unflatten(-1, (self.model.spec.n_heads, -1))
        return dict(zip(streams, v, strict=True))

    def _step(
        self,
        layer: int,
        streams: Mapping[Place, Stream],
        nodes: Mapping[Place, Collection[Node]],
        values: Mapping[Place, Heads],
    ) -> dict[Place, Stream]:
        """One block at some places."""
        if not streams:
            return {}
        z = torch.stack([self._z(layer, place, nodes.get(place, ()), values) for place in streams])
        p, name = self.model.parameters, f"blocks.{layer}.attn."
        out = F.linear(z.flatten(2), p[name + "W_O"].flatten(0, 1).T, p[name + "b_O"])
        after = _block_end(self.model, torch.stack(list(streams.values())) + out, layer)
        return dict(zip(streams, after, strict=True))

    def _z(self, layer: int, place: Place, nodes: Collection[Node], values: Mapping[Place, Heads]) -> Heads:
        """All heads' outputs at one place."""
        partner = self._outside("z", layer, place)
        if not nodes:
            return partner
        z = partner.clone()
        for node in nodes:
            share, valid = self._share(node)
            if node.target is None:
                brings = self._outside("live", layer, place)[:, node.head]
            else:
                null = self._outside("null", layer, place)[:, node.head]
                brings = torch.where(valid, values[node.target][:, node.head], null)
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


# -- pruning ----------------------------------------------------------------------------------------------------------


def prune(runner: TreeRunner, start: Nodes, tolerance: float, seed: int) -> Nodes:
    """Take away, from the last block down, every node without which the error stays within the tolerance.

    Within a block the order is drawn, but nodes on no derivation go before those on one. Nodes are tried in halves: a set goes
    at once where the error allows it; otherwise each half is tried in turn, down to single nodes.
    """
    generator = torch.Generator().manual_seed(seed)
    hops, depth = runner.routing.hops, runner.model.spec.n_layers
    state = runner.run(start)
    limit = tolerance + 1e-9

    def attempt(state: State, tried: list[Node]) -> State:
        tried = [node for node in tried if node in state.nodes]
        if not tried:
            return state
        without = runner.without(state, tried)
        if runner.error(without) <= limit:
            return without
        if len(tried) == 1:
            return state
        half = len(tried) // 2
        return attempt(attempt(state, tried[:half]), tried[half:])

    for layer in reversed(range(depth)):
        here = sorted(node for node in state.nodes if node.layer == layer)
        drawn = [here[n] for n in torch.randperm(len(here), generator=generator).tolist()]
        useful = on_derivations(state.nodes, hops)
        for group in ([n for n in drawn if n not in useful], [n for n in drawn if n in useful]):
            state = attempt(state, group)
    return state.nodes
