"""Another sequence's output put in at nodes of the circuit, and what its program says the answer becomes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hopinterp.decompile.derivations import ValueTree
from hopinterp.decompile.fresh_runs import AT_ONCE
from hopinterp.decompile.nodes import Jumps, Nodes, Path, derivations, jumps_of, reachable
from hopinterp.decompile.routes import Routing
from hopinterp.decompile.tree_runs import Outside, State, TreeRunner
from hopinterp.decompile.watched_rows import Rows, by_sequence
from hopinterp.errors import HopInterpError
from hopinterp.evidence.intervals import bootstrap, bootstrap_ratio
from hopinterp.models.fused import FusedTransformer
from hopinterp.seeds import seeded

_STEPS = 300


@dataclass(frozen=True)
class Exchange:
    """What happens when another sequence's output is put in at some nodes, on rows where the two answers differ.

    Attributes:
        nodes: where: one node, all of one way to the answer, or one of each way (a cut).
        jumps: of a way; None for one node and for a cut.
        moved: the share of the ways that pass through these nodes: by the program those bring the source's letter.
        source, base, other: how often the answer is the source's, the base's, another; `low`, `high`: 95% of `source`.
    """

    nodes: Nodes
    jumps: Jumps | None
    moved: float
    source: float
    base: float
    other: float
    low: float
    high: float

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        names = ("moved", "source", "base", "other", "low", "high")
        jumps = None if self.jumps is None else list(self.jumps)
        return {"nodes": [n.to_json() for n in sorted(self.nodes)], "jumps": jumps} | {n: getattr(self, n) for n in names}


@dataclass(frozen=True)
class Rate:
    """A rate, or a difference of two, with its 95% interval; NaN where nothing counts."""

    value: float
    low: float
    high: float


NOTHING = Rate(torch.nan, torch.nan, torch.nan)


def rated(
    top: Float[Tensor, " sequence"], bottom: Float[Tensor, " sequence"], interval: Callable[..., tuple[Tensor, Tensor]]
) -> Rate:
    """Σ top / Σ bottom with the interval that resampling sequences gives; `NOTHING` where nothing was counted."""
    if not bottom.any():
        return NOTHING
    low, high = interval(top, bottom, seed=0)
    return Rate(float(top.sum() / bottom.sum()), float(low), float(high))


@dataclass(frozen=True)
class Interventions:
    """Every exchange at one k, and how well the program foretells the answers.

    Attributes:
        exchanges: of single nodes on ways to the answer, of whole ways, of cuts, then of kept nodes that lie on no way.
        ways: paths of nodes that bring the answer's letter.
        weights: of each way, fitted on other sequences; 1 less their sum is that of all else that is live: the base's.
        agreement: where all ways pass through what was exchanged the program's answer is the source's: how often it is.
        elsewhere: the same where the source is at any position, not the base's own: what the heads of some models bring
            tells of its position too, which the program knows nothing of.
        vote: where only some do: how often the answer is the letter that most ways bring (a half where they are even).
        weighted: the same with weights, fitted without the exchanges that move the same ways as the one that is foretold.
        single: there: the better of always the base's letter and always the source's.
        lift, weighted_lift: vote less single, and weighted less single.
        apart: where a node on no way was exchanged the program's answer is the base's: how often it is.
        untouched: how often the answer is the base's with nothing exchanged.
        rows: how many rows count.
    """

    hops: int
    exchanges: tuple[Exchange, ...]
    ways: tuple[Path, ...]
    weights: tuple[float, ...]
    agreement: Rate
    elsewhere: Rate
    vote: Rate
    weighted: Rate
    single: float
    lift: Rate
    weighted_lift: Rate
    apart: Rate
    untouched: float
    rows: int

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        rates = ("agreement", "elsewhere", "vote", "weighted", "lift", "weighted_lift", "apart")
        values: dict[str, Any] = {name: vars(getattr(self, name)) for name in rates}
        values |= {name: getattr(self, name) for name in ("hops", "single", "untouched", "rows")}
        return values | {"weights": list(self.weights), "exchanges": [e.to_json() for e in self.exchanges]}


@torch.no_grad()
def measure_interventions(
    model: FusedTransformer, routing: Routing, tree: ValueTree, *, sequences: int = 100, seed: int = 0
) -> Interventions:
    """Put in what the nodes bring in another sequence at the same places of its chain, patterns fixed, all else live.

    The source's chain starts at the same position i, as in every interchange of this package. Every way through an exchanged
    node then brings the source's letter of hop k, every other way the base's. All that the routes reach from i is live; rows
    are counted whose two answers differ.

    Args:
        sequences: fresh ones, four scored positions each; as many others serve to fit the weights of the ways, and half as
            many for `elsewhere`.

    Raises:
        HopInterpError: the tree has no way to the answer, or no sequence of a draw has a chain of k links.
    """
    ways = tuple(path for paths in derivations(tree.nodes, tree.hops).values() for path in paths)
    if not ways:
        raise HopInterpError(f"no derivation of {tree.hops} hops was found, so that there is nothing to exchange")
    beside = frozenset(effect.node for effect in (*tree.aside, *tree.stray))
    tried = _tried(ways, beside, tree.n_layers)
    moved = torch.stack([_moved(ways, nodes) for nodes in tried])
    weights = _fit(moved, _Said.of(model, routing, tried, sequences, 3 * seed + 101).answers.T)
    fresh = _Said.of(model, routing, tried, sequences, 3 * seed + 102)
    whole = [nodes for nodes, ways_moved in zip(tried, moved, strict=True) if ways_moved.all()]
    other = _Said.of(model, routing, whole, max(sequences // 2, 2), 3 * seed + 103, anywhere=True)
    elsewhere = other.rate((other.answers == 1).double())
    return _judge(tree.hops, fresh, ways, tried, moved, weights, elsewhere)


def _tried(ways: Sequence[Path], beside: Nodes, n_layers: int) -> list[Nodes]:
    """The sets of nodes that are exchanged."""
    single = sorted({node for way in ways for node in way}, reverse=True)
    one = [frozenset([node]) for node in single]
    several = [frozenset(way) for way in ways]
    cuts = [
        frozenset(next(node for node in way if node.layer <= layer) for way in ways)
        for layer in range(n_layers)
        if all(way[-1].layer <= layer for way in ways)
    ]
    apart = [frozenset([node]) for node in sorted(beside - frozenset(single), reverse=True)]
    return list(dict.fromkeys([*one, *several, *cuts, *apart]))


def _moved(ways: Sequence[Path], nodes: Nodes) -> Float[Tensor, " way"]:
    """Which ways pass through some nodes."""
    return torch.tensor([float(not nodes.isdisjoint(way)) for way in ways], dtype=torch.float64)


@dataclass(frozen=True, eq=False)
class _Pair:
    """The run of the bases and that of the sources, on rows whose answers differ."""

    base: TreeRunner
    source: TreeRunner
    base_state: State
    source_state: State

    @classmethod
    def of(cls, model: FusedTransformer, routing: Routing, rows: Rows, seed: int, anywhere: bool) -> _Pair:
        b, i, s, j = rows.sequence, rows.position, rows.partner, rows.partner_position
        if not anywhere:
            s, j = _same_position(rows, seeded(seed)), i
        labels = rows.batch.labels
        apart = rows.batch.scored[s, j] & (labels[b, i] != labels[s, j])
        b, i, s, j = (x[apart] for x in (b, i, s, j))
        outside = Outside.of(model, routing, rows.batch)
        # a sequence stands in for itself, so that all is live
        base = TreeRunner(model, routing, replace(rows, sequence=b, position=i, partner=b, partner_position=i), outside)
        source = TreeRunner(model, routing, replace(rows, sequence=s, position=j, partner=s, partner_position=j), outside)
        whole = reachable(routing)
        return cls(base, source, base.run(whole), source.run(whole))

    def answers(self, nodes: Nodes) -> Int[Tensor, " row"]:
        """As `_Said.answers`, of one exchange."""
        brings = {node: self.source.brings(self.source_state, node) for node in nodes if node in self.base_state.nodes}
        said = self.base.given_all(self.base_state, brings).logits.argmax(-1)
        return torch.where(said == self.source.rows.answer, 1, torch.where(said == self.base.rows.answer, 0, -1))


@dataclass(frozen=True, eq=False)
class _Said:
    """The answers after several exchanges, on rows whose two differ.

    Attributes:
        answers: 1 where it is the source's, 0 where it is the base's, −1 where another.
        untouched: where it is the base's with nothing exchanged.
        sequence: which of the `sequences` a row is of.
    """

    answers: Int[Tensor, "row exchange"]
    untouched: Bool[Tensor, " row"]
    sequence: Int[Tensor, " row"]
    sequences: int

    @classmethod
    def of(
        cls,
        model: FusedTransformer,
        routing: Routing,
        tried: Sequence[Nodes],
        sequences: int,
        seed: int,
        *,
        anywhere: bool = False,
    ) -> _Said:
        """On sequences of a draw, of which AT_ONCE are run at one time."""

        def said(rows: Rows) -> tuple[Tensor, Tensor, Tensor]:
            pair = _Pair.of(model, routing, rows, seed, anywhere)
            answers = [pair.answers(nodes) for nodes in tried]
            return torch.stack(answers, dim=1), pair.base.wrong(pair.base_state).logical_not(), pair.base.rows.sequence

        parts = Rows.draw_parts(routing.task, routing.hops, sequences, most=AT_ONCE, positions=4, partners=1, seed=seed)
        answers, untouched, sequence = zip(*map(said, parts), strict=True)
        first = [0, *accumulate(len(rows.batch) for rows in parts)]
        shifted = [its + start for its, start in zip(sequence, first, strict=False)]
        return cls(torch.cat(answers), torch.cat(untouched), torch.cat(shifted), first[-1])

    def rate(self, hits: Float[Tensor, "row exchange"]) -> Rate:
        """A mean of hits over rows and exchanges."""
        return self._mean(hits, bootstrap)

    def difference(self, values: Float[Tensor, "row exchange"]) -> Rate:
        """Likewise of differences."""
        return self._mean(values, bootstrap_ratio)

    def _mean(self, values: Float[Tensor, "row exchange"], interval: Callable[..., tuple[Tensor, Tensor]]) -> Rate:
        if not values.shape[1]:
            return NOTHING
        top, bottom = by_sequence(values.sum(1), self.sequence, self.sequences)
        return rated(top, bottom * values.shape[1], interval)


def _same_position(rows: Rows, generator: torch.Generator) -> Int[Tensor, " row"]:
    """For each row a sequence whose answer at the same position is another letter, where there is one; else any."""
    labels = rows.batch.labels[:, rows.position].T
    usable = rows.batch.scored[:, rows.position].T & (labels != rows.answer[:, None])
    return torch.rand(usable.shape, generator=generator).masked_fill(~usable, -1).argmax(1)


def _fit(moved: Float[Tensor, "exchange way"], said: Int[Tensor, "exchange row"]) -> Float[Tensor, "fit way"]:
    """Weights of the ways by logistic regression of the answer on which were moved: one fit for each exchange, without those
    that move the same ways, and a last one on all. They are at least 0; what they lack of 1 is the weight of all else."""
    alike = (moved[:, None] == moved).all(-1)
    partial = (moved.sum(1) > 0) & (moved.sum(1) < moved.shape[1])
    used = torch.cat([~alike, torch.ones_like(alike[:1])]) & partial
    counts = torch.stack([(said == one).sum(1) for one in (1, 0)], dim=-1).double()
    with torch.enable_grad():
        free = torch.zeros(len(used), moved.shape[1] + 1, dtype=torch.float64, requires_grad=True)
        slope = torch.ones(len(used), 1, dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.Adam([free, slope], lr=0.1)
        for _ in range(_STEPS):
            score = (free.softmax(1)[:, :-1] @ moved.T * 2 - 1) * slope.exp()
            log = torch.nn.functional.logsigmoid
            loss = -(used * (counts[:, 0] * log(score) + counts[:, 1] * log(-score))).sum() / counts.sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return free.detach().softmax(1)[:, :-1]


def _judge(
    hops: int,
    fresh: _Said,
    ways: tuple[Path, ...],
    tried: Sequence[Nodes],
    moved: Float[Tensor, "exchange way"],
    weights: Float[Tensor, "fit way"],
    elsewhere: Rate,
) -> Interventions:
    said, share = fresh.answers, moved.mean(1)
    source, base = (said == 1).double(), (said == 0).double()
    whole, apart = share == 1, share == 0
    part = ~whole & ~apart
    votes = [_foretold(source[:, part], base[:, part], s[part]) for s in (share, (moved * weights[:-1]).sum(1))]
    single = source[:, part] if source[:, part].sum() > base[:, part].sum() else base[:, part]
    jumps = {frozenset(way): jumps_of(way) for way in ways}
    exchanges = []
    for number, nodes in enumerate(tried):
        rate = fresh.rate(source[:, [number]])
        own = float(base[:, number].mean())
        name = jumps.get(nodes) if len(nodes) > 1 else None
        exchanges.append(
            Exchange(nodes, name, float(share[number]), rate.value, own, 1 - own - rate.value, rate.low, rate.high)
        )
    return Interventions(
        hops,
        tuple(exchanges),
        ways,
        tuple(weights[-1].tolist()),
        agreement=fresh.rate(source[:, whole]),
        elsewhere=elsewhere,
        vote=fresh.rate(votes[0]),
        weighted=fresh.rate(votes[1]),
        single=float(single.mean()),
        lift=fresh.difference(votes[0] - single),
        weighted_lift=fresh.difference(votes[1] - single),
        apart=fresh.rate(base[:, apart]),
        untouched=float(fresh.untouched.float().mean()),
        rows=len(said),
    )


def _foretold(
    source: Float[Tensor, "row exchange"], base: Float[Tensor, "row exchange"], share: Float[Tensor, " exchange"]
) -> Float[Tensor, "row exchange"]:
    """Where the answer is the letter with most of the vote; a half for either where the vote is even."""
    even = (share - 0.5).abs() < 1e-9
    return torch.where(even, (source + base) / 2, torch.where(share > 0.5, source, base))
