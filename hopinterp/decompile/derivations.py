"""Which heads at which chain positions carry the answer: the tree of jumps that add up to k, with all else resampled."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hopinterp.decompile.effects import Effect, Harm, supported
from hopinterp.decompile.effects import effects as effects_of
from hopinterp.decompile.fresh_runs import FreshRuns
from hopinterp.decompile.halving import remove
from hopinterp.decompile.nodes import Jumps, Node, Nodes, connected, derivations, on_paths, reach, reachable
from hopinterp.decompile.routes import Routing
from hopinterp.decompile.tree_runs import State, TreeRunner
from hopinterp.decompile.watched_rows import Rows, Sums
from hopinterp.evidence.intervals import bootstrap
from hopinterp.memory import release_memory
from hopinterp.models.fused import FusedTransformer
from hopinterp.seeds import seeded

TOLERANCE = 0.02
"""The error that a tree may have on the fitting pairs, below half of the .05 that explains a cell on fresh ones. Constructed
models, whose trees are exact, come out the same with any value up to .2; untrained ones never come near (they err at .7)."""
LEAST_EFFECT = 0.01
"""A node whose removal raises the error on the fitting pairs by less is taken away at the end, while the error stays within
a quarter above the tolerance: with 800 fresh rows less than this would hardly show. Nodes of constructed models have .7."""
WELL = 1.5
"""Times the tolerance: a tree found from one tier that does no worse on the fitting pairs makes larger tiers needless."""
ORDERS = 3
MOST_FITTED = 200
"""Fresh sequences, of which more make what is measured surer; but trees are found on two thirds of these at most, whose rows
are run together. There are 800, on which 0.1% of the error shows."""
ROWS = 160
"""That are run at once where every place of the chain is live."""


@dataclass(frozen=True)
class ValueTree:
    """The nodes that carry the answer at one k, on fixed routes, and how well they do it alone.

    Attributes:
        carrying: nodes on derivations: paths to where the answer's letter stands. The effect of each is that in a tree in
            which it matters: several may bring the answer, each without nodes of another.
        aside: nodes on no derivation but on paths to the letters of hops k − 1, which the answer is not (neighbours differ),
            and k − 2, which it is half of the time; and heads of block 0 at the places of all these paths, which read the
            letters before them.
        stray: nodes that were kept and lie on neither, or whose effect among the printed ones may be nothing; their effect
            is that in the tree with all kept nodes.
        error: of carrying and aside nodes alone, on fresh pairs; `low` and `high`, 95%.
        carrying_error: of the carrying nodes alone. `kept_error`: with the stray ones too. `whole_error`: of all that the
            routes reach from i.
        without: error with the printed nodes resampled and all else that is reached live.
        backup: nodes that still answered more than half without those; empty where none did.
        spare: carrying nodes that can go, each alone, at less than LEAST_EFFECT while all that the routes reach is live:
            other ways do their work, and unless every way was looked for, these may be others than the derivations shown.
        stability: how much the sets kept in different orders overlap: mean of |A ∩ B| / |A ∪ B| over pairs of orders.
        sizes: of the sets kept in each order.
    """

    hops: int
    n_layers: int
    carrying: tuple[Effect, ...]
    aside: tuple[Effect, ...]
    stray: tuple[Effect, ...]
    error: float
    low: float
    high: float
    carrying_error: float
    kept_error: float
    whole_error: float
    without: float
    backup: Nodes
    spare: Nodes
    stability: float
    sizes: tuple[int, ...]

    @property
    def nodes(self) -> Nodes:
        """Every node on a printed path."""
        return frozenset(effect.node for effect in (*self.carrying, *self.aside))

    @cached_property
    def derivations(self) -> tuple[Jumps, ...]:
        """Jumps that add up to k, last block first; each node on them raises the error when it is removed from its tree."""
        return tuple(sorted(derivations(self.nodes, self.hops), reverse=True))

    @cached_property
    def asides(self) -> dict[int, tuple[Jumps, ...]]:
        """By hop, k − 1 or k − 2: jumps that bring its letter."""
        found = {j: derivations(self.nodes, j) for j in _aside_hops(self.hops)} if self.aside else {}
        return {j: tuple(sorted(paths, reverse=True)) for j, paths in found.items() if paths}

    @property
    def reach(self) -> tuple[int, ...]:
        """The most hops that the carrying nodes of blocks ≤ ℓ add up to."""
        return reach((effect.node for effect in self.carrying), self.hops, self.n_layers)


def _aside_hops(hops: int) -> range:
    return range(max(hops - 2, 0), hops)


def printed(nodes: Nodes, hops: int) -> Nodes:
    """The nodes whose use has a name: those on a path to the answer's letter or to one of the two before it, and heads of
    block 0 at the places of these paths, which read the letters before them."""
    paths = frozenset().union(*(on_paths(nodes, j) for j in (hops, *_aside_hops(hops))))
    return connected(paths | {node for node in nodes if node.layer == 0})


@torch.no_grad()
def find_tree(
    model: FusedTransformer,
    routing: Routing,
    *,
    sequences: int = 100,
    orders: int = ORDERS,
    every_way: bool = False,
    seed: int = 0,
) -> ValueTree:
    """Prune what the routes reach from i to the nodes that carry the answer, and measure them on fresh pairs.

    Args:
        sequences: fresh ones, on which all reported numbers are measured: four scored positions of each are watched, each
            with two partners. Two thirds as many others, of MOST_FITTED at most, serve to find the tree, with three
            positions each; 40 % as many for what is run whole (`whole_error`, `without`).
        every_way: where other ways do a node's work, find these too. Each costs a pruning of its own.
        orders: how many orders of pruning; of the trees whose printed nodes do well the smallest is measured.

    Raises:
        HopInterpError: no sequence of a draw has a chain of k links.
    """

    def fitting() -> TreeRunner:
        count = max(round(2 / 3 * min(sequences, MOST_FITTED)), 3)
        return TreeRunner.of(model, routing, Rows.draw(routing.task, routing.hops, count, positions=3, seed=3 * seed + 1))

    whole = reachable(routing)
    pruner = Pruner(fitting(), whole)
    kept = [pruner.prune(seed=order) for order in range(orders)]
    best = min(kept, key=pruner.rank)
    release_memory()
    fresh = FreshRuns.draw(model, routing, max(sequences, 3), seed=3 * seed + 2)
    effects = _supported(fresh, printed(best, routing.hops))
    if every_way and pruner.rank(best)[0] <= WELL * pruner.tolerance:  # else no way is known, and others tell nothing
        effects = _with_others(pruner, best, fresh, effects)
    del pruner  # each runner is let go before the next is made: they are large
    fresh.let_go()
    measured = _measure(fresh, effects, best)
    fresh.let_go()
    apart = FreshRuns.draw(model, routing, max(round(0.4 * sequences), 3), seed=3 * seed + 3)
    all_live = _all_live(apart, whole, frozenset(effects))
    apart.let_go()
    others = connected(whole - effects.keys())
    backup = Pruner(fitting(), others).prune() if all_live.without < 0.5 else frozenset()
    return ValueTree(
        **measured,
        whole_error=all_live.error,
        without=all_live.without,
        backup=backup,
        spare=all_live.spare,
        stability=_overlap(kept),
        sizes=tuple(map(len, kept)),
    )


def _with_others(pruner: Pruner, best: Nodes, fresh: FreshRuns, effects: Mapping[Node, Effect]) -> dict[Node, Effect]:
    """The nodes found, and those of trees that do without one of them. Where more ways bring the answer than are needed,
    pruning leaves as many as are, and which is a matter of order: a node whose removal costs nothing while all else is live
    has others that do its work.
    """
    hops, found = fresh.routing.hops, dict(effects)
    limit, whole = pruner.rank(best)[0], pruner.runner.run(pruner.whole)
    todo = sorted(on_paths(frozenset(found), hops))
    while todo:
        node = todo.pop()
        if pruner.runner.error(pruner.runner.without(whole, [node])) > limit:
            continue
        other = Pruner(pruner.runner, connected(pruner.whole - {node}), pruner.tolerance)
        kept = other.prune()
        if other.rank(kept)[0] > limit:
            continue
        its = _supported(fresh, printed(kept, hops))
        new = on_paths(frozenset(its), hops) - found.keys()
        found |= {one: its[one] for one in new}
        todo += sorted(new)
    return found


class _AllLive(NamedTuple):
    """Everything that the routes reach is kept: the error so, the error without a tree's nodes, and those of its carrying
    nodes that can go, each alone."""

    error: float
    without: float
    spare: Nodes


def _all_live(runs: FreshRuns, whole: Nodes, tree: Nodes) -> _AllLive:
    """Run on some of the rows after the other: every place of the chain is live here, where trees have a few."""
    carrying = sorted(on_paths(tree, runs.routing.hops))
    removed: list[Collection[Node]] = [tree, *([node] for node in carrying)]

    def wrong(runner: TreeRunner) -> Int[Tensor, "row tree"]:
        found = []
        for rows in runner.rows.parts(ROWS):
            part = runner.on(rows)
            state = part.run(whole)
            left = (part.wrong(part.without(state, nodes)) for nodes in removed)
            found.append(torch.stack([part.wrong(state), *left], dim=1))
        return torch.cat(found).long()

    answers = runs.rows(wrong)
    error, without, *each = (answers.sum(0) / len(answers)).tolist()
    spare = frozenset(node for node, one in zip(carrying, each, strict=True) if one < error + LEAST_EFFECT)
    return _AllLive(error, without, spare)


def _measure(fresh: FreshRuns, effects: Mapping[Node, Effect], kept: Nodes) -> dict[str, Any]:
    """What is measured on fresh pairs of the printed nodes, and of those kept beside them."""
    hops, nodes = fresh.routing.hops, frozenset(effects)
    carrying = on_paths(nodes, hops)
    strays = effects_of(_harm(fresh), kept, kept - nodes)
    wrong, counted = fresh.by_sequence(lambda runner: runner.wrong(runner.run(nodes)).double())
    low, high = bootstrap(wrong, counted, seed=0)
    return {
        "hops": hops,
        "n_layers": fresh.model.spec.n_layers,
        "carrying": tuple(effects[node] for node in sorted(carrying, reverse=True)),
        "aside": tuple(effects[node] for node in sorted(nodes - carrying, reverse=True)),
        "stray": tuple(strays[node] for node in sorted(strays, reverse=True)),
        "error": float(wrong.sum() / counted.sum()),
        "low": float(low),
        "high": float(high),
        "carrying_error": fresh.error(carrying),
        "kept_error": fresh.error(kept),
    }


def _supported(fresh: FreshRuns, nodes: Nodes) -> Mapping[Node, Effect]:
    """The nodes that surely matter on fresh pairs."""
    found = effects_of(_harm(fresh), nodes, nodes)
    return supported(_harm(fresh), found, lambda left: printed(left, fresh.routing.hops))


def _harm(fresh: FreshRuns) -> Harm:
    """Where a tree answers wrong without some nodes and right with them (−1: the other way round)."""

    def harm(tree: Nodes, removed: Sequence[Nodes]) -> Sums:
        return fresh.by_sequence(lambda runner: _lost(runner, tree, removed))

    return harm


def _lost(runner: TreeRunner, tree: Nodes, removed: Sequence[Nodes]) -> Float[Tensor, "row removed"]:
    state = runner.run(tree)
    before = runner.wrong(state).double()
    return torch.stack([runner.wrong(runner.without(state, nodes)).double() - before for nodes in removed], dim=1)


def _overlap(sets: Sequence[Nodes]) -> float:
    shares = [len(a & b) / max(len(a | b), 1) for a, b in combinations(sets, 2)]
    return sum(shares) / len(shares) if shares else 1.0


# -- pruning ----------------------------------------------------------------------------------------------------------


def tiers(whole: Nodes, hops: int) -> Iterator[Nodes]:
    """Ever larger parts of the whole tree, whose nodes have a name: what can carry the answer's letter; also what can carry
    that of hop k − 1, and of hop k − 2; also what block 0 writes at the places of all these."""
    answer, aside = on_paths(whole, hops), [on_paths(whole, j) for j in _aside_hops(hops)]
    yield answer
    yield answer.union(*aside[-1:])
    yield answer.union(*aside)
    yield printed(whole, hops)


@dataclass(frozen=True, eq=False)
class Pruner:
    """Takes nodes away from a tree while the error on the fitting pairs stays within a limit.

    Attributes:
        whole: the tree to start from.
        tolerance: see TOLERANCE.
    """

    runner: TreeRunner
    whole: Nodes
    tolerance: float = TOLERANCE
    _errors: dict[Nodes, float] = field(default_factory=dict)
    _last: dict[Nodes, State] = field(default_factory=dict)

    def prune(self, seed: int = 0) -> Nodes:
        """What is left when, from the last block down, every node went without which the error stays within the tolerance.

        Sets are tried before single nodes: first all that lies outside a tier, then halves. Within a block the order is
        drawn from the seed, but nodes on no derivation go before those on one.
        """
        state, nodes = self._start
        return nodes if seed == 0 else self._descend(state, seed)

    @cached_property
    def _start(self) -> tuple[State, Nodes]:
        """The smallest tier from which a tree with names for all its nodes is found that does well; where there is none, the
        one of all tiers, and the whole tree, from which the best is found. Tried in one order, of seed 0: the others start
        there. With what that order leaves."""
        found: list[tuple[tuple[float, int], State, Nodes]] = []
        for tier in (*tiers(self.whole, self.runner.routing.hops), self.whole):
            state = self.runner.run(tier)
            nodes = self._descend(state, seed=0)
            found.append((self.rank(nodes), state, nodes))
            if found[-1][0][0] <= WELL * self.tolerance:
                break
        return min(found, key=lambda tried: tried[0])[1:]

    def rank(self, nodes: Nodes) -> tuple[float, int]:
        """Trees whose named nodes do well by themselves come first, the smaller ones before the larger."""
        state = self.runner.run(printed(nodes, self.runner.routing.hops))
        return max(self.runner.error(state), WELL * self.tolerance), len(nodes)

    def _descend(self, state: State, seed: int) -> Nodes:
        """Every block may use up an equal part of the tolerance, or the last one would use it all on nodes that matter and
        keep all below. A tree that does worse than the tolerance may lose a quarter of it, and keeps what it gains: some
        nodes do harm alone, for what they bring fits nothing else that is kept."""
        generator, depth = seeded(seed), self.runner.model.spec.n_layers
        for done, layer in enumerate(reversed(range(depth)), start=1):
            for part in range(3):
                allowed = max(self.tolerance * done / depth, self.runner.error(state) + self.tolerance / 4 / depth)
                state = self._try(state, self._groups(state, layer, generator)[part], allowed)
        return self._tidy(state, max(self.tolerance, self.runner.error(state)) + self.tolerance / 4).nodes

    def _groups(self, state: State, layer: int, generator: torch.Generator) -> tuple[list[Node], list[Node], list[Node]]:
        """A block's nodes in a drawn order: those without a name, those on no derivation, those on one."""
        here = sorted(node for node in state.nodes if node.layer == layer)
        drawn = [here[n] for n in torch.randperm(len(here), generator=generator).tolist()]
        hops = self.runner.routing.hops
        useful, named = on_paths(state.nodes, hops), printed(state.nodes, hops)
        return (
            [node for node in drawn if node not in named],
            [node for node in drawn if node in named and node not in useful],
            [node for node in drawn if node in useful],
        )

    def _try(self, state: State, tried: list[Node], allowed: float) -> State:
        """Remove what the error allows."""

        def without(tree: State, nodes: Sequence[Node]) -> State | None:
            return self._without(tree, nodes) if self._error_without(tree, nodes) <= allowed else None

        return remove(state, tried, without, lambda tree, nodes: [node for node in nodes if node in tree.nodes])

    def _error_without(self, state: State, removed: Collection[Node]) -> float:
        """Error without some nodes; the orders meet in the same sets, which are run once."""
        nodes = connected(state.nodes - frozenset(removed))
        if nodes not in self._errors:
            self._errors[nodes] = self.runner.error(self._without(state, removed)) - 1e-9  # rounding is no rise
        return self._errors[nodes]

    def _without(self, state: State, removed: Collection[Node]) -> State:
        """A tree without some nodes; what was tried last is the one that is taken if it does well, and is not run again."""
        nodes = connected(state.nodes - frozenset(removed))
        if nodes not in self._last:
            self._last.clear()
            self._last[nodes] = self.runner.without(state, removed)
        return self._last[nodes]

    def _tidy(self, state: State, limit: float) -> State:
        """Take away nodes that hardly matter, as many of the least as the limit allows at once, until all matter."""
        while state.nodes:
            least = self.runner.error(state) + LEAST_EFFECT
            errors = {node: self._error_without(state, [node]) for node in state.nodes}
            little = sorted((node for node in errors if errors[node] < least), key=lambda node: (errors[node], node))
            count = len(little)
            while count and self._error_without(state, little[:count]) > limit:
                count //= 2
            if not count:
                break
            state = self._without(state, little[:count])
        return state
