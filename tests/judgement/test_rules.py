"""The rules, on made-up readings: which verdict they allow, and why."""

from dataclasses import replace

import pytest

from hopinterp.judgement.readings import Block, Holds, Needed, Stands
from hopinterp.judgement.rules import decide
from hopinterp.theory.hypotheses import Hypothesis, registered

SOLVED = {"error": 0.001, "low": 0.0, "high": 0.002}


def readings(stands_for, held=None, needed=None):
    """Blocks whose output stands for given r (None: unclear) and holds them, or what else is given by block."""
    held, needed = held or {}, needed or {}
    blocks = []
    for layer, r in enumerate(stands_for):
        holds = frozenset(held.get(layer, {0, r} if r is not None else range(20)))
        cone = frozenset(needed.get(layer, set()))
        blocks.append(Block(layer, {"transplant": Stands(r), "probe": Holds(holds, holds), "patch": Needed(cone, 1, 20)}))
    return tuple(blocks)


@pytest.mark.parametrize(
    ("hops", "stands_for", "verdict", "form"),
    [
        (7, [0, 1, 3, 7], "doubling", "successor"),
        (7, [0, 1, 2, 4, 7], "doubling", "lookup"),
        (4, [0, 1, 2, 4], "doubling", "lookup"),
        (7, [0, None, 3, 7], "doubling", "successor"),
        (16, [0, 1, 2, 5, 10, 16], "doubling", None),
        (16, [0, 1, None, None, 8, 16], "doubling", "lookup"),
        (16, [0, 1, None, 6, None, 16], "doubling", None),
        (4, [0, 1, 2, 3, 4], "sequential", None),
        (7, [0, 1, 2, 3, 4, 5, 6, 7], "sequential", None),
        (4, [0, 1, 2, None, 4], "undetermined", None),  # 2 then 3 or 4: both stand
        (7, [0, None, None, 7], "undetermined", None),  # too few blocks to go one by one, but nothing speaks for doubling
        (11, [0, 1, 5, 11], "mixed", None),
        (11, [0, 1, 3, 11], "mixed", None),  # 3 to 11 in one block
        (7, [0, 0, 3, 7], "mixed", None),
        (8, [0, 1, 3, 4, 8], "mixed", None),
        (4, [0, 1, 4], "mixed", None),  # no block 3, and more than any hypothesis allows
        (3, [0, 1, 3, 3], "undetermined", None),  # k < 4
        (2, [0, 1, 2], "undetermined", None),
        (1, [0, 1], "undetermined", None),
    ],
)
def test_rules(hops, stands_for, verdict, form):
    found = decide(readings(stands_for), SOLVED, hops)
    assert (found.verdict, found.form) == (verdict, form), found.reasons


def test_solved_failed_and_what_lies_between():
    blocks = readings([0, 1, 3, 7])

    def found(low, high):
        return decide(blocks, {"error": (low + high) / 2, "low": low, "high": high}, 7)

    assert found(0.0, 0.01).verdict == "doubling"
    assert "solved (at most 1%), under 5%: its mechanism can be judged" in found(0.0, 0.01).reasons[0]
    assert found(0.0, 0.0101).verdict == "doubling"
    assert "not surely solved (1%), under 5%" in found(0.0, 0.0101).reasons[0]
    assert found(0.03, 0.05).verdict == "doubling"
    assert found(0.04, 0.051).verdict == "undetermined"
    assert found(0.05, 0.06).verdict == "undetermined"
    assert found(0.051, 0.06).verdict == "none"
    assert found(0.051, 0.06).reasons == ("err_7 is 5.5% (5.1 to 6.0), over 5%: no claim is made about its mechanism.",)


def test_the_bars_are_those_of_the_evidence():
    error = {"error": 0.015, "low": 0.012, "high": 0.018}
    assert "not surely solved (1%)" in decide(readings([0, 1, 3, 7]), error, 7).reasons[0]
    assert " solved (at most 2%)" in decide(readings([0, 1, 3, 7]), error, 7, solved=0.02).reasons[0]
    assert decide(readings([0, 1, 3, 7]), error, 7, failed=0.01).verdict == "none"


def test_a_hop_must_be_held():
    found = decide(readings([0, 1, 3, 7], held={2: {0, 1, 2}}), SOLVED, 7)
    assert found.verdict == "mixed"
    assert "Successor fails at block 2: it surely does not hold hop 3 (probes)." in found.reasons


def test_a_hop_that_may_be_held_is_no_objection():
    blocks = list(readings([0, 1, 3, 7], held={2: {0, 1}}))
    perhaps = Holds(frozenset({0, 1}), frozenset({0, 1, 3}))  # the interval of hop 3 reaches over the bar
    blocks[2] = replace(blocks[2], readings={**blocks[2].readings, "probe": perhaps})
    found = decide(tuple(blocks), SOLVED, 7)
    assert (found.verdict, found.form) == ("doubling", "successor")


def test_nothing_scored_is_nothing_claimed():
    nan = float("nan")
    found = decide(readings([0, 1, 3, 7]), {"error": nan, "low": nan, "high": nan}, 7)
    assert found.verdict == "undetermined"
    assert len(found.reasons) == 1


def test_earlier_positions_must_no_longer_matter():
    found = decide(readings([0, 1, 3, 7], needed={2: {2, 4}}), SOLVED, 7)
    assert found.verdict == "mixed"
    assert any("the answer still needs find^2(i), before hop 3 (light cone)" in reason for reason in found.reasons)
    assert decide(readings([0, 1, 3, 7], needed={2: {3, 4, 5}}), SOLVED, 7).verdict == "doubling"


def test_what_is_readable_beyond_is_reported_and_not_held_against_a_model():
    found = decide(readings([0, 1, 3, 7], held={1: {0, 1, 2}, 2: {0, 1, 3, 4, 5}}), SOLVED, 7)
    assert (found.verdict, found.form) == ("doubling", "successor")
    assert "Readable beyond what a block stands for: block 1 also hop 2; block 2 also hop 4, 5." in found.reasons


def test_too_few_hops_are_said_in_full():
    for k in (1, 2, 3):
        last = decide(readings([0, *range(1, k + 1)]), SOLVED, k).reasons[-1]
        assert last == "At k < 4 doubling and sequential are not told apart: 2 hops or 3 after block 2."


def test_both_stand():
    reasons = decide(readings([0, 1, 2, None, 4]), SOLVED, 4).reasons
    assert reasons[-1] == "Doubling and sequential both stand: no block tells them apart."
    assert "Lookup stands: 0, 1, 2, 4, 4." in reasons
    assert not any(reason.startswith("Doubling stands") for reason in reasons)  # a form of it does


# -- a fourth hypothesis --------------------------------------------------------------------------------------------------

TRIPLING = Hypothesis("tripling", "The hops triple", step=lambda r: 3 * r + 1, looks=lambda r: range(1, r + 2))


@pytest.mark.parametrize(
    ("hops", "stands_for", "verdict"),
    [
        (16, [0, 1, 4, 13, 16], "tripling"),
        (16, [0, 1, None, 13, 16], "tripling"),
        (16, [0, 1, 3, 7, 15, 16], "doubling"),
        (7, [0, 1, 2, 3, 4, 5, 6, 7], "sequential"),
        (16, [0, 1, 4, 12, 16], "mixed"),
        (4, [0, 1, None, 4], "undetermined"),
        (3, [0, 1, 3], "undetermined"),
    ],
)
def test_a_hypothesis_that_was_registered_is_judged_like_the_others(hops, stands_for, verdict):
    with registered(TRIPLING):
        found = decide(readings(stands_for), SOLVED, hops)
        assert (found.verdict, found.form) == (verdict, found.form if verdict == "doubling" else None), found.reasons
        assert any(reason.startswith("Tripling ") for reason in found.reasons)
    without = decide(readings(stands_for), SOLVED, hops)
    assert not any("ripling" in reason for reason in without.reasons)
    assert without.verdict == ("mixed" if verdict == "tripling" else verdict)


def test_a_claim_needs_a_block_against_every_rival():
    """Only tripling gets to 16 hops by block 4, but no block between the first and the last says anything."""
    with registered(TRIPLING):
        found = decide(readings([0, 1, None, None, 16]), SOLVED, 16)
    assert found.verdict == "undetermined"
    assert "Tripling stands: 0, 1, 4, 13, 16." in found.reasons
    why = "No block between the first look-up and the last clearly stands for what tripling says and doubling does not."
    assert found.reasons[-1] == why
