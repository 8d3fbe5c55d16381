"""On constructed models, transplants find what each block's output stands for."""

import pytest

import hopinterp as hi
from hopinterp.theory.construction import Construction

CASES = [
    ("lookup", 4),
    ("lookup", 7),
    ("lookup", 16),
    ("sequential", 5),
    ("successor", 4),
    ("successor", 7),
    ("successor", 16),
]


@pytest.mark.parametrize(("algorithm", "hops"), CASES)
def test_each_block_stands_for_what_its_causal_model_says(task, algorithm, hops):
    made = Construction.of(task, hops, algorithm)
    found = hi.transplant(made.fused, task, hops, sequences=20, predictions={"causal": made.causal.transplanted})
    expected = [made.causal.stands_for(layer) for layer in found.layer.values.tolist()]
    assert list(zip(found.best_family.values.tolist(), found.best.values.tolist(), strict=True)) == expected
    for layer, (family, r) in enumerate(expected):
        assert float(found.iia.sel(layer=layer, family=family, hop=r)) >= 0.99
        assert float(found.contest.sel(layer=layer)) > 0.95
    # nulls included: the answers that the program gives, at every position that counts
    assert (found.model_iia.sel(prediction="causal") >= 0.99).all()


@pytest.mark.parametrize("algorithm", ["lookup", "successor"])
def test_a_multi_task_model_is_judged_at_the_k_it_is_asked(task, algorithm):
    made = Construction.of(task, None, algorithm)
    found = hi.transplant(made.fused, task, 8, sequences=20, predictions={"causal": made.asked(8).transplanted})
    for layer in found.layer.values.tolist():
        family, r = made.asked(8).stands_for(layer)
        assert (str(found.best_family[layer].values), int(found.best[layer])) == (family, r)


@pytest.mark.parametrize("algorithm", ["lookup", "successor"])
def test_next_letters_that_agree_change_nothing_in_a_pure_circuit(task, algorithm):
    made = Construction.of(task, 7, algorithm)
    found = hi.transplant(made.fused, task, 7, sequences=100, next_agrees=True)
    for layer in found.layer.values.tolist():
        family, r = made.causal.stands_for(layer)
        assert float(found.iia.sel(layer=layer, family=family, hop=r)) >= 0.99


@pytest.mark.parametrize("match", ["letter", "neighbour", "occurrence"])
def test_a_pointer_is_found_whatever_the_position_has_of_its_own(task, match):
    made = Construction.of(task, 8, "lookup")
    found = hi.transplant(made.fused, task, 8, layers=[0, 2, 3], match=match, sequences=100)
    assert list(zip(found.best_family.values.tolist(), found.best.values.tolist(), strict=True)) == [
        ("none", -1),  # block 0 has nothing but what was matched
        ("pointer", 2),
        ("pointer", 4),
    ]
