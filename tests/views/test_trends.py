"""Figures over many k, depths and steps show what the evidence says."""

import numpy as np
import pytest
from matplotlib.colors import to_hex

import hopinterp as hi
from hopinterp import HopInterpError
from hopinterp.models.fused import FusedTransformer
from hopinterp.models.spec import ModelSpec
from hopinterp.views import trends
from hopinterp.views.style import INKS


def another(small_task, seed):
    return FusedTransformer(
        spec := ModelSpec.for_task(small_task, 2, d_model=32, n_heads=2), dict(spec.initial_parameters(seed))
    )


def test_threshold(small_task):
    found = {f"depth {n}": hi.evaluate(another(small_task, n), small_task, range(5), sequences=5) for n in (2, 3)}
    published = {"depth 3": {0: 0.0, 1: 0.25, 2: 0.5}, "depth 9": {1: 0.125}}
    figure = trends.threshold(found, published, title="a threshold")
    measured, theirs = figure.axes
    drawn = {line.get_label(): line for line in measured.lines if str(line.get_label()).startswith("depth")}
    assert set(drawn) == set(found)
    for name, one in found.items():
        np.testing.assert_allclose(drawn[name].get_xydata(), np.c_[one.hops[1:], 100 * one.error[1:]])
    beside = {line.get_label(): line for line in theirs.lines if str(line.get_label()).startswith("depth")}
    np.testing.assert_allclose(beside["depth 3"].get_xydata(), [[1, 25], [2, 50]])  # k = 0 has no place on a log axis
    assert beside["depth 3"].get_color() == drawn["depth 3"].get_color() != beside["depth 9"].get_color()
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["depth 2", "depth 3", "depth 9", "95% interval"]
    assert len(trends.threshold(found).axes) == 1
    with pytest.raises(HopInterpError, match="no k above 0"):
        trends.threshold({"depth 2": found["depth 2"].sel(hops=[0])})


def test_argmax_map(small_model, small_task):
    found = hi.align(small_model, small_task, sequences=5)
    axes = trends.argmax_map(found).axes[0]
    numbers = np.array([int(text.get_text()) for text in axes.texts]).reshape(4, 5)
    np.testing.assert_array_equal(numbers, found.best_hop.values.transpose(1, 2, 0).reshape(4, 5))
    paleness = 1 - np.asarray(axes.images[0].get_array()).min(-1)  # the strongest channel's distance from white
    score = found.best_score.values.transpose(1, 2, 0).reshape(4, 5)
    for j in np.unique(numbers):  # of one colour, the better the agreement the stronger
        order = np.argsort(score[numbers == j])
        assert (np.diff(paleness[numbers == j][order]) >= -1e-9).all()
    assert [label.get_text() for label in axes.get_yticklabels()] == ["0.0", "0.1", "1.0", "1.1"]


def test_dynamics_of_errors(small_task):
    series = [(step, hi.evaluate(another(small_task, step), small_task, sequences=4)) for step in (200, 100)]
    axes = trends.dynamics(series, title="a run").axes[0]
    lines = [line for line in axes.lines if len(line.get_xdata()) == 2 and line.get_marker() == "."]
    assert len(lines) == 4
    for line, k in zip(lines, range(1, 5), strict=True):
        np.testing.assert_array_equal(line.get_xdata(), [100, 200])  # in the order of the steps
        np.testing.assert_allclose(line.get_ydata(), [100 * float(one.error.sel(hops=k)) for _, one in reversed(series)])
    with pytest.raises(HopInterpError, match="no steps"):
        trends.dynamics([])


def test_dynamics_of_probes(small_task):
    settings = {"hops": 2, "method": "ridge", "train_sequences": 20, "sequences": 10}
    series = [(step, hi.probe(another(small_task, step), small_task, **settings)) for step in (1, 2, 3)]
    panels = trends.dynamics(series).axes[:2][::-1]  # blocks go up the page
    for layer, axes in enumerate(panels):
        curves = [line for line in axes.lines if line.get_marker() == "None"]
        held = [line for line in axes.lines if line.get_marker() == "o"]
        assert len(curves) == len(held) == 3  # j = 0 … k
        for j, (curve, marks) in enumerate(zip(curves, held, strict=True)):
            cells = [one.sel(layer=layer, hop=j) for _, one in series]
            np.testing.assert_allclose(curve.get_ydata(), [float(cell.accuracy) for cell in cells])
            assert list(marks.get_xdata()) == [step for step, cell in zip((1, 2, 3), cells, strict=True) if bool(cell.held)]
    assert any(len(line.get_xdata()) for line in panels[0].lines if line.get_marker() == "o")  # hop 0 is the input


def test_no_two_inks_are_alike():
    assert len({to_hex(ink) for ink in INKS}) == 7


def test_a_depth_has_one_look_in_every_figure(small_task):
    one = hi.evaluate(another(small_task, 1), small_task, [1, 2], sequences=2)
    few, many = (trends.threshold(dict.fromkeys(names, one)) for names in (("depth 3", "depth2"), ("depth 4", "depth 3")))
    looks = [{line.get_label(): (line.get_color(), line.get_marker()) for line in f.axes[0].lines} for f in (few, many)]
    assert looks[0]["depth 3"] == looks[1]["depth 3"]
    assert len({looks[0]["depth2"], looks[0]["depth 3"], looks[1]["depth 4"]}) == 3
    assert [text.get_text() for text in few.legends[0].get_texts()] == ["depth2", "depth 3", "95% interval"]
    samples = {"depth 4, 1,000 samples": one, "depth 4": one}
    lines = {line.get_label(): line for line in trends.threshold(samples).axes[0].lines}
    assert len({lines[name].get_linestyle() for name in samples}) == 2
    assert len({lines[name].get_color() for name in samples}) == 1
