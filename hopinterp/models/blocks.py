"""The arithmetic of a transformer block: layer norm, causal attention, MLP; and the places where hooks reach into it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from hopinterp.errors import HopInterpError

Rows = Float[Tensor, "*batch d_model"]
Heads = Float[Tensor, "*batch head position d_head"]
Pattern = Float[Tensor, "*batch head query key"]
Linear = tuple[Tensor, Tensor]
"""Weight and bias as `torch.nn.functional.linear` takes them."""

HookFunction = Callable[..., Any]
"""f(activation, hook) → what takes its place, or None to leave it. `hook.name` is the activation's."""

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_new": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
}
"""By TransformerLens's names: GELU in its erf form, GELU in the tanh form that GPT-2 has, ReLU."""


def activation(name: str) -> Callable[[Tensor], Tensor]:
    """An MLP's nonlinearity. Raises HopInterpError for one that is not in ACTIVATIONS."""
    if name not in ACTIVATIONS:
        raise HopInterpError(f"act_fn is {name!r}; it must be one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


@dataclass(frozen=True)
class HookPoint:
    """What a hook function is told of the place where it was called: its name, as TransformerLens has it."""

    name: str

    def layer(self) -> int:
        """The block's number."""
        return int(self.name.split(".")[1])


@dataclass(frozen=True, eq=False)
class Taps:
    """The places where a forward pass hands out its activations and takes back what is to stand in their place.

    Attributes:
        functions: hook functions by the full names of activations; without any, every call gives its activation back.
        prefix: of the names that are called here ("blocks.0.").
    """

    functions: Mapping[str, Sequence[HookFunction]] = field(default_factory=dict)
    prefix: str = ""

    def __call__(self, name: str, x: Tensor) -> Tensor:
        """The activation after the hooks at its name."""
        if not self.functions:
            return x
        point = HookPoint(self.prefix + name)
        for function in self.functions.get(point.name, ()):
            replaced = function(x, hook=point)
            x = x if replaced is None else replaced
        return x

    def heads(self, name: str, x: Heads) -> Heads:
        """Likewise, handed out as [batch, position, head, d_head]: a copy, for a hook may write into it."""
        if not self.wants(name):
            return x
        return self(name, x.transpose(-3, -2).clone(memory_format=torch.contiguous_format)).transpose(-3, -2)

    def wants(self, *names: str) -> bool:
        """Whether there is a hook at one of some names."""
        return any(self.prefix + name in self.functions for name in names)

    def inside(self, layer: int) -> Taps:
        """The taps of a block; none where no hook is in it."""
        if not self.functions:
            return self
        prefix = f"blocks.{layer}."
        return Taps(self.functions, prefix) if any(name.startswith(prefix) for name in self.functions) else NO_TAPS


NO_TAPS = Taps()


@dataclass(frozen=True)
class Dropout:
    """Inverted dropout drawn from an explicit generator (torch's own takes none)."""

    rate: float = 0.0
    generator: torch.Generator | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.rate < 1:
            raise HopInterpError(f"dropout is {self.rate}; it must be at least 0 and under 1")

    def __call__(self, x: Tensor) -> Tensor:
        """Some numbers set to zero, the others larger by as much."""
        if not self.rate:
            return x
        keep = 1 - self.rate
        return x * torch.empty_like(x).bernoulli_(keep, generator=self.generator) / keep


NO_DROPOUT = Dropout()


def layer_norm(
    x: Rows, weight: Tensor | None, bias: Tensor | None, eps: float, taps: Taps = NO_TAPS, name: str = ""
) -> Rows:
    """A layer norm, without weights (TransformerLens's "LNPre") where these are None."""
    if not (taps.functions and taps.wants(name + "hook_scale", name + "hook_normalized")):
        return F.layer_norm(x, x.shape[-1:], weight, bias, eps)
    centred = x - x.mean(-1, keepdim=True)
    x = taps(name + "hook_normalized", centred / taps(name + "hook_scale", inverse_scale(centred, eps).reciprocal()))
    return x if weight is None or bias is None else x * weight + bias


def inverse_scale(centred: Rows, eps: float) -> Float[Tensor, "*batch 1"]:
    """What a layer norm multiplies centred rows by (x.var() takes 13 times as long)."""
    norm: Tensor = torch.linalg.vector_norm(centred, dim=-1, keepdim=True)
    return (norm.square() / centred.shape[-1] + eps).rsqrt()


def pack_qkv(weights: Mapping[str, Tensor], prefix: str) -> Linear:
    """One map to the queries, keys and values of all heads, from W_Q, b_Q, … [head, d_model, d_head] under a prefix."""
    weight = torch.cat([weights[prefix + "W_Q"], weights[prefix + "W_K"], weights[prefix + "W_V"]])
    bias = torch.cat([weights[prefix + "b_Q"], weights[prefix + "b_K"], weights[prefix + "b_V"]])
    return weight.transpose(1, 2).flatten(0, 1), bias.flatten()


def qkv(x: Rows, packed: Linear, n_heads: int) -> Float[Tensor, "*batch 3 head d_head"]:
    """Queries, keys and values from normed rows."""
    found: Tensor = F.linear(x, *packed).unflatten(-1, (3, n_heads, -1))
    return found


def causal_mask(queries: int, keys: int, like: Tensor) -> Float[Tensor, "query key"]:
    """What scores get added: −inf where the key stands later than the query, else 0. Queries are the last of the keys."""
    return torch.full((queries, keys), -torch.inf, dtype=like.dtype, device=like.device).triu(1 + keys - queries)


def scores(q: Heads, k: Float[Tensor, "*batch head key d_head"], scale: float) -> Pattern:
    """Attention scores under the causal mask."""
    return q @ k.mT * scale + causal_mask(q.shape[-2], k.shape[-2], q)


def attend(q: Heads, k: Heads, v: Heads, scale: float) -> Heads:
    """What the heads gather (z), by the fastest way. In bfloat16 on a CPU two plain batched products are 2.4 times as
    fast as `scaled_dot_product_attention`, whose backward kernel is slow there."""
    if q.device.type != "cpu" or q.dtype != torch.bfloat16:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)
    past = causal_mask(q.shape[-2], k.shape[-2], q)
    logits = torch.baddbmm(past, q.flatten(0, 1), k.flatten(0, 1).mT, alpha=scale)
    with torch.autocast("cpu", enabled=False):  # or softmax would go to float32 and back
        pattern = logits.softmax(-1)
    return torch.bmm(pattern, v.flatten(0, 1)).view_as(q)


def attention(q: Heads, k: Heads, v: Heads, scale: float, taps: Taps = NO_TAPS, drop: Dropout = NO_DROPOUT) -> Heads:
    """What the heads gather (z), with everything on the way handed out where it is asked for."""
    if taps.functions:
        q, k, v = taps.heads("attn.hook_q", q), taps.heads("attn.hook_k", k), taps.heads("attn.hook_v", v)
    if not (drop.rate or (taps.functions and taps.wants("attn.hook_attn_scores", "attn.hook_pattern"))):
        z = attend(q, k, v, scale)
    else:
        pattern = taps("attn.hook_attn_scores", scores(q, k, scale)).softmax(-1)
        if taps.wants("attn.hook_attn_scores"):  # a hook may have left a query nothing to look at
            pattern = pattern.nan_to_num(0.0)
        z = drop(taps("attn.hook_pattern", pattern)) @ v
    return taps.heads("attn.hook_z", z) if taps.functions else z


def attn_out(z: Float[Tensor, "*batch head d_head"], weight: Tensor, bias: Tensor) -> Rows:
    """What attention adds to the stream, from what the heads gather at each position; `weight` is W_O."""
    return F.linear(z.flatten(-2), weight.flatten(0, 1).T, bias)


def mlp_out(pre: Float[Tensor, "*batch d_mlp"], act_fn: str, weight: Tensor, bias: Tensor, taps: Taps = NO_TAPS) -> Rows:
    """What an MLP adds to the stream, from its preactivations; `weight` is W_out.

    Raises:
        HopInterpError: an unknown act_fn.
    """
    return F.linear(taps("mlp.hook_post", activation(act_fn)(taps("mlp.hook_pre", pre))), weight.T, bias)


def unembed(x: Rows, weight: Tensor, bias: Tensor) -> Float[Tensor, "*batch d_vocab"]:
    """Logits from rows after the last layer norm; `weight` is W_U."""
    return F.linear(x, weight.T, bias)
