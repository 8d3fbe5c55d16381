"""Causal scrubbing of a tree: each node reads another sequence's stream that agrees only in the letters said to be used."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hopinterp.decompile.derivations import ValueTree
from hopinterp.decompile.nodes import Node, Nodes, connected
from hopinterp.decompile.routes import Routing
from hopinterp.decompile.tree_runs import State, TreeRunner
from hopinterp.decompile.watched_rows import Rows
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
    rows = Rows.draw(routing.task, routing.hops, sequences, positions=4, seed=3 * seed + 1_000_003)
    scrubber = _Scrubber.of(TreeRunner.of(model, routing, rows), tree.nodes, seed)
    return tuple(scrubber.test(node) for node in sorted(tree.nodes, reverse=True) if node.target is not None)


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

    def test(self, node: Node) -> Scrub:
        """Scrub one node with the letters it is said to use, and with one more where those do not do."""
        letters = self._used(node)
        wrong, matched = self._wrong(node, letters)
        rise, low, high = self._rise(wrong)
        also, rise_with_also = None, None
        if rise > LEAST_RISE and low > 0:
            assert node.target is not None
            last = min(self.runner.routing.hops + 1, self.letters.shape[1] - 1)
            others = [j for j in range(max(node.target.at - 1, 0), last + 1) if j not in letters]
            rises = {j: self._rise(self._wrong(node, (*letters, j))[0])[0] for j in others}
            best = min(rises, key=lambda j: rises[j])
            also, rise_with_also = best if rises[best] <= rise / 2 else None, rises[best]
        return Scrub(node, letters, rise, low, high, also, rise_with_also, float(matched.float().mean()))

    def _used(self, node: Node) -> tuple[int, ...]:
        """The letter that a node is there for: the answer's; for one on no derivation those of hops k − 1 and k − 2 that
        paths through it end at, or, in block 0, that which it reads."""
        hops, nodes = self.runner.routing.hops, self.state.nodes
        if _leads_to(nodes, node, hops):
            return (hops,)
        ends = tuple(j for j in range(max(hops - 2, 0), hops) if _leads_to(nodes, node, j))
        return ends or (() if node.reads is None else (node.reads,))

    def _wrong(self, node: Node, letters: Collection[int]) -> tuple[Bool[Tensor, " row"], Bool[Tensor, " row"]]:
        """Where the scrubbed tree answers wrong, and which rows could be scrubbed."""
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
        return self.runner.wrong(scrubbed), matched

    def _rise(self, wrong: Bool[Tensor, " row"]) -> tuple[float, float, float]:
        """Mean and interval of what is wrong now, less what was."""
        rise, counted = self.runner.rows.by_sequence(wrong.double() - self.runner.wrong(self.state).double())
        low, high = bootstrap_ratio(rise, counted, seed=0)
        return float(rise.sum() / counted.sum()), float(low), float(high)


def _leads_to(nodes: Nodes, node: Node, hops: int) -> bool:
    """Whether a path that goes on from a node ends at the letter of find^hops(i)."""
    if node.reads == hops:
        return True
    later = (n for n in connected(nodes) if n.layer < node.layer and n.place == node.target)
    return any(_leads_to(nodes, n, hops) for n in later)
