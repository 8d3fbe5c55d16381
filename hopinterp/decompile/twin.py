"""A found program compiled to weights and decompiled again, as any model is."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from hopinterp.decompile.derivations import find_tree
from hopinterp.decompile.nodes import Jumps
from hopinterp.decompile.program import FoundProgram, hops_by_block
from hopinterp.decompile.route_fitting import fit_routes


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
    by_block = hops_by_block((effect.node for effect in tree.carrying), model.spec.n_layers)
    batch = found.task.sample(sequences, hops=found.hops, seed=seed + 1)
    answers = model(batch.tokens).argmax(-1) == found.run(batch.tokens)
    return Twin(
        tree.derivations,
        by_block,
        tree.derivations == found.derivations,
        by_block == found.jumps(),
        float(answers[:, 1:].float().mean()),
        tree.error,
    )
