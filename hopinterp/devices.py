"""Which kinds of devices this machine has."""

from __future__ import annotations

from collections.abc import Mapping


def devices() -> Mapping[str, bool]:
    """Every kind that a model can run on, the fastest first, and whether it is here."""
    import torch

    return {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}


def best_device() -> str:
    """The fastest kind that is here."""
    return next(kind for kind, here in devices().items() if here)
