"""The railway yard: every position of a base run goes on from a stream of its own, all of them in one pass."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from hopinterp.errors import HopInterpError
from hopinterp.models.fused import FusedTransformer, Residual, resid_post

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

Logits = Float[Tensor, "batch position d_vocab"]
Heads = Float[Tensor, "batch head position d_head"]
Site = tuple[int, int | None]
"""A block, and one of its heads or None: the head's z, or the block's resid_post."""


@dataclass(frozen=True, eq=False)
class KeptRun:
    """A forward pass of which every block's streams, keys, values and head outputs are kept.

    Attributes:
        mid, post: resid_mid and resid_post of each block.
        keys, values, z: of each block's heads.
    """

    model: FusedTransformer
    mid: list[Residual] = field(default_factory=list)
    post: list[Residual] = field(default_factory=list)
    keys: list[Heads] = field(default_factory=list)
    values: list[Heads] = field(default_factory=list)
    z: list[Heads] = field(default_factory=list)

    @classmethod
    def of(cls, model: FusedTransformer, tokens: Int[Tensor, "batch position"]) -> KeptRun:
        """Run the model on tokens and keep what other runs may need of it."""
        run = cls(model)
        x = model.embed(tokens)
        for layer in range(model.spec.n_layers):
            q, k, v = model.qkv(model.norm(x, f"blocks.{layer}.ln1"), layer)
            z = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=model.scale)
            x = x + model.attn_out(z, layer)
            run.mid.append(x)
            x = _through_mlp(model, x, layer)
            run.post.append(x)
            run.keys.append(k)
            run.values.append(v)
            run.z.append(z)
        return run

    @property
    def logits(self) -> Logits:
        """What the run answers."""
        return self.model.unembed(self.post[-1])

    def going_on(self, layer: int, streams: Residual) -> Logits:
        """Logits at every position i of a run like this one but for block `layer`'s output at i, which is streams[:, i].

        Exact for all i at once. The answer at i can only depend on what stands left of i, which no change at i reaches, and
        on i itself. So in every later block the query, the key and the value at i are the changed stream's own, and the
        keys and values left of i are this run's: attention with its diagonal replaced. Differentiable in `streams`.
        """
        x = streams
        for later in range(layer + 1, self.model.spec.n_layers):
            q, k, v = self.model.qkv(self.model.norm(x, f"blocks.{later}.ln1"), later)
            z = attend_apart(q, k, v, self.keys[later], self.values[later], self.model.scale)
            x = _through_mlp(self.model, x + self.model.attn_out(z, later), later)
        return self.model.unembed(x)

    def with_head(self, layer: int, head: int, z: Float[Tensor, "batch position d_head"]) -> Residual:
        """resid_post of a block where one head's output is replaced, at each position apart from the others."""
        changed = self.z[layer].clone()
        changed[:, head] = z
        before = self.mid[layer] - self.model.attn_out(self.z[layer], layer)
        return _through_mlp(self.model, before + self.model.attn_out(changed, layer), layer)


def _through_mlp(model: FusedTransformer, x: Residual, layer: int) -> Residual:
    return x if model.spec.attn_only else x + model.mlp(model.norm(x, f"blocks.{layer}.ln2"), layer)


def attend_apart(q: Heads, k: Heads, v: Heads, past_keys: Heads, past_values: Heads, scale: float) -> Heads:
    """Causal attention in which each position sees its own key and value, and of earlier positions the past's."""
    n = q.shape[-2]
    future = torch.ones(n, n, dtype=torch.bool, device=q.device).triu(1)
    scores = (q @ past_keys.mT * scale).masked_fill(future, -torch.inf)
    pattern = torch.diagonal_scatter(scores, torch.linalg.vecdot(q, k) * scale, dim1=-2, dim2=-1).softmax(-1)
    return pattern @ past_values + pattern.diagonal(dim1=-2, dim2=-1)[..., None] * (v - past_values)


@torch.no_grad()
def transplanted(
    model: HookedTransformer | FusedTransformer,
    base: Int[Tensor, "batch position"],
    source: Int[Tensor, "batch position"],
    sites: Iterable[Site],
) -> Iterator[Logits]:
    """For each site, the logits at i when the site's output at i (there alone) is the source run's, for every i.

    Raises:
        HopInterpError: the two runs do not differ anywhere at a site, so that nothing would be transplanted.
    """
    if isinstance(model, FusedTransformer):
        run, other = KeptRun.of(model, base), KeptRun.of(model, source)
        for layer, head in sites:
            ours, theirs = (r.post[layer] if head is None else r.z[layer][:, head] for r in (run, other))
            _check_differ(ours, theirs, layer, head)
            streams = theirs if head is None else run.with_head(layer, head, theirs)
            yield run.going_on(layer, streams)
    else:
        for layer, head in sites:
            yield _one_position_a_run(model, base, source, layer, head)


def _check_differ(ours: Tensor, theirs: Tensor, layer: int, head: int | None) -> None:
    if torch.equal(ours, theirs):
        site = f"block {layer}'s resid_post" if head is None else f"z of head {layer}.{head}"
        raise HopInterpError(f"{site} is the same in base and source: a transplant there changes nothing")


def _one_position_a_run(
    model: HookedTransformer,
    base: Int[Tensor, "batch position"],
    source: Int[Tensor, "batch position"],
    layer: int,
    head: int | None,
) -> Logits:
    """The plain way, for models that only TransformerLens can run (hooks, unusual features): a run a position."""
    name = resid_post(layer) if head is None else f"blocks.{layer}.attn.hook_z"
    place: tuple[Any, ...] = (slice(None),) if head is None else (slice(None), head)
    (ours, theirs) = (model.run_with_cache(tokens, names_filter=name)[1][name] for tokens in (base, source))
    _check_differ(ours[:, *place], theirs[:, *place], layer, head)
    logits = []
    for i in range(base.shape[1]):

        def put(value: Tensor, hook: Any, i: int = i) -> Tensor:  # noqa: ARG001 (TransformerLens calls it hook)
            value[:, i, *place[1:]] = theirs[:, i, *place[1:]]
            return value

        logits.append(model.run_with_hooks(base, fwd_hooks=[(name, put)])[:, i])
    return torch.stack(logits, dim=1)
