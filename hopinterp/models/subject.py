"""Subject: the one form in which everything above this room sees a model, whatever it is."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from numbers import Integral
from pathlib import Path
from typing import Any, SupportsIndex, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from hopinterp.errors import HopInterpError
from hopinterp.files import reason
from hopinterp.models import architectures, bridge, card
from hopinterp.models import gpt2 as gpt2  # importing it makes its architecture known
from hopinterp.models.fused import FusedTransformer
from hopinterp.models.hooks import SITES, HookFunction, Site, intervening, is_changed
from hopinterp.models.places import model_name
from hopinterp.models.spec import ModelSpec, check_fits, processing
from hopinterp.shown import Row, Shown, legible
from hopinterp.task import HopTask

ModelLike: TypeAlias = Any
"""What `Subject.of` takes: see there."""

_TOGETHER = 100

Logits = Float[Tensor, "batch position d_vocab"]
Tokens = Int[Tensor, "batch position"]


@dataclass(frozen=True, eq=False, repr=False)
class Subject(Shown):
    """A model as evidence sees it: sizes, logits, named activations, hooks that come off, an untrained twin.

    Activations go by TransformerLens's names (`blocks.0.hook_resid_post`), whatever the model calls them. Of a function
    there are logits alone; whatever else is asked for says so.

    Attributes:
        model: what was given, in the form that runs: a HookedTransformer, a TransformerBridge, a
            FusedTransformer, a function.
        weights: the same function over its own parameters, for passes that need the weights; None where hooks that were
            attached to the model, or features of it, forbid that.
        name: what it is called in results ("" if nobody named it).
        plain: its weights as they are without the hooks that were attached to it; None where they cannot be read.
        config: its sizes; None of a function.
    """

    model: Any
    weights: FusedTransformer | None
    name: str = ""
    plain: FusedTransformer | None = None
    config: Any = None

    @property
    def columns(self) -> list[str]:
        """Over `rows`."""
        return ["", "value"]

    @property
    def rows(self) -> list[Row]:
        """The sizes, where they are known."""
        names = ("n_layers", "d_model", "n_heads", "d_head", "d_mlp", "n_ctx", "d_vocab", "act_fn", "normalization_type")
        return [] if self.config is None else [(name, (str(getattr(self.config, name, "–")),)) for name in names]

    @property
    def reading(self) -> str:
        """What it is called, what was given, and whether its weights can be used."""
        if self.config is None:
            known = "logits alone are known"
        elif self.weights is not None:
            known = "its weights are known"
        else:
            known = "it runs as it is, with its hooks" if self.plain is not None else "it runs as it is"
        return f"{self.name or 'a model without a name'}: a {type(self.model).__name__}, {known}."

    @classmethod
    def of(cls, model: ModelLike, task: HopTask | None = None, *, n_heads: int | None = None, name: str = "") -> Subject:
        """The subject of a model.

        Args:
            model: a Subject; a FusedTransformer; TransformerLens's HookedTransformer or TransformerBridge; a module of an
                architecture that is known (`architectures`: GPT-2 of Hugging Face is), its state dict (with `n_heads`),
                its `save_pretrained` directory or a checkpoint file; a model directory or a shipped model's name; or,
                for behaviour alone, any function from tokens to logits. Of modules and files the weights are read now:
                what is done to a module later does not show.
            task: what it is to be asked; checked to fit.
            n_heads: where the source does not say it.

        Raises:
            HopInterpError: nothing that can be read as a model, or one too small for the task.
        """
        if isinstance(model, HopTask):
            raise HopInterpError("a HopTask was given where a model belongs: the order is (model, task)")
        if task is not None and not isinstance(task, HopTask):
            raise HopInterpError(f"the task is a {type(task).__name__}; it must be a HopTask: the order is (model, task)")
        found = model if isinstance(model, Subject) else _checked(_subject_of(model, task, n_heads))
        if found.config is not None:
            if n_heads is not None and n_heads != found.config.n_heads:
                raise HopInterpError(f"n_heads is {n_heads!r}; the model has {found.config.n_heads}")
            if task is not None:
                check_fits(found.config, task)
        # asked anew of a Subject, too: hooks may have come since it was made
        weights = None if found.plain is None or _is_hooked(found.model) else found.plain
        return cls(found.model, weights, legible(name or found.name), found.plain, found.config)

    @classmethod
    def asked(cls, model: ModelLike, task: HopTask) -> Subject:
        """The subject of a model that is asked a task. Raises HopInterpError as `of`, and where no task is given."""
        found = cls.of(model, task)
        if task is None:
            raise HopInterpError("the task is None; it must be a HopTask: the order is (model, task)")
        return found

    @property
    def sizes(self) -> Any:
        """n_layers, n_heads, d_model, d_head, d_mlp, n_ctx, d_vocab, attn_only, normalization_type.

        Raises:
            HopInterpError: a function has none that could be seen.
        """
        self.require_blocks("this")
        return self.config

    @property
    def device(self) -> torch.device:
        """Where the parameters are; of a function, where it says it is (`function.device`), or the CPU."""
        if self.plain is not None:
            return self.plain.device
        if isinstance(self.model, nn.Module):
            return next((p.device for p in self.model.parameters()), torch.device("cpu"))
        return torch.device(getattr(self.model, "device", "cpu"))

    @property
    def processing(self) -> str:
        """What was folded into the weights or centred, as far as they show it."""
        if self.plain is not None:
            return processing(self.plain.parameters, self.plain.spec.normalization_type)
        self.require_blocks("what was folded or centred")
        found = bridge.parameters_of(self.model) if bridge.is_bridge(self.model) else dict(self.model.named_parameters())
        return processing(found, self.sizes.normalization_type)

    def __call__(self, tokens: Tokens) -> Logits:
        """Logits, by the fastest pass that computes exactly what the model does."""
        found: Logits = (self.weights if self.weights is not None else self.model)(tokens)
        return found

    def run_with_cache(self, tokens: Tokens, names: Collection[str]) -> tuple[Logits, Mapping[str, Tensor]]:
        """Logits and the named activations. Raises HopInterpError for a name that the model does not have."""
        runs = self._with_names(names)
        logits, cache = runs.run_with_cache(tokens, names_filter=list(names))
        if missing := [name for name in names if name not in cache]:
            raise HopInterpError(f"the model has no activation {missing[0]!r}")
        return logits, {name: cache[name] for name in names}

    @contextmanager
    def hooks(self, hooks: Sequence[tuple[str, HookFunction]]) -> Iterator[Any]:
        """Inside, what is yielded runs with the hooks, (name, f(activation, hook) → activation); they come off
        however the inside ends. A model that has the hook points itself is what is yielded: it runs so for everybody.

        Raises:
            RuntimeError: a hook never fired: the run inside did not do what was asked.
            HopInterpError: an activation that the model does not have, or computes on without.
        """
        names = [name for name, _ in hooks]
        shown = [name for name in names if bridge.is_bridge(self.model) and bridge.reads_only(self.model, name)]
        if shown and self.weights is None:
            raise HopInterpError(f"this bridge shows {shown[0]}, but does not take it back: nothing would be changed")
        points = getattr(self.model, "hook_dict", ())
        runs = self.model if points and not shown and all(name in points for name in names) else self._with_names(names)
        with intervening(runs, hooks):
            yield runs

    def site(self, name: str) -> Site:
        """The site of a name, if the model has it.

        Raises:
            HopInterpError: no such site, or blocks that lack it (without MLPs there is no resid_mid and no mlp_out).
        """
        if name not in SITES:
            raise HopInterpError(f"site is {name!r}; it is one of {', '.join(SITES)}")
        if self.sizes.attn_only and name in ("resid_mid", "mlp_out"):
            raise HopInterpError(f"site is {name}; this model's blocks have none, for they have no MLP")
        self._with_names([SITES[name].at(0)])
        return SITES[name]

    def untrained(self, seed: int) -> Subject:
        """The same sizes with weights as they are before training.

        Raises:
            HopInterpError: a function, or a bridge with features of its own, of which none can be made.
        """
        if self.plain is not None:
            spec = self.plain.spec
            return Subject.of(FusedTransformer(spec, spec.initial_parameters(seed)).to(self.device))
        self.require_blocks("an untrained twin")
        if not bridge.is_lens(self.model, "HookedTransformer"):
            raise HopInterpError(f"no untrained twin can be made of a {type(self.model).__name__} with features of its own")
        config = copy.deepcopy(self.model.cfg)
        config.init_weights, config.seed = True, seed
        with torch.random.fork_rng(), warnings.catch_warnings():  # TransformerLens seeds the global generator
            warnings.filterwarnings("ignore", "HookedTransformer is deprecated", DeprecationWarning)
            return Subject.of(type(self.model)(config))

    def layers(self, layers: SupportsIndex | Iterable[SupportsIndex] | None = None) -> list[int]:
        """Block numbers: those given, checked; all for None.

        Raises:
            HopInterpError: a block that the model does not have.
        """
        every = range(self.sizes.n_layers)
        if layers is None:
            return list(every)
        chosen = list(layers) if isinstance(layers, Iterable) else [layers]
        for layer in chosen:
            if not isinstance(layer, Integral) or isinstance(layer, bool) or int(layer) not in every:
                raise HopInterpError(f"layer is {layer}; this model has 0 to {self.sizes.n_layers - 1}")
        return [int(layer) for layer in chosen]

    def at_once(self, positions: int, *, patterns: bool = False) -> int:
        """How many sequences of a length a pass may take together, so that it needs some 256 MB at most: 100, or fewer of
        long ones.

        Args:
            patterns: whether all blocks' attention patterns are kept.
        """
        if self.config is None:
            return _TOGETHER
        sizes = self.config
        hidden = 0 if sizes.attn_only else sizes.d_mlp
        numbers = int(positions * (12 * sizes.d_model + 3 * hidden + sizes.d_vocab))
        if patterns:
            numbers += int(3 * sizes.n_layers * sizes.n_heads * positions**2)
        return min(_TOGETHER, max(1, 2**26 // numbers))

    def weights_for(self, what: str) -> FusedTransformer:
        """The weights. Raises HopInterpError, saying what needs them, where there are none."""
        self.require_blocks(what)
        if self.weights is None:
            raise HopInterpError(
                f"{what} needs the model's weights in a plain architecture; this one runs by its hooks only"
            )
        return self.weights

    def require_blocks(self, what: str) -> None:
        """Raise HopInterpError, saying what needs them, where there are no blocks to look into."""
        if self.config is None:
            raise HopInterpError(f"{what} needs the model's blocks; a function gives only answers")

    def _with_names(self, names: Collection[str]) -> Any:
        """What runs with named activations: the weights, where they have all the names, else the model itself."""
        self.require_blocks("a named activation")
        if self.weights is not None and all(name in self.weights.hook_names for name in names):
            return self.weights
        known = getattr(self.model, "hook_names", None) or getattr(self.model, "hook_dict", None)
        if known is None:
            raise HopInterpError("a module with hooks of its own runs as it is; activations are not to be had by name")
        if missing := [name for name in names if name not in known]:
            raise HopInterpError(f"the model has no activation {missing[0]!r}")
        return self.model


def _is_hooked(model: Any) -> bool:
    """Whether hooks are attached to what runs. A function runs whatever it runs, and a module with hooks is one."""
    if isinstance(model, FusedTransformer):
        return model.is_hooked
    return not isinstance(model, nn.Module) or is_changed(model)


def _subject_of(given: Any, task: HopTask | None, n_heads: int | None) -> Subject:
    """The subject of whatever is no Subject yet."""
    if isinstance(given, FusedTransformer):
        return _of_weights(given)
    if isinstance(given, str | Path):
        return _of_weights(_at_path(given, n_heads), model_name(given))
    if isinstance(given, Mapping):
        return _of_weights(architectures.read(given, n_heads))
    if bridge.is_lens(given, "HookedTransformer"):
        return _of_hooked(given, _read_hooked)
    if bridge.is_bridge(given):
        return _of_hooked(given, _read_bridge)
    if isinstance(given, nn.Module) and (known := architectures.of_module(given)):
        found = architectures.read(given, n_heads)
        if not is_changed(given):
            return _of_weights(found)
        if given.training:
            raise HopInterpError(f"a {type(given).__name__} with hooks runs as it is; call its .eval() first")
        return Subject(partial(known.logits, given), None, "", found, found.spec)
    if callable(given):
        _check_function(given, task)
        return Subject(given, None)
    raise HopInterpError(f"a {type(given).__name__} is no model: {_KINDS}")


_KINDS = (
    "give a TransformerLens model, a module of an architecture that is known, its state dict or files, "
    "a model directory or shipped name, or a function from tokens to logits"
)


def _checked(found: Subject) -> Subject:
    """A subject whose numbers can be reckoned with. Raises HopInterpError where they are NaN, halves, or nowhere."""
    named = found.plain.parameters if found.plain is not None else {}
    if isinstance(found.model, FusedTransformer):
        found.model.spec.check_shapes(found.model.parameters)
    if isinstance(found.model, nn.Module):
        named = dict(found.model.named_parameters())
    for name, parameter in named.items():
        if parameter.is_meta:
            raise HopInterpError(f"{name} is on the meta device: the model has sizes, but no numbers")
        if parameter.dtype not in (torch.float32, torch.float64):
            raise HopInterpError(f"{name} is {parameter.dtype}; convert the model first: model.float()")
        if not parameter.isfinite().all():
            raise HopInterpError(f"{name} holds NaN or infinite numbers")
    return found


def _of_weights(found: FusedTransformer, name: str = "") -> Subject:
    return Subject(found, found, name, found, found.spec)


def _of_hooked(model: nn.Module, read: Callable[[Any], FusedTransformer | None]) -> Subject:
    """The subject of a TransformerLens model, whose own hooks must show in what it computes."""
    plain = read(model)
    return Subject(model, plain, "", plain, model.cfg if plain is None else plain.spec)


def _at_path(given: str | Path, n_heads: int | None) -> FusedTransformer:
    """What a path holds: a checkpoint file, a `save_pretrained` directory, else a model directory or a shipped name."""
    path = Path(given)
    try:
        is_foreign = path.is_file() or (path / "config.json").is_file()
    except (OSError, ValueError) as error:
        raise HopInterpError(f"cannot read {path} ({reason(error)})") from None
    if is_foreign:
        return architectures.read(path, n_heads)
    return card.load_fused(given)[0]


def _read_hooked(model: Any) -> FusedTransformer | None:
    """A HookedTransformer's weights, unless it has features that the fused pass does not compute."""
    try:
        return FusedTransformer.of(model)
    except HopInterpError:
        return None


def _read_bridge(model: Any) -> FusedTransformer | None:
    """A bridge's weights, unless it wraps a module that computes something else with them: it is asked."""
    try:
        parameters = bridge.parameters_of(model)
        normalization = (
            model.cfg.normalization_type if "ln_final.w" in parameters else _WITHOUT[model.cfg.normalization_type]
        )
        spec = ModelSpec.from_config(model.cfg, parameters["unembed.W_U"], normalization)
        spec.check_parameters(parameters)
    except (HopInterpError, KeyError, AttributeError):  # whatever else a bridge may wrap
        return None
    found = FusedTransformer(spec, parameters)
    if is_changed(model):  # then it cannot be asked
        return found
    return found if architectures.difference(model, model, found) <= architectures.CLOSE else None


_WITHOUT = {"LN": "LNPre", "LNPre": "LNPre", None: None}  # what a normalization is whose weights were folded away


def _check_function(given: Callable[..., Any], task: HopTask | None) -> None:
    """Raise HopInterpError unless something callable gives logits for tokens."""
    what = given.__name__ if hasattr(given, "__name__") else f"a {type(given).__name__}"
    device = (
        next((p.device for p in given.parameters()), "cpu")
        if isinstance(given, nn.Module)
        else getattr(given, "device", "cpu")
    )
    tokens = torch.zeros(1, 2, dtype=torch.long) if task is None else task.sample(1, seed=0).tokens
    try:
        with torch.no_grad():
            logits = given(tokens.to(device))
    except Exception as error:  # whatever was given may raise anything
        reason = " ".join(str(error).split())[:120]
        raise HopInterpError(f"{what} does not take tokens: {type(error).__name__} ({reason}); {_KINDS}") from error
    if (
        not isinstance(logits, Tensor)
        or logits.ndim != 3
        or logits.shape[:2] != tokens.shape
        or not logits.is_floating_point()
    ):
        got = f"shape {list(logits.shape)}" if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
        raise HopInterpError(
            f"{what} gives {got} for tokens {list(tokens.shape)}; a model gives logits [batch, position, token]"
        )
    if task is not None and logits.shape[2] < task.d_vocab:
        raise HopInterpError(f"the task needs {task.d_vocab} tokens; {what} gives logits of {logits.shape[2]}")
    if logits.isnan().any():
        raise HopInterpError(f"{what} gives NaN for tokens")
