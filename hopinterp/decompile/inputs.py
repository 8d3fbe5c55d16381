"""A program on inputs of one's own: its routing as hooks on a model, and which derivations carry one answer."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hopinterp.decompile.derivations import ValueTree
from hopinterp.decompile.nodes import Node, derivations, told
from hopinterp.decompile.routes import Routing
from hopinterp.decompile.tree_runs import State, TreeRunner
from hopinterp.decompile.watched_rows import Rows
from hopinterp.errors import HopInterpError
from hopinterp.models.fused import FusedTransformer
from hopinterp.models.hooks import HookFunction, pattern
from hopinterp.task import Batch

_NEAR = 0.05
"""An embedding belongs to a letter if it is nearer to it than this share of the least distance between two letters."""


def batch_of(routing: Routing, tokens: Int[Tensor, "batch position"]) -> Batch:
    """Tokens as a batch of the routing's task.

    Raises:
        HopInterpError: they ask for another k than the routing was made for, or hold no letters.
    """
    task = routing.task
    if tokens.ndim != 2 or tokens.shape[1] < 2:
        raise HopInterpError(f"tokens are {list(tokens.shape)}; they must be [batch, position]: k and at least one letter")
    asked = sorted(set(tokens[:, 0].tolist()))
    if asked != [routing.hops]:
        raise HopInterpError(f"the tokens ask for k = {asked[0]}; this program is for k = {routing.hops}")
    return task.from_letters(tokens[:, 1:] - task.first_letter, routing.hops)


# -- hooks ------------------------------------------------------------------------------------------------------------


def routing_hooks(
    model: FusedTransformer, routing: Routing, tokens: Int[Tensor, "batch position"] | None = None
) -> list[tuple[str, HookFunction]]:
    """Hooks that set every pattern of a model by the routing's rules, for `model.run_with_hooks(tokens, fwd_hooks=…)`.

    Args:
        model: the embeddings by which letters are told.
        tokens: of the runs to come. Where they are not given each run's are read from its embeddings, which no hook
            before may have changed.
    """
    blocks = range(len(routing.routes))
    if tokens is not None:
        reading = _Reading(routing, None, None, batch_of(routing, tokens.cpu()))
        return [(pattern(layer), partial(reading.pattern, layer)) for layer in blocks]
    embedding = model.parameters["embed.W_E"].detach()
    first, letters = routing.task.first_letter, routing.task.alphabet_size
    reading = _Reading(routing, _centred(embedding[first : first + letters]), _centred(embedding[routing.hops]))
    return [("hook_embed", reading.read), *((pattern(layer), partial(reading.pattern, layer)) for layer in blocks)]


@dataclass(eq=False)
class _Reading:
    """What hooks of one run tell each other: the letters, as seen at the embedding.

    Attributes:
        letters, hop: embeddings of the letters and of k; None where the batch is known.
    """

    routing: Routing
    letters: Float[Tensor, "letter d_model"] | None
    hop: Float[Tensor, " d_model"] | None
    batch: Batch | None = field(default=None)

    def read(self, embedded: Float[Tensor, "batch position d_model"], hook: Any) -> None:
        """Tell the letters by the nearest embedding."""
        del hook
        assert self.letters is not None
        assert self.hop is not None
        seen = _centred(embedded.detach().to(self.letters))
        apart = (seen[:, 1:, None] - self.letters).norm(dim=-1)
        least, letters = apart.min(-1)
        allowed = _NEAR * torch.pdist(self.letters).min()
        if (least > allowed).any() or ((seen[:, 0] - self.hop).norm(dim=-1) > allowed).any():
            k = self.routing.hops
            raise HopInterpError(f"the embeddings are not those of k = {k} and letters in this model; give hooks(tokens)")
        self.batch = self.routing.task.from_letters(letters, self.routing.hops)

    def pattern(self, layer: int, given: Float[Tensor, "batch head query key"], hook: Any) -> Tensor:
        """A block's patterns by rule."""
        del hook
        if self.batch is None:
            raise HopInterpError("hook_embed was not reached before the patterns; give hooks(tokens)")
        made = self.routing.pattern(self.batch, layer).to(given)
        if made.shape != given.shape:
            raise HopInterpError(f"the run's patterns are {list(given.shape)}; by the program they are {list(made.shape)}")
        return made


def _centred(rows: Tensor) -> Tensor:
    """Without the mean over d_model, which TransformerLens may have taken out of the weights."""
    return rows - rows.mean(-1, keepdim=True)


# -- one input --------------------------------------------------------------------------------------------------------


def why(
    model: FusedTransformer, routing: Routing, tree: ValueTree, batch: Batch, index: int, position: int, others: int = 20
) -> str:
    """The chain of one input, and for every derivation the heads that carry its answer along it, in text.

    Args:
        others: sequences that stand in, one after the other, for all that is not on a derivation.

    Raises:
        HopInterpError: no such input, one that asks for another k, or one whose answer is no letter.
    """
    task, hops = routing.task, routing.hops
    if not 0 <= index < len(batch):
        raise HopInterpError(f"index is {index}; this batch has sequences 0 to {len(batch) - 1}")
    one = batch_of(routing, batch.tokens[index : index + 1].cpu())
    if not 1 <= position < one.tokens.shape[1]:
        raise HopInterpError(f"position is {position}; this sequence has 1 to {one.tokens.shape[1] - 1}")
    if not one.scored[0, position]:
        raise HopInterpError(f"the chain of position {position} is shorter than {hops} hops: its answer is no letter")
    runner = TreeRunner.of(model, routing, _against(one, position, others))
    tokens = one.labels[0, position], model(one.tokens)[0, position].argmax()
    answer, said = (task.token_name(int(token)) for token in tokens)
    state = runner.run(tree.nodes)
    alone = {node: _right(runner, runner.without(state, [node])) for node in tree.nodes}
    lines = [
        f"k = {hops}, position {position}: the answer is {answer}, and the model says {said}.",
        f"The {task.decode(one, position=position).splitlines()[-1]}.",
        f"The nodes below alone, with all else of another sequence, give {answer} in {_right(runner, state)}; in brackets,"
        " in how many without that one.",
    ]
    for jumps, paths in sorted(derivations(tree.nodes, hops).items(), reverse=True):
        steps = ", ".join(f"{_step(one, position, node)} ({alone[node].split()[0]})" for node in paths[0])
        lines.append(f"{hops} = {told(jumps)}: {steps}.")
    return "\n".join(lines)


def _right(runner: TreeRunner, state: State) -> str:
    wrong = runner.wrong(state)
    return f"{int((~wrong).sum())} of {len(wrong)}"


def _step(one: Batch, position: int, node: Node) -> str:
    """Which head looks from where to where."""
    chain = one.find[:, :, position]
    looks = "reads the letters before" if node.target is None else f"looks at {int(node.target.of(chain)[0])}"
    return f"{node.layer}.{node.head} at {int(node.place.of(chain)[0])} {looks}"


def _against(one: Batch, position: int, others: int) -> Rows:
    """One position, once with each of some other sequences."""
    task, hops = one.task, int(one.hops[0])
    drawn = task.sample(others, hops=hops, seed=0).letters[:, : one.tokens.shape[1] - 1]
    batch = task.from_letters(torch.cat([one.letters, drawn]), hops)
    usable = batch.scored.any(1).nonzero()[1:, 0]
    if not len(usable):
        raise HopInterpError(f"sequences of {one.tokens.shape[1] - 1} letters have no chains of {hops} hops to stand in")
    last = batch.scored.float().cumsum(1).argmax(1)  # the last scored position
    same = torch.zeros_like(usable)
    return Rows(batch, same, same + position, usable, last[usable])
