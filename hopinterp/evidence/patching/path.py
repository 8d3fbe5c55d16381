"""Path patching: what one head tells one later head directly, put in by itself."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, SupportsIndex, Unpack, get_args

import torch
import xarray as xr
from jaxtyping import Float, Int
from torch import Tensor

from hopinterp.errors import HopInterpError
from hopinterp.evidence.patching.effects import measure
from hopinterp.evidence.patching.pairs import PairSettings, at_position
from hopinterp.evidence.patching.runs import MEMORY, Direction, PairedRuns
from hopinterp.models.fused import FusedTransformer
from hopinterp.models.hooks import SITES, Overwrite, changed
from hopinterp.models.subject import ModelLike, Subject
from hopinterp.progress import Report, counted
from hopinterp.task import HopTask

Input = Literal["q", "k", "v"]
Head = tuple[int, int]
_PAIRS = 64


def path_patch(
    model: ModelLike,
    task: HopTask,
    hops: SupportsIndex,
    *,
    into: Input = "q",
    senders: Sequence[Head] | None = None,
    receivers: Sequence[Head] | None = None,
    direction: Direction = "noising",
    seed: int = 0,
    memory: int = MEMORY,
    report: Report | None = None,
    **settings: Unpack[PairSettings],
) -> xr.Dataset:
    """Path patching (Wang et al. 2023, Goldowsky-Dill et al. 2023) from each head to the q, k or v of each later head.

    The sender's z, at every position, becomes the other run's. Every other head and every MLP stays what it was, so the
    change reaches the receiver through the residual stream alone: its input is, exactly,

        W ln(x + (z′ − z) W_O) + b,    x the receiver's resid_pre, ln its layer norm with the scale of the new stream

    With that input put in and nothing else, the rest of the model runs as it will.

    Args:
        into: which input of the receiver.
        senders, receivers: heads as (layer, head); all by default.
        direction, seed, memory, report: as in `patch`.
        settings: pairs, link, position, sequences (50 by default): see `PairSettings`.

    Returns:
        Dims metric, sender_layer, sender_head, receiver_layer, receiver_head: `effect` with `low`, `high` (95%, bootstrap
        over pairs), 0 where nothing changes and 1 where the answer becomes the other run's; NaN where the receiver is not
        in a later block, and for heads that were not asked for. `normalised`, `clean`, `corrupt` as in `patch`.

    Raises:
        HopInterpError: a setting out of range, no such head, or a model whose weights cannot be used.
        RuntimeError: an input was put in that was there already.
    """
    if into not in get_args(Input):
        raise HopInterpError(f"into is {into!r}; it is q, k or v")
    subject = Subject.asked(model, task)
    weights = subject.weights_for("path patching")
    froms, tos = (_heads(subject, given) for given in (senders, receivers))
    runs = PairedRuns.of(subject, task, hops, seed, direction=direction, **PairSettings(sequences=50) | settings)
    logits = _logits(runs, weights, into, froms, tos, memory, report)
    found = runs.scale.effects(measure(logits, runs.pairs.right, runs.pairs.wrong), ("sender", "receiver"), seed)
    later = xr.DataArray([[t[0] > f[0] for t in tos] for f in froms], dims=("sender", "receiver"))
    found = found.where(later)
    for dim, heads in (("sender", froms), ("receiver", tos)):
        layers, numbers = zip(*heads, strict=True)
        found = found.assign_coords({f"{dim}_layer": (dim, list(layers)), f"{dim}_head": (dim, list(numbers))})
        both: dict[Any, list[Hashable]] = {dim: [f"{dim}_layer", f"{dim}_head"]}
        found = found.set_index(both).unstack(dim)
    found = found.transpose("metric", "sender_layer", "sender_head", ...)
    return runs.described(runs.normalised(found), seed, into=into)


def _heads(subject: Subject, given: Sequence[Head] | None) -> list[Head]:
    every = [(layer, head) for layer in subject.layers() for head in range(subject.sizes.n_heads)]
    for one in given or ():
        if tuple(one) not in every:
            raise HopInterpError(f"head is {one}; this model has layers 0 to {every[-1][0]}, heads 0 to {every[-1][1]}")
    return every if given is None else list(dict.fromkeys((int(layer), int(head)) for layer, head in given))


@torch.no_grad()
def _logits(
    runs: PairedRuns,
    weights: FusedTransformer,
    into: Input,
    froms: list[Head],
    tos: list[Head],
    memory: int,
    report: Report | None,
) -> Float[Tensor, "sender receiver pair d_vocab"]:
    """Logits at the watched position with each path patched; those of the plain run where there is no path."""
    base = runs.unpatched[0]
    logits = base.expand(len(froms), len(tos), *base.shape).clone()
    advance = counted("path patching", len(froms) * len(tos) * len(base), report)
    for pairs in torch.arange(len(base), device=base.device).split(_PAIRS):
        paths = _Paths.of(runs, weights, pairs, into, memory)
        for s, sender in enumerate(froms):
            for r, receiver in enumerate(tos):
                if receiver[0] > sender[0]:
                    logits[s, r, pairs] = paths.patched(sender, receiver)
                advance(len(pairs))
    return logits


@dataclass(frozen=True, eq=False)
class _Paths:
    """Some pairs, with the z of both runs, and of the plain run the streams that heads read and their inputs."""

    runs: PairedRuns
    weights: FusedTransformer
    pairs: Int[Tensor, " pair"]
    into: Input
    memory: int
    run: Mapping[str, Tensor]
    source: Mapping[str, Tensor]

    @classmethod
    def of(
        cls, runs: PairedRuns, weights: FusedTransformer, pairs: Int[Tensor, " pair"], into: Input, memory: int
    ) -> _Paths:
        names = [SITES[site].at(layer) for site in ("z", "resid_pre", into) for layer in runs.subject.layers()]
        caches = [runs.subject.run_with_cache(tokens[pairs], names)[1] for tokens in (runs.run_tokens, runs.source_tokens)]
        return cls(runs, weights, pairs, into, memory, *caches)

    def carried(self, sender: Head, receiver: Head) -> Float[Tensor, "pair position d_head"]:
        """The receiver's input when the sender alone speaks of the other run."""
        (layer, head), (later, to) = sender, receiver
        z, stream, p = SITES["z"].at(layer), self.run[SITES["resid_pre"].at(later)], self.weights.parameters
        news = (self.source[z] - self.run[z])[:, :, head] @ p[f"blocks.{layer}.attn.W_O"][head]
        weight, norm = p[f"blocks.{later}.attn.W_{self.into.upper()}"][to], f"blocks.{later}.ln1"
        # written as a change, so that no news is exactly no change; the bias is in what it was
        was = self.run[SITES[self.into].at(later)][:, :, to]
        return was + (self.weights.norm(stream + news, norm) - self.weights.norm(stream, norm)) @ weight

    def patched(self, sender: Head, receiver: Head) -> Float[Tensor, "pair d_vocab"]:
        """Logits of each pair's run with that input put in."""
        later, to = receiver
        name = SITES[self.into].at(later)
        values, read = self.carried(sender, receiver), self.runs.pairs.position[self.pairs]
        seen = (torch.arange(values.shape[1], device=read.device) <= read[:, None])[..., None]
        matters = changed(self.run[name][:, :, to] * seen, values * seen)
        logits = self.runs.unpatched[0][self.pairs]
        for rows in matters.nonzero()[:, 0].split(self.runs.runs_in_memory(self.memory)):
            write = Overwrite((torch.arange(len(rows), device=rows.device), slice(None), to), values[rows])
            with self.runs.subject.hooks([(name, write)]) as patched:
                output = patched(self.runs.run_tokens[self.pairs[rows]])
            logits[rows] = at_position(output, read[rows])
        return logits
