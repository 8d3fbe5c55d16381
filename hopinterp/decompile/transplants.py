"""What a program says the answer becomes when a whole block's output at i is another sequence's, and how often it does."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hopinterp.decompile.interventions import Rate, rated
from hopinterp.decompile.kept import records_of
from hopinterp.decompile.nodes import START, Node, Path, derivations
from hopinterp.decompile.queries import Queries, Query
from hopinterp.decompile.readings import named
from hopinterp.decompile.records import Decompiled
from hopinterp.engine.per_position import Site, transplanted
from hopinterp.errors import HopInterpError
from hopinterp.evidence.intervals import bootstrap, bootstrap_ratio
from hopinterp.evidence.remembered import Codec, recall
from hopinterp.evidence.transplants.pairs import MatchedPairs
from hopinterp.models.subject import Subject
from hopinterp.shown import Row, Shown
from hopinterp.task import Batch

AT_ONCE = 32
"""Pairs of sequences of which all activations are kept at once."""

Letters = Int[Tensor, "way batch position"]
"""Letters 0 … |Σ| − 1 that ways bring to i; −1 where a way says nothing."""


@dataclass(frozen=True)
class BlockTransplant:
    """One block's output at i put in from another sequence, over positions whose two answers differ.

    Attributes:
        agreement: how often the answer is the letter that all ways bring, where all bring one and the same.
        unanimous: share of the counted positions at which they do.
        unrelated: how often the answer is the letter that all ways would bring from an unrelated source: chance.
        vote: where ways differ, how often the answer is the letter that most bring.
        single: there: the better of always the base's letter and always the source's.
        lift: vote less single.
    """

    layer: int
    agreement: Rate
    unanimous: float
    unrelated: float
    vote: Rate
    single: float
    lift: Rate


@dataclass(frozen=True, repr=False)
class BlockTransplants(Shown):
    """Every block's transplant at one k; agreement and lift over all blocks but the last, whose output is the answer."""

    hops: int
    match: str
    blocks: tuple[BlockTransplant, ...]
    agreement: Rate
    lift: Rate
    pairs: int

    @property
    def columns(self) -> list[str]:
        """Over `rows`."""
        return ["", "comes true", "95% interval", "all ways agree", "chance", "vote where not", "best single letter"]

    @property
    def rows(self) -> list[Row]:
        """A row a block."""
        return [(f"block {block.layer}", _cells(block)) for block in self.blocks]

    @property
    def reading(self) -> str:
        """How often what the program foretells comes true."""
        told = f"{self.agreement.value:.0%} ({100 * self.agreement.low:.0f} to {100 * self.agreement.high:.0f})"
        return (
            f"k = {self.hops}, {self.pairs} pairs matched in {self.match}: where all ways of the program bring one letter, "
            f"the answer is that letter in {told}, over all blocks but the last."
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        rows = [
            {name: vars(value) if isinstance(value, Rate) else value for name, value in vars(block).items()}
            for block in self.blocks
        ]
        return {
            "hops": self.hops,
            "match": self.match,
            "pairs": self.pairs,
            "agreement": vars(self.agreement),
            "lift": vars(self.lift),
            "blocks": rows,
        }


def _cells(block: BlockTransplant) -> tuple[str, ...]:
    rates = (block.unanimous, block.unrelated, block.vote.value, block.single)
    interval = f"{100 * block.agreement.low:.0f} – {100 * block.agreement.high:.0f}"
    return (f"{block.agreement.value:.0%}", interval, *(f"{rate:.0%}".replace("nan%", "–") for rate in rates))


def measure_transplants(
    found: Decompiled, *, match: str = "occurrence", sequences: int = 100, seed: int = 0
) -> BlockTransplants:
    """Put every block's output at i in from another sequence, at i alone, and compare the answer with the program's.

    A whole block's output carries all pointers of i at once, whatever their length. By the program a head of a later block
    then looks in the base where the source's pointer leads, and every head that stands elsewhere brings the base's letters;
    what was already brought to i is the source's. A pointer that reads like successor names a letter and which occurrence of
    it: by number or by position. The program leaves that open, so each is a way of its own.

    Args:
        found: by `decompile`, with the model.
        match: what base and source have in common at the positions counted (`evidence.transplants.pairs.MATCHES`). By
            default i is the same occurrence of the same letter, so that the two namings of an occurrence often agree.
        sequences: pairs, on none of which the program was found; of matched positions those count whose two answers are
            letters and differ.

    Raises:
        HopInterpError: no derivation was found, `found` was loaded without its model, or no position counts.
    """
    subject = Subject.of(found.network_to_run, name=found.model)
    settings = {"hops": found.hops, "program": found.digest(), "match": match, "sequences": sequences, "seed": seed}
    measured = partial(_measured, found, subject, match, sequences, seed)
    return recall("measure_transplants", subject, found.task, settings, _RECORDS, measured)


_RECORDS: Codec[BlockTransplants] = records_of(BlockTransplants)


@torch.no_grad()
def _measured(found: Decompiled, subject: Subject, match: str, sequences: int, seed: int) -> BlockTransplants:
    task, queries = found.task, found.queries
    pairs = MatchedPairs.draw(task, queries.hops, sequences, match, 7 * seed + 900_007, subject.device)
    if not pairs.counted.any():
        raise HopInterpError(f"no position counts in {sequences} pairs at k = {queries.hops}: draw more")
    layers = subject.layers()
    answers = [answer - task.first_letter for answer in _answers(subject, pairs)]
    tables = [_Table.of(queries, pairs, layer, answer) for layer, answer in zip(layers, answers, strict=True)]
    agreement = _rate([(t.right & t.unanimous, t.unanimous) for t in tables[:-1]])
    lift = _difference([(t.voted.float() - t.single_hit.float(), t.split) for t in tables[:-1]])
    return BlockTransplants(queries.hops, match, tuple(t.summary() for t in tables), agreement, lift, sequences)


def _answers(subject: Subject, pairs: MatchedPairs) -> list[Int[Tensor, "pair position"]]:
    """The answers after a transplant at each block, some pairs at once: two whole runs are kept of each."""
    sites: list[Site] = [(layer, None) for layer in subject.layers()]
    parts = math.ceil(len(pairs.base.tokens) / AT_ONCE)
    tokens = zip(pairs.base.tokens.tensor_split(parts), pairs.source.tokens.tensor_split(parts), strict=True)
    found = [[logits.argmax(-1) for logits in transplanted(subject, *both, sites)] for both in tokens]
    return [torch.cat(answers) for answers in zip(*found, strict=True)]


# -- what the program says ---------------------------------------------------------------------------------------------


def foretold(queries: Queries, layer: int, base: Batch, source: Batch) -> Letters:
    """The letter that every way brings to i when block `layer`'s output at i is the source's.

    Raises:
        HopInterpError: the program has no derivation.
    """
    ways = [path for paths in derivations(queries.values, queries.hops).values() for path in paths]
    if not ways:
        raise HopInterpError(f"no derivation of {queries.hops} hops was found")
    following = _Following.of(queries, layer, base, source)
    letters = [_letter_at(batch, position) for way in ways for batch, position in following.ends(way, queries.hops)]
    found: Tensor = torch.stack(letters).unique(dim=0)
    return found


def _letter_at(batch: Batch, position: Int[Tensor, "batch position"]) -> Int[Tensor, "batch position"]:
    found: Tensor = batch.hop_letters[:, 0].gather(1, position)
    return found.where(position > 0, -1)


End = tuple[Batch, Int[Tensor, "batch position"]]
"""A position for every i (0: none) in one of the two sequences."""


@dataclass(frozen=True, eq=False)
class _Following:
    """Follows paths of nodes from i, with all that blocks ≤ layer wrote at i taken from the source.

    Attributes:
        queries: by layer and head.
    """

    queries: Mapping[tuple[int, int], Query]
    layer: int
    base: Batch
    source: Batch
    _lands: dict[tuple[int, int], list[Int[Tensor, "batch position"]]] = field(default_factory=dict)

    @classmethod
    def of(cls, queries: Queries, layer: int, base: Batch, source: Batch) -> _Following:
        return cls({(q.node.layer, q.node.head): q for q in queries.queries}, layer, base, source)

    def ends(self, path: Path, hops: int) -> Iterator[End]:
        """Where a path to the letter of hop `hops` may end: one end for every way of naming where a query leads."""
        node = next((node for node in path if node.target != START), path[-1])
        if node.place != START or node.layer <= self.layer:
            yield self.source, self.source.find[:, hops]
            return
        for landed in self.lands(node):
            at = landed if node.kind == "hop" else (landed - 1).clamp_min(0)
            yield self.base, _onward(self.base, at, hops - node.jump)

    def lands(self, node: Node) -> list[Int[Tensor, "batch position"]]:
        """Where a head of a later block looks from i."""
        key = (node.layer, node.head)
        if key not in self._lands:
            self._lands[key] = self._landings(node)
        return self._lands[key]

    def _landings(self, node: Node) -> list[Int[Tensor, "batch position"]]:
        query, hop = self.queries.get((node.layer, node.head)), node.hop or 0
        if hop == 0:
            return [torch.arange(self.base.tokens.shape[1]).expand_as(self.base.tokens)]
        if query is None or not query.reading.clear:
            return [torch.zeros_like(self.base.tokens)]
        lookup = query.reading.naming == "lookup"
        ends = list(self._pointed(query, hop if lookup else hop - 1))
        found = [end for batch, q in ends for end in ([q] if lookup else self._after(batch, q))]
        return list(torch.stack(found).unique(dim=0).unbind())

    def _pointed(self, query: Query, hops: int) -> Iterator[End]:
        """What the query of a head of a later block stands for: the source's where all that it reads is, and nothing (0)
        where it reads more, but its tree does not say what."""
        whole = query.node.layer == self.layer + 1 or hops == 0
        paths = [] if whole else [path for paths in derivations(query.tree.nodes, hops).values() for path in paths]
        if paths:
            for path in paths:
                yield from self.ends(path, hops)
            return
        known = self.source.find[:, hops]
        yield self.source, known if whole else torch.zeros_like(known)

    def _after(self, batch: Batch, q: Int[Tensor, "batch position"]) -> list[Int[Tensor, "batch position"]]:
        """The positions of the base that follow the letter at q: after the occurrence before the one with its number, and
        after the last one before q. Not i itself, which is the source's."""
        own, (by_number, by_position, _) = torch.arange(q.shape[1]), named(self.base, batch, q)
        return [torch.where((q > 0) & (after < own), after, 0) for after in (by_number, by_position)]


def _onward(batch: Batch, position: Int[Tensor, "batch position"], hops: int) -> Int[Tensor, "batch position"]:
    """find^hops of positions; 0 from none."""
    return batch.find[:, hops].gather(1, position)


# -- what the model does ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Table:
    """Every counted position of one block's transplant: what the ways bring, and what the model answers.

    Attributes:
        right: the answer is the letter that the first way brings.
        unanimous: all ways bring one letter; `split`: they bring several, and one is brought most often.
        stranger: as `right`, with an unrelated source's letters where those are unanimous; `strange`: there.
        voted: the answer is the letter brought most often.
        base_hit, source_hit: it is the base's, the source's.
    """

    layer: int
    counted: Bool[Tensor, "batch position"]
    right: Bool[Tensor, "batch position"]
    unanimous: Bool[Tensor, "batch position"]
    split: Bool[Tensor, "batch position"]
    stranger: Bool[Tensor, "batch position"]
    strange: Bool[Tensor, "batch position"]
    voted: Bool[Tensor, "batch position"]
    base_hit: Bool[Tensor, "batch position"]
    source_hit: Bool[Tensor, "batch position"]

    @classmethod
    def of(cls, queries: Queries, pairs: MatchedPairs, layer: int, answers: Int[Tensor, "batch position"]) -> _Table:
        said = foretold(queries, layer, pairs.base, pairs.source)
        other = foretold(queries, layer, pairs.base, pairs.stranger())
        votes = torch.stack([(said == letter).sum(0) for letter in range(pairs.base.task.alphabet_size)])
        most, chosen = votes.max(0)
        alike, strange = (_unanimous(letters) & pairs.counted for letters in (said, other))
        first = pairs.base.task.first_letter
        return cls(
            layer,
            counted=pairs.counted,
            right=answers == said[0],
            unanimous=alike,
            split=pairs.counted & (said >= 0).all(0) & ~alike & ((votes == most).sum(0) == 1),
            stranger=answers == other[0],
            strange=strange,
            voted=answers == chosen,
            base_hit=answers == pairs.base.labels - first,
            source_hit=answers == pairs.source.labels - first,
        )

    @property
    def single_hit(self) -> Bool[Tensor, "batch position"]:
        """The better of always the base's letter and always the source's, where ways differ."""
        base, source = ((hits & self.split).sum() for hits in (self.base_hit, self.source_hit))
        return self.base_hit if base >= source else self.source_hit

    def summary(self) -> BlockTransplant:
        """Rates with their intervals."""
        strange = int(self.strange.sum())
        return BlockTransplant(
            self.layer,
            agreement=_rate([(self.right & self.unanimous, self.unanimous)]),
            unanimous=float(self.unanimous.sum() / self.counted.sum()),
            unrelated=float((self.stranger & self.strange).sum() / strange) if strange else torch.nan,
            vote=_rate([(self.voted & self.split, self.split)]),
            single=_rate([(self.single_hit & self.split, self.split)]).value,
            lift=_difference([(self.voted.float() - self.single_hit.float(), self.split)]),
        )


def _unanimous(letters: Letters) -> Bool[Tensor, "batch position"]:
    return (letters == letters[0]).all(0) & (letters[0] >= 0)


Counted = tuple[Float[Tensor, "batch position"] | Bool[Tensor, "batch position"], Bool[Tensor, "batch position"]]


def _rate(tables: list[Counted]) -> Rate:
    """The share of hits over several tables, with its interval by pairs of sequences."""
    return _mean(tables, bootstrap)


def _difference(tables: list[Counted]) -> Rate:
    """Likewise the mean of differences."""
    return _mean(tables, bootstrap_ratio)


def _mean(tables: list[Counted], interval: Callable[..., tuple[Tensor, Tensor]]) -> Rate:
    top = torch.stack([(values * asked).sum(1).double() for values, asked in tables]).sum(0)
    bottom = torch.stack([asked.sum(1).double() for _, asked in tables]).sum(0)
    return rated(top, bottom, interval)
