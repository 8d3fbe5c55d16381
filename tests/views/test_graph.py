"""The figure of a circuit draws a constructed circuit from evidence alone as its causal model has it."""

import numpy as np
import pytest

import hopinterp as hi
from hopinterp import HopInterpError
from hopinterp.theory.construction import ALGORITHMS, Construction
from hopinterp.theory.hypotheses import Hypothesis, registered, resolved
from hopinterp.theory.programs import sequential
from hopinterp.views import graph
from hopinterp.views.graph import Circuit

TASK = hi.HopTask(60, 4, 4)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_constructed_circuit_is_seen_as_it_was_built(algorithm):
    made = Construction.of(TASK, 4, algorithm)
    attention = hi.align(made.fused, TASK, 4, sequences=20)
    cone = hi.patch(made.fused, TASK, 4, by="chain", sequences=150)
    seen = Circuit.seen(attention, 4, cone)
    expected = Circuit.expected(algorithm, 4, 9)
    assert seen.n_layers == expected.n_layers == made.fused.spec.n_layers
    # heads that a block does not use attend to the first token, and counting heads to it and their own letter
    known = {place: heads for place, heads in expected.moves.items() if place[1] != "letter"}
    assert {place: heads for place, heads in seen.moves.items() if place[1] not in ("k", "none")} == known
    for layer in range(seen.n_layers):
        assert seen.at[layer] == expected.at[layer]
        assert seen.before[layer] == expected.before[layer]


def test_theory_at_another_depth():
    circuit = Circuit.expected("sequential", 8, 3)
    assert circuit.n_layers == 9
    assert max(layer for layer, _ in circuit.moves) == 2
    assert [circuit.notes[layer] for layer in range(3)] == ["R = 0", "R = 1", "R = 2"]
    for name in ALGORITHMS:
        notes = [f"R = {r}" for r in resolved(name, 8, 4)]
        assert list(Circuit.expected(name, 8, 4).notes.values()) == notes


def test_an_unclear_head_is_drawn_as_unclear(small_model, small_task):
    attention = hi.align(small_model, small_task, [2], sequences=5)
    strict = Circuit.seen(attention, 2, least=1.1)
    assert set(strict.moves) == {(0, "none"), (1, "none")}
    lax = Circuit.seen(attention, 2, least=0.0)
    assert lax.moves[1, 2] == ["1.0", "1.1"]  # every head stands at every hop


def test_circuit_graph():
    made = Construction.of(TASK, 4, "successor")
    attention = hi.align(made.fused, TASK, [3, 4], sequences=10)
    transplants = hi.transplant(made.fused, TASK, 4, sequences=30)
    probes = hi.probe(made.fused, TASK, 4, train_sequences=40, sequences=20)
    figure = graph.circuit_graph(attention, 4, probes=probes, transplants=transplants)
    assert [axes.get_title("left") for axes in figure.axes] == [
        "seen, k = 4",
        "lookup",
        "successor",
        "sequential (has 5 blocks)",
    ]
    seen = figure.axes[0]
    ticks = dict(zip([label.get_text() for label in seen.get_xticklabels()], seen.get_xticks(), strict=True))
    boxes = {text.get_text(): text.get_position() for text in seen.texts}
    assert boxes["2.0"] == (ticks["2"], 1.5)
    assert boxes["3.0"] == (ticks["4"], 2.5)
    assert ticks["4"] < ticks["2"] < ticks["i"]  # the text's order
    notes = {text.get_text() for text in seen.texts if text.get_text().startswith("R")}
    assert "R = 3\nstands for occurrence 3" in notes
    with pytest.raises(HopInterpError, match="k ≥ 1 of those measured"):
        graph.circuit_graph(attention, 2)


def test_a_hypothesis_with_a_program_has_a_panel(small_model, small_task):
    attention = hi.align(small_model, small_task, [2], sequences=5)
    drawn = {"step": lambda r: r + 1, "looks": lambda r: (max(1, r),), "ink": "#123456"}
    with registered(Hypothesis("slow", "…", **drawn, program=sequential)), registered(Hypothesis("vague", "…", **drawn)):
        panels = graph.circuit_graph(attention, 2).axes[1:]
        with pytest.raises(HopInterpError, match="no circuit was written for the hypothesis 'vague'"):
            Circuit.expected("vague", 2, 3)
    names = [axes.get_title("left").split(" (")[0] for axes in panels]
    assert names == ["lookup", "successor", "sequential", "slow"]
    assert {text.get_color() for text in panels[-1].texts if text.get_text().startswith("R =")} == {"#123456"}


def test_what_a_single_head_stands_for_is_in_its_box(small_model, small_task):
    attention = hi.align(small_model, small_task, 2, sequences=5)
    by_head = hi.transplant(small_model, small_task, 2, sequences=10, heads=True)
    by_head["best"][:] = -1
    by_head["best"].loc[{"layer": 1, "head": 0}] = 2
    by_head["best_family"] = by_head.best_family.astype(object)
    by_head["best_family"].loc[{"layer": 1, "head": 0}] = "content"
    labels = {label for heads in Circuit.seen(attention, 2, transplants=by_head).moves.values() for label in heads}
    assert labels == {"0.0", "0.1", "1.0 c 2", "1.1"}


def test_no_edge_ends_in_mid_air(small_model, small_task):
    """A head reads at a place that the answer hangs on, or does in part, or that is marked as read."""
    attention = hi.align(small_model, small_task, 2, sequences=5)
    attention["score_valid"].loc[{"layer": 1, "head": 0, "hop": [1, 2]}] = 0.9
    cone = hi.patch(small_model, small_task, 2, by="chain", sequences=5)
    cone["matters"][:], cone["low"][:], cone["off_chain_high"][:] = False, 0.0, 0.2
    for name in ("low", "effect"):
        cone[name].loc[{"layer": 0, "hop": 1, "where": "at"}] = 0.3
    figure = graph.circuit_graph(attention, 2, cone=cone, least=0.5)
    seen = figure.axes[0]
    ticks = dict(zip([label.get_text() for label in seen.get_xticklabels()], seen.get_xticks(), strict=True))
    marks = {
        tuple(at): line.get_marker()
        for line in seen.lines
        for at in np.asarray(line.get_xydata())
        if line.get_marker() != "None"
    }
    assert marks[ticks["1"], 0] == "o"
    assert marks[ticks["2"], 0] == "D"
    wires = [np.asarray(line.get_xydata())[0] for line in seen.lines if len(line.get_xydata()) == 3]
    assert {tuple(start) for start in wires} <= set(marks)
    assert "read here, but no single place is needed" in [text.get_text() for text in figure.legends[0].get_texts()]
