"""What a model answers: err_k, the share of answered positions that are wrong, for each k."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
import xarray as xr
from jaxtyping import Int
from torch import Tensor

from hopinterp.errors import HopInterpError
from hopinterp.evidence.intervals import LEVEL, korn_graubard
from hopinterp.models.fused import FusedTransformer, device_of, runner
from hopinterp.task import HopTask

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

_BATCH = 100


def evaluate(
    model: HookedTransformer | FusedTransformer,
    task: HopTask,
    hops: Iterable[int] | None = None,
    sequences: int = 100,
    seed: int = 0,
    dropout: float = 0.0,
) -> xr.Dataset:
    """err_k on fresh sequences (the paper's Figures 2 and 6 to 8). The same sequences serve every k.

    Args:
        hops: the values of k; 1 … max_hops by default.
        sequences: how many sequences a k.
        dropout: rate of dropout left on while answering. The paper's published table was measured so, at 0.1.

    Returns:
        Dim k. `error`: share of the positions whose answer is a letter (null and blank left out) where the most likely
        token is another; `low`, `high`: its 95% interval (Korn and Graubard's, by sequence); `null_error`: the same
        share over positions whose answer is null; `positions`: how many positions `error` counts.

    Raises:
        HopInterpError: k out of range, too few sequences, or dropout asked of a model that only TransformerLens can run.
    """
    ks = list(hops) if hops is not None else list(range(1, task.max_hops + 1)) or [0]
    task.check_hops(*ks)
    if not ks:
        raise HopInterpError("no values of k were given")
    run = runner(model, task)
    if dropout and not isinstance(run, FusedTransformer):
        raise HopInterpError("dropout cannot be measured on this HookedTransformer: it has hooks or unusual features")
    device = device_of(run)
    generator = torch.Generator(device).manual_seed(seed)
    wrong, counted, null_error = [], [], []
    for k in ks:
        batch = task.sample(sequences, hops=k, seed=seed, device=device)
        mistakes = _answers(run, batch.tokens, dropout, generator) != batch.labels
        wrong.append((mistakes & batch.scored).sum(1).cpu())
        counted.append(batch.scored.sum(1).cpu())
        null_error.append(float(mistakes[batch.labels == task.null].cpu().double().mean()))
    low, high = korn_graubard(torch.stack(wrong, 1), torch.stack(counted, 1))
    positions = torch.stack(counted, 1).sum(0)
    return xr.Dataset(
        {
            "error": ("k", (torch.stack(wrong, 1).sum(0).double() / positions).numpy()),
            "low": ("k", low.numpy()),
            "high": ("k", high.numpy()),
            "null_error": ("k", null_error),
            "positions": ("k", positions.numpy()),
        },
        coords={"k": ks},
        attrs={"sequences": sequences, "seed": seed, "dropout": dropout, "level": LEVEL},
    )


@torch.no_grad()
def _answers(
    model: HookedTransformer | FusedTransformer,
    tokens: Int[Tensor, "batch position"],
    dropout: float,
    generator: torch.Generator,
) -> Int[Tensor, "batch position"]:
    parts = tokens.split(_BATCH)
    if isinstance(model, FusedTransformer):
        return torch.cat([model(part, dropout=dropout, generator=generator).argmax(-1) for part in parts])
    return torch.cat([model(part).argmax(-1) for part in parts])
