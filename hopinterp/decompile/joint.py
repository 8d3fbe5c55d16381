"""The circuit whose queries and values both come from its own nodes, found on the error of that very run."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from hopinterp.decompile.halving import remove
from hopinterp.decompile.live import LiveRunner, LiveState, Site, Sites
from hopinterp.evidence.intervals import bootstrap

TOLERANCE = 0.02
"""The joint error that a circuit may have on the fitting pairs, of the .10 that is allowed on fresh ones. Constructed models
err at 0, and at .47 or more without any one node of their circuit: any value up to .3 gives the same. Untrained ones err at
.87 with everything kept. Trained ones err on fresh pairs by about twice what they do on the fitting ones, so .02."""

SHARES = 4
"""Of the fitting pairs, run one after the other."""
States = list[LiveState]


@dataclass(frozen=True)
class Joint:
    """A circuit run as a whole on fresh pairs: clean keys, live queries, patterns and values, all else resampled.

    Attributes:
        sites: the heads at places that are kept.
        error: on fresh pairs; `low` and `high`, 95%.
        fitted: on the pairs that it was found on; `seeded`: of the value tree and its pointer trees there, `values`: of the
            value tree alone, both before anything was added.
        whole: of all heads at all places, on the fitting pairs: what is lost by taking everything off the chain away.
    """

    sites: Sites
    error: float
    low: float
    high: float
    fitted: float
    seeded: float
    values: float
    whole: float


@dataclass(frozen=True, eq=False)
class _Fit:
    """The fitting pairs in shares, so that a circuit is given up as soon as the answers seen are too many wrong."""

    runners: list[LiveRunner]

    @cached_property
    def answers(self) -> int:
        return sum(runner.position[..., 0].numel() for runner in self.runners)

    def run(self, kept: Iterable[Site]) -> States:
        kept = frozenset(kept)
        return [runner.run(kept) for runner in self.runners]

    def error(self, states: States) -> float:
        wrong = sum(int(runner.wrong(state).sum()) for runner, state in zip(self.runners, states, strict=True))
        return wrong / self.answers

    def change(
        self, states: States, allowed: float, *, add: Collection[Site] = (), remove: Collection[Site] = ()
    ) -> States | None:
        """The changed circuit; None where its error is more than is allowed."""
        found, wrong = [], 0
        for runner, state in zip(self.runners, states, strict=True):
            found.append(runner.change(state, add=add, remove=remove))
            wrong += int(runner.wrong(found[-1]).sum())
            if wrong > allowed * self.answers + 1e-6:
                return None
        return found


def find_joint(fit: LiveRunner, fresh: LiveRunner, values: Iterable[Site], pointers: Iterable[Site]) -> Joint:
    """From a value tree and its pointer trees: add what the error needs, then take away what it does not.

    Block 0 is added first, at all places where the trees stand: it tells positions which letters are nearby.
    """
    whole, shares = fit.whole, _Fit(fit.split(SHARES))
    tree = frozenset(values) & whole
    seed = tree | (frozenset(pointers) & whole)
    start, least = shares.run(seed), shares.error(shares.run(whole))
    places = {site.place for site in seed}
    nearby = shares.change(
        start, shares.error(start), add=[site for site in whole if site.layer == 0 and site.place in places]
    )
    grown = _grow(shares, start if nearby is None else nearby, whole, max(TOLERANCE, least))
    pruned = _prune(shares, grown, seed)
    kept = pruned[0].kept
    wrong = fresh.wrong(fresh.run(kept))
    counts = torch.zeros(len(fresh.pairs.batch), 2, dtype=torch.float64)
    both = torch.stack([wrong.sum(1), torch.full((len(wrong),), wrong.shape[1])], dim=1).double()
    counts.index_add_(0, fresh.pairs.base, both)
    low, high = bootstrap(counts[:, 0], counts[:, 1], seed=0)
    return Joint(
        kept,
        float(wrong.float().mean()),
        float(low),
        float(high),
        fitted=shares.error(pruned),
        seeded=shares.error(start),
        values=shares.error(shares.run(tree)),
        whole=least,
    )


def _grow(fit: _Fit, states: States, whole: Sites, enough: float) -> States:
    """Add whole blocks, the one that helps most first, until the error is low enough or none helps."""
    while (error := fit.error(states)) > enough:
        best = states
        for layer in range(1 + max(site.layer for site in whole)):
            here = [site for site in whole - states[0].kept if site.layer == layer]
            tried = fit.change(states, error - 1e-5, add=here) if here else None
            if tried is not None:
                best, error = tried, fit.error(tried)
        if best is states:
            break
        states = best
    return states


def _prune(fit: _Fit, states: States, seed: Sites) -> States:
    """From the last block down, first what was added, then what the trees had; sets before single sites.

    Every block may use up an equal part of the tolerance, as in the value tree."""
    runner = fit.runners[0]
    depth = runner.model.spec.n_layers
    for done, layer in enumerate(reversed(range(depth)), start=1):
        for part in (False, True):
            allowed = max(TOLERANCE * done / depth, fit.error(states) + TOLERANCE / 4 / depth)
            here = [site for site in states[0].kept if site.layer == layer and (site in seed) == part]
            states = _try(fit, states, _units(here), allowed)
    for head in range(runner.model.spec.n_heads):  # heads of block 0 were tried together
        allowed = max(TOLERANCE, fit.error(states))
        states = _try(fit, states, [frozenset(s for s in states[0].kept if (s.layer, s.head) == (0, head))], allowed)
    return states


def _units(sites: Iterable[Site]) -> list[Sites]:
    """Sites that are tried one by one; those of block 0 at one place, which tell of the letters nearby, as one."""
    units: dict[tuple[object, ...], set[Site]] = {}
    for site in sorted(sites, key=lambda s: (s.layer, s.head, s.place)):
        units.setdefault((site.place, site.layer and site.head), set()).add(site)
    return [frozenset(unit) for unit in units.values()]


def _try(fit: _Fit, states: States, tried: list[Sites], allowed: float) -> States:
    """Remove what the error allows."""

    def without(circuit: States, units: Sequence[Sites]) -> States | None:
        return fit.change(circuit, allowed, remove=frozenset[Site]().union(*units))

    return remove(states, tried, without)
