"""Programs to be compiled: the three algorithms, random schedules, and programs changed without changing what they do."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Literal

from benchmarks.hopbench.truth import needed
from hopinterp.decompile.nodes import Node, Place
from hopinterp.decompile.writing import write_program
from hopinterp.errors import HopInterpError
from hopinterp.task import HopTask
from hopinterp.theory.program import (
    BEFORE_COUNT,
    BEFORE_LETTER,
    COUNT,
    PREVIOUS_LETTER,
    SYMBOL,
    After,
    At,
    Field,
    Head,
    Last,
    Move,
    Previous,
    Program,
    SameLetter,
)

Naming = Literal["occurrence", "place"]
Schedule = tuple[int, ...]
"""Jumps of blocks 1, 2, … that add up to k; 0 where a block leaves the answer where it is."""
_TRIES = 200


def most(naming: Naming, block: int) -> int:
    """The longest jump of a block whose pointers name positions so: a pointer of u hops lies at most 2^(block − 2) back, one
    of a letter and its occurrence number, which leads one hop beyond it, 2^(block − 1)."""
    if block == 1:
        return 1
    return int(2 ** (block - 1)) if naming == "occurrence" else int(2 ** (block - 2))


def schedule(draw: random.Random, hops: int, n_layers: int, naming: Naming) -> Schedule | None:
    """Jumps drawn block by block from the last down, evenly among those from which the rest can still add up to k; None
    where k is too far for the depth."""
    left, found = hops, []
    for block in reversed(range(1, n_layers)):
        below = sum(most(naming, b) for b in range(1, block))
        low, high = max(left - below, 0), min(most(naming, block), left)
        if low > high:
            return None
        found.append(draw.randint(low, high))
        left -= found[-1]
    return tuple(reversed(found))


def scheduled(task: HopTask, hops: int, schedules: list[Schedule], naming: Naming, *, apart: bool = False) -> Program:
    """The program of one or several schedules side by side.

    Args:
        apart: every schedule has heads of its own; by default heads of one block that jump equally far are one head.

    Raises:
        HopInterpError: a jump for which the depth allows no pointer.
    """
    heads: dict[tuple[int, int, int], int] = {}
    nodes, n_layers = [], 1 + max(map(len, schedules))
    for way, jumps in enumerate(schedules):
        at = 0
        for block in reversed(range(1, len(jumps) + 1)):
            jump = jumps[block - 1]
            if jump:
                number = heads.setdefault((block, jump, way if apart else 0), sum(layer == block for layer, *_ in heads))
                nodes.append(Node(block, number, Place(at), "hop", jump))
                at += jump
    reads = "lookup" if naming == "place" else "occurrence"
    namings: dict[tuple[int, int], str | None] = {(block, number): reads for (block, *_), number in heads.items()}
    return write_program(task, hops, n_layers, set(nodes), namings).program


def random_program(
    task: HopTask, draw: random.Random, hops: int, n_layers: int, ways: int, naming: Naming, *, apart: bool = False
) -> Program:
    """A program of `ways` different schedules, drawn.

    Raises:
        HopInterpError: the depth does not allow so many.
    """
    for _ in range(_TRIES):
        drawn = {one for _ in range(4 * ways) if (one := schedule(draw, hops, n_layers, naming))}
        chosen = sorted(drawn)[:ways] if len(drawn) <= ways else draw.sample(sorted(drawn), ways)
        if len(chosen) < ways:
            continue
        try:
            return scheduled(task, hops, chosen, naming, apart=apart)
        except HopInterpError:  # the writer's pointers do not fit the blocks that these jumps leave them
            continue
    raise HopInterpError(f"no program of {hops} hops with {ways} ways was found at depth {n_layers}")


# -- changed without changing what they do ---------------------------------------------------------------------------


def bare(program: Program, hops: int) -> Program:
    """Without the moves that no answer needs: pointers then carry no letter. Heads left with nothing go."""
    used = needed(program, hops) | {BEFORE_LETTER, BEFORE_COUNT, *program.abstains}

    def kept(head: Head) -> Head | None:
        moves = tuple(move for move in head.moves if move.target in used)
        return replace(head, moves=moves) if moves or not head.moves else None

    blocks = tuple(tuple(one for head in block if (one := kept(head))) for block in program.blocks)
    return replace(program, blocks=blocks)


def split_moves(program: Program) -> Program:
    """Every head that moves several fields becomes as many heads, each of which moves one; what a pointer is made of stays
    together."""
    blocks = tuple(tuple(itertools.chain.from_iterable(_parts(head) for head in block)) for block in program.blocks)
    return replace(program, blocks=blocks)


def _parts(head: Head) -> Iterator[Head]:
    if len(head.moves) < 2:
        yield head
        return
    for move in head.moves:
        yield replace(head, moves=(move,))


def with_decoys(program: Program, draw: random.Random, count: int) -> Program:
    """With heads that look along the chain, as far as the program's pointers lead, and bring letters that nothing reads; put
    in among the others."""
    blocks = [list(block) for block in program.blocks]
    for number in range(count):
        layer = draw.randrange(1, len(blocks))
        looks = [Head(Last(), (Move(program.answer, program.answer),), hop=1)]
        looks += [head for head in program.blocks[layer] if head.hop and not isinstance(head.look, At) and head.hop > 1]
        looks += [head for head in program.blocks[layer] if isinstance(head.look, At)]
        chosen = draw.choice(looks)
        sources = [f for f in _written(program, layer) if f.kind == "letter"]
        move = Move(draw.choice(sources), Field(f"decoy_{number}", "letter"))
        blocks[layer].insert(draw.randint(0, len(blocks[layer])), Head(chosen.look, (move,), hop=chosen.hop))
    return replace(program, blocks=tuple(map(tuple, blocks)))


def _written(program: Program, layer: int) -> list[Field]:
    """Fields that hold something before a block: the letter itself and what earlier blocks write."""
    earlier = [f for block in program.blocks[:layer] for head in block for f in program.written(head)]
    return [program.fields[0], *dict.fromkeys(earlier)]


# -- two laws that no schedule gives ---------------------------------------------------------------------------------


def stepped(task: HopTask, hops: int, gain: Literal[1, 2]) -> Program:
    """Pointers of a letter and its number that grow by one or by two hops a block: block ℓ jumps one hop farther than its
    pointer leads and brings what is there, the letter itself (a gain of 1) or that position's pointer of block 1 (of 2)."""
    previous = Head(Previous(), (Move(SYMBOL, PREVIOUS_LETTER),))
    blocks: list[tuple[Head, ...]] = [(previous, Head(SameLetter(0)), Head(SameLetter(1)))]
    beside = Head(Previous(), (Move(SYMBOL, BEFORE_LETTER), Move(COUNT, BEFORE_COUNT)))
    own = (Field("letter_1", "letter"), Field("count_1", "count"))
    blocks.append((Head(Last(), (Move(SYMBOL, own[0]), Move(COUNT, own[1])), hop=1), beside))
    known, fields = 1, own
    while known < hops:
        jump = known + 1
        sources = own if gain == 2 and jump < hops else (SYMBOL, COUNT)
        known = jump + (sources is own)
        block = len(blocks)
        targets = (Field(f"letter_{block}", "letter"), Field(f"count_{block}", "count"))
        moves = tuple(itertools.starmap(Move, zip(sources, targets, strict=True)))
        blocks.append((Head(After(*fields), moves[: 1 if known == hops else 2], hop=jump),))
        fields = targets
    return Program(task, tuple(blocks), fields[0])
