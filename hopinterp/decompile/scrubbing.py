"""Causal scrubbing of a tree: each node reads another sequence's stream that agrees only in the letters said to be used."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hopinterp.decompile.derivations import ValueTree
from hopinterp.decompile.fresh_runs import FreshRuns
from hopinterp.decompile.nodes import Node, Nodes, connected
from hopinterp.decompile.routes import Routing
from hopinterp.decompile.tree_runs import State, TreeRunner
from hopinterp.evidence.intervals import bootstrap_ratio
from hopinterp.models.fused import FusedTransformer
from hopinterp.seeds import seeded

LEAST_RISE = 0.02
"""A rise of the error above this, with an interval that excludes 0, means that more is read than the letters named. In
constructed models, whose nodes read the answer's letter alone, it is 0."""


@dataclass(frozen=True)
class Scrub:
    """What happens when a node reads another sequence's stream that agrees in some letters of the chain.

    Attributes:
        letters: hops j whose letters X_{find^j(i)} agree: the answer's alone for a node on a derivation.
        rise: of the error on fresh pairs against the tree as it is, with the paired 95% interval.
        also: where `letters` alone do not do, the hop whose letter, agreeing too, takes away the most of the rise, if that
            is half of it; None where they do, or where no single letter does.
        rise_with_also: the rise with the best such letter too; None where `letters` do.
        matched: share of rows for which a sequence that agrees was found; the others are left as they are.
    """

    node: Node
    letters: tuple[int, ...]
    rise: float
    low: float
    high: float
    also: int | None
    rise_with_also: float | None
    matched: float


@torch.no_grad()
def scrub(
    model: FusedTransformer, routing: Routing, tree: ValueTree, *, sequences: int = 100, seed: int = 0
) -> tuple[Scrub, ...]:
    """Scrub every node of a tree that reads a place of the chain, one at a time.

    The stream that is read comes from the model's own run of the other sequence, at the same place of that sequence's chain.
    Sequences are fresh: neither those that the tree was found nor those that it was measured on.
    """
    runs, hops = FreshRuns.draw(model, routing, sequences, seed=3 * seed + 1_000_003), routing.hops
    used = {node: _used(tree.nodes, node, hops) for node in sorted(tree.nodes, reverse=True) if node.target is not None}
    plain = dict(zip(used, _rises(runs, tree.nodes, list(used.items()), seed), strict=True))
    more = [
        (node, (*used[node], j))
        for node, rise in plain.items()
        if rise.mean > LEAST_RISE and rise.low > 0
        for j in _others(node, used[node], min(hops + 1, routing.task.max_hops))
    ]
    with_more: dict[Node, dict[int, float]] = {}
    for (node, letters), rise in zip(more, _rises(runs, tree.nodes, more, seed), strict=True):
        with_more.setdefault(node, {})[letters[-1]] = rise.mean
    return tuple(_judged(node, used[node], plain[node], with_more.get(node)) for node in used)


def _used(nodes: Nodes, node: Node, hops: int) -> tuple[int, ...]:
    """The letter that a node is there for: the answer's; for one on no derivation those of hops k − 1 and k − 2 that paths
    through it end at, or, in block 0, that which it reads."""
    if _leads_to(nodes, node, hops):
        return (hops,)
    ends = tuple(j for j in range(max(hops - 2, 0), hops) if _leads_to(nodes, node, j))
    return ends or (() if node.reads is None else (node.reads,))


def _others(node: Node, letters: Collection[int], last: int) -> list[int]:
    """The hops whose letters a node may read too."""
    assert node.target is not None
    return [j for j in range(max(node.target.at - 1, 0), last + 1) if j not in letters]


class _Rise(NamedTuple):
    """Of the error, with its interval; and the share of rows that could be scrubbed."""

    mean: float
    low: float
    high: float
    matched: float


def _judged(node: Node, letters: tuple[int, ...], plain: _Rise, with_more: dict[int, float] | None) -> Scrub:
    """A node's scrubbing with the letters it is said to use, and with one more where those do not do."""
    also, best = None, None
    if with_more is not None:
        hop = min(with_more, key=lambda j: with_more[j])
        best = with_more[hop]
        also = hop if best <= plain.mean / 2 else None
    return Scrub(node, letters, plain.mean, plain.low, plain.high, also, best, plain.matched)


Asked = tuple[Node, tuple[int, ...]]
"""A node, and the letters in which what it reads agrees."""


def _rises(runs: FreshRuns, nodes: Nodes, asked: Sequence[Asked], seed: int) -> list[_Rise]:
    """What each scrubbing of one node does to the error."""

    def scrubbed(runner: TreeRunner) -> list[tuple[Tensor, Tensor, Tensor]]:
        scrubber = _Scrubber.of(runner, nodes, seed)
        return [scrubber.rise(*one) for one in asked]

    rises = []
    for parts in zip(*(runs.each(scrubbed) if asked else ()), strict=True):
        rise, counted, matched = (torch.cat(values) for values in zip(*parts, strict=True))
        low, high = bootstrap_ratio(rise, counted, seed=0)
        mean = float(rise.sum() / counted.sum())
        rises.append(_Rise(mean, float(low), float(high), float(matched.float().mean())))
    return rises


@dataclass(frozen=True, eq=False)
class _Scrubber:
    runner: TreeRunner
    state: State
    letters: Int[Tensor, "row hop"]
    preference: Float[Tensor, "row row"]

    @classmethod
    def of(cls, runner: TreeRunner, nodes: Nodes, seed: int) -> _Scrubber:
        """Rows of one sequence never serve each other; otherwise any order is as good as another."""
        rows = runner.rows
        letters = rows.batch.hop_letters[rows.sequence, :, rows.position]
        preference = torch.rand(len(rows), len(rows), generator=seeded(seed))
        preference = preference.masked_fill(rows.sequence[:, None] == rows.sequence, -1)
        return cls(runner, runner.run(nodes), letters, preference)

    def rise(
        self, node: Node, letters: Collection[int]
    ) -> tuple[Float[Tensor, " sequence"], Float[Tensor, " sequence"], Bool[Tensor, " row"]]:
        """What is wrong now, less what was, and of how many rows, by sequence; and which rows could be scrubbed."""
        assert node.target is not None
        rows, mine = self.runner.rows, self.letters[:, list(letters)]
        place = node.target.of(rows.chain)
        usable = (mine[:, None] == mine).all(-1) & (place >= 0)
        best, donor = self.preference.masked_fill(~usable, -1).max(1)
        matched = best >= 0
        donor = torch.where(matched, donor, torch.arange(len(rows)))
        v = self.runner.outside.v[node.layer][rows.sequence[donor], place[donor].clamp_min(0), node.head]
        own = self.state.values[node.layer][node.target][:, node.head]
        scrubbed = self.runner.given(self.state, node, torch.where(matched[:, None], v, own))
        change = self.runner.wrong(scrubbed).double() - self.runner.wrong(self.state).double()
        return *rows.by_sequence(change), matched


def _leads_to(nodes: Nodes, node: Node, hops: int) -> bool:
    """Whether a path that goes on from a node ends at the letter of find^hops(i)."""
    if node.reads == hops:
        return True
    later = (n for n in connected(nodes) if n.layer < node.layer and n.place == node.target)
    return any(_leads_to(nodes, n, hops) for n in later)
