"""FusedTransformer: a HookedTransformer's forward pass over its own parameters, at full speed, with the same hook points."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from hopinterp.errors import HopInterpError
from hopinterp.models import blocks
from hopinterp.models.blocks import NO_DROPOUT, NO_TAPS, Dropout, HookFunction, HookPoint, Rows, Taps
from hopinterp.models.spec import ModelSpec
from hopinterp.shown import Row, Shown

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

Residual = Float[Tensor, "batch position d_model"]
Logits = Float[Tensor, "batch position d_vocab"]
Names = str | Collection[str] | Callable[[str], bool]
"""Activations by name: one, several, or all that a function accepts."""

_NORM = ("hook_scale", "hook_normalized")
_IN_ATTENTION = [f"attn.hook_{name}" for name in ("q", "k", "v", "attn_scores", "pattern", "z")]


@dataclass(frozen=True, eq=False, repr=False)
class FusedTransformer(Shown):
    """What a HookedTransformer computes, from the same tensors: one product for Q, K and V of all heads,
    `scaled_dot_product_attention`, library layer norms. Logits and gradients agree to 1e-5.

    Called like a HookedTransformer: `model(tokens)` gives logits, `model.run_with_cache(tokens, names)` also the named
    activations, `with model.hooks(fwd_hooks=[(name, f)])` runs with hooks; gradients flow through all of them. Only where
    a name asks for it is anything computed in another way (scores and pattern by plain products).

    Attributes:
        spec: the sizes.
        parameters: every parameter under its HookedTransformer name. Training updates these in place.
    """

    spec: ModelSpec
    parameters: Mapping[str, Tensor]
    _hooks: dict[str, list[HookFunction]] = field(default_factory=dict, init=False, repr=False)

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
    def columns(self) -> list[str]:
        """Over `rows`."""
        return ["", "value"]

    @property
    def rows(self) -> list[Row]:
        """The sizes."""
        return [(name, (str(value),)) for name, value in self.spec.to_dict().items()]

    @property
    def reading(self) -> str:
        """Depth, widths and parameters in one line."""
        spec = self.spec
        sizes = f"{spec.n_layers} blocks, d_model {spec.d_model}, {spec.n_heads} heads, {spec.n_parameters:,} parameters"
        return f"{sizes}, on {self.device}{', with hooks' if self.is_hooked else ''}."

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.parameters["embed.W_E"].device

    def to(self, device: str | torch.device) -> FusedTransformer:
        """The same model with its parameters on another device, without its hooks."""
        return FusedTransformer(self.spec, {name: p.to(device) for name, p in self.parameters.items()})

    def digest(self) -> str:
        """The SHA-256 of sizes and parameters: two models of one digest compute the same."""
        found = hashlib.sha256(json.dumps(asdict(self.spec), sort_keys=True).encode())
        for name, parameter in sorted(self.parameters.items()):
            p = parameter.detach().cpu().contiguous()
            found.update(f"\n{name} {p.dtype} {list(p.shape)}\n".encode())
            found.update(p.numpy().tobytes())
        return found.hexdigest()

    def __call__(
        self,
        tokens: Int[Tensor, "batch position"],
        *,
        positions: Int[Tensor, "batch position"] | None = None,
        dropout: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> Logits:
        """Logits. With `dropout`, GPT-2's in training mode: after the embedding, in the pattern, before each residual.

        Args:
            positions: the row of W_pos that each token stands at; 0, 1, 2, … by default.
        """
        drop = Dropout(dropout, generator) if dropout else NO_DROPOUT
        taps = Taps(self._hooks) if self._hooks else NO_TAPS
        x = drop(self.embed(tokens, positions, taps))
        for layer in range(self.spec.n_layers):
            x = self._block(x, layer, taps.inside(layer), drop)
        return self.unembed(x, taps)

    @cached_property
    def hook_names(self) -> tuple[str, ...]:
        """Every activation that can be kept or hooked, by TransformerLens's names, in the order of the pass."""
        norm = () if self.spec.normalization_type is None else _NORM
        inside = ["hook_resid_pre", *(f"ln1.{name}" for name in norm), *_IN_ATTENTION, "hook_attn_out"]
        if not self.spec.attn_only:
            inside += ["hook_resid_mid", *(f"ln2.{name}" for name in norm), "mlp.hook_pre", "mlp.hook_post", "hook_mlp_out"]
        inside += ["hook_resid_post"]
        within = [f"blocks.{layer}.{name}" for layer in range(self.spec.n_layers) for name in inside]
        last = (*(f"ln_final.{name}" for name in norm), "unembed.hook_in", "unembed.hook_out")
        return ("hook_embed", "hook_pos_embed", *within, *last)

    @property
    def is_hooked(self) -> bool:
        """Whether hooks are attached: then passes that do not know them would give something else than the model."""
        return bool(self._hooks)

    def run_with_cache(
        self, tokens: Int[Tensor, "batch position"], names_filter: Names | None = None
    ) -> tuple[Logits, dict[str, Tensor]]:
        """Logits and the named activations (all for None), as HookedTransformer.run_with_cache gives them, but attached to
        the graph of gradients.

        Raises:
            HopInterpError: a name that this model has no activation of.
        """
        cache: dict[str, Tensor] = {}

        def keep(activation: Tensor, hook: HookPoint) -> None:
            cache[hook.name] = activation

        with self.hooks([(self.hook_names if names_filter is None else names_filter, keep)]):
            return self(tokens), cache

    def run_with_hooks(
        self, tokens: Int[Tensor, "batch position"], fwd_hooks: Sequence[tuple[Names, HookFunction]]
    ) -> Logits:
        """Logits of one run with hooks: see `hooks`."""
        with self.hooks(fwd_hooks):
            return self(tokens)

    @contextmanager
    def hooks(self, fwd_hooks: Sequence[tuple[Names, HookFunction]]) -> Iterator[FusedTransformer]:
        """Inside, the model runs with hooks, TransformerLens's way: f(activation, hook=…) returns what is to stand in the
        activation's place, or None. Hooks at one name are called in turn, and all come off however the inside ends.

        Raises:
            HopInterpError: a name that this model has no activation of.
        """
        added = [(name, function) for names, function in fwd_hooks for name in self._named(names)]
        for name, function in added:
            self._hooks.setdefault(name, []).append(function)
        try:
            yield self
        finally:
            for name, function in added:
                self._hooks[name].remove(function)
                if not self._hooks[name]:
                    del self._hooks[name]

    def _named(self, names: Names) -> list[str]:
        if callable(names):
            return [name for name in self.hook_names if names(name)]
        chosen = [names] if isinstance(names, str) else list(dict.fromkeys(names))
        if foreign := set(chosen) - set(self.hook_names):
            raise HopInterpError(f"this model has no activation {min(foreign)!r}; a block's are {self._names_of_a_block()}")
        return chosen

    def _names_of_a_block(self) -> str:
        prefix = "blocks.0."
        return ", ".join(name.removeprefix(prefix) for name in self.hook_names if name.startswith(prefix))

    def embed(
        self,
        tokens: Int[Tensor, "batch position"],
        positions: Int[Tensor, "batch position"] | None = None,
        taps: Taps = NO_TAPS,
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
        embedded = taps("hook_embed", F.embedding(tokens, self.parameters["embed.W_E"]))
        if taps.wants("hook_pos_embed"):  # a copy: a hook may write into it
            places = taps("hook_pos_embed", places.expand_as(embedded).clone())
        return embedded + places

    def unembed(self, x: Rows, taps: Taps = NO_TAPS) -> Float[Tensor, "*batch d_vocab"]:
        """Logits from rows of the last block's output."""
        p, normed = self.parameters, self.norm(x, "ln_final", taps, "ln_final.")
        logits = blocks.unembed(taps("unembed.hook_in", normed), p["unembed.W_U"], p["unembed.b_U"])
        return taps("unembed.hook_out", logits)

    def _block(self, x: Residual, layer: int, taps: Taps, drop: Dropout) -> Residual:
        x = taps("hook_resid_pre", x)
        q, k, v = self.qkv(self.norm(x, f"blocks.{layer}.ln1", taps, "ln1."), layer)
        z = blocks.attention(q, k, v, self.scale, taps, drop)
        return self.block_end(x + drop(taps("hook_attn_out", self.attn_out(z, layer))), layer, taps, drop)

    def block_end(self, mid: Rows, layer: int, taps: Taps = NO_TAPS, drop: Dropout = NO_DROPOUT) -> Rows:
        """A block's output from rows of resid_mid."""
        if not self.spec.attn_only:
            mid = taps("hook_resid_mid", mid)
            normed = self.norm(mid, f"blocks.{layer}.ln2", taps, "ln2.")
            mid = mid + drop(taps("hook_mlp_out", self.mlp(normed, layer, taps)))
        return taps("hook_resid_post", mid)

    def norm(self, x: Rows, name: str, taps: Taps = NO_TAPS, tap: str = "") -> Rows:
        """A layer norm by its name ("blocks.0.ln1", "ln_final"); nothing where the model has none."""
        if self.spec.normalization_type is None:
            return x
        # an "LNPre" has no weights: get() gives None, which layer_norm reads so
        weight, bias = self.parameters.get(f"{name}.w"), self.parameters.get(f"{name}.b")
        return blocks.layer_norm(x, weight, bias, self.spec.eps, taps, tap)

    @property
    def scale(self) -> float:
        """What attention scores are multiplied by."""
        assert self.spec.d_head is not None
        return self.spec.d_head**-0.5 if self.spec.use_attn_scale else 1.0

    def qkv(self, x: Residual, layer: int) -> Float[Tensor, "3 batch head position d_head"]:
        """Queries, keys and values of a block's heads, from the normed stream."""
        found = blocks.qkv(x, blocks.pack_qkv(self.parameters, f"blocks.{layer}.attn."), self.spec.n_heads)
        return found.permute(2, 0, 3, 1, 4).contiguous()

    def attn_out(self, z: Float[Tensor, "batch head position d_head"], layer: int) -> Residual:
        """What a block's attention adds, from its heads' outputs z."""
        p, name = self.parameters, f"blocks.{layer}.attn."
        return blocks.attn_out(z.transpose(1, 2), p[name + "W_O"], p[name + "b_O"])

    def mlp(self, x: Rows, layer: int, taps: Taps = NO_TAPS) -> Rows:
        """What a block's MLP adds, from rows of the normed stream."""
        p, name = self.parameters, f"blocks.{layer}.mlp."
        hidden = F.linear(x, p[name + "W_in"].T, p[name + "b_in"])
        return blocks.mlp_out(hidden, self.spec.act_fn, p[name + "W_out"], p[name + "b_out"], taps)
