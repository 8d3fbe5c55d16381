"""The quick look: what each part writes towards the answer, and what a gradient says of every patch at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float, Int
from torch import Tensor

from hopinterp.errors import HopInterpError
from hopinterp.evidence.intervals import LEVEL, bootstrap_ratio
from hopinterp.evidence.patching.activation import choose_pairs, default_direction, describe, patch
from hopinterp.evidence.patching.effects import METRICS, Scale, measure
from hopinterp.evidence.patching.pairs import Kind, Pairs
from hopinterp.evidence.patching.positions import By, Places
from hopinterp.evidence.patching.runs import MEMORY, Direction, Exchange, Report, at_position
from hopinterp.models.fused import FusedTransformer, device_of
from hopinterp.models.hooks import Site, hooked, intervening, site_of, weights_note
from hopinterp.task import HopTask

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

SMOOTH = METRICS[:2]
"""The metrics that have a gradient: logit difference and probability."""
_PAIRS = 32


def attribution_patch(
    model: HookedTransformer | FusedTransformer,
    task: HopTask,
    hops: int,
    *,
    site: str = "z",
    by: By = "position",
    pairs: Kind | Pairs = "resample",
    link: int | None = None,
    position: int | None = None,
    direction: Direction | None = None,
    sequences: int = 100,
    seed: int = 0,
    exact: bool = True,
    memory: int = MEMORY,
    report: Report | None = None,
) -> xr.Dataset:
    """Attribution patching (Nanda 2023, Syed et al. 2023): every patch's effect to first order, from one backward pass.

        estimate = Σ_d (∂ metric / ∂ a_d) · (a′_d − a_d),    a of the run that would be patched, a′ of the other

    A first look: attention that moves or a saturated probability is not to first order. So the exact effect of the same
    patches on the same pairs stands beside it, with the correlation of the two.

    Args:
        exact: whether `patch` is run too; without it there is no `effect` and no `correlation`.
        site, by, pairs, link, position, direction, sequences, memory, report: as in `patch`.

    Returns:
        Dims metric (logit_difference, probability), layer, head, and places, as `patch` has them. `estimate` with
        `estimate_low`, `estimate_high` on the scale of effects (0 the unpatched run, 1 the other); `effect`, `low`, `high`,
        what `patch` finds; `correlation` [metric], Pearson's over all cells (the chain's control included by neither).

    Raises:
        HopInterpError: a setting out of range, or a site that the model lacks.
    """
    chosen = choose_pairs(task, hops, pairs, by, link, position, sequences, seed).to(device_of(model))
    net, direction = hooked(model, task), direction or default_direction(by)
    places, found_site = Places.of(chosen, by, seed), site_of(site, net)
    exchange = Exchange(net, chosen, direction)
    scale = Scale(exchange.scale.run[:2], exchange.scale.source[:2])
    change = _first_order(exchange, found_site, places.positions)
    values = change + scale.run[:, None, None, None]
    found = places.dataset(values, scale, found_site.per_head, seed)
    found = found.rename(effect="estimate", low="estimate_low", high="estimate_high")
    found = found.drop_vars([name for name in found if str(name).startswith("off_chain")])
    if exact:
        settings: dict[str, Any] = {"site": site, "by": by, "pairs": chosen, "direction": direction, "seed": seed}
        measured = patch(model, task, hops, **settings, memory=memory, report=report).sel(metric=list(SMOOTH))
        found = found.merge(measured[["effect", "low", "high", "clean", "corrupt"]])
        found["correlation"] = "metric", [_pearson(found.estimate[m], found.effect[m]) for m in range(len(SMOOTH))]
    notes = {"hops": hops, "site": site, "by": by, "direction": direction, **describe(chosen), "seed": seed}
    return found.assign_attrs(notes | {"level": LEVEL, "weights": weights_note(net)})


def _pearson(a: xr.DataArray, b: xr.DataArray) -> float:
    """Over all cells where both are defined; NaN where one of them does not vary."""
    both = np.isfinite(a.values) & np.isfinite(b.values)
    x, y = (values.values[both] - values.values[both].mean() if both.any() else np.zeros(1) for values in (a, b))
    norm = np.sqrt((x**2).sum() * (y**2).sum())
    return float((x * y).sum() / norm) if norm > 0 else float("nan")


def _first_order(
    exchange: Exchange, site: Site, positions: Int[Tensor, "pair cell"] | None
) -> Float[Tensor, "metric layer head cell pair"]:
    """Gradient times difference, summed over what each patch would overwrite."""
    model: Any = exchange.model
    names = [site.at(layer) for layer in range(model.cfg.n_layers)]
    parts = []
    for pairs in torch.arange(len(exchange.pairs), device=exchange.pairs.position.device).split(_PAIRS):
        with torch.no_grad():
            _, source = model.run_with_cache(exchange.source_tokens[pairs], names_filter=names)
        run, gradients = _gradients(exchange, pairs, names)
        here = None if positions is None else positions[pairs]
        layers = [
            _at_places(site, (source[n] - run[n])[..., None] * gradients[n], here) for n in names
        ]  # each head cell pair metric
        parts.append(torch.stack(layers).movedim(-1, 0).double())
    return torch.cat(parts, dim=-1)


def _gradients(
    exchange: Exchange, pairs: Int[Tensor, " pair"], names: Sequence[str]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The named activations of the run, and the gradients of the two metrics with respect to them, on a last axis."""
    model: Any = exchange.model
    run: dict[str, Tensor] = {}

    def keep(activation: Tensor, hook: Any) -> Tensor:
        run[hook.name] = activation
        return activation

    def leaf(activation: Tensor, hook: Any) -> Tensor:  # noqa: ARG001 (TransformerLens calls it hook)
        return activation.detach().requires_grad_()  # frozen parameters alone would leave nothing to differentiate

    with torch.enable_grad(), intervening(model, [("hook_embed", leaf), *((name, keep) for name in names)]):
        logits = at_position(model(exchange.run_tokens[pairs]), exchange.pairs.position[pairs])
        metrics = measure(logits, exchange.pairs.right[pairs], exchange.pairs.wrong[pairs])[: len(SMOOTH)]
        kept = [run[name] for name in names]
        by_metric = [torch.autograd.grad(metric.sum(), kept, retain_graph=True) for metric in metrics]
    gradients = {name: torch.stack(both, dim=-1) for name, both in zip(names, zip(*by_metric, strict=True), strict=True)}
    return {name: value.detach() for name, value in run.items()}, gradients


def _at_places(
    site: Site, product: Float[Tensor, "pair ... metric"], positions: Int[Tensor, "pair cell"] | None
) -> Float[Tensor, "head cell pair metric"]:
    """Sums over the numbers that one patch overwrites."""
    sums = product.sum(-2)
    if site.name == "pattern":
        sums = sums.transpose(1, 2)
    if not site.per_head:
        sums = sums[:, :, None]
    if positions is None:
        return sums.sum(1).transpose(0, 1)[:, None]
    rows = torch.arange(len(sums), device=sums.device)[:, None]
    return sums[rows, positions].permute(2, 1, 0, 3)


@torch.no_grad()
def direct_logit_attribution(
    model: HookedTransformer | FusedTransformer,
    task: HopTask,
    hops: int,
    *,
    pairs: Kind | Pairs = "resample",
    link: int | None = None,
    position: int | None = None,
    sequences: int = 100,
    seed: int = 0,
) -> xr.Dataset:
    """What each part of the model writes straight into the logit difference (Elhage et al. 2021, nostalgebraist 2020).

    On the clean sequence, at i, between the right letter and the pair's other one. The last stream is a sum of what the
    embeddings, every head, every MLP and the attention biases wrote; with the last layer norm's scale frozen at what it
    was, so is the logit difference. Nothing is said about what a part does through later parts.

    Returns:
        Dim component, as TransformerLens names them (L0H1, 0_mlp_out, embed, pos_embed, bias), and last "unembed": the
        biases of the last layer norm and of the unembedding. `contribution` in logits, with `low`, `high` (95%, bootstrap
        over pairs), which sum to `logit_difference`.

    Raises:
        HopInterpError: a setting out of range, or a last norm whose scale cannot be frozen.
    """
    chosen = choose_pairs(task, hops, pairs, "all", link, position, sequences, seed).to(device_of(model))
    net: Any = hooked(model, task)
    if net.cfg.normalization_type not in (None, "LN", "LNPre"):
        raise HopInterpError(
            f"the model's normalization is {net.cfg.normalization_type}; attribution reads LN, LNPre or none"
        )
    parts = [_written(net, chosen, rows) for rows in torch.arange(len(chosen), device=device_of(net)).split(_PAIRS)]
    labels, written = parts[0][0], torch.cat([part for _, part in parts], dim=1).double()
    read = Exchange(net, chosen, "noising").unpatched[0]
    difference = measure(read, chosen.right, chosen.wrong)[0]
    low, high = bootstrap_ratio(written.T, torch.ones_like(written.T), seed)
    values = {"contribution": written.mean(1), "low": low, "high": high}
    data: dict[str, Any] = {name: ("component", value.cpu().numpy()) for name, value in values.items()}
    data["logit_difference"] = ((), float(difference.mean()))
    notes = {"hops": hops, **describe(chosen), "seed": seed, "level": LEVEL, "weights": weights_note(net)}
    return xr.Dataset(data, {"component": labels}, notes)


def _written(net: Any, pairs: Pairs, rows: Int[Tensor, " pair"]) -> tuple[list[str], Float[Tensor, "component pair"]]:
    """Every component's share of each logit difference."""
    from transformer_lens import ActivationCache

    wanted = ("hook_embed", "hook_pos_embed", "hook_z", "hook_mlp_out", "ln_final.hook_scale")
    _, cache = net.run_with_cache(pairs.clean.tokens[rows], names_filter=lambda name: name.endswith(wanted))
    read, index = pairs.position[rows], torch.arange(len(rows), device=rows.device)
    # only the watched positions are decomposed: a cache with one position a row serves TransformerLens just as well
    here = {name: x.expand(len(rows), *x.shape[1:])[index, read][:, None] for name, x in cache.items()}
    stack, labels = ActivationCache(here, net).get_full_resid_decomposition(
        expand_neurons=False, apply_ln=True, return_labels=True
    )
    direction = (net.unembed.W_U[:, pairs.right[rows]] - net.unembed.W_U[:, pairs.wrong[rows]]).T
    constant = net.unembed.b_U[pairs.right[rows]] - net.unembed.b_U[pairs.wrong[rows]]
    if net.cfg.normalization_type == "LN":
        stack, constant = stack * net.ln_final.w, constant + direction @ net.ln_final.b
    return [*labels, "unembed"], torch.cat([(stack[:, :, 0] * direction).sum(-1), constant[None]])
