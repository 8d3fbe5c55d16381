"""Weights changed so that the circuit stays what it was and looks like another's: bases, heads, noise, softness, norms.

They take compiled models: attention only, without layer norms.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from hopinterp.models.fused import FusedTransformer

Weights = dict[str, Tensor]
Became = dict[tuple[int, int], list[tuple[int, int]]]
"""Which heads a head (layer, number) became."""
_MATRICES = ("W_Q", "W_K", "W_V", "W_O")
_NORM = 3000.0
"""Half the distance of the two constant coordinates that a layer norm's scale is made by; streams are about 5 long."""


def rotated(model: FusedTransformer, seed: int) -> FusedTransformer:
    """Another orthonormal basis of the residual stream, and of every head's values.

    Positions as numbers are made small first: in float32 they would round away the small numbers that they are mixed with.
    """
    generator = torch.Generator().manual_seed(seed)
    weights = _shortened(model)
    turn = _orthogonal(model.spec.d_model, generator)
    for name in ("embed.W_E", "pos_embed.W_pos"):
        weights[name] = weights[name] @ turn
    weights["unembed.W_U"] = turn.T @ weights["unembed.W_U"]
    for prefix in _blocks(model):
        for head in range(model.spec.n_heads):
            carry = _orthogonal(weights[prefix + "W_Q"].shape[-1], generator)
            for side in ("Q", "K", "V"):
                weights[f"{prefix}W_{side}"][head] = turn.T @ weights[f"{prefix}W_{side}"][head]
            weights[prefix + "W_V"][head] @= carry
            weights[prefix + "b_V"][head] = weights[prefix + "b_V"][head] @ carry
            weights[prefix + "W_O"][head] = carry.T @ weights[prefix + "W_O"][head] @ turn
        weights[prefix + "b_O"] = weights[prefix + "b_O"] @ turn
    return _made(model, weights)


def permuted(model: FusedTransformer, seed: int) -> tuple[FusedTransformer, Became]:
    """The heads of every block in another order, and which head became which."""
    generator = torch.Generator().manual_seed(seed)
    weights, became = _doubles(model), Became()
    for layer, prefix in enumerate(_blocks(model)):
        order = torch.randperm(model.spec.n_heads, generator=generator).tolist()
        for name in (*_MATRICES, "b_Q", "b_K", "b_V"):
            weights[prefix + name] = weights[prefix + name][order]
        became |= {(layer, old): [(layer, new)] for new, old in enumerate(order)}
    return _made(model, weights), became


def halved(model: FusedTransformer, share: float = 0.5) -> tuple[FusedTransformer, Became]:
    """Every head as two that look at the same places: the first brings a share of what it brought, the second the rest."""
    heads, weights, became = model.spec.n_heads, _doubles(model), Became()
    for layer, prefix in enumerate(_blocks(model)):
        for name in (*_MATRICES, "b_Q", "b_K", "b_V"):
            both = torch.cat([weights[prefix + name]] * 2)
            if name == "W_O":
                both[:heads] *= share
                both[heads:] *= 1 - share
            weights[prefix + name] = both
        became |= {(layer, head): [(layer, head), (layer, head + heads)] for head in range(heads)}
    return _made(model, weights, n_heads=2 * heads), became


def noisy(model: FusedTransformer, size: float, seed: int) -> FusedTransformer:
    """Normal noise on every weight: `size` times the root mean square of the numbers of its tensor that are not zero."""
    generator = torch.Generator().manual_seed(seed)
    weights = _shortened(model)
    for name, weight in weights.items():
        used = weight[weight != 0]
        if len(used):
            scale = size * float(used.square().mean().sqrt())
            weight += scale * torch.randn(weight.shape, generator=generator, dtype=torch.float64)
            weights[name] = weight
    return _made(model, weights)


def soft(model: FusedTransformer, sharpness: float) -> FusedTransformer:
    """Every attention score times `sharpness`, so that margins of 40 nats become as much smaller; but those of heads in
    block 0, which count by how they spread their attention."""
    weights = _doubles(model)
    for prefix in _blocks(model)[1:]:
        weights[prefix + "W_Q"] *= sharpness
        weights[prefix + "b_Q"] *= sharpness
    return _made(model, weights)


def normed(model: FusedTransformer) -> FusedTransformer:
    """The same function with layer norms before every block and the unembedding, up to their small changes of scale.

    Every coordinate x becomes x and −x, so that the mean is 0, and two further coordinates hold ±_NORM at every position,
    which the scale is then made of. Positions as numbers are made small first: they are the longest part of the stream.
    """
    weights = _shortened(model)
    d = 2 * model.spec.d_model + 2
    scale = math.sqrt(2 / d) * _NORM  # what the norm divides by, but for the stream itself
    for name in ("embed.W_E", "pos_embed.W_pos"):
        weights[name] = torch.nn.functional.pad(torch.cat([weights[name], -weights[name]], dim=1), (0, 2))
    weights["pos_embed.W_pos"][:, -2:] = torch.tensor([_NORM, -_NORM], dtype=torch.float64)
    for prefix in _blocks(model):
        for side in ("Q", "K", "V"):
            weights[f"{prefix}W_{side}"] = _read(weights[f"{prefix}W_{side}"], scale)
        out = weights[prefix + "W_O"]
        weights[prefix + "W_O"] = torch.nn.functional.pad(torch.cat([out, -out], dim=2), (0, 2))
        bias = weights[prefix + "b_O"]
        weights[prefix + "b_O"] = torch.nn.functional.pad(torch.cat([bias, -bias]), (0, 2))
    weights["unembed.W_U"] = _read(weights["unembed.W_U"][None], scale)[0]
    return _made(model, weights, d_model=d, normalization_type="LNPre")


def _read(matrix: Tensor, scale: float) -> Tensor:
    """A matrix [head, d_model, …] that reads x from (x, −x, …)/scale."""
    both = torch.cat([matrix, -matrix], dim=1) * scale / 2
    return torch.nn.functional.pad(both, (0, 0, 0, 2))


def _shortened(model: FusedTransformer) -> Weights:
    """Coordinates in which positions are longer than 1 made that short, and read as much more strongly. No head writes to
    the coordinates that hold positions."""
    weights = _doubles(model)
    longest = weights["pos_embed.W_pos"].abs().amax(0).clamp_min(1)
    weights["pos_embed.W_pos"] /= longest
    weights["embed.W_E"] /= longest
    for prefix in _blocks(model):
        for side in ("Q", "K", "V"):
            weights[f"{prefix}W_{side}"] *= longest[:, None]
        weights[prefix + "W_O"] /= longest
    weights["unembed.W_U"] *= longest[:, None]
    return weights


def _orthogonal(size: int, generator: torch.Generator) -> Tensor:
    q, r = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))
    turn: Tensor = q * r.diagonal().sign()
    return turn


def _blocks(model: FusedTransformer) -> list[str]:
    return [f"blocks.{layer}.attn." for layer in range(model.spec.n_layers)]


def _doubles(model: FusedTransformer) -> Weights:
    return {name: weight.double().clone() for name, weight in model.parameters.items()}


def _made(model: FusedTransformer, weights: Mapping[str, Tensor], **sizes: object) -> FusedTransformer:
    spec = replace(model.spec, **sizes)  # type: ignore[arg-type]
    cast = {name: weight.float() for name, weight in weights.items()}
    spec.check_parameters(cast)
    return FusedTransformer(spec, cast)
