"""The law that a reach follows; its constants against models whose circuit is known."""

from types import SimpleNamespace

import pytest

import hopinterp as hi
from hopinterp.decompile.nodes import Node, Place
from hopinterp.judgement.laws import LEAST_COST, judge_program, program_controls, read_law
from hopinterp.theory.construction import Construction
from hopinterp.theory.hypotheses import Hypothesis, registered

TASK = hi.HopTask(60, 4, 8)


def program(reach, hops, nodes=(), derivations=(), reads=(), known=None):
    """As much of a decompiled program as a law is read off."""
    far = [
        SimpleNamespace(
            node=SimpleNamespace(layer=1, head=head),
            reading=SimpleNamespace(hop=2, reads=kind),
            tree=SimpleNamespace(nodes=frozenset()),
            pointer=1,
        )
        for head, kind in enumerate(reads)
    ]
    return SimpleNamespace(
        hops=hops,
        reach=tuple(reach),
        reach_words=tuple(map(str, reach)),
        derivations=derivations,
        others=(),
        sums=" = ".join("+".join(map(str, jumps)) for jumps in derivations),
        tree=SimpleNamespace(nodes=frozenset(nodes)),
        queries=SimpleNamespace(
            queries=tuple(far),
            known=tuple(known or reach),
            implied=tuple(most > seen for most, seen in zip(reach, known or reach, strict=True)),
        ),
    )


def jump(layer, at, hop):
    return Node(layer, 0, Place(at), "hop", hop)


FOUR_AND_FOUR = (jump(3, 0, 4), jump(2, 4, 2), jump(1, 6, 2))


@pytest.mark.parametrize(
    ("reach", "hops", "verdict", "pace"),
    [
        ([0, 1, 3, 7, 8], 8, "doubling", "full"),
        ([0, 1, 2, 4, 8], 8, "doubling", "full"),
        ([0, 1, 3, 5, 8], 8, "doubling", "slack"),
        ([0, 1, 2, 3, 4, 8], 8, "doubling", "slack"),
        ([0, 1, 2, 3, 4, 5, 6, 7, 8], 8, "sequential", None),
        ([0, 1, 2, 3, 4, 4], 4, "sequential", None),
        ([0, 2, 4, 8], 8, "beyond", None),
        ([0, 1, 4, 8], 8, "beyond", None),
        ([1, 1, 3, 7, 8], 8, "beyond", None),
    ],
)
def test_the_law_of_a_reach(reach, hops, verdict, pace):
    law = read_law(program(reach, hops, FOUR_AND_FOUR))
    assert (law.verdict, law.pace) == (verdict, pace), law.reasons
    assert ", ".join(map(str, reach)) in law.reasons[0]


def test_two_hops_a_block_are_not_doubling():
    one_by_one = (jump(4, 0, 7), jump(1, 7, 1))
    law = read_law(program([0, 1, 3, 5, 7, 8], 8, one_by_one))
    assert (law.verdict, law.pace) == ("linear by two", None)
    # the same reach, but two hops are added to two
    assert read_law(program([0, 1, 3, 5, 7, 8], 8, FOUR_AND_FOUR)).verdict == "doubling"


@pytest.mark.parametrize(("reach", "hops"), [([0, 1, 3, 4], 4), ([0, 1, 3, 5], 5)])
def test_where_k_is_too_small_to_tell_two_a_block_from_doubling_that_is_said(reach, hops):
    law = read_law(program(reach, hops, (jump(2, 0, hops - 1), jump(1, hops - 1, 1))))
    assert law.verdict == "doubling"
    assert f"At k = {hops} that does not tell doubling from two hops a block." in law.reasons


def test_the_node_that_reaches_too_far_is_shown():
    nodes = (jump(2, 0, 4), jump(1, 4, 2))
    law = read_law(program([0, 2, 6], 6, nodes))
    assert law.verdict == "beyond"
    assert law.culprits == (jump(1, 4, 2),)
    assert "block 1 reaches 2 where doubling allows 1, by 1.0 at 4: hop 2" in law.reasons[0]


def test_what_is_only_implied_shows_nothing_beyond_a_law():
    law = read_law(program([0, 2, 3, 6], 6, FOUR_AND_FOUR, known=[0, 1, 3, 6]))
    assert (law.verdict, law.pace) == ("doubling", "full")
    assert "Blocks reach 0, 1, 3, 6 hops" in law.reasons[0]
    assert "is not counted" in law.reasons[0]
    # but where a law allows it, it counts: this block would otherwise gain three at once
    assert read_law(program([0, 1, 2, 3, 4], 4, FOUR_AND_FOUR, known=[0, 1, 1, 1, 4])).verdict == "sequential"
    assert read_law(program([0, 2, 4, 8], 8, FOUR_AND_FOUR, known=[0, 2, 4, 8])).verdict == "beyond"


@pytest.mark.parametrize(
    ("reads", "form"),
    [
        (["successor", "successor"], "successor"),
        (["lookup"], "lookup"),
        (["lookup", "other"], "lookup"),
        (["lookup", "successor"], None),
        (["other"], None),
        ([], None),
    ],
)
def test_the_form_is_what_queries_read(reads, form):
    assert read_law(program([0, 1, 3, 7, 8], 8, FOUR_AND_FOUR, reads=reads)).form == form


def test_parallel_derivations_are_counted():
    law = read_law(program([0, 1, 3, 7, 8], 8, FOUR_AND_FOUR, derivations=((4, 2, 2), (5, 3))))
    assert "2 derivations bring the answer side by side, of 2 and 3 jumps: 4+2+2 = 5+3." in law.reasons


def test_a_registered_hypothesis_is_a_law():
    reach = [0, 1, 4, 13]
    assert read_law(program(reach, 13, FOUR_AND_FOUR)).verdict == "beyond"
    tripling = Hypothesis("tripling", "…", step=lambda r: 3 * r + 1, looks=lambda r: range(1, r + 2))
    with registered(tripling):
        assert read_law(program(reach, 13, FOUR_AND_FOUR)).verdict == "tripling"
        assert read_law(program([0, 1, 3, 7], 7, FOUR_AND_FOUR)).verdict == "doubling"


@pytest.fixture(scope="module", params=["lookup", "successor", "sequential"])
def decompiled(request):
    return request.param, hi.decompile(Construction.of(TASK, 6, request.param).fused, TASK, 6, sequences=20)


def test_constructed_models_follow_their_law(decompiled):
    algorithm, found = decompiled
    law = judge_program(found)
    doubling = algorithm != "sequential"
    assert law.explained
    assert (law.verdict, law.form) == (("doubling", algorithm) if doubling else ("sequential", None)), law.reasons
    assert law.pace == ("full" if doubling else None)
    control = program_controls(found)["program_shuffled"]
    assert control.passed
    assert control.value < 1 - found.error["own"] - LEAST_COST


def test_a_program_that_explains_nothing_has_no_law():
    """Routes and a tree sought in a model that has learned nothing, past the refusal of an unsolved k."""
    from hopinterp.decompile.controls import measure_controls, measure_faithfulness
    from hopinterp.decompile.derivations import find_tree
    from hopinterp.decompile.queries import find_queries
    from hopinterp.decompile.records import Decompiled
    from hopinterp.decompile.route_fitting import fit_routes
    from hopinterp.models.fused import FusedTransformer
    from hopinterp.models.spec import ModelSpec

    task = hi.HopTask(40, 4, 4)
    spec = ModelSpec.for_task(task, 3, d_model=32, n_heads=2)
    model = FusedTransformer(spec, spec.initial_parameters(seed=0))
    routing = fit_routes(model, task, 4, sequences=20)
    tree = find_tree(model, routing, sequences=20)
    found = Decompiled(
        model="",
        hops=4,
        version="",
        settings={},
        routing=routing,
        faithfulness=measure_faithfulness(model, routing, sequences=20),
        controls=measure_controls(model, routing, sequences=20),
        tree=tree,
        queries=find_queries(model, routing, tree.nodes, sequences=20),
    )
    law = judge_program(found)
    assert not law.explained
    assert law.verdict in ("mixed", "undetermined")
    assert "does not explain the model" in law.reasons[0]
