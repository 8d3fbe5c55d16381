"""Generators of random numbers, each from a seed that a caller gave."""

from __future__ import annotations

import torch

from hopinterp.whole import whole


def seeded(seed: object, device: str | torch.device = "cpu") -> torch.Generator:
    """A generator of its own.

    Raises:
        HopInterpError: the seed is no whole number from 0 to 2^63 − 1.
    """
    return torch.Generator(device).manual_seed(whole("seed", seed, 0, 2**63 - 1))


def check_seed(seed: object) -> None:
    """Raise HopInterpError unless a seed leaves room for those that many stages make of it: it is one of 0 … 2^32 − 1."""
    whole("seed", seed, 0, 2**32 - 1)
