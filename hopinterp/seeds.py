"""Generators of random numbers, each from a seed that a caller gave."""

from __future__ import annotations

import operator

import torch

from hopinterp.errors import HopInterpError


def seeded(seed: object, device: str | torch.device = "cpu") -> torch.Generator:
    """A generator of its own.

    Raises:
        HopInterpError: the seed is no whole number from 0 to 2^63 − 1.
    """
    try:
        number = -1 if isinstance(seed, bool) else operator.index(seed)  # type: ignore[arg-type]
    except TypeError:
        number = -1
    if not 0 <= number < 2**63:
        raise HopInterpError(f"seed is {seed!r:.40}; it must be a whole number from 0 to 2^63 − 1")
    return torch.Generator(device).manual_seed(number)
