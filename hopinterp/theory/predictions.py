"""What "r hops done" predicts: the letter answered where a block's output comes from another sequence's run."""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor

from hopinterp.task import Batch

FAMILIES = ("pointer", "content", "occurrence")
"""What a block's output may stand for, of position q = find^r(i): q itself, its letter and q, or the letter and which of its
occurrences it is."""


def predicted(base: Batch, source: Batch, hops: int, next_agrees: bool = False) -> Int[Tensor, "batch family hop position"]:
    """The letter answered at i if the block's output stands for "r hops done", r = 0 … k, families as in FAMILIES.

    With q = find^r(i) in the source, the base's algorithm goes on from what was carried. *Pointer*, the position: hop_{k−r}
    of the base at q. *Content*, letter and position: the same after the base's letter at q is replaced by the source's.
    *Occurrence*, the letter and that it is its m-th occurrence: the next hop leads behind the base's occurrence m − 1. At
    r = k these two are the source's own answer. −1 where there is no answer, and where the base would be one that no model
    has seen (content, r < k: X_{q−1} = X_q) or would look at i itself (occurrence).

    Args:
        next_agrees: −1 also where the next hop leads to another letter than in the source, so that a block which carries hop
            r + 1 as well does not contradict the base; then r = k − 1 is left out, which could not be told from r = k.
    """
    r = torch.arange(hops + 1, device=base.tokens.device)
    rows = torch.arange(len(base), device=r.device)[:, None, None]
    letter, links = source.hop_letters[:, : hops + 1], _next_links(base, source, hops)
    onward = base.hop_letters[rows[:, None], (hops - r - 1).clamp_min(0)[:, None], links]
    if next_agrees:
        reached, coming = base.hop_letters[:, 0][rows[:, None], links], source.hop_letters[:, (r + 1).clamp_max(hops)]
        onward = onward.where((reached == coming[:, None]) & (r < hops - 1)[:, None], -1)
    done = torch.stack([base.hop_letters[:, 0][rows, source.find[:, : hops + 1]], letter, letter], dim=1)
    return torch.where((r == hops)[:, None], done, onward)


def _next_links(base: Batch, source: Batch, hops: int) -> Int[Tensor, "batch family hop position"]:
    """Where the hop after r = 0 … k leads in the base from what each family says was carried; 0 where nowhere."""
    q, letter = source.find[:, : hops + 1], source.hop_letters[:, : hops + 1].clamp_min(0)
    rows = torch.arange(len(base), device=q.device)[:, None, None]
    latest, nth = positions_behind(base)
    content = latest[rows, letter, q]
    occurrence = nth[rows, letter, (occurrence_number(source)[rows, q] - 1).clamp_min(0)]
    here = torch.arange(q.shape[-1], device=q.device)
    return torch.stack([base.find1[rows, q], content.where(content < q, 0), occurrence.where(occurrence < here, 0)], dim=1)


def positions_behind(batch: Batch) -> tuple[Int[Tensor, "batch letter position"], Int[Tensor, "batch letter number"]]:
    """The positions after a letter's last occurrence left of each position, and after its n-th occurrence; 0 for none."""
    task, n = batch.task, batch.tokens.shape[1]
    letters = torch.arange(task.alphabet_size, device=batch.tokens.device) + task.first_letter
    seen = batch.tokens[:, None] == letters[:, None]
    after = torch.where(seen, torch.arange(1, n + 1, device=seen.device), 0)
    latest = after.cummax(-1).values.roll(1, -1)
    latest[..., 0] = 0
    nth = torch.zeros_like(after)
    nth.scatter_reduce_(-1, torch.where(seen, seen.cumsum(-1), 0), after, "amax")
    return latest, nth


def occurrence_number(batch: Batch) -> Int[Tensor, "batch position"]:
    """How often X_i has occurred up to i, itself included."""
    same = batch.tokens[:, :, None] == batch.tokens[:, None]
    return same.tril().sum(-1)
