"""The single wire: what one head tells one later head directly, patched by itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
import xarray as xr
from jaxtyping import Float, Int
from torch import Tensor

from hopinterp.errors import HopInterpError
from hopinterp.evidence.intervals import LEVEL
from hopinterp.evidence.patching.activation import choose_pairs, describe
from hopinterp.evidence.patching.effects import measure
from hopinterp.evidence.patching.pairs import Kind, Pairs
from hopinterp.evidence.patching.runs import MEMORY, Direction, Exchange, Report, at_position, runs_in_memory
from hopinterp.models.fused import FusedTransformer, device_of
from hopinterp.models.hooks import SITES, Overwrite, changed, hooked, intervening, weights_note
from hopinterp.models.spec import ModelSpec
from hopinterp.task import HopTask

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

Input = Literal["q", "k", "v"]
Head = tuple[int, int]
_PAIRS = 64


def path_patch(
    model: HookedTransformer | FusedTransformer,
    task: HopTask,
    hops: int,
    *,
    into: Input = "q",
    senders: Sequence[Head] | None = None,
    receivers: Sequence[Head] | None = None,
    pairs: Kind | Pairs = "resample",
    link: int | None = None,
    position: int | None = None,
    direction: Direction = "noising",
    sequences: int = 50,
    seed: int = 0,
    memory: int = MEMORY,
    report: Report | None = None,
) -> xr.Dataset:
    """Path patching (Wang et al. 2023, Goldowsky-Dill et al. 2023) from each head to the q, k or v of each later head.

    The sender's z, at every position, becomes the other run's. Every other head and every MLP stays what it was, so the
    change reaches the receiver through the residual stream alone: its input is, exactly,

        W ln(x + (z′ − z) W_O) + b,    x the receiver's resid_pre, ln its layer norm with the scale of the new stream

    With that input put in and nothing else, the rest of the model runs as it will.

    Args:
        into: which input of the receiver.
        senders, receivers: heads as (layer, head); all by default.
        pairs, link, position, direction, sequences, memory, report: as in `patch`.

    Returns:
        Dims metric, sender, receiver ("layer.head"): `effect` with `low`, `high` (95%, bootstrap over pairs), 0 where
        nothing changes and 1 where the answer becomes the other run's; NaN where the receiver is not in a later block.
        `normalised`, `clean`, `corrupt` as in `patch`.

    Raises:
        HopInterpError: a setting out of range, no such head, or a model that a ModelSpec cannot stand for.
        RuntimeError: an input was put in that was there already.
    """
    if into not in get_args(Input):
        raise HopInterpError(f"into is {into!r}; it is q, k or v")
    chosen = choose_pairs(task, hops, pairs, "all", link, position, sequences, seed).to(device_of(model))
    net: Any = hooked(model, task)
    spec = ModelSpec.from_model(net)
    froms, tos = (_heads(spec, given) for given in (senders, receivers))
    exchange = Exchange(net, chosen, direction)
    logits = _logits(exchange, into, froms, tos, memory, report)
    values = measure(logits, chosen.right, chosen.wrong)
    found = exchange.scale.effects(values, ("sender", "receiver"), seed)
    later = xr.DataArray([[t[0] > f[0] for t in tos] for f in froms], dims=("sender", "receiver"))
    found = found.where(later)
    found["normalised"] = 1 - found.effect if direction == "noising" else found.effect
    names = {"sender": [f"{a}.{b}" for a, b in froms], "receiver": [f"{a}.{b}" for a, b in tos]}
    settings = {"hops": hops, "into": into, "direction": direction, **describe(chosen), "seed": seed, "level": LEVEL}
    found = found.merge(exchange.scale.unpatched(direction == "noising")).assign_coords(names)
    return found.assign_attrs(settings | {"weights": weights_note(net)})


def _heads(spec: ModelSpec, given: Sequence[Head] | None) -> list[Head]:
    every = [(layer, head) for layer in range(spec.n_layers) for head in range(spec.n_heads)]
    for one in given or ():
        if tuple(one) not in every:
            raise HopInterpError(f"head is {one}; this model has layers 0 to {every[-1][0]}, heads 0 to {every[-1][1]}")
    return every if given is None else [(int(layer), int(head)) for layer, head in given]


@torch.no_grad()
def _logits(
    exchange: Exchange, into: Input, froms: list[Head], tos: list[Head], memory: int, report: Report | None
) -> Float[Tensor, "sender receiver pair d_vocab"]:
    """Logits at the watched position with each path patched; those of the plain run where there is no path."""
    base = exchange.unpatched[0]
    logits = base.expand(len(froms), len(tos), *base.shape).clone()
    done, total = 0, len(froms) * len(tos) * len(base)
    for pairs in torch.arange(len(base), device=base.device).split(_PAIRS):
        wires = _Wires.of(exchange, pairs, into, memory)
        for s, sender in enumerate(froms):
            for r, receiver in enumerate(tos):
                if receiver[0] > sender[0]:
                    logits[s, r, pairs] = wires.patched(sender, receiver)
                done += len(pairs)
                if report:
                    report(done, total)
    return logits


@dataclass(frozen=True, eq=False)
class _Wires:
    """Some pairs, with the z of both runs, and of the plain run the streams that heads read and their inputs."""

    exchange: Exchange
    pairs: Int[Tensor, " pair"]
    into: Input
    memory: int
    run: dict[str, Tensor]
    source: dict[str, Tensor]

    @classmethod
    def of(cls, exchange: Exchange, pairs: Int[Tensor, " pair"], into: Input, memory: int) -> _Wires:
        model: Any = exchange.model
        kept = [SITES[site].at(layer) for site in ("z", "resid_pre", into) for layer in range(model.cfg.n_layers)]
        caches = [
            model.run_with_cache(tokens[pairs], names_filter=kept)[1]
            for tokens in (exchange.run_tokens, exchange.source_tokens)
        ]
        return cls(exchange, pairs, into, memory, *(dict(cache.items()) for cache in caches))

    def carried(self, sender: Head, receiver: Head) -> Float[Tensor, "pair position d_head"]:
        """The receiver's input when the sender alone speaks of the other run."""
        model: Any = self.exchange.model
        (layer, head), (later, to) = sender, receiver
        z, stream = SITES["z"].at(layer), self.run[SITES["resid_pre"].at(later)]
        news = (self.source[z] - self.run[z])[:, :, head] @ model.blocks[layer].attn.W_O[head]
        block, name = model.blocks[later], self.into.upper()
        weight, ln1 = getattr(block.attn, f"W_{name}")[to], block.ln1
        # written as a change, so that no news is exactly no change; the bias is in what it was
        was: Tensor = self.run[SITES[self.into].at(later)][:, :, to]
        change: Tensor = (ln1(stream + news) - ln1(stream)) @ weight
        return was + change

    def patched(self, sender: Head, receiver: Head) -> Float[Tensor, "pair d_vocab"]:
        """Logits of each pair's run with that input put in."""
        later, to = receiver
        name = SITES[self.into].at(later)
        values, read = self.carried(sender, receiver), self.exchange.pairs.position[self.pairs]
        seen = (torch.arange(values.shape[1], device=read.device) <= read[:, None])[..., None]
        matters = changed(self.run[name][:, :, to] * seen, values * seen)
        logits = self.exchange.unpatched[0][self.pairs]
        for rows in matters.nonzero()[:, 0].split(runs_in_memory(self.exchange.model, values.shape[1], self.memory)):
            write = Overwrite((torch.arange(len(rows), device=rows.device), slice(None), to), values[rows])
            with intervening(self.exchange.model, [(name, write)]):
                output = self.exchange.model(self.exchange.run_tokens[self.pairs[rows]])
            logits[rows] = at_position(output, read[rows])
        return logits
