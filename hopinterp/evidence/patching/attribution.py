"""What each part writes straight into the answer, and what one backward pass says of every patch at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, SupportsIndex, Unpack

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float, Int
from torch import Tensor

from hopinterp.evidence.datasets import described
from hopinterp.evidence.intervals import LEVEL, bootstrap_ratio
from hopinterp.evidence.patching.activation import patch
from hopinterp.evidence.patching.effects import METRICS, Scale, measure
from hopinterp.evidence.patching.pairs import Pairs, PairSettings, at_position, choose_pairs
from hopinterp.evidence.patching.positions import By, Cells
from hopinterp.evidence.patching.runs import MEMORY, Direction, PairedRuns
from hopinterp.models.fused import FusedTransformer
from hopinterp.models.hooks import SITES, Site, resid_post
from hopinterp.models.subject import ModelLike, Subject
from hopinterp.progress import Report, counted
from hopinterp.task import HopTask

SMOOTH = METRICS[:2]
"""The metrics that have a gradient: logit difference and probability."""
OTHER = ("embed", "pos_embed", "bias", "unembed")
"""What writes to the logits besides heads and MLPs. "bias": b_O of all blocks; "unembed": last norm's and unembedding's."""
_PAIRS = 32


def attribution_patch(
    model: ModelLike,
    task: HopTask,
    hops: SupportsIndex,
    *,
    site: str = "z",
    by: By = "position",
    direction: Direction | None = None,
    seed: int = 0,
    exact: bool = True,
    memory: int = MEMORY,
    report: Report | None = None,
    **settings: Unpack[PairSettings],
) -> xr.Dataset:
    """Attribution patching (Nanda 2023, Syed et al. 2023): every patch's effect to first order, from one backward pass.

        estimate = Σ_d (∂ metric / ∂ a_d) · (a′_d − a_d),    a of the run that would be patched, a′ of the other

    A first look: attention that moves or a saturated probability is not to first order. So the exact effect of the same
    patches on the same pairs stands beside it, with the correlation of the two.

    Args:
        exact: whether `patch` is run too; without it there is no `effect` and no `correlation`.
        report: called as pairs have their gradients, and then by `patch`.
        site, by, direction, seed, memory: as in `patch`.
        settings: pairs, link, position, sequences: see `PairSettings`.

    Returns:
        Dims metric (logit_difference, probability), layer, head, and places, as `patch` has them. `estimate` with
        `estimate_low`, `estimate_high` on the scale of effects (0 the unpatched run, 1 the other); `effect`, `low`, `high`,
        what `patch` finds; `correlation` [metric], Pearson's over all cells (the chain's control included by neither).

    Raises:
        HopInterpError: a setting out of range, or a site that the model lacks.
    """
    runs = PairedRuns.of(model, task, hops, seed, by, direction, **settings)
    cells, found_site = Cells.of(runs.pairs, by, seed), runs.subject.site(site)
    scale = Scale(runs.scale.run[:2], runs.scale.source[:2])
    values = _first_order(runs, found_site, cells.positions, report) + scale.run[:, None, None, None]
    found = cells.dataset(values, scale, found_site.per_head, seed)
    found = found.rename(effect="estimate", low="estimate_low", high="estimate_high")
    found = found.drop_vars([name for name in found if str(name).startswith("off_chain")])
    if exact:
        given: dict[str, Any] = {"site": site, "by": by, "direction": runs.direction, "seed": seed}
        measured = patch(runs.subject, task, hops, **given, pairs=runs.pairs, memory=memory, report=report)
        found = found.merge(measured[["effect", "low", "high", "clean", "corrupt"]].sel(metric=list(SMOOTH)))
        found["correlation"] = "metric", [_pearson(found.estimate[m], found.effect[m]) for m in range(len(SMOOTH))]
    return runs.described(found, seed, site=site, by=by)


def _pearson(a: xr.DataArray, b: xr.DataArray) -> float:
    """Over all cells where both are defined; NaN where one of them does not vary."""
    both = np.isfinite(a.values) & np.isfinite(b.values)
    x, y = (values.values[both] - values.values[both].mean() if both.any() else np.zeros(1) for values in (a, b))
    norm = np.sqrt((x**2).sum() * (y**2).sum())
    return float((x * y).sum() / norm) if norm > 0 else float("nan")


def _first_order(
    runs: PairedRuns, site: Site, positions: Int[Tensor, "pair cell"] | None, report: Report | None
) -> Float[Tensor, "metric layer head cell pair"]:
    """Gradient times difference, summed over what each patch would overwrite."""
    names = [site.at(layer) for layer in runs.subject.layers()]
    parts, advance = [], counted("gradients", len(runs.pairs), report)
    for pairs in torch.arange(len(runs.pairs), device=runs.pairs.position.device).split(_PAIRS):
        with torch.no_grad():
            _, source = runs.subject.run_with_cache(runs.source_tokens[pairs], names)
        run, gradients = _gradients(runs, pairs, names)
        here = None if positions is None else positions[pairs]
        layers = [_at_cells(site, (source[n] - run[n])[..., None] * gradients[n], here) for n in names]
        parts.append(torch.stack(layers).movedim(-1, 0).double())
        advance(len(pairs))
    return torch.cat(parts, dim=-1)


def _gradients(
    runs: PairedRuns, pairs: Int[Tensor, " pair"], names: Sequence[str]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The named activations of the run, and the gradients of the two metrics with respect to them, on a last axis."""
    run: dict[str, Tensor] = {}

    def keep(activation: Tensor, hook: Any) -> Tensor:
        run[hook.name] = activation
        return activation

    def leaf(activation: Tensor, hook: Any) -> Tensor:  # noqa: ARG001 (hooks are called by that name)
        return activation.detach().requires_grad_()  # frozen parameters alone would leave nothing to differentiate

    hooks = [("hook_embed", leaf), *((name, keep) for name in names)]
    with torch.enable_grad(), runs.subject.hooks(hooks) as hooked:
        logits = at_position(hooked(runs.run_tokens[pairs]), runs.pairs.position[pairs])
        metrics = measure(logits, runs.pairs.right[pairs], runs.pairs.wrong[pairs])[: len(SMOOTH)]
        kept = [run[name] for name in names]
        by_metric = [torch.autograd.grad(metric.sum(), kept, retain_graph=True) for metric in metrics]
    gradients = {name: torch.stack(both, dim=-1) for name, both in zip(names, zip(*by_metric, strict=True), strict=True)}
    return {name: value.detach() for name, value in run.items()}, gradients


def _at_cells(
    site: Site, product: Float[Tensor, "pair *rest metric"], positions: Int[Tensor, "pair cell"] | None
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
    model: ModelLike, task: HopTask, hops: SupportsIndex, *, seed: int = 0, **settings: Unpack[PairSettings]
) -> xr.Dataset:
    """What each part of the model writes straight into the logit difference (Elhage et al. 2021, nostalgebraist 2020).

    On the clean sequence, at i, between the right letter and the pair's other one. The last stream is a sum of what the
    embeddings, every head, every MLP and the attention biases wrote; with the last layer norm's scale frozen at what it
    was, so is the logit difference. Nothing is said about what a part does through later parts.

    Args:
        settings: pairs, link, position, sequences: see `PairSettings`.

    Returns:
        Contributions in logits, each with its `_low` and `_high` (95%, bootstrap over pairs): `heads` [layer, head], `mlp`
        [layer] (left out where the model has none), `other` [component]: embed, pos_embed, bias (of attention, all blocks),
        unembed (the biases of the last layer norm and of the unembedding). They sum to `logit_difference`.

    Raises:
        HopInterpError: a setting out of range, or a model whose weights cannot be used (its hooks or its last norm).
    """
    subject = Subject.asked(model, task)
    weights = subject.weights_for("direct logit attribution")
    pairs = choose_pairs(task, hops, seed, **settings).to(subject.device)
    rows = torch.arange(len(pairs), device=subject.device)
    parts = [_written(subject, weights, pairs, some) for some in rows.split(_PAIRS)]
    written = {name: torch.cat([part[name] for part in parts]).double() for name in parts[0]}
    dims = {"heads": ("layer", "head"), "mlp": ("layer",), "other": ("component",)}
    data: dict[str, Any] = {"logit_difference": ((), float(written.pop("logit_difference").mean()))}
    for name, values in written.items():
        low, high = bootstrap_ratio(values, torch.ones_like(values), seed)
        ends = {name: values.mean(0), f"{name}_low": low, f"{name}_high": high}
        data |= {which: (dims[name], value.cpu().numpy()) for which, value in ends.items()}
    coords = {"layer": subject.layers(), "head": range(subject.sizes.n_heads), "component": list(OTHER)}
    found = xr.Dataset(data, coords)
    return described(found, subject, task, seed=seed, level=LEVEL, weights=subject.processing, **pairs.settings)


def _written(
    subject: Subject, weights: FusedTransformer, pairs: Pairs, rows: Int[Tensor, " pair"]
) -> Mapping[str, Float[Tensor, "pair ..."]]:
    """The logit difference of some pairs, and every part's share of it."""
    p, layers, last = weights.parameters, subject.layers(), resid_post(subject.sizes.n_layers - 1)
    tokens, read = pairs.clean.tokens[rows], pairs.position[rows]
    writers = ["z"] if subject.sizes.attn_only else ["z", "mlp_out"]
    logits, cache = subject.run_with_cache(tokens, [last, *(SITES[site].at(n) for site in writers for n in layers)])
    here = {name: at_position(value, read) for name, value in cache.items()}
    wrote = {site: torch.stack([here[SITES[site].at(n)] for n in layers], dim=1) for site in writers}
    toward, constant = _toward(weights, here[last], pairs.right[rows], pairs.wrong[rows])
    w_o, b_o = (torch.stack([p[f"blocks.{n}.attn.{name}"] for n in layers]) for name in ("W_O", "b_O"))
    found = {"heads": torch.einsum("plhi,lhid,pd->plh", wrote["z"], w_o, toward)}
    if "mlp_out" in wrote:
        found["mlp"] = torch.einsum("pld,pd->pl", wrote["mlp_out"], toward)
    other = (p["embed.W_E"][at_position(tokens, read)], p["pos_embed.W_pos"][read], b_o.sum(0))
    found["other"] = torch.stack([*((part * toward).sum(-1) for part in other), constant], dim=1)
    difference = measure(at_position(logits, read), pairs.right[rows], pairs.wrong[rows])[0]
    return found | {"logit_difference": difference}


def _toward(
    weights: FusedTransformer, last: Float[Tensor, "pair d_model"], right: Int[Tensor, " pair"], wrong: Int[Tensor, " pair"]
) -> tuple[Float[Tensor, "pair d_model"], Float[Tensor, " pair"]]:
    """The direction of the last stream that the logit difference is read along, the last norm's scale frozen at what it is;
    and what the biases add."""
    p, norm = weights.parameters, weights.spec.normalization_type
    toward = (p["unembed.W_U"][:, right] - p["unembed.W_U"][:, wrong]).T
    constant = p["unembed.b_U"][right] - p["unembed.b_U"][wrong]
    if norm is None:
        return toward, constant
    if norm == "LN":
        toward, constant = toward * p["ln_final.w"], constant + toward @ p["ln_final.b"]
    scale = (last.var(-1, unbiased=False, keepdim=True) + weights.spec.eps).sqrt()
    return (toward - toward.mean(-1, keepdim=True)) / scale, constant
