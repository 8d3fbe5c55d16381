"""Pairs of sequences that agree in what a position has of its own, and differ in what it looks up."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from hopinterp.errors import HopInterpError
from hopinterp.seeds import seeded
from hopinterp.task import Batch, HopTask

MATCHES = ("nothing", "letter", "neighbour", "occurrence")
_WINDOW = 12  # letters from one anchor to the next in pairs matched in their occurrence numbers
_SHUFFLES = 200  # swaps tried in each window


@dataclass(frozen=True, eq=False)
class MatchedPairs:
    """Base and source sequences with one k, and the positions at which they agree in what was to be matched."""

    base: Batch
    source: Batch
    matched: Bool[Tensor, "batch position"]

    @classmethod
    def draw(
        cls, task: HopTask, hops: int, sequences: int, match: str, seed: int, device: str | torch.device = "cpu"
    ) -> MatchedPairs:
        """Pairs that agree, at the matched positions i, in what position i has of its own before anything is looked up.

        nothing: base and source are independent, every position counts. letter: X_i = X′_i. neighbour: also
        X_{i−1} = X′_{i−1} (both by choosing positions of independent pairs). occurrence: also i is the same occurrence of
        its letter: the source is the base with its letters shuffled between anchors, which are every 12th letter and the
        one before it, so that at an anchor all of this agrees while the links behind it do not.

        Raises:
            HopInterpError: no such match, k out of range, or no sequences.
        """
        if match not in MATCHES:
            raise HopInterpError(f"match is {match!r}; it is one of {', '.join(MATCHES)}")
        hops, generator = task.hop_count(hops), seeded(seed)
        base = task.sample(sequences, hops, generator=generator)
        if match == "occurrence":
            letters, anchors = _shuffled(base.letters, generator)
            return cls(base, task.from_letters(letters, hops), anchors)._to(device)
        source = task.sample(sequences, hops, generator=generator)
        same = base.tokens == source.tokens
        matched = torch.ones_like(same) if match == "nothing" else same.clone()
        if match == "neighbour":
            matched[:, 1:] &= same[:, :-1]
        matched[:, 0] = False
        return cls(base, source, matched)._to(device)

    def stranger(self) -> Batch:
        """Another pair's source for each base: an unrelated one."""
        return self.source[torch.arange(len(self.source), device=self.matched.device).roll(1)]

    def _to(self, device: str | torch.device) -> MatchedPairs:
        # drawn on the CPU whatever the device: one seed, the same pairs
        return MatchedPairs(self.base.to(device), self.source.to(device), self.matched.to(device))

    @property
    def counted(self) -> Bool[Tensor, "batch position"]:
        """Matched positions whose two answers are letters and differ."""
        return self.matched & self.base.scored & self.source.scored & (self.base.labels != self.source.labels)


def _shuffled(
    letters: Int[Tensor, "batch n"], generator: torch.Generator
) -> tuple[Int[Tensor, "batch n"], Bool[Tensor, "batch position"]]:
    """Sequences with letters swapped within windows wherever neighbours stay different; and the anchors, window ends.

    The last two letters of each window never move, so windows do not touch and one swap in each can be tried at once.
    """
    batch, n = letters.shape
    rows = torch.arange(batch)[:, None]
    start = torch.randint(_WINDOW, (batch, 1), generator=generator)
    place = torch.arange(n) + start
    window = place // _WINDOW
    first = torch.arange(-(-(n + _WINDOW) // _WINDOW)) * _WINDOW - start  # where each window begins, may lie outside
    for _ in range(_SHUFFLES):
        a, b = (first + torch.randint(_WINDOW - 2, first.shape, generator=generator) for _ in range(2))
        inside = (a >= 0) & (a < n) & (b >= 0) & (b < n)
        a, b = torch.where(inside, a, 0), torch.where(inside, b, 0)
        swapped = letters.clone()
        row, which = inside.nonzero(as_tuple=True)
        swapped[row, a[row, which]], swapped[row, b[row, which]] = letters[row, b[row, which]], letters[row, a[row, which]]
        clash = torch.zeros(batch, first.shape[1], dtype=torch.bool)
        at, where = (swapped[:, 1:] == swapped[:, :-1]).nonzero(as_tuple=True)
        clash[at, window[at, where + 1]] = True
        letters = torch.where(clash[rows, window], letters, swapped)
    anchors = torch.zeros(batch, n + 1, dtype=torch.bool)
    anchors[:, 1:] = place % _WINDOW == _WINDOW - 1
    anchors[:, 1] = False  # has no left neighbour
    return letters, anchors
