"""What a program foretells of whole blocks' transplants, on models whose circuit is known."""

from dataclasses import replace

import pytest

import hopinterp as hi
from hopinterp import HopInterpError
from hopinterp.decompile.nodes import Node, Place
from hopinterp.decompile.transplants import foretold, measure_transplants
from hopinterp.evidence.transplants.pairs import MatchedPairs
from hopinterp.theory.construction import Construction

TASK = hi.HopTask(60, 4, 8)


@pytest.fixture(scope="module", params=[("successor", 6), ("lookup", 5), ("sequential", 4)], ids=lambda p: p[0])
def known(request):
    algorithm, k = request.param
    return hi.decompile(Construction.of(TASK, k, algorithm).fused, TASK, k, sequences=20)


@pytest.mark.parametrize("match", ["occurrence", "nothing"])
def test_every_transplant_of_a_known_circuit_is_foretold(known, match):
    measured = measure_transplants(known, match=match, sequences=30)
    assert measured.agreement.value == 1
    for block in measured.blocks:
        assert block.agreement.value == 1 or not block.unanimous
        assert block.unanimous == 0 or not block.unrelated > 0.9
    assert measured.blocks[-1].unanimous == 1  # the answer itself
    assert sum(block.unanimous > 0.5 for block in measured.blocks) >= (3 if match == "occurrence" else 1)


def test_a_program_that_is_not_the_models_is_found_out(known):
    """The same nodes, with every jump from i one shorter and the next one longer."""
    first = max(node for node in known.tree.nodes if node.place == Place(0) and node.kind == "hop" and node.hop > 1)
    wrong = {
        Node(first.layer, first.head, Place(0), "hop", first.hop - 1),
        Node(1, 0, Place(first.hop - 1), "hop", known.hops - first.hop + 1),
    }
    queries = replace(known.queries, values=frozenset(wrong))
    measured = measure_transplants(replace(known, queries=queries), match="nothing", sequences=30)
    assert min(block.agreement.value for block in measured.blocks[:-1]) < 0.9


def test_what_is_brought_before_the_transplant_is_the_sources(known):
    pairs = MatchedPairs.draw(TASK, known.hops, 10, "nothing", 1)
    last = known.tree.n_layers - 1
    letters = foretold(known.queries, last, pairs.base, pairs.source)
    assert len(letters) == 1
    scored = pairs.source.scored
    assert (letters[0] + TASK.first_letter)[scored].equal(pairs.source.labels[scored])


def test_without_a_derivation_nothing_is_foretold(known):
    with pytest.raises(HopInterpError, match="no derivation"):
        measure_transplants(replace(known, queries=replace(known.queries, values=frozenset())), sequences=10)


def test_a_pointer_whose_query_is_not_known_foretells_nothing_before_its_block(known):
    """Where the head's tree has no nodes, only the source's whole stream says where the head looks."""
    last = known.tree.n_layers - 1
    queries = [
        replace(q, tree=replace(q.tree, carrying=())) if q.node.layer == last and q.tree.hop > 1 else q
        for q in known.queries.queries
    ]
    unknown = replace(known.queries, queries=tuple(queries))
    pairs = MatchedPairs.draw(TASK, known.hops, 10, "nothing", 1)
    if any(q.node.layer == last and q.tree.hop > 1 for q in known.queries.queries):
        assert (foretold(unknown, 1, pairs.base, pairs.source) < 0).all()
    before, after = (foretold(one, last - 1, pairs.base, pairs.source) for one in (known.queries, unknown))
    assert before.equal(after)


def test_a_query_that_reads_nothing_clear_foretells_nothing(known):
    assert all(q.reading.clear for q in known.queries.queries)
    dim = [
        replace(q, reading=replace(q.reading, iia=q.reading.chance, after_letter=0.3, after_letter_chance=0.25))
        for q in known.queries.queries
    ]
    assert not any(q.reading.clear for q in dim)
    pairs = MatchedPairs.draw(TASK, known.hops, 10, "nothing", 1)
    letters = foretold(replace(known.queries, queries=tuple(dim)), 0, pairs.base, pairs.source)
    assert (letters < 0).all()
