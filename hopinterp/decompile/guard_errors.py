"""How far guards explain a model, beside its fixed rules and beside the best places for every input."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from hopinterp.decompile.controls import paired, rate, wrong_answers
from hopinterp.decompile.guard_fitting import BestByInput, fit_guards
from hopinterp.decompile.guards import Guard
from hopinterp.decompile.records import Decompiled, percent
from hopinterp.decompile.routed_runs import run_routed
from hopinterp.decompile.routes import Routing
from hopinterp.errors import HopInterpError
from hopinterp.models.fused import FusedTransformer
from hopinterp.seeds import seeded
from hopinterp.shown import Row, Shown
from hopinterp.task import Batch


@dataclass(frozen=True)
class Answers:
    """A model's answers with its patterns set in one way, on fresh sequences.

    Attributes:
        error: err_k; `low`, `high`: 95% of its difference from the model's own, paired by sequence.
        same: share of the scored inputs to which the answer is the model's own.
    """

    error: float
    low: float
    high: float
    same: float


@dataclass(frozen=True, repr=False)
class Guards(Shown):
    """How far guards explain a model whose heads have no fixed rules. Rates are 0 … 1, on fresh sequences.

    Attributes:
        own: err_k of the model as it is.
        fixed: every pattern by its head's one rule. `guarded`: with guards where a head has one.
        low, high: 95% of fixed − guarded, paired by sequence: what guards gain.
        one_by_input, two_by_input: the heads that were asked for a guard look, at every input anew, at the place or the two
            places (with shares of the input's own) that their own pattern is nearest to; all others by rule. Guards cannot
            come nearer to the patterns.
        shuffled: with guards handed around among the heads that have one, a draw each; empty where fewer than two have.
            `permuted`: each position of each head gets the case of another sequence's.
        guards: of the heads that have one. `asked`: how many were asked for one.
    """

    model: str
    hops: int
    own: float
    fixed: Answers
    guarded: Answers
    low: float
    high: float
    one_by_input: Answers
    two_by_input: Answers
    shuffled: tuple[Answers, ...]
    permuted: tuple[Answers, ...]
    guards: tuple[Guard, ...]
    asked: int
    sequences: int

    @property
    def columns(self) -> list[str]:
        """Over `rows`."""
        return ["", "wrong", "inputs explained"]

    @property
    def rows(self) -> list[Row]:
        """Errors with each kind of rules, and of the controls."""
        measured = {"fixed rules": self.fixed, "with guards": self.guarded}
        measured |= {"best place for every input": self.one_by_input, "best two": self.two_by_input}
        rows = [(name, (percent(seen.error), f"{seen.same:.1%}")) for name, seen in measured.items()]
        return [("the model itself", (percent(self.own), "–")), *rows]

    @property
    def reading(self) -> str:
        """Errors and controls in words, the guards, and what they gain."""
        controls = {"guards shuffled among heads": self.shuffled, "cases permuted among inputs": self.permuted}
        told = [f"{name} {percent(sum(one.error for one in seen) / len(seen))}" for name, seen in controls.items() if seen]
        gain = f"{percent(self.fixed.error - self.guarded.error)} ({100 * self.low:.1f} to {100 * self.high:.1f})"
        return "\n".join(
            [
                *map(str, self.guards),
                f"Guards gain {gain}{''.join(f'; {one}' for one in told)}.",
                f"{self.model or 'the model'}, k = {self.hops}: {len(self.guards)} of {self.asked} heads that no fixed rule"
                f" fits have a guard; {percent(self.fixed.error)} wrong by fixed rules, {percent(self.guarded.error)} with"
                " guards.",
            ]
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values; guards as text."""
        return {**asdict(replace(self, guards=())), "guards": [str(guard) for guard in self.guards]}


def measure_guards(
    found: Decompiled, *, fit_sequences: int = 200, sequences: int = 200, draws: int = 3, seed: int = 0
) -> Guards:
    """How far guards ("if X_i = X_find²(i): hop 3, else hop 1") explain a model, beside its fixed rules.

    Args:
        found: by `decompile`, with the model.
        fit_sequences: on which guards are grown and judged. `sequences`: fresh ones, on which all errors are measured.
        draws: of each control.

    Raises:
        HopInterpError: `found` was loaded without its model, or too few sequences.
    """
    numbers = {"fit_sequences": fit_sequences, "sequences": sequences, "draws": draws, "seed": seed}
    return replace(guard_routing(found.network_to_run, found.routing, **numbers), model=found.model)


@torch.no_grad()
def guard_routing(
    model: FusedTransformer,
    routing: Routing,
    *,
    fit_sequences: int = 200,
    sequences: int = 200,
    draws: int = 3,
    seed: int = 0,
) -> Guards:
    """`measure_guards` of a model and its routing."""
    guarded = fit_guards(model, routing, sequences=fit_sequences, seed=seed)
    batch = routing.task.sample(sequences, hops=routing.hops, seed=3_000_017 + seed, device=model.device)
    if not batch.scored.any():
        raise HopInterpError(f"none of {sequences} sequences has a chain of {routing.hops} links")
    own = model(batch.tokens)
    few = batch[: max(sequences // 2, 1)]
    by_input = [BestByInput(**vars(routing), model=model, units=guarded.asked, parts=parts) for parts in (1, 2)]
    fixed_logits, guarded_logits = (run_routed(model, batch, one) for one in (routing, guarded))
    before, after = (wrong_answers(logits, batch) for logits in (fixed_logits, guarded_logits))
    gain = paired(after, before, batch.scored.double())

    def on_few(other: Routing) -> Answers:
        return _answers(run_routed(model, few, other), own[: len(few)], few)

    generator = seeded(seed)
    shuffled = [replace(guarded, guards=given) for given in _shuffles(guarded.guards, draws, generator)]
    permuted = [replace(guarded, exchange=generator)] * (draws if guarded.guards else 0)
    return Guards(
        model="",
        hops=routing.hops,
        own=rate(own, batch),
        fixed=_answers(fixed_logits, own, batch),
        guarded=_answers(guarded_logits, own, batch),
        low=gain[0],
        high=gain[1],
        one_by_input=on_few(by_input[0]),
        two_by_input=on_few(by_input[1]),
        shuffled=tuple(map(on_few, shuffled)),
        permuted=tuple(map(on_few, permuted)),
        guards=guarded.guards,
        asked=len(guarded.asked),
        sequences=sequences,
    )


def _answers(
    logits: Float[Tensor, "batch position d_vocab"], own: Float[Tensor, "batch position d_vocab"], batch: Batch
) -> Answers:
    low, high = paired(wrong_answers(own, batch), wrong_answers(logits, batch), batch.scored.double())
    same = (logits.argmax(-1) == own.argmax(-1))[batch.scored].double().mean()
    return Answers(rate(logits, batch), low, high, float(same))


def _shuffles(guards: Sequence[Guard], draws: int, generator: torch.Generator) -> Iterator[tuple[Guard, ...]]:
    """Each guard given to another head that has one."""
    for _ in range(draws if len(guards) > 1 else 0):
        order = torch.randperm(len(guards), generator=generator).tolist()
        places = [(guards[n].layer, guards[n].head) for n in (*order[1:], order[0])]
        yield tuple(replace(guards[n], layer=place[0], head=place[1]) for n, place in zip(order, places, strict=True))
