"""TransformerBridge, TransformerLens's model from 4.0 on: made with given weights, and its weights read."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

# Where `TransformerBridge.boot_native` keeps each parameter, and the layout that turns ours into its: nn.Linear's
# weights are [out, in].
_NATIVE = {
    "embed.W_E": ("tok_embed.weight", ""),
    "pos_embed.W_pos": ("pos.weight", ""),
    **{f"blocks.{{}}.attn.W_{x}": (f"layers.{{}}.attn.{x.lower()}.weight", "h d e -> (h e) d") for x in "QKV"},
    **{f"blocks.{{}}.attn.b_{x}": (f"layers.{{}}.attn.{x.lower()}.bias", "h e -> (h e)") for x in "QKV"},
    "blocks.{}.attn.W_O": ("layers.{}.attn.o.weight", "h e d -> d (h e)"),
    "blocks.{}.attn.b_O": ("layers.{}.attn.o.bias", ""),
    **{f"blocks.{{}}.mlp.W_{x}": (f"layers.{{}}.mlp.fc_{x}.weight", "i o -> o i") for x in ("in", "out")},
    **{f"blocks.{{}}.mlp.b_{x}": (f"layers.{{}}.mlp.fc_{x}.bias", "") for x in ("in", "out")},
    **{f"blocks.{{}}.ln{n}.{x[0]}": (f"layers.{{}}.ln{n}.{x}", "") for n in (1, 2) for x in ("weight", "bias")},
    **{f"ln_final.{x[0]}": (f"ln_out.{x}", "") for x in ("weight", "bias")},
    "unembed.W_U": ("head.weight", "d v -> v d"),
    "unembed.b_U": ("head.bias", ""),
}


def build(sizes: Mapping[str, Any], parameters: Mapping[str, Tensor], frozen: Collection[str]) -> Any:
    """A native TransformerBridge of these sizes (TransformerBridgeConfig's fields) with these parameters (copied, under
    HookedTransformer's names), in eval mode; `frozen` ones take no gradient."""
    from transformer_lens.config import TransformerBridgeConfig
    from transformer_lens.model_bridge import TransformerBridge

    model = TransformerBridge.boot_native(TransformerBridgeConfig(**sizes))
    # TransformerLens 4 keeps the bias of the unembedding as a buffer
    held = [*model.original_model.named_parameters(), *model.original_model.named_buffers()]
    # the bridge's wrappers stand between the names of the module that it wraps
    theirs = {name.replace("_original_component.", ""): tensor for name, tensor in held}
    with torch.no_grad():
        for name, tensor in parameters.items():
            layer = name.split(".")[1] if name.startswith("blocks.") else ""
            target, layout = _NATIVE[name.replace(f"blocks.{layer}.", "blocks.{}.", 1) if layer else name]
            place = theirs[target.format(layer)]
            place.copy_(rearrange(tensor, layout) if layout else tensor)
            if isinstance(place, nn.Parameter):
                place.requires_grad_(name not in frozen)
    return model.eval()


def parameters_of(model: Any) -> dict[str, Tensor]:
    """A bridge's parameters under HookedTransformer's names; without layer norm weights where compatibility mode
    folded them into what follows."""
    found = dict(model.tl_parameters())
    if model.cfg.attn_only:  # it makes up zeros for the MLPs
        found = {name: tensor for name, tensor in found.items() if ".mlp." not in name}
    norms = {name: tensor for name, tensor in found.items() if ".ln" in f".{name}"}
    if model.compatibility_mode and all(bool((p == (name[-1] == "w")).all()) for name, p in norms.items()):
        found = {name: tensor for name, tensor in found.items() if name not in norms}
    return found


def is_bridge(model: object) -> bool:
    """Whether something is a TransformerBridge."""
    return is_lens(model, "TransformerBridge")


def is_lens(model: object, name: str) -> bool:
    """Whether something is of a TransformerLens class, asked by its name: TransformerLens takes seconds to import."""
    return any(c.__module__.startswith("transformer_lens.") and c.__name__ == name for c in type(model).__mro__)


def reads_only(model: Any, name: str) -> bool:
    """Whether a bridge shows an activation but computes on without it: attention that it wraps whole, as a native
    bridge's before TransformerLens 4, gives its pattern out after use."""
    if not name.endswith(("attn.hook_pattern", "attn.hook_attn_scores")):
        return False
    attention = model.blocks[int(name.split(".")[1])].attn
    whole = type(attention).__name__ == "AttentionBridge"
    return whole and not getattr(attention.original_component, "accepts_pattern_fn", False)
