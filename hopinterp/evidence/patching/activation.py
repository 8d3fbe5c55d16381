"""The switchboard: what one activation's exchange does to the answer, at every site, by position and along the chain."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import xarray as xr
from jaxtyping import Float, Int
from torch import Tensor

from hopinterp.engine.sweeps import RESID_SITES, head_sweep, resid_sweep
from hopinterp.errors import HopInterpError
from hopinterp.evidence.intervals import LEVEL
from hopinterp.evidence.patching.effects import measure
from hopinterp.evidence.patching.pairs import Kind, Pairs, draw_pairs
from hopinterp.evidence.patching.positions import By, Places
from hopinterp.evidence.patching.runs import MEMORY, Direction, Exchange, Report, patched_by_hooks
from hopinterp.models.fused import FusedTransformer, device_of, runner
from hopinterp.models.hooks import hooked, site_of, weights_note
from hopinterp.task import HopTask

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer


def patch(
    model: HookedTransformer | FusedTransformer,
    task: HopTask,
    hops: int,
    *,
    site: str = "resid_post",
    by: By = "position",
    pairs: Kind | Pairs = "resample",
    link: int | None = None,
    position: int | None = None,
    direction: Direction | None = None,
    sequences: int = 100,
    seed: int = 0,
    memory: int = MEMORY,
    report: Report | None = None,
    by_hooks: bool = False,
) -> xr.Dataset:
    """Activation patching (Vig et al. 2020, Meng et al. 2022): what one activation's exchange does to the answer at i.

    *Denoising* runs the corrupt sequence with an activation of the clean run: is it enough for the clean answer? *Noising*
    runs the clean sequence with an activation of the corrupt run: is it needed? Places, for every block (and head):

    - by "position": each position of the sequence, as TransformerLens's pictures have it. Denoising by default.
    - by "chain": the clean chain's positions find^j(i), j = 0 … k, and the position before each, where the link's key stands
      until block 0 has moved it: the causal light cone, where the information that the answer needs is at each block.
      Noising by default: with an independent counterfactual (resample) the corrupt run's own chain goes elsewhere, so a
      single clean activation can bring back the answer only at i itself, while noise anywhere on the way breaks it. For
      one-link pairs both are meaningful: denoising follows the news of the link's change on its way to i.
    - by "all": all positions at once.

    A noised pointer goes somewhere, and by chance to the right letter (one time in |Σ| or so): accuracy and probability
    then fall by about 1 − 1/|Σ|, not by 1; and to the counterfactual's letter no oftener than to another, so the logit
    difference falls by about half. What breaks is plainest in probability.

    Args:
        site: resid_pre, resid_mid, resid_post, attn_out, mlp_out, or of each head z, q, k, v, pattern (the query's row).
        pairs: which counterfactuals, or pairs of your own (then `hops` must be theirs). See `draw_pairs`, also for `link`
            (one-link pairs) and `position` (i; by position it is the last by default, so that the pairs line up).
        sequences: how many pairs.
        memory: bytes for the activations of runs that are batched together.
        report: called with the number of patched runs that are done, and with their number in all.
        by_hooks: by the simple path, TransformerLens's hooks, even where faster sweeps give the same (they serve the sites
            outside the heads, and z, on models without hooks of their own).

    Returns:
        Dims metric (logit_difference, probability, accuracy), layer, head (per-head sites), and position or chain and where
        ("at" find^j(i), or "before" it). `effect` with `low`, `high` (95%, bootstrap over pairs): Σ (patched − unpatched) /
        Σ (other run − unpatched), 0 where nothing changes and 1 where the whole other run came in; `normalised`, the same on
        the scale where 0 is the corrupt run and 1 the clean one (1 − effect when noising). NaN where the metric does not
        tell the clean from the corrupt run. `clean`, `corrupt` [metric]: the unpatched runs. By chain also `pairs`
        [chain, where], how many count (where a place is both on the chain and before it, see `Pairs.distinct`, the pair is
        left out), the control `off_chain` with `off_chain_low`, `off_chain_high`: the effect at one random place
        before i that is neither, and `matters` [metric, layer, …, chain, where], the light cone itself: whether `low` is
        above the bar (in attrs), half of what breaking every answer would show.

    Raises:
        HopInterpError: a setting out of range, or a site that the model lacks.
        RuntimeError: a patch changed nothing where the two runs differ.
    """
    chosen = choose_pairs(task, hops, pairs, by, link, position, sequences, seed).to(device_of(model))
    places = Places.of(chosen, by, seed)
    direction = direction or default_direction(by)
    run = runner(model, task)
    per_head = site_of(site, run).per_head
    fast = isinstance(run, FusedTransformer) and site in (*RESID_SITES, "z") and by != "all" and not by_hooks
    exchange = _Swept(run, chosen, direction) if fast else Exchange(hooked(model, task), chosen, direction)
    sweep = _patched_by_sweeps if fast else patched_by_hooks
    values = measure(sweep(exchange, site, places.positions, memory, report), chosen.right, chosen.wrong)
    found = places.dataset(values, exchange.scale, per_head, seed)
    found["normalised"] = 1 - found.effect if direction == "noising" else found.effect
    found = found.merge(exchange.scale.unpatched(direction == "noising"))
    if by == "chain":
        found["matters"] = found.low > bar(chosen, direction)
        found = found.assign_attrs(bar=bar(chosen, direction))
    settings = {"hops": hops, "site": site, "by": by, "direction": direction, **describe(chosen), "seed": seed}
    return found.assign_attrs(found.attrs | settings | {"level": LEVEL, "weights": weights_note(run)})


def default_direction(by: By) -> Direction:
    """Noising along the chain, denoising otherwise: see `patch`."""
    return "noising" if by == "chain" else "denoising"


def bar(pairs: Pairs, direction: Direction) -> float:
    """Half of the effect that a place of the light cone has where a model uses it and nothing else.

    That is 1 where the patch decides between the pair's two answers; noise from an independent sequence sends the answer
    anywhere, so that 1/|Σ| of the answers are right by chance.
    """
    anywhere = direction == "noising" and pairs.link is None
    return 0.5 * (1 - 1 / pairs.clean.task.alphabet_size if anywhere else 1.0)


def choose_pairs(
    task: HopTask,
    hops: int,
    pairs: Kind | Pairs,
    by: By,
    link: int | None,
    position: int | None,
    sequences: int,
    seed: int,
) -> Pairs:
    """The given pairs, or pairs of the given kind. By position i is the last by default, or no two pairs would line up."""
    if isinstance(pairs, str):
        position = task.n_letters if position is None and by == "position" else position
        return draw_pairs(task, hops, sequences, kind=pairs, link=link, position=position, seed=seed)
    if pairs.hops != hops:
        raise HopInterpError(f"hops is {hops}; the given pairs ask for {pairs.hops}")
    return pairs


def describe(pairs: Pairs) -> dict[str, Any]:
    """What pairs are, for the settings of a result."""
    settings: dict[str, Any] = {"pairs": pairs.kind, "sequences": len(pairs), "redrawn": pairs.redrawn}
    if pairs.link is None:
        return settings
    return settings | {"link": int(pairs.link[0]) if len(pairs.link.unique()) == 1 else "drawn"}


@dataclass(frozen=True, eq=False)
class _Swept(Exchange):
    """An exchange whose unpatched logits come from the sweeps too: patches that change nothing have exactly no effect."""

    def read_logits(self, tokens: Int[Tensor, "pair position"]) -> Float[Tensor, "pair d_vocab"]:
        """The model's logits at each pair's watched position: those of a run patched with its own activation."""
        first: Any = torch.zeros(len(tokens), 1, dtype=torch.long, device=tokens.device)
        model: Any = self.model
        return resid_sweep(model, tokens, tokens, read=self.pairs.position, positions=first)[0, 0]


def _patched_by_sweeps(
    exchange: Exchange, site: str, positions: Int[Tensor, "pair cell"] | None, memory: int, report: Report | None
) -> Float[Tensor, "layer head cell pair d_vocab"]:
    """What `patched_by_hooks` gives, by the sweeps that skip what cannot change."""
    model: Any = exchange.model
    given: dict[str, Any] = {"read": exchange.pairs.position, "positions": positions, "memory": memory, "report": report}
    if site == "z":
        return head_sweep(model, exchange.run_tokens, exchange.source_tokens, **given)
    return resid_sweep(model, exchange.run_tokens, exchange.source_tokens, **given | {"site": site})[:, None]
