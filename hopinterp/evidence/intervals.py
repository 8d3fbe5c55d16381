"""Confidence intervals for rates and ratios measured on sequences, whose positions are not independent."""

from __future__ import annotations

import torch
from jaxtyping import Float, Num
from scipy.special import betaincinv
from torch import Tensor

from hopinterp.seeds import seeded

LEVEL = 0.95
"""Every interval in the package is a two-sided 95% one."""
_NOTHING = 1e-9


def bootstrap(
    numerator: Num[Tensor, "sequence ..."],
    denominator: Num[Tensor, "sequence ..."],
    seed: int,
    resamples: int = 1000,
) -> tuple[Float[Tensor, "..."], Float[Tensor, "..."]]:
    """Percentile interval of Σ numerator / Σ denominator when sequences are drawn again with replacement.

    All rates share the same draws. Where that is narrower than Korn and Graubard's interval, as it is where all answers are
    right or few sequences count, theirs is given: resampling what was seen cannot show what was not. NaN where none counts.
    """
    low, high = _resampled_ratio(numerator, denominator, seed, resamples)
    exact_low, exact_high = korn_graubard(numerator, denominator)
    return torch.minimum(low, exact_low), torch.maximum(high, exact_high)


def bootstrap_ratio(
    numerator: Num[Tensor, "sequence ..."],
    denominator: Num[Tensor, "sequence ..."],
    seed: int,
    resamples: int = 1000,
) -> tuple[Float[Tensor, "..."], Float[Tensor, "..."]]:
    """Percentile interval of Σ numerator / Σ denominator, for a ratio that is no rate (no counts, either sign).

    NaN where the denominator's own interval holds 0: there is nothing to divide by. Where all sequences agree resampling
    shows no spread; Korn and Graubard's interval of a rate is then given, each sequence counted as one trial.
    """
    ones = (denominator != 0).to(denominator)
    least, most = _resampled_ratio(denominator, ones, seed, resamples)
    defined = (least > _NOTHING) | (most < -_NOTHING)
    safe = torch.where(defined, denominator.cpu().double(), ones.cpu().double())
    low, high = _resampled_ratio(numerator, safe, seed, resamples)
    rate = (numerator.cpu().double().sum(0) / safe.sum(0)).clamp(0, 1)
    exact_low, exact_high = korn_graubard(rate * ones.cpu().double(), ones)
    alike = high - low < _NOTHING
    low = torch.where(alike, torch.minimum(low, exact_low), low)
    high = torch.where(alike, torch.maximum(high, exact_high), high)
    return torch.where(defined, low, torch.nan), torch.where(defined, high, torch.nan)


def _resampled_ratio(
    numerator: Num[Tensor, "sequence ..."], denominator: Num[Tensor, "sequence ..."], seed: int, resamples: int
) -> Float[Tensor, "2 ..."]:
    """The two ends of the percentile interval. All ratios share the same draws."""
    sequences = len(numerator)
    generator = seeded(seed)
    draws = torch.randint(sequences, (resamples, sequences), generator=generator)
    weights = torch.zeros(resamples, sequences, dtype=torch.float64).scatter_add_(
        1, draws, torch.ones(resamples, sequences, dtype=torch.float64)
    )
    shape = numerator.shape[1:]
    top, bottom = (weights @ counts.cpu().double().reshape(sequences, -1) for counts in (numerator, denominator))
    tails = torch.tensor([(1 - LEVEL) / 2, (1 + LEVEL) / 2], dtype=torch.float64)
    return (top / bottom).nanquantile(tails, dim=0).view(2, *shape)


def korn_graubard(
    wrong: Num[Tensor, "sequence ..."], counted: Num[Tensor, "sequence ..."]
) -> tuple[Float[Tensor, "..."], Float[Tensor, "..."]]:
    """Interval of a rate near 0 or 1, where the bootstrap is too sure of itself (no error seen gives it [0, 0]).

    Clopper and Pearson's exact binomial interval at the effective sample size: the number of positions divided by the
    design effect, the factor by which whole sequences widen the variance (Korn and Graubard 1998). Taken as 1 where
    nothing can be estimated, that is where no position, or every one, is wrong. From one sequence nothing follows: [0, 1].
    """
    wrong, counted = wrong.cpu().double(), counted.cpu().double()
    n, sequences = counted.sum(0), len(counted)
    rate = wrong.sum(0) / n
    residual = (wrong - rate * counted) / n
    variance = residual.square().sum(0) * sequences / max(sequences - 1, 1)
    binomial = rate * (1 - rate) / n
    effect = torch.where(binomial > 0, variance / binomial, 1.0).clamp_min(1.0)
    n = n / effect
    k, tail = rate * n, (1 - LEVEL) / 2
    low = torch.as_tensor(betaincinv(k.clamp_min(1e-300).numpy(), (n - k + 1).numpy(), tail))
    high = torch.as_tensor(betaincinv((k + 1).numpy(), (n - k).clamp_min(1e-300).numpy(), 1 - tail))
    alone = (counted > 0).sum(0) < 2
    low, high = torch.where(alone | (rate <= 0), 0.0, low), torch.where(alone | (rate >= 1), 1.0, high)
    return torch.where(n > 0, low, torch.nan), torch.where(n > 0, high, torch.nan)
