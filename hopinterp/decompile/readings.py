"""What a head's query reads, by interchange of the query alone: where the head looks when it is another sequence's."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from hopinterp.decompile.tree_runs import streams_before
from hopinterp.evidence.intervals import bootstrap
from hopinterp.models.fused import FusedTransformer
from hopinterp.task import Batch, HopTask
from hopinterp.theory.predictions import occurrence_number, positions_behind

Reads = Literal["successor", "lookup", "other"]
Naming = Literal["lookup", "occurrence", "position", "letter"]
NAMINGS: tuple[Naming, ...] = ("lookup", "occurrence", "position", "letter")
MARGIN = 0.1
"""A query reads what is predicted only if that closes more than this share of the gap from chance to 1, at the lower end of
its interval, as in `transplant`. Constructed heads close all of it; of 320 untrained heads none comes above its chance."""
CLEAR = 0.5
"""Halfway between constructed heads, which close all of the gap, and untrained ones, which close nothing of it."""
LEAST_SEQUENCES = 5
"""Fewer that hold a position which counts say nothing."""

Found = Int[Tensor, "batch position"]


def predicted(base: Batch, source: Batch, hop: int) -> Int[Tensor, "naming batch position"]:
    """Where in the base a head that jumps u hops would look with the source's query at the same position p; 0 abstains.

    With q = find^(u−1)(p) and a = X_q, both of the source. *Lookup*: at find^u(p) of the source. The others look for the
    position after a letter a of the base: *occurrence*: the one before the occurrence that a has at q, by its number;
    *position*: the last one before q; *letter*: the last one before p.
    """
    target, q = source.find[:, hop], source.find[:, hop - 1]
    own = torch.arange(q.shape[1])
    counted = (target > 0) & (base.find[:, hop] > 0)
    return torch.stack([torch.where(counted & (place <= own), place, 0) for place in (target, *named(base, source, q))])


def named(
    base: Batch, batch: Batch, q: Int[Tensor, "batch position"]
) -> tuple[Int[Tensor, "batch position"], Int[Tensor, "batch position"], Int[Tensor, "batch position"]]:
    """Positions of the base after an occurrence of the letter that stands at q in a batch: the one before the occurrence
    with its number, the last one before q, the last one before the position itself; 0 for none."""
    rows, letter = torch.arange(len(base))[:, None], batch.hop_letters[:, 0].gather(1, q).clamp_min(0)
    latest, nth = positions_behind(base)
    number = (occurrence_number(batch).gather(1, q) - 1).clamp_min(0)
    own = torch.arange(q.shape[1]).expand_as(q)
    return nth[rows, letter, number], latest[rows, letter, q], latest[rows, letter, own]


@dataclass(frozen=True)
class Reading:
    """What one head's query reads.

    Attributes:
        hop: u, where the head looks: find^u(p).
        naming: what tells it: "lookup" (the position itself), or the letter of hop u − 1 with its "occurrence" number, with
            its "position", or the "letter" alone (its last occurrence).
        reads: "lookup"; "successor", if the naming is one of the other three; "other" where none is clear.
        iia: how often the head then looks where the naming says, where that is not where it looked before; by naming, with
            95% intervals.
        chance: by naming, the larger of two: how often it looks where an unrelated source's query would lead, and how often
            the commonest distance leads there. (Where it looked there before is not counted.) `untrained`: iia of an
            untrained model.
        positions: by naming, how many count.
        after_letter: how often the head looks right after *some* occurrence of the source's letter of hop u − 1, where the
            base's is another; `after_letter_chance`: how often that letter is an unrelated source's.
    """

    layer: int
    head: int
    hop: int
    naming: Naming | None
    reads: Reads
    iia: Mapping[Naming, float]
    low: Mapping[Naming, float]
    high: Mapping[Naming, float]
    chance: Mapping[Naming, float]
    untrained: Mapping[Naming, float]
    positions: Mapping[Naming, int]
    after_letter: float
    after_letter_chance: float

    @property
    def best(self) -> float:
        """IIA of the naming; of the one that comes nearest where none is clear."""
        return self.iia[self.naming] if self.naming else max(self.iia.values())

    @property
    def clear(self) -> bool:
        """Whether what it reads leads it in another sequence: it looks at the source's position (lookup), or after the
        source's letter, so often that CLEAR of the gap from chance to 1 is closed."""
        lookup = self.naming == "lookup"
        share, chance = (
            (self.iia["lookup"], self.chance["lookup"]) if lookup else (self.after_letter, self.after_letter_chance)
        )
        return share >= chance + CLEAR * (1 - chance)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


@torch.no_grad()
def read_queries(
    model: FusedTransformer,
    task: HopTask,
    hops: int,
    heads: Mapping[tuple[int, int], int],
    *,
    sequences: int = 40,
    seed: int = 0,
) -> dict[tuple[int, int], Reading]:
    """Exchange the queries of heads between sequences, at the same position, against the base's own keys.

    Everything else is the base's clean run. Counted are positions at which base and source have a find^u and the predicted
    place is not where the head looks in the base.

    Args:
        heads: (layer, head) → u.

    Raises:
        HopInterpError: k is out of range.
    """
    base, source = (task.sample(sequences, hops=hops, seed=2 * seed + number) for number in (1, 2))
    stranger = task.from_letters(source.tokens.roll(1, 0)[:, 1:] - task.first_letter, hops)
    looks = _Looks.of(model, base, source, heads)
    bare = FusedTransformer(model.spec, model.spec.initial_parameters(seed)).to(model.device)
    control = _Looks.of(bare, base, source, heads)
    found = {}
    for (layer, head), hop in heads.items():
        expected, unrelated = (predicted(base, other, hop) for other in (source, stranger))
        own, moved = looks.own[layer, head], looks.moved[layer, head]
        reading = _judge((layer, head, hop), expected, unrelated, own, moved, control.moved[layer, head], seed)
        after, chance = (_after_letter(base, other, hop, moved) for other in (source, stranger))
        found[layer, head] = replace(reading, after_letter=after, after_letter_chance=chance)
    return found


def _after_letter(base: Batch, source: Batch, hop: int, where: Found) -> float:
    """How often the letter before where a head looks is the source's of hop u − 1, among positions where that is not the
    base's own."""
    wanted, own = (batch.hop_letters[:, hop - 1] for batch in (source, base))
    counted = (source.find[:, hop] > 0) & (base.find[:, hop] > 0) & (wanted != own)
    before = base.hop_letters[:, 0].gather(1, (where - 1).clamp_min(0))
    return _rate(before == wanted, counted)


@dataclass(frozen=True, eq=False)
class _Looks:
    """Where heads look most, by their own query and by the source's."""

    own: dict[tuple[int, int], Found]
    moved: dict[tuple[int, int], Found]

    @classmethod
    def of(cls, model: FusedTransformer, base: Batch, source: Batch, heads: Mapping[tuple[int, int], int]) -> _Looks:
        own: dict[tuple[int, int], Found] = {}
        moved: dict[tuple[int, int], Found] = {}
        streams = [streams_before(model, batch.tokens) for batch in (base, source)]
        n = base.tokens.shape[1]
        future = torch.ones(n, n, dtype=torch.bool).triu(1)
        for layer in sorted({layer for layer, _ in heads}):
            normed = [model.norm(stream[layer], f"blocks.{layer}.ln1") for stream in streams]
            (q, k, _), (other, _, _) = (model.qkv(x, layer) for x in normed)
            for head in (h for at, h in heads if at == layer):
                key = k[:, head].mT
                for query, looks in ((q, own), (other, moved)):
                    looks[layer, head] = (query[:, head] @ key).masked_fill(future, -torch.inf).argmax(-1)
        return cls(own, moved)


def _judge(
    who: tuple[int, int, int],
    expected: Int[Tensor, "naming batch position"],
    unrelated: Int[Tensor, "naming batch position"],
    own: Found,
    moved: Found,
    control: Found,
    seed: int,
) -> Reading:
    """Rates of every naming, and the one that is clear."""
    counts, strange = ((told > 0) & (told != own) for told in (expected, unrelated))
    iia, low, high, chance, bare, share = (dict[Naming, float]() for _ in range(6))
    for number, naming in enumerate(NAMINGS):
        told, asked = expected[number], counts[number]
        low[naming], high[naming] = _interval(moved == told, asked, seed)
        iia[naming], bare[naming] = _rate(moved == told, asked), _rate(control == told, asked)
        chance[naming] = max(_rate(moved == unrelated[number], strange[number]), _guess(told, asked))
        bar = max(chance[naming], bare[naming])
        enough = int(asked.any(1).sum()) >= LEAST_SEQUENCES and bar < 1
        share[naming] = (low[naming] - bar) / (1 - bar) if enough else -math.inf
    named = _clear(share, iia, expected, counts, moved, seed)
    reads: Reads = "other" if named is None else "lookup" if named == "lookup" else "successor"
    positions: dict[Naming, int] = {name: int(c.sum()) for name, c in zip(NAMINGS, counts, strict=True)}
    return Reading(*who, named, reads, iia, low, high, chance, bare, positions, after_letter=0.0, after_letter_chance=0.0)


def _clear(
    share: Mapping[Naming, float],
    iia: Mapping[Naming, float],
    expected: Int[Tensor, "naming batch position"],
    counts: Bool[Tensor, "naming batch position"],
    moved: Found,
    seed: int,
) -> Naming | None:
    """The naming that comes true most, if it is clear and wins against its rivals of the other kind where they differ."""
    clear = [naming for naming in NAMINGS if share[naming] > MARGIN]
    if not clear:
        return None
    best = max(clear, key=lambda naming: iia[naming])
    mine = NAMINGS.index(best)
    for number, rival in enumerate(NAMINGS):
        if (rival == "lookup") == (best == "lookup"):
            continue
        apart = counts[mine] & counts[number] & (expected[mine] != expected[number])
        won, lost = ((moved == expected[n]) & apart for n in (mine, number))
        either = (won | lost).sum(1).double()
        if either.sum() and not float(bootstrap(won.sum(1).double(), either, seed)[0]) > 0.5:
            return None
    return best


def _interval(hits: Bool[Tensor, "batch position"], asked: Bool[Tensor, "batch position"], seed: int) -> tuple[float, float]:
    if not asked.any():
        return math.nan, math.nan
    low, high = bootstrap((hits & asked).sum(1).double(), asked.sum(1).double(), seed)
    return float(low), float(high)


def _rate(hits: Bool[Tensor, "batch position"], asked: Bool[Tensor, "batch position"]) -> float:
    return float((hits & asked).sum() / asked.sum()) if asked.any() else 0.0


def _guess(told: Found, asked: Bool[Tensor, "batch position"]) -> float:
    """How often the commonest distance, learned on every other pair, is the one to the predicted place."""
    distance = torch.arange(told.shape[1]) - told
    learned = (torch.arange(len(told)) % 2 == 0)[:, None]
    seen, unseen = asked & learned, asked & ~learned
    if not seen.any():
        return 0.0
    return _rate(distance == distance[seen].mode().values, unseen)
