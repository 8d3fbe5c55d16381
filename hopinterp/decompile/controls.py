"""How well a model answers on its routes alone, block by block and in all, beside routes that are not its own."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from hopinterp.decompile.route_fitting import fit_routes
from hopinterp.decompile.routed_runs import in_parts, routed_streams, run_own, run_routed
from hopinterp.decompile.routes import Routing
from hopinterp.errors import HopInterpError
from hopinterp.evidence.intervals import bootstrap_ratio, korn_graubard
from hopinterp.models.fused import FusedTransformer
from hopinterp.seeds import seeded
from hopinterp.task import Batch, HopTask

Logits = Float[Tensor, "batch position d_vocab"]
DRAWS = 3


@dataclass(frozen=True)
class Faithfulness:
    """What replacing all patterns of all heads by their rules does to err_k, on fresh sequences. Rates are 0 … 1.

    Attributes:
        own: err_k of the model as it is. `routed`: with every pattern set by its rule; `routed_hard`: by its strongest part.
        low, high: 95% of routed − own, paired by sequence.
        by_block: err_k with the patterns of one block alone set by rule.
        kl: mean KL divergence of the routed model's predictions from the model's own, in nats, over scored positions.
        own_logit_difference, routed_logit_difference: the right answer's logit minus the largest other one, mean.
        same: share of the scored positions at which the model's own answer and that on its routes are the same.
        sequences: how many.
    """

    own: float
    routed: float
    routed_hard: float
    low: float
    high: float
    by_block: tuple[float, ...]
    kl: float
    own_logit_difference: float
    routed_logit_difference: float
    same: float
    sequences: int


@dataclass(frozen=True)
class Controls:
    """err_k on routes that are not the model's own, one number a draw. All patterns are replaced, as for `routed`.

    Attributes:
        shuffled: rules handed around among all heads; `shuffled_within_block`: among the heads of each block.
        one_hop_off: the hops of one head moved by ±1, each head that has a hop rule in its turn.
        content_free: every head at its mean pattern by position.
        untrained: the same sizes with weights as before training, on routes fitted to it.
        heads_moved: layer and head of each number of `one_hop_off`.
    """

    shuffled: tuple[float, ...]
    shuffled_within_block: tuple[float, ...]
    one_hop_off: tuple[float, ...]
    content_free: tuple[float, ...]
    untrained: tuple[float, ...]
    heads_moved: tuple[tuple[int, int], ...]

    def means(self) -> dict[str, float]:
        """The mean of each control over its draws; NaN where it has none."""
        names = ("shuffled", "shuffled_within_block", "one_hop_off", "content_free", "untrained")
        return {name: float(torch.tensor(getattr(self, name)).mean()) for name in names}


@torch.no_grad()
def measure_faithfulness(model: FusedTransformer, routing: Routing, *, sequences: int = 200, seed: int = 0) -> Faithfulness:
    """Run the model as it is and on its routes, on sequences that the routes were not fitted to (another seed).

    Raises:
        HopInterpError: no scored position among the sequences.
    """
    batch = _draw(model, routing.task, routing.hops, sequences, seed)
    own_logits, routed_logits = run_own(model, batch.tokens), run_routed(model, batch, routing)
    own, routed = (wrong_answers(logits, batch) for logits in (own_logits, routed_logits))
    counted = batch.scored.double()
    low, high = paired(own, routed, counted)
    few = batch[: max(sequences // 4, 1)]  # a block alone does less than all together: fewer sequences show it
    log_own, log_routed = (logits[batch.scored].log_softmax(-1) for logits in (own_logits, routed_logits))
    total = float(counted.sum())
    return Faithfulness(
        own=float(own.sum()) / total,
        routed=float(routed.sum()) / total,
        routed_hard=rate(run_routed(model, batch, routing.hard), batch) if routing.is_mixed else float(routed.sum()) / total,
        low=low,
        high=high,
        by_block=_by_block(model, few, routing),
        kl=float((log_own.exp() * (log_own - log_routed)).sum(-1).mean()),
        own_logit_difference=_logit_difference(own_logits, batch),
        routed_logit_difference=_logit_difference(routed_logits, batch),
        same=float((own_logits.argmax(-1) == routed_logits.argmax(-1))[batch.scored].double().mean()),
        sequences=sequences,
    )


def _by_block(model: FusedTransformer, batch: Batch, routing: Routing) -> tuple[float, ...]:
    """err_k with the patterns of each block alone set by rule. Up to it the model runs as it is."""

    def logits(part: Batch) -> Iterator[Logits]:
        own = routed_streams(model, part, routing, [])
        for n in range(model.spec.n_layers):
            yield model.unembed(routed_streams(model, part, routing, [n], before=own[: n + 1])[-1])

    return _rates(batch, logits)


def _one_hop_off(
    model: FusedTransformer, batch: Batch, routing: Routing, moved: Sequence[tuple[int, int]], signs: Sequence[int]
) -> tuple[float, ...]:
    """err_k with the hops of each head in its turn moved by its sign. Up to its block the run is that of the rules."""

    def logits(part: Batch) -> Iterator[Logits]:
        own = routed_streams(model, part, routing)
        for (layer, head), by in zip(moved, signs, strict=True):
            other = routing.moved(layer, head, by)
            yield model.unembed(routed_streams(model, part, other, before=own[: layer + 1])[-1])

    return _rates(batch, logits)


def _rates(batch: Batch, runs: Callable[[Batch], Iterator[Logits]]) -> tuple[float, ...]:
    """err_k in each of several runs, made on some sequences after the other; NaN where none has an answer."""
    wrong = [[float(wrong_answers(logits, part).sum()) for logits in runs(part)] for part in in_parts(batch)]
    answers = float(batch.scored.sum()) or math.nan
    return tuple(sum(one) / answers for one in zip(*wrong, strict=True))


@torch.no_grad()
def measure_controls(
    model: FusedTransformer,
    routing: Routing,
    *,
    sequences: int = 40,
    draws: int = DRAWS,
    seed: int = 0,
    untrained: tuple[float, ...] | None = None,
) -> Controls:
    """Run the model on routes that are not its own.

    Args:
        sequences: of each draw; half as many for each head that is moved.
        draws: of each control that is drawn.
        untrained: that control as `measure_untrained` gives it, maybe at another k; measured here if not given.

    Raises:
        HopInterpError: no scored position among the sequences.
    """
    batch = _draw(model, routing.task, routing.hops, sequences, seed)
    half = batch[: max(sequences // 2, 1)]
    generator = seeded(seed)
    moved = [(layer, head) for layer, head, route in routing.heads if any(part.hop for part in route.parts)]
    if untrained is None:
        untrained = measure_untrained(model, routing.task, routing.hops, sequences=sequences, draws=draws, seed=seed)
    signs = (torch.randint(2, (len(moved),), generator=generator) * 2 - 1).tolist()
    return Controls(
        shuffled=tuple(rate(run_routed(model, batch, r), batch) for r in _shuffles(routing, draws, generator, False)),
        shuffled_within_block=tuple(
            rate(run_routed(model, batch, r), batch) for r in _shuffles(routing, draws, generator, True)
        ),
        one_hop_off=_one_hop_off(model, half, routing, moved, signs),
        content_free=(rate(run_routed(model, batch, routing.content_free), batch),),
        untrained=untrained,
        heads_moved=tuple(moved),
    )


def _shuffles(routing: Routing, draws: int, generator: torch.Generator, within: bool) -> Iterator[Routing]:
    """Rules handed around at random, drawn again (up to 20 times) while no head's rule is another than before."""
    layers, heads = len(routing.routes), len(routing.routes[0])
    for _ in range(draws):
        for _ in range(20):
            if within:
                order = torch.cat([layer * heads + torch.randperm(heads, generator=generator) for layer in range(layers)])
            else:
                order = torch.randperm(layers * heads, generator=generator)
            given = routing.permuted([divmod(int(n), heads) for n in order])
            if given.routes != routing.routes:
                break
        yield given


@torch.no_grad()
def measure_untrained(
    model: FusedTransformer, task: HopTask, hops: int, *, sequences: int = 40, draws: int = DRAWS, seed: int = 0
) -> tuple[float, ...]:
    """err_k of models of the same sizes with weights as before training, on routes fitted to them, one number a draw.

    Args:
        sequences: as of the other controls: half as many serve here.

    Raises:
        HopInterpError: no scored position among the sequences.
    """
    batch = _draw(model, task, hops, sequences, seed)[: max(sequences // 2, 1)]
    errors = []
    for draw in range(seed, seed + draws):
        fresh = FusedTransformer(model.spec, model.spec.initial_parameters(draw)).to(model.device)
        routes = fit_routes(fresh, task, hops, sequences=20, seed=draw)
        errors.append(rate(run_routed(fresh, batch, routes), batch))
    return tuple(errors)


def _draw(model: FusedTransformer, task: HopTask, hops: int, sequences: int, seed: int) -> Batch:
    # far from the seeds of fit_routes, so that the same `seed` gives it other sequences
    batch = task.sample(sequences, hops=hops, seed=1_000_003 + seed, device=model.device)
    if not batch.scored.any():
        raise HopInterpError(f"none of {sequences} sequences has a chain of {hops} links")
    return batch


def wrong_answers(logits: Logits, batch: Batch) -> Float[Tensor, "batch position"]:
    return ((logits.argmax(-1) != batch.labels) & batch.scored).double()


def rate(logits: Logits, batch: Batch) -> float:
    return float(wrong_answers(logits, batch).sum() / batch.scored.sum())


def paired(
    own: Float[Tensor, "sequence position"],
    routed: Float[Tensor, "sequence position"],
    counted: Float[Tensor, "sequence position"],
) -> tuple[float, float]:
    """95% of routed − own. Where no answer changed, resampling shows no spread: then as much as the share of answers that
    change may be, either way."""
    changed = (routed != own).double().sum(1)
    if not changed.any():
        most = float(korn_graubard(changed, counted.sum(1))[1])
        return -most, most
    low, high = bootstrap_ratio((routed - own).sum(1), counted.sum(1), seed=0)
    return float(low), float(high)


def _logit_difference(logits: Logits, batch: Batch) -> float:
    scored, answer = logits[batch.scored], batch.labels[batch.scored][:, None]
    others = scored.scatter(1, answer, -torch.inf).amax(1)
    return float((scored.gather(1, answer)[:, 0] - others).mean())
