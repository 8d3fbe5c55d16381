"""Hook points: where evidence reaches into a model, hooks that say so when they did nothing, and hooks of the user's own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from jaxtyping import Bool, Int
from torch import Tensor, nn

from hopinterp.models.blocks import HookFunction as HookFunction

_ROUNDING = 1e-6  # of float32, some units in the last place


@dataclass(frozen=True)
class Site:
    """One kind of activation, and where in it a position and a head are found.

    Attributes:
        name: TransformerLens's short name.
        hook: what follows `blocks.{layer}.` in its full name.
        per_head: whether it has a head axis.
    """

    name: str
    hook: str
    per_head: bool = False

    def at(self, layer: int) -> str:
        """The full name of a block's hook point."""
        return f"blocks.{layer}.{self.hook}"

    def index(
        self, rows: Int[Tensor, " run"], positions: Int[Tensor, " run"] | None, heads: Int[Tensor, " run"] | None
    ) -> tuple[Any, ...]:
        """Index of one position (all of them for None) and one head of each row, in an activation of this kind.

        Activations are [batch, position, …] or [batch, position, head, …]; a pattern is [batch, head, query, key], and its
        position is the query.
        """
        where = slice(None) if positions is None else positions
        if not self.per_head:
            return (rows, where)
        return (rows, heads, where) if self.name == "pattern" else (rows, where, heads)

    def heads(self, activation: Tensor) -> int:
        """How many heads an activation of this kind has; 1 where it has no such axis."""
        return activation.shape[1 if self.name == "pattern" else 2] if self.per_head else 1


_ALL = [Site(name, f"hook_{name}") for name in ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")]
_ALL += [Site(name, f"attn.hook_{name}", per_head=True) for name in ("z", "q", "k", "v", "pattern")]
SITES = {site.name: site for site in _ALL}
"""Every site by name: the residual stream, what attention and MLP add to it, and the insides of each head."""


def resid_post(layer: int) -> str:
    """Name of a block's output."""
    return SITES["resid_post"].at(layer)


def pattern(layer: int) -> str:
    """Name of a block's attention pattern."""
    return SITES["pattern"].at(layer)


@contextmanager
def intervening(model: Any, hooks: Sequence[tuple[str, HookFunction]]) -> Iterator[None]:
    """`model.hooks`, as every kind of model here has it: the hooks come off whatever happens; and each must have fired by
    the end.

    Raises:
        RuntimeError: a hook was never reached: the run inside did not do what was asked.
    """
    fired = [0] * len(hooks)

    def counting(number: int, function: HookFunction) -> HookFunction:
        def call(activation: Tensor, hook: Any) -> Any:
            fired[number] += 1
            return function(activation, hook=hook)

        return call

    with model.hooks(fwd_hooks=[(name, counting(n, function)) for n, (name, function) in enumerate(hooks)]):
        yield
    if 0 in fired:
        raise RuntimeError(f"the hook at {hooks[fired.index(0)][0]} never fired: nothing was changed")


@dataclass(frozen=True, eq=False)
class Overwrite:
    """A hook that puts values into some places of an activation, and checks that this changed every one of them.

    Attributes:
        index: of the places, as `Site.index` gives it.
        values: what is written; the first axis counts the places.
    """

    index: tuple[Any, ...]
    values: Tensor

    def __call__(self, activation: Tensor, hook: Any) -> Tensor:
        there = activation[self.index]
        unmoved = (there == self.values).flatten(1).all(1)
        if unmoved.any():
            raise RuntimeError(f"patching {int(unmoved.sum())} of {len(unmoved)} places at {hook.name} changed nothing")
        result = activation.clone()
        result[self.index] = self.values.to(activation.dtype)
        return result


def changed(before: Tensor, after: Tensor) -> Bool[Tensor, " place"]:
    """Which entries along the first axis differ by more than rounding (of the largest number around)."""
    noise = _ROUNDING * max(float(before.abs().max()), float(after.abs().max())) if len(before) else 0.0
    return ((before - after).abs() > noise).flatten(1).any(1)


def is_changed(module: nn.Module) -> bool:
    """Whether somebody attached hooks of any kind to a module or to a part of it: what they do must show in all that is
    reported. Those that TransformerLens and transformers attach to their own models do not count."""
    parts = list(module.modules())
    if isinstance(wrapped := getattr(module, "original_model", None), nn.Module):  # a bridge registers it as no part
        parts += wrapped.modules()
    for part in parts:
        if getattr(part, "fwd_hooks", None):  # a TransformerLens HookPoint's list of what users gave it
            return True
        hooks = (*part._forward_hooks.values(), *part._forward_pre_hooks.values())
        if any(not _comes_with(hook) for hook in hooks):
            return True
    return False


def _comes_with(hook: Any) -> bool:
    """Whether a hook function is a library's own."""
    function = getattr(hook, "func", hook)  # of a functools.partial
    return str(getattr(function, "__module__", "")).startswith(("transformer_lens.", "transformers."))
