"""How far an intervention moved an answer, on a scale where the two unpatched runs are 0 and 1."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import xarray as xr
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hopinterp.evidence.intervals import bootstrap_ratio
from hopinterp.progress import Progress, Report

_STANDARD_ERRORS = 4.0  # by chance an untrained model's two runs differ by 2 of them in one metric of twenty

METRICS = ("logit_difference", "probability", "accuracy")
"""The right answer's logit less the counterfactual's; the right answer's probability; whether it is the most likely."""


def default_metric(by: str) -> str:
    """What effects are read by where nothing else is asked for: along the chain probability, else logit_difference."""
    return "probability" if by == "chain" else "logit_difference"


IN_PART = 0.05
"""An effect that is smaller is a trifle, however sure."""


def measure(
    logits: Float[Tensor, "*cell pair d_vocab"], right: Int[Tensor, " pair"], wrong: Int[Tensor, " pair"]
) -> Float[Tensor, "metric *cell pair"]:
    """All three metrics of each run, from its logits at the watched position."""
    rows = torch.arange(len(right), device=logits.device)
    difference = logits[..., rows, right] - logits[..., rows, wrong]
    probability = logits.softmax(-1)[..., rows, right]
    accuracy = (logits.argmax(-1) == right).to(logits.dtype)
    return torch.stack([difference, probability, accuracy]).double()


@dataclass(frozen=True, eq=False)
class Scale:
    """The two unpatched runs of each pair, between which effects are measured.

    Attributes:
        run: [metric, pair], the run that is patched.
        source: [metric, pair], the run that the activations come from.
    """

    run: Float[Tensor, "metric pair"]
    source: Float[Tensor, "metric pair"]

    def effects(
        self,
        values: Float[Tensor, "metric *cell pair"],
        dims: Sequence[str],
        seed: int,
        counted: Bool[Tensor, "... pair"] | None = None,
        report: Report | None = None,
    ) -> xr.Dataset:
        """Σ (patched − run) / Σ (source − run) over pairs: 0 where patches change nothing, 1 where they change everything.

        Args:
            values: the patched runs.
            dims: names of the cells' dims.
            counted: which pairs count in which cell (broadcast over leading cells); all by default.
            report: called after each metric.

        Returns:
            Dims metric and `dims`: `effect`, `low`, `high` (95%, bootstrap over pairs). NaN for a metric that does not tell
            the two unpatched runs apart (their mean difference is under four standard errors, or the 95% interval of it
            holds 0), for then there is no scale.
        """
        cells = values.shape[1:-1]
        weight = torch.ones_like(values) if counted is None else counted.to(values).expand_as(values)
        run, gap = (x[(slice(None), *(None,) * len(cells))] for x in (self.run, self.source - self.run))
        top, bottom = ((x * weight).movedim(-1, 0) for x in (values - run, gap.expand_as(values)))
        ends = []
        for metric in range(len(values)):
            ends.append(torch.stack(bootstrap_ratio(top[:, metric], bottom[:, metric], seed)))
            if report is not None:
                report(Progress("intervals", metric + 1, len(values)))
        low, high = torch.stack(ends, dim=1)
        n = weight.movedim(-1, 0).sum(0)
        mean = bottom.sum(0) / n
        spread = ((gap - mean[..., None]).square() * weight).sum(-1).div(n - 1).sqrt()
        blurred = (mean.abs() < _STANDARD_ERRORS * spread / n.sqrt()).to(low.device)
        low, high = low.masked_fill(blurred, torch.nan), high.masked_fill(blurred, torch.nan)
        effect = torch.where(low.isnan(), torch.nan, top.sum(0) / torch.where(low.isnan(), 1.0, bottom.sum(0)))
        found = {"effect": effect, "low": low, "high": high}
        data = {name: (("metric", *dims), x.cpu().numpy()) for name, x in found.items()}
        return xr.Dataset(data, {"metric": list(METRICS[: len(values)])})

    def unpatched(self, noising: bool) -> xr.Dataset:
        """`clean` and `corrupt` [metric]: means of the two unpatched runs."""
        clean, corrupt = (self.run, self.source) if noising else (self.source, self.run)
        return xr.Dataset(
            {"clean": ("metric", clean.mean(1).cpu().numpy()), "corrupt": ("metric", corrupt.mean(1).cpu().numpy())}
        )


def in_part(found: xr.Dataset) -> xr.DataArray:
    """Chain positions whose effect is too small to matter by itself, yet no trifle, and surely more than a place's off the
    chain.

    Args:
        found: what `patch` returned, by="chain", or a part of it.
    """
    partly: xr.DataArray = (found.low > found.off_chain_high) & (found.effect >= IN_PART) & ~found.matters
    return partly
