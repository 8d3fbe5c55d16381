"""Runs in which every position goes on from a stream of its own, all of them in one pass."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hopinterp.engine.cached_run import Run, mlp_out
from hopinterp.errors import HopInterpError
from hopinterp.models.blocks import Heads, scores
from hopinterp.models.fused import Logits, Residual
from hopinterp.models.hooks import resid_post
from hopinterp.models.subject import Subject

Site = tuple[int, int | None]
"""A block, and one of its heads or None: the head's z, or the block's resid_post."""


def go_on(run: Run, layer: int, streams: Residual) -> Logits:
    """Logits at every position i of a run like the given one but for block `layer`'s output at i, which is streams[:, i].

    Exact for all i at once. The answer at i can only depend on what stands left of i, which no change at i reaches, and
    on i itself. So in every later block the query, the key and the value at i are the changed stream's own, and the
    keys and values left of i are the run's: attention with its diagonal replaced. Differentiable in `streams`.
    """
    x, model = streams, run.model
    for later in range(layer + 1, model.spec.n_layers):
        q, k, v = model.qkv(model.norm(x, f"blocks.{later}.ln1"), later)
        _, past_keys, past_values = run.qkv[later]
        x = x + model.attn_out(attend_apart(q, k, v, past_keys, past_values, model.scale), later)
        x = x + mlp_out(model, later, x)
    return model.unembed(x)


def attend_apart(q: Heads, k: Heads, v: Heads, past_keys: Heads, past_values: Heads, scale: float) -> Heads:
    """Causal attention in which each position sees its own key and value, and of earlier positions the past's."""
    own = torch.linalg.vecdot(q, k) * scale
    pattern = torch.diagonal_scatter(scores(q, past_keys, scale), own, dim1=-2, dim2=-1).softmax(-1)
    return pattern @ past_values + pattern.diagonal(dim1=-2, dim2=-1)[..., None] * (v - past_values)


def with_head(run: Run, layer: int, head: int, z: Float[Tensor, "batch position d_head"]) -> Residual:
    """resid_post of a block where one head's output is replaced, at each position apart from the others."""
    changed = run.z[layer].clone()
    changed[:, head] = z
    mid = run.mid[layer] - run.attn_out(layer) + run.model.attn_out(changed, layer)
    return mid + mlp_out(run.model, layer, mid)


@torch.no_grad()
def transplanted(
    subject: Subject, base: Int[Tensor, "batch position"], source: Int[Tensor, "batch position"], sites: Iterable[Site]
) -> Iterator[Logits]:
    """For each site, the logits at i when the site's output at i (there alone) is the source run's, for every i.

    Raises:
        HopInterpError: the two runs do not differ anywhere at a site, so that nothing would be transplanted.
    """
    if subject.weights is None:
        for layer, head in sites:
            yield _one_position_a_run(subject, base, source, layer, head)
        return
    run, other = Run.of(subject.weights, base), Run.of(subject.weights, source)
    for layer, head in sites:
        ours, theirs = (r.resid[layer + 1] if head is None else r.z[layer][:, head] for r in (run, other))
        _check_differ(ours, theirs, layer, head)
        yield go_on(run, layer, theirs if head is None else with_head(run, layer, head, theirs))


def _check_differ(ours: Tensor, theirs: Tensor, layer: int, head: int | None) -> None:
    if torch.equal(ours, theirs):
        site = f"block {layer}'s resid_post" if head is None else f"z of head {layer}.{head}"
        raise HopInterpError(f"{site} is the same in base and source: a transplant there changes nothing")


def _one_position_a_run(
    subject: Subject,
    base: Int[Tensor, "batch position"],
    source: Int[Tensor, "batch position"],
    layer: int,
    head: int | None,
) -> Logits:
    """The plain way, for models that run by their hooks only: a run a position."""
    name = resid_post(layer) if head is None else f"blocks.{layer}.attn.hook_z"
    place: tuple[Any, ...] = () if head is None else (head,)
    ours, theirs = (subject.run_with_cache(tokens, [name])[1][name] for tokens in (base, source))
    _check_differ(ours[:, :, *place], theirs[:, :, *place], layer, head)
    logits = []
    for i in range(base.shape[1]):

        def put(value: Tensor, hook: Any, i: int = i) -> Tensor:  # noqa: ARG001 (hooks are called by that name)
            value[:, i, *place] = theirs[:, i, *place]
            return value

        with subject.hooks([(name, put)]) as run:
            logits.append(run(base)[:, i])
    return torch.stack(logits, dim=1)
