"""Heads, attention, MLPs and whole blocks taken out of a run, and how much worse the answers get without."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, SupportsIndex, get_args

import torch
import xarray as xr
from jaxtyping import Float, Int
from torch import Tensor

from hopinterp.errors import HopInterpError
from hopinterp.evidence.datasets import described
from hopinterp.evidence.intervals import LEVEL, bootstrap_ratio
from hopinterp.evidence.patching.runs import in_one_pass
from hopinterp.models.hooks import SITES, HookFunction
from hopinterp.models.subject import ModelLike, Subject
from hopinterp.progress import Report, counted
from hopinterp.seeds import seeded
from hopinterp.task import Batch, HopTask

Kind = Literal["zero", "mean", "resample"]
KINDS = get_args(Kind)
Activation = Float[Tensor, "sequence position d"]
_BATCH = 50


@dataclass(frozen=True)
class Unit:
    """A part of one block: a head by its number, or "attn", "mlp" or "block" (both)."""

    layer: int
    part: int | str

    def check(self, sizes: Any) -> None:
        """Raise HopInterpError unless a model of these sizes has this part."""
        if not 0 <= self.layer < sizes.n_layers:
            raise HopInterpError(f"layer is {self.layer}; this model has 0 to {sizes.n_layers - 1}")
        if isinstance(self.part, int) and not 0 <= self.part < sizes.n_heads:
            raise HopInterpError(f"head is {self.part}; this model has 0 to {sizes.n_heads - 1}")
        if self.part not in (parts := [*range(sizes.n_heads), *components_of(sizes)]):
            raise HopInterpError(f"part is {self.part!r}; this model's blocks have {', '.join(map(str, parts))}")

    def sites_in(self, sizes: Any) -> tuple[str, ...]:
        """Which activations are what the part gives to the stream: a block gives attention's output and the MLP's."""
        if isinstance(self.part, int):
            return ("z",)
        both = ("attn_out",) if sizes.attn_only else ("attn_out", "mlp_out")
        return both if self.part == "block" else (f"{self.part}_out",)

    def of(self, cache: Mapping[str, Tensor], site: str) -> Activation:
        """What the part gives at a site, from a run's activations."""
        whole = cache[SITES[site].at(self.layer)]
        return whole[:, :, self.part] if isinstance(self.part, int) else whole


def components_of(sizes: Any) -> list[str]:
    """The parts of each block of a model besides its heads."""
    return ["attn", "block"] if sizes.attn_only else ["attn", "mlp", "block"]


@contextmanager
def ablated(
    model: ModelLike, layer: int, part: int | str, values: Mapping[str, Tensor] | None = None
) -> Iterator[Callable[..., Tensor]]:
    """Inside, the model runs without a part of one block; the hooks come off however the inside ends.

        with ablated(model, 2, 0):              # head 0 of block 2, its z set to zero
            logits = model(batch.tokens)

    Hooks go on the model that is given (a HookedTransformer, a TransformerBridge, a FusedTransformer), and whatever is
    measured of it inside shows them. Of any other, run what is given: `with ablated(model, 2, 0) as run: run(tokens)`.

    Args:
        part: a head's number, "attn", "mlp" or "block".
        values: what takes the place of the part's activations, by site (z, attn_out, mlp_out), and broadcasts to them;
            zero by default.

    Raises:
        HopInterpError: no such part.
        RuntimeError: no run was made inside, or the part's activations were already what was put in their place.
    """
    subject, unit = Subject.of(model), Unit(layer, part)
    unit.check(subject.sizes)
    with subject.hooks(_taking_out(subject, unit, values)) as run:
        yield run


def _taking_out(subject: Subject, unit: Unit, values: Mapping[str, Tensor] | None) -> list[tuple[str, HookFunction]]:
    """Hooks that put values (zero by default) in the place of what a part gives."""
    sites = unit.sites_in(subject.sizes)
    return [(SITES[site].at(unit.layer), _replacing(unit.part, None if values is None else values[site])) for site in sites]


def _replacing(part: int | str, value: Tensor | None) -> HookFunction:
    def hook_function(activation: Tensor, hook: Any) -> Tensor:
        result = activation.clone()
        place = result[:, :, part] if isinstance(part, int) else result
        before = place.clone()
        place.copy_(torch.zeros_like(place) if value is None else value.to(place).expand_as(place))
        if torch.equal(before, place):
            raise RuntimeError(f"the ablation at {hook.name} changed nothing")
        return result

    return hook_function


@torch.no_grad()
def ablate(
    model: ModelLike,
    task: HopTask,
    hops: SupportsIndex,
    *,
    kinds: Sequence[Kind] = KINDS,
    sequences: int = 50,
    seed: int = 0,
    report: Report | None = None,
) -> xr.Dataset:
    """How much err_k grows when one part of one block is taken out of the model.

    *zero* puts 0 in the place of what the part gives (a head's z; attention's or the MLP's output with its bias). *mean*
    puts its mean over as many other sequences with the same k, position by position, so that only what depends on the
    sequence is lost. *resample* puts what it gives on another such sequence, drawn for each: the part still speaks, about
    something else, and what follows sees only activations that it may know.

    Args:
        hops: k.
        sequences: how many are answered; as many others serve for mean and resample.
        report: called after each part.

    Returns:
        `error` [kind, layer, component], err_k without attn, mlp or block (both); `change`, that less the whole model's
        `whole_error`, with `low`, `high` (95%, bootstrap over sequences). `head_error`, `head_change`, `head_low`,
        `head_high` [kind, layer, head], the same of each head.

    Raises:
        HopInterpError: k or a kind that does not exist.
        RuntimeError: an ablation changed nothing, though the part says something else on these sequences.
    """
    subject, hops = in_one_pass(Subject.asked(model, task)), task.hop_count(hops)
    if not kinds or (foreign := set(kinds) - set(KINDS)):
        raise HopInterpError(f"kinds are {', '.join(sorted(foreign)) if kinds else 'none'}; they are {', '.join(KINDS)}")
    generator = seeded(seed)
    batch, other = (task.sample(sequences, hops=hops, generator=generator, device=subject.device) for _ in range(2))
    layers, heads, components = subject.layers(), list(range(subject.sizes.n_heads)), components_of(subject.sizes)
    wrong, whole = _wrong_without(subject, batch, other, [*heads, *components], kinds, report)
    asked = batch.scored.sum(1).double().cpu()
    found = _rates(wrong[:, :, len(heads) :], whole, asked, seed, "component")
    found = found.merge(_rates(wrong[:, :, : len(heads)], whole, asked, seed, "head", "head_"))
    found["whole_error"] = float(whole.sum() / asked.sum())
    found = found.assign_coords(kind=list(kinds), layer=layers, component=components, head=heads)
    settings: dict[str, Any] = {"hops": hops, "sequences": sequences, "level": LEVEL, "weights": subject.processing}
    return described(found, subject, task, seed=seed, **settings)


def _wrong_without(
    subject: Subject,
    batch: Batch,
    other: Batch,
    parts: Sequence[int | str],
    kinds: Sequence[Kind],
    report: Report | None,
) -> tuple[Float[Tensor, "kind layer part sequence"], Float[Tensor, " sequence"]]:
    """Wrong answers of each sequence without each part of each block; and with all of them."""
    sizes = subject.sizes
    names = [SITES[site].at(layer) for site in ("z", *Unit(0, "block").sites_in(sizes)) for layer in subject.layers()]
    own, others = (_activations(subject, tokens, names) for tokens in (batch.tokens, other.tokens))
    whole = _wrong(subject, batch)
    wrong = torch.zeros(len(kinds), sizes.n_layers, len(parts), len(batch), dtype=torch.float64)
    advance = counted("ablating", sizes.n_layers * len(parts), report)
    for layer in subject.layers():
        for n, part in enumerate(parts):
            unit = Unit(layer, part)
            said, elsewhere = ({site: unit.of(cache, site) for site in unit.sites_in(sizes)} for cache in (own, others))
            for m, kind in enumerate(kinds):
                stand_in = {site: _stand_in(kind, activation) for site, activation in elsewhere.items()}
                # a part that is silent anyway (an unused head of a construction) is no failed ablation
                silent = all(torch.equal(said[site], value.expand_as(said[site])) for site, value in stand_in.items())
                wrong[m, layer, n] = whole if silent else _wrong(subject, batch, unit, stand_in)
            advance(1)
    return wrong, whole


def _activations(
    subject: Subject, tokens: Int[Tensor, "sequence position"], names: Sequence[str]
) -> dict[str, Float[Tensor, "sequence position ..."]]:
    """The named activations of a run."""
    caches = [subject.run_with_cache(part, names)[1] for part in tokens.split(_BATCH)]
    return {name: torch.cat([cache[name] for cache in caches]) for name in names}


def _stand_in(kind: Kind, activation: Activation) -> Float[Tensor, "one_or_sequence position d"]:
    """What is put in a part's place, from what it gives on other sequences: the same in all, or in each its own."""
    if kind == "zero":
        return torch.zeros_like(activation[:1])
    return activation.mean(0, keepdim=True) if kind == "mean" else activation


def _wrong(
    subject: Subject, batch: Batch, unit: Unit | None = None, stand_in: Mapping[str, Tensor] | None = None
) -> Float[Tensor, " sequence"]:
    """Wrong answers of each sequence, without a part where one is named."""
    counts = []
    for rows in torch.arange(len(batch), device=batch.tokens.device).split(_BATCH):
        if unit is None or stand_in is None:
            logits = subject(batch.tokens[rows])
        else:
            values = {site: x if len(x) == 1 else x[rows] for site, x in stand_in.items()}
            with subject.hooks(_taking_out(subject, unit, values)) as run:
                logits = run(batch.tokens[rows])
        counts.append(((logits.argmax(-1) != batch.labels[rows]) & batch.scored[rows]).sum(1).double().cpu())
    return torch.cat(counts)


def _rates(
    wrong: Float[Tensor, "kind layer part sequence"],
    whole: Float[Tensor, " sequence"],
    asked: Float[Tensor, " sequence"],
    seed: int,
    dim: str,
    prefix: str = "",
) -> xr.Dataset:
    """Rates over all answered positions, and intervals over sequences."""
    more = (wrong - whole).movedim(-1, 0)
    low, high = bootstrap_ratio(more, asked[:, None, None, None].expand_as(more), seed)
    error = wrong.sum(-1) / asked.sum()
    values = {"error": error, "change": error - whole.sum() / asked.sum(), "low": low, "high": high}
    return xr.Dataset({prefix + name: (("kind", "layer", dim), value.numpy()) for name, value in values.items()})
