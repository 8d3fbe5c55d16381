"""What each hypothesis of how a model solves hop_k says that block ℓ holds and attends to: one record each, in a registry.

Blocks count from 0; k caps everything. Rules, tables, figures, graph and report iterate over the registry: a hypothesis
costs its record and a test. In all of them block 0 resolves nothing: it has only the letters, and moves each to the position
after it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from hopinterp.errors import HopInterpError
from hopinterp.task import HopTask
from hopinterp.theory import programs
from hopinterp.theory.program import Program

Write = Callable[[HopTask, int | None], Program]


@dataclass(frozen=True)
class Hypothesis:
    """One account of how a model solves hop_k, with all that any part of the package needs to know of it.

    Attributes:
        name: one word.
        words: what a model does that follows it, as a sentence without its full stop.
        step: R(ℓ) from R(ℓ − 1), before k caps it; from 0, R(1), which is 1 where nothing but a letter can be looked up.
            None: it is the union of its forms, block by block.
        looks: the j of the find^j that block ℓ may look at, from R(ℓ − 1). None as for `step`.
        form_of: the hypothesis that this one is an exact form of; empty where a verdict says it by its own name.
        ink, dashes: its colour, and its line's on and off in points, in every figure.
        program: writes the circuit that follows it, for one k or (None) for every k; None where there is none.
    """

    name: str
    words: str
    step: Callable[[int], int] | None = None
    looks: Callable[[int], Iterable[int]] | None = None
    form_of: str = ""
    ink: str = "#000000"
    dashes: tuple[float, float] = (1.0, 0.0)
    program: Write | None = None

    @property
    def forms(self) -> tuple[Hypothesis, ...]:
        """The exact hypotheses that it is the union of: itself, if it is one."""
        return (self,) if self.step else tuple(one for one in HYPOTHESES.values() if one.form_of == self.name)

    @property
    def exact(self) -> bool:
        """Whether it says one R(ℓ) for each block."""
        return self.step is not None

    def holds(self, layer: int, hops: int | None = None) -> range:
        """What R(ℓ) may be: a range of one number for an exact hypothesis.

        Args:
            hops: k, which caps R; None for a multi-task model's pointers, which run on whatever k is.
        """
        low = high = 0
        for _ in range(layer):
            low, high = self.grows(low)[0], self.grows(high)[-1]
        return range(_cap(low, hops), _cap(high, hops) + 1)

    def grows(self, before: int, hops: int | None = None) -> range:
        """What R(ℓ) may be after R(ℓ − 1) = `before` was seen: the recursion, wherever it starts."""
        after = [form.step(before) for form in self.forms if form.step]
        return range(_cap(min(after), hops), _cap(max(after), hops) + 1)

    def attends(self, layer: int, hops: int | None = None) -> frozenset[int]:
        """The find^j that a block may look at, j ≤ k (for a multi-task model, whose pointers run on, leave `hops` out).

        Block 0 looks at the previous token, which is no hop.
        """
        seen = {j for form in self.forms if form.looks and layer for j in form.looks(form.holds(layer - 1)[0])}
        return frozenset(j for j in seen if hops is None or j <= hops)

    def ratios(self) -> tuple[float, float]:
        """The least and the largest R(ℓ + 1)/R(ℓ) from R = 1 on; doubling: 2 and 3."""
        far = 10**6  # from where the ratio no longer changes
        ends = [r / before for before in (1, far) for r in self.grows(before)]
        return round(min(ends), 3), round(max(ends), 3)


HYPOTHESES: dict[str, Hypothesis] = {}
"""Every hypothesis that the package knows, by name; the order is that of tables and figures."""

NO_HYPOTHESES = ("linear by two", "beyond", "mixed", "undetermined")
"""Verdicts that name no hypothesis of the registry."""


def register(hypothesis: Hypothesis) -> None:
    """Make a hypothesis known to rules, tables, figures, graph and report.

    Raises:
        HopInterpError: its name is taken, or only one of `step` and `looks` was given.
    """
    if hypothesis.name in (*HYPOTHESES, *NO_HYPOTHESES):
        raise HopInterpError(f"there is a hypothesis or verdict {hypothesis.name!r} already")
    if (hypothesis.step is None) != (hypothesis.looks is None):
        raise HopInterpError(f"{hypothesis.name}: give `step` and `looks`, or neither for a union of forms")
    HYPOTHESES[hypothesis.name] = hypothesis


@contextmanager
def registered(hypothesis: Hypothesis) -> Iterator[Hypothesis]:
    """Inside, the hypothesis is known; afterwards no longer. Raises HopInterpError as `register`."""
    register(hypothesis)
    try:
        yield hypothesis
    finally:
        del HYPOTHESES[hypothesis.name]


def named(name: str) -> Hypothesis:
    """The hypothesis of that name. Raises HopInterpError if there is none."""
    if name not in HYPOTHESES:
        raise HopInterpError(f"no hypothesis {name!r}; there are {', '.join(HYPOTHESES)}")
    return HYPOTHESES[name]


def exact() -> dict[str, Hypothesis]:
    """Those that say one R(ℓ) for each block, and by which hops are resolved: rows of tables, lines of figures."""
    return {name: one for name, one in HYPOTHESES.items() if one.exact and one.holds(1)[0]}


def claims() -> dict[str, Hypothesis]:
    """Those that a verdict says by name, and by which hops are resolved."""
    return {name: one for name, one in HYPOTHESES.items() if not one.form_of and one.forms and one.holds(1)[0]}


def resolved(hypothesis: str, hops: int, n_layers: int) -> list[int]:
    """R(ℓ) for ℓ = 0 … n_layers − 1 of an exact hypothesis: lookup min(k, 2^(ℓ−1)), successor min(k, 2^ℓ − 1), sequential
    min(k, ℓ), none 0.

    Raises:
        HopInterpError: no such hypothesis, or doubling, which is a range.
    """
    found = named(hypothesis)
    if not found.exact:
        raise HopInterpError(f"{hypothesis} is a range, not one R(ℓ): see named({hypothesis!r}).holds")
    return [found.holds(layer, hops)[0] for layer in range(n_layers)]


def too_few_hops(hops: int) -> str:
    """Why two hypotheses cannot be told apart at this k whatever is measured; empty if all can."""
    for one, other in itertools.combinations(claims().values(), 2):
        least, block = _apart(one, other)
        if hops < least:
            left_open = sorted({*one.holds(block - 1, least), *other.holds(block - 1, least)})
            said = f"{' hops or '.join(map(str, left_open))} after block {block - 1}"
            return f"At k < {least} {one.name} and {other.name} are not told apart: {said}."
    return ""


def _apart(one: Hypothesis, other: Hypothesis) -> tuple[int, int]:
    """The least k at which some block cannot follow both hypotheses, and that block."""
    for hops in range(1, 100):
        for layer in range(1, hops + 1):
            if not {*one.holds(layer, hops)} & {*other.holds(layer, hops)}:
                return hops, layer
    return 100, 100  # they say the same


def _cap(hop: int, hops: int | None) -> int:
    return hop if hops is None else min(hop, hops)


# -- the hypotheses; inks are Okabe and Ito's, which every kind of colour vision tells apart --------------------------------

register(
    Hypothesis(
        "doubling",
        words="The hops that a block resolves about double from block to block, by pointer doubling",
        ink="#0072B2",
    )
)
register(
    Hypothesis(
        "lookup",
        words="each block goes where its pointer points and takes the pointer that it finds there",
        step=lambda r: max(1, 2 * r),
        looks=lambda r: (max(1, r),),
        form_of="doubling",
        ink="#0072B2",
        dashes=(4.0, 2.0),
        program=programs.lookup,
    )
)
register(
    Hypothesis(
        "successor",
        words="each block goes to the position after the one that its pointer names",
        step=lambda r: 2 * r + 1,
        looks=lambda r: range(1, r + 2),  # one hop beyond what some pointer u ≤ R(ℓ − 1) names
        form_of="doubling",
        ink="#D55E00",
        program=programs.successor,
    )
)
register(
    Hypothesis(
        "sequential",
        words="The model takes one hop a block",
        step=lambda r: r + 1,
        looks=lambda r: (max(1, r),),
        ink="#009E73",
        dashes=(1.0, 1.5),
        program=programs.sequential,
    )
)
register(
    Hypothesis(
        "none",
        words="The model fails at the task here, so nothing is claimed about its mechanism",
        step=lambda _: 0,
        looks=lambda _: (),
        ink="#57606A",
    )
)
