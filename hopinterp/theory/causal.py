"""What a constructed model's blocks hold, attend to and do, worked out from its program, exactly."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from jaxtyping import Int
from torch import Tensor

from hopinterp.task import Batch
from hopinterp.theory.program import (
    SYMBOL,
    After,
    At,
    Before,
    Field,
    First,
    Head,
    Itself,
    Last,
    Previous,
    Program,
    SameLetter,
    State,
)

Where = Literal["find", "before_find", "previous", "first", "itself", "same_letter"]


@dataclass(frozen=True)
class Target:
    """What a head attends to: find^`hop` or the position before it, the previous token, the first (the hop token), itself,
    or evenly all positions of the same letter and the first."""

    where: Where
    hop: int | None = None


@dataclass(frozen=True)
class _Node:
    """A position on the chain of i: find^`hop`(i) + `offset`."""

    hop: int
    offset: int = 0


@dataclass(frozen=True)
class CausalModel:
    """The ground truth about a constructed model that is asked for one k. Layers count from 0.

    Attributes:
        algorithm: the hypothesis whose program it is.
        program: what its heads do.
        hops: k.
    """

    algorithm: str
    program: Program
    hops: int

    @property
    def n_layers(self) -> int:
        """Depth."""
        return len(self.program.blocks)

    def is_open(self, head: Head) -> bool:
        """Whether a head is open at this k."""
        if head.gate is None:
            return True
        source = next(m.source for h in self.program.blocks[0] for m in h.moves if m.target == head.gate.flag)
        return source.asked[self.hops] == head.gate.value

    @cached_property
    def labels(self) -> tuple[dict[Field, int], ...]:
        """For each block, the letter fields of its output that hold a hop: field → j, for the letter X_{find^j(i)}."""
        known, found = {SYMBOL: 0}, []
        for block in self.program.blocks:
            written: dict[Field, int] = {}
            for head in filter(self.is_open, block):
                step = 0 if isinstance(head.look, Itself) else head.hop
                if isinstance(head.look, Before) and head.hop is not None:
                    # the letter before find^j is that of hop j − 1; of anything else there the chain does not tell
                    written |= {m.target: head.hop - 1 for m in head.moves if m.source == SYMBOL}
                elif step is not None:
                    written |= {m.target: known[m.source] + step for m in head.moves if m.source in known}
            known = {**known, **written}
            found.append(known)
        return tuple(found)

    def held(self, layer: int) -> frozenset[int]:
        """The hops j whose letter X_{find^j(i)} can be read at position i from the block's output, j ≤ max_hops."""
        return frozenset(j for j in self.labels[layer].values() if j <= self.program.task.max_hops)

    def resolved(self, layer: int) -> int:
        """R(ℓ), the largest held hop ≤ k."""
        return max(j for j in self.held(layer) if j <= self.hops)

    def attends(self, layer: int) -> tuple[Target, ...]:
        """What each head of a block attends to. Heads that the block does not use attend to the first token."""
        n_heads = max(map(len, self.program.blocks))
        used = [self._target(head) for head in self.program.blocks[layer]]
        return (*used, *[Target("first")] * (n_heads - len(used)))

    def _target(self, head: Head) -> Target:
        if not self.is_open(head) or isinstance(head.look, First):
            return Target("first")
        names: dict[type, Where] = {Previous: "previous", Itself: "itself", SameLetter: "same_letter", Before: "before_find"}
        return Target(names.get(type(head.look), "find"), head.hop)

    # -- what the answer at i depends on -------------------------------------------------------------------------

    def light_cone(self, layer: int, offset: Literal[0, -1] = 0) -> frozenset[int]:
        """The chain positions j at which the block's output matters for the answer at i: at find^j(i), or with `offset` −1
        at the position before it, where the link's key sits until it is moved. `layer` −1 is the embedding."""
        return frozenset(node.hop for node, _ in self._needed[layer + 1] if node.offset == offset)

    @cached_property
    def _needed(self) -> tuple[frozenset[tuple[_Node, Field]], ...]:
        """What of the residual stream decides the answer at i: before block 0, then after each block. Only what depends on
        the letters: places and flags are the same in every sequence that asks for k."""
        written = {field for block in self.program.blocks for head in block for field in Program.written(head)}
        content = {SYMBOL} | {field for field in written if field.kind != "flag"}
        needed = {(_Node(0), field) for field in self.program.votes}
        found = [frozenset(needed)]
        for block in reversed(self.program.blocks):
            before: set[tuple[_Node, Field]] = set()
            for node, field in needed:
                writers = [head for head in block if field in Program.written(head) and self.is_open(head)]
                before |= {part for head in writers for part in self._sources(head, node, field)}
                before |= set() if writers else {(node, field)}
            needed = {(node, field) for node, field in before if field in content}
            found.append(frozenset(needed))
        return tuple(reversed(found))

    @staticmethod
    def _sources(head: Head, node: _Node, field: Field) -> Iterable[tuple[_Node, Field]]:
        """What a head that writes `field` at a node reads: its queries there, keys and values where it looks."""
        match head.look:
            case Previous():
                there = _Node(node.hop, node.offset - 1)
            case Itself() | SameLetter():
                there = node
            case Before():
                there = _Node(node.hop + (head.hop or 0), node.offset - 1)
            case First():
                return
            case _:
                there = _Node(node.hop + (head.hop or 0))
        yield from ((node, query) for query in head.queries)
        yield from ((there, key) for key in head.keys)
        yield from ((there, move.source) for move in head.moves if move.target == field)

    # -- transplants ---------------------------------------------------------------------------------------------

    def stands_for(self, layer: int) -> tuple[str, int]:
        """What the block's output at i carries into another sequence, and after how many hops r.

        *content*: the letter at find^r(i). *pointer*: the position find^r(i). *occurrence*: the letter at find^r(i) and its
        occurrence number. The last block carries the answer: content, r = k.
        """
        for later in range(layer + 1, self.n_layers):
            own = {field for node, field in self._needed[later + 1] if node == _Node(0)}
            for head in filter(self.is_open, self.program.blocks[later]):
                if own.isdisjoint(Program.written(head)):
                    continue
                match head.look:
                    case At():
                        return "pointer", head.hop or 0
                    case After():
                        return "occurrence", (head.hop or 0) - 1
                    case Last():
                        return "content", 0
        return "content", self.hops

    def transplanted(self, layer: int, base: Batch, source: Batch) -> Int[Tensor, "batch position"]:
        """The answer at every position i, as a token id, when the block's output at i (and only there) is replaced by what
        it is at i in the source sequence. Both sequences ask for the same k."""
        base_state = self.program.run(base.tokens)[layer]
        source_state = self.program.run(source.tokens)[layer]
        sequences, positions = base.tokens.shape
        own = torch.arange(positions, device=base.tokens.device)
        answers = torch.empty_like(base.tokens)
        for index in range(sequences):
            # one copy of the sequence for each position i: row i has the source's fields at i
            rows: State = {
                name: torch.where(own[:, None] == own, source_state[name][index], value[index].expand(positions, -1))
                for name, value in base_state.items()
            }
            for later in range(layer + 1, self.n_layers):
                rows = self.program.step(later, rows)
            answers[index] = self.program.answers(rows).diagonal()
        return answers
