"""Figures show what the evidence says."""

import re
from collections import Counter

import numpy as np
import pytest
from matplotlib.collections import LineCollection
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from PIL import Image

import hopinterp as hi
from hopinterp import HopInterpError
from hopinterp.evidence.patching.effects import in_part
from hopinterp.theory.hypotheses import exact
from hopinterp.views import plots, tables, verdicts
from hopinterp.views.style import FAMILY_INK, current, scheme
from hopinterp.views.trends import argmax_map


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
    assert axes.get_ylim() == (-0.5, 3.5)  # blocks go up the page


def test_probe_staircase(small_model, small_task):
    found = hi.probe(small_model, small_task, hops=3, method="ridge", train_sequences=20, sequences=10)
    figure = plots.probe_staircase(found)
    axes = figure.axes[0]
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    held = "held: 95% lower end above the bar"
    assert labels == ["theory, R: lookup 0, 1", "theory, R: successor 0, 1", "theory, R: sequential 0, 1", held]
    np.testing.assert_allclose(axes.images[0].get_array(), found.accuracy)
    assert axes.get_ylim() == (-0.5, 1.5)
    assert frames(axes).total() == int(found.held.sum()) > 0
    bar = (found.baseline + found.attrs["bar"] * (1 - found.baseline)).max("layer")
    assert [text.get_text() for text in figure.axes[1].texts] == [f"{one:.2f}" for one in bar.values]
    assert [text.get_text() for text in axes.texts][-1] == "up to k = 3"


def frames(axes):
    """By how their lines are drawn."""
    return Counter(str(patch.get_linestyle()) for patch in axes.patches if not patch.get_fill())


def test_light_cone(small_model, small_task):
    for site, rows in (("resid_post", ["0", "1"]), ("z", ["0.0", "0.1", "1.0", "1.1"])):
        found = hi.patch(small_model, small_task, 2, site=site, by="chain", sequences=20)
        panels = plots.light_cone(found, "logit_difference").axes[:2]
        assert [label.get_text() for label in panels[0].get_yticklabels()] == rows
        assert panels[0].get_ylim() == (-0.5, len(rows) - 0.5)  # blocks go up the page
        for axes, where in zip(panels, ("at", "before"), strict=True):
            one = found.sel(metric="logit_difference", where=where)
            np.testing.assert_allclose(axes.images[0].get_array().filled(np.nan), one.effect.values.reshape(-1, 3))
            solid, dashed = int(one.matters.sum()), int(in_part(one).sum())
            assert sorted(frames(axes).values()) == sorted(n for n in (solid, dashed) if n)


def test_light_cone_marks_what_matters_in_part(small_model, small_task):
    found = hi.patch(small_model, small_task, 2, site="resid_post", by="chain", sequences=20)
    found["matters"][:], found["low"][:], found["off_chain_high"][:], found["effect"][:] = False, 0.3, 0.2, 0.3
    found["matters"].loc[{"layer": 1, "hop": 0}] = True
    found["effect"].loc[{"layer": 1, "hop": 2}] = 0.04  # a trifle
    at, _ = plots.light_cone(found, "probability").axes[:2]
    assert sorted(frames(at).values()) == [1, 4]
    assert [text.get_text() for text in at.texts] == ["0.30"] * 5
    table, reading = tables.patch_table(found, "probability"), tables.patch_reading(found, "probability")
    cells = list(table.columns[2].cells)  # j = 0: at blocks 0 and 1, before blocks 0 and 1
    assert [cell.count("·") for cell in cells] == [1, 0, 1, 0]
    assert [cell.count("*") for cell in cells] == [0, 1, 0, 1]
    assert "block 0: none (in part 0, 1, 2, before 0, before 1, before 2)" in reading


def test_patch_heatmap(small_model, small_task):
    for site, shape in (("resid_pre", (2, 21)), ("z", (4, 21))):
        found = hi.patch(small_model, small_task, 2, site=site, by="position", sequences=5)
        found["effect"][:] = np.linspace(-0.25, 0.5, found.effect.size).reshape(found.effect.shape)
        axes = plots.patch_heatmap(found, "probability", title="a model").axes[0]
        expected = found.effect.sel(metric="probability")
        np.testing.assert_allclose(axes.images[0].get_array().filled(np.nan), expected.values.reshape(shape))
        largest = float(abs(expected).max())
        assert axes.images[0].get_clim() == (-largest, largest)  # the figure's own scale
        assert axes.get_title("left") == "a model"


def test_first_positions_without_effect_are_left_out_and_said_so(small_model, small_task):
    found = hi.patch(small_model, small_task, 2, site="resid_pre", by="position", sequences=5)
    found["effect"][:] = 0.0
    found["effect"].loc[{"position": 10}], found["effect"].loc[{"position": 3}] = 0.5, 0.004
    axes = plots.patch_heatmap(found, "probability").axes[0]
    assert axes.get_xlim() == (9.5, 20.5)
    assert axes.get_xlabel() == "position (0 to 9: none over 0.004)"


def test_effects_of_all_positions_at_once_have_intervals(small_model, small_task):
    found = hi.patch(small_model, small_task, 2, site="z", by="all", sequences=5)
    for name, value in {"effect": 0.3, "low": 0.1, "high": 0.4}.items():
        found[name][:] = value + np.arange(4).reshape(2, 2)
    axes = plots.patch_heatmap(found, "probability").axes[0]
    one = found.sel(metric="probability").stack(unit=("layer", "head"))
    np.testing.assert_allclose([bar.get_width() for bar in axes.patches if isinstance(bar, Rectangle)], one.effect)
    drawn = next(one for one in axes.collections if isinstance(one, LineCollection))
    ends = np.array([np.asarray(segment)[:, 0] for segment in drawn.get_segments()])
    np.testing.assert_allclose(ends, np.c_[one.low, one.high])


def test_iia_by_r(depth3, task):
    found = hi.transplant(depth3, task, hops=2, sequences=20)
    figure = plots.iia_by_r(found, title="a model")
    panels = figure.axes[::-1]  # up the page
    assert [axes.texts[0].get_text().split("\n")[0] for axes in panels] == ["block 0", "block 1", "block 2"]
    assert panels[0].get_position().y0 < panels[2].get_position().y0
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert {"what the block stands for", "95% interval", "chance, or an untrained model", "theory: successor"} < set(legend)
    for axes, layer in zip(panels, found.layer.values, strict=True):
        lines = {line.get_label(): line for line in axes.lines}
        for family in ("pointer", "content", "occurrence"):
            np.testing.assert_allclose(lines[family].get_ydata(), found.iia.sel(layer=layer, family=family))
            assert lines[family].get_color() == FAMILY_INK[family]
        rings = [line for line in axes.lines if line.get_markersize() == 8]
        assert len(rings) == int(found.best.sel(layer=layer) >= 0)
        for law in exact().values():
            assert lines[f"theory: {law.name}"].get_xdata()[0] == pytest.approx(law.holds(int(layer), 2)[0], abs=0.1)
            assert lines[f"theory: {law.name}"].get_color() == law.ink


def cut_off(figure):
    """The sides of a figure beyond which something of it, such as a title or a legend, reaches once it is drawn."""
    figure.draw_without_rendering()
    all_of_it, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
    beyond = {"left": -all_of_it.x0, "right": all_of_it.x1 - width}
    beyond |= {"below": -all_of_it.y0, "above": all_of_it.y1 - height}
    return [side for side, inches in beyond.items() if inches > 0]


@pytest.mark.parametrize("k", [1, 4])
def test_nothing_is_cut_off_at_small_k(small_model, small_task, k):
    subject = hi.Subject.of(small_model, small_task, name="depth3")
    for site, by in (("resid_post", "chain"), ("z", "chain"), ("resid_post", "position"), ("resid_post", "all")):
        found = hi.patch(subject, small_task, k, site=site, by=by, sequences=4)
        draw = plots.light_cone if by == "chain" else plots.patch_heatmap
        assert cut_off(draw(found, "logit_difference")) == []
    for layers in (None, [1]):
        assert cut_off(plots.iia_by_r(hi.transplant(subject, small_task, k, layers, sequences=10))) == []
    probes = hi.probe(subject, small_task, k, furthest=k, method="ridge", train_sequences=10, sequences=10)
    assert cut_off(plots.probe_staircase(probes)) == []
    aligned = hi.align(subject, small_task, [k - 1, k], sequences=4)
    assert cut_off(plots.alignment_heatmap(aligned, k)) == cut_off(argmax_map(aligned)) == []
    judged = [verdicts.Cell("depth3", n, one) for n, one in enumerate(("mixed", "linear by two", "undetermined"))]
    assert cut_off(verdicts.verdict_table(judged)) == []


def test_a_title_names_the_model_and_what_was_patched(small_model, small_task):
    found = hi.patch(hi.Subject.of(small_model, small_task, name="m$1"), small_task, 2, by="chain", sequences=4)
    title = "k = 2: noising resid_post, resample pairs"
    assert plots.light_cone(found, "probability").get_suptitle() == rf"m\$1, {title}"
    found.attrs["model"] = ""
    assert plots.light_cone(found, "probability").get_suptitle() == title


@pytest.mark.parametrize("kind", ["pdf", "ps"])
def test_fonts_are_such_as_publishers_take(small_model, small_task, tmp_path, kind):
    plots.write(plots.error_curve(hi.evaluate(small_model, small_task, sequences=2)), tmp_path / f"f.{kind}")
    data = (tmp_path / f"f.{kind}").read_bytes()
    assert {"pdf": b"/CIDFontType2", "ps": b"/FontType 42"}[kind] in data
    assert not re.search(rb"/Type3|/FontType 3", data)


@pytest.mark.parametrize("kind", ["png", "svg", "pdf"])
def test_a_figure_is_the_same_bytes_each_time(small_model, small_task, tmp_path, kind):
    found = hi.evaluate(small_model, small_task, sequences=2)
    for name in ("one", "other"):
        plots.write(plots.error_curve(found), tmp_path / f"{name}.{kind}")
    first = (tmp_path / f"one.{kind}").read_bytes()
    assert first == (tmp_path / f"other.{kind}").read_bytes()
    assert b"CreationDate" not in first
    assert b"dc:date" not in first


def test_dots_an_inch(small_model, small_task, tmp_path):
    figure = plots.error_curve(hi.evaluate(small_model, small_task, sequences=2))
    for dpi in (50, 300):
        plots.write(figure, tmp_path / "f.png", dpi)
        with Image.open(tmp_path / "f.png") as drawn:
            assert drawn.size == (5 * dpi, 3 * dpi)


def test_a_share_has_its_own_interval_and_what_moves_nothing_is_said_to(small_model, small_task):
    found = hi.transplant(small_model, small_task, 2, sequences=20, heads=True)
    for name in ("low", "iia", "high"):
        found[name].loc[{"layer": 1, "head": 0, "family": "content", "hop": 2}] = {"low": 0.6, "iia": 0.7, "high": 0.8}[name]
        found[name].loc[{"layer": 1, "head": 1, "family": "pointer", "hop": 0}] = 0.96
    one = {"layer": 1, "head": 0}
    found["leading_family"] = found.leading_family.astype(object)
    found["leading"].loc[one], found["leading_family"].loc[one], found["share"].loc[one] = 2, "content", 0.4
    found["chance"].loc[one | {"family": "content", "hop": 2}] = 0.5
    found["untrained"].loc[one | {"family": "content", "hop": 2}] = 0.25
    found["best"][:] = -1
    table = tables.transplant_table(found)
    unit, stands, share, interval = (list(column.cells)[::3] for column in table.columns[:4])
    assert (stands[2], share[2], interval[2]) == ("none", "0.40", "0.20 – 0.60")
    assert (stands[3], share[3], interval[3]) == ("no effect", "–", "–")
    assert unit == ["0.0", "0.1", "1.0", "1.1"]
    key = tables.transplant_reading(found)
    assert "No effect: at least 95% of the answers stay" in key
    assert "(*)" not in key
    assert "In brackets" not in key
    found["best"].loc[one] = 2
    cells = [list(column.cells) for column in tables.transplant_table(found).columns[5:]]
    assert [(r, row) for r, column in enumerate(cells) for row, cell in enumerate(column) if "*" in cell] == [(2, 7)]
    assert "beats every other r (*)." in tables.transplant_reading(found)
    assert "No effect" not in tables.transplant_reading(found.sel(layer=[0]))


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
