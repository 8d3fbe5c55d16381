"""Alignment scores against plain loops with dense 0/1 matrices, on made-up patterns and on real heads."""

import numpy as np
import pytest
import torch
import xarray as xr

import hopinterp as hi
from hopinterp import HopInterpError, HopTask
from hopinterp.evidence.reading.attention import scores


def cosine(a, b):
    return float((a * b).sum() / np.sqrt((a**2).sum() * (b**2).sum()))


def by_loops(pattern, find):
    """The authors' definition, one head and one sequence at a time."""
    n_hops, n = find.shape
    score, valid = np.full(n_hops, np.nan), np.full(n_hops, np.nan)
    for j in range(n_hops):
        target = np.zeros((n, n))
        for i in range(n):
            if find[j, i] > 0:
                target[i, find[j, i]] = 1
        if target.any():
            score[j] = cosine(pattern, target)
            rows = target.any(1)
            valid[j] = cosine(pattern[rows], target[rows])
    previous = np.eye(n, k=-1)
    first = np.zeros((n, n))
    first[:, 0] = 1
    return score, valid, cosine(pattern, previous), cosine(pattern, first), cosine(pattern, np.eye(n))


@pytest.mark.parametrize("repeats", [False, True])
def test_scores_equal_plain_loops(repeats):
    task = HopTask(25, 4, 12)
    generator = torch.Generator().manual_seed(0)
    batch = task.sample(3, seed=0)
    if repeats:
        batch = task.from_letters(torch.randint(4, (3, 25), generator=generator), 1)
    n = task.n_positions
    logits = 3 * torch.randn(3, 2, n, n, generator=generator)
    patterns = logits.masked_fill(torch.ones(n, n).triu(1).bool(), -torch.inf).softmax(-1)
    found = scores(patterns, batch.find)
    for b in range(3):
        for head in range(2):
            score, valid, previous, first, own = by_loops(patterns[b, head].double().numpy(), batch.find[b].numpy())
            np.testing.assert_allclose(found["score"][b, head], score, atol=1e-5)
            np.testing.assert_allclose(found["score_valid"][b, head], valid, atol=1e-5)
            assert float(found["previous_token"][b, head]) == pytest.approx(previous, abs=1e-5)
            assert float(found["task_token"][b, head]) == pytest.approx(first, abs=1e-5)
            assert float(found["self_token"][b, head]) == pytest.approx(own, abs=1e-5)
    if not repeats:  # the longest hops have no pair in so short a sequence; a repeated letter can point to itself for ever
        assert torch.isnan(found["score"]).any()


@pytest.mark.parametrize(("hop", "cap"), [(1, 0.97), (4, 0.93), (8, 0.86), (16, 0.70)])
def test_a_perfect_head_is_capped_by_its_null_rows(task, hop, cap):
    batch = task.sample(50, hops=hop, seed=0)
    perfect = torch.nn.functional.one_hot(batch.find[:, hop], task.n_positions).float()[:, None]
    found = scores(perfect, batch.find)
    assert float(found["score"][:, 0, hop].mean()) == pytest.approx(cap, abs=0.02)
    assert torch.allclose(found["score_valid"][:, 0, hop], torch.tensor(1.0))


def test_the_depth_4_checkpoint_s_heads(depth4, task):
    found = hi.align(depth4, task, hops=4)
    assert sorted(found.previous_token.sel(hops=4, layer=0).values)[-2:] == pytest.approx([0.99, 0.99], abs=0.01)
    top = found.best_score.sel(hops=4).max("head")
    assert float(found.score.sel(hops=4, layer=1, hop=1).max()) == pytest.approx(0.98, abs=0.02)
    assert float(found.score.sel(hops=4, layer=2, hop=2).max()) == pytest.approx(0.92, abs=0.02)
    assert float(found.score.sel(hops=4, layer=3, hop=3).max()) == pytest.approx(0.91, abs=0.02)
    assert (top.sel(layer=[1, 2, 3]) > 0.9).all()
    assert ((found.low <= found.score) & (found.score <= found.high)).all()
    assert (found.uniform < 0.25).all()


def test_many_k_at_once_equal_one_at_a_time(depth3, task):
    together = hi.align(depth3, task, hops=[2, 9], sequences=5, seed=3)
    for k in (2, 9):
        alone = hi.align(depth3, task, hops=k, sequences=5, seed=3)
        np.testing.assert_allclose(together.score.sel(hops=k), alone.score.sel(hops=k), atol=1e-5)


def test_a_hooked_transformer_gives_the_same(depth3, task):
    hooked = depth3.spec.build(depth3.parameters)
    hooked.add_hook("blocks.2.hook_mlp_out", lambda value, hook: value)  # noqa: ARG005
    plain, seen = (hi.align(m, task, hops=3, sequences=4) for m in (depth3, hooked))
    np.testing.assert_allclose(plain.score, seen.score, atol=1e-4)


def test_results_go_to_netcdf(small_model, small_task, tmp_path):
    found = hi.align(small_model, small_task, sequences=4)
    found.to_netcdf(tmp_path / "a.nc")
    xr.testing.assert_identical(xr.load_dataset(tmp_path / "a.nc"), found)
    assert all("long_name" in variable.attrs for variable in found.variables.values())


def test_progress_reaches_its_end(small_model, small_task):
    heard = []
    hi.align(small_model, small_task, hops=np.array([1, 3]), sequences=120, report=heard.append)
    assert [(one.done, one.total) for one in heard] == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_bad_questions_are_named(small_model, small_task):
    with pytest.raises(HopInterpError, match="hops is 9"):
        hi.align(small_model, small_task, hops=9)
    with pytest.raises(HopInterpError, match="no values of k"):
        hi.align(small_model, small_task, hops=[])
