"""Guards fitted to a model: a regression tree from facts of the chain to what a head puts on each place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from sklearn.tree import DecisionTreeRegressor
from torch import Tensor

from hopinterp.decompile.guards import FURTHEST, Case, Fact, Guard, GuardedRouting, facts
from hopinterp.decompile.route_fitting import LEAST_SHARE
from hopinterp.decompile.routes import Part, Pattern, Route, Routing, positions
from hopinterp.errors import HopInterpError
from hopinterp.models.fused import FusedTransformer
from hopinterp.models.hooks import pattern
from hopinterp.task import Batch

POOR = 0.99
"""A head is asked for a guard where its fixed rule accounts for less of its pattern's squared norm on other sequences.
Constructed heads have 1 to four digits, untrained ones of depth5's sizes .997 or more."""
GAIN = 0.02
"""A guard is kept if it accounts for this share more than the fixed rule on sequences that neither was fitted to, as a
content-free rule must (`route_fitting.CONTENT_FREE_GAIN`)."""
SPLIT_GAIN = 0.005
"""Each question must account for this share of the pattern's squared norm, as the second part of a mixture must."""
MOST_QUESTIONS, LEAST_ROWS = 3, 0.02
"""In a row, and the share of rows that each answer must decide."""
LEAST_USED = 0.05
"""A head uses a place on which it puts this much, of all positions that have the place."""


@dataclass(frozen=True, eq=False)
class _Named:
    """The places of each position that a guarded rule may name: itself, the hop token and its hops, all of them apart where
    no two neighbours are equal. (A position before a hop often is another hop.)

    Attributes:
        place: where each part looks; −1 where that is null.
    """

    parts: tuple[Part, ...]
    place: Int[Tensor, "batch part query"]

    @classmethod
    def of(cls, batch: Batch) -> _Named:
        most = min(batch.task.max_hops, FURTHEST)
        parts = (Part("self"), Part("first"), *(Part("hop", j) for j in range(1, most + 1)))
        return cls(parts, torch.stack([positions(batch, part) for part in parts], dim=1))

    def hits(self, patterns: Float[Tensor, "batch query key"]) -> Float[Tensor, "batch part query"]:
        """What a head puts on each."""
        rows = patterns[:, None].expand(-1, len(self.parts), -1, -1)
        return rows.gather(3, self.place.clamp_min(0)[..., None])[..., 0].masked_fill(self.place < 0, 0.0)

    def nearest(self, patterns: Float[Tensor, "batch query key"], parts: int) -> Float[Tensor, "batch query key"]:
        """For every position the pattern on its best one or two places that is nearest to the given one."""
        most, which = self.hits(patterns).topk(2, dim=1)
        share = _best_share(most[:, 0], most[:, 1]) if parts == 2 else torch.ones_like(most[:, 0])
        at = self.place.clamp_min(0).gather(1, which)
        made = torch.zeros_like(patterns)
        for n, part in enumerate((share, 1 - share)):
            made.scatter_add_(2, at[:, n, :, None], part[..., None])
        return made


def _best_share(most: Any, second: Any) -> Any:
    """The share of the first of two places that leaves least of a pattern with so much on each."""
    return (0.5 + (most - second) / 2).clip(0, 1)


def _misfit(own: Float[Tensor, "batch query key"], made: Float[Tensor, "batch query key"]) -> Float[Tensor, "batch query"]:
    return (own - made).square().sum(-1)


def _explains(own: Float[Tensor, "batch query key"], made: Float[Tensor, "batch query key"]) -> float:
    """Share of a pattern's squared norm, over all rows but the hop token's."""
    return float(1 - _misfit(own, made)[:, 1:].sum() / own[:, 1:].square().sum())


@dataclass(frozen=True, eq=False)
class BestByInput(Routing):
    """A routing in which some heads look, at every input anew, where their own pattern is nearest to: at the places it puts
    most on, with its own shares, or as the fixed rule says. No guard can come nearer to the pattern.

    Attributes:
        model: whose patterns are approached.
        units: layer and head of these.
        parts: how many places at once, 1 or 2.
    """

    model: FusedTransformer | None = None
    units: frozenset[tuple[int, int]] = frozenset()
    parts: int = 2

    def pattern(self, batch: Batch, layer: int) -> Pattern:
        """The patterns of one block's heads on a batch."""
        made, heads = super().pattern(batch, layer), sorted(head for at, head in self.units if at == layer)
        if heads:
            assert self.model is not None
            own = self.model.run_with_cache(batch.tokens, [pattern(layer)])[1][pattern(layer)]
            named = _Named.of(batch)
            for head in heads:
                nearest = named.nearest(own[:, head], self.parts)
                better = _misfit(own[:, head], nearest) < _misfit(own[:, head], made[:, head])
                made[:, head] = torch.where(better[..., None], nearest, made[:, head])
        return made


@torch.no_grad()
def fit_guards(model: FusedTransformer, routing: Routing, *, sequences: int = 100, seed: int = 0) -> GuardedRouting:
    """A guard for every head that has one.

    A head whose fixed rule explains its pattern poorly gets a regression tree from facts of the chain to what it puts on
    each named place: by squared distance, as fixed rules are fitted. Each leaf becomes a route of at most two parts, unless
    the fixed rule does as well there. Half of the sequences serve to grow the tree, the others to decide whether it is kept.

    Raises:
        HopInterpError: fewer than four sequences.
    """
    if sequences < 4:
        raise HopInterpError(f"sequences is {sequences}; a guard is grown and judged on two each, at least")
    batch = routing.task.sample(sequences, hops=routing.hops, seed=2_000_003 + seed, device=model.device)
    plain = GuardedRouting(**vars(routing))
    guards, asked = [], set()
    for layer in range(len(routing.routes)):
        grow, judge = (_Seen.of(model, routing, layer, part) for part in (batch[: sequences // 2], batch[sequences // 2 :]))
        for head in range(len(routing.routes[layer])):
            if _explains(judge.own[:, head], judge.fixed[:, head]) < POOR:
                asked.add((layer, head))
                guards += _guard_of(plain, layer, head, grow, judge)
    return replace(plain, guards=tuple(guards), asked=frozenset(asked))


@dataclass(frozen=True, eq=False)
class _Seen:
    """One block's patterns on a batch: the model's own and by the fixed rules."""

    batch: Batch
    own: Pattern
    fixed: Pattern

    @classmethod
    def of(cls, model: FusedTransformer, routing: Routing, layer: int, batch: Batch) -> _Seen:
        own = model.run_with_cache(batch.tokens, [pattern(layer)])[1][pattern(layer)]
        return cls(batch, own, routing.pattern(batch, layer))


def _guard_of(plain: GuardedRouting, layer: int, head: int, grow: _Seen, judge: _Seen) -> list[Guard]:
    """One head's guard, if it has one."""
    route = plain.routes[layer][head]
    growing = _Growing.of(grow.batch, grow.own[:, head], grow.fixed[:, head], route)
    cases = growing.cases if growing else ()
    if len(cases) < 2:
        return []
    without = _explains(judge.own[:, head], judge.fixed[:, head])
    guard = Guard(layer, head, route, cases, without, without)
    made = replace(plain, guards=(guard,)).pattern(judge.batch, layer)[:, head]
    explains = _explains(judge.own[:, head], made)
    return [replace(guard, explains=explains)] if explains - without >= GAIN else []


@dataclass(frozen=True, eq=False)
class _Growing:
    """One head's tree, and what its leaves look at. It is grown on rows at which all places exist that the head uses: what
    null rows do is part of each route.

    Attributes:
        asked: the answers to all facts, a row a position.
        hits: what the head puts on each place that it uses. `norms`: of its rows, squared.
        fixed_misfit: squared distance of the rows from the fixed rule's.
    """

    route: Route
    parts: Sequence[Part]
    facts: Sequence[Fact]
    asked: Bool[np.ndarray, "row fact"]
    hits: Float[np.ndarray, "row part"]
    norms: Float[np.ndarray, " row"]
    fixed_misfit: Float[np.ndarray, " row"]

    @classmethod
    def of(
        cls,
        batch: Batch,
        own: Float[Tensor, "batch query key"],
        fixed: Float[Tensor, "batch query key"],
        route: Route,
    ) -> _Growing | None:
        """None where a head uses fewer than two places, or too few positions have them all."""
        asked, named = facts(batch.task), _Named.of(batch)
        there, hits = named.place[..., 1:] >= 0, named.hits(own)[..., 1:]
        used = (hits.sum((0, 2)) >= LEAST_USED * there.sum((0, 2))) & there.any(2).any(0)
        rows = there[:, used].all(1)
        if used.sum() < 2 or rows.double().mean() < LEAST_ROWS:
            return None
        answers = torch.stack([fact.holds(batch)[:, 1:][rows] for fact in asked], dim=1)
        misfit, norms = _misfit(own, fixed)[:, 1:][rows], own.square().sum(-1)[:, 1:][rows]
        arrays = (x.cpu().numpy() for x in (answers, hits[:, used].transpose(1, 2)[rows], norms, misfit))
        return cls(route, [part for part, taken in zip(named.parts, used, strict=True) if taken], asked, *arrays)

    @cached_property
    def tree(self) -> Any:
        least = SPLIT_GAIN * self.norms.mean() / len(self.parts)  # scikit-learn's impurity is a mean over parts
        settings = {"max_depth": MOST_QUESTIONS, "min_samples_leaf": LEAST_ROWS, "min_impurity_decrease": least}
        return DecisionTreeRegressor(random_state=0, **settings).fit(self.asked, self.hits).tree_

    @cached_property
    def cases(self) -> tuple[Case, ...]:
        return tuple(self._below(0, np.ones(len(self.asked), dtype=bool), ()))

    def _below(self, node: int, rows: Bool[np.ndarray, " row"], given: tuple[tuple[Fact, bool], ...]) -> list[Case]:
        """The cases of a branch; one, where all of them look at the same places."""
        no, yes, fact = (int(getattr(self.tree, name)[node]) for name in ("children_left", "children_right", "feature"))
        if no < 0:
            return [Case(given, self._route(rows), float(rows.mean()))]
        holds, question = self.asked[:, fact], self.facts[fact]
        cases = self._below(yes, rows & holds, (*given, (question, True)))
        cases += self._below(no, rows & ~holds, (*given, (question, False)))
        if len({tuple((part.kind, part.hop) for part in case.route.parts) for case in cases}) == 1:
            return [Case(given, self._route(rows), float(rows.mean()))]
        return cases

    def _route(self, rows: Bool[np.ndarray, " row"]) -> Route:
        """The fixed rule, or the one or two places that leave less of the rows."""
        mean, norm = self.hits[rows].mean(0), self.norms[rows].mean()
        first, second = mean.argsort()[::-1][:2]
        most, other = mean[[first, second]]
        share = float(_best_share(most, other).clip(LEAST_SHARE, 1 - LEAST_SHARE))
        alone = norm - 2 * most + 1
        mixed = norm - 2 * (share * most + (1 - share) * other) + share**2 + (1 - share) ** 2
        if self.fixed_misfit[rows].mean() <= min(alone, mixed):
            return self.route
        if alone - mixed <= SPLIT_GAIN * norm:
            return replace(self.route, parts=(self.parts[first],))
        parts = (replace(self.parts[first], share=share), replace(self.parts[second], share=1 - share))
        return replace(self.route, parts=parts)
