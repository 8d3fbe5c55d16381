"""The fuse box: heads, attention, MLPs and whole blocks taken out of a run, and how much worse the answers get without."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
import xarray as xr
from jaxtyping import Float, Int
from torch import Tensor

from hopinterp.errors import HopInterpError
from hopinterp.evidence.intervals import LEVEL, bootstrap_ratio
from hopinterp.evidence.patching.runs import Report
from hopinterp.models.fused import FusedTransformer, device_of
from hopinterp.models.hooks import SITES, HookFunction, hooked, intervening, weights_note
from hopinterp.task import Batch, HopTask

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

Kind = Literal["zero", "mean", "resample"]
KINDS = get_args(Kind)
_BATCH = 50


@dataclass(frozen=True)
class Unit:
    """A part of one block: a head by its number, or "attn", "mlp" or "block" (both)."""

    layer: int
    part: int | str

    def check(self, model: HookedTransformer) -> None:
        """Raise HopInterpError unless the model has this part."""
        config: Any = model.cfg
        if not 0 <= self.layer < config.n_layers:
            raise HopInterpError(f"layer is {self.layer}; this model has 0 to {config.n_layers - 1}")
        if isinstance(self.part, int) and not 0 <= self.part < config.n_heads:
            raise HopInterpError(f"head is {self.part}; this model has 0 to {config.n_heads - 1}")
        if self.part not in parts_of(model):
            raise HopInterpError(f"part is {self.part!r}; this model's blocks have {', '.join(map(str, parts_of(model)))}")

    def sites_in(self, model: HookedTransformer) -> tuple[str, ...]:
        """Which activations are what the part gives to the stream: a block gives attention's output and the MLP's."""
        if isinstance(self.part, int):
            return ("z",)
        both = ("attn_out",) if model.cfg.attn_only else ("attn_out", "mlp_out")
        return both if self.part == "block" else (f"{self.part}_out",)

    def of(self, cache: Mapping[str, Tensor], site: str) -> Float[Tensor, "sequence position d"]:
        """What the part gives at a site, from a run's activations."""
        whole = cache[SITES[site].at(self.layer)]
        return whole[:, :, self.part] if isinstance(self.part, int) else whole


def parts_of(model: HookedTransformer) -> list[int | str]:
    """The parts of each block of a model, heads first."""
    return [*range(model.cfg.n_heads), "attn", *(() if model.cfg.attn_only else ("mlp",)), "block"]


@contextmanager
def ablated(
    model: HookedTransformer, layer: int, part: int | str, values: Mapping[str, Tensor] | None = None
) -> Iterator[None]:
    """Inside, the model runs without a part of one block; the hooks come off however the inside ends.

        with ablated(model, 2, 0):              # head 0 of block 2, its z set to zero
            logits = model(batch.tokens)

    Args:
        part: a head's number, "attn", "mlp" or "block".
        values: what takes the place of the part's activations, by site (z, attn_out, mlp_out), and broadcasts to them;
            zero by default.

    Raises:
        HopInterpError: no such part.
        RuntimeError: no run was made inside, or the part's activations were already what was put in their place.
    """
    unit = Unit(layer, part)
    unit.check(model)
    replacing = {site: _replacing(part, None if values is None else values[site]) for site in unit.sites_in(model)}
    hooks = [(SITES[site].at(layer), function) for site, function in replacing.items()]
    with intervening(model, hooks):
        yield


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
    model: HookedTransformer | FusedTransformer,
    task: HopTask,
    hops: int,
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

    Returns:
        Dims kind, layer, part ("0", "1", … the heads, "attn", "mlp", "block"). `error`, err_k without the part; `change`,
        that less the whole model's `whole_error`, with `low`, `high` (95%, bootstrap over sequences).

    Raises:
        HopInterpError: k or a kind that does not exist.
        RuntimeError: an ablation changed nothing, though the part says something else on these sequences.
    """
    task.check_hops(hops)
    if not kinds or (foreign := set(kinds) - set(KINDS)):
        raise HopInterpError(f"kinds are {', '.join(sorted(foreign)) if kinds else 'none'}; they are {', '.join(KINDS)}")
    net = hooked(model, task)
    generator = torch.Generator().manual_seed(seed)
    batch, other = (task.sample(sequences, hops=hops, generator=generator, device=device_of(model)) for _ in range(2))
    units = [Unit(layer, part) for layer in range(net.cfg.n_layers) for part in parts_of(net)]
    names = {SITES[site].at(unit.layer) for unit in units for site in unit.sites_in(net)}
    own, others = (_activations(net, tokens, names) for tokens in (batch.tokens, other.tokens))
    whole = _wrong(net, batch)
    wrong = torch.zeros(len(kinds), len(units), sequences, dtype=torch.float64)
    for n, unit in enumerate(units):
        said, elsewhere = ({site: unit.of(cache, site) for site in unit.sites_in(net)} for cache in (own, others))
        for m, kind in enumerate(kinds):
            stand_in = {site: _stand_in(kind, activation) for site, activation in elsewhere.items()}
            # a part that is silent anyway (an unused head of a construction) is no failed ablation: nothing is lost with it
            silent = all(torch.equal(said[site], value.expand_as(said[site])) for site, value in stand_in.items())
            wrong[m, n] = whole if silent else _wrong(net, batch, unit, stand_in)
        if report:
            report(n + 1, len(units))
    settings = {"hops": hops, "sequences": sequences, "seed": seed, "level": LEVEL, "weights": weights_note(net)}
    found = _dataset(wrong.unflatten(1, (net.cfg.n_layers, -1)), whole, batch.scored.sum(1).double().cpu(), seed)
    parts = [str(part) for part in parts_of(net)]
    return found.assign_coords(kind=list(kinds), layer=range(net.cfg.n_layers), part=parts).assign_attrs(settings)


def _activations(
    model: HookedTransformer, tokens: Int[Tensor, "sequence position"], names: set[str]
) -> dict[str, Float[Tensor, "sequence position ..."]]:
    """The named activations of a run."""
    caches = [model.run_with_cache(part, names_filter=list(names))[1] for part in tokens.split(_BATCH)]
    return {name: torch.cat([cache[name] for cache in caches]) for name in names}


def _stand_in(kind: Kind, activation: Float[Tensor, "sequence position d"]) -> Tensor:
    """What is put in a part's place, from what it gives on other sequences."""
    if kind == "zero":
        return torch.zeros_like(activation[:1])
    return activation.mean(0, keepdim=True) if kind == "mean" else activation


def _wrong(
    model: HookedTransformer, batch: Batch, unit: Unit | None = None, stand_in: Mapping[str, Tensor] | None = None
) -> Float[Tensor, " sequence"]:
    """Wrong answers of each sequence, without a part where one is named."""
    counts = []
    for rows in torch.arange(len(batch), device=batch.tokens.device).split(_BATCH):
        if unit is None or stand_in is None:
            logits = model(batch.tokens[rows])
        else:
            values = {site: x if len(x) == 1 else x[rows] for site, x in stand_in.items()}
            with ablated(model, unit.layer, unit.part, values):
                logits = model(batch.tokens[rows])
        counts.append(((logits.argmax(-1) != batch.labels[rows]) & batch.scored[rows]).sum(1).double().cpu())
    return torch.cat(counts)


def _dataset(
    wrong: Float[Tensor, "kind layer part sequence"],
    whole: Float[Tensor, " sequence"],
    counted: Float[Tensor, " sequence"],
    seed: int,
) -> xr.Dataset:
    """Rates over all answered positions, and intervals over sequences."""
    more = (wrong - whole).movedim(-1, 0)
    low, high = bootstrap_ratio(more, counted[:, None, None, None].expand_as(more), seed)
    error, whole_error = wrong.sum(-1) / counted.sum(), whole.sum() / counted.sum()
    values = {"error": error, "change": error - whole_error, "low": low, "high": high}
    data = {name: (("kind", "layer", "part"), value.numpy()) for name, value in values.items()}
    return xr.Dataset(data | {"whole_error": ((), float(whole_error))})
