"""The alignment of every head's attention pattern with find^j, for any set of k at once."""

from __future__ import annotations

from typing import Any

import torch
import xarray as xr
from jaxtyping import Float, Int
from torch import Tensor

from hopinterp.evidence.datasets import described
from hopinterp.evidence.intervals import LEVEL, bootstrap
from hopinterp.evidence.remembered import remembered
from hopinterp.models.hooks import pattern
from hopinterp.models.subject import ModelLike, Subject
from hopinterp.progress import Report, counted
from hopinterp.task import Hops, HopTask

Pattern = Float[Tensor, "*k batch head query key"]


@remembered
@torch.no_grad()
def align(
    model: ModelLike,
    task: HopTask,
    hops: Hops | None = None,
    sequences: int = 50,
    seed: int = 0,
    report: Report | None = None,
) -> xr.Dataset:
    """How each head's pattern A agrees with find^j, for every (k, layer, head, j): the paper's appendix G.4.

    With B the 0/1 matrix of find^j (row i has its one at find^j(i), and is empty where that is 0), the score of a
    sequence is the cosine Σ A⊙B / (‖A‖‖B‖), as the authors' code computes it (the printed formula has ‖A‖²).

    Args:
        hops: the values of k that the model is asked for; all of 0 … max_hops by default.
        sequences: drawn once; the same sequences serve every k.
        report: called after each pass, of all sequences that are taken together at one k.

    Returns:
        Dims hops (k), layer, head, hop (j). Means over sequences of `score` (with `low`, `high`, 95% by bootstrap over them)
        and `score_valid`, whose norms run over the rows where find^j is not null, so that a perfect head scores 1;
        `previous_token`, `task_token` (the first position) and `self_token` [hops, layer, head], cosines likewise;
        `uniform`, `uniform_valid` [hop], the scores of a head that attends evenly, as a control; `best_hop` [hops, layer,
        head], the j of the highest score, and `best_score` (the paper's Figures 14 and 15).

    Raises:
        HopInterpError: k out of range, or no sequences.
    """
    subject, ks = Subject.asked(model, task), task.hop_counts(hops)
    batch = task.sample(sequences, hops=0, seed=seed, device=subject.device)
    names = [pattern(layer) for layer in subject.layers()]
    split = [x.split(subject.at_once(task.n_positions, patterns=True)) for x in (batch.tokens, batch.find)]
    advance = counted("reading attention", len(ks) * len(split[0]), report)
    parts: list[dict[str, Tensor]] = []
    controls = []
    for tokens, find in zip(*split, strict=True):
        by_k = []
        for k in ks:
            asked = torch.cat([torch.full_like(tokens[:, :1], k), tokens[:, 1:]], dim=1)
            _, cache = subject.run_with_cache(asked, names)
            by_k.append(_stack([scores(cache[name].float(), find) for name in names], dim=1))
            advance(1)
        parts.append(_stack(by_k, dim=0))
        controls.append(scores(_uniform(task.n_positions).expand(len(tokens), 1, -1, -1), find.cpu()))
    by_sequence = {name: torch.cat([part[name] for part in parts], dim=1).cpu() for name in parts[0]}
    control = {name: torch.cat([one[name] for one in controls]) for name in ("score", "score_valid")}
    found = _dataset(by_sequence, control, ks, seed)
    return described(found, subject, task, seed=seed, sequences=sequences, level=LEVEL)


def scores(patterns: Pattern, find: Int[Tensor, "batch hop position"]) -> dict[str, Tensor]:
    """Cosines of each pattern with find^j and with three fixed matrices, for one block. NaN where find^j has no pair.

    The 0/1 matrices are never built: Σ A⊙B gathers one number a row. Patterns may have more leading dims (one for k, say):
    the same `find` serves them all.

    Returns:
        `score`, `score_valid` [… batch, head, hop]; `previous_token`, `task_token`, `self_token` [… batch, head].
    """
    n = patterns.shape[-1]
    valid = (find > 0).to(patterns.dtype)
    batch, heads = patterns.shape[-4:-2]
    squares = torch.arange(batch * heads, device=find.device).view(batch, heads, 1, 1) * n
    places = (squares + torch.arange(n, device=find.device)) * n + find[:, None]
    # one flat selection, which takes half as long as torch.gather, and less with short indices where they reach
    width = batch * heads * n * n
    met = patterns.reshape(-1, width).index_select(1, places.flatten().to(torch.int32 if width < 2**31 else torch.int64))
    met = met.view(*patterns.shape[:-2], *find.shape[1:])
    hit = torch.linalg.vecdot(met, valid[:, None])
    row = torch.linalg.vector_norm(patterns, dim=-1).square()
    norm = row.sum(-1, keepdim=True).sqrt()
    pairs = valid.sum(-1)[:, None].sqrt()
    return {
        "score": hit / (norm * pairs),
        "score_valid": hit / ((row @ valid.mT).sqrt() * pairs),
        "previous_token": patterns.diagonal(-1, -2, -1).sum(-1) / (norm[..., 0] * (n - 1) ** 0.5),
        "task_token": patterns[..., 0].sum(-1) / (norm[..., 0] * n**0.5),
        "self_token": patterns.diagonal(0, -2, -1).sum(-1) / (norm[..., 0] * n**0.5),
    }


def _stack(parts: list[dict[str, Tensor]], dim: int) -> dict[str, Tensor]:
    return {name: torch.stack([part[name] for part in parts], dim=dim) for name in parts[0]}


def _uniform(n: int) -> Pattern:
    ones = torch.ones(n, n).tril()
    return (ones / ones.sum(-1, keepdim=True))[None, None]


def _dataset(values: dict[str, Tensor], control: dict[str, Tensor], ks: list[int], seed: int) -> xr.Dataset:
    """Means and intervals over sequences; `values` are [k, sequence, layer, head, …]."""
    means = {name: value.nanmean(1).numpy() for name, value in values.items()}
    by_sequence = values["score"].transpose(0, 1)
    low, high = bootstrap(by_sequence.nan_to_num(), (~by_sequence.isnan()).double(), seed)
    dims = ("hops", "layer", "head", "hop")
    _, _, n_layers, n_heads, n_hops = values["score"].shape
    data: dict[str, tuple[Any, Any]] = {name: (dims[: value.ndim], value) for name, value in means.items()}
    data |= {"low": (dims, low.numpy()), "high": (dims, high.numpy())}
    data["uniform"] = ("hop", control["score"].nanmean((0, 1)).numpy())
    data["uniform_valid"] = ("hop", control["score_valid"].nanmean((0, 1)).numpy())
    coords = {"hops": ks, "layer": range(n_layers), "head": range(n_heads), "hop": range(n_hops)}
    result = xr.Dataset(data, coords)
    filled = result.score.fillna(-1)
    return result.assign(best_hop=filled.idxmax("hop").astype(int), best_score=filled.max("hop"))
