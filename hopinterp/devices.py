"""Which kinds of devices this machine has, and how many processor cores."""

from __future__ import annotations

import os
from collections.abc import Mapping

from hopinterp.errors import HopInterpError


def devices() -> Mapping[str, bool]:
    """Every kind that a model can run on, the fastest first, and whether it is here."""
    import torch

    return {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}


def best_device() -> str:
    """The fastest kind that is here."""
    return next(kind for kind, here in devices().items() if here)


def find_device(name: str) -> str:
    """The kind that a name means, "auto" the fastest. Raises HopInterpError where there is none such here."""
    if name == "auto":
        return best_device()
    found = devices()
    if name not in found:
        raise HopInterpError(f"--device is {name!r:.40}; it is auto, cpu, cuda or mps")
    if not found[name]:
        raise HopInterpError(f"--device is {name}; this machine has none")
    return name


def cores() -> int:
    """How many processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def most_threads() -> int:
    """More threads than this are refused: thousands end a process without a word."""
    return max(64, 4 * cores())
