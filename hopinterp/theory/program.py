"""Programs of heads: fields of the residual stream, the heads that move them, and what a program computes, exactly.

A program says what each block does in words that can both be compiled to weights (compiler.py) and be run on whole numbers
(`Program.run`), so that the circuit and the ground truth about it come from one text.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from hopinterp.errors import HopInterpError
from hopinterp.task import HopTask

Kind = Literal["letter", "place", "count", "index", "flag"]
State = Mapping[str, Int[Tensor, "batch position"]]


@dataclass(frozen=True)
class Field:
    """A named subspace of the residual stream and what it stands for.

    Attributes:
        kind: letter (one-hot; zero stands for none), place (a position, as points on circles), count (how many
            times a letter has occurred), index (the position as a number) or flag (0 or 1).
        asked: for a flag that the hop token carries: its value for every k = 0 … max_hops.
    """

    name: str
    kind: Kind
    asked: tuple[bool, ...] = ()


SYMBOL = Field("symbol", "letter")
PLACE = Field("place", "place")
INDEX = Field("index", "index")
START = Field("start", "flag")
PREVIOUS_LETTER = Field("previous_letter", "letter")
COUNT = Field("count", "count")
BEFORE_LETTER, BEFORE_COUNT = Field("before_letter", "letter"), Field("before_count", "count")
"""Letter and occurrence number of the position before, moved by one head: the two always belong together."""
EMBEDDED = (SYMBOL, PLACE, INDEX, START)
"""What the embeddings write: the letter (none for the hop token), the position twice, and a mark on the hop token."""


@dataclass(frozen=True)
class Gate:
    """A head is open where its flag has this value; where it is closed it looks at the hop token, and moves nothing."""

    flag: Field
    value: bool = True

    def is_open(self, state: State) -> Bool[Tensor, "batch position"]:
        """Where the head is open."""
        return (state[self.flag.name] > 0) == self.value


@dataclass(frozen=True)
class Previous:
    """Looks at position i − 1."""


@dataclass(frozen=True)
class First:
    """Looks at the hop token."""


@dataclass(frozen=True)
class Itself:
    """Looks at position i."""


@dataclass(frozen=True)
class SameLetter:
    """Looks evenly at the positions up to i that have letter X_i, and at the hop token with a weight of its own (one of
    two): it counts. Discretely it looks at nothing in particular."""

    which: int


@dataclass(frozen=True)
class Last:
    """Looks at the last j ≤ i whose previous letter is X_i, which is find¹(i); at the hop token where there is none."""


@dataclass(frozen=True)
class At:
    """Looks at the position that a place field names."""

    pointer: Field


@dataclass(frozen=True)
class After:
    """Looks at the position after the occurrence number count − 1 of a letter: with letter and count of find^u(i) that is
    find^(u+1)(i). At the hop token where there is none."""

    letter: Field
    count: Field


@dataclass(frozen=True)
class Before:
    """Looks at the occurrence number count − 1 of a letter: with letter and count of find^u(i) that is the position before
    find^(u+1)(i). At the hop token where there is none."""

    letter: Field
    count: Field


Look = Previous | First | Itself | SameLetter | Last | At | After | Before


@dataclass(frozen=True)
class Move:
    """A head copies `source` at the position it looks at into `target` at its own."""

    source: Field
    target: Field


@dataclass(frozen=True)
class Head:
    """One attention head: where it looks, what it moves, and when.

    Attributes:
        hop: j where it looks at find^j(i) (counted on from the position itself), or right before it; None for what is no
            chain position.
    """

    look: Look
    moves: tuple[Move, ...] = ()
    gate: Gate | None = None
    hop: int | None = None

    def __post_init__(self) -> None:
        if (self.hop is not None) != isinstance(self.look, Last | At | After | Before):
            raise ValueError(f"{self.look} and hop {self.hop} do not go together")
        for move in self.moves:
            if move.source.kind != move.target.kind:
                raise ValueError(f"{move.source.name} cannot be copied into {move.target.name}")

    @property
    def queries(self) -> tuple[Field, ...]:
        """Fields of position i, beside fixed ones, that decide where the head looks."""
        match self.look:
            case Last() | SameLetter():
                return (SYMBOL,)
            case At(pointer):
                return (pointer,)
            case After(letter, count) | Before(letter, count):
                return (letter, count)
        return ()

    @property
    def keys(self) -> tuple[Field, ...]:
        """Fields of the other position, beside fixed ones, by which the head finds it."""
        match self.look:
            case SameLetter():
                return (SYMBOL,)
            case Last():
                return (PREVIOUS_LETTER,)
            case After():
                return (BEFORE_LETTER, BEFORE_COUNT)
            case Before():
                return (SYMBOL, COUNT)
        return ()

    def targets(self, state: State) -> Int[Tensor, "batch position"]:
        """The position that each position looks at; 0 is the hop token."""
        own = torch.arange(state[SYMBOL.name].shape[1], device=state[SYMBOL.name].device).expand_as(state[SYMBOL.name])
        match self.look:
            case Previous():
                found = (own - 1).clamp_min(0)
            case Itself():
                found = own
            case Last():
                found = _last_match(state[SYMBOL.name], state[PREVIOUS_LETTER.name])
            case At(pointer):
                found = state[pointer.name]
            case After(letter, count):
                query, key = _identity(state, letter, count, -1), _identity(state, BEFORE_LETTER, BEFORE_COUNT, 0)
                found = _last_match(query, key)
            case Before(letter, count):
                found = _last_match(_identity(state, letter, count, -1), _identity(state, SYMBOL, COUNT, 0))
            case _:
                found = torch.zeros_like(own)
        return found if self.gate is None else torch.where(self.gate.is_open(state), found, 0)


@dataclass(frozen=True)
class Program:
    """Blocks of heads over one task, and the fields that the unembedding reads.

    Attributes:
        answer: the field that brings the answer's letter.
        also: further fields that bring it on ways of their own: the unembedding reads the sum of all.
        quorum: how many of these fields must agree for their letter to be the answer; with fewer it is null.
        abstains: flags that count as a vote for every letter: a way that ends before the answer's does leaves it to others.

    Raises:
        HopInterpError: no blocks.
    """

    task: HopTask
    blocks: tuple[tuple[Head, ...], ...]
    answer: Field
    also: tuple[Field, ...] = ()
    quorum: int = 1
    abstains: tuple[Field, ...] = ()

    def __post_init__(self) -> None:
        if not self.blocks:
            raise HopInterpError("a program needs at least one block")
        if not 1 <= self.quorum <= len(self.votes):
            raise ValueError(f"{self.quorum} of {len(self.votes)} fields cannot agree")

    @property
    def votes(self) -> tuple[Field, ...]:
        """Every field that brings the answer's letter."""
        return (self.answer, *self.also)

    @cached_property
    def fields(self) -> tuple[Field, ...]:
        """Every field in the order in which it is written: embeddings first, then block by block."""
        heads = [head for block in self.blocks for head in block]
        asked = [move.source for head in heads for move in head.moves if move.source.asked]
        written = [field for head in heads for field in self.written(head)]
        return tuple(dict.fromkeys([*EMBEDDED, *asked, *written]))

    @staticmethod
    def written(head: Head) -> tuple[Field, ...]:
        """The fields that a head writes to."""
        return (COUNT,) if isinstance(head.look, SameLetter) else tuple(move.target for move in head.moves)

    def run(self, tokens: Int[Tensor, "batch position"]) -> list[State]:
        """The exact value of every field at every position after each block, as whole numbers (letters −1 for none)."""
        states = [self.embed(tokens)]
        for layer in range(len(self.blocks)):
            states.append(self.step(layer, states[-1]))
        return states[1:]

    def embed(self, tokens: Int[Tensor, "batch position"]) -> State:
        """The fields that the embeddings write; all others empty."""
        own = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
        empty: dict[Kind, int] = {"letter": -1, "place": 0, "count": 0, "index": 0, "flag": 0}
        state = {field.name: torch.full_like(tokens, empty[field.kind]) for field in self.fields}
        state[SYMBOL.name] = (tokens - self.task.first_letter).where(own > 0, -1)
        state |= {PLACE.name: own, INDEX.name: own, START.name: (own == 0).long()}
        for field in self.fields:
            if field.asked:
                values = torch.tensor(field.asked, device=tokens.device).long()
                state[field.name] = torch.where(own == 0, values[tokens[:, :1]], 0)
        return state

    def step(self, layer: int, state: State) -> State:
        """One block. Heads that write to one field do not meet: all but one of them bring nothing."""
        after = dict(state)
        for head in self.blocks[layer]:
            if isinstance(head.look, SameLetter):
                symbol = state[SYMBOL.name]
                same = (symbol[:, :, None] == symbol[:, None]) & (symbol[:, :, None] >= 0)
                after[COUNT.name] = same.tril().sum(-1)
            found = head.targets(state)
            for move in head.moves:
                after[move.target.name] = torch.maximum(after[move.target.name], state[move.source.name].gather(1, found))
        return after

    def answers(self, state: State) -> Int[Tensor, "batch position"]:
        """The answer that the last block's state stands for, as token ids: the letter that most fields bring (the first of
        the alphabet where several do), or null where fewer than `quorum` bring it."""
        letters = torch.stack([state[field.name] for field in self.votes])
        alphabet = torch.arange(self.task.alphabet_size, device=letters.device)
        count, letter = (letters[..., None] == alphabet).sum(0).max(-1)
        count = count + sum(state[flag.name] for flag in self.abstains)
        return torch.where(count < self.quorum, self.task.null, letter + self.task.first_letter)


def _last_match(query: Int[Tensor, "batch position"], key: Int[Tensor, "batch position"]) -> Int[Tensor, "batch position"]:
    """The last j ≤ i with key_j = query_i ≥ 0, or 0."""
    own = torch.arange(query.shape[1], device=query.device)
    match = ((query[:, :, None] == key[:, None]) & (query[:, :, None] >= 0)).tril()
    return torch.where(match, own, 0).amax(-1)


def _identity(state: State, letter: Field, count: Field, shift: int) -> Int[Tensor, "batch position"]:
    """One number for a letter and its occurrence number (which counts from 1); −1 for none."""
    letters, counts = state[letter.name], state[count.name] + shift
    width = letters.shape[1] + 1
    return torch.where((letters >= 0) & (counts > 0), letters * width + counts, -1)
