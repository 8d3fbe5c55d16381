"""Which kinds of devices this machine has, and how many processor cores."""

from __future__ import annotations

import os
from collections.abc import Mapping


def devices() -> Mapping[str, bool]:
    """Every kind that a model can run on, the fastest first, and whether it is here."""
    import torch

    return {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}


def best_device() -> str:
    """The fastest kind that is here."""
    return next(kind for kind, here in devices().items() if here)


def cores() -> int:
    """How many processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def most_threads() -> int:
    """More threads than this are refused: thousands end a process without a word."""
    return max(64, 4 * cores())
