"""The circuit whose queries and values both come from its own nodes, found on the error of that very run."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

import torch

from hopinterp.decompile.live import LiveRunner, LiveState, Site, Sites
from hopinterp.evidence.intervals import bootstrap

TOLERANCE = 0.02
"""The joint error that a circuit may have on the fitting pairs, of the .10 that is allowed on fresh ones. Constructed models
err at 0, and at .47 or more without any one node of their circuit: any value up to .3 gives the same. Untrained ones err at
.87 with everything kept. Trained ones err on fresh pairs by about twice what they do on the fitting ones, so .02."""


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


def find_joint(fit: LiveRunner, fresh: LiveRunner, values: Iterable[Site], pointers: Iterable[Site]) -> Joint:
    """From a value tree and its pointer trees: add what the error needs, then take away what it does not.

    Block 0 is added first, at all places where the trees stand: it tells positions which letters are nearby.
    """
    tree = frozenset(values) & fit.whole
    seed = tree | (frozenset(pointers) & fit.whole)
    start = fit.run(seed)
    whole = fit.error(fit.run(fit.whole))
    places = {site.place for site in seed}
    nearby = fit.change(start, add=[site for site in fit.whole if site.layer == 0 and site.place in places])
    grown = _grow(fit, min(start, nearby, key=fit.error), max(TOLERANCE, whole))
    pruned = _prune(fit, grown, seed)
    wrong = fresh.wrong(fresh.run(pruned.kept))
    counts = torch.zeros(len(fresh.pairs.batch), 2, dtype=torch.float64)
    both = torch.stack([wrong.sum(1), torch.full((len(wrong),), wrong.shape[1])], dim=1).double()
    counts.index_add_(0, fresh.pairs.base, both)
    low, high = bootstrap(counts[:, 0], counts[:, 1], seed=0)
    return Joint(
        pruned.kept,
        float(wrong.float().mean()),
        float(low),
        float(high),
        fit.error(pruned),
        fit.error(start),
        fit.error(fit.run(tree)),
        whole,
    )


def _grow(runner: LiveRunner, state: LiveState, enough: float) -> LiveState:
    """Add whole blocks, the one that helps most first, until the error is low enough or none helps."""
    while runner.error(state) > enough:
        best = state
        for layer in range(runner.model.spec.n_layers):
            here = [site for site in runner.whole - state.kept if site.layer == layer]
            tried = runner.change(state, add=here)
            if here and runner.error(tried) < runner.error(best):
                best = tried
        if best is state:
            break
        state = best
    return state


def _prune(runner: LiveRunner, state: LiveState, seed: Sites) -> LiveState:
    """From the last block down, first what was added, then what the trees had; sets before single sites.

    Every block may use up an equal part of the tolerance, as in the value tree."""
    depth = runner.model.spec.n_layers
    for done, layer in enumerate(reversed(range(depth)), start=1):
        for part in (False, True):
            allowed = max(TOLERANCE * done / depth, runner.error(state) + TOLERANCE / 4 / depth)
            here = [site for site in state.kept if site.layer == layer and (site in seed) == part]
            state = _try(runner, state, _units(here), allowed)
    for head in range(runner.model.spec.n_heads):  # heads of block 0 were tried together
        allowed = max(TOLERANCE, runner.error(state))
        state = _try(runner, state, [frozenset(s for s in state.kept if (s.layer, s.head) == (0, head))], allowed)
    return state


def _units(sites: Iterable[Site]) -> list[Sites]:
    """Sites that are tried one by one; those of block 0 at one place, which tell of the letters nearby, as one."""
    units: dict[tuple[object, ...], set[Site]] = {}
    for site in sorted(sites, key=lambda s: (s.layer, s.head, s.place)):
        units.setdefault((site.place, site.layer and site.head), set()).add(site)
    return [frozenset(unit) for unit in units.values()]


def _try(runner: LiveRunner, state: LiveState, tried: list[Sites], allowed: float) -> LiveState:
    """Remove a set at once where the error allows it; otherwise each half in turn."""
    if not tried:
        return state
    without = runner.change(state, remove=_all(tried))
    if runner.error(without) <= allowed + 1e-9:
        return without
    if len(tried) == 1:
        return state
    half = len(tried) // 2
    return _try(runner, _try(runner, state, tried[:half], allowed), tried[half:], allowed)


def _all(units: Collection[Sites]) -> Sites:
    return frozenset[Site]().union(*units)
