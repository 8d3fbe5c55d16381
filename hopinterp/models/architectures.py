"""Foreign models: which of their tensors is which of ours, as tables of names, and what is read by such a table.

An architecture costs a table and a test. `register(Architecture(…))` makes every function take its modules, its state
dicts and what `save_pretrained` wrote of them; `gpt2.py` is the one that is there already.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from einops import EinopsError, rearrange
from torch import Tensor, nn

from hopinterp.errors import HopInterpError
from hopinterp.files import is_there, read_file, read_json, reason
from hopinterp.models import torch_files
from hopinterp.models.fused import FusedTransformer
from hopinterp.models.hooks import is_changed
from hopinterp.models.places import CARD
from hopinterp.models.spec import ModelSpec

CLOSE = 1e-4  # of the largest logit, in float32: deep models with large weights round by some 1e-5
_FLOATING = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
_CHECKED = 24  # tokens of each of the two sequences on which a module and what was read of it must agree


@dataclass(frozen=True)
class Stored:
    """Where a foreign state dict keeps one of our parameters.

    Attributes:
        name: its name there; `{layer}` stands for the block's number.
        layout: an einops pattern from its axes to ours, where `h` is the number of heads; "" if they are the same.
        part: where one tensor holds several of ours: which entry of the first axis that the layout makes, `parts`.
        parts: how many it holds.
    """

    name: str
    layout: str = ""
    part: int | None = None
    parts: int = 3

    def read(self, state: Mapping[str, Tensor], layer: str, n_heads: int, model: str) -> Tensor:
        """Our parameter. Raises HopInterpError where the tensor is missing, or has axes that the layout does not fit."""
        name = self.name.format(layer=layer)
        if name not in state:
            raise HopInterpError(f"the checkpoint lacks {model}'s {name}")
        tensor = state[name]
        sizes = {
            axis: size for axis, size in (("h", n_heads), ("parts", self.parts)) if re.search(rf"\b{axis}\b", self.layout)
        }
        try:
            found = rearrange(tensor, self.layout, **sizes) if self.layout else tensor
        except EinopsError:
            raise HopInterpError(
                f"{name} has shape {list(tensor.shape)}; {model}'s is {self.layout.split('->')[0].strip()!r}, {sizes}"
            ) from None
        return found if self.part is None else found[self.part]

    def write(self, *ours: Tensor) -> Tensor:
        """The inverse of `read`: their tensor, of our parameter or, where it holds several, of all of them in order."""
        found = ours[0] if self.part is None else torch.stack(ours)
        theirs, _, made = self.layout.partition("->")
        return (rearrange(found, f"{made} -> {theirs}") if self.layout else found).contiguous()


def _called(module: nn.Module, tokens: Tensor) -> Tensor:
    found: Tensor = module(tokens)
    return found


@dataclass(frozen=True)
class Architecture:
    """How models of one foreign architecture become ours.

    Attributes:
        name: what errors call it.
        modules: names of its module classes.
        names: our parameters (TransformerLens's names, `{layer}` for the block's number) → theirs, as a `Stored` or, where
            the axes are the same, as a name. Biases that it has none of are left out (zero), and so are its layer norms
            and its MLPs. Where the state dict has no unembedding, the logits are the first coordinates of the last layer
            norm (W_U is the identity).
        sizes: from a module, or from the mapping that its config.json holds, the ModelSpec fields that shapes do not show:
            n_heads, act_fn, eps, … `tied=True` says that W_E is also the unembedding.
        defaults: the same fields where there is nothing but tensors.
        logits: (module, tokens) → logits, if calling it does not give them.
        ignored: a regular expression of names, in the state dict, of what holds nothing learned.
    """

    name: str
    modules: tuple[str, ...]
    names: Mapping[str, str | Stored]
    sizes: Callable[[Any], Mapping[str, Any]]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    logits: Callable[[nn.Module, Tensor], Tensor] = _called
    ignored: str = r"(?!)"

    def __post_init__(self) -> None:
        known = {re.sub(r"\.0\.", ".{layer}.", name) for name in ModelSpec(1).parameter_shapes()}
        if foreign := self.names.keys() - known:
            raise HopInterpError(f"{self.name}'s table names {min(foreign)!r}, which is none of {', '.join(sorted(known))}")
        if missing := {"embed.W_E", "pos_embed.W_pos", "blocks.{layer}.attn.W_Q"} - self.names.keys():
            raise HopInterpError(f"{self.name}'s table lacks {min(missing)}")

    def stored(self, name: str) -> Stored | None:
        """Where one of our parameters is kept, by its name in the table; None where the architecture has none."""
        entry = self.names.get(name)
        return Stored(entry) if isinstance(entry, str) else entry

    @property
    def anchor(self) -> str:
        """The name of its token embedding, by which a state dict is known and its prefix found."""
        entry = self.names["embed.W_E"]
        return entry if isinstance(entry, str) else entry.name

    def anchors(self, state: Mapping[str, Tensor]) -> list[str]:
        """The tensors of a state dict that may be the token embedding, under whatever prefix."""
        return [name for name in state if name == self.anchor or name.endswith("." + self.anchor)]


ARCHITECTURES: dict[str, Architecture] = {}
"""Every architecture that can be read, by name."""


def register(architecture: Architecture) -> Architecture:
    """Make an architecture known: from now on its modules and state dicts are models."""
    ARCHITECTURES[architecture.name] = architecture
    return architecture


def of_module(module: object) -> Architecture | None:
    """The architecture of a module, by the names of its classes."""
    classes = {cls.__name__ for cls in type(module).__mro__}
    return next((known for known in ARCHITECTURES.values() if classes & {*known.modules}), None)


def read(source: object, n_heads: int | None = None, act_fn: str | None = None) -> FusedTransformer:
    """A foreign model's weights as ours: of a module, of a state dict, of what `save_pretrained` wrote, or of a file.

    A module is run beside what was read of it, on a few tokens: a table that is wrong does not pass for a model.

    Args:
        n_heads: where neither a module nor a config.json says it: shapes do not show it.
        act_fn: likewise.

    Raises:
        HopInterpError: no architecture that is known, tensors that do not fit its table, sizes that are missing or
            contradict what the source says of itself, or logits that are not the module's.
    """
    given = {name: value for name, value in (("n_heads", n_heads), ("act_fn", act_fn)) if value is not None}
    if not isinstance(source, nn.Module):
        state, config = (dict(source), None) if isinstance(source, Mapping) else _from_disk(Path(str(source)))
        architecture = _of_state(state, config)
        return convert(architecture, state, _sizes(architecture, config, given))
    found = of_module(source)
    if found is None:
        raise HopInterpError(f"{type(source).__name__} is no architecture that is known ({', '.join(ARCHITECTURES)})")
    model = convert(found, source.state_dict(), _sizes(found, source, given))
    if not is_changed(source):
        _check_same(found, source, model)
    return model


def _sizes(architecture: Architecture, source: object, given: Mapping[str, Any]) -> dict[str, Any]:
    """What shapes do not show: as the source says, else as given, else by default."""
    said = {} if source is None else dict(architecture.sizes(source))
    for name, value in given.items():
        if said.get(name, value) != value:
            raise HopInterpError(f"{name} is {value!r}; the model's own config says {said[name]!r}")
    return {**architecture.defaults, **given, **said}


def convert(architecture: Architecture, state: Mapping[str, Tensor], sizes: Mapping[str, Any]) -> FusedTransformer:
    """A state dict under our names; depth and widths are read off the shapes, and any prefix is taken off.

    Raises:
        HopInterpError: not the architecture's state dict, sizes that do not fit each other, numbers that are not finite.
    """
    if "n_heads" not in sizes:
        raise HopInterpError("the shapes of a state dict do not show the number of heads: give it (n_heads=4; --heads 4)")
    tied = dict(sizes).pop("tied", False)
    state = _strip_prefix(architecture, state)
    unembed = architecture.stored("unembed.W_U")
    if tied and unembed and unembed.name not in state:
        state[unembed.name] = state[architecture.anchor]
    spec = _spec(architecture, state, {name: value for name, value in sizes.items() if name != "tied"})
    device = state[architecture.anchor].device
    parameters, used = {}, set()
    for ours, shape in spec.parameter_shapes().items():
        layer = ours.split(".")[1] if ours.startswith("blocks.") else ""
        stored = architecture.stored(ours.replace(f"blocks.{layer}.", "blocks.{layer}.", 1) if layer else ours)
        if ours == "unembed.W_U" and spec.unembed == "identity":
            parameters[ours] = torch.eye(*shape, device=device)
        elif stored is None:
            parameters[ours] = torch.zeros(shape, device=device)
        else:
            used.add(name := stored.name.format(layer=layer))
            tensor = stored.read(state, layer, spec.n_heads, architecture.name)
            if tensor.dtype not in _FLOATING or tensor.is_meta:
                raise HopInterpError(f"{name} is {tensor.dtype} on {tensor.device}; weights are floating-point numbers")
            tensor = tensor.float()
            if tensor.shape != shape:
                raise HopInterpError(f"{name} has shape {list(state[name].shape)}; as {ours} it must give {list(shape)}")
            parameters[ours] = tensor.contiguous()
    if left := state.keys() - used:
        raise HopInterpError(
            f"the checkpoint has {len(left)} tensors that are not {architecture.name}'s, the first is {min(left)!r}"
        )
    spec.check_parameters(parameters)
    return FusedTransformer(spec, parameters)


def state_dict(architecture: Architecture, model: FusedTransformer) -> dict[str, Tensor]:
    """The inverse of `convert`: a model under the architecture's names.

    Raises:
        HopInterpError: the model has a parameter that the architecture lacks, and it is not zero.
    """
    kept: dict[str, list[tuple[int, Stored, Tensor]]] = {}
    for ours, tensor in model.parameters.items():
        if ours == "unembed.W_U" and model.spec.unembed == "identity":
            continue
        layer = ours.split(".")[1] if ours.startswith("blocks.") else ""
        stored = architecture.stored(ours.replace(f"blocks.{layer}.", "blocks.{layer}.", 1) if layer else ours)
        if stored is not None:
            kept.setdefault(stored.name.format(layer=layer), []).append((stored.part or 0, stored, tensor.detach().cpu()))
        elif tensor.any():
            raise HopInterpError(f"{architecture.name} has no {ours}, and this model's is not zero")
    ordered = {name: sorted(parts, key=lambda part: part[0]) for name, parts in kept.items()}
    return {name: parts[0][1].write(*(tensor for *_, tensor in parts)) for name, parts in ordered.items()}


def _spec(architecture: Architecture, state: Mapping[str, Tensor], sizes: Mapping[str, Any]) -> ModelSpec:
    """The spec of a state dict without prefix."""

    def shape(ours: str) -> tuple[int, ...] | None:
        stored = architecture.stored(ours)
        if stored is None or stored.name.format(layer=0) not in state:
            return None
        return tuple(stored.read(state, "0", sizes["n_heads"], architecture.name).shape)

    embed, positions = shape("embed.W_E"), shape("pos_embed.W_pos")
    if embed is None or positions is None or len(embed) != 2 or len(positions) != 2:
        wpe = architecture.stored("pos_embed.W_pos")
        raise HopInterpError(f"the checkpoint lacks {architecture.name}'s {architecture.anchor} and {wpe and wpe.name}")
    query = architecture.stored("blocks.{layer}.attn.W_Q")
    assert query is not None
    numbered = re.compile(re.escape(query.name).replace(r"\{layer\}", r"(\d+)"))
    layers = [int(match[1]) for name in state if (match := numbered.fullmatch(name))]
    hidden = shape("blocks.{layer}.mlp.W_in")
    seen = {
        "n_layers": 1 + max(layers, default=0),
        "d_model": embed[1],
        "d_mlp": hidden[-1] if hidden else None,
        "n_ctx": positions[0],
        "d_vocab": embed[0],
        "normalization_type": "LN" if "ln_final.w" in architecture.names else None,
        "attn_only": "blocks.{layer}.mlp.W_in" not in architecture.names,
        "unembed": "identity" if shape("unembed.W_U") is None else "learned",
    }
    return ModelSpec(**{**seen, **sizes})


def _strip_prefix(architecture: Architecture, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict's tensors under the table's names; an unembedding may stand beside the rest's prefix."""
    anchors = architecture.anchors(state)
    if len(anchors) != 1:
        raise HopInterpError(
            f"not a {architecture.name} state dict: it has {len(anchors)} tensors named {architecture.anchor} "
            f"(its names: {', '.join(list(state)[:3])}, …)"
        )
    prefix, unembed = anchors[0][: -len(architecture.anchor)], architecture.stored("unembed.W_U")
    found = {}
    for name, tensor in state.items():
        if unembed and f".{name}".endswith(f".{unembed.name}"):
            found[unembed.name] = tensor
        elif not name.startswith(prefix):
            raise HopInterpError(f"the checkpoint has {name!r} beside the model under {prefix!r}")
        elif not re.fullmatch(architecture.ignored, name[len(prefix) :]):
            found[name[len(prefix) :]] = tensor
    return found


def _check_same(architecture: Architecture, module: nn.Module, model: FusedTransformer) -> None:
    """Raise HopInterpError unless a module and what was read of it give the same logits."""
    precise = all(p.dtype in (torch.float32, torch.float64) for p in module.parameters())
    far = difference(module, partial(architecture.logits, module), model)
    if far > (CLOSE if precise else 5e-2):
        raise HopInterpError(
            f"{type(module).__name__} does not compute what {architecture.name}'s table says: "
            + (f"logits differ by {far:.2g} of the largest" if far < math.inf else "its logits have another shape")
        )


@torch.no_grad()
def difference(module: nn.Module, logits: Callable[[Tensor], Tensor], model: FusedTransformer) -> float:
    """How far a module's logits, in eval mode, are from those of the weights that were read of it, on some tokens, in
    parts of the largest; infinite where their shapes differ or they are not finite."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(model.spec.d_vocab, (2, min(_CHECKED, model.spec.n_ctx)), generator=generator).to(model.device)
    training = module.training
    try:
        module.eval()
        theirs = logits(tokens).float()
    finally:
        module.train(training)
    ours = model(tokens)
    if theirs.shape != ours.shape or not theirs.isfinite().all():
        return math.inf
    return float((theirs - ours).abs().max() / theirs.abs().max().clamp(min=1e-12))


def _of_state(state: Mapping[Any, Any], config: Mapping[str, Any] | None) -> Architecture:
    """The architecture of a state dict: the one that its config names, or whose token embedding it has."""
    if not state or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise HopInterpError("a mapping is read as a state dict, from names to tensors; this one holds other things")
    named = {*(config or {}).get("architectures", ())}
    fitting = [a for a in ARCHITECTURES.values() if named & {*a.modules}]
    fitting = fitting or [a for a in ARCHITECTURES.values() if len(a.anchors(state)) == 1]
    if not fitting:
        known, sample = ", ".join(ARCHITECTURES), ", ".join(map(str, list(state)[:3]))
        raise HopInterpError(f"the state dict is of no architecture that is known ({known}); its names: {sample}, …")
    return fitting[0]


def _from_disk(path: Path) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    """The tensors of a checkpoint file or of a `save_pretrained` directory, and the config.json beside them, if any."""
    try:
        is_folder = path.is_dir()
        folder = path if is_folder else path.parent
        kept = [name for name in ("model.safetensors", "pytorch_model.bin") if (folder / name).is_file()]
    except (OSError, ValueError) as error:
        raise HopInterpError(f"cannot read {path} ({reason(error)})") from None
    if is_folder and not kept:
        raise HopInterpError(f"{path} holds neither model.safetensors nor pytorch_model.bin")
    if is_folder and is_there(folder / CARD):
        raise HopInterpError(f"{path} is a model directory already: name it wherever a model is wanted")
    state = read_state_dict(folder / kept[0] if is_folder else path)
    config = config_of(folder)
    if not isinstance(config, dict) or "architectures" not in config:
        return state, None
    named = config["architectures"]
    if not isinstance(named, list) or not all(isinstance(name, str) for name in named):
        raise HopInterpError(f"{folder / 'config.json'} has architectures {named!r:.80}; they are a list of names")
    return state, config


def config_of(source: object) -> Any:
    """What a module's config holds, or the config.json in a directory or beside a file; None where there is none."""
    if isinstance(source, nn.Module):
        said = getattr(getattr(source, "config", None), "to_dict", None)
        return None if said is None else said()
    if not isinstance(source, str | Path):
        return None
    path = Path(source)
    place = (path if path.is_dir() else path.parent) / "config.json"
    return read_json(place) if is_there(place) else None


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Tensors of a `torch.save`d state dict or of a safetensors file, on the CPU. Nothing is unpickled but tensors.

    Raises:
        HopInterpError: no such file, damaged, not a state dict, or more than tensors (see `torch_files.unpack`).
    """
    path = Path(path)
    data = read_file(path)
    if path.suffix == ".safetensors":
        try:
            state: Any = safetensors.torch.load(data)
        except Exception as error:  # safetensors raises several kinds on files that are not its own
            why = " ".join(str(error).split())[:120] or type(error).__name__
            raise HopInterpError(f"{path} is no safetensors file, or is truncated ({why})") from None
    else:
        state = torch_files.unpack(data, path)
    if not isinstance(state, Mapping) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise HopInterpError(f"{path} holds no state dict (a mapping from names to tensors)")
    if wrong := [name for name in state if not isinstance(name, str)]:
        raise HopInterpError(f"{path} holds no state dict: {wrong[0]!r:.40} is no name")
    return dict(state)
