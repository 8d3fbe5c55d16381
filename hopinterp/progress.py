"""How long work tells whoever waits for it: one record, one kind of callback."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Progress:
    """Where some work stands.

    Attributes:
        what: the work, in a word or two.
        done, total: in units of the work's own; the last call of every piece of work has done = total.
        details: figures that go with it (a training's loss, say).
    """

    what: str
    done: int
    total: int
    details: Mapping[str, float] = field(default_factory=dict)


Report = Callable[[Progress], None]
"""What functions that take long call as they go on."""


Advance = Callable[[int], None]
"""Told how many units of some work are done since it was last told."""


def counted(what: str, total: int, report: Report | None) -> Advance:
    """What counts the units of one piece of work and reports how many are done in all."""
    done = 0

    def advance(units: int) -> None:
        nonlocal done
        done += units
        if report and units:
            report(Progress(what, done, total))

    return advance
