"""What the removal of one node of a tree does on sequences that the tree was not found on, and which nodes surely matter."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor

from hopinterp.decompile.nodes import Node, Nodes
from hopinterp.decompile.watched_rows import Sums
from hopinterp.evidence.intervals import bootstrap_ratio


@dataclass(frozen=True)
class Effect:
    """What one node's removal from its tree does to the error on fresh pairs, with the paired 95% interval."""

    node: Node
    effect: float
    low: float
    high: float

    def to_json(self) -> dict[str, Any]:
        """The node's fields with `effect`, `low` and `high`."""
        return {**self.node.to_json(), "effect": self.effect, "low": self.low, "high": self.high}


Harm = Callable[[Nodes, Sequence[Nodes]], Sums]
"""(a tree, several sets of its nodes) → [sequence, set] what each set's removal does to a sequence's rows, summed: 1 for one
that it harms, −1 for one that it mends. And how many rows those are."""


def effects(harm: Harm, tree: Nodes, nodes: Collection[Node]) -> dict[Node, Effect]:
    """What each node's removal from a tree does, with the paired interval by sequence."""
    if not nodes:
        return {}
    ordered = sorted(nodes)
    mean, low, high = _measured(*harm(tree, [frozenset((node,)) for node in ordered]))
    measured = zip(ordered, mean.tolist(), low.tolist(), high.tolist(), strict=True)
    return {node: Effect(node, *numbers) for node, *numbers in measured}


def supported(harm: Harm, found: Mapping[Node, Effect], whole: Callable[[Nodes], Nodes]) -> Mapping[Node, Effect]:
    """Drop nodes whose effect may be nothing, those with the least first, until each that is left matters.

    As many go at once as together do no harm at all: all of them, or half, and so on down to one. Nodes that do the same
    work may each do nothing alone; together they do not.

    Args:
        found: the effects of a whole tree's nodes.
        whole: what is left of a tree when nodes have gone from it, without those that only served them.
    """
    while doubtful := _doubtful(found):
        tree = frozenset(found)
        while doubtful:
            count = len(doubtful)
            while count > 1 and _measured(*harm(tree, [frozenset(doubtful[:count])]))[0] > 0:
                count //= 2
            tree = whole(tree - frozenset(doubtful[:count]))
            # a node that surely matters does so all the more without others: the rest are measured again at the end
            doubtful = _doubtful(effects(harm, tree, tree & frozenset(doubtful)))
        found = effects(harm, tree, tree)
    return found


def _doubtful(found: Mapping[Node, Effect]) -> list[Node]:
    """Nodes whose effect may be nothing, those with the least first."""
    doubtful = [effect for effect in found.values() if effect.low <= 0]
    return [effect.node for effect in sorted(doubtful, key=lambda effect: (effect.effect, effect.node))]


def _measured(
    total: Float[Tensor, "sequence removed"], counted: Float[Tensor, "sequence removed"]
) -> tuple[Float[Tensor, " removed"], Float[Tensor, " removed"], Float[Tensor, " removed"]]:
    """The mean of each, and its interval's ends."""
    return total.sum(0) / counted.sum(0), *bootstrap_ratio(total, counted, seed=0)
