"""Intervals of rates and of ratios: coverage, edges, and properties on drawn counts."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hopinterp.evidence.intervals import bootstrap, bootstrap_ratio, korn_graubard


def test_covers_the_truth_about_as_often_as_it_says():
    generator = torch.Generator().manual_seed(0)
    denominator = 2 + torch.rand(60, 300, generator=generator)
    numerator = -0.4 * denominator + torch.randn(60, 300, generator=generator)
    low, high = bootstrap_ratio(numerator, denominator, seed=1)
    assert 0.9 < float(((low < -0.4) & (high > -0.4)).double().mean()) < 0.98


def test_nothing_to_divide_by_is_nan():
    gap = torch.tensor([[0.0, 1.0, 1.0], [0.0, -1.0, 1.0]] * 20)
    low, high = bootstrap_ratio(torch.rand(40, 3), gap, seed=0)
    assert low.isnan().tolist() == high.isnan().tolist() == [True, True, False]


def test_agreement_of_all_is_not_certainty():
    ones = torch.ones(40, 2)
    low, high = bootstrap_ratio(ones * torch.tensor([0.0, 1.0]), ones, seed=0)
    assert low[0] == 0
    assert high[1] == 1
    assert float(high[0]) == pytest.approx(1 - 0.025 ** (1 / 40))
    assert float(low[1]) == pytest.approx(0.025 ** (1 / 40))


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), min_size=2, max_size=30))
def test_a_rate_lies_in_its_intervals(counts):
    wrong, counted = torch.tensor([(min(a, b), b) for a, b in counts], dtype=torch.float64).T
    if not counted.any():
        assert all(end.isnan() for interval in (korn_graubard, _bootstrap) for end in interval(wrong, counted))
        return
    rate = float(wrong.sum() / counted.sum())
    exact, resampled = korn_graubard(wrong, counted), _bootstrap(wrong, counted)
    for low, high in (exact, resampled):
        assert 0 <= float(low) <= rate + 1e-9
        assert rate - 1e-9 <= float(high) <= 1
    assert resampled[0] <= exact[0]
    assert resampled[1] >= exact[1]


def _bootstrap(wrong, counted):
    return bootstrap(wrong, counted, seed=0, resamples=200)
