"""What evidence says of a block, by the bars that the evidence itself carries."""

import numpy as np
import pytest

import hopinterp as hi
from hopinterp.judgement.readings import (
    Attends,
    Block,
    Holds,
    Needed,
    Reading,
    Stands,
    read_attention,
    read_blocks,
    read_controls,
    read_patch,
    read_probe,
    read_transplant,
    rows,
)
from hopinterp.theory.construction import Construction


@pytest.fixture(scope="module")
def evidence():
    task = hi.HopTask(20, 4, 4)
    return dict(hi.verify(Construction.of(task, 4, "successor").fused, task, 4, sequences=20).evidence)


def test_every_kind_reads_every_block(evidence):
    blocks = read_blocks(evidence, 4, 4)
    assert [block.stands_for for block in blocks] == [0, 1, 3, 4]
    assert [max(block.held) for block in blocks] == [0, 1, 3, 4]
    assert [sorted(block.attended) for block in blocks] == [[], [1], [2], [4]]
    assert list(blocks[0].readings) == ["transplant", "probe", "patch", "attention"]
    table = dict(rows(blocks))
    assert table["stands for (transplants)"] == ("0", "1", "3", "4")
    assert table["carried as"] == ("content", "occurrence", "occurrence", "content")
    assert table["holds at most (probes)"] == ("0", "1", "3", "4")
    assert table["still to go from (light cone)"] == ("0–1", "1–2", "3–4", "4")
    assert table["attends to find^j, j ="] == ("–", "1", "2", "4")


def test_held_follows_the_bar_of_the_evidence(evidence):
    probes = evidence["probe"]
    strict, lax = probes.assign_attrs(bar=1.0), probes.assign_attrs(bar=-10.0)
    assert read_probe(strict, 3, 4).surely == frozenset()
    assert read_probe(lax, 3, 4).surely == frozenset(range(5))
    assert read_probe(probes, 3, 4).surely == set(probes.hop.values[probes.held.sel(layer=3).values].tolist())


def test_hops_beyond_k_are_left_out(evidence):
    assert max(read_probe(evidence["probe"].assign_attrs(bar=-10.0), 3, 2).perhaps) == 2
    assert read_attention(evidence["attention"], 3, 4) == Attends(frozenset({4}))


def test_attended_follows_the_bar_of_the_evidence(evidence):
    attention = evidence["attention"]
    assert read_attention(attention.assign_attrs(attended=1.1), 2, 4).hops == frozenset()
    assert read_attention(attention.assign_attrs(attended=-1.0), 2, 4).hops == {1, 2, 3, 4}


def test_needed_follows_the_bar_of_the_evidence(evidence):
    """Where nothing clearly matters, whether it surely does not is a matter of the bar."""
    cone = evidence["patch"].copy(deep=True)
    cone["effect"][:], cone["low"][:], cone["high"][:], cone["matters"][:] = 0.1, -0.1, 0.3, False
    cone["off_chain_high"][:] = 0.2
    assert read_patch(cone.assign_attrs(bar=0.4), 1, 4) == Needed(frozenset(), 5, 4)
    assert read_patch(cone.assign_attrs(bar=0.2), 1, 4) == Needed(frozenset(), None, 4)


def test_an_unclear_block_stands_for_nothing(evidence):
    swaps = evidence["transplant"].copy(deep=True)
    swaps["best"][:] = -1
    found = read_transplant(swaps, 1, 4)
    assert found.r is None
    assert found.span() is None
    assert found.cells() == {"stands for (transplants)": "?", "carried as": "–"}


def test_readings_object():
    assert Reading().objection(3) == ""
    assert Stands(None).objection(3) == ""
    assert Stands(3).objection(3) == ""
    assert Stands(3).objection(2) == "its output stands for 3 hops done (transplants), not 2"
    assert Holds(frozenset(), frozenset({2})).objection(2) == ""
    assert Holds(frozenset(), frozenset({2})).objection(3) == "it surely does not hold hop 3 (probes)"
    assert Needed(frozenset({2, 3}), 2, 4).objection(2) == ""
    assert Needed(frozenset({3, 2}), 2, 4).objection(4) == "the answer still needs find^2(i), before hop 4 (light cone)"
    block = Block(1, {"transplant": Stands(1), "probe": Holds(frozenset(), frozenset())})
    assert block.objection(1) == "it surely does not hold hop 1 (probes)"  # the first that has one
    assert block.objection(2).startswith("its output stands for 1")


def test_spans():
    assert Stands(3, "pointer", frozenset({2})).span() == (2, 3, 3)
    assert Holds(frozenset({0, 2}), frozenset({0, 2, 5})).span() == (2, 2, 5)
    assert Needed(frozenset(), 5, 4).resolved() == (4, 4)
    assert Needed(frozenset(), 1, 4).resolved() == (0, 1)
    assert Needed(frozenset(), None, 4).span() is None


def test_controls_follow_the_bars_of_the_evidence(evidence):
    fine = read_controls(evidence, 4)
    assert set(fine) == {"untrained_probe", "selectivity", "off_chain", "untrained_transplant"}
    assert all(control.passed for control in fine.values())
    low = {kind: one.assign_attrs(dict.fromkeys(("bar", "margin"), -9.0)) for kind, one in evidence.items()}
    found = read_controls(low, 4)
    assert {name for name, control in found.items() if control.passed is False} == set(fine) - {"selectivity"}
    assert found["off_chain"].to_json() == {"passed": False, "largest_effect": fine["off_chain"].value, "bar": -9.0}
    assert set(found["selectivity"].to_json()) == {"passed", "least_of_held"}


def test_a_control_that_cannot_be_measured_is_neither_passed_nor_failed(evidence):
    cone = evidence["patch"].copy(deep=True)
    cone["off_chain_low"][:], cone["off_chain_high"][:] = 0.1, 0.9
    assert read_controls({"patch": cone}, 4)["off_chain"].passed is None
    shallow = evidence["transplant"].isel(layer=[-1])
    control = read_controls({"transplant": shallow}, 4)["untrained_transplant"]
    assert control.passed is None
    assert np.isnan(control.value)
