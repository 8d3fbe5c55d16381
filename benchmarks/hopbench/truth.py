"""What is true of a model that runs a given program at a given k: its law, routes, nodes and derivations.

All of it is worked out from the program's fields and moves, and nothing here calls what is under test: what `decompile` and
`verify` find is compared with this.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from hopinterp.theory.program import (
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
)

HeadAt = tuple[int, int, int]
"""Layer, head, and j: the head's output at find^j(i)."""
Route = tuple[int, int, str, int | None]
"""Layer, head, kind and hop of one part of a head's rule, named as `decompile.routes.Part` names them."""
DECISIVE = 4
"""The least k at which doubling and sequential differ."""


@dataclass(frozen=True)
class Law:
    """Verdict, form and pace, by the laws of reach."""

    verdict: str
    form: str | None = None
    pace: str | None = None


NONE = Law("none")


@dataclass(frozen=True)
class Truth:
    """The known answer to what a model runs at one k.

    Attributes:
        law: its verdict; `NONE` where the model does not solve k.
        reach: R(ℓ).
        routes: where the heads look that are told something to do.
        free: heads of which nothing is known; they may look anywhere.
        nodes: heads at chain positions whose outputs the answer at i depends on by values and by queries.
        keys: heads at chain positions that only let other heads find the position: no value or query passes through them.
        derivations: jumps that add up to k, last block first.
        n_layers, n_heads: of the model.
    """

    law: Law
    hops: int
    n_layers: int
    n_heads: int
    reach: tuple[int, ...] = ()
    routes: frozenset[Route] = frozenset()
    free: frozenset[tuple[int, int]] = frozenset()
    nodes: frozenset[HeadAt] = frozenset()
    keys: frozenset[HeadAt] = frozenset()
    derivations: frozenset[tuple[int, ...]] = frozenset()

    @property
    def every(self) -> Iterator[HeadAt]:
        """All heads at all chain positions up to find^k(i)."""
        return itertools.product(range(self.n_layers), range(self.n_heads), range(self.hops + 1))

    def renamed(self, heads: Mapping[tuple[int, int], Iterable[tuple[int, int]]], n_heads: int) -> Truth:
        """The truth of a model in which each head became one or several others."""

        def each(items: frozenset[Any]) -> frozenset[Any]:
            return frozenset((*new, *rest) for layer, head, *rest in items for new in heads[layer, head])

        routes, free, nodes, keys = map(each, (self.routes, self.free, self.nodes, self.keys))
        return replace(self, routes=routes, free=free, nodes=nodes, keys=keys, n_heads=n_heads)


def nothing(hops: int, n_layers: int, n_heads: int) -> Truth:
    """Of a model that does not solve k."""
    return Truth(NONE, hops, n_layers, n_heads)


def truth_of(program: Program, hops: int, *, n_heads: int | None = None) -> Truth:
    """What is true of a model whose head h of each block is the program's head h.

    Args:
        n_heads: of the model; those beyond the program's look at the hop token and bring nothing.
    """
    found, paths = _traced(program, hops)
    width = n_heads or max(map(len, program.blocks))
    reach = tuple(itertools.accumulate(found.most, max))
    derivations = frozenset(tuple(jump for jump, _ in path if jump) for path in paths)
    keys = frozenset(found.keys() - found.nodes)
    return Truth(
        law=_law(reach, hops, found.steps, found.forms),
        hops=hops,
        n_layers=len(program.blocks),
        n_heads=width,
        reach=reach,
        routes=frozenset(_routes(program, hops)),
        nodes=frozenset(found.nodes),
        keys=keys,
        derivations=derivations,
    )


def needed(program: Program, hops: int) -> frozenset[Field]:
    """The fields that the answer at i depends on, and what heads find positions by."""
    found, _ = _traced(program, hops)
    found.keys()
    return frozenset(found.fields)


# -- what the answer depends on ---------------------------------------------------------------------------------------

Path = tuple[tuple[int, int], ...]
"""Jump, and the hops that the head makes known, of every head that hands one letter on, last block first."""


@dataclass
class _Trace:
    """Follows fields back to the heads that write them.

    Attributes:
        nodes: heads at chain positions, by values and queries.
        most: by block, the most hops that a head's output makes known at its position.
        steps: jump and what is known where it leads, of every head that was met.
        forms: how the heads find their place that look two hops back or more.
        fields: all that were followed.
    """

    program: Program
    hops: int
    nodes: set[HeadAt] = field(default_factory=set)
    most: list[int] = field(default_factory=list)
    steps: set[tuple[int, int]] = field(default_factory=set)
    forms: set[str] = field(default_factory=set)
    fields: set[Field] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.most = [0] * len(self.program.blocks)

    def values(self, one: Field, at: int, before: int) -> set[Path]:
        """Ways by which what a field holds at find^at(i), before a block, came there; all nodes on them are kept."""
        self.fields.add(one)
        for layer in reversed(range(before)):
            writers = [(number, head) for number, head in enumerate(self.program.blocks[layer]) if self._writes(head, one)]
            if writers:
                return set().union(*(self._through(layer, number, head, one, at) for number, head in writers))
        return {()}

    def _writes(self, head: Head, one: Field) -> bool:
        return one in Program.written(head) and _is_open(self.program, head, self.hops)

    def _through(self, layer: int, number: int, head: Head, one: Field, at: int) -> set[Path]:
        self.nodes.add((layer, number, at))
        self._query(layer, head, at)
        if isinstance(head.look, SameLetter | First | Previous):  # a count, a flag, or the letter before
            return {((-1, -1),)} if isinstance(head.look, Previous) else {()}
        jump = head.hop or 0
        source = next(move.source for move in head.moves if move.target == one)
        found = set()
        for path in self.values(source, at + jump, layer):
            known = sum(step for step, _ in path)
            self.most[layer] = max(self.most[layer], jump + known)
            self.steps.add((jump, known))
            found.add(((jump, jump + known), *path))
        return found

    def _query(self, layer: int, head: Head, at: int) -> None:
        """What tells a head where to look: pointers at its own position."""
        if (head.hop or 0) > 1 and not isinstance(head.look, Last):
            self.forms.add("lookup" if isinstance(head.look, At) else "successor")
        if isinstance(head.look, At | After | Before):
            for pointer in head.queries:
                self.values(pointer, at, layer)

    def keys(self) -> set[HeadAt]:
        """Heads that write what other heads find a chain position by."""
        found: set[HeadAt] = set()
        for layer, number, at in self.nodes:
            head = self.program.blocks[layer][number]
            if head.hop is None or isinstance(head.look, At | Before):
                continue
            for key in head.keys:
                self.fields.add(key)
                found |= self._writers(key, at + head.hop, layer)
        return found

    def _writers(self, one: Field, at: int, before: int) -> set[HeadAt]:
        for layer in reversed(range(before)):
            here = {(layer, number, at) for number, head in enumerate(self.program.blocks[layer]) if self._writes(head, one)}
            if here:
                return here
        return set()


def _traced(program: Program, hops: int) -> tuple[_Trace, set[Path]]:
    """What the answer depends on, and the ways by which its letter comes."""
    found = _Trace(program, hops)
    return found, {path for vote in program.votes for path in found.values(vote, 0, len(program.blocks))}


def _is_open(program: Program, head: Head, hops: int) -> bool:
    if head.gate is None:
        return True
    asked = next(m.source for block in program.blocks for h in block for m in h.moves if m.target == head.gate.flag)
    return asked.asked[hops] == head.gate.value


def _routes(program: Program, hops: int) -> Iterator[Route]:
    """Where the heads look; those that look at the hop token, which every closed or idle head does, are left out."""
    kinds = {Previous: "before hop", Itself: "self", SameLetter: "same letter", Before: "before hop"}
    for layer, block in enumerate(program.blocks):
        for number, head in enumerate(block):
            if _is_open(program, head, hops) and not isinstance(head.look, First):
                kind = kinds.get(type(head.look), "hop")
                hop = 0 if isinstance(head.look, Previous) else head.hop
                yield layer, number, kind, hop


# -- the laws ---------------------------------------------------------------------------------------------------------


def _law(reach: tuple[int, ...], hops: int, steps: set[tuple[int, int]], forms: set[str]) -> Law:
    """The law that a course of reach follows.

    *Sequential*: every gain from block 2 on is at most 1. *Beyond*: R(1) > 1 or R(ℓ) > 2R(ℓ − 1) + 1. *Linear by two*: gains
    of at most 2, no jump of two or more to where two or more are known, and a block in which k would have let doubling gain
    more. *Doubling*: the rest. Below k = 4 nothing is claimed.
    """
    if hops < DECISIVE:
        return Law("undetermined")
    pairs = list(itertools.pairwise(reach))
    if reach[1] > 1 or any(after > 2 * before + 1 for before, after in pairs):
        return Law("beyond", _form(forms))
    if all(after - before <= 1 for before, after in pairs):
        return Law("sequential")
    adds = all(min(step) <= 1 for step in steps) and all(after - before <= 2 for before, after in pairs)
    if adds and any(min(2 * before + 1, hops) > before + 2 for before, _ in pairs[1:]):
        return Law("linear by two", _form(forms))
    layers = range(len(reach))
    full = (tuple(min(hops, 2**n - 1) for n in layers), tuple(min(hops, 2 ** (n - 1)) if n else 0 for n in layers))
    return Law("doubling", _form(forms), "full" if reach in full else "slack")


def _form(forms: set[str]) -> str | None:
    return next(iter(forms)) if len(forms) == 1 else None
