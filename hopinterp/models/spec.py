"""ModelSpec: the sizes of a model, the parameters it has, and the TransformerLens model that it stands for."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from hopinterp.errors import HopInterpError
from hopinterp.models import bridge
from hopinterp.models.blocks import ACTIVATIONS
from hopinterp.task import HopTask

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

Normalization = Literal["LN", "LNPre"]
PAPER_HEADS = {4: 128, 8: 256}
"""The paper's two widths (its Table 2): d_model by number of heads."""

LARGEST_DEPTH, LARGEST_SIZE, LARGEST = 1_000, 1_000_000, 2**30
"""Bounds of the depth, of every other size, and of how many numbers a model has."""

# A native bridge knows no unscaled scores: it takes use_attn_scale=False for sqrt(d_head), and refuses to divide by 1. By
# this it divides: in float32 the same as 1.
_UNSCALED = 1 + 2e-9

# HookedTransformerConfig fields that change the forward pass and that a ModelSpec does not carry: a model is read as a
# spec only where each of them has the value given here.
_PLAIN_CONFIG = {
    "positional_embedding_type": "standard",
    "attention_dir": "causal",
    "attn_types": None,
    "scale_attn_by_inverse_layer_idx": False,
    "parallel_attn_mlp": False,
    "use_local_attn": False,
    "gated_mlp": False,
    "final_rms": False,
    "n_key_value_heads": None,
    "post_embedding_ln": False,
    "num_experts": None,
    "use_normalization_before_and_after": False,
    "attn_scores_soft_cap": -1.0,
    "output_logits_soft_cap": -1.0,
    "use_qk_norm": False,
    "use_attention_sinks": False,
    "use_logn_attn": False,
    "clip_qkv": None,
    "original_architecture": None,
    "dtype": torch.float32,
    "rmsnorm_uses_offset": False,
    "use_hook_tokens": False,
    "ungroup_grouped_query_attention": False,
}


@dataclass(frozen=True)
class ModelSpec:
    """Sizes and switches of one decoder-only transformer of the task; field names are HookedTransformerConfig's.

    Args:
        n_layers: depth L, the number of blocks.
        d_head: d_model / n_heads unless given.
        d_mlp: 4·d_model unless given.
        n_ctx: positions (the paper's 100).
        d_vocab: rows of W_E and columns of W_U (the paper's models have 30, of which its task uses 23).
        act_fn: "gelu" (the erf form, cheap on a CPU), "gelu_new" (the tanh form, GPT-2's) or "relu".
        normalization_type: "LN", "LNPre" (no weights: folded into what follows) or None.
        attn_only: blocks have no MLP.
        use_attn_scale: scores are divided by sqrt(d_head).
        unembed: "learned", or "identity" as in the paper: the first coordinates of the last layer norm are the logits
            and W_U is no parameter.

    Raises:
        HopInterpError: a size out of range, or n_heads that does not divide d_model where d_head is not given.
    """

    n_layers: int
    d_model: int = 128
    n_heads: int = 4
    d_head: int | None = None
    d_mlp: int | None = None
    n_ctx: int = 100
    d_vocab: int = 30
    act_fn: str = "gelu"
    normalization_type: Normalization | None = "LN"
    attn_only: bool = False
    use_attn_scale: bool = True
    unembed: Literal["learned", "identity"] = "learned"
    eps: float = 1e-5

    def __post_init__(self) -> None:
        for name in ("n_layers", "d_model", "n_heads", "n_ctx", "d_vocab"):
            _check_size(name, getattr(self, name), LARGEST_DEPTH if name == "n_layers" else LARGEST_SIZE)
        for name in ("attn_only", "use_attn_scale"):
            if not isinstance(getattr(self, name), bool):
                raise HopInterpError(f"{name} is {getattr(self, name)!r:.40}; it must be true or false")
        if isinstance(self.eps, bool) or not isinstance(self.eps, int | float) or not 0 < self.eps <= 1:
            raise HopInterpError(f"eps is {self.eps!r:.40}; it must be above 0 and at most 1")
        if self.d_head is None:
            if self.d_model % self.n_heads:
                raise HopInterpError(f"{self.n_heads} heads were given; they must divide d_model = {self.d_model}")
            object.__setattr__(self, "d_head", self.d_model // self.n_heads)
        if self.d_mlp is None:
            object.__setattr__(self, "d_mlp", 4 * self.d_model)
        _check_size("d_head", self.d_head)
        _check_size("d_mlp", self.d_mlp)
        for name, allowed in (
            ("act_fn", tuple(ACTIVATIONS)),
            ("normalization_type", ("LN", "LNPre", None)),
            ("unembed", ("learned", "identity")),
        ):
            if not isinstance(getattr(self, name), str | None) or getattr(self, name) not in allowed:
                raise HopInterpError(f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(map(str, allowed))}")
        if (numbers := sum(map(math.prod, self.parameter_shapes().values()))) > LARGEST:
            raise HopInterpError(f"a model of these sizes has {numbers:,} numbers; at most {LARGEST:,} are taken")
        if self.unembed == "identity" and self.d_vocab > self.d_model:
            raise HopInterpError(f"an identity unembedding needs d_vocab ≤ d_model; got {self.d_vocab} > {self.d_model}")

    @classmethod
    def paper(cls, depth: int, heads: int = 4) -> ModelSpec:
        """The paper's architecture (its Tables 2 and 3): GPT-2 with 4 heads at width 128, or 8 at width 256."""
        if heads not in PAPER_HEADS:
            raise HopInterpError(f"the paper's models have 4 or 8 heads; got {heads}")
        return cls(depth, d_model=PAPER_HEADS[heads], n_heads=heads, act_fn="gelu_new", unembed="identity")

    @classmethod
    def for_task(cls, task: HopTask, n_layers: int, **sizes: Any) -> ModelSpec:
        """Our own architecture at the size of a task: as many tokens as it uses, two positions more than letters."""
        return cls(n_layers, **{"n_ctx": task.n_letters + 2, "d_vocab": task.d_vocab, **sizes})

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> ModelSpec:
        """Read a spec back from `to_dict`. Raises HopInterpError for fields that are missing or unknown."""
        known = {field.name for field in fields(cls)}
        if unknown := set(given) - known:
            raise HopInterpError(f"a model spec has no field {min(unknown)!r:.80}")
        if missing := known - set(given):
            raise HopInterpError(f"the spec lacks {min(missing)}")
        return cls(**given)

    @classmethod
    def from_model(cls, model: HookedTransformer) -> ModelSpec:
        """The spec of a HookedTransformer. Raises HopInterpError as `from_config` does."""
        return cls.from_config(model.cfg, model.unembed.W_U, model.cfg.normalization_type)

    @classmethod
    def from_config(cls, config: Any, unembedding: Tensor, normalization: str | None) -> ModelSpec:
        """The spec of a TransformerLens configuration, the model's W_U and its kind of layer norm.

        Raises:
            HopInterpError: the config has a feature that a ModelSpec does not carry (rotary positions, RMS norm, …).
        """
        for name, plain in _PLAIN_CONFIG.items():
            value = getattr(config, name, plain)
            if value != plain:
                raise HopInterpError(f"the model's config has {name} = {value!r}; a ModelSpec stands for {plain!r}")
        if config.d_vocab_out != config.d_vocab:
            raise HopInterpError(f"the model has {config.d_vocab} tokens in and {config.d_vocab_out} out; they must agree")
        frozen = not unembedding.requires_grad
        identity = frozen and torch.equal(unembedding.cpu(), torch.eye(config.d_model, config.d_vocab))
        return cls(
            n_layers=config.n_layers,
            d_model=config.d_model,
            n_heads=config.n_heads,
            d_head=config.d_head,
            d_mlp=config.d_mlp or 4 * config.d_model,
            n_ctx=config.n_ctx,
            d_vocab=config.d_vocab,
            act_fn=config.act_fn or "gelu",
            normalization_type=normalization,  # type: ignore[arg-type]  # checked there
            attn_only=config.attn_only,
            use_attn_scale=_scales(config),
            unembed="identity" if identity else "learned",
            eps=config.eps,
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """Every parameter of the HookedTransformer by name, with its shape."""
        d, h, dh, m = self.d_model, self.n_heads, self.d_head, self.d_mlp
        assert dh is not None
        assert m is not None
        norm: dict[str, tuple[int, ...]] = {"w": (d,), "b": (d,)} if self.normalization_type == "LN" else {}
        attention: dict[str, tuple[int, ...]] = {"W_Q": (h, d, dh), "W_K": (h, d, dh), "W_V": (h, d, dh), "W_O": (h, dh, d)}
        attention |= {"b_Q": (h, dh), "b_K": (h, dh), "b_V": (h, dh), "b_O": (d,)}
        mlp: dict[str, tuple[int, ...]] = {"W_in": (d, m), "b_in": (m,), "W_out": (m, d), "b_out": (d,)}
        parts = {"ln1": norm, "attn": attention} | ({} if self.attn_only else {"ln2": norm, "mlp": mlp})
        shapes: dict[str, tuple[int, ...]] = {"embed.W_E": (self.d_vocab, d), "pos_embed.W_pos": (self.n_ctx, d)}
        for layer in range(self.n_layers):
            for part, members in parts.items():
                shapes |= {f"blocks.{layer}.{part}.{name}": shape for name, shape in members.items()}
        shapes |= {f"ln_final.{name}": shape for name, shape in norm.items()}
        return shapes | {"unembed.W_U": (d, self.d_vocab), "unembed.b_U": (self.d_vocab,)}

    def is_trained(self, name: str) -> bool:
        """Whether a parameter is one of the model's own (an identity unembedding is not)."""
        return self.unembed == "learned" or not name.startswith("unembed.")

    @property
    def n_parameters(self) -> int:
        """How many numbers the model has to learn (the last column of the paper's Table 3)."""
        return sum(math.prod(shape) for name, shape in self.parameter_shapes().items() if self.is_trained(name))

    def initial_parameters(self, seed: int) -> dict[str, Tensor]:
        """Parameters as GPT-2 draws them: normal of width 0.02, those that write to the residual stream narrower by
        sqrt(2·n_layers); biases 0, layer norms 1."""
        generator = torch.Generator().manual_seed(seed)
        parameters = {}
        for name, shape in self.parameter_shapes().items():
            leaf = name.rsplit(".", 1)[-1]
            if leaf == "W_U" and self.unembed == "identity":
                parameters[name] = torch.eye(*shape)
            elif leaf == "w":
                parameters[name] = torch.ones(shape)
            elif leaf.startswith("b"):
                parameters[name] = torch.zeros(shape)
            else:
                width = 0.02 / math.sqrt(2 * self.n_layers) if leaf in ("W_O", "W_out") else 0.02
                parameters[name] = torch.empty(shape).normal_(0.0, width, generator=generator)
        return parameters

    def check_shapes(self, parameters: Mapping[str, Tensor]) -> None:
        """Raise HopInterpError unless there is a tensor of the right shape under every name, and no other."""
        shapes = self.parameter_shapes()
        missing, foreign = shapes.keys() - parameters.keys(), parameters.keys() - shapes.keys()
        if missing or foreign:
            kind, names = ("lack", missing) if missing else ("have foreign", foreign)
            raise HopInterpError(f"the weights {kind} {len(names)} tensors, the first is {min(names)!r}")
        for name, shape in shapes.items():
            tensor = parameters[name]
            if tuple(tensor.shape) != shape:
                raise HopInterpError(f"{name} has shape {list(tensor.shape)}; the spec wants {list(shape)}")

    def check_parameters(self, parameters: Mapping[str, Tensor]) -> None:
        """Raise HopInterpError unless names, shapes, dtype and finiteness are right, in that order."""
        self.check_shapes(parameters)
        shapes = self.parameter_shapes()
        for name in shapes:
            tensor = parameters[name]
            if tensor.dtype != torch.float32:
                raise HopInterpError(f"{name} is {tensor.dtype}; weights are torch.float32")
            if not tensor.isfinite().all():
                raise HopInterpError(f"{name} holds NaN or infinite numbers")
        if self.unembed == "identity" and not torch.equal(
            parameters["unembed.W_U"].cpu(), torch.eye(*shapes["unembed.W_U"])
        ):
            raise HopInterpError("unembed.W_U is not the identity that the spec names")

    def config(self) -> dict[str, Any]:
        """The fields of the TransformerLens configuration of these sizes."""
        carried = {name: value for name, value in self.to_dict().items() if name != "unembed"}
        return carried | {"d_vocab_out": self.d_vocab, "default_prepend_bos": False, "init_weights": False, "device": "cpu"}

    def build(self, parameters: Mapping[str, Tensor], device: str | torch.device = "cpu") -> HookedTransformer:
        """The TransformerLens model with these parameters (copied), in eval mode: a HookedTransformer; from 4.0 on,
        which has none, a TransformerBridge.

        Raises:
            HopInterpError: the parameters do not fit the spec.
        """
        self.check_parameters(parameters)
        try:
            from transformer_lens import HookedTransformer
        except ImportError:  # TransformerLens 4
            model = self._bridge(parameters)
        else:
            model = self._hooked(HookedTransformer, parameters)
        if str(device) != "cpu":
            model.to(device)
        return model.eval()

    def _hooked(self, made: type[HookedTransformer], parameters: Mapping[str, Tensor]) -> HookedTransformer:
        from transformer_lens import HookedTransformerConfig

        with warnings.catch_warnings():
            # it says that 4.0 removes HookedTransformer: known, and `_bridge` is there for it
            warnings.filterwarnings("ignore", "HookedTransformer is deprecated", DeprecationWarning)
            model = made(HookedTransformerConfig(**self.config()), move_to_device=False)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(parameters[name])
                parameter.requires_grad_(self.is_trained(name))
        return model

    def _bridge(self, parameters: Mapping[str, Tensor]) -> Any:
        scale = {} if self.use_attn_scale else {"use_attn_scale": True, "attn_scale": _UNSCALED}
        frozen = {name for name in parameters if not self.is_trained(name)}
        return bridge.build(self.config() | scale, parameters, frozen)


def _scales(config: Any) -> bool:
    """Whether attention scores are divided by sqrt(d_head). Raises HopInterpError where they are by anything else."""
    scale = config.attn_scale if config.use_attn_scale else 1.0
    if scale <= 0 or math.isclose(scale, math.sqrt(config.d_head)):  # a bridge's -1 stands for sqrt(d_head)
        return bool(config.use_attn_scale)
    if not math.isclose(scale, _UNSCALED, rel_tol=1e-8):
        raise HopInterpError(f"the model's attn_scale is {scale}; a ModelSpec stands for sqrt(d_head)")
    return False


def _check_size(name: str, value: object, most: int = LARGEST_SIZE) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
        raise HopInterpError(f"{name} is {value!r:.40}; it must be a whole number from 1 to {most:,}")


def check_fits(sizes: Any, task: HopTask) -> None:
    """Raise HopInterpError unless a model of these sizes can read the task's sequences and name its answers."""
    tokens = min(sizes.d_vocab, getattr(sizes, "d_vocab_out", sizes.d_vocab))
    if tokens < task.d_vocab:
        raise HopInterpError(f"the task needs {task.d_vocab} tokens; the model has {tokens}")
    if sizes.n_ctx < task.n_positions:
        raise HopInterpError(f"the task needs {task.n_positions} positions; the model has {sizes.n_ctx}")


def processing(weights: Mapping[str, Tensor], normalization: str | None) -> str:
    """What was folded into weights or centred before we saw them, as far as they show it.

    Activations mean different things before and after such processing, so every intervention's result carries this line.
    """
    norms = {None: "no layer norm", "LN": "layer norm with its weights", "LNPre": "layer norm weights folded in"}
    writing = [weight for name, weight in weights.items() if name.endswith(("W_E", "W_O", "W_out"))]
    biases = [weight for name, weight in weights.items() if name.endswith("b_V")]
    return "; ".join(
        (
            norms.get(normalization, f"normalization {normalization}"),
            "W_U " + ("centred" if _centred(weights["unembed.W_U"]) else "not centred"),
            "writing weights " + ("centred" if all(map(_centred, writing)) else "not centred"),
            "b_V " + ("not zero" if any(bias.any() for bias in biases) else "zero (folded into b_O, or none)"),
        )
    )


def _centred(weight: Tensor) -> bool:
    """Whether rows have mean 0, as TransformerLens's `center_unembed` and `center_writing_weights` leave them."""
    return bool(weight.detach().mean(-1).abs().max() <= 1e-5 * weight.detach().abs().max())
