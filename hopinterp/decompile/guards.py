"""Heads that look elsewhere from one input to the next: rules chosen by which letters repeat along the chain."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from sklearn.tree import DecisionTreeRegressor
from torch import Tensor

from hopinterp.decompile.controls import paired, rate, wrong_answers
from hopinterp.decompile.records import Decompiled, percent
from hopinterp.decompile.routes import LEAST_SHARE, Part, Pattern, Route, Routing, positions, run_routed
from hopinterp.errors import HopInterpError
from hopinterp.models.fused import FusedTransformer
from hopinterp.models.hooks import pattern
from hopinterp.seeds import seeded
from hopinterp.shown import Row, Shown
from hopinterp.task import Batch, HopTask

POOR = 0.99
"""A head is asked for a guard where its fixed rule accounts for less of its pattern's squared norm on other sequences.
Constructed heads have 1 to four digits, untrained ones of depth5's sizes .997 or more."""
GAIN = 0.02
"""A guard is kept if it accounts for this share more than the fixed rule on sequences that neither was fitted to, as a
content-free rule must (`routes.CONTENT_FREE_GAIN`)."""
SPLIT_GAIN = 0.005
"""Each question must account for this share of the pattern's squared norm, as the second part of a mixture must."""
MOST_QUESTIONS, LEAST_ROWS = 3, 0.02
"""In a row, and the share of rows that each answer must decide."""
LEAST_USED = 0.05
"""A head uses a place on which it puts this much, of all positions that have the place."""
FURTHEST = 8
"""The last hop that is asked about, and that a guarded head may look at."""
_SUPERSCRIPTS = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class Fact:
    """A yes-or-no question about the chain of i: whether find^b(i) exists, or X_find^a(i) = X_find^b(i) (and both exist).

    Attributes:
        a: None where existence is asked.
    """

    a: int | None
    b: int

    def holds(self, batch: Batch) -> Bool[Tensor, "batch query"]:
        """The answer at every position."""
        found = batch.find[:, self.b] > 0
        return found if self.a is None else found & (batch.hop_letters[:, self.a] == batch.hop_letters[:, self.b])

    def __str__(self) -> str:
        there = f"find{str(self.b).translate(_SUPERSCRIPTS)}(i)"
        if self.a is None:
            return f"{there} exists"
        here = f"find{str(self.a).translate(_SUPERSCRIPTS)}(i)" if self.a else "i"
        return f"X_{here} = X_{there}"


def facts(task: HopTask) -> list[Fact]:
    """All that is asked. Letters one hop apart always differ."""
    most = min(task.max_hops, FURTHEST)
    exist = [Fact(None, b) for b in range(1, most + 1)]
    return exist + [Fact(a, b) for b in range(2, most + 1) for a in range(b - 1)]


@dataclass(frozen=True)
class Case:
    """What a head does on inputs of one kind.

    Attributes:
        given: facts that hold of them (True) or do not.
        route: where it looks there.
        share: of the positions that the guard was fitted to.
    """

    given: tuple[tuple[Fact, bool], ...]
    route: Route
    share: float

    def __str__(self) -> str:
        told = " and ".join(f"{'' if holds else 'not '}{fact}" for fact, holds in self.given)
        return f"if {told}: {self.route}"


@dataclass(frozen=True)
class Guard:
    """Where a head looks, by what holds of the input.

    Attributes:
        fixed: its one rule without a guard.
        cases: of which every input is exactly one.
        fixed_explains, explains: share of the pattern's squared norm that the fixed rule and the guarded ones account for,
            on sequences that neither was fitted to.
    """

    layer: int
    head: int
    fixed: Route
    cases: tuple[Case, ...]
    fixed_explains: float
    explains: float

    def case_of(self, batch: Batch) -> Int[Tensor, "batch query"]:
        """The number of each position's case."""
        number = torch.zeros_like(batch.tokens)
        for n, case in enumerate(self.cases):
            holds = torch.stack([fact.holds(batch) == holds for fact, holds in case.given]).all(0)
            number[holds] = n
        return number

    def __str__(self) -> str:
        explains = f"explains {self.explains:.0%} of the pattern, without guard {self.fixed_explains:.0%}"
        return f"{self.layer}.{self.head}: {'; '.join(map(str, self.cases))} ({explains})"


@dataclass(frozen=True, eq=False)
class GuardedRouting(Routing):
    """A routing in which some heads' rules depend on the input. Each case's pattern is that of its route.

    Attributes:
        guards: of these heads.
        asked: layer and head of all whose fixed rule explains their pattern poorly.
        exchange: draws for every position which sequence's case it gets, a control; None: its own.
    """

    guards: tuple[Guard, ...] = ()
    asked: frozenset[tuple[int, int]] = frozenset()
    exchange: torch.Generator | None = None

    def _head(self, batch: Batch, layer: int, head: int) -> Float[Tensor, "batch query key"]:
        guard = next((guard for guard in self.guards if (guard.layer, guard.head) == (layer, head)), None)
        if guard is None:
            return super()._head(batch, layer, head)
        case = guard.case_of(batch)
        if self.exchange is not None:
            order = torch.rand(case.shape, generator=self.exchange).argsort(0)
            case = case.gather(0, order.to(case.device))
        made = super()._head(batch, layer, head)
        for n, one in enumerate(guard.cases):
            by_route = Routing._head(self._with({(layer, head): one.route}), batch, layer, head)
            made = torch.where((case == n)[..., None], by_route, made)
        return made


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


# -- fitting ----------------------------------------------------------------------------------------------------------


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


# -- measuring --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answers:
    """A model's answers with its patterns set in one way, on fresh sequences.

    Attributes:
        error: err_k; `low`, `high`: 95% of its difference from the model's own, paired by sequence.
        same: share of the scored inputs to which the answer is the model's own.
    """

    error: float
    low: float
    high: float
    same: float


@dataclass(frozen=True, repr=False)
class Guards(Shown):
    """How far guards explain a model whose heads have no fixed rules. Rates are 0 … 1, on fresh sequences.

    Attributes:
        own: err_k of the model as it is.
        fixed: every pattern by its head's one rule. `guarded`: with guards where a head has one.
        low, high: 95% of fixed − guarded, paired by sequence: what guards gain.
        one_by_input, two_by_input: the heads that were asked for a guard look, at every input anew, at the place or the two
            places (with shares of the input's own) that their own pattern is nearest to; all others by rule. Guards cannot
            come nearer to the patterns.
        shuffled: with guards handed around among the heads that have one, a draw each; empty where fewer than two have.
            `permuted`: each position of each head gets the case of another sequence's.
        guards: of the heads that have one. `asked`: how many were asked for one.
    """

    model: str
    hops: int
    own: float
    fixed: Answers
    guarded: Answers
    low: float
    high: float
    one_by_input: Answers
    two_by_input: Answers
    shuffled: tuple[Answers, ...]
    permuted: tuple[Answers, ...]
    guards: tuple[Guard, ...]
    asked: int
    sequences: int

    @property
    def columns(self) -> list[str]:
        """Over `rows`."""
        return ["", "wrong", "inputs explained"]

    @property
    def rows(self) -> list[Row]:
        """Errors with each kind of rules, and of the controls."""
        measured = {"fixed rules": self.fixed, "with guards": self.guarded}
        measured |= {"best place for every input": self.one_by_input, "best two": self.two_by_input}
        rows = [(name, (percent(seen.error), f"{seen.same:.1%}")) for name, seen in measured.items()]
        return [("the model itself", (percent(self.own), "–")), *rows]

    @property
    def reading(self) -> str:
        """Errors and controls in words, the guards, and what they gain."""
        controls = {"guards shuffled among heads": self.shuffled, "cases permuted among inputs": self.permuted}
        told = [f"{name} {percent(sum(one.error for one in seen) / len(seen))}" for name, seen in controls.items() if seen]
        gain = f"{percent(self.fixed.error - self.guarded.error)} ({100 * self.low:.1f} to {100 * self.high:.1f})"
        return "\n".join(
            [
                *map(str, self.guards),
                f"Guards gain {gain}{''.join(f'; {one}' for one in told)}.",
                f"{self.model or 'the model'}, k = {self.hops}: {len(self.guards)} of {self.asked} heads that no fixed rule"
                f" fits have a guard; {percent(self.fixed.error)} wrong by fixed rules, {percent(self.guarded.error)} with"
                " guards.",
            ]
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values; guards as text."""
        return {**asdict(replace(self, guards=())), "guards": [str(guard) for guard in self.guards]}


def measure_guards(
    found: Decompiled, *, fit_sequences: int = 200, sequences: int = 200, draws: int = 3, seed: int = 0
) -> Guards:
    """How far guards ("if X_i = X_find²(i): hop 3, else hop 1") explain a model, beside its fixed rules.

    Args:
        found: by `decompile`, with the model.
        fit_sequences: on which guards are grown and judged. `sequences`: fresh ones, on which all errors are measured.
        draws: of each control.

    Raises:
        HopInterpError: `found` was loaded without its model, or too few sequences.
    """
    numbers = {"fit_sequences": fit_sequences, "sequences": sequences, "draws": draws, "seed": seed}
    return replace(guard_routing(found.network_to_run, found.routing, **numbers), model=found.model)


@torch.no_grad()
def guard_routing(
    model: FusedTransformer,
    routing: Routing,
    *,
    fit_sequences: int = 200,
    sequences: int = 200,
    draws: int = 3,
    seed: int = 0,
) -> Guards:
    """`measure_guards` of a model and its routing."""
    guarded = fit_guards(model, routing, sequences=fit_sequences, seed=seed)
    batch = routing.task.sample(sequences, hops=routing.hops, seed=3_000_017 + seed, device=model.device)
    if not batch.scored.any():
        raise HopInterpError(f"none of {sequences} sequences has a chain of {routing.hops} links")
    own = model(batch.tokens)
    few = batch[: max(sequences // 2, 1)]
    by_input = [BestByInput(**vars(routing), model=model, units=guarded.asked, parts=parts) for parts in (1, 2)]
    fixed_logits, guarded_logits = (run_routed(model, batch, one) for one in (routing, guarded))
    before, after = (wrong_answers(logits, batch) for logits in (fixed_logits, guarded_logits))
    gain = paired(after, before, batch.scored.double())

    def on_few(other: Routing) -> Answers:
        return _answers(run_routed(model, few, other), own[: len(few)], few)

    generator = seeded(seed)
    shuffled = [replace(guarded, guards=given) for given in _shuffles(guarded.guards, draws, generator)]
    permuted = [replace(guarded, exchange=generator)] * (draws if guarded.guards else 0)
    return Guards(
        model="",
        hops=routing.hops,
        own=rate(own, batch),
        fixed=_answers(fixed_logits, own, batch),
        guarded=_answers(guarded_logits, own, batch),
        low=gain[0],
        high=gain[1],
        one_by_input=on_few(by_input[0]),
        two_by_input=on_few(by_input[1]),
        shuffled=tuple(map(on_few, shuffled)),
        permuted=tuple(map(on_few, permuted)),
        guards=guarded.guards,
        asked=len(guarded.asked),
        sequences=sequences,
    )


def _answers(
    logits: Float[Tensor, "batch position d_vocab"], own: Float[Tensor, "batch position d_vocab"], batch: Batch
) -> Answers:
    low, high = paired(wrong_answers(own, batch), wrong_answers(logits, batch), batch.scored.double())
    same = (logits.argmax(-1) == own.argmax(-1))[batch.scored].double().mean()
    return Answers(rate(logits, batch), low, high, float(same))


def _shuffles(guards: Sequence[Guard], draws: int, generator: torch.Generator) -> Iterator[tuple[Guard, ...]]:
    """Each guard given to another head that has one."""
    for _ in range(draws if len(guards) > 1 else 0):
        order = torch.randperm(len(guards), generator=generator).tolist()
        places = [(guards[n].layer, guards[n].head) for n in (*order[1:], order[0])]
        yield tuple(replace(guards[n], layer=place[0], head=place[1]) for n, place in zip(order, places, strict=True))
