"""Where each head looks, as a rule of the chain, fitted to patterns; and the model run with all patterns set by rule."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hopinterp.errors import HopInterpError
from hopinterp.models.fused import FusedTransformer
from hopinterp.models.hooks import pattern
from hopinterp.task import Batch, HopTask

Kind = Literal["hop", "before hop", "self", "first", "same letter", "content-free"]
Pattern = Float[Tensor, "batch head query key"]

LEAST_SHARE = 0.15
"""Of each part of a mixture (the issue's definition of a rule)."""
MIXTURE_GAIN = 0.005
"""A second part must explain at least this share of the pattern's squared norm more than the best single rule. Heads of
constructed models are one-hot to 1e-6, so that any value above that keeps them single."""
CONTENT_FREE_GAIN = 0.02
"""The mean pattern must explain this share more than the best named rule: where both fit equally the named one is given."""
NULL_FIRST = 0.90
"""Null rows that put this much on the hop token look there by rule; otherwise their mean by position is the rule."""
_BATCH = 50
_OWN_BATCH = 200  # without patterns


@dataclass(frozen=True)
class Part:
    """One place that a head looks at.

    Attributes:
        kind: "hop" (find^hop(i)), "before hop" (the position before it; hop 0: the previous token), "self", "first" (the
            hop token), "same letter" (evenly every position up to i that has letter X_i, and the hop token with a weight
            of its own) or "content-free" (the head's mean pattern by position).
        hop: j of the first two kinds; None for the others.
        share: of the head's attention, 0 … 1; the parts of a route add up to 1.
    """

    kind: Kind
    hop: int | None = None
    share: float = 1.0

    def __post_init__(self) -> None:
        if (self.hop is not None) != (self.kind in ("hop", "before hop")):
            raise ValueError(f"{self.kind} and hop {self.hop} do not go together")

    @property
    def depends_on_letters(self) -> bool:
        """Whether where it looks differs between two sequences."""
        return self.kind in ("hop", "same letter") or (self.kind == "before hop" and self.hop != 0)

    def __str__(self) -> str:
        name = {("before hop", 0): "previous token"}.get((self.kind, self.hop or 0))
        name = name or (self.kind if self.hop is None else f"{self.kind} {self.hop}")
        return name if self.share == 1 else f"{self.share:.2f} {name}"


@dataclass(frozen=True)
class Route:
    """Where one head looks at one k.

    Attributes:
        parts: one, or two whose shares add up to 1; the larger share first.
        null: where the head looks at rows at which a part's find^j is null: "first" (the hop token) or "mean" (its mean
            pattern on such rows, by position). In a mixture a row of which one part is null belongs to the other part.
        weight: for "same letter": the hop token's weight, where each letter of the same kind has 1.
        explained: share of the pattern's squared norm that the rule accounts for, on the sequences it was fitted to.
    """

    parts: tuple[Part, ...]
    null: Literal["first", "mean"] = "first"
    weight: float = 0.0
    explained: float = 1.0

    @property
    def hard(self) -> Route:
        """The strongest part alone."""
        return replace(self, parts=(replace(self.parts[0], share=1.0),))

    def __str__(self) -> str:
        return " + ".join(map(str, self.parts))


@dataclass(frozen=True, eq=False)
class Routing:
    """A rule for every head at one k: with it, a batch's letters alone say what every pattern is.

    Attributes:
        routes: by layer and head.
        mean: each head's mean pattern by position. Its row for a position is what a content-free head does there.
        null_mean: likewise over the rows that are null for the head's rule; the mean of all where none was seen.
    """

    task: HopTask
    hops: int
    routes: tuple[tuple[Route, ...], ...]
    mean: Float[Tensor, "layer head query key"]
    null_mean: Float[Tensor, "layer head query key"]

    @property
    def hard(self) -> Routing:
        """Every head's strongest rule alone."""
        return replace(self, routes=tuple(tuple(route.hard for route in block) for block in self.routes))

    @property
    def is_mixed(self) -> bool:
        """Whether any head's rule has two parts."""
        return any(len(route.parts) > 1 for _, _, route in self.heads)

    @property
    def heads(self) -> Iterator[tuple[int, int, Route]]:
        """Layer, head and route of every head."""
        return ((layer, head, route) for layer, block in enumerate(self.routes) for head, route in enumerate(block))

    def pattern(self, batch: Batch, layer: int) -> Pattern:
        """The patterns of one block's heads on a batch, by rule."""
        return torch.stack([self._head(batch, layer, head) for head in range(len(self.routes[layer]))], dim=1)

    def _head(self, batch: Batch, layer: int, head: int) -> Float[Tensor, "batch query key"]:
        route, n = self.routes[layer][head], batch.tokens.shape[1]
        mean, null_mean = self.mean[layer, head, :n, :n], self.null_mean[layer, head, :n, :n]
        places = [positions(batch, part) for part in route.parts]
        found = [place >= 0 for place in places]
        made = mean.new_zeros(len(batch), n, n)
        for number, part in enumerate(route.parts):
            share = _shares(part.share, number, found).to(made)
            if part.kind == "content-free":
                made += share[..., None] * mean
            elif part.kind == "same letter":
                made += share[..., None] * same_letter(batch, route.weight).to(made)
            else:
                made.scatter_add_(2, places[number].clamp_min(0)[..., None], share[..., None])
        nowhere = ~torch.stack(found).any(0)
        if route.null == "first":
            made[..., 0] += nowhere
            return made
        return torch.where(nowhere[..., None], null_mean, made)

    def moved(self, layer: int, head: int, by: int) -> Routing:
        """One head's hops moved by `by`, all else as it is; find^0(i) is i itself. What would leave 0 … max_hops stays."""
        route = self.routes[layer][head]
        return self._with({(layer, head): replace(route, parts=tuple(self._moved(part, by) for part in route.parts))})

    def _moved(self, part: Part, by: int) -> Part:
        if part.hop is None or not 0 <= part.hop + by <= self.task.max_hops:
            return part
        if part.kind == "hop" and part.hop + by == 0:
            return Part("self", share=part.share)
        return replace(part, hop=part.hop + by)

    def _with(self, changed: dict[tuple[int, int], Route]) -> Routing:
        routes = tuple(
            tuple(changed.get((layer, head), route) for head, route in enumerate(block))
            for layer, block in enumerate(self.routes)
        )
        return replace(self, routes=routes)

    def permuted(self, order: Sequence[tuple[int, int]]) -> Routing:
        """Head number n (counted through the layers) gets the rule, and the mean patterns, of the head order[n]."""
        width = len(self.routes[0])
        layers, heads = torch.tensor(order).T
        routes = [self.routes[layer][head] for layer, head in order]
        blocks = tuple(tuple(routes[start : start + width]) for start in range(0, len(routes), width))
        means = (m[layers, heads].view_as(m) for m in (self.mean, self.null_mean))
        return Routing(self.task, self.hops, blocks, *means)

    @property
    def content_free(self) -> Routing:
        """Every head at its mean pattern by position."""
        return replace(self, routes=tuple((Route((Part("content-free"),)),) * len(block) for block in self.routes))


def _shares(share: float, number: int, found: list[Bool[Tensor, "batch query"]]) -> Float[Tensor, "batch query"]:
    """A part's share on every row: 0 where it is null, all where the other part is."""
    mine = found[number].float()
    if len(found) == 1:
        return mine
    return mine * torch.where(found[1 - number], share, 1.0)


def positions(batch: Batch, part: Part) -> Int[Tensor, "batch query"]:
    """Where a part looks from every position; −1 where its find^j is null. Zeros for what looks at no single position.

    Position 0, the hop token, can only look at itself.
    """
    own = torch.arange(batch.tokens.shape[1], device=batch.tokens.device).expand_as(batch.tokens)
    if part.kind == "self":
        return own
    if part.hop is None:
        return torch.zeros_like(own)
    found = batch.find[:, part.hop] - int(part.kind == "before hop")
    return torch.where(batch.find[:, part.hop] > 0, found, -1).where(own > 0, 0)


def same_letter(batch: Batch, weight: float) -> Float[Tensor, "batch query key"]:
    """The pattern of a counting head: 1 for every position up to i with letter X_i, `weight` for the hop token, normed."""
    same = (batch.tokens[:, :, None] == batch.tokens[:, None]).tril().float()
    same[:, 1:, 0] = weight
    return same / same.sum(-1, keepdim=True)


# -- fitting ----------------------------------------------------------------------------------------------------------


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
    caches = [model.run_with_cache(tokens, names)[1] for tokens in batch.tokens.split(_BATCH)]
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


# -- runs -------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def run_routed(
    model: FusedTransformer, batch: Batch, routing: Routing, layers: Sequence[int] | None = None
) -> Float[Tensor, "batch position d_vocab"]:
    """Logits of the model with the patterns of all heads (of the given layers only, if given) set by rule."""
    return torch.cat([model.unembed(routed_streams(model, part, routing, layers)[-1]) for part in in_parts(batch)])


@torch.no_grad()
def run_own(model: FusedTransformer, tokens: Int[Tensor, "batch position"]) -> Float[Tensor, "batch position d_vocab"]:
    """Logits of the model as it is, some sequences at a time."""
    return torch.cat([model(part) for part in tokens.split(_OWN_BATCH)])


def in_parts(batch: Batch) -> Iterator[Batch]:
    """A batch's sequences, as many at a time as have room beside their patterns by rule."""
    return (batch[start : start + _BATCH] for start in range(0, len(batch), _BATCH))


Streams = list[Float[Tensor, "batch position d_model"]]


@torch.no_grad()
def routed_streams(
    model: FusedTransformer,
    batch: Batch,
    routing: Routing,
    layers: Sequence[int] | None = None,
    *,
    before: Streams | None = None,
) -> Streams:
    """The stream before every block and after the last, with patterns set by rule.

    Args:
        layers: the blocks whose patterns are; all by default.
        before: the first of these streams, where another run has them already.
    """
    streams = [model.embed(batch.tokens)] if before is None else list(before)
    for layer in range(len(streams) - 1, model.spec.n_layers):
        q, k, v = model.qkv(model.norm(streams[-1], f"blocks.{layer}.ln1"), layer)
        if layers is None or layer in layers:
            z = routing.pattern(batch, layer) @ v
        else:
            z = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=model.scale)
        streams.append(model.block_end(streams[-1] + model.attn_out(z, layer), layer))
    return streams
