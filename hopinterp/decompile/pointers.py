"""Which earlier nodes a head's query needs to land where its rule says: pointer trees, one for each head."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from hopinterp.decompile.halving import remove
from hopinterp.decompile.nodes import START, Node, Nodes, Place, connected, on_paths, reachable
from hopinterp.decompile.routes import Part, Routing, positions
from hopinterp.decompile.tree_runs import Outside, Rows, State, TreeRunner, streams_before
from hopinterp.models.fused import FusedTransformer

LOSS = 0.05
"""The share that a pointer tree may lose of how often the head's own query lands. Constructed heads lose none with their
program's tree and at least .86 without any one node of it: any value up to .5 gives the same. Trained ones want .05: with .1
the trees of depth4 at k = 7 seed a circuit with an error of .15 instead of .09."""
WORST = 0.25
"""Where the tree of all that the routes reach lands less often, the loss is counted from there, but no tree is found if even
that loses more than this."""


@dataclass(frozen=True)
class PointerTree:
    """What a head's query is made of, at any position p: nodes at places of p's own chain.

    A head cannot know at which place of another position's chain it stands, so there is one tree a head.

    Attributes:
        layer, head: whose query.
        hop: u, where the head looks: find^u(p).
        nodes: of earlier blocks, kept; all other head outputs at their places are another sequence's. Empty where the
            letter at p itself is enough.
        lands: how often, with these nodes, the key that the head looks at most is at find^u(p) (either part of a mixture);
            `own`: with the model's own query; `without`: with no node at all.
        found: whether the tree of all that the routes reach lands; if not, `nodes` is empty and `lands` is that tree's.
    """

    layer: int
    head: int
    hop: int
    nodes: Nodes
    lands: float
    own: float
    without: float
    found: bool

    @property
    def beside(self) -> tuple[Node, ...]:
        """The nodes at p itself: what of the stream there the query needs."""
        return tuple(sorted(node for node in self.nodes if node.place == START))

    def at(self, place: Place) -> Nodes:
        """The nodes where the head stands at a place of i's chain."""
        return frozenset(moved(node, place) for node in self.nodes)

    def reach(self, n_layers: int) -> tuple[int, ...]:
        """The most hops that its nodes of blocks ≤ ℓ make known, on paths to the letters of hops 1 … u."""
        return carried(self.nodes, range(1, self.hop + 1), n_layers)


def carried(nodes: Nodes, hops: Iterable[int], n_layers: int) -> tuple[int, ...]:
    """The most hops that a node of a block ≤ ℓ makes known at its place of the letters that the nodes carry to p: of the
    letter of hop j, a node on its way at find^m(p) makes known j − m hops."""
    most = [0] * n_layers
    for hop in hops:
        for node in on_paths(nodes, hop):
            if node.place.letter is not None and node.reads is not None and node.jump:
                most[node.layer] = max(most[node.layer], hop - node.place.letter)
    return tuple(accumulate(most, max))


def moved(node: Node, place: Place) -> Node:
    """A node of p's chain as one of i's, p = find^at(i): find^j(p) is find^(at + j)(i)."""
    return replace(node, place=Place(place.at + node.place.at, node.place.back))


def looks(route_parts: Sequence[Part]) -> Part | None:
    """The part of a rule that the query has to know the letters for: the largest that is a hop; None for fixed rules."""
    parts = [part for part in route_parts if part.kind in ("hop", "before hop") and part.hop]
    return max(parts, key=lambda part: part.share, default=None)


@dataclass(frozen=True, eq=False)
class Pointers:
    """Finds pointer trees, each once.

    Attributes:
        rows: positions on the chains of scored positions; a head that looks u hops back is asked where as many are left.
        outside: what stands in.
        streams: before every block, in the sequences' own runs.
    """

    model: FusedTransformer
    routing: Routing
    rows: Rows
    outside: Outside
    streams: list[Float[Tensor, "sequence position d_model"]]
    generator: torch.Generator
    _trees: dict[tuple[int, int], PointerTree | None]

    @classmethod
    @torch.no_grad()
    def of(cls, model: FusedTransformer, routing: Routing, sequences: int = 30, seed: int = 0) -> Pointers:
        """On fresh sequences."""
        rows = Rows.draw(routing.task, routing.hops, sequences, positions=2, partners=2, seed=seed)
        outside = Outside.of(model, routing, rows.batch)
        streams = streams_before(model, rows.batch.tokens)
        return cls(model, routing, rows, outside, streams, torch.Generator().manual_seed(seed + 1), {})

    def tree(self, layer: int, head: int) -> PointerTree | None:
        """The tree of a head; None where it looks by position alone."""
        if (layer, head) not in self._trees:
            part = looks(self.routing.routes[layer][head].parts)
            self._trees[layer, head] = None if part is None else _Query.of(self, layer, head, part).tree()
        return self._trees[layer, head]

    def behind(self, nodes: Nodes) -> Nodes:
        """All that some nodes' queries need, and what the queries of that need, at places of i's chain."""
        found, todo = set[Node](), list(nodes)
        while todo:
            node = todo.pop()
            tree = None if node.place.back else self.tree(node.layer, node.head)
            new = (tree.at(node.place) if tree else frozenset()) - found
            found |= new
            todo += new
        return frozenset(found)

    def moved_rows(self, hop: int) -> Rows:
        """Each row moved to a place of its chain, drawn so that `hop` hops are left up to k."""
        rows, left = self.rows, max(self.routing.hops - hop, 0)
        generator = torch.Generator().manual_seed(hop)
        at = torch.randint(left + 1, (len(rows),), generator=generator)[:, None]
        here, there = (chain.gather(1, at)[:, 0] for chain in (rows.chain, rows.partner_chain))
        return replace(rows, position=here, partner_position=there)


@dataclass(frozen=True, eq=False)
class _Query:
    """One head's query, run on trees of earlier nodes."""

    runner: TreeRunner
    layer: int
    head: int
    hop: int
    own: float
    keys: Float[Tensor, "row position d_head"]
    targets: Int[Tensor, "row part"]

    @classmethod
    @torch.no_grad()
    def of(cls, pointers: Pointers, layer: int, head: int, part: Part) -> _Query:
        model, routing = pointers.model, pointers.routing
        assert part.hop is not None
        rows = pointers.moved_rows(part.hop)
        parts = [p for p in routing.routes[layer][head].parts if p.kind in ("hop", "before hop") and p.hop]
        targets = torch.stack([positions(rows.batch, p)[rows.sequence, rows.position] for p in parts], dim=1)
        p, name = model.parameters, f"blocks.{layer}.attn."
        normed = model.norm(pointers.streams[layer], f"blocks.{layer}.ln1")
        keys = F.linear(normed, p[name + "W_K"][head].T, p[name + "b_K"][head])[rows.sequence]
        runner = TreeRunner(model, routing, rows, pointers.outside, until=layer)
        query = cls(runner, layer, head, part.hop, 0.0, keys, targets)
        return replace(query, own=query.landing(pointers.streams[layer][rows.sequence, rows.position]))

    @torch.no_grad()
    def landing(self, stream: Float[Tensor, "row d_model"]) -> float:
        """How often the query that a stream before the block gives looks most at where the rule says."""
        model = self.runner.model
        p, name = model.parameters, f"blocks.{self.layer}.attn."
        normed = model.norm(stream, f"blocks.{self.layer}.ln1")
        q = F.linear(normed, p[name + "W_Q"][self.head].T, p[name + "b_Q"][self.head])
        scores = (self.keys @ q[..., None])[..., 0] * model.scale
        future = torch.arange(scores.shape[1]) > self.runner.rows.position[:, None]
        most = scores.masked_fill(future, -torch.inf).argmax(1)
        return float((most[:, None] == self.targets).any(1).float().mean())

    def tree(self) -> PointerTree:
        """Prune what the routes reach, block by block from the last down, in sets before single nodes."""
        none, state = self._lands(self.runner.run(frozenset())), self.runner.run(self._whole)
        lands, found = (
            self._lands(state),
            PointerTree(self.layer, self.head, self.hop, frozenset(), none, self.own, none, True),
        )
        if none >= (1 - LOSS) * self.own:
            return found
        if lands < (1 - WORST) * self.own:
            return replace(found, lands=lands, found=False)
        kept = self._prune(state, lands, max(LOSS * self.own - (self.own - lands), LOSS / 4 * self.own))
        return replace(found, nodes=kept.nodes, lands=self._lands(kept))

    def _prune(self, state: State, lands: float, loss: float) -> State:
        """What is left when every node went without which no more than `loss` is lost beyond what the whole tree loses.

        Every block may use up an equal part of it. The smallest tier that lands well is where it starts.
        """
        for tier in self._tiers(self._whole):
            tried = self.runner.run(tier)
            if self._lands(tried) >= lands - loss / 2:
                state = tried
                break
        for done, layer in enumerate(reversed(range(self.layer)), start=1):
            least = min(lands, self._lands(state) + loss / 4) - loss * done / self.layer
            for part in (False, True):
                named = on_paths(state.nodes, self.hop - 1) | on_paths(state.nodes, self.hop)
                here = [node for node in state.nodes if node.layer == layer and (node in named) == part]
                state = self._try(state, _units(here), least)
        return state

    @cached_property
    def _whole(self) -> Nodes:
        return connected(
            node
            for node in reachable(self.runner.routing)
            if node.layer < self.layer and (node.target is None or node.target.at <= self.hop + 1)
        )

    def _tiers(self, whole: Nodes) -> Iterator[Nodes]:
        """Parts of the whole whose nodes have a name: on paths to the letter of hop u − 1, or to that of hop u, or both;
        and what block 0 writes at their places."""
        paths = [on_paths(whole, j) for j in (self.hop - 1, self.hop) if j]
        for named in (*paths, frozenset[Node]().union(*paths)):
            yield named
            yield connected(named | {node for node in whole if node.layer == 0})

    def _lands(self, state: State) -> float:
        return self.landing(state.streams[self.layer][START])

    def _try(self, state: State, tried: list[Nodes], least: float) -> State:
        """Remove what leaves the pattern landing."""

        def without(tree: State, units: Sequence[Nodes]) -> State | None:
            smaller = self.runner.without(tree, frozenset[Node]().union(*units))
            return smaller if self._lands(smaller) >= least else None

        return remove(state, tried, without, lambda tree, units: [unit & tree.nodes for unit in units if unit & tree.nodes])


def _units(nodes: Sequence[Node]) -> list[Nodes]:
    """Nodes that are tried one by one; leaves of one block at one place, which tell of the letters nearby, as one."""
    units: dict[tuple[object, ...], set[Node]] = {}
    for node in sorted(nodes):
        alone = None if node.target is None else node
        units.setdefault((node.place, alone), set()).add(node)
    return [frozenset(unit) for unit in units.values()]
