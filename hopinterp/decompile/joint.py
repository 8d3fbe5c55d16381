"""The circuit whose queries and values both come from its own nodes, found on the error of that very run."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate, pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from hopinterp.decompile.halving import remove
from hopinterp.decompile.live import LiveRunner, LiveState, Site, Sites
from hopinterp.evidence.intervals import bootstrap
from hopinterp.memory import release_memory

TOLERANCE = 0.02
"""The joint error that a circuit may have on the fitting pairs, of the .10 that is allowed on fresh ones. Constructed models
err at 0, and at .47 or more without any one node of their circuit: any value up to .3 gives the same. Untrained ones err at
.87 with everything kept. Trained ones err on fresh pairs by about twice what they do on the fitting ones, so .02."""

SHARES = (1 / 8, 3 / 8, 1 / 2)
"""Of the fitting pairs, run one after the other, those whose answers are least certain first: what does harm shows there."""


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
class _Run:
    """One circuit's run on the fitting pairs in shares, so that a change of it is given up as soon as the answers seen are
    too many wrong.

    Attributes:
        fit: runs all fitting pairs.
        shares: of each share its runner, a view of `fit`, and its state.
    """

    fit: LiveRunner
    shares: list[tuple[LiveRunner, LiveState]]

    @classmethod
    def of(cls, fit: LiveRunner, kept: Iterable[Site]) -> _Run:
        """A circuit from scratch."""
        return cls._split(fit, fit.run(kept))

    @classmethod
    def _split(cls, fit: LiveRunner, state: LiveState) -> _Run:
        pairs = len(fit.pairs.base)
        ends = [0, *(round(share * pairs) for share in accumulate(SHARES))]
        parts = [(start, end) for start, end in pairwise(ends) if end > start]
        return cls(fit, [(fit.of_pairs(*part), state.of_pairs(*part)) for part in parts])

    @property
    def kept(self) -> Sites:
        return self.shares[0][1].kept

    @cached_property
    def error(self) -> float:
        return sum(int(runner.wrong(state).sum()) for runner, state in self.shares) / self.fit.pairs.position.numel()

    def change(self, allowed: float, *, add: Collection[Site] = (), remove: Collection[Site] = ()) -> _Run | None:
        """The changed circuit; None where its error is more than is allowed."""
        found, wrong = [], 0
        for runner, state in self.shares:
            found.append((runner, runner.change(state, add=add, remove=remove)))
            wrong += int(runner.wrong(found[-1][1]).sum())
            if wrong > allowed * self.fit.pairs.position.numel() + 1e-6:
                return None
        return replace(self, shares=found)

    def least_certain_first(self) -> _Run:
        """The same run with its pairs in the order of how far their answers are from being wrong. It takes this one's place,
        which is empty then: both at once would be a second model's worth of memory."""
        order = torch.cat([runner.margin(state).amin(1) for runner, state in self.shares]).argsort(stable=True)
        state = LiveState.joined([state for _, state in self.shares], order)
        self.shares.clear()
        fit = self.fit.reordered(order)
        release_memory()
        return self._split(fit, state)


def find_joint(fit: LiveRunner, fresh: Iterable[LiveRunner], values: Iterable[Site], pointers: Iterable[Site]) -> Joint:
    """From a value tree and its pointer trees: add what the error needs, then take away what it does not.

    Block 0 is added first, at all places where the trees stand: it tells positions which letters are nearby.

    Args:
        fresh: runners of the pairs that the circuit is judged on, each made when the one before it is done with.
    """
    whole = fit.whole
    tree = frozenset(values) & whole
    seed = tree | (frozenset(pointers) & whole)
    least, by_values = fit.error(fit.run(whole)), fit.error(fit.run(tree))
    release_memory()
    kept, fitted, seeded = _search(fit, whole, seed, max(TOLERANCE, least))
    del fit
    release_memory()
    counts = sum(_counts(runner, kept) for runner in fresh)
    assert isinstance(counts, Tensor)
    low, high = bootstrap(counts[:, 0], counts[:, 1], seed=0)
    error = float(counts[:, 0].sum() / counts[:, 1].sum())
    return Joint(kept, error, float(low), float(high), fitted=fitted, seeded=seeded, values=by_values, whole=least)


def _counts(runner: LiveRunner, kept: Sites) -> Float[Tensor, "sequence 2"]:
    """Of every sequence, how many positions are answered wrong, and how many there are."""
    wrong = runner.wrong(runner.run(kept))
    counts = torch.zeros(len(runner.pairs.batch), 2, dtype=torch.float64)
    both = torch.stack([wrong.sum(1), torch.full((len(wrong),), wrong.shape[1])], dim=1).double()
    return counts.index_add_(0, runner.pairs.base, both)


def _search(fit: LiveRunner, whole: Sites, seed: Sites, enough: float) -> tuple[Sites, float, float]:
    """The circuit, its error on the fitting pairs, and that of the trees alone. Only one run is kept at a time."""
    run = _Run.of(fit, seed)
    seeded, places = run.error, {site.place for site in seed}
    run = run.change(seeded, add=[site for site in whole if site.layer == 0 and site.place in places]) or run
    run = _grow(run, whole, enough)
    for done in range(fit.model.spec.n_layers):
        run = run.least_certain_first()
        run = _prune(run, seed, done)
    run = _prune_first(run)
    return run.kept, run.error, seeded


def _grow(run: _Run, whole: Sites, enough: float) -> _Run:
    """Add whole blocks, the one that helps most first, until the error is low enough; all at once where none helps alone."""
    while (error := run.error) > enough:
        best = run
        for layer in range(1 + max(site.layer for site in whole)):
            here = [site for site in whole - run.kept if site.layer == layer]
            tried = run.change(error - 1e-5, add=here) if here else None
            if tried is not None:
                best, error = tried, tried.error
        if best is run:
            return run.change(error - 1e-5, add=whole - run.kept) or run
        run = best
    return run


def _prune(run: _Run, seed: Sites, done: int) -> _Run:
    """Of one block, the last one first: what was added, then what the trees had; sets before single sites.

    Every block may use up an equal part of the tolerance, as in the value tree.

    Args:
        done: how many blocks are pruned already.
    """
    depth = run.fit.model.spec.n_layers
    for part in (False, True):
        allowed = max(TOLERANCE * (done + 1) / depth, run.error + TOLERANCE / 4 / depth)
        here = [site for site in run.kept if site.layer == depth - 1 - done and (site in seed) == part]
        run = _try(run, _units(here), allowed)
    return run


def _prune_first(run: _Run) -> _Run:
    """Whole heads of block 0, which were tried together."""
    for head in range(run.fit.model.spec.n_heads):
        allowed = max(TOLERANCE, run.error)
        run = _try(run, [frozenset(s for s in run.kept if (s.layer, s.head) == (0, head))], allowed)
    return run


def _units(sites: Iterable[Site]) -> list[Sites]:
    """Sites that are tried one by one; those of block 0 at one place, which tell of the letters nearby, as one."""
    units: dict[tuple[object, ...], set[Site]] = {}
    for site in sorted(sites, key=lambda s: (s.layer, s.head, s.place)):
        units.setdefault((site.place, site.layer and site.head), set()).add(site)
    return [frozenset(unit) for unit in units.values()]


def _try(run: _Run, tried: list[Sites], allowed: float) -> _Run:
    """Remove what the error allows."""

    def without(circuit: _Run, units: Sequence[Sites]) -> _Run | None:
        return circuit.change(allowed, remove=frozenset[Site]().union(*units))

    return remove(run, tried, without)
