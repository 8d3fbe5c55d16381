"""Figures show what the evidence says."""

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.text import Text

import hopinterp as hi
from hopinterp import HopInterpError
from hopinterp.views import plots
from hopinterp.views.style import FAMILY_INK, current, scheme


def test_error_curve(small_model, small_task):
    found = hi.evaluate(small_model, small_task, sequences=5)
    axes = plots.error_curve(found, title="a model").axes[0]
    drawn = axes.lines[0].get_xydata()
    np.testing.assert_allclose(drawn[:, 0], found.hops)
    np.testing.assert_allclose(drawn[:, 1], 100 * found.error)
    assert axes.get_title("left") == "a model"


def test_alignment_heatmap(small_model, small_task):
    found = hi.align(small_model, small_task, hops=3, sequences=5)
    axes = plots.alignment_heatmap(found, k=3).axes[0]
    shown = axes.images[0].get_array()
    np.testing.assert_allclose(shown, found.score.sel(hops=3).values.reshape(4, 5))
    assert [label.get_text() for label in axes.get_yticklabels()] == ["0.0", "0.1", "1.0", "1.1"]


def test_probe_staircase(small_model, small_task):
    found = hi.probe(small_model, small_task, hops=3, method="ridge", train_sequences=20, sequences=10)
    figure = plots.probe_staircase(found)
    axes = figure.axes[0]
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["lookup: 0, 1", "successor: 0, 1", "sequential: 0, 1", "held"]
    np.testing.assert_allclose(np.asarray(axes.collections[0].get_array()).reshape(2, 5), found.accuracy)


def test_light_cone(small_model, small_task):
    for site, rows in (("resid_post", ["0", "1"]), ("z", ["0.0", "0.1", "1.0", "1.1"])):
        found = hi.patch(small_model, small_task, 2, site=site, by="chain", sequences=20)
        panels = plots.light_cone(found, "logit_difference").axes[:2]
        assert [label.get_text() for label in panels[0].get_yticklabels()] == rows
        for axes, where in zip(panels, ("at", "before"), strict=True):
            one = found.sel(metric="logit_difference", where=where)
            np.testing.assert_allclose(axes.images[0].get_array().filled(np.nan), one.effect.values.reshape(-1, 3))
            assert len(axes.lines) == int(one.matters.sum())


def test_patch_heatmap(small_model, small_task):
    for site, by, shape in (("resid_pre", "position", (2, 21)), ("z", "position", (4, 21)), ("z", "all", (4, 1))):
        found = hi.patch(small_model, small_task, 2, site=site, by=by, sequences=5)
        axes = plots.patch_heatmap(found, "probability", title="a model").axes[0]
        expected = found.effect.sel(metric="probability").values.reshape(shape)
        np.testing.assert_allclose(axes.images[0].get_array().filled(np.nan), expected)
        assert axes.get_title("left") == "a model"


def test_iia_by_r(depth3, task):
    found = hi.transplant(depth3, task, hops=2, sequences=20)
    panels = plots.iia_by_r(found, title="a model").axes
    assert [axes.get_title("left") for axes in panels] == ["block 0", "block 1", "block 2"]
    for axes, layer in zip(panels, found.layer.values, strict=True):
        lines = {line.get_label(): line for line in axes.lines}
        for family in ("pointer", "content", "occurrence"):
            np.testing.assert_allclose(lines[family].get_ydata(), found.iia.sel(layer=layer, family=family))
            assert lines[family].get_color() == FAMILY_INK[family]
        rings = [line for line in axes.lines if line.get_markersize() == 9]
        assert len(rings) == int(found.best.sel(layer=layer) >= 0)


def test_unwritable_places_are_named(small_model, small_task, tmp_path):
    figure = plots.error_curve(hi.evaluate(small_model, small_task, sequences=2))
    with pytest.raises(HopInterpError, match="the ending must be one of"):
        plots.write(figure, tmp_path / "f.docx")
    with pytest.raises(HopInterpError, match="no directory"):
        plots.write(figure, tmp_path / "nowhere" / "f.png")
    assert list(tmp_path.iterdir()) == []


def test_a_dark_figure_has_no_dark_words_and_keeps_its_colours_outside(small_model, small_task):
    found = hi.evaluate(small_model, small_task, sequences=2)
    with scheme("dark", ground="#101010") as dark:
        figure = plots.error_curve(found)
    figure.draw_without_rendering()  # ticks are made when they are first drawn
    assert to_hex(figure.get_facecolor()) == to_hex(figure.axes[0].get_facecolor()) == "#101010"
    words = [text for text in figure.findobj(Text) if text.get_text()]
    assert len(words) > 8
    assert {to_hex(text.get_color()) for text in words} <= {dark.text.lower(), dark.quiet.lower()}
    assert current().name == "light"
    with pytest.raises(HopInterpError, match="scheme is 'sepia'; it is one of light, dark"), scheme("sepia"):
        pass
