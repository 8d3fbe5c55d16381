"""Rules of heads that look elsewhere from one input to the next, by which letters repeat along the chain."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hopinterp.decompile.routes import Route, Routing
from hopinterp.task import Batch, HopTask

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
