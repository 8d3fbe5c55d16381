"""A value tree written down as a program: which heads hand the letter on, and which bring the pointers that they need."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from hopinterp.decompile.nodes import Node, Path, derivations
from hopinterp.decompile.program import FoundProgram
from hopinterp.errors import HopInterpError
from hopinterp.task import HopTask
from hopinterp.theory.program import (
    BEFORE_COUNT,
    BEFORE_LETTER,
    COUNT,
    PLACE,
    PREVIOUS_LETTER,
    START,
    SYMBOL,
    After,
    At,
    Before,
    Field,
    Head,
    Itself,
    Last,
    Look,
    Move,
    Previous,
    Program,
    SameLetter,
)

Naming = Literal["occurrence", "place"]
"""How a pointer names find^m(p): its letter and the letter's occurrence number there, or its place."""


def write_program(
    task: HopTask,
    hops: int,
    n_layers: int,
    nodes: Iterable[Node],
    namings: Mapping[tuple[int, int], str | None] | None = None,
) -> FoundProgram:
    """A value tree as a program.

    Every path of nodes to the answer's letter becomes a way of its own: a field that each head on the path hands on. A head
    at several places of the chain, which cannot know at which it stands, hands on the fields of all. The answer is the
    letter on which all ways agree. A way that ends in a step to the position before needs one link more than the answer:
    where the chain has no more, it abstains.

    A head that jumps u ≥ 2 hops goes to the position after an occurrence of the letter that a pointer of u − 1 hops names
    (`After`); where its query was seen to read a place ("lookup"), and the depth allows a pointer of u hops, it goes there.

    Args:
        nodes: of a value tree (`derivations.find_tree`).
        namings: by layer and head, what its query reads (`readings.Reading.naming`); without it all heads count letters.

    Raises:
        HopInterpError: no path of nodes adds up to k, or a head jumps farther than the blocks before it can point.
    """
    paths = [path for found in derivations(nodes, hops).values() for path in found]
    if not paths:
        raise HopInterpError(f"no derivation of {hops} hops was found, so that there is no program to write")
    writer = _Writer(n_layers, namings or {})
    votes = tuple(writer.carry(path, hops) for path in paths)
    short = [path for path in paths if path[-1].jump < 0]
    flags = tuple(writer.mark(path) for path in short) if len(short) < len(paths) else ()
    blocks = writer.blocks()
    heads = tuple(tuple(head for head, _ in block) for block in blocks)
    program = Program(task, heads, votes[0], votes[1:], len(votes), flags)
    origins = tuple(tuple(origin for _, origin in block) for block in blocks)
    return FoundProgram(program, hops, origins, writer.carries, writer.pointers, tuple(paths))


@dataclass(frozen=True)
class _Slot:
    """One look of one head: what a program calls a head. `head` is None for one that was added, which then goes `by_place`
    if the pointer that it brings is one."""

    layer: int
    head: int | None
    kind: Literal["hop", "before hop", "self"]
    hop: int = 0
    by_place: bool = False


@dataclass
class _Writer:
    """Heads and what they move, while they are written down."""

    n_layers: int
    namings: Mapping[tuple[int, int], str | None]
    slots: dict[_Slot, dict[Move, None]] = field(default_factory=dict)
    carries: dict[str, int] = field(default_factory=dict)
    pointers: dict[str, int] = field(default_factory=dict)
    held: dict[tuple[Naming, int], int] = field(default_factory=dict)  # pointers: the first block after which they are there
    looks: dict[_Slot, Look] = field(default_factory=dict)

    # -- letters ------------------------------------------------------------------------------------------------------

    def carry(self, path: Path, hops: int) -> Field:
        """Hand the letter on along a path; the field in which it arrives."""
        brought = SYMBOL
        for number, node in reversed(list(enumerate(path))):
            source, brought = brought, Field(_name(path[number:]), "letter")
            slot = _slot(node)
            if slot.layer == 0 and slot.kind == "before hop":
                brought = PREVIOUS_LETTER  # what heads that look for the last occurrence need anyway
            self.slots.setdefault(slot, {})[Move(source, brought)] = None
            if node.place.letter is not None and brought != PREVIOUS_LETTER:
                self.carries[brought.name] = hops - node.place.letter
        return brought

    def mark(self, path: Path) -> Field:
        """Hand on along a path whether it ends too early: then some head looks at the hop token, which brings its mark."""
        brought = START
        for number, node in reversed(list(enumerate(path))):
            source, brought = brought, Field(f"no {_name(path[number:])}", "flag")
            self.slots[_slot(node)][Move(source, brought)] = None
        return brought

    # -- pointers -----------------------------------------------------------------------------------------------------

    def blocks(self) -> list[list[tuple[Head, int | None]]]:
        """All heads by block, with those that pointers need."""
        for slot in sorted(self.slots, key=lambda slot: (slot.layer, slot.hop)):
            self._aim(slot)
        self._count()
        found: list[list[tuple[Head, int | None]]] = [[] for _ in range(self.n_layers)]
        for slot, moves in sorted(self.slots.items(), key=lambda item: (item[0].layer, item[0].head is None, str(item[0]))):
            if not moves:
                continue
            hop = slot.hop if slot.kind != "self" and slot.hop else None
            found[slot.layer].append((Head(self.looks[slot], tuple(moves), hop=hop), slot.head))
        if any(isinstance(look, After | Before) for look in self.looks.values()):
            found[0] += [(Head(SameLetter(0)), None), (Head(SameLetter(1)), None)]
        return found

    def _count(self) -> None:
        """What finding an occurrence by its number takes: block 0 counts letters and tells each position the letter before;
        block 1 tells it that letter's number."""
        looks = self.looks.values()
        if any(isinstance(look, Last) for look in looks):
            self._previous(0, Move(SYMBOL, PREVIOUS_LETTER))
        if any(isinstance(look, After) for look in looks):
            self._previous(1, Move(SYMBOL, BEFORE_LETTER), Move(COUNT, BEFORE_COUNT))

    def _previous(self, layer: int, *moves: Move) -> None:
        there = [slot for slot in self.slots if slot.layer == layer and slot.kind == "before hop" and not slot.hop]
        slot = there[0] if there else _Slot(layer, None, "before hop")
        self.slots.setdefault(slot, {}).update(dict.fromkeys(moves))
        self.looks[slot] = Previous()

    def _aim(self, slot: _Slot) -> None:
        """Settle how a head knows where to look."""
        if slot in self.looks:
            return
        if slot.kind == "self" or not slot.hop:
            self.looks[slot] = Itself() if slot.kind == "self" else Previous()
        elif slot.kind == "hop" and slot.hop == 1:
            self.looks[slot] = Last()
        elif slot.kind == "hop" and self._by_place(slot):
            self.looks[slot] = At(*self._point("place", slot.hop, slot.layer - 1))
        else:
            letter, count = self._point("occurrence", slot.hop - 1, slot.layer - 1, slot)
            self.looks[slot] = After(letter, count) if slot.kind == "hop" else Before(letter, count)

    def _by_place(self, slot: _Slot) -> bool:
        read = slot.by_place or (slot.head is not None and self.namings.get((slot.layer, slot.head)) == "lookup")
        return read and self._plan("place", slot.hop, slot.layer - 1)[0] is not None

    def _point(self, naming: Naming, hops: int, by: int, asker: _Slot | None = None) -> tuple[Field, ...]:
        """See to it that a pointer of so many hops is there after a block; its fields."""
        fields = _pointer(naming, hops)
        if not hops or self.held.get((naming, hops), by + 1) <= by:
            return fields
        plan, _ = self._plan(naming, hops, by)
        if plan is None:
            assert asker is not None
            raise HopInterpError(
                f"head {asker.layer}.{asker.head} looks {asker.hop} hops back, which takes a pointer of {hops} hops; "
                f"after block {by} a program has {2 ** max(by, 0) - 1} at most"
            )
        block, jump = plan
        for moved in self.slots.values():  # brought by a later block so far
            for move in [move for move in moved if move.target in fields]:
                del moved[move]
        sources = self._point(naming, hops - jump, block - 1)
        slot = next((slot for slot in self.slots if slot.layer == block and slot.kind == "hop" and slot.hop == jump), None)
        slot = slot or _Slot(block, None, "hop", jump, naming == "place")
        moves = map(Move, sources, fields)
        self.slots.setdefault(slot, {}).update(dict.fromkeys(moves))
        self.held[naming, hops] = block
        self.pointers |= {one.name: hops for one in fields}
        self._aim(slot)
        return fields

    def _plan(self, naming: Naming, hops: int, by: int) -> tuple[tuple[int, int] | None, tuple[int, int]]:
        """The block and the jump by which a pointer is best brought, and the cost: heads to add, then fields to move."""
        best, least = None, (999, 999)
        if hops > 2 ** max(by, 0) - 1:
            return best, least
        for block in range(1, by + 1):
            for jump in range(1, hops + 1):
                cost = self._cost(naming, hops, block, jump)
                if cost < least:
                    best, least = (block, jump), cost
        return best, least

    def _cost(self, naming: Naming, hops: int, block: int, jump: int) -> tuple[int, int]:
        there = any(slot.layer == block and slot.kind == "hop" and slot.hop == jump for slot in self.slots)
        parts = [(0, 1) if there else (1, 1)]
        wanted: list[tuple[Naming, int]] = [(naming, hops - jump)]
        if not there and jump > 1:  # a head to be added has to know where to look itself
            wanted.append((naming, jump if naming == "place" else jump - 1))
        for kind, m in wanted:
            if m and self.held.get((kind, m), block) > block - 1:
                parts.append(self._plan(kind, m, block - 1)[1])
        return sum(p[0] for p in parts), sum(p[1] for p in parts)


def _name(path: Path) -> str:
    return " < ".join(f"{node.layer}.{node.head} {node.kind} {node.hop}" for node in path)


def _pointer(naming: Naming, hops: int) -> tuple[Field, ...]:
    """The fields of a pointer of so many hops."""
    if naming == "place":
        return (Field(f"place_{hops}", "place"),) if hops else (PLACE,)
    return (Field(f"letter_{hops}", "letter"), Field(f"count_{hops}", "count")) if hops else (SYMBOL, COUNT)


def _slot(node: Node) -> _Slot:
    """A content-free head of block 0 that carries a letter carries the one before."""
    if node.kind == "content-free":
        return _Slot(node.layer, node.head, "before hop")
    assert node.kind in ("hop", "before hop", "self")
    return _Slot(node.layer, node.head, node.kind, node.hop or 0)
