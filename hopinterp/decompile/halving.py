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
    todo = [tried]
    while todo:  # not by recursion, every level of which would keep a circuit's whole run
        units = left(state, todo.pop())
        smaller = without(state, units) if units else None
        if smaller is not None:
            state = smaller
        elif len(units) > 1:
            half = len(units) // 2
            todo += [units[half:], units[:half]]
    return state
