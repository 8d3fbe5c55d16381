"""The betting slips: what each hypothesis says that block ℓ holds and attends to. Blocks count from 0; k caps everything.

In all of them block 0 resolves nothing: it has only the letters, and moves each to the position after it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from hopinterp.errors import HopInterpError

# R(ℓ) of the exact hypotheses for ℓ ≥ 1, before k caps it
_GROWTH: dict[str, Callable[[int], int]] = {
    "lookup": lambda layer: 2 ** (layer - 1),
    "successor": lambda layer: 2**layer - 1,
    "sequential": lambda layer: layer,
}
HYPOTHESES = tuple(_GROWTH)


@dataclass(frozen=True)
class Hypothesis:
    """One story of how a model solves hop_k.

    *lookup*: a block goes where its pointer points and takes that position's pointer: u + v hops.
    *successor*: it goes to the position after the one that its pointer names: u + v + 1.
    *doubling*: either of them, block by block: 2R ≤ R′ ≤ 2R + 1 from R(1) = 1 on.
    *sequential*: one hop a block. *none*: no block resolves any hop.

    Raises:
        HopInterpError: no such hypothesis.
    """

    name: str

    def __post_init__(self) -> None:
        if self.name not in (*HYPOTHESES, "doubling", "none"):
            raise HopInterpError(f"no hypothesis {self.name!r}; there are {', '.join(HYPOTHESES)}, doubling, none")

    def holds(self, layer: int, hops: int | None = None) -> range:
        """What R(ℓ) may be: a range of one number, but for doubling.

        Args:
            hops: k, which caps R; None for a multi-task model's pointers, which run on whatever k is.
        """
        if self.name == "none" or layer == 0:
            return range(1)
        low, high = ("lookup", "successor") if self.name == "doubling" else (self.name, self.name)
        bounds = (_GROWTH[low](layer), _GROWTH[high](layer))
        return range(_cap(bounds[0], hops), _cap(bounds[1], hops) + 1)

    def grows(self, layer: int, before: int, hops: int | None = None) -> range:
        """What R(ℓ) may be after R(ℓ − 1) = `before` was seen: the recursion, wherever it starts.

        At block 1 nothing but a letter can be looked up: R(1) = 1.
        """
        if self.name == "none":
            return range(1)
        if layer < 2:
            return self.holds(layer, hops)
        steps = {"lookup": (2 * before,) * 2, "successor": (2 * before + 1,) * 2, "doubling": (2 * before, 2 * before + 1)}
        low, high = steps.get(self.name, (before + 1,) * 2)
        return range(_cap(low, hops), _cap(high, hops) + 1)

    def attends(self, layer: int, hops: int | None = None) -> frozenset[int]:
        """The find^j that a block may look at, j ≤ k (for a multi-task model, whose pointers run on, leave `hops` out).

        Successor looks one hop beyond what some pointer u ≤ R(ℓ − 1) names, doubling at either form's, sequential from
        block 2 on at find^(ℓ−1); block 0 looks at the previous token, which is no hop.
        """
        if self.name == "none" or layer == 0:
            return frozenset()
        looks = {
            "lookup": {1 if layer == 1 else 2 ** (layer - 2)},
            "successor": set(range(1, 2 ** (layer - 1) + 1)),
            "sequential": {max(1, layer - 1)},
        }
        looks["doubling"] = looks["lookup"] | looks["successor"]
        return frozenset(j for j in looks[self.name] if hops is None or j <= hops)


def resolved(hypothesis: str, hops: int, n_layers: int) -> list[int]:
    """R(ℓ) for ℓ = 0 … n_layers − 1 of an exact hypothesis: lookup min(k, 2^(ℓ−1)), successor min(k, 2^ℓ − 1), sequential
    min(k, ℓ), none 0.

    Raises:
        HopInterpError: no such hypothesis, or doubling, which is a range.
    """
    if hypothesis == "doubling":
        raise HopInterpError("doubling is a range, not one R(ℓ): see Hypothesis('doubling').holds")
    return [Hypothesis(hypothesis).holds(layer, hops)[0] for layer in range(n_layers)]


def _cap(hop: int, hops: int | None) -> int:
    return hop if hops is None else min(hop, hops)
