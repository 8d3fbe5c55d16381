"""Probes on the authors' checkpoints, on untrained models, and on activations whose contents are known."""

import numpy as np
import pytest
import torch
import xarray as xr

import hopinterp as hi
from hopinterp import HopInterpError, HopTask, ModelSpec
from hopinterp.evidence.reading.probes import resolved
from hopinterp.models.subject import Subject

DEPTH_4 = {  # letter of hop 0 … 7 read at each block of the depth-4 checkpoint
    4: {
        1: [1.00, 1.00, 0.81, 0.64, 0.50, 0.42, 0.35, 0.32],
        2: [1.00, 1.00, 1.00, 1.00, 0.82, 0.58, 0.48, 0.40],
        3: [0.92, 0.94, 0.97, 0.95, 1.00, 0.97, 0.89, 0.55],
    },
    7: {
        1: [1.00, 1.00, 0.82, 0.66, 0.51, 0.44, 0.36, 0.33],
        2: [1.00, 1.00, 1.00, 0.99, 0.89, 0.65, 0.55, 0.47],
        3: [0.75, 0.80, 0.78, 0.84, 0.74, 0.85, 0.79, 0.98],
    },
}


@pytest.mark.parametrize(("k", "steps"), [(4, [0, 1, 3, 4]), (7, [0, 1, 3, 7])])
def test_the_depth_4_checkpoint_climbs_the_successor_staircase(depth4, task, k, steps):
    found = hi.probe(depth4, task, hops=k)
    assert found.resolved.values.tolist() == steps
    for layer, row in DEPTH_4[k].items():
        np.testing.assert_allclose(found.accuracy.sel(layer=layer, hop=range(8)), row, atol=0.04)
    np.testing.assert_allclose(found.lower_hops.sel(hop=[1, 2, 3]), [0.34, 0.50, 0.50], atol=0.02)
    np.testing.assert_allclose(found.majority, 0.25, atol=0.02)
    assert ((found.low <= found.accuracy) & (found.accuracy <= found.high)).all()
    assert (found.selectivity.where(found.held, 1) > 0.4).all()


def test_the_depth_3_checkpoint(depth3, task):
    assert hi.probe(depth3, task, hops=3).resolved.values.tolist() == [0, 1, 3]


def test_it_does_not_matter_how_many_blocks_are_kept_at_once(task, monkeypatch):
    spec = ModelSpec(3)
    model, settings = hi.FusedTransformer(spec, spec.initial_parameters(0)), {"train_sequences": 10, "sequences": 6}
    together = hi.probe(model, task, hops=2, furthest=2, **settings)
    monkeypatch.setattr("hopinterp.evidence.reading.probes.MEMORY", 1)
    assert hi.probe(model, task, hops=2, furthest=2, **settings).identical(together)


@pytest.mark.parametrize("seed", range(20))
def test_untrained_models_hold_nothing_beyond_hop_0(task, seed):
    spec = ModelSpec(3)
    model = hi.FusedTransformer(spec, spec.initial_parameters(100 + seed))
    found = hi.probe(model, task, hops=4, train_sequences=60, sequences=40, seed=seed)
    assert found.held.sel(hop=0).all()
    assert not found.held.sel(hop=range(1, 17)).any()
    assert found.resolved.values.tolist() == [0, 0, 0]


class Planted:
    """What runs with names, and whose outputs hold the letters, or the position, of chosen hops in random directions."""

    def __init__(self, task, hops, what):
        self.task, self.hops, self.what = task, hops, what
        self.generator = torch.Generator().manual_seed(0)
        turns = torch.arange(task.n_positions)[:, None] / (2 * task.n_positions) * torch.tensor([1, 3, 5]) * 2 * torch.pi
        self.circle = torch.cat([turns.cos(), turns.sin()], 1)
        self.directions = torch.randn(len(hops) + 1, task.n_positions, 64, generator=self.generator)
        self.hook_names = ["blocks.0.hook_resid_post"]

    def run_with_cache(self, tokens, names_filter):
        batch = self.task.from_letters(tokens[:, 1:] - self.task.first_letter, tokens[:, 0])
        out = self.directions[-1][tokens] + 0.3 * torch.randn(*tokens.shape, 64, generator=self.generator)
        for slot, hop in enumerate(self.hops):
            if self.what == "token":
                out = out + self.directions[slot][batch.hop_letters[:, hop] + 1]
            else:
                out = out + 4 * self.circle[batch.find[:, hop]] @ self.directions[slot][:6]
        return torch.zeros(*tokens.shape, self.task.d_vocab), dict.fromkeys(names_filter, out)


def planted(task, hops, what):
    """A subject of one block that is planted; its untrained twin is a model of its sizes."""
    spec = ModelSpec.for_task(task, 1, d_model=64)
    plain = hi.FusedTransformer(spec, spec.initial_parameters(0))
    return Subject(Planted(task, hops, what), None, "planted", plain, spec)


@pytest.mark.parametrize("method", ["logistic", "ridge"])
@pytest.mark.parametrize("hops", [[2], [1, 4]])
def test_planted_letters_are_found_and_no_others(method, hops):
    task = HopTask(60, 4, 6)
    found = hi.probe(planted(task, hops, "token"), task, hops=4, method=method)
    held = set(found.hop.values[found.held.values[0]].tolist())
    assert held == {0, *hops}
    assert int(found.resolved[0]) == max(hops)
    assert int(found.frontier[0]) == (1 if 1 in hops else 0)


def test_planted_positions_are_found():
    task = HopTask(60, 4, 6)
    found = hi.probe(planted(task, [3], "position"), task, hops=4, target="position")
    assert found.hop.values[found.held.values[0]].tolist() == [3]
    assert int(found.resolved[0]) == 3


def test_a_handful_of_rows_proves_nothing():
    """Hop 16 in 30 letters is there once or never: an accuracy of 1 on one sequence must not count as held."""
    task = HopTask(30, 4, 16)
    spec = ModelSpec.for_task(task, 2, d_model=32)
    for seed in range(8):
        model = hi.FusedTransformer(spec, spec.initial_parameters(seed))
        found = hi.probe(model, task, hops=16, method="ridge", train_sequences=40, sequences=20, seed=seed)
        assert not found.held.sel(hop=range(1, 17)).any()
    alone = hi.probe(model, task, hops=2, method="ridge", train_sequences=40, sequences=1)
    assert not alone.held.any()


def test_models_in_other_precisions(small_model, small_task):
    """Double precision is as good as single; of half precision nothing is read: products of it round by a hundredth."""
    whole, double, half = (
        small_model.spec.build(small_model.parameters).to(dtype) for dtype in (torch.float32, torch.float64, torch.bfloat16)
    )
    probed = [hi.probe(m, small_task, hops=2, train_sequences=40, sequences=40).accuracy for m in (whole, double)]
    assert float(abs(probed[0] - probed[1]).max()) < 0.1
    aligned = [hi.align(m, small_task, hops=2, sequences=10).score for m in (whole, double)]
    np.testing.assert_allclose(*aligned, atol=1e-5)
    with pytest.raises(HopInterpError, match=r"bfloat16; convert the model first: model.float\(\)"):
        hi.probe(half, small_task, hops=2)


def dataset(low, baseline=0.5):
    low = xr.DataArray(
        np.atleast_2d(low), dims=("layer", "hop"), coords={"layer": [0], "hop": range(np.atleast_2d(low).shape[1])}
    )
    return low, xr.full_like(low, baseline)


@pytest.mark.parametrize(
    ("low", "held", "r", "frontier"),
    [
        ([1, 1, 1, 0.5, 0.5], [0, 1, 2], 2, 2),
        ([1, 1, 0.5, 1, 0.5], [0, 1, 3], 3, 1),
        ([0.5, 0.5, 0.5, 0.5, 1], [4], 0, 0),  # held, but beyond k = 3
        ([0.5, 0.9, 0.91, 0.5, 0.5], [2], 2, 0),  # the bar itself is not enough
        ([0.5, 0.5, 0.5, 0.5, 0.5], [], 0, 0),
    ],
)
def test_resolved_is_the_largest_held_hop_within_k(low, held, r, frontier):
    found = resolved(*dataset(low), hops=3)
    assert found.hop.values[found.held.values[0]].tolist() == held
    assert int(found.resolved[0]) == r
    assert int(found.frontier[0]) == frontier


def test_one_layer_is_the_same_as_in_all(depth3, task):
    every = hi.probe(depth3, task, hops=3, method="ridge", train_sequences=40, sequences=20)
    one = hi.probe(depth3, task, hops=3, layers=[1], method="ridge", train_sequences=40, sequences=20)
    xr.testing.assert_allclose(every.sel(layer=[1]), one)


def test_results_go_to_netcdf(small_model, small_task, tmp_path):
    found = hi.probe(small_model, small_task, hops=2, train_sequences=20, sequences=10)
    found.to_netcdf(tmp_path / "p.nc")
    back = xr.load_dataset(tmp_path / "p.nc")
    xr.testing.assert_identical(back, found)
    assert all("long_name" in variable.attrs for variable in found.variables.values())
    again = resolved(back.low, back.baseline, back.attrs["hops"], back.attrs["bar"])
    assert again.held.equals(found.held)


def test_the_bar_can_be_another(small_model, small_task):
    found = hi.probe(small_model, small_task, hops=2, train_sequences=20, sequences=10)
    assert resolved(found.low, found.baseline, 2, bar=-100.0).held.all()
    assert not resolved(found.low, found.baseline, 2, bar=1.0).held.any()


def test_progress_reaches_its_end(small_model, small_task):
    heard = []
    hi.probe(small_model, small_task, hops=2, method="ridge", train_sequences=10, sequences=4, report=heard.append)
    assert [(one.done, one.total) for one in heard] == [(n, 4) for n in range(1, 5)]


def test_swapped_arguments_are_named(refuses, small_model, small_task):
    with refuses(r"the order is \(model, task\)"):
        hi.probe(small_task, small_model, hops=2)


def test_a_function_has_no_blocks_to_probe(small_task):
    with pytest.raises(HopInterpError, match="needs the model's blocks; a function gives only answers"):
        hi.probe(lambda tokens: torch.zeros(*tokens.shape, small_task.d_vocab), small_task, hops=2)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"hops": 5}, "hops is 5"),
        ({"hops": 2, "layers": [2]}, "layer is 2; this model has 0 to 1"),
        ({"hops": 2, "target": "letter"}, "target is 'letter'"),
        ({"hops": 2, "method": "forest"}, "method is 'forest'"),
        ({"hops": 2, "sequences": 0}, "batch_size is 0"),
    ],
)
def test_bad_questions_are_named(refuses, small_model, small_task, settings, words):
    with refuses(words):
        hi.probe(small_model, small_task, **settings)


def test_hops_can_be_read_up_to_one(small_model, small_task):
    found = hi.probe(small_model, small_task, 2, furthest=3, train_sequences=20, sequences=10)
    whole = hi.probe(small_model, small_task, 2, train_sequences=20, sequences=10)
    assert found.hop.values.tolist() == [0, 1, 2, 3]
    for name in ("majority", "lower_hops"):
        assert found[name].equals(whole[name].sel(hop=slice(0, 3)))
    assert np.allclose(found.accuracy, whole.accuracy.sel(hop=slice(0, 3)), atol=0.03)
    with pytest.raises(HopInterpError, match="hops is 99"):
        hi.probe(small_model, small_task, 2, furthest=99)
