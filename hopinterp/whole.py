"""Whole numbers that callers give, checked."""

from __future__ import annotations

import operator
import re

from hopinterp.errors import HopInterpError


def whole(name: str, given: object, least: int, most: int | None = None) -> int:
    """A whole number as an int, NumPy's and torch's among them; a truth is none.

    Raises:
        HopInterpError: it is none, or out of range.
    """
    kind = getattr(given, "dtype", None)
    try:
        number = None if isinstance(given, bool) or "bool" in str(kind) else operator.index(given)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        number = None
    if number is None or number < least or (most is not None and number > most):
        allowed = f"of at least {least:,}" if most is None else f"from {least:,} to {most:,}"
        raise HopInterpError(f"{name} is {given!r:.40}; it must be a whole number {allowed}")
    return number


def spans(text: str) -> list[tuple[int, int]]:
    """The first and last number of each part of "8", "1-16" or "1,2,4"; nothing where it is something else."""
    if not re.fullmatch(r"[0-9]{1,9}(-[0-9]{1,9})?(,[0-9]{1,9}(-[0-9]{1,9})?)*", text):
        return []
    parts = (part.partition("-") for part in text.split(","))
    return [(int(first), int(last or first)) for first, _, last in parts]
