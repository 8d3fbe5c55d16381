"""What each hypothesis says that block ℓ has resolved; blocks count from 0."""

from __future__ import annotations

from collections.abc import Callable

from hopinterp.errors import HopInterpError

# R(ℓ) of the exact hypotheses, before k caps it. Block 0 resolves nothing in any of them: it has only the letters.
_GROWTH: dict[str, Callable[[int], int]] = {
    "lookup": lambda layer: 2 ** (layer - 1) if layer else 0,
    "successor": lambda layer: 2**layer - 1,
    "sequential": lambda layer: layer,
}
HYPOTHESES = tuple(_GROWTH)


def resolved(hypothesis: str, hops: int, n_layers: int) -> list[int]:
    """R(ℓ) for ℓ = 0 … n_layers − 1: the hops that block ℓ has resolved of k = `hops`.

    *lookup*: min(k, 2^(ℓ−1)) (a block goes where its pointer points and takes that position's pointer: u + v).
    *successor*: min(k, 2^ℓ − 1) (it goes to the position after the one its pointer names: u + v + 1).
    *sequential*: min(k, ℓ).

    Raises:
        HopInterpError: no such hypothesis.
    """
    if hypothesis not in _GROWTH:
        raise HopInterpError(f"no hypothesis {hypothesis!r}; there are {', '.join(HYPOTHESES)}")
    return [min(hops, _GROWTH[hypothesis](layer)) for layer in range(n_layers)]
