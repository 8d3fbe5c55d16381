"""Where the other evidence disagrees with what the program says of the blocks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from hopinterp.decompile.records import Decompiled
from hopinterp.decompile.transplants import BlockTransplants
from hopinterp.judgement.readings import Attends, Block, Holds, Needed, Reading

AGREES = 0.9
"""Where all ways through the program predict one letter of a block's transplant, it must come true in this share, at the
upper end of its interval; constructed models' predictions all come true."""


@dataclass(frozen=True)
class Reaches(Reading):
    """The most hops that the program makes known up to a block. It objects to nothing: where the program explains the model
    it decides, and where it does not it has no say.

    Attributes:
        r: R(ℓ); `word`: the same, with a "?" where only a later jump implies it.
    """

    r: int
    word: str

    def cells(self) -> dict[str, str]:
        return {"reaches (program)": self.word}

    def resolved(self) -> int:
        return self.r

    def span(self) -> tuple[int, int, int]:
        return self.r, self.r, self.r


def with_program(blocks: tuple[Block, ...], program: Decompiled) -> tuple[Block, ...]:
    """The blocks, with what the program reaches as their first reading."""
    told = zip(blocks, program.reach, program.reach_words, strict=True)
    return tuple(Block(block.layer, {"program": Reaches(r, word), **block.readings}) for block, r, word in told)


def disagreements(
    program: Decompiled, blocks: Iterable[Block], transplants: BlockTransplants | None = None
) -> tuple[str, ...]:
    """Sentences: each is something that another kind of evidence says and the program denies, or the other way round."""
    found = [sentence for block in blocks for sentence in _of_block(program, block)]
    return (*found, *(_of_transplants(transplants) if transplants else ()))


def _of_block(program: Decompiled, block: Block) -> Iterator[str]:
    layer, r = block.layer, program.reach[block.layer]
    holds, needed, looks = (block.readings.get(kind) for kind in ("probe", "patch", "attention"))
    if isinstance(holds, Holds) and r and r not in holds.perhaps:
        yield f"block {layer}: the program reaches {r} hops, but probes surely do not read hop {r}"
    if isinstance(needed, Needed) and (more := needed.surely - used(program, layer)):
        yield f"block {layer}: the answer hangs on its output at find^{_listed(more)} (light cone), which no node reads"
    if isinstance(looks, Attends):
        routes = {part.hop for route in program.routes[layer] for part in route.parts if part.kind == "hop"}
        if missed := looks.hops - routes:
            yield f"block {layer}: some head attends to find^{_listed(missed)}, which no route says"


def used(program: Decompiled, layer: int) -> frozenset[int]:
    """Chain positions j at which a node of a later block reads, or looks from, what the blocks up to this one wrote: where
    the program says that noise in block `layer`'s output can matter."""
    later = [node for node in program.queries.nodes | program.tree.nodes if node.layer > layer]
    places = {place for node in later for place in (node.place, node.target) if place is not None}
    return frozenset(place.at for place in places)


def _of_transplants(found: BlockTransplants) -> Iterator[str]:
    for block in found.blocks:
        rate = block.agreement
        if rate.high < AGREES:
            yield (
                f"block {block.layer}: where all ways through the program predict one answer to a transplant of the block, "
                f"it comes true in {rate.value:.0%} ({100 * rate.low:.0f} to {100 * rate.high:.0f})"
            )


def _listed(hops: Iterable[int]) -> str:
    return ", ".join(map(str, sorted(hops)))
