"""Theorem 4.2 as programs, in two repaired forms, and the sequential counter-model; each as text that runs and compiles.

Appendix D.1 builds hop_k by pointer doubling. Its recurrence, as printed, adds bit ℓ − 1 of k while it looks up
find^(2^(ℓ−2)): built literally (`printed`) it computes hop_⌈k/2⌉. Two repairs are built here, and both are exact:

*lookup* keeps the printed look-up and takes the bit that belongs to it. Block 1 finds find¹(i); block ℓ ≥ 2 goes where its
pointer points, find^(2^(ℓ−2))(i), and brings that position's pointer and, where bit ℓ − 2 of k − 1 is set, its answer so
far, which starts as the letter at find¹. Depth ⌈log2 k⌉ + 2.

*successor* points with a letter and its occurrence number, those of find^u(i); the occurrence before it is the previous
letter of find^(u+1)(i), so that block ℓ reaches find^(2^(ℓ−1))(i) with u = 2^(ℓ−1) − 1, takes that position's pointer and,
where bit ℓ − 1 of k is set, its answer so far. Depth ⌊log2 k⌋ + 2, the theorem's bound.

*sequential* goes one hop a block, with the pointers of block 1: depth k + 1. A doubling verdict must reject it.

All three are attention only. A counting head gives the share b/(b + m) of the hop token among m equal letters, from which no
bilinear score finds m − 1; two, with different b, make every quadratic in m linear (`compiler.Geometry.quadratic`), so that
not even the successor needs an MLP.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from hopinterp.task import HopTask
from hopinterp.theory.program import (
    BEFORE_COUNT,
    BEFORE_LETTER,
    COUNT,
    PLACE,
    PREVIOUS_LETTER,
    SYMBOL,
    After,
    At,
    Field,
    First,
    Gate,
    Head,
    Itself,
    Last,
    Look,
    Move,
    Previous,
    Program,
    SameLetter,
)


def _letter(name: str) -> Field:
    return Field(name, "letter")


def _pointer(block: int) -> Field:
    return Field(f"pointer_{block}", "place")


def _pointed(block: int) -> Field:
    """The letter at the position that the pointer of a block names."""
    return Field(f"letter_{block}", "letter")


_PREVIOUS = Head(Previous(), (Move(SYMBOL, PREVIOUS_LETTER),))


def lookup(task: HopTask, hops: int | None) -> Program:
    """The printed construction with its recurrence repaired."""
    if hops is None:
        return _multi_task_lookup(task)
    bits = [True, *(_bit(hops - 1, bit) for bit in range((hops - 1).bit_length()))]
    return _lookup(task, bits)


def printed(task: HopTask, hops: int) -> Program:
    """Appendix D.1 as it is printed, at its depth ⌊log2 k⌋ + 2: block ℓ ≥ 1 adds where bit ℓ − 1 of k is set, while it looks
    up find^(2^(ℓ−2)) (find¹ at block 1). It computes hop_⌈k/2⌉: every bit but the lowest counts for half."""
    return _lookup(task, [_bit(hops, bit) for bit in range(hops.bit_length())])


def _bit(number: int, bit: int) -> bool:
    return bool(number >> bit & 1)


def _lookup(task: HopTask, adds: list[bool]) -> Program:
    """Block ℓ ≥ 1 doubles the pointer and, where `adds[ℓ − 1]`, the answer so far; the last block brings only the answer."""
    blocks = [(_PREVIOUS,)]
    answer = SYMBOL
    for block, add in enumerate(adds, start=1):
        look, hop = (Last(), 1) if block == 1 else (At(_pointer(block - 1)), 2 ** (block - 2))
        source = PLACE if block == 1 else _pointer(block - 1)
        letter = SYMBOL if block == 1 else _pointed(block - 1)
        moves = []
        if block < len(adds):
            moves = [Move(source, _pointer(block)), Move(letter, _pointed(block))]
        if add:
            # where the answer so far is the pointer's own letter, it is already being brought
            shared = block < len(adds) and answer == letter
            target = _pointed(block) if shared else _letter(f"answer_{block}")
            moves += [] if shared else [Move(answer, target)]
            answer = target
        blocks.append((Head(look, tuple(moves), hop=hop),))
    return Program(task, tuple(blocks), answer)


def successor(task: HopTask, hops: int | None) -> Program:
    """Pointers are a letter and its occurrence number; a block goes to the position after the occurrence before."""
    depth = (task.max_hops if hops is None else hops).bit_length() + 1
    flags = _Flags("bit", task, depth - 1, lambda k, bit: _bit(k, bit))
    counts = (Head(SameLetter(0)), Head(SameLetter(1))) if depth > 2 else ()  # one hop needs no pointers
    blocks: list[tuple[Head, ...]] = [(_PREVIOUS, *counts)]
    if hops is None:
        blocks[0] += (flags.broadcast,)
    answer = SYMBOL
    for block in range(1, depth):
        letter, count = (SYMBOL, COUNT) if block == 1 else (_pointed(block - 1), _occurrence(block - 1))
        look: Look = Last() if block == 1 else After(letter, count)
        moves: tuple[Move, ...] = ()
        if block < depth - 1:
            moves = (Move(letter, _pointed(block)), Move(count, _occurrence(block)))
        heads: tuple[Head, ...] = ()
        hop = 2 ** (block - 1)
        if hops is None:
            target = _letter(f"answer_{block}")
            heads = _take_or_keep(look, hop, Move(answer, target), flags.at(block - 1))
            answer = target
        elif _bit(hops, block - 1):
            shared = bool(moves) and answer == letter
            target = _pointed(block) if shared else _letter(f"answer_{block}")
            moves += () if shared else (Move(answer, target),)
            answer = target
        if moves:
            heads = (Head(look, moves, hop=hop), *heads)
        if block == 1 and depth > 2:
            heads += (Head(Previous(), (Move(SYMBOL, BEFORE_LETTER), Move(COUNT, BEFORE_COUNT))),)
        blocks.append(heads)
    return Program(task, tuple(blocks), answer)


def _occurrence(block: int) -> Field:
    return Field(f"count_{block}", "count")


def sequential(task: HopTask, hops: int | None) -> Program:
    """One hop a block: block ℓ ≥ 2 goes where its pointer points and takes that position's pointer of block 1."""
    last = task.max_hops if hops is None else hops
    flags = _Flags("at_least", task, last, lambda k, step: k > step)
    blocks: list[tuple[Head, ...]] = [(_PREVIOUS,)]
    if hops is None:
        blocks[0] += (flags.broadcast,)
    answer = SYMBOL
    for block in range(1, last + 1):
        look, hop = (Last(), 1) if block == 1 else (At(_pointer(block - 1)), block - 1)
        place, letter = (PLACE, SYMBOL) if block == 1 else (_pointer(1), _pointed(1))
        pointer = Head(
            look, (Move(letter, _pointed(block)), *([Move(place, _pointer(block))] if block < last else [])), hop=hop
        )
        if hops is not None:
            answer = _pointed(block)
            blocks.append((pointer,))
            continue
        target = _letter(f"answer_{block}")
        heads = _take_or_keep(look, hop, Move(letter, target), flags.at(block - 1), keep=answer)
        answer = target
        blocks.append((pointer, *heads) if block < last else heads)
    return Program(task, tuple(blocks), answer)


def _multi_task_lookup(task: HopTask) -> Program:
    """As `lookup`, with k from the first token: block 1 adds where k ≥ 1, block ℓ ≥ 2 where bit ℓ − 2 of k − 1 is set."""
    last = 1 + (task.max_hops - 1).bit_length()
    flags = _Flags("adds", task, last, lambda k, step: k > 0 and (step == 0 or _bit(k - 1, step - 1)))
    blocks: list[tuple[Head, ...]] = [(_PREVIOUS, flags.broadcast)]
    answer = SYMBOL
    for block in range(1, last + 1):
        look, hop = (Last(), 1) if block == 1 else (At(_pointer(block - 1)), 2 ** (block - 2))
        place, letter = (PLACE, SYMBOL) if block == 1 else (_pointer(block - 1), _pointed(block - 1))
        target = _letter(f"answer_{block}")
        heads = _take_or_keep(look, hop, Move(answer, target), flags.at(block - 1))
        answer = target
        pointer = Head(look, (Move(place, _pointer(block)), Move(letter, _pointed(block))), hop=hop)
        blocks.append((pointer, *heads) if block < last else heads)
    return Program(task, tuple(blocks), answer)


def _take_or_keep(look: Look, hop: int, take: Move, flag: Field, keep: Field | None = None) -> tuple[Head, Head]:
    """Two gated heads of which one is open: bring the answer from where the block looks, or copy one's own."""
    kept = Move(keep or take.source, take.target)
    return Head(look, (take,), Gate(flag), hop), Head(Itself(), (kept,), Gate(flag, False))


@dataclass(frozen=True)
class _Flags:
    """What every position must know of k: flags on the hop token, which one head of block 0 copies everywhere.

    Attributes:
        value: of a flag, from k and its number.
    """

    name: str
    task: HopTask
    count: int
    value: Callable[[int, int], bool]

    def at(self, number: int) -> Field:
        """The copied flag."""
        return Field(f"{self.name}_{number}", "flag")

    @property
    def broadcast(self) -> Head:
        """The head that copies them."""
        ks = range(self.task.max_hops + 1)
        asked = [
            Field(f"asked_{self.name}_{number}", "flag", tuple(self.value(k, number) for k in ks))
            for number in range(self.count)
        ]
        return Head(First(), tuple(Move(field, self.at(number)) for number, field in enumerate(asked)))
