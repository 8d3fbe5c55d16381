"""The model run with its patterns set by rule, and as it is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hopinterp.decompile.routes import Routing
from hopinterp.models.fused import FusedTransformer
from hopinterp.task import Batch

_BATCH = 50
_OWN_BATCH = 200  # without patterns


@torch.no_grad()
def run_routed(
    model: FusedTransformer, batch: Batch, routing: Routing, layers: Sequence[int] | None = None
) -> Float[Tensor, "batch position d_vocab"]:
    """Logits of the model with the patterns of all heads (of the given layers only, if given) set by rule."""
    return torch.cat([model.unembed(routed_streams(model, part, routing, layers)[-1]) for part in in_parts(batch)])


@torch.no_grad()
def run_own(model: FusedTransformer, tokens: Int[Tensor, "batch position"]) -> Float[Tensor, "batch position d_vocab"]:
    """Logits of the model as it is, some sequences at a time."""
    return torch.cat([model(part) for part in tokens.split(_OWN_BATCH)])


def in_parts(batch: Batch) -> Iterator[Batch]:
    """A batch's sequences, as many at a time as have room beside their patterns."""
    return (batch[start : start + _BATCH] for start in range(0, len(batch), _BATCH))


Streams = list[Float[Tensor, "batch position d_model"]]


@torch.no_grad()
def routed_streams(
    model: FusedTransformer,
    batch: Batch,
    routing: Routing,
    layers: Sequence[int] | None = None,
    *,
    before: Streams | None = None,
) -> Streams:
    """The stream before every block and after the last, with patterns set by rule.

    Args:
        layers: the blocks whose patterns are; all by default.
        before: the first of these streams, where another run has them already.
    """
    streams = [model.embed(batch.tokens)] if before is None else list(before)
    for layer in range(len(streams) - 1, model.spec.n_layers):
        q, k, v = model.qkv(model.norm(streams[-1], f"blocks.{layer}.ln1"), layer)
        if layers is None or layer in layers:
            z = routing.pattern(batch, layer) @ v
        else:
            z = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=model.scale)
        streams.append(model.block_end(streams[-1] + model.attn_out(z, layer), layer))
    return streams
