"""Subject: the one form in which everything above this room sees a model, whatever it is."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hopinterp.errors import HopInterpError
from hopinterp.models.fused import FusedTransformer
from hopinterp.models.hooks import HookFunction, intervening, weights_note
from hopinterp.models.spec import check_fits
from hopinterp.task import HopTask

ModelLike: TypeAlias = Any
"""What `Subject.of` takes: see there."""

Logits = Float[Tensor, "batch position d_vocab"]


@dataclass(frozen=True, eq=False)
class Subject:
    """A model as evidence sees it: sizes, logits, named activations, hooks that come off, an untrained twin.

    Activations go by TransformerLens's names (`blocks.0.hook_resid_post`), whatever the model calls them.

    Attributes:
        sizes: n_layers, n_heads, d_model, d_head, d_mlp, n_ctx, d_vocab, attn_only, normalization_type.
        weights: the same function over its own parameters, for passes that need the weights; None where hooks that were
            attached to the model, or features of it, forbid that.
        name: what it is called in results ("" if nobody named it).
    """

    model: Any
    sizes: Any
    weights: FusedTransformer | None
    name: str = ""

    @classmethod
    def of(cls, model: ModelLike, task: HopTask | None = None) -> Subject:
        """The subject of a model.

        Args:
            model: a Subject, a HookedTransformer, a FusedTransformer, …
            task: what it is to be asked; checked to fit.

        Raises:
            HopInterpError: nothing that can be read as a model, or one too small for the task.
        """
        if isinstance(model, Subject):
            found = model
        elif isinstance(model, FusedTransformer):
            found = cls(model, model.spec, model)
        else:
            found = cls(model, model.cfg, _weights_of(model))
        if task is not None:
            check_fits(found.sizes, task)
        return found

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.weights.device if self.weights is not None else next(self.model.parameters()).device

    @property
    def processing(self) -> str:
        """What was folded into the weights or centred, as far as they show it."""
        return weights_note(self.weights if self.weights is not None else self.model)

    def __call__(self, tokens: Int[Tensor, "batch position"]) -> Logits:
        """Logits, by the fastest pass that computes exactly what the model does."""
        found: Logits = (self.weights if self.weights is not None else self.model)(tokens)
        return found

    def run_with_cache(
        self, tokens: Int[Tensor, "batch position"], names: Collection[str]
    ) -> tuple[Logits, Mapping[str, Tensor]]:
        """Logits and the named activations. Raises HopInterpError for a name that the model does not have."""
        fast = self.weights is not None and all(name.endswith(("hook_resid_post", "hook_pattern")) for name in names)
        runs = self.weights if fast else self._hooked
        logits, cache = runs.run_with_cache(tokens, names_filter=list(names))  # type: ignore[union-attr]
        return logits, cache

    @contextmanager
    def hooks(self, hooks: Sequence[tuple[str, HookFunction]]) -> Iterator[Any]:
        """Inside, what is yielded runs with the hooks, (name, f(activation, hook) → activation); they come off
        however the inside ends.

        Raises:
            RuntimeError: a hook never fired: the run inside did not do what was asked.
        """
        with intervening(self._hooked, hooks):
            yield self._hooked

    def untrained(self, seed: int) -> Subject:
        """The same sizes with weights as they are before training."""
        if self.weights is not None:
            spec = self.weights.spec
            return Subject.of(FusedTransformer(spec, spec.initial_parameters(seed)).to(self.device))
        from transformer_lens import HookedTransformer

        config = copy.deepcopy(self.model.cfg)
        config.init_weights, config.seed = True, seed
        with torch.random.fork_rng(), warnings.catch_warnings():  # TransformerLens seeds the global generator
            warnings.filterwarnings("ignore", "HookedTransformer is deprecated", DeprecationWarning)
            return Subject.of(HookedTransformer(config))

    def layers(self, layers: int | Iterable[int] | None = None) -> list[int]:
        """Block numbers: those given, checked; all for None.

        Raises:
            HopInterpError: a block that the model does not have.
        """
        every = range(self.sizes.n_layers)
        chosen = list(every) if layers is None else [layers] if isinstance(layers, int) else [int(n) for n in layers]
        for layer in chosen:
            if layer not in every:
                raise HopInterpError(f"layer is {layer}; this model has 0 to {self.sizes.n_layers - 1}")
        return chosen

    def weights_for(self, what: str) -> FusedTransformer:
        """The weights. Raises HopInterpError, saying what needs them, where there are none."""
        if self.weights is None:
            raise HopInterpError(
                f"{what} needs the model's weights in a plain architecture; this one runs by its hooks only"
            )
        return self.weights

    @property
    def _hooked(self) -> Any:
        if isinstance(self.model, FusedTransformer):
            return self.model.spec.build(self.model.parameters, self.model.device)
        return self.model


def _weights_of(model: Any) -> FusedTransformer | None:
    """A HookedTransformer's fused twin, unless hooks of any kind or unusual features must show in what it computes."""
    if any(module._forward_hooks or module._forward_pre_hooks for module in model.modules()):
        return None
    try:
        return FusedTransformer.of(model)
    except HopInterpError:
        return None
