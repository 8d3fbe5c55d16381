"""Taking parts of a circuit away, many at once where that is allowed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

State = TypeVar("State")
Unit = TypeVar("Unit")


def remove(
    state: State,
    tried: Sequence[Unit],
    without: Callable[[State, Sequence[Unit]], State | None],
    left: Callable[[State, Sequence[Unit]], Sequence[Unit]] = lambda _, units: units,
) -> State:
    """The circuit without as many of some units as may go: all at once if that is allowed, otherwise each half in turn.

    Args:
        state: the circuit.
        without: the circuit without some units; None where that is not allowed.
        left: those of some units that a circuit still has, for units that go when others do.
    """
    tried = left(state, tried)
    if not tried:
        return state
    smaller = without(state, tried)
    if smaller is not None:
        return smaller
    if len(tried) == 1:
        return state
    half = len(tried) // 2
    return remove(remove(state, tried[:half], without, left), tried[half:], without, left)
