"""What the hypotheses predict, from the definitions, and against the circuits that were built to follow them."""

import pytest

from hopinterp import HopInterpError
from hopinterp.theory.construction import ALGORITHMS, Construction
from hopinterp.theory.hypotheses import Hypothesis, resolved


def test_predictions():
    assert resolved("lookup", 16, 7) == [0, 1, 2, 4, 8, 16, 16]
    assert resolved("successor", 16, 6) == [0, 1, 3, 7, 15, 16]
    assert resolved("sequential", 3, 6) == [0, 1, 2, 3, 3, 3]
    assert resolved("none", 5, 3) == [0, 0, 0]
    with pytest.raises(HopInterpError, match="no hypothesis 'magic'"):
        resolved("magic", 1, 1)
    with pytest.raises(HopInterpError, match="doubling is a range"):
        resolved("doubling", 4, 3)


def test_doubling_is_a_range():
    doubling = Hypothesis("doubling")
    assert [list(doubling.holds(layer, 16)) for layer in range(4)] == [[0], [1], [2, 3], [4, 5, 6, 7]]
    assert list(doubling.holds(3, 5)) == [4, 5]
    assert list(doubling.holds(5)) == list(range(16, 32))  # a multi-task model's pointers run on
    assert list(doubling.grows(3, 2, 16)) == [4, 5]
    assert list(doubling.grows(3, 5, 11)) == [10, 11]
    assert list(doubling.grows(3, 5, 8)) == [8]
    assert list(Hypothesis("sequential").grows(4, 3, 16)) == [4]
    assert list(Hypothesis("successor").grows(2, 2, 16)) == [5]
    assert list(Hypothesis("lookup").grows(1, 0, 16)) == [1]
    assert list(Hypothesis("none").grows(3, 0, 16)) == [0]


def test_what_is_attended_to():
    assert [sorted(Hypothesis("lookup").attends(layer)) for layer in range(5)] == [[], [1], [1], [2], [4]]
    assert [sorted(Hypothesis("successor").attends(layer)) for layer in range(4)] == [[], [1], [1, 2], [1, 2, 3, 4]]
    assert [sorted(Hypothesis("sequential").attends(layer)) for layer in range(4)] == [[], [1], [1], [2]]
    assert Hypothesis("successor").attends(3, hops=3) == {1, 2, 3}
    assert Hypothesis("doubling").attends(3) == {1, 2, 3, 4}
    assert Hypothesis("none").attends(3) == frozenset()


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("k", range(1, 17))
def test_the_constructions_follow_their_hypotheses(algorithm, k, task):
    causal, hypothesis = Construction.of(task, k, algorithm).causal, Hypothesis(algorithm)
    assert [causal.resolved(layer) for layer in range(causal.n_layers)] == resolved(algorithm, k, causal.n_layers)
    for layer in range(causal.n_layers):
        attended = {target.hop for target in causal.attends(layer) if target.where == "find"}
        assert attended <= hypothesis.attends(layer, k)
        assert attended or layer == 0
