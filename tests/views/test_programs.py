"""Figures of decompiled models: what stands in them, on constructed ones."""

from dataclasses import replace

import pytest
from matplotlib.patches import PathPatch, Rectangle

import hopinterp as hi
from hopinterp import HopInterpError
from hopinterp.decompile.decompilation import Decompilation
from hopinterp.decompile.decompiled import decompile
from hopinterp.decompile.effects import Effect
from hopinterp.decompile.nodes import START, Node, Place
from hopinterp.decompile.routes import Part, Route
from hopinterp.models.subject import Subject
from hopinterp.theory.construction import Construction
from hopinterp.views import programs
from hopinterp.views.plates import program_plates
from hopinterp.views.style import INKS

from .test_plots import cut_off

TASK = hi.HopTask(n_letters=40, alphabet_size=4, max_hops=5)


@pytest.fixture(scope="module")
def found():
    made = Construction.of(TASK, 4, "lookup").fused
    return decompile(Subject.of(made, TASK, name="made"), TASK, 4, sequences=20)


def effects(*nodes):
    return tuple(Effect(node, 0.5, 0.4, 0.6) for node in nodes)


@pytest.fixture(scope="module")
def two_ways(found):
    """4 = 3 + 1 = 2 + 1 + 1, which share their last jump, and a head on neither."""
    last, middle = Node(1, 0, Place(3), "hop", 1), Node(2, 0, Place(2), "hop", 1)
    carrying = effects(Node(3, 0, START, "hop", 3), Node(3, 1, START, "hop", 2), middle, last)
    aside = effects(Node(0, 1, Place(3), "content-free"), Node(3, 2, START, "hop", 4))
    return replace(found, tree=replace(found.tree, carrying=carrying[:4], aside=aside[:1], n_layers=4))


def texts(axes):
    return [text.get_text() for text in axes.texts]


def arcs(axes):
    return [patch for patch in axes.patches if isinstance(patch, PathPatch)]


def test_every_head_of_the_tree_is_drawn_with_its_jump(two_ways):
    figure = programs.figure(two_ways)
    axes = figure.axes[0]
    words = texts(axes)
    assert [words.count(name) for name in ("3.0", "3.1", "2.0", "1.0", "0.1")] == [1] * 5
    assert [words.count(jump) for jump in ("+3", "+2", "+1")] == [1, 1, 2]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["i", "1", "2", "3", "4"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["letters", "block 0", "block 1", "block 2", "block 3"]
    assert axes.get_title(loc="left") == "made adds up 4 hops in 2 ways, side by side"
    legend = [text.get_text() for text in figure.legends[0].texts]
    assert legend == ["4 = 3+1", "4 = 2+1+1", "tells what the answer is not"]


def test_what_does_not_explain_the_model_is_not_drawn_as_a_finding(two_ways):
    worse = replace(two_ways, tree=replace(two_ways.tree, error=0.438, carrying=effects(Node(3, 2, START, "hop", 4))))
    figure = programs.figure(worse)
    assert figure.axes[0].get_title(loc="left") == "made, k = 4: not explained\ntree errs 43.8%"
    assert figure.legends[0].texts[0].get_text() == "4 = one jump"
    assert programs.figure(worse, "as named").axes[0].get_title(loc="left").startswith("as named: not explained\n")
    (plate,) = program_plates(worse)
    assert plate.shows.startswith("Not explained: the tree errs on 43.8%, above 5%. made, k = 4: 4 = one jump.")


def test_nothing_of_a_small_program_is_cut_off(two_ways, found):
    assert cut_off(programs.figure(two_ways)) == cut_off(programs.figure(two_ways, "a long title " * 6)) == []
    assert cut_off(programs.figure(Decompilation(model="made", by_hops={4: mixed(found)}, unsolved={}))) == []


def test_a_derivation_is_one_ink_from_the_letter_to_i(two_ways):
    axes = programs.derivation_tree(two_ways).axes[0]
    by_ink = {ink: [a for a in arcs(axes) if a.get_edgecolor()[:3] == pytest.approx(rgb(ink))] for ink in INKS[:2]}
    assert [len(strands) for strands in by_ink.values()] == [2, 3]
    shared = [min(strands, key=lambda arc: arc.get_path().vertices[0][1]) for strands in by_ink.values()]
    starts = [arc.get_path().vertices[0].tolist() for arc in shared]
    assert starts[0][1] == starts[1][1] == 0, "both begin at the letter"
    assert abs(starts[0][0] - starts[1][0]) > 0.02, "side by side"


def test_derivations_are_told_apart_without_colours(two_ways):
    legend = programs.derivation_tree(two_ways).legends[0]
    assert len({str(line.get_linestyle()) + str(line.get_linewidth()) for line in legend.get_lines()}) == 3


def rgb(ink):
    return tuple(int(ink[n : n + 2], 16) / 255 for n in (1, 3, 5))


def test_columns_are_in_text_order(two_ways):
    axes = programs.derivation_tree(two_ways).axes[0]
    places = {text.get_text(): text.get_position() for text in axes.texts}
    assert places["3.0"][0] > places["2.0"][0] > places["1.0"][0]
    assert places["3.0"][1] > places["2.0"][1] > places["1.0"][1]


def test_without_a_derivation_there_is_nothing_to_draw(found):
    empty = replace(found, tree=replace(found.tree, carrying=()))
    with pytest.raises(HopInterpError, match="no derivation was found at k = 4"):
        programs.figure(empty)


def test_the_table_shows_each_rule_and_frames_what_carries(found):
    several = Decompilation(model="made", by_hops={4: mixed(found)}, unsolved={2: 0.7})
    above, axes, *_ = programs.figure(several).axes
    units = [f"{layer}.{head}" for layer, head, _ in found.routing.heads]
    assert [label.get_text() for label in axes.get_yticklabels()] == units
    assert [label.get_text() for label in axes.get_xticklabels()] == ["4"]
    assert axes.get_ylim() == (-0.5, len(units) - 0.5)  # blocks go up the page
    cells = texts(axes)
    assert cells[:2] == ["3", "2′"]
    assert len(cells) == len(units) + 1
    framed = [patch for patch in axes.patches if isinstance(patch, Rectangle) and patch.get_facecolor()[3] == 0]
    assert len(framed) == len({(e.node.layer, e.node.head) for e in found.tree.carrying})
    heights = {line.get_label(): line.get_ydata()[0] for line in above.lines}
    assert heights["on its routes"] == heights["the model itself"] == 0
    assert heights["routes shuffled"] == pytest.approx(100 * found.controls.means()["shuffled"])


def mixed(found):
    """With a mixture at head 0.0."""
    route = Route((Part("hop", 3, 0.6), Part("before hop", 2, 0.4)))
    first, *others = found.routes
    return replace(found, routing=replace(found.routing, routes=((route, *first[1:]), *others)))


def test_a_table_of_nothing_is_refused():
    with pytest.raises(HopInterpError, match="solves none of these k"):
        programs.figure(Decompilation(model="m", by_hops={}, unsolved={1: 0.7}))
