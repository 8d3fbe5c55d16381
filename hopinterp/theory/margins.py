"""How far each pointer head's softmax is from a tie, on given sequences."""

from __future__ import annotations

import torch
import xarray as xr
from jaxtyping import Float, Int
from torch import Tensor

from hopinterp.models.blocks import causal_mask
from hopinterp.models.hooks import resid_post
from hopinterp.task import Batch
from hopinterp.theory.construction import Construction
from hopinterp.theory.program import SameLetter


@torch.no_grad()
def margins(made: Construction, batch: Batch) -> xr.Dataset:
    """The smallest lead, over all sequences and queries, of the score where a head must look over its next best score.

    A head's softmax is one-hot in float32 from a margin of about 20 nats on. Queries at the hop token, which have one key,
    are left out.

    Returns:
        `margin` [layer, head] in nats; NaN for heads that count (they have no single place to look) and for unused ones.
    """
    model, states = made.fused, [made.program.embed(batch.tokens), *made.program.run(batch.tokens)]
    names = [resid_post(layer) for layer in range(model.spec.n_layers)]
    cache = model.run_with_cache(batch.tokens, names)[1]
    streams = [model.embed(batch.tokens), *(cache[name] for name in names)]
    found = torch.full((model.spec.n_layers, model.spec.n_heads), torch.nan)
    for layer, block in enumerate(made.program.blocks):
        q, k, _ = model.qkv(model.norm(streams[layer], f"blocks.{layer}.ln1"), layer)
        for index, head in enumerate(block):
            if not isinstance(head.look, SameLetter):
                scores = model.scale * q[:, index] @ k[:, index].mT
                found[layer, index] = _lead(scores, head.targets(states[layer])).min()
    dims = ("layer", "head")
    settings = {"sequences": len(batch), "n_letters": batch.tokens.shape[1] - 1}
    return xr.Dataset(
        {"margin": (dims, found.numpy())}, {d: range(n) for d, n in zip(dims, found.shape, strict=True)}, settings
    )


def _lead(
    scores: Float[Tensor, "batch query key"], targets: Int[Tensor, "batch query"]
) -> Float[Tensor, "batch query_from_1"]:
    """Score of the target less the best of the others, under the causal mask."""
    n = scores.shape[-1]
    scores = scores + causal_mask(n, n, scores)
    wanted = scores.gather(2, targets[..., None])
    others = scores.scatter(2, targets[..., None], -torch.inf).amax(-1)
    return (wanted[..., 0] - others)[:, 1:]
