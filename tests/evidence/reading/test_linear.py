"""The batched solvers against scikit-learn, one problem at a time."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge

from hopinterp.evidence.reading.linear import Standardizer, fit_logistic, fit_ridge


@pytest.fixture
def problems():
    """3,000 rows, 20 features; nested valid rows; targets from easy to noise, one class missing in the last."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(3000, 20, generator=generator) * torch.logspace(0, -2, 20) + 5
    rows = Standardizer.fit(features)(features)
    truth = torch.randn(20, 4, generator=generator)
    scores = (features - 5) @ truth
    noise = torch.randn(3000, 4, generator=generator)
    targets = torch.stack([(scores + level * noise).argmax(1) for level in (0.3, 1, 5, 100)], dim=1)
    targets[:, 3] = targets[:, 3].clamp_max(2)
    last = torch.tensor([3000, 2500, 2500, 900])
    valid = torch.arange(3000)[:, None] < last
    shuffle = torch.randperm(3000, generator=generator)
    return rows[shuffle], targets[shuffle], valid[shuffle]


def mean_loss(rows, targets, weights, penalty):
    z = rows.double() @ weights.double()
    loss = torch.nn.functional.cross_entropy(z, targets, reduction="sum")
    return float(loss + penalty / 2 * weights[:-1].double().square().sum()) / len(rows)


@pytest.mark.parametrize("penalty", [1.0, 30.0])
def test_logistic_meets_scikit_learn_s_objective(problems, penalty):
    rows, targets, valid = problems
    weights = fit_logistic(rows, targets, valid, n_classes=4, penalty=penalty)
    for p in range(4):
        x, y = rows[valid[:, p]], targets[valid[:, p], p]
        theirs = LogisticRegression(C=1 / penalty, max_iter=5000, tol=1e-8).fit(x[:, :-1].numpy(), y.numpy())
        reference = torch.full((21, 4), -torch.inf, dtype=torch.float64)
        for row, c in enumerate(theirs.classes_):
            reference[:-1, c] = torch.from_numpy(theirs.coef_[row])
            reference[-1, c] = float(theirs.intercept_[row])
        kept = torch.from_numpy(theirs.classes_)
        ours = mean_loss(x, y, weights[p], penalty)
        best = mean_loss(x, torch.searchsorted(kept, y), reference[:, kept], penalty)
        assert ours == pytest.approx(best, abs=1e-4)
        agreement = ((x @ weights[p]).argmax(1).numpy() == theirs.predict(x[:, :-1].numpy())).mean()
        assert agreement > 0.99


def test_logistic_survives_separable_rows():
    x = torch.linspace(-1, 1, 400)[:, None]
    rows, targets = Standardizer.fit(x)(x), (x > 0).long()
    weights = fit_logistic(rows, targets, torch.ones(400, 1, dtype=torch.bool), n_classes=2)
    assert weights.isfinite().all()
    assert ((rows @ weights[0]).argmax(1) == targets[:, 0]).float().mean() > 0.98


def test_ridge_equals_scikit_learn_s(problems):
    rows, targets, valid = problems
    codes = torch.eye(4)[targets]
    weights = fit_ridge(rows, codes, valid, penalty=3.0)
    for p in range(4):
        x, y = rows[valid[:, p]].double().numpy(), codes[valid[:, p], p].double().numpy()
        theirs = Ridge(alpha=3.0).fit(x[:, :-1], y)
        np.testing.assert_allclose(weights[p, :-1].T, theirs.coef_, atol=2e-4)
        np.testing.assert_allclose(weights[p, -1], theirs.intercept_, atol=2e-4)


def test_valid_sets_need_not_be_nested():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(300, 3, generator=generator)
    rows, valid = Standardizer.fit(x)(x), torch.rand(300, 5, generator=generator) < 0.5
    codes = torch.randn(300, 5, 2, generator=generator)
    together = fit_ridge(rows, codes, valid)
    for p in range(5):
        alone = fit_ridge(
            rows[valid[:, p]], codes[valid[:, p], p : p + 1], torch.ones(int(valid[:, p].sum()), 1, dtype=torch.bool)
        )
        assert torch.allclose(together[p], alone[0], atol=1e-4)
