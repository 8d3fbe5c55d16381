"""What a user would otherwise run, on the same nodes: activation patching, attribution patching, and an ACDC-style pruning.

All compare a sequence with an independent one of the same k, put the other's head outputs in at find^j(i), and watch i.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from benchmarks.hopbench.contract import Answer, entry
from benchmarks.hopbench.truth import HeadAt
from hopinterp.evidence.patching.activation import patch
from hopinterp.evidence.patching.attribution import attribution_patch
from hopinterp.evidence.patching.pairs import Pairs, at_position, draw_pairs
from hopinterp.models import blocks
from hopinterp.models.fused import FusedTransformer
from hopinterp.models.subject import Subject
from hopinterp.task import HopTask

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

PAIRS = 100
STEPS = 5
"""Points between the two sequences' embeddings at which integrated gradients are taken, as in EAP-IG."""
THRESHOLDS = (1e-3, 1e-2, 0.1, 0.3, 1.0)
"""ACDC's τ in nats: a node's score is the largest at which it is kept."""
ACDC_PAIRS = 25


@entry("activation patching", ranks=True)
def activation_patching(model: HookedTransformer, task: HopTask, hops: int) -> Answer:
    """The logit difference's change when one head's output at one chain position becomes the other sequence's."""
    found = patch(model, task, hops, site="z", by="chain", sequences=PAIRS)
    return Answer(nodes=_scores(found.effect))


@entry("attribution patching", ranks=True)
def attribution_patching(model: HookedTransformer, task: HopTask, hops: int) -> Answer:
    """The same to first order, from one backward pass."""
    found = attribution_patch(model, task, hops, site="z", by="chain", exact=False, sequences=PAIRS)
    return Answer(nodes=_scores(found.estimate))


def _scores(effect: xr.DataArray) -> dict[HeadAt, float]:
    """Sizes of effects on the logit difference at chain positions; nothing where there is no scale (`Scale.effects`)."""
    here = abs(effect.sel(metric="logit_difference", where="at")).fillna(0.0)
    sizes = here.transpose("layer", "head", "hop").values
    return {(layer, head, j): float(size) for (layer, head, j), size in np.ndenumerate(sizes)}


@entry("attribution patching (integrated gradients)", ranks=True)
def integrated_gradients(model: HookedTransformer, task: HopTask, hops: int) -> Answer:
    """Attribution patching with the mean gradient between the two sequences' embeddings (Hanna et al. 2024)."""
    weights = Subject.of(model, task).weights_for("integrated gradients")
    pairs = draw_pairs(task, hops, PAIRS)
    with torch.no_grad():
        ends = [weights.embed(batch.tokens) for batch in (pairs.clean, pairs.corrupt)]
        change = [_outputs(weights, end) for end in ends]
    total = [torch.zeros_like(z) for z in change[0]]
    for step in range(STEPS):
        share = (step + 0.5) / STEPS
        for layer, gradient in enumerate(_gradients(weights, ends[1] + share * (ends[0] - ends[1]), pairs)):
            total[layer] += gradient / STEPS
    rows = torch.arange(len(pairs))[:, None]
    scores: dict[HeadAt, float] = {}
    for layer, gradient in enumerate(total):
        product = (gradient * (change[1][layer] - change[0][layer])).sum(-1)  # [pair, head, position]
        along = product.permute(0, 2, 1)[rows, pairs.chain].mean(0).abs()
        scores |= {(layer, head, j): float(along[j, head]) for j in range(along.shape[0]) for head in range(along.shape[1])}
    return Answer(nodes=scores)


def _outputs(weights: FusedTransformer, x: Tensor) -> list[Float[Tensor, "pair head position d_head"]]:
    """All heads' outputs from the stream that enters block 0."""
    found = []
    for layer in range(weights.spec.n_layers):
        z = _attend(weights, x, layer)
        x = weights.block_end(x + weights.attn_out(z, layer), layer)
        found.append(z)
    return found


def _gradients(weights: FusedTransformer, x: Tensor, pairs: Pairs) -> tuple[Tensor, ...]:
    """The logit difference's gradients with respect to all heads' outputs."""
    found = []
    x = x.detach().requires_grad_()
    for layer in range(weights.spec.n_layers):
        z = _attend(weights, x, layer)
        x = weights.block_end(x + weights.attn_out(z, layer), layer)
        found.append(z)
    logits = at_position(weights.unembed(x), pairs.position)
    rows = torch.arange(len(pairs))
    difference = (logits[rows, pairs.right] - logits[rows, pairs.wrong]).sum()
    return torch.autograd.grad(difference, found)


def _attend(weights: FusedTransformer, x: Tensor, layer: int) -> Tensor:
    q, k, v = weights.qkv(weights.norm(x, f"blocks.{layer}.ln1"), layer)
    return blocks.attend(q, k, v, weights.scale)


@entry("ACDC (by nodes)", ranks=True)
@torch.no_grad()
def acdc(model: HookedTransformer, task: HopTask, hops: int) -> Answer:
    """A plain version of ACDC (Conmy et al. 2023): from the last block down, a node goes over to the other sequence for good
    where that raises the KL divergence from the whole model's answers by less than τ; nodes are heads at chain positions.

    Their own code works on edges and on older TransformerLens; auto-circuit 1.0.1 imports a name that TransformerLens 3.9 no
    longer has, and circuitkit 0.2.0 pins TransformerLens 3.8.
    """
    weights = Subject.of(model, task).weights_for("ACDC")
    run = _Pruning(weights, draw_pairs(task, hops, ACDC_PAIRS))
    scores: dict[HeadAt, float] = dict.fromkeys(run.every(), 0.0)
    for threshold in THRESHOLDS:
        for node in run.kept(threshold):
            scores[node] = threshold
    return Answer(nodes=scores)


class _Pruning:
    """Clean and corrupt head outputs of pairs, and the clean runs with some nodes corrupt."""

    def __init__(self, weights: FusedTransformer, pairs: Pairs) -> None:
        self.weights, self.pairs = weights, pairs
        self.corrupt = _outputs(weights, weights.embed(pairs.corrupt.tokens))
        self.streams = [weights.embed(pairs.clean.tokens)]
        for layer in range(weights.spec.n_layers):
            self.streams.append(self._block(self.streams[-1], layer, ()))
        self.whole = self._answers(self.streams[-1])

    def every(self) -> list[HeadAt]:
        """All nodes, the last block first."""
        heads, places = range(self.weights.spec.n_heads), range(self.pairs.chain.shape[1])
        return [(layer, h, j) for layer in reversed(range(self.weights.spec.n_layers)) for h in heads for j in places]

    def kept(self, threshold: float) -> set[HeadAt]:
        """The nodes that stay."""
        removed: set[HeadAt] = set()
        divergence = 0.0
        for node in self.every():
            tried = self._divergence(removed | {node}, node[0])
            if tried - divergence < threshold:
                removed.add(node)
                divergence = tried
        return set(self.every()) - removed

    def _divergence(self, removed: Collection[HeadAt], first: int) -> float:
        """Mean KL divergence with some nodes of blocks from `first` on corrupt."""
        x = self.streams[first]
        for layer in range(first, self.weights.spec.n_layers):
            x = self._block(x, layer, [node for node in removed if node[0] == layer])
        answers = self._answers(x)
        return float((self.whole.exp() * (self.whole - answers)).sum(-1).mean())

    def _block(self, x: Tensor, layer: int, removed: Collection[HeadAt]) -> Tensor:
        z = _attend(self.weights, x, layer)
        if removed:
            z = z.clone()
            rows = torch.arange(len(self.pairs))
            for _, head, j in removed:
                where = self.pairs.chain[:, j]
                z[rows, head, where] = self.corrupt[layer][rows, head, where]
        return self.weights.block_end(x + self.weights.attn_out(z, layer), layer)

    def _answers(self, x: Tensor) -> Tensor:
        return self.weights.unembed(at_position(x, self.pairs.position)).log_softmax(-1)
