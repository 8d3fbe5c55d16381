"""The customs house: a Hugging Face GPT-2 state dict of this task comes in, exactly, as our parameters."""

from __future__ import annotations

import pickle
import re
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import safetensors.torch
import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from hopinterp.errors import HopInterpError
from hopinterp.models.fused import FusedTransformer
from hopinterp.models.spec import ModelSpec, check_fits
from hopinterp.task import Batch, HopTask

# GPT2Attention once kept its causal mask as buffers; they hold nothing that was learned
_BUFFERS = re.compile(r"h\.\d+\.attn\.(bias|masked_bias)$")


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Tensors of a `torch.save`d state dict or of a safetensors file, on the CPU. Nothing is unpickled but tensors.

    Raises:
        HopInterpError: no such file, damaged, not a state dict, or a pickle that wants to run code.
    """
    path = Path(path)
    if not path.is_file():
        raise HopInterpError(f"no file {path}")
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        with warnings.catch_warnings():
            # torch remarks on foreign pickles before it refuses them; our own line says it all
            warnings.simplefilter("ignore")
            state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise HopInterpError(f"{path} holds more than tensors, or is damaged; save model.state_dict() alone") from None
    except Exception as error:  # torch.load and safetensors raise a dozen kinds on files that are not theirs
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise HopInterpError(f"{path} is no checkpoint, or is truncated ({reason})") from None
    if not isinstance(state, Mapping) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise HopInterpError(f"{path} holds no state dict (a mapping from names to tensors)")
    return dict(state)


def import_gpt2(
    path: str | Path,
    n_heads: int,
    *,
    n_letters: int | None = None,
    alphabet_size: int = 4,
    max_hops: int = 16,
    act_fn: str = "gelu_new",
) -> tuple[FusedTransformer, HopTask]:
    """Read a checkpoint file and check that it makes sense as a model of a task; the paper's task by default.

    Args:
        n_heads: cannot be seen from shapes; checked by what the model then answers (see `check_heads`).
        n_letters: two fewer than the model has positions, as in the paper's code, unless given.

    Raises:
        HopInterpError: the file, the sizes or the number of heads are wrong.
    """
    model = convert(read_state_dict(path), n_heads, act_fn)
    task = HopTask(max(1, model.spec.n_ctx - 2) if n_letters is None else n_letters, alphabet_size, max_hops)
    check_heads(model, task)
    return model, task


def convert(state: Mapping[str, Tensor], n_heads: int, act_fn: str = "gelu_new") -> FusedTransformer:
    """The same network under HookedTransformer's names; depth and widths are read off the shapes.

    A prefix before `wte.weight` is taken off. Without `lm_head.weight` the unembedding is the identity, as in the
    paper's code: the first coordinates of the last layer norm are the logits.

    Args:
        n_heads: the one size that shapes do not show.

    Raises:
        HopInterpError: not a GPT-2 state dict, sizes that do not fit each other, or numbers that are not finite.
    """
    state, head = _strip_prefix(
        {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    )
    wte, wpe = state.pop("wte.weight", None), state.pop("wpe.weight", None)
    if wte is None or wpe is None or wte.ndim != 2 or wpe.ndim != 2:
        raise HopInterpError("the checkpoint lacks GPT-2's wte.weight and wpe.weight")
    d_mlp = state["h.0.mlp.c_fc.weight"].shape[-1] if "h.0.mlp.c_fc.weight" in state else None
    spec = ModelSpec(
        n_layers=1 + max((int(match[1]) for name in state if (match := re.match(r"h\.(\d+)\.", name))), default=0),
        d_model=wte.shape[1],
        n_heads=n_heads,
        d_mlp=d_mlp,
        n_ctx=wpe.shape[0],
        d_vocab=wte.shape[0],
        act_fn=act_fn,
        unembed="identity" if head is None else "learned",
    )
    parameters = {"embed.W_E": wte, "pos_embed.W_pos": wpe}
    for layer in range(spec.n_layers):
        parameters |= _convert_block(state, f"h.{layer}.", f"blocks.{layer}.", spec)
    parameters["ln_final.w"] = _take(state, "ln_f.weight", spec.d_model)
    parameters["ln_final.b"] = _take(state, "ln_f.bias", spec.d_model)
    parameters["unembed.W_U"] = torch.eye(spec.d_model, spec.d_vocab) if head is None else head.T
    parameters["unembed.b_U"] = torch.zeros(spec.d_vocab)
    if state:
        raise HopInterpError(f"the checkpoint has {len(state)} tensors that are not GPT-2's, the first is {min(state)!r}")
    parameters = {name: tensor.contiguous() for name, tensor in parameters.items()}
    spec.check_parameters(parameters)
    return FusedTransformer(spec, parameters)


def check_heads(model: FusedTransformer, task: HopTask, sequences: int = 50, seed: int = 0) -> None:
    """Raise HopInterpError where another number of heads clearly fits the weights better.

    Shapes cannot show a wrong head count, and with it a trained model is quietly another model. The mean loss a
    sequence under every head count that divides d_model does show it: on weights trained with H heads, H wins by far,
    and on untrained weights none does. "Clearly" is four standard errors of the paired difference and
    0.01 nats, which is above what random weights show.
    """
    check_fits(model.spec, task)
    batch = task.sample(sequences, seed=seed)
    divisors = [h for h in range(1, model.spec.d_model + 1) if model.spec.d_model % h == 0]
    losses = {h: _losses(_with_heads(model, h), batch) for h in divisors}
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


def _strip_prefix(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Tensor | None]:
    """Names as GPT2Model has them, mask buffers dropped; and the unembedding of a GPT2LMHeadModel, if there is one."""
    anchors = [name for name in state if name == "wte.weight" or name.endswith(".wte.weight")]
    if len(anchors) != 1:
        sample = ", ".join(list(state)[:3])
        raise HopInterpError(
            f"not a GPT-2 state dict: it has {len(anchors)} tensors named wte.weight (its names: {sample}, …)"
        )
    prefix = anchors[0][: -len("wte.weight")]
    head = None
    inner: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name.split(".")[-2:] == ["lm_head", "weight"]:
            head = tensor
        elif not name.startswith(prefix):
            raise HopInterpError(f"the checkpoint has {name!r} beside the model under {prefix!r}")
        elif not _BUFFERS.match(name[len(prefix) :]):
            inner[name[len(prefix) :]] = tensor
    return inner, head


def _convert_block(state: dict[str, Tensor], source: str, target: str, spec: ModelSpec) -> dict[str, Tensor]:
    """One GPT2Block. Its Conv1D weights are [in, out], as HookedTransformer's are; c_attn holds Q, K and V side by side."""
    d, m, h = spec.d_model, spec.d_mlp, spec.n_heads
    assert m is not None
    q, k, v = _take(state, source + "attn.c_attn.weight", d, 3 * d).split(d, dim=1)
    b_q, b_k, b_v = _take(state, source + "attn.c_attn.bias", 3 * d).split(d)
    block = {f"attn.W_{x}": rearrange(w, "d (h e) -> h d e", h=h) for x, w in zip("QKV", (q, k, v), strict=True)}
    block |= {f"attn.b_{x}": b.reshape(h, -1) for x, b in zip("QKV", (b_q, b_k, b_v), strict=True)}
    block["attn.W_O"] = rearrange(_take(state, source + "attn.c_proj.weight", d, d), "(h e) d -> h e d", h=h)
    block["attn.b_O"] = _take(state, source + "attn.c_proj.bias", d)
    for ours, theirs in (("ln1", "ln_1"), ("ln2", "ln_2")):
        block[f"{ours}.w"] = _take(state, f"{source}{theirs}.weight", d)
        block[f"{ours}.b"] = _take(state, f"{source}{theirs}.bias", d)
    block["mlp.W_in"] = _take(state, source + "mlp.c_fc.weight", d, m)
    block["mlp.b_in"] = _take(state, source + "mlp.c_fc.bias", m)
    block["mlp.W_out"] = _take(state, source + "mlp.c_proj.weight", m, d)
    block["mlp.b_out"] = _take(state, source + "mlp.c_proj.bias", d)
    return {target + name: tensor for name, tensor in block.items()}


def _take(state: dict[str, Tensor], name: str, *shape: int) -> Tensor:
    """Remove and return a tensor, checked."""
    if name not in state:
        raise HopInterpError(f"the checkpoint lacks GPT-2's {name}")
    tensor = state.pop(name)
    if tuple(tensor.shape) != shape:
        raise HopInterpError(f"{name} has shape {list(tensor.shape)}; GPT-2 of these sizes has {list(shape)}")
    return tensor
