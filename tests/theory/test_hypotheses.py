"""What the hypotheses predict, from the definitions, and against the circuits that were built to follow them."""

import pytest

from hopinterp import HopInterpError
from hopinterp.theory.construction import ALGORITHMS, Construction
from hopinterp.theory.hypotheses import (
    HYPOTHESES,
    Hypothesis,
    claims,
    exact,
    named,
    register,
    registered,
    resolved,
)
from hopinterp.theory.programs import sequential

TRIPLING = Hypothesis("tripling", "The hops triple", step=lambda r: 3 * r + 1, looks=lambda r: range(1, r + 2))


def test_predictions():
    assert resolved("lookup", 16, 7) == [0, 1, 2, 4, 8, 16, 16]
    assert resolved("successor", 16, 6) == [0, 1, 3, 7, 15, 16]
    assert resolved("sequential", 3, 6) == [0, 1, 2, 3, 3, 3]
    assert resolved("none", 5, 3) == [0, 0, 0]
    with pytest.raises(HopInterpError, match="no hypothesis 'magic'; there are doubling, lookup, successor"):
        resolved("magic", 1, 1)
    with pytest.raises(HopInterpError, match="doubling is a range"):
        resolved("doubling", 4, 3)


def test_doubling_is_a_range():
    doubling = named("doubling")
    assert [list(doubling.holds(layer, 16)) for layer in range(4)] == [[0], [1], [2, 3], [4, 5, 6, 7]]
    assert list(doubling.holds(3, 5)) == [4, 5]
    assert list(doubling.holds(5)) == list(range(16, 32))  # a multi-task model's pointers run on
    assert list(doubling.grows(2, 16)) == [4, 5]
    assert list(doubling.grows(5, 11)) == [10, 11]
    assert list(doubling.grows(5, 8)) == [8]
    assert list(doubling.grows(0)) == [1]  # nothing but a letter can be looked up
    assert list(named("sequential").grows(3, 16)) == [4]
    assert list(named("successor").grows(2, 16)) == [5]
    assert list(named("lookup").grows(0, 16)) == [1]
    assert list(named("none").grows(0, 16)) == [0]


def test_how_fast_they_grow():
    assert {name: one.ratios() for name, one in claims().items()} == {"sequential": (1, 2), "doubling": (2, 3)}
    assert TRIPLING.ratios() == (3, 4)


def test_what_is_attended_to():
    assert [sorted(named("lookup").attends(layer)) for layer in range(5)] == [[], [1], [1], [2], [4]]
    assert [sorted(named("successor").attends(layer)) for layer in range(4)] == [[], [1], [1, 2], [1, 2, 3, 4]]
    assert [sorted(named("sequential").attends(layer)) for layer in range(4)] == [[], [1], [1], [2]]
    assert named("successor").attends(3, hops=3) == {1, 2, 3}
    assert named("doubling").attends(3) == {1, 2, 3, 4}
    assert named("none").attends(3) == frozenset()


def test_a_fourth_hypothesis_costs_its_record():
    assert list(exact()) == ["lookup", "successor", "sequential"]
    assert set(claims()) == {"sequential", "doubling"}
    with registered(TRIPLING):
        assert list(exact()) == ["lookup", "successor", "sequential", "tripling"]
        assert set(claims()) == {"sequential", "doubling", "tripling"}
        assert resolved("tripling", 16, 5) == [0, 1, 4, 13, 16]
    assert "tripling" not in HYPOTHESES


def test_a_new_form_widens_its_union():
    with registered(Hypothesis("skipping", "…", step=lambda r: 2 * r + 2, looks=lambda r: (r + 2,), form_of="doubling")):
        assert list(named("doubling").grows(2)) == [4, 5, 6]
        assert named("doubling").attends(2) == {1, 2, 4}  # R(1) is 2 there
        assert "skipping" not in claims()
    assert list(named("doubling").grows(2)) == [4, 5]


def test_a_hypothesis_with_a_program_can_be_built(small_task):
    slow = Hypothesis("slow", "…", step=lambda r: r + 1, looks=lambda r: (max(1, r),), program=sequential)
    with registered(slow):
        assert Construction.of(small_task, 3, "slow").causal.resolved(2) == 2
    with pytest.raises(HopInterpError, match="no algorithm 'slow'; there are lookup, successor, sequential"):
        Construction.of(small_task, 3, "slow")


@pytest.mark.parametrize(
    ("hypothesis", "words"),
    [
        (Hypothesis("lookup", "…", step=lambda r: r, looks=lambda _: ()), "'lookup' already"),
        (Hypothesis("mixed", "…", step=lambda r: r, looks=lambda _: ()), "'mixed' already"),
        (Hypothesis("half", "…", step=lambda r: r), "half: give `step` and `looks`"),
    ],
)
def test_what_cannot_be_registered(hypothesis, words):
    before = dict(HYPOTHESES)
    with pytest.raises(HopInterpError, match=words):
        register(hypothesis)
    assert before == HYPOTHESES


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("k", range(1, 17))
def test_the_constructions_follow_their_hypotheses(algorithm, k, task):
    causal, hypothesis = Construction.of(task, k, algorithm).causal, named(algorithm)
    assert [causal.resolved(layer) for layer in range(causal.n_layers)] == resolved(algorithm, k, causal.n_layers)
    for layer in range(causal.n_layers):
        attended = {target.hop for target in causal.attends(layer) if target.where == "find"}
        assert attended <= hypothesis.attends(layer, k)
        assert attended or layer == 0
