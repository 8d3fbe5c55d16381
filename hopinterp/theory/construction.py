"""Models built by hand that compute hop_k exactly: the program of a hypothesis, compiled to weights (Theorem 4.2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from hopinterp.errors import HopInterpError
from hopinterp.models.fused import FusedTransformer
from hopinterp.shown import Row, Shown
from hopinterp.task import HopTask
from hopinterp.theory.causal import CausalModel
from hopinterp.theory.compiler import Subspaces, compile_program
from hopinterp.theory.hypotheses import HYPOTHESES
from hopinterp.theory.program import Program

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

ALGORITHMS = tuple(name for name, hypothesis in HYPOTHESES.items() if hypothesis.program)
"""The hypotheses that come with a program."""


def construct(task: HopTask, hops: int | None = None, *, algorithm: str = "lookup") -> HookedTransformer:
    """A HookedTransformer with weights set by hand that computes hop_k exactly (the paper's Theorem 4.2).

    Args:
        hops: k, whatever the first token says; or None: the multi-task model, which reads k from the first token.
        algorithm: a hypothesis that has a program: lookup, successor, sequential.

    Raises:
        HopInterpError: no such algorithm, or hops outside 1 … max_hops (hop_0 is the identity: it needs no circuit).
    """
    made = Construction.of(task, hops, algorithm)
    return made.fused.spec.build(made.fused.parameters)


@dataclass(frozen=True, repr=False)
class Construction(Shown):
    """A constructed model with everything that is known about it.

    Attributes:
        algorithm: a hypothesis that has a program: lookup, successor, sequential.
        hops: the k it was built for; None for the multi-task model.
        program: what it does, in words that run.
        fused: the weights.
        subspaces: which coordinates of the residual stream each field has.
    """

    algorithm: str
    hops: int | None
    program: Program
    fused: FusedTransformer
    subspaces: Subspaces

    @classmethod
    def of(cls, task: HopTask, hops: int | None = None, algorithm: str = "lookup") -> Construction:
        """Build one. Raises HopInterpError as `construct` does."""
        programs = {name: hypothesis.program for name, hypothesis in HYPOTHESES.items() if hypothesis.program}
        if algorithm not in programs:
            raise HopInterpError(f"no algorithm {algorithm!r}; there are {', '.join(programs)}")
        if hops is not None:
            hops = task.hop_count(hops)
        if hops == 0 or task.max_hops == 0:
            name = "hops" if hops == 0 else "max_hops"
            raise HopInterpError(f"{name} is 0: hop_0 is the identity, which needs no circuit; 1 is the least that is built")
        compiled = compile_program(programs[algorithm](task, hops))
        return cls(algorithm, hops, compiled.program, compiled.model, compiled.subspaces)

    @property
    def columns(self) -> list[str]:
        """Over `rows`."""
        return ["", "heads", "R"] if self.hops else ["", "heads"]

    @property
    def rows(self) -> list[Row]:
        """A row a block: its heads, and the hops that it resolves where that does not hang on the k asked for."""
        heads = [str(len(block)) for block in self.program.blocks]
        known = [(str(self.causal.resolved(layer)),) for layer in range(len(heads))] if self.hops else [()] * len(heads)
        return [(f"block {layer}", (count, *known[layer])) for layer, count in enumerate(heads)]

    @property
    def reading(self) -> str:
        """What it computes, and at which size."""
        asked = "reads k" if self.hops is None else f"k = {self.hops}"
        spec = self.fused.spec
        return f"{self.algorithm}, {asked}: {spec.n_layers} blocks, {spec.n_heads} heads, d_model {spec.d_model}, exact."

    @property
    def causal(self) -> CausalModel:
        """The ground truth about a model built for one k. Raises HopInterpError for a multi-task model: see `asked`."""
        if self.hops is None:
            raise HopInterpError("a multi-task model has a causal model for each k: asked(k)")
        return CausalModel(self.algorithm, self.program, self.hops)

    def asked(self, hops: int) -> CausalModel:
        """The ground truth about the model when its first token asks for k = `hops`.

        Raises:
            HopInterpError: it was built for another k, or k is out of range.
        """
        hops = self.program.task.hop_count(hops)
        if self.hops is not None and hops != self.hops:
            raise HopInterpError(f"this model computes hop_{self.hops} whatever it is asked; hops is {hops}")
        return CausalModel(self.algorithm, self.program, hops)
