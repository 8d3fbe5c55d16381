"""err_k: the authors' checkpoints give design-time and published tables; rigged models give known rates."""

import json

import numpy as np
import pytest
import torch
import xarray as xr

import hopinterp as hi
from hopinterp import HopInterpError
from hopinterp.evidence.intervals import bootstrap, korn_graubard
from hopinterp.evidence.reading.behaviour import capacity, error_table, solved_by

# eval mode, 200 sequences a k, in per cent, k = 1 … 16
EVAL_MODE = {
    "depth3": [0.0, 0.0, 0.2, 4.4, 15.9, 23.9, 31.5, 38.3, 44.4, 49.2, 54.5, 59.8, 62.5, 65.1, 67.6, 68.6],
    "depth4": [0.0, 0.0, 0.0, 0.0, 0.0, 0.1, 1.0, 6.9, 13.7, 20.1, 27.0, 34.9, 40.2, 44.3, 49.0, 53.7],
    "depth4_1000_samples": [0.1, 0.4, 33.9, 50.7, 61.2, 70.0, 71.3, 73.7, 75.3, 76.3, 75.6, 76.1, 76.0, 76.4, 76.9, 77.6],
}
KEYS = {"depth3": (3, 4, -1), "depth4": (4, 4, -1), "depth4_1000_samples": (4, 4, 1000)}


@pytest.mark.parametrize("name", EVAL_MODE)
def test_eval_mode_table(name, request, task):
    found = hi.evaluate(request.getfixturevalue(name), task, sequences=100, seed=1)
    assert np.abs(100 * found.error.values - EVAL_MODE[name]).max() < 3.0
    assert np.abs(100 * found.error.values - EVAL_MODE[name])[:3].max() < 1.5
    assert ((found.low <= found.error) & (found.error <= found.high)).all()


@pytest.mark.parametrize("name", KEYS)
def test_published_table_with_dropout(name, request, task, published):
    found = hi.evaluate(request.getfixturevalue(name), task, hops=[1, 2, 4, 7, 8, 11, 16], sequences=300, dropout=0.1)
    for k in found.hops.values:
        assert float(found.error.sel(hops=k)) == pytest.approx(published[f"({KEYS[name]}, {k})"], abs=0.03)


class Rigged:
    """A plain function from tokens to logits that answers rightly, but for the first `wrong` scored positions."""

    def __init__(self, task, wrong):
        self.task, self.wrong = task, wrong

    def __call__(self, tokens):
        batch = self.task.from_letters(tokens[:, 1:] - self.task.first_letter, tokens[:, 0])
        spoiled = batch.scored & (batch.scored.cumsum(1) <= self.wrong)
        return torch.nn.functional.one_hot(torch.where(spoiled, batch.labels + 1, batch.labels), 30).float()


@pytest.mark.parametrize("wrong", [0, 3])
def test_nulls_and_blanks_are_left_out(task, wrong):
    rigged = Rigged(task, wrong)
    found = hi.evaluate(rigged, task, hops=[2], sequences=20)
    positions = int(task.sample(20, hops=2, seed=0).scored.sum())
    assert int(found.positions[0]) == positions
    assert float(found.error[0]) == pytest.approx(20 * wrong / positions)
    assert float(found.null_error[0]) == 0


def test_solved_and_failed_are_read_off_the_interval_s_ends(task):
    found = hi.evaluate(Rigged(task, 1), task, hops=[1, 4], sequences=40)
    assert found.solved.values.tolist() == (found.high <= 0.01).values.tolist() == [False, False]
    assert hi.evaluate(Rigged(task, 0), task, hops=range(1, 4), sequences=40).solved.all()
    assert hi.evaluate(Rigged(task, 12), task, hops=1, sequences=40).failed.all()


def test_capacity_is_the_last_k_before_the_first_that_is_not_solved(small_model, small_task):
    found = hi.evaluate(small_model, small_task, sequences=4)
    for solved, expected in (([True, True, False, True], 2), ([False, True, True, True], 0), ([True] * 4, 4)):
        assert capacity(found.assign(solved=("hops", solved))) == expected
    assert capacity(found.sel(hops=[1, 3])) is None


class OnceBack(torch.nn.Module):
    """Knows hop k, but where the letter of hop k − 2 is the answer's it says that there is none."""

    def __init__(self, task):
        super().__init__()
        self.task = task

    def __call__(self, tokens):
        batch = self.task.from_letters(tokens[:, 1:] - self.task.first_letter, tokens[:, 0])
        k = int(tokens[0, 0])
        repeats = batch.hop_letters[:, k] == batch.hop_letters[:, k - 2]
        said = torch.where(repeats, self.task.null, batch.labels)
        return torch.nn.functional.one_hot(said, 30).float()


def test_chains_without_a_repeat_are_measured_apart(task):
    found = hi.evaluate(OnceBack(task), task, hops=[2, 5, 16], sequences=10, distinct=400)
    assert found.error.values == pytest.approx(0.5, abs=0.1)
    assert (found.distinct_error == 0).all()
    assert found.distinct_solved.all()
    assert not found.solved.any()
    assert (found.distinct_positions >= 400).all()
    every = hi.evaluate(Rigged(task, 99), task, hops=[5], sequences=10, distinct=40)
    assert float(every.distinct_error[0]) == 1
    assert every.attrs["distinct"] == 40


def test_the_split_leaves_all_other_numbers_alone(small_model, small_task):
    settings = {"sequences": 4, "dropout": 0.1}
    whole, without = (hi.evaluate(small_model, small_task, distinct=d, **settings) for d in (16, 0))
    assert "distinct_error" not in without
    for name in without.data_vars:
        assert whole[name].equals(without[name])


def test_where_there_is_no_such_chain_nothing_is_said():
    two = hi.HopTask(20, 2, 3)
    found = hi.evaluate(Rigged(two, 0), two, hops=[1, 3], sequences=10, distinct=40)
    assert found.distinct_positions.values[0] > 0
    assert found.distinct_positions.values[1] == 0
    assert found.distinct_error.isnull().values.tolist() == [False, True]
    assert not found.distinct_solved.values[1]


def test_capacity_has_a_worst_case(small_model, small_task):
    found = hi.evaluate(small_model, small_task, sequences=4)
    worse = found.assign(solved=("hops", [True] * 4), distinct_solved=("hops", [True, True, False, True]))
    assert (capacity(worse), capacity(worse, distinct=True)) == (4, 2)
    assert capacity(hi.evaluate(small_model, small_task, sequences=4), distinct=True) is None


def test_a_card_s_table_says_solved_as_the_dataset_does(task):
    found = hi.evaluate(Rigged(task, 0), task, hops=[1, 2, 16], sequences=30)
    table = json.loads(json.dumps(error_table(found)))
    assert solved_by(table) == found.hops[found.solved].values.tolist()
    assert table["errors"].keys() == table["low"].keys() == {"1", "2", "16"}


def test_k_may_be_one_number_of_any_kind(refuses, small_model, small_task):
    for hops in (3, np.int64(3), [3], np.array([3]), range(3, 4), iter([3])):
        assert hi.evaluate(small_model, small_task, hops=hops, sequences=2).hops.values.tolist() == [3]
    for bad in (True, 2.0, "3", [1.5]):
        with refuses("whole number"):
            hi.evaluate(small_model, small_task, hops=bad, sequences=2)


def test_progress_reaches_its_end(small_model, small_task):
    heard = []
    hi.evaluate(small_model, small_task, sequences=2, distinct=1, report=heard.append)
    assert [one.done for one in heard] == [2, 3, 5, 6, 8, 9, 11, 12]  # sequences, of every k
    assert {one.total for one in heard} == {12}


def test_much_of_one_k_is_reported_on_the_way(small_model, small_task, monkeypatch):
    """A time left is then known before the first k is done."""
    monkeypatch.setattr(hi.Subject, "at_once", lambda *_: 3)
    heard = []
    hi.evaluate(small_model, small_task, 2, sequences=7, report=heard.append)
    assert [(one.done, one.total) for one in heard] == [(3, 7), (6, 7), (7, 7)]


def test_results_go_to_netcdf(small_model, small_task, tmp_path):
    found = hi.evaluate(small_model, small_task, sequences=4)
    found.to_netcdf(tmp_path / "e.nc")
    xr.testing.assert_identical(xr.load_dataset(tmp_path / "e.nc"), found)
    assert found.attrs["seed"] == 0
    assert found.attrs["version"]
    assert all("long_name" in variable.attrs for variable in found.variables.values())


def test_bad_questions_are_named(refuses, small_model, small_task):
    for call, words in (
        (lambda: hi.evaluate(small_model, small_task, hops=[5]), "hops is 5; this task has 0 to 4"),
        (lambda: hi.evaluate(small_model, small_task, sequences=0), "batch_size is 0"),
        (lambda: hi.evaluate(small_model, small_task, hops=[]), "no values of k"),
        (lambda: hi.evaluate(small_model, small_task, dropout=1.5), "dropout is 1.5"),
        (lambda: hi.evaluate(small_model, hi.HopTask()), "the task needs 23 tokens"),
    ):
        with refuses(words):
            call()


def test_an_ablated_hooked_transformer_is_measured_as_it_is(depth3, task):
    hooked = depth3.spec.build(depth3.parameters)
    whole = hi.evaluate(hooked, task, hops=[2], sequences=10)
    hooked.add_hook("blocks.1.hook_attn_out", lambda value, hook: value * 0)  # noqa: ARG005
    ablated = hi.evaluate(hooked, task, hops=[2], sequences=10)
    assert float(whole.error[0]) < 0.01 < 0.4 < float(ablated.error[0])
    with pytest.raises(HopInterpError, match="dropout needs the model's weights"):
        hi.evaluate(hooked, task, hops=[2], dropout=0.1)


def coverage(interval, rho, rate=0.1, sequences=100, trials=300):
    """How often a 95% interval holds the true rate, for beta-binomial sequences with intra-class correlation rho."""
    torch.manual_seed(0)
    a, b = rate * (1 / rho - 1), (1 - rate) * (1 / rho - 1)
    hits = 0
    for trial in range(trials):
        counted = torch.randint(60, 90, (sequences,)).float()
        wrong = torch.binomial(counted, torch.distributions.Beta(a, b).sample((sequences,)))
        low, high = interval(wrong, counted, trial)
        hits += bool(low <= rate <= high)
    return hits / trials


@pytest.mark.parametrize("rho", [0.005, 0.03])
def test_intervals_cover_when_positions_are_not_independent(rho):
    assert coverage(lambda wrong, counted, _: korn_graubard(wrong, counted), rho) > 0.90
    assert coverage(lambda wrong, counted, seed: bootstrap(wrong, counted, seed, 300), rho) > 0.90


def test_one_sequence_tells_nothing():
    for interval in (korn_graubard, lambda *counts: bootstrap(*counts, seed=0)):
        low, high = interval(torch.tensor([3.0]), torch.tensor([80.0]))
        assert (low, high) == (0, 1)


def test_hop_0_alone_can_be_measured():
    task = hi.HopTask(10, 4, 0)
    spec = hi.ModelSpec.for_task(task, 1, d_model=16, n_heads=2)
    found = hi.evaluate(hi.FusedTransformer(spec, spec.initial_parameters(0)), task, sequences=4)
    assert found.hops.values.tolist() == [0]


def test_no_error_seen_is_no_proof_of_none():
    low, high = korn_graubard(torch.zeros(50), torch.full((50,), 80.0))
    assert low == 0
    assert float(high) == pytest.approx(1 - 0.025 ** (1 / 4000), rel=1e-6)  # the exact binomial bound
    low, high = korn_graubard(torch.full((50,), 80.0), torch.full((50,), 80.0))
    assert float(low) == pytest.approx(0.025 ** (1 / 4000), rel=1e-6)
    assert high == 1
