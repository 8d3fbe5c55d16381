"""The rule of every head, fitted to its patterns by least squares."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hopinterp.decompile.routed_runs import in_parts
from hopinterp.decompile.routes import Part, Route, Routing, positions, same_letter
from hopinterp.errors import HopInterpError
from hopinterp.models.fused import FusedTransformer
from hopinterp.models.hooks import pattern
from hopinterp.task import Batch, HopTask

LEAST_SHARE = 0.15
"""Of each part of a mixture."""
MIXTURE_GAIN = 0.005
"""A second part must explain at least this share of the pattern's squared norm more than the best single rule. Heads of
constructed models are one-hot to 1e-6, so that any value above that keeps them single."""
CONTENT_FREE_GAIN = 0.02
"""The mean pattern must explain this share more than the best named rule: where both fit equally the named one is given."""
NULL_FIRST = 0.90
"""Null rows that put this much on the hop token look there by rule; otherwise their mean by position is the rule."""


@torch.no_grad()
def fit_routes(model: FusedTransformer, task: HopTask, hops: int, sequences: int = 100, seed: int = 0) -> Routing:
    """The rule of every head at one k, by least squares on its patterns.

    A rule's misfit is the squared distance between the pattern and the rule's own, summed over all rows but the hop
    token's, with null rows at their mean by position; so rules of few rows have no advantage. The best single rule is
    taken, unless a pair with its best shares, or the mean pattern by position, explains clearly more.

    Raises:
        HopInterpError: k out of range or fewer than two sequences.
    """
    task.check_hops(hops)
    if sequences < 2:
        raise HopInterpError(f"sequences is {sequences}; the mean pattern of a rule needs at least two")
    batch = task.sample(sequences, hops=hops, seed=seed, device=model.device)
    names = [pattern(layer) for layer in range(model.spec.n_layers)]
    caches = [model.run_with_cache(part.tokens, names)[1] for part in in_parts(batch)]
    routes, means, null_means = [], [], []
    rules = _Candidates.of(batch)
    for name in names:
        patterns = torch.cat([cache.pop(name) for cache in caches])
        fits = [_fit_head(patterns[:, head], batch, rules) for head in range(patterns.shape[1])]
        routes.append(tuple(route for route, _ in fits))
        means.append(patterns.mean(0))
        null_means.append(torch.stack([null_mean for _, null_mean in fits]))
    return Routing(task, hops, tuple(routes), torch.stack(means), torch.stack(null_means))


@dataclass(frozen=True, eq=False)
class _Candidates:
    """Every rule that names one position, on one batch. Row 0, which has no choice, is left out.

    Attributes:
        place: where each looks, 0 where null.
        valid: where it is not null. Rules of one hop count share it, and each hop's rows hold those of the next.
        same: how many rows two rules share at which they look at one position; `both`: how many rows they share.
    """

    parts: tuple[Part, ...]
    place: Int[Tensor, "batch rule query"]
    valid: Float[Tensor, "batch rule query"]
    same: Float[Tensor, "rule rule"]
    both: Float[Tensor, "rule rule"]

    @classmethod
    def of(cls, batch: Batch) -> _Candidates:
        """All rules of the task."""
        hops = range(batch.task.max_hops + 1)
        parts = [Part("self"), Part("first"), *(Part("before hop", j) for j in hops), *(Part("hop", j) for j in hops[1:])]
        place = torch.stack([positions(batch, part) for part in parts], dim=1)[..., 1:]
        valid = (place >= 0).float()
        both = torch.einsum("bcq,bdq->cd", valid, valid)
        same = torch.stack([((place == place[:, [c]]) * valid * valid[:, [c]]).sum((0, 2)) for c in range(len(parts))])
        return cls(tuple(parts), place.clamp_min(0), valid, same, both)

    def hits(self, patterns: Float[Tensor, "batch query key"]) -> Float[Tensor, "batch rule query"]:
        """What a head puts where each rule looks."""
        rows = patterns[:, None].expand(-1, len(self.parts), -1, -1)
        return rows.gather(3, self.place[..., None])[..., 0] * self.valid


def _fit_head(patterns: Float[Tensor, "batch query key"], batch: Batch, rules: _Candidates) -> tuple[Route, Tensor]:
    """A head's route and its mean pattern on the rows that are null for it."""
    body = patterns[:, 1:]
    norms, total = body.square().sum(-1), body.square().sum()
    hits = rules.hits(body)
    null = _null_misfit(body, norms, rules)
    single = torch.einsum("bcq,bq->c", rules.valid, norms) - 2 * hits.sum((0, 2)) + rules.both.diagonal() + null
    best = int(single.argmin())
    chosen, misfit = Route((rules.parts[best],)), single[best]
    pair, pair_misfit = _best_pair(hits, norms, null, rules)
    if pair is not None and misfit - pair_misfit > MIXTURE_GAIN * total:
        chosen, misfit = Route(pair), pair_misfit
    weight, counted = _count_misfit(patterns, batch)
    if counted < misfit:
        chosen, misfit = Route((Part("same letter"),), weight=weight), counted
    spread = total - len(body) * body.mean(0).square().sum()
    if misfit - spread > CONTENT_FREE_GAIN * total:
        chosen, misfit = Route((Part("content-free"),)), spread
    nowhere = torch.stack([positions(batch, part) < 0 for part in chosen.parts]).all(0)
    null_mean = _null_mean(patterns, nowhere)
    first = nowhere.sum() == 0 or (patterns[..., 0] * nowhere).sum() > NULL_FIRST * nowhere.sum()
    explained = float(1 - misfit / total)
    return replace(chosen, null="first" if first else "mean", explained=explained), null_mean


def _null_misfit(
    body: Float[Tensor, "batch query key"], norms: Float[Tensor, "batch query"], rules: _Candidates
) -> Float[Tensor, " rule"]:
    """Squared distance of null rows from their mean by position."""
    null = 1 - rules.valid
    count = null.sum(0).clamp_min(1)
    sums = torch.einsum("bcq,bqk->cqk", null, body)
    return torch.einsum("bcq,bq->c", null, norms) - (sums.square().sum(-1) / count).sum(-1)


def _best_pair(
    hits: Float[Tensor, "batch rule query"],
    norms: Float[Tensor, "batch query"],
    null: Float[Tensor, " rule"],
    rules: _Candidates,
) -> tuple[tuple[Part, Part] | None, Float[Tensor, ""]]:
    """The two rules, and their shares, that leave least; None where no pair has two shares of LEAST_SHARE.

    On rows where both look somewhere the shares count; where only one does it takes all; where neither, the mean.
    """
    valid = rules.valid
    first = torch.einsum("bcq,bdq->cd", hits, valid)  # what the first puts where both are valid
    apart = rules.both - rules.same
    share = 0.5 + (first - first.T) / (2 * apart).clamp_min(1)
    share = share.clamp(LEAST_SHARE, 1 - LEAST_SHARE)
    squared = share.square() + (1 - share).square()
    norm = torch.einsum("bcq,bdq,bq->cd", valid, valid, norms)
    mixed = norm - 2 * (share * first + (1 - share) * first.T) + squared * rules.both + 2 * share * (1 - share) * rules.same
    own = hits.sum((0, 2))[:, None] - first  # rows where the first alone is valid
    alone = torch.einsum("bcq,bq->c", valid, norms)[:, None] - norm - 2 * own + rules.both.diagonal()[:, None] - rules.both
    both_null = torch.minimum(null[:, None], null)  # null rows of one hop count hold those of a smaller one
    misfit = mixed + alone + alone.T + both_null
    misfit = misfit.masked_fill(apart < 1, torch.inf).fill_diagonal_(torch.inf)
    c, d = divmod(int(misfit.argmin()), len(share))
    if share[c, d] < share[d, c]:
        c, d = d, c
    if not misfit[c, d].isfinite():
        return None, misfit[c, d]
    s = float(share[c, d])
    return (replace(rules.parts[c], share=s), replace(rules.parts[d], share=1 - s)), misfit[c, d]


def _count_misfit(patterns: Float[Tensor, "batch query key"], batch: Batch) -> tuple[float, Float[Tensor, ""]]:
    """The hop token's weight that a counting head would have, and how far the head is from that."""
    first = patterns[:, 1:, 0].clamp(0, 1 - 1e-6)
    letters = batch.tokens[:, 1:]
    count = (letters[:, :, None] == letters[:, None]).tril().sum(-1)
    weight = float((count * first / (1 - first)).median())
    return weight, (patterns - same_letter(batch, weight))[:, 1:].square().sum()


def _null_mean(
    patterns: Float[Tensor, "batch query key"], nowhere: Bool[Tensor, "batch query"]
) -> Float[Tensor, "query key"]:
    """The mean pattern by position over null rows; over all rows where a position has none."""
    null = nowhere.to(patterns)
    sums = torch.einsum("bq,bqk->qk", null, patterns)
    count = null.sum(0)[:, None]
    return torch.where(count > 0, sums / count.clamp_min(1), patterns.mean(0))
