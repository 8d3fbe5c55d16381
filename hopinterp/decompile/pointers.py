"""Which earlier nodes a head's query needs to land where its rule says: pointer trees, one for each head."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hopinterp.decompile.effects import Effect, effects, supported
from hopinterp.decompile.halving import remove
from hopinterp.decompile.nodes import START, Node, Nodes, Place, connected, on_paths, reachable
from hopinterp.decompile.routes import Part, Routing, positions
from hopinterp.decompile.tree_runs import Outside, State, TreeRunner, streams_before
from hopinterp.decompile.watched_rows import Rows, Sums
from hopinterp.models.fused import FusedTransformer

LOSS = 0.05
"""The share that a pointer tree may lose of how often the head's own query lands. Constructed heads lose none with their
program's tree and at least .86 without any one node of it: any value up to .5 gives the same. Trained ones want .05: with .1
the trees of depth4 at k = 7 seed a circuit with an error of .15 instead of .09."""
WORST = 0.25
"""Where the tree of all that the routes reach lands less often, the loss is counted from there, but no tree is found if even
that loses more than this."""
_FRESH = 400_009  # far from the seeds of what trees are found on


@dataclass(frozen=True)
class PointerTree:
    """What a head's query is made of, at any position p: nodes at places of p's own chain.

    A head cannot know at which place of another position's chain it stands, so there is one tree a head.

    Attributes:
        layer, head: whose query.
        hop: u, where the head looks: find^u(p).
        carrying: nodes of earlier blocks; all other head outputs at their places are another sequence's. Each with how much
            less often the head lands without it, on sequences that the tree was not found on. Empty where the letter at p
            itself is enough.
        stray: nodes that were kept, but whose effect there may be nothing; it is that in the tree with all kept nodes.
        lands: how often, with the carrying nodes, the key that the head looks at most is at find^u(p) (either part of a
            mixture), on those sequences; `own`: with the model's own query; `without`: with no node at all.
        found: whether the tree of all that the routes reach lands; if not, it has no nodes and `lands` is that tree's.
    """

    layer: int
    head: int
    hop: int
    carrying: tuple[Effect, ...]
    stray: tuple[Effect, ...]
    lands: float
    own: float
    without: float
    found: bool

    @property
    def nodes(self) -> Nodes:
        """The carrying nodes."""
        return frozenset(effect.node for effect in self.carrying)

    @property
    def kept(self) -> Nodes:
        """With the stray ones."""
        return self.nodes | {effect.node for effect in self.stray}

    @property
    def beside(self) -> tuple[Node, ...]:
        """The nodes at p itself: what of the stream there the query needs."""
        return tuple(sorted(node for node in self.nodes if node.place == START))

    def at(self, place: Place) -> Nodes:
        """The carrying nodes where the head stands at a place of i's chain."""
        return frozenset(moved(node, place) for node in self.nodes)

    def kept_at(self, place: Place) -> Nodes:
        """With the stray ones."""
        return frozenset(moved(node, place) for node in self.kept)

    def reach(self, n_layers: int, furthest: int) -> tuple[int, ...]:
        """The most hops that its nodes of blocks ≤ ℓ make known, on paths to the letters of hops 1 … `furthest`: u for a
        query that reads where to look (lookup), u − 1 for one that reads the letter before that (successor)."""
        return carried(self.nodes, range(1, furthest + 1), n_layers)


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
class _Drawn:
    """Sequences that queries are run on.

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

    @classmethod
    def of(cls, model: FusedTransformer, routing: Routing, sequences: int, seed: int) -> _Drawn:
        rows = Rows.draw(routing.task, routing.hops, sequences, positions=2, partners=2, seed=seed)
        return cls(model, routing, rows, Outside.of(model, routing, rows.batch), streams_before(model, rows.batch.tokens))

    def moved_rows(self, hop: int) -> Rows:
        """Each row moved to a place of its chain, drawn so that `hop` hops are left up to k."""
        rows, left = self.rows, max(self.routing.hops - hop, 0)
        generator = torch.Generator().manual_seed(hop)
        at = torch.randint(left + 1, (len(rows),), generator=generator)[:, None]
        here, there = (chain.gather(1, at)[:, 0] for chain in (rows.chain, rows.partner_chain))
        return replace(rows, position=here, partner_position=there)


@dataclass(frozen=True, eq=False)
class Pointers:
    """Finds pointer trees, each once, and measures them on other sequences."""

    fit: _Drawn
    fresh: _Drawn
    _trees: dict[tuple[int, int], PointerTree | None] = field(default_factory=dict)

    @classmethod
    @torch.no_grad()
    def of(cls, model: FusedTransformer, routing: Routing, sequences: int = 30, seed: int = 0) -> Pointers:
        """Found on some sequences, measured on twice as many others."""
        fit = _Drawn.of(model, routing, sequences, seed)
        return cls(fit, _Drawn.of(model, routing, 2 * sequences, _FRESH + seed))

    def tree(self, layer: int, head: int) -> PointerTree | None:
        """The tree of a head; None where it looks by position alone."""
        if (layer, head) not in self._trees:
            part = looks(self.fit.routing.routes[layer][head].parts)
            self._trees[layer, head] = None if part is None else self._tree(layer, head, part)
        return self._trees[layer, head]

    def _tree(self, layer: int, head: int, part: Part) -> PointerTree:
        fit, fresh = (_Query.of(drawn, layer, head, part) for drawn in (self.fit, self.fresh))
        kept, found = fit.prune()
        return fresh.measure(kept, found)

    def behind(self, nodes: Nodes, *, stray: bool = False) -> Nodes:
        """All that some nodes' queries need, and what the queries of that need, at places of i's chain; if asked for, with
        what is stray in their trees."""
        found, todo = set[Node](), list(nodes)
        while todo:
            node = todo.pop()
            tree = None if node.place.back else self.tree(node.layer, node.head)
            needed = (tree.kept_at if stray else tree.at)(node.place) if tree else frozenset[Node]()
            new = needed - found
            found |= new
            todo += new
        return frozenset(found)


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
    def of(cls, drawn: _Drawn, layer: int, head: int, part: Part) -> _Query:
        model, routing = drawn.model, drawn.routing
        assert part.hop is not None
        rows = drawn.moved_rows(part.hop)
        parts = [p for p in routing.routes[layer][head].parts if p.kind in ("hop", "before hop") and p.hop]
        targets = torch.stack([positions(rows.batch, p)[rows.sequence, rows.position] for p in parts], dim=1)
        p, name = model.parameters, f"blocks.{layer}.attn."
        normed = model.norm(drawn.streams[layer], f"blocks.{layer}.ln1")
        keys = F.linear(normed, p[name + "W_K"][head].T, p[name + "b_K"][head])[rows.sequence]
        runner = TreeRunner(model, routing, rows, drawn.outside, until=layer)
        query = cls(runner, layer, head, part.hop, 0.0, keys, targets)
        return replace(query, own=_share(query.landing(drawn.streams[layer][rows.sequence, rows.position])))

    @torch.no_grad()
    def landing(self, stream: Float[Tensor, "row d_model"]) -> Bool[Tensor, " row"]:
        """Where the query that a stream before the block gives looks most at where the rule says."""
        model = self.runner.model
        p, name = model.parameters, f"blocks.{self.layer}.attn."
        normed = model.norm(stream, f"blocks.{self.layer}.ln1")
        q = F.linear(normed, p[name + "W_Q"][self.head].T, p[name + "b_Q"][self.head])
        scores = (self.keys @ q[..., None])[..., 0] * model.scale
        future = torch.arange(scores.shape[1]) > self.runner.rows.position[:, None]
        most = scores.masked_fill(future, -torch.inf).argmax(1)
        return (most[:, None] == self.targets).any(1)

    # -- measured -----------------------------------------------------------------------------------------------------

    def measure(self, kept: Nodes, found: bool) -> PointerTree:
        """A tree that was found on other sequences. Nodes whose effect may be nothing are dropped, the least first, until
        each that is left matters."""
        of_kept = effects(self._harm, kept, kept)
        matter = supported(self._harm, of_kept, connected)
        carrying = frozenset(matter)
        return PointerTree(
            self.layer,
            self.head,
            self.hop,
            carrying=tuple(matter[node] for node in sorted(carrying, reverse=True)),
            stray=tuple(of_kept[node] for node in sorted(kept - carrying, reverse=True)),
            lands=self._lands(self.runner.run(carrying if found else self._whole)),
            own=self.own,
            without=self._lands(self.runner.run(frozenset())),
            found=found,
        )

    def _harm(self, tree: Nodes, removed: Sequence[Nodes]) -> Sums:
        """Where the head lands with a tree but not without some of its nodes (−1: the other way round)."""
        state = self.runner.run(tree)
        before = self._landing(state).double()
        lost = [before - self._landing(self.runner.without(state, nodes)).double() for nodes in removed]
        return self.runner.rows.by_sequence(torch.stack(lost, dim=1))

    # -- found --------------------------------------------------------------------------------------------------------

    def prune(self) -> tuple[Nodes, bool]:
        """What is left of all that the routes reach, block by block from the last down, in sets before single nodes; and
        whether all of that lands."""
        none, state = self._lands(self.runner.run(frozenset())), self.runner.run(self._whole)
        if none >= (1 - LOSS) * self.own:
            return frozenset(), True
        lands = self._lands(state)
        if lands < (1 - WORST) * self.own:
            return frozenset(), False
        return self._prune(state, lands, max(LOSS * self.own - (self.own - lands), LOSS / 4 * self.own)).nodes, True

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

    def _landing(self, state: State) -> Bool[Tensor, " row"]:
        return self.landing(state.streams[self.layer][START])

    def _lands(self, state: State) -> float:
        return _share(self._landing(state))

    def _try(self, state: State, tried: list[Nodes], least: float) -> State:
        """Remove what leaves the pattern landing."""

        def without(tree: State, units: Sequence[Nodes]) -> State | None:
            smaller = self.runner.without(tree, frozenset[Node]().union(*units))
            return smaller if self._lands(smaller) >= least else None

        return remove(state, tried, without, lambda tree, units: [unit & tree.nodes for unit in units if unit & tree.nodes])


def _share(hits: Bool[Tensor, " row"]) -> float:
    return float(hits.float().mean())


def _units(nodes: Sequence[Node]) -> list[Nodes]:
    """Nodes that are tried one by one; leaves of one block at one place, which tell of the letters nearby, as one."""
    units: dict[tuple[object, ...], set[Node]] = {}
    for node in sorted(nodes):
        alone = None if node.target is None else node
        units.setdefault((node.place, alone), set()).add(node)
    return [frozenset(unit) for unit in units.values()]
