"""Runs on the sequences that trees are measured on, some sequences at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from jaxtyping import Shaped
from torch import Tensor

from hopinterp.decompile.nodes import Nodes
from hopinterp.decompile.routes import Routing
from hopinterp.decompile.tree_runs import TreeRunner
from hopinterp.decompile.watched_rows import Rows, Sums
from hopinterp.memory import release_memory
from hopinterp.models.fused import FusedTransformer

AT_ONCE = 200
"""Sequences that runs are kept of at one time: with four rows each, twice, 0.4 GB at the paper's size."""

Found = TypeVar("Found")


@dataclass(frozen=True, eq=False)
class FreshRuns:
    """Runs trees on any number of sequences, in the memory that AT_ONCE of them need.

    Attributes:
        parts: rows of each AT_ONCE sequences or fewer.
    """

    model: FusedTransformer
    routing: Routing
    parts: list[Rows]
    _kept: dict[int, TreeRunner] = field(default_factory=dict)  # one part's, by its number

    @classmethod
    def draw(
        cls, model: FusedTransformer, routing: Routing, sequences: int, *, positions: int = 4, partners: int = 2, seed: int
    ) -> FreshRuns:
        """On rows as `Rows.draw_parts` draws them, which says what it raises."""
        settings = {"positions": positions, "partners": partners, "seed": seed}
        return cls(model, routing, Rows.draw_parts(routing.task, routing.hops, sequences, most=AT_ONCE, **settings))

    def each(self, work: Callable[[TreeRunner], Found]) -> list[Found]:
        """What some work finds on every part: the runner of the one before has gone when the next is made."""
        return [work(self._runner(number)) for number in range(len(self.parts))]

    def _runner(self, number: int) -> TreeRunner:
        if number not in self._kept:
            self.let_go()
            self._kept[number] = TreeRunner.of(self.model, self.routing, self.parts[number])
        return self._kept[number]

    def let_go(self) -> None:
        """Give back the memory of all runs; what is asked for next is run again."""
        self._kept.clear()
        release_memory()

    def rows(self, work: Callable[[TreeRunner], Shaped[Tensor, "row *rest"]]) -> Shaped[Tensor, "row *rest"]:
        """What some work finds for every row."""
        return torch.cat(self.each(work))

    def by_sequence(self, work: Callable[[TreeRunner], Shaped[Tensor, "row *rest"]]) -> Sums:
        """Sums over each sequence's rows of what some work finds for every row, and how many rows those are."""
        sums, counts = zip(*self.each(lambda runner: runner.rows.by_sequence(work(runner))), strict=True)
        return torch.cat(sums), torch.cat(counts)

    def error(self, nodes: Nodes) -> float:
        """Share of rows that a tree answers wrong."""
        return float(self.rows(lambda runner: runner.wrong(runner.run(nodes))).float().mean())
