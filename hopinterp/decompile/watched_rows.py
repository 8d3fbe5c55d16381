"""Positions whose answers are watched, and what of other sequences stands in for all that is not kept."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hopinterp.errors import HopInterpError
from hopinterp.seeds import seeded
from hopinterp.task import Batch, HopTask

Sums = tuple[Float[Tensor, "sequence ..."], Float[Tensor, "sequence ..."]]
"""Of each sequence the sum of something over its rows, and how many rows those are."""


@dataclass(frozen=True, eq=False)
class Rows:
    """Positions whose answers are watched, each with one of another sequence that stands in for all that is not kept.

    Attributes:
        batch: the sequences; all ask for one k.
        sequence, position: which sequence each row watches, and i, drawn among its scored positions.
        partner, partner_position: which sequence stands in, and the scored position whose chain is put in place of i's.
    """

    batch: Batch
    sequence: Int[Tensor, " row"]
    position: Int[Tensor, " row"]
    partner: Int[Tensor, " row"]
    partner_position: Int[Tensor, " row"]

    @property
    def answer(self) -> Int[Tensor, " row"]:
        """hop_k(X)_i as a token."""
        return self.batch.labels[self.sequence, self.position]

    @cached_property
    def chain(self) -> Int[Tensor, "row chain"]:
        """find^j(i), j = 0 … max_hops."""
        return self.batch.find[self.sequence, :, self.position]

    @cached_property
    def partner_chain(self) -> Int[Tensor, "row chain"]:
        """find^j of the partner's position in the partner's sequence."""
        return self.batch.find[self.partner, :, self.partner_position]

    def __len__(self) -> int:
        return len(self.sequence)

    def parts(self, most: int) -> Iterator[Rows]:
        """The same rows in parts of at most so many."""
        for part in torch.arange(len(self)).split(most):
            chosen = (x[part] for x in (self.sequence, self.position, self.partner, self.partner_position))
            yield Rows(self.batch, *chosen)

    def by_sequence(self, values: Float[Tensor, "row ..."]) -> Sums:
        """Sums of values over each sequence's rows, and how many rows those are."""
        return by_sequence(values, self.sequence, len(self.batch))

    @classmethod
    def draw(cls, task: HopTask, hops: int, sequences: int, *, positions: int = 2, partners: int = 2, seed: int = 0) -> Rows:
        """`positions` scored positions of each sequence, each with as many `partners`: rows of other sequences of the draw.

        Raises:
            HopInterpError: fewer than two of the sequences have a chain of k links.
        """
        drawn = cls.draw_parts(task, hops, sequences, most=sequences, positions=positions, partners=partners, seed=seed)
        return drawn[0]

    @classmethod
    def draw_parts(
        cls, task: HopTask, hops: int, sequences: int, *, most: int, positions: int = 2, partners: int = 2, seed: int = 0
    ) -> list[Rows]:
        """As `draw`, in parts of at most so many sequences, which are each other's partners: for runs one after the other.
        Where all fit into one part it is what `draw` gives; else sequences without a chain of k links are left out.

        Raises:
            HopInterpError: as `draw`.
        """
        generator = seeded(seed)
        batch = task.sample(sequences, hops=hops, generator=generator)
        if int(batch.scored.any(1).sum()) < 2:
            raise HopInterpError(f"fewer than two of {sequences} sequences have a chain of {hops} links")
        if sequences > most:
            batch = batch[batch.scored.any(1)]
        parts = torch.arange(len(batch)).tensor_split(-(-len(batch) // most))
        return [cls._among(batch[part], positions, partners, generator) for part in parts]

    @classmethod
    def _among(cls, batch: Batch, positions: int, partners: int, generator: torch.Generator) -> Rows:
        drawn = torch.rand(batch.tokens.shape, generator=generator).masked_fill(~batch.scored, -1)
        chosen = drawn.argsort(1, descending=True)[:, :positions]
        sequence, which = batch.scored.gather(1, chosen).nonzero().T
        position = chosen[sequence, which]
        preference = torch.rand(len(sequence), len(sequence), generator=generator)
        other = preference.masked_fill(sequence[:, None] == sequence, -1).argsort(1, descending=True)[:, :partners]
        sequence, position = (x.repeat_interleave(other.shape[1]) for x in (sequence, position))
        first = torch.arange(len(other)) * other.shape[1]
        partner = first[other.flatten()]
        return cls(batch, sequence, position, sequence[partner], position[partner])


def by_sequence(values: Float[Tensor, "row ..."], sequence: Int[Tensor, " row"], sequences: int) -> Sums:
    """Sums of values over the rows of each of some sequences, and how many rows those are."""
    sums = values.new_zeros(sequences, *values.shape[1:]).index_add(0, sequence, values)
    counts = values.new_zeros(sequences).index_add(0, sequence, values.new_ones(len(values)))
    return sums, counts.view(-1, *[1] * (values.ndim - 1)).expand_as(sums)
