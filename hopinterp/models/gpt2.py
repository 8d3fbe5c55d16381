"""GPT-2 of Hugging Face: the table of its names, and whole checkpoints of this task, read and checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from hopinterp.errors import HopInterpError
from hopinterp.models import architectures
from hopinterp.models.architectures import Architecture, Stored
from hopinterp.models.architectures import read_state_dict as read_state_dict
from hopinterp.models.fused import FusedTransformer
from hopinterp.models.spec import check_fits
from hopinterp.progress import Report, counted
from hopinterp.task import Batch, HopTask

OURS = "hopinterp"
"""Under this name a config.json that `hub.export` wrote says more than GPT-2's own."""

# Hugging Face's names of functions that TransformerLens calls otherwise; what is in neither, ModelSpec refuses
_ACTIVATIONS = {"gelu_pytorch_tanh": "gelu_new", "gelu_fast": "gelu_new", "gelu_python": "gelu"}

# Conv1D's weights are [in, out], as HookedTransformer's are; c_attn holds Q, K and V side by side
_BLOCK: dict[str, str | Stored] = {
    **{f"attn.W_{x}": Stored("attn.c_attn.weight", "d (parts h e) -> parts h d e", part) for part, x in enumerate("QKV")},
    **{f"attn.b_{x}": Stored("attn.c_attn.bias", "(parts h e) -> parts h e", part) for part, x in enumerate("QKV")},
    "attn.W_O": Stored("attn.c_proj.weight", "(h e) d -> h e d"),
    "attn.b_O": "attn.c_proj.bias",
    "ln1.w": "ln_1.weight",
    "ln1.b": "ln_1.bias",
    "ln2.w": "ln_2.weight",
    "ln2.b": "ln_2.bias",
    "mlp.W_in": "mlp.c_fc.weight",
    "mlp.b_in": "mlp.c_fc.bias",
    "mlp.W_out": "mlp.c_proj.weight",
    "mlp.b_out": "mlp.c_proj.bias",
}


def _in_block(entry: str | Stored) -> Stored:
    stored = Stored(entry) if isinstance(entry, str) else entry
    return replace(stored, name="h.{layer}." + stored.name)


def _sizes(source: Any) -> dict[str, Any]:
    """What a GPT2Config says, of a module or as its config.json has it, that shapes do not show."""
    config: Mapping[str, Any] = source if isinstance(source, Mapping) else source.config.to_dict()
    if config.get("scale_attn_by_inverse_layer_idx"):
        raise HopInterpError("the model's config has scale_attn_by_inverse_layer_idx, which is not read")
    names = config.get("architectures") or [type(source).__name__]
    act_fn = config.get("activation_function", "gelu_new")
    said = {"n_heads": config["n_head"]} if "n_head" in config else {}
    return said | {
        "act_fn": _ACTIVATIONS.get(act_fn, act_fn),
        "eps": config.get("layer_norm_epsilon", 1e-5),
        "use_attn_scale": config.get("scale_attn_weights", True),
        # save_pretrained leaves a tied unembedding out
        "tied": "GPT2LMHeadModel" in names and config.get("tie_word_embeddings", True),
    }


def _logits(module: nn.Module, tokens: Tensor) -> Tensor:
    """Logits of a GPT2LMHeadModel; of a GPT2Model, as in the paper's code, the first coordinates of what it gives."""
    found = module(tokens, use_cache=False)
    logits: Tensor = found.logits if "logits" in found else found.last_hidden_state[..., : module.config.vocab_size]  # type: ignore[union-attr]
    return logits


GPT2 = architectures.register(
    Architecture(
        name="GPT-2",
        modules=("GPT2Model", "GPT2LMHeadModel"),
        names={
            "embed.W_E": "wte.weight",
            "pos_embed.W_pos": "wpe.weight",
            **{f"blocks.{{layer}}.{ours}": _in_block(theirs) for ours, theirs in _BLOCK.items()},
            "ln_final.w": "ln_f.weight",
            "ln_final.b": "ln_f.bias",
            "unembed.W_U": Stored("lm_head.weight", "v d -> d v"),
        },
        sizes=_sizes,
        defaults={"act_fn": "gelu_new"},
        logits=_logits,
        ignored=r"h\.\d+\.attn\.(bias|masked_bias)",  # its causal mask, once kept as buffers
    )
)


def import_gpt2(
    source: str | Path | nn.Module | Mapping[str, Tensor],
    n_heads: int | None = None,
    *,
    n_letters: int | None = None,
    alphabet_size: int | None = None,
    max_hops: int | None = None,
    act_fn: str | None = None,
    report: Report | None = None,
) -> tuple[FusedTransformer, HopTask]:
    """Read a checkpoint and check that it makes sense as a model of a task; the paper's task by default.

    Args:
        source: a file, a `save_pretrained` directory, a module, or a state dict in memory.
        n_heads: needed where no config says it: it cannot be seen from shapes. Checked by what the model then answers
            (see `check_heads`).
        n_letters: as the config says where `export` wrote it; else two fewer than positions, as in the paper's code.
        alphabet_size, max_hops: likewise; else 4 and 16.
        act_fn: gelu_new, as GPT-2 has it, where neither this nor a config says otherwise.
        report: called as numbers of heads are tried.

    Raises:
        HopInterpError: the file, the sizes or the number of heads are wrong.
    """
    model = architectures.read(source, n_heads, act_fn)
    given = {"n_letters": n_letters, "alphabet_size": alphabet_size, "max_hops": max_hops}
    sizes = {"n_letters": max(1, model.spec.n_ctx - 2)} | _task_said(source)
    task = HopTask(**(sizes | {name: value for name, value in given.items() if value is not None}))
    check_fits(model.spec, task)
    if n_heads is not None:  # else a config said it
        check_heads(model, task, report=report)
    return model, task


def _task_said(source: object) -> dict[str, Any]:
    """The sizes of the task that a config names, if it is one that `hub.export` wrote."""
    config = architectures.config_of(source)
    said = config.get(OURS) if isinstance(config, Mapping) else None
    task = said.get("task") if isinstance(said, Mapping) else {}
    if not isinstance(task, Mapping) or task.keys() - {one.name for one in fields(HopTask)}:
        raise HopInterpError(f"the config's {OURS}.task holds other things than the sizes of a task")
    return dict(task)


def written(model: FusedTransformer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A model as a GPT-2: its state dict and its config.json, as `save_pretrained` writes them.

    Raises:
        HopInterpError: the model is no GPT-2: blocks without MLPs or layer norms, heads that do not fill the width, an
            unembedding with a bias.
    """
    spec = model.spec
    for wanted, words in (
        (spec.normalization_type == "LN", "layer norms with weights"),
        (not spec.attn_only, "MLPs"),
        (spec.d_head is not None and spec.d_head * spec.n_heads == spec.d_model, "heads that fill the width"),
    ):
        if not wanted:
            raise HopInterpError(f"{GPT2.name} has {words}; this model has not")
    bare = spec.unembed == "identity"
    state = architectures.state_dict(GPT2, model)
    config = {
        "architectures": ["GPT2Model" if bare else "GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": spec.d_vocab,
        "n_positions": spec.n_ctx,
        "n_embd": spec.d_model,
        "n_layer": spec.n_layers,
        "n_head": spec.n_heads,
        "n_inner": spec.d_mlp,
        "activation_function": spec.act_fn,
        "layer_norm_epsilon": spec.eps,
        "scale_attn_weights": spec.use_attn_scale,
        "tie_word_embeddings": False,
        "bos_token_id": None,
        "eos_token_id": None,
        **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0),
    }
    return {name if bare or name == "lm_head.weight" else f"transformer.{name}": t for name, t in state.items()}, config


def convert(state: Mapping[str, Tensor], n_heads: int, act_fn: str = "gelu_new") -> FusedTransformer:
    """A GPT-2 state dict under HookedTransformer's names: the same network.

    A prefix before `wte.weight` is taken off. Without `lm_head.weight` the unembedding is the identity, as in the
    paper's code: the first coordinates of the last layer norm are the logits.

    Args:
        n_heads: the one size that shapes do not show.

    Raises:
        HopInterpError: not a GPT-2 state dict, sizes that do not fit each other, or numbers that are not finite.
    """
    return architectures.convert(GPT2, state, {"n_heads": n_heads, "act_fn": act_fn})


def check_heads(
    model: FusedTransformer, task: HopTask, sequences: int = 50, seed: int = 0, report: Report | None = None
) -> None:
    """Raise HopInterpError where another number of heads clearly fits the weights better.

    Shapes cannot show a wrong head count, and with it a trained model is quietly another model. The mean loss a
    sequence under every head count that divides d_model does show it: on weights trained with H heads, H wins by far,
    and on untrained weights none does. "Clearly" is four standard errors of the paired difference and
    0.01 nats, which is above what random weights show.
    """
    check_fits(model.spec, task)
    batch = task.sample(sequences, seed=seed)
    divisors = [h for h in range(1, model.spec.d_model + 1) if model.spec.d_model % h == 0]
    advance, losses = counted("trying numbers of heads", len(divisors), report), {}
    for h in divisors:
        losses[h] = _losses(_with_heads(model, h), batch)
        advance(1)
    best = min(divisors, key=lambda h: float(losses[h].mean()))
    given = model.spec.n_heads
    gain = losses[given] - losses[best]
    if best != given and gain.mean() > max(0.01, 4 * float(gain.std()) / sequences**0.5):
        raise HopInterpError(
            f"{given} heads were given, but these weights fit {best}: their loss on the task is "
            f"{losses[best].mean():.2f} with {best} heads and {losses[given].mean():.2f} with {given}"
        )


def _with_heads(model: FusedTransformer, heads: int) -> FusedTransformer:
    spec = replace(model.spec, n_heads=heads, d_head=model.spec.d_model // heads)
    parameters = dict(model.parameters)
    for name, tensor in model.parameters.items():
        leaf = name.rsplit(".", 1)[-1]
        if leaf in ("W_Q", "W_K", "W_V"):
            parameters[name] = rearrange(rearrange(tensor, "h d e -> d (h e)"), "d (h e) -> h d e", h=heads)
        elif leaf in ("b_Q", "b_K", "b_V"):
            parameters[name] = tensor.reshape(heads, -1)
        elif leaf == "W_O":
            parameters[name] = tensor.reshape(heads, -1, tensor.shape[-1])
    return FusedTransformer(spec, parameters)


@torch.no_grad()
def _losses(model: FusedTransformer, batch: Batch) -> Float[Tensor, " batch"]:
    return torch.nn.functional.cross_entropy(model(batch.tokens).mT, batch.labels, reduction="none").mean(1)
