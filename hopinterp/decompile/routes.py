"""Where each head looks, as a rule of the chain, and the patterns of such rules."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hopinterp.task import Batch, HopTask

Kind = Literal["hop", "before hop", "self", "first", "same letter", "content-free"]
Pattern = Float[Tensor, "batch head query key"]


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
