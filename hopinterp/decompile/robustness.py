"""A model beside its routed self on sequences that training never shows, on the hardest chains, and where it is wrong."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool
from torch import Tensor

from hopinterp.decompile.routed_runs import run_own, run_routed
from hopinterp.decompile.routes import Routing
from hopinterp.errors import HopInterpError
from hopinterp.evidence.intervals import bootstrap
from hopinterp.models.fused import FusedTransformer
from hopinterp.seeds import seeded
from hopinterp.task import Batch

Inputs = Literal["training", "repeated neighbours", "distinct chains"]


@dataclass(frozen=True)
class Agreement:
    """The model, its routed self and the label, on one kind of inputs, over positions whose answer is a letter.

    Attributes:
        inputs: "training" (its distribution), "repeated neighbours" (every letter uniform on Σ: training has no two equal
            neighbours) or "distinct chains" (positions on whose chain no letter repeats two hops apart).
        own: how often the model is wrong; the program, which is hop_k, agrees with it on all else.
        routed: how often the model with all patterns set by rule is wrong.
        agree: how often the two give the same answer; `low`, `high`: 95%.
        wrong: at how many positions the model is wrong; `agree_wrong`: how often the routed model gives the same wrong
            answer there, with `wrong_low` and `wrong_high`. NaN where it is never wrong.
        positions: how many count.
    """

    inputs: Inputs
    own: float
    routed: float
    agree: float
    low: float
    high: float
    wrong: int
    agree_wrong: float
    wrong_low: float
    wrong_high: float
    positions: int

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return vars(self)


@torch.no_grad()
def measure_robustness(
    model: FusedTransformer, routing: Routing, *, sequences: int = 100, seed: int = 0
) -> tuple[Agreement, ...]:
    """Run the model as it is and on its routes on each kind of inputs; a kind that the task has not is left out."""
    return tuple(_compare(model, routing, *drawn, seed) for drawn in _inputs(routing, sequences, seed))


def _inputs(routing: Routing, sequences: int, seed: int) -> Iterator[tuple[Inputs, Batch, Bool[Tensor, "batch position"]]]:
    """The kinds, each with the positions that count."""
    task, hops = routing.task, routing.hops
    generator = seeded(3 * seed + 201)
    plain = task.sample(sequences, hops=hops, generator=generator)
    yield "training", plain, plain.scored
    even = torch.randint(task.alphabet_size, (sequences, task.n_letters), generator=generator)
    repeated = task.from_letters(even, hops)
    yield "repeated neighbours", repeated, repeated.scored
    try:
        distinct = task.sample(sequences, hops=hops, generator=generator, distinct=True)
    except HopInterpError:
        return
    yield "distinct chains", distinct, distinct.no_repeats


def _compare(
    model: FusedTransformer,
    routing: Routing,
    inputs: Inputs,
    batch: Batch,
    counted: Bool[Tensor, "batch position"],
    seed: int,
) -> Agreement:
    batch = batch.to(model.device)
    counted = counted.to(model.device)
    own, routed = (logits.argmax(-1) for logits in (run_own(model, batch.tokens), run_routed(model, batch, routing)))
    wrong = counted & (own != batch.labels)
    agree, low, high = _rate(own == routed, counted, seed)
    agree_wrong, wrong_low, wrong_high = _rate(own == routed, wrong, seed)
    return Agreement(
        inputs,
        own=_rate(own != batch.labels, counted, seed)[0],
        routed=_rate(routed != batch.labels, counted, seed)[0],
        agree=agree,
        low=low,
        high=high,
        wrong=int(wrong.sum()),
        agree_wrong=agree_wrong,
        wrong_low=wrong_low,
        wrong_high=wrong_high,
        positions=int(counted.sum()),
    )


def _rate(hits: Bool[Tensor, "batch position"], counted: Bool[Tensor, "batch position"], seed: int) -> tuple[float, ...]:
    """A share of the counted positions with its interval; NaN where none counts."""
    top, bottom = (hits & counted).sum(1).double(), counted.sum(1).double()
    if not bottom.sum():
        return (torch.nan,) * 3
    low, high = bootstrap(top, bottom, seed)
    return float(top.sum() / bottom.sum()), float(low), float(high)
