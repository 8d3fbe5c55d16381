"""What was found of a trained model, written as a program: it prints, runs on whole numbers and compiles to weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import torch
from jaxtyping import Int
from torch import Tensor

from hopinterp.decompile.derivations import find_tree
from hopinterp.decompile.nodes import Node, Nodes, Path, derivations
from hopinterp.decompile.routes import fit_routes
from hopinterp.errors import HopInterpError
from hopinterp.task import HopTask
from hopinterp.theory.causal import CausalModel
from hopinterp.theory.compiler import Compiled, compile_program
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
Jumps = tuple[int, ...]


@dataclass(frozen=True)
class FoundProgram:
    """The program of a decompiled model at one k.

    Attributes:
        program: in the language of the constructed models; all paths of the value tree side by side.
        origins: by block and program head: the model's head that it is, or None for one that was added.
        carries: the letter fields of the value tree: name → m, for the letter of find^m.
        pointers: fields that tell later heads where to look, name → m. Which heads bring them was worked out, not found:
            the fewest that the depth allows, on heads that the tree has already where these jump the right way.
        paths: the nodes behind each field that the answer is read from.
    """

    program: Program
    hops: int
    origins: tuple[tuple[int | None, ...], ...]
    carries: Mapping[str, int]
    pointers: Mapping[str, int]
    paths: tuple[Path, ...]

    @property
    def task(self) -> HopTask:
        """Of the model."""
        return self.program.task

    @property
    def derivations(self) -> tuple[Jumps, ...]:
        """Jumps that add up to k, last block first."""
        return tuple(sorted({_jumps(path) for path in self.paths}, reverse=True))

    @property
    def added(self) -> int:
        """How many heads were added."""
        return sum(origin is None for block in self.origins for origin in block)

    @cached_property
    def causal(self) -> CausalModel:
        """The ground truth about a model that runs this program: what its blocks hold and attend to."""
        return CausalModel("found", self.program, self.hops)

    def run(self, tokens: Int[Tensor, "batch position"]) -> Int[Tensor, "batch position"]:
        """The answer at every position as a token id, exactly hop_k; at the hop token it says null."""
        return self.program.answers(self.program.run(tokens)[-1])

    def jumps(self) -> tuple[frozenset[int], ...]:
        """For each block the hops that its heads on the paths look back, without those that were added."""
        found: list[set[int]] = [set() for _ in self.program.blocks]
        for node in (node for path in self.paths for node in path):
            if node.kind == "hop" and node.hop is not None:
                found[node.layer].add(node.hop)
        return tuple(map(frozenset, found))

    def compile(self) -> Compiled:
        """The weights that run it."""
        return compile_program(self.program)

    def __str__(self) -> str:
        sums = " = ".join("+".join(map(str, jumps)).replace("+-", "−") for jumps in self.derivations)
        lines = [f"{self.hops} = {sums}"]
        for layer, (block, origins) in enumerate(zip(self.program.blocks, self.origins, strict=True)):
            heads = zip(block, origins, strict=True)
            lines.append(f"block {layer}  " + "; ".join(self._describe(layer, head, origin) for head, origin in heads))
        ways, needed = len(self.program.votes), self.program.quorum
        agree = "" if ways == 1 else f", which comes {ways} ways; ⊥ unless {'all' if needed == ways else needed} agree"
        lines.append(f"answer   letter {self.hops}{agree}")
        return "\n".join(
            [*lines, "* added: a pointer that some later head needs; which head brings it was worked out, not found"]
        )

    def _describe(self, layer: int, head: Head, origin: int | None) -> str:
        name = "*" if origin is None else f"{layer}.{origin} "
        if isinstance(head.look, SameLetter):
            return name + "counts its letter"
        brings: dict[str, None] = {}
        for target in (move.target for move in head.moves if move.target.kind != "flag"):
            brings[self._brought(target)] = None
        return f"{name}{self._look(head)} brings {', '.join(brings)}"

    def _look(self, head: Head) -> str:
        match head.look:
            case Previous():
                return "previous token"
            case Itself():
                return "itself"
            case Last():
                return "hop 1"
            case After(letter) | Before(letter):
                before = "before " if isinstance(head.look, Before) else ""
                return f"{before}hop {head.hop} (by pointer {self.pointers.get(letter.name, 0)})"
            case _:
                return f"hop {head.hop} (by its place)"

    def _brought(self, target: Field) -> str:
        if target.name in self.carries:
            return f"letter {self.carries[target.name]}"
        if target.name in self.pointers:
            return f"*pointer {self.pointers[target.name]}"
        return {PREVIOUS_LETTER: "the letter before", BEFORE_COUNT: "its number"}.get(target, "*the letter before")


def _jumps(path: Path) -> Jumps:
    return tuple(node.jump for node in path if node.target != node.place)


# -- writing ----------------------------------------------------------------------------------------------------------


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


# -- the twin ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Twin:
    """What decompiling a compiled program gives back.

    Attributes:
        derivations: found in the twin; `jumps`: by block, of the nodes that carry its answer.
        same_derivations, same_jumps: whether these are the program's.
        answers: the share of positions at which the twin's answer is the program's, on plain sequences.
        error: of the twin's value tree.
    """

    derivations: tuple[Jumps, ...]
    jumps: tuple[frozenset[int], ...]
    same_derivations: bool
    same_jumps: bool
    answers: float
    error: float


@torch.no_grad()
def decompile_twin(found: FoundProgram, *, sequences: int = 30, seed: int = 0) -> Twin:
    """Compile a program and look for its routes and derivations in the weights, as in any model's.

    Args:
        sequences: to fit routes on, and as many to find the tree.
    """
    model = found.compile().model
    routing = fit_routes(model, found.task, found.hops, sequences=sequences, seed=seed)
    tree = find_tree(model, routing, sequences=sequences, orders=1, seed=seed)
    jumps: list[set[int]] = [set() for _ in range(model.spec.n_layers)]
    carrying: Nodes = frozenset(effect.node for effect in tree.carrying)
    for node in carrying:
        if node.kind == "hop" and node.hop is not None:
            jumps[node.layer].add(node.hop)
    batch = found.task.sample(sequences, hops=found.hops, seed=seed + 1)
    answers = model(batch.tokens).argmax(-1) == found.run(batch.tokens)
    by_block = tuple(map(frozenset, jumps))
    return Twin(
        tree.derivations,
        by_block,
        tree.derivations == found.derivations,
        by_block == found.jumps(),
        float(answers[:, 1:].float().mean()),
        tree.error,
    )
