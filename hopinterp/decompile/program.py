"""The program that was found in a model, in the constructed models' language: it prints, runs and compiles to weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from jaxtyping import Int
from torch import Tensor

from hopinterp.decompile.nodes import Jumps, Node, Path, jumps_of, told
from hopinterp.task import HopTask
from hopinterp.theory.causal import CausalModel
from hopinterp.theory.compiler import Compiled, compile_program
from hopinterp.theory.program import (
    BEFORE_COUNT,
    PREVIOUS_LETTER,
    After,
    Before,
    Field,
    Head,
    Itself,
    Last,
    Previous,
    Program,
    SameLetter,
)


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
        return tuple(sorted({jumps_of(path) for path in self.paths}, reverse=True))

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
        return hops_by_block((node for path in self.paths for node in path), len(self.program.blocks))

    def compile(self) -> Compiled:
        """The weights that run it."""
        return compile_program(self.program)

    def __str__(self) -> str:
        sums = " = ".join(map(told, self.derivations))
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


def hops_by_block(nodes: Iterable[Node], n_layers: int) -> tuple[frozenset[int], ...]:
    """For each block the hops that its nodes look back."""
    found: list[set[int]] = [set() for _ in range(n_layers)]
    for node in nodes:
        if node.kind == "hop" and node.hop is not None:
            found[node.layer].add(node.hop)
    return tuple(map(frozenset, found))
