"""eval, attention and probe: what they print and draw."""

import numpy as np
import pytest

import hopinterp as hi
from hopinterp.models import store


def test_eval_json(run_json, model, small_model, small_task):
    found = run_json("eval", model, "--hops", "1-3", "--sequences", 5)
    measured = hi.evaluate(small_model, small_task, [1, 2, 3], sequences=5)
    assert list(found["errors"].values()) == measured.error.values.tolist()
    assert set(found["errors"]) == set(found["low"]) == set(found["high"]) == {"1", "2", "3"}
    for k, error in found["errors"].items():
        assert 0 <= found["low"][k] <= error <= found["high"][k] <= 1
    assert found["settings"]["sequences"] == 5
    assert found["settings"]["model"] == "m"


def test_eval_table(run, model):
    status, out, _ = run("eval", model, "--hops", "2", "--sequences", 5)
    assert status == 0
    assert "error %" in out
    assert "m solves not even k = 2 in eval mode" in out


def test_eval_splits_by_chain(run, run_json, model, small_model, small_task):
    found = run_json("eval", model, "--hops", "1-3", "--sequences", 5, "--distinct", 6)
    measured = hi.evaluate(small_model, small_task, [1, 2, 3], sequences=5, distinct=6)
    assert list(found["distinct"]["errors"].values()) == measured.distinct_error.values.tolist()
    assert (found["capacity"], found["distinct"]["capacity"]) == (0, 0)
    _, out, _ = run("eval", model, "--hops", "2", "--sequences", 5, "--distinct", 6)
    assert "without repeats %" in out
    assert "no letter repeats two hops apart, the theorem's worst case: not even k = 2." in " ".join(out.split())


def test_probe_json(run_json, model):
    found = run_json("probe", model, "--hops", 2, "--method", "ridge", "--sequences", 10, "--train-sequences", 20)
    assert found["hops"] == 2
    assert [row["layer"] for row in found["layers"]] == [0, 1]
    for row in found["layers"]:
        assert set(row["accuracy"]) == set(row["baseline"]) == {"0", "1", "2", "3", "4"}
        assert row["held"] == [0]
        assert (row["resolved"], row["frontier"]) == (0, 0)
    assert found["layers"][1]["theory"] == {"lookup": 1, "successor": 1, "sequential": 1}


def test_probe_one_layer(run, model):
    _, out, _ = run("probe", model, "--hops", 2, "--layer", 1, "--sequences", 10, "--train-sequences", 20)
    assert "Block 1 resolves 0 of 2 hops. Theory: lookup 1; successor 1; sequential 1." in out


def test_attention_json(run_json, model, small_model, small_task):
    """Every list is what `align` found, [layer][head][j], and the best is the largest of its row."""
    found = run_json("attention", model, "--hops", 2, "--sequences", 5)
    one = hi.align(small_model, small_task, 2, sequences=5).sel(hops=2)
    names = {"scores": one.score, "scores_valid": one.score_valid, "uniform_valid": one.uniform_valid}
    names |= {name: one[name] for name in ("low", "high", "previous_token", "task_token", "self_token", "uniform")}
    for name, expected in names.items():
        np.testing.assert_array_equal(found[name], expected, name)
    np.testing.assert_array_equal(found["best_hop"], np.argmax(found["scores"], axis=-1))
    np.testing.assert_array_equal(found["best_score"], np.max(found["scores"], axis=-1))
    assert (found["hops"], found["settings"]["sequences"], found["settings"]["model"]) == (2, 5, "m")


def test_undefined_numbers_are_null(run_json, tmp_path, small_model, small_task):
    from dataclasses import replace

    task = replace(small_task, n_letters=2)
    store.save(tmp_path / "short", small_model, task, {"how": "by a test"})
    found = run_json("attention", tmp_path / "short", "--hops", 1, "--sequences", 5)
    assert found["scores"][0][0][4] is None


@pytest.mark.parametrize(
    "arguments",
    [
        ("eval", "--sequences", 4),
        ("attention", "--hops", 2, "--sequences", 4),
        ("probe", "--hops", 2, "--method", "ridge", "--sequences", 8, "--train-sequences", 8),
        ("transplant", "--hops", 2, "--sequences", 20),
    ],
)
@pytest.mark.parametrize("ending", ["png", "svg"])
def test_plots_are_written_whole(run, model, tmp_path, arguments, ending):
    command, *rest = arguments
    status, _, _ = run(command, model, *rest, "--plot", tmp_path / f"figure.{ending}", "--dpi", 40)
    assert status == 0
    head = (tmp_path / f"figure.{ending}").read_bytes()[:100]
    assert head.startswith(b"\x89PNG") if ending == "png" else b"<?xml" in head
    if ending == "png":
        assert int.from_bytes(head[16:20]) < 40 * 9  # pixels across, of a figure under nine inches
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"figure.{ending}", "m"]
