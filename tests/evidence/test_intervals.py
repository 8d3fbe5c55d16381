"""The bootstrap of a ratio that is no rate."""

import pytest
import torch

from hopinterp.evidence.intervals import bootstrap_ratio


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
