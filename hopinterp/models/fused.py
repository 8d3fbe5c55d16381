"""The engine room: a HookedTransformer's forward pass over its own parameters, without hook points, at full speed."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from hopinterp.errors import HopInterpError
from hopinterp.models.spec import ModelSpec, check_fits
from hopinterp.task import HopTask

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

Residual = Float[Tensor, "batch position d_model"]


@dataclass(frozen=True, eq=False)
class FusedTransformer:
    """What a HookedTransformer computes, from the same tensors: one product for Q, K and V of all heads,
    `scaled_dot_product_attention`, library layer norms. Logits and gradients agree to 1e-5.

    Called like a HookedTransformer: `model(tokens)` gives logits, `model.run_with_cache(tokens, names)` also the
    activations `blocks.{l}.hook_resid_post` and `blocks.{l}.attn.hook_pattern` that are named.

    Attributes:
        spec: the sizes.
        parameters: every parameter under its HookedTransformer name. Training updates these in place.
    """

    spec: ModelSpec
    parameters: Mapping[str, Tensor]

    @classmethod
    def of(cls, model: HookedTransformer) -> FusedTransformer:
        """The fused twin of a HookedTransformer: shares its parameters, so it follows every update of them.

        Raises:
            HopInterpError: the model has a feature that the fused pass does not compute.
        """
        spec, parameters = ModelSpec.from_model(model), dict(model.named_parameters())
        if parameters.keys() != spec.parameter_shapes().keys():
            raise HopInterpError("the model's parameters are not those of its config (pruned or parametrized?)")
        return cls(spec, parameters)

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.parameters["embed.W_E"].device

    def to(self, device: str | torch.device) -> FusedTransformer:
        """The same model with its parameters on another device."""
        return FusedTransformer(self.spec, {name: p.to(device) for name, p in self.parameters.items()})

    def __call__(
        self,
        tokens: Int[Tensor, "batch position"],
        *,
        positions: Int[Tensor, "batch position"] | None = None,
        dropout: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "batch position d_vocab"]:
        """Logits. With `dropout`, GPT-2's in training mode: after the embedding, in the pattern, before each residual.

        Args:
            positions: the row of W_pos that each token stands at; 0, 1, 2, … by default.
        """
        return self._run(tokens, {}, (), _Dropout(dropout, generator), positions)

    def run_with_cache(
        self, tokens: Int[Tensor, "batch position"], names_filter: Collection[str]
    ) -> tuple[Float[Tensor, "batch position d_vocab"], dict[str, Tensor]]:
        """Logits and the named activations, as HookedTransformer.run_with_cache gives them.

        Raises:
            HopInterpError: a name that is neither a block's hook_resid_post nor its attn.hook_pattern.
        """
        layers = range(self.spec.n_layers)
        known = {resid_post(layer) for layer in layers} | {pattern(layer) for layer in layers}
        if foreign := set(names_filter) - known:
            raise HopInterpError(f"the fused pass has no activation {min(foreign)!r}; it has resid_post and pattern")
        cache: dict[str, Tensor] = {}
        return self._run(tokens, cache, names_filter, _Dropout(0.0, None)), cache

    def _run(
        self,
        tokens: Int[Tensor, "batch position"],
        cache: dict[str, Tensor],
        names: Collection[str],
        drop: _Dropout,
        positions: Int[Tensor, "batch position"] | None = None,
    ) -> Float[Tensor, "batch position d_vocab"]:
        x = drop(self.embed(tokens, positions))
        for layer in range(self.spec.n_layers):
            x = self._block(x, layer, cache, names, drop)
        return self.unembed(x)

    def embed(
        self, tokens: Int[Tensor, "batch position"], positions: Int[Tensor, "batch position"] | None = None
    ) -> Residual:
        """The stream that enters block 0.

        Raises:
            HopInterpError: more tokens than positions, or autocast on a model without layer norms: constructed models
                tell positions apart by differences far below bfloat16's rounding.
        """
        if tokens.shape[1] > self.spec.n_ctx:
            raise HopInterpError(f"{tokens.shape[1]} tokens were given; the model has {self.spec.n_ctx} positions")
        if self.spec.normalization_type is None and torch.is_autocast_enabled(tokens.device.type):
            raise HopInterpError("autocast would round the scores of a model without layer norms; run it in float32")
        rows = self.parameters["pos_embed.W_pos"]
        places = rows[: tokens.shape[1]] if positions is None else F.embedding(positions, rows)
        return F.embedding(tokens, self.parameters["embed.W_E"]) + places

    def unembed(self, x: Residual) -> Float[Tensor, "batch position d_vocab"]:
        """Logits from the last block's output."""
        return F.linear(self.norm(x, "ln_final"), self.parameters["unembed.W_U"].T, self.parameters["unembed.b_U"])

    def _block(self, x: Residual, layer: int, cache: dict[str, Tensor], names: Collection[str], drop: _Dropout) -> Residual:
        keep_pattern = pattern(layer) in names
        attention, probabilities = self._attention(self.norm(x, f"blocks.{layer}.ln1"), layer, keep_pattern, drop)
        x = x + drop(attention)
        if not self.spec.attn_only:
            x = x + drop(self.mlp(self.norm(x, f"blocks.{layer}.ln2"), layer))
        if probabilities is not None and keep_pattern:
            cache[pattern(layer)] = probabilities
        if resid_post(layer) in names:
            cache[resid_post(layer)] = x
        return x

    def norm(self, x: Residual, name: str) -> Residual:
        """A layer norm by its name ("blocks.0.ln1", "ln_final"); nothing where the model has none."""
        if self.spec.normalization_type is None:
            return x
        # an "LNPre" has no weights: get() gives None, which layer_norm reads so
        weight, bias = self.parameters.get(f"{name}.w"), self.parameters.get(f"{name}.b")
        return F.layer_norm(x, (self.spec.d_model,), weight, bias, self.spec.eps)

    def _attention(
        self, x: Residual, layer: int, keep_pattern: bool, drop: _Dropout
    ) -> tuple[Residual, Float[Tensor, "batch head query key"] | None]:
        q, k, v = self.qkv(x, layer)
        probabilities = None
        if keep_pattern or drop.rate:
            probabilities = _causal_pattern(q, k, self.scale)
            z = drop(probabilities) @ v
        else:
            z = _attend(q, k, v, self.scale)
        return self.attn_out(z, layer), probabilities

    @property
    def scale(self) -> float:
        """What attention scores are multiplied by."""
        assert self.spec.d_head is not None
        return self.spec.d_head**-0.5 if self.spec.use_attn_scale else 1.0

    def qkv(self, x: Residual, layer: int) -> Float[Tensor, "3 batch head position d_head"]:
        """Queries, keys and values of a block's heads, from the normed stream."""
        p, name = self.parameters, f"blocks.{layer}.attn."
        weight = torch.cat([p[name + "W_Q"], p[name + "W_K"], p[name + "W_V"]]).transpose(1, 2).flatten(0, 1)
        bias = torch.cat([p[name + "b_Q"], p[name + "b_K"], p[name + "b_V"]]).flatten()
        packed: Tensor = F.linear(x, weight, bias).unflatten(-1, (3, self.spec.n_heads, -1))
        return packed.permute(2, 0, 3, 1, 4).contiguous()

    def attn_out(self, z: Float[Tensor, "batch head position d_head"], layer: int) -> Residual:
        """What a block's attention adds, from its heads' outputs z."""
        p, name = self.parameters, f"blocks.{layer}.attn."
        return F.linear(z.transpose(1, 2).flatten(2), p[name + "W_O"].flatten(0, 1).T, p[name + "b_O"])

    def mlp(self, x: Residual, layer: int) -> Residual:
        """What a block's MLP adds, from the normed stream."""
        p, name = self.parameters, f"blocks.{layer}.mlp."
        hidden = F.linear(x, p[name + "W_in"].T, p[name + "b_in"])
        if self.spec.act_fn == "relu":
            hidden = F.relu(hidden)
        else:
            hidden = F.gelu(hidden, approximate="none" if self.spec.act_fn == "gelu" else "tanh")
        return F.linear(hidden, p[name + "W_out"].T, p[name + "b_out"])


def runner(model: HookedTransformer | FusedTransformer, task: HopTask) -> HookedTransformer | FusedTransformer:
    """The fastest thing that computes exactly what `model` computes on the task's sequences.

    A HookedTransformer with hooks of any kind on any of its modules (TransformerLens's are PyTorch's own underneath), or
    with features the fused pass lacks, runs as it is: an ablation that a user attached must show in what we report.

    Raises:
        HopInterpError: the model is too small for the task.
    """
    if isinstance(model, FusedTransformer):
        check_fits(model.spec, task)
        return model
    check_fits(model.cfg, task)
    if any(module._forward_hooks or module._forward_pre_hooks for module in model.modules()):
        return model
    try:
        return FusedTransformer.of(model)
    except HopInterpError:
        return model


def device_of(model: HookedTransformer | FusedTransformer) -> torch.device:
    """Where a model's parameters are."""
    return model.device if isinstance(model, FusedTransformer) else next(model.parameters()).device


def depth_of(model: HookedTransformer | FusedTransformer) -> int:
    """How many blocks a model has."""
    return model.spec.n_layers if isinstance(model, FusedTransformer) else model.cfg.n_layers


def resid_post(layer: int) -> str:
    """Name of a block's output in a cache."""
    return f"blocks.{layer}.hook_resid_post"


def pattern(layer: int) -> str:
    """Name of a block's attention pattern in a cache."""
    return f"blocks.{layer}.attn.hook_pattern"


def _attend(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Causal attention [batch, head, position, d_head]. In bfloat16 on a CPU two plain batched products are 2.4 times as
    fast as `scaled_dot_product_attention`, whose backward kernel is slow there."""
    if q.device.type != "cpu" or q.dtype != torch.bfloat16:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)
    n = q.shape[-2]
    past = torch.full((n, n), -torch.inf, dtype=q.dtype).triu(1)
    scores = torch.baddbmm(past, q.flatten(0, 1), k.flatten(0, 1).mT, alpha=scale)
    with torch.autocast("cpu", enabled=False):  # or softmax would go to float32 and back
        probabilities = scores.softmax(-1)
    return torch.bmm(probabilities, v.flatten(0, 1)).view_as(q)


def _causal_pattern(
    q: Float[Tensor, "batch head position d_head"], k: Float[Tensor, "batch head position d_head"], scale: float
) -> Float[Tensor, "batch head query key"]:
    n = q.shape[-2]
    future = torch.ones(n, n, dtype=torch.bool, device=q.device).triu(1)
    return (q @ k.mT * scale).masked_fill(future, -torch.inf).softmax(-1)


@dataclass(frozen=True)
class _Dropout:
    """Inverted dropout drawn from an explicit generator (torch's own takes none)."""

    rate: float
    generator: torch.Generator | None

    def __post_init__(self) -> None:
        if not 0 <= self.rate < 1:
            raise HopInterpError(f"dropout is {self.rate}; it must be at least 0 and under 1")

    def __call__(self, x: Tensor) -> Tensor:
        if not self.rate:
            return x
        keep = 1 - self.rate
        return x * torch.empty_like(x).bernoulli_(keep, generator=self.generator) / keep
