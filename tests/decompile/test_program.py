"""Programs of decompiled circuits: constructed ones come back; what is written runs, compiles and decompiles to itself."""

import pytest
import torch

import hopinterp as hi
from hopinterp import HopInterpError
from hopinterp.decompile.derivations import find_tree
from hopinterp.decompile.interventions import measure_interventions
from hopinterp.decompile.nodes import Node, Place
from hopinterp.decompile.queries import find_queries
from hopinterp.decompile.robustness import measure_robustness
from hopinterp.decompile.route_fitting import fit_routes
from hopinterp.decompile.twin import decompile_twin
from hopinterp.decompile.writing import write_program
from hopinterp.models.fused import FusedTransformer
from hopinterp.models.spec import ModelSpec
from hopinterp.theory.compiler import compile_program
from hopinterp.theory.construction import ALGORITHMS, Construction
from hopinterp.theory.program import At, Before, First, Head, Program


@pytest.fixture(scope="module")
def task():
    return hi.HopTask(60, 4, 8)


def hop(layer, head, at, jump, kind="hop"):
    return Node(layer, head, Place(at), kind, jump)


EIGHT = (
    hop(4, 0, 0, 4),
    hop(4, 3, 0, 3),
    hop(3, 3, 4, 2),
    hop(3, 0, 3, 3),
    hop(3, 3, 3, 2),
    hop(2, 1, 5, 2),
    hop(2, 0, 6, 1),
    hop(1, 3, 7, 1),
)
"""What depth5 does at k = 8: 4+2+1+1 = 3+3+1+1 = 3+2+2+1."""


def both(task, hops):
    """Plain sequences, and some whose neighbours repeat."""
    letters = torch.randint(4, (20, task.n_letters), generator=torch.Generator().manual_seed(0))
    return task.sample(20, hops=hops, seed=3), task.from_letters(letters, hops)


def computes_hop_k(found):
    return all(torch.equal(found.run(b.tokens)[:, 1:], b.labels[:, 1:]) for b in both(found.task, found.hops))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize(("built_for", "k"), [(1, 1), (4, 4), (7, 7), (None, 6)])
def test_a_constructed_circuit_is_written_as_its_own_program(task, algorithm, built_for, k):
    made = Construction.of(task, built_for, algorithm)
    tree = find_tree(made.fused, fit_routes(made.fused, task, k, sequences=20), sequences=30, orders=1)
    naming = "occurrence" if algorithm == "successor" else "lookup"
    heads = {(layer, head): naming for layer in range(tree.n_layers) for head in range(made.fused.spec.n_heads)}
    found = write_program(task, k, tree.n_layers, tree.nodes, heads)
    causal = made.asked(k)
    carriers = [{head.hop for head in block if causal.is_open(head)} - {None} for block in made.program.blocks]
    jumps = found.jumps()
    assert all(here <= there for here, there in zip(jumps, carriers, strict=True))
    assert found.derivations == tree.derivations
    assert sum(map(sum, jumps)) == k
    assert computes_hop_k(found)
    assert all(found.causal.held(layer) for layer in range(tree.n_layers))
    assert found.causal.resolved(tree.n_layers - 1) == k
    twin = decompile_twin(found, sequences=20)
    assert (twin.same_derivations, twin.same_jumps, twin.answers, twin.error) == (True, True, 1.0, 0.0)
    if naming == "lookup":
        places = [head.look for block in found.program.blocks for head in block if head.hop and head.hop > 1]
        assert all(isinstance(look, At) for look in places)


def test_ways_side_by_side_come_back_from_the_weights(task):
    found = write_program(task, 8, 5, EIGHT)
    assert found.derivations == ((4, 2, 1, 1), (3, 3, 1, 1), (3, 2, 2, 1))
    assert (len(found.program.votes), found.program.quorum) == (3, 3)
    assert found.jumps() == (set(), {1}, {1, 2}, {2, 3}, {3, 4})
    assert found.added == 4  # two that count, two that look at the previous token: the tree's own heads bring the pointers
    assert computes_hop_k(found)
    twin = decompile_twin(found, sequences=20)
    assert (twin.same_derivations, twin.same_jumps, twin.answers) == (True, True, 1.0)


def test_the_queries_of_a_twin_read_letter_and_number(task):
    found = write_program(task, 8, 5, EIGHT)
    model = found.compile().model
    routing = fit_routes(model, task, 8, sequences=20)
    tree = find_tree(model, routing, sequences=30, orders=1)
    queries = find_queries(model, routing, tree.nodes, sequences=20)
    far = [query for query in queries.queries if query.reading.hop > 1]
    assert len(far) >= 5
    assert {query.reading.naming for query in far} == {"occurrence"}


def test_a_program_prints_one_line_a_block(task):
    text = str(write_program(task, 8, 5, EIGHT)).splitlines()
    assert text[0] == "8 = 4+2+1+1 = 3+3+1+1 = 3+2+2+1"
    assert [line.split()[1] for line in text[1:6]] == list("01234")
    assert "4.0 hop 4 (by pointer 3) brings letter 8" in text[5]
    assert "all agree" in text[6]


def test_a_head_is_added_where_the_tree_lacks_a_pointer(task):
    """A jump of 4 in block 3 takes a pointer of 3 hops, for which the tree below has no jump of 2 in block 2."""
    nodes = [hop(3, 0, 0, 4), hop(1, 0, 4, 1)]
    found = write_program(task, 5, 4, nodes)
    blocks = zip(found.program.blocks, found.origins, strict=True)
    heads = [pair for block, origins in blocks for pair in zip(block, origins, strict=True)]
    assert [head.hop for head, origin in heads if origin is None and head.hop] == [2]
    assert computes_hop_k(found)


def test_a_step_to_the_position_before_abstains_where_the_chain_ends(task):
    nodes = [hop(3, 0, 0, 3), hop(2, 0, 3, 2), hop(3, 1, 0, 2), hop(2, 1, 2, 1), hop(1, 0, 3, 1)]
    nodes += [hop(0, 0, 5, 0, "before hop"), hop(2, 0, 2, 2)]
    found = write_program(task, 4, 4, nodes)
    assert found.derivations == ((3, 2, -1), (3, 1), (2, 2), (2, 1, 1))
    assert len(found.program.abstains) == 1
    assert computes_hop_k(found)
    batch = task.sample(40, hops=4, seed=0)
    assert (batch.scored & (batch.find[:, 5] == 0)).any()  # else nothing abstained
    twin = decompile_twin(found, sequences=30)
    assert (twin.same_derivations, twin.answers) == (True, 1.0)


def test_before_a_hop_is_a_look_that_compiles(task):
    nodes = [hop(2, 0, 0, 2, "before hop"), hop(1, 0, 0, 1)]
    found = write_program(task, 1, 3, nodes)
    looks = [type(head.look) for block in found.program.blocks for head in block if head.hop == 2]
    assert looks == [Before]
    model = found.compile().model
    batch = task.sample(20, hops=1, seed=0)
    assert torch.equal(model(batch.tokens).argmax(-1)[:, 1:], found.run(batch.tokens)[:, 1:])
    routing = fit_routes(model, task, 1, sequences=20)
    assert ("before hop", 2) in {(p.kind, p.hop) for route in routing.routes[2] for p in route.parts}


def test_a_jump_beyond_what_can_be_pointed_at_is_refused(task):
    with pytest.raises(HopInterpError, match=r"head 2\.0 looks 3 hops back.* 1 at most"):
        write_program(task, 3, 3, [hop(2, 0, 0, 3)])
    with pytest.raises(HopInterpError, match="no derivation of 5 hops"):
        write_program(task, 5, 3, [hop(2, 0, 0, 2)])


def test_fewer_fields_than_the_quorum_give_null(task):
    """One way of three looks at the hop token and brings nothing: two are left."""
    found = write_program(task, 8, 5, EIGHT).program
    silent = Head(First(), found.blocks[4][0].moves)
    blocks = (*found.blocks[:4], (silent, *found.blocks[4][1:]))
    batch = task.sample(10, hops=8, seed=0)
    for quorum, answered in ((2, True), (3, False)):
        program = Program(task, blocks, found.answer, found.also, quorum)
        said = program.answers(program.run(batch.tokens)[-1])
        assert (said[batch.scored] == (batch.labels[batch.scored] if answered else task.null)).all()
        assert torch.equal(compile_program(program).model(batch.tokens).argmax(-1)[:, 1:], said[:, 1:])


def test_an_exchange_does_to_the_twin_what_the_program_says(task):
    """All three ways must agree, so that a twin answers null where some are exchanged and the source's where all are."""
    model = write_program(task, 8, 5, EIGHT).compile().model
    routing = fit_routes(model, task, 8, sequences=20)
    tree = find_tree(model, routing, sequences=30, orders=1)
    found = measure_interventions(model, routing, tree, sequences=30)
    assert found.untouched == 1
    assert found.agreement.value == found.elsewhere.value == 1
    assert found.agreement.low > 0.9
    whole = [exchange for exchange in found.exchanges if exchange.moved == 1]
    some = [exchange for exchange in found.exchanges if 0 < exchange.moved < 1]
    assert len(whole) >= 5
    assert len(some) >= 6
    assert all(exchange.source == 1 for exchange in whole)
    assert all(exchange.other == 1 for exchange in some)


def test_the_majority_foretells_a_twin_that_votes(task):
    program = write_program(task, 8, 5, EIGHT).program
    model = compile_program(Program(task, program.blocks, program.answer, program.also, 1)).model
    routing = fit_routes(model, task, 8, sequences=20)
    twin = write_program(task, 8, 5, EIGHT)
    tree = find_tree(twin.compile().model, fit_routes(twin.compile().model, task, 8, sequences=20), sequences=30, orders=1)
    found = measure_interventions(model, routing, tree, sequences=30)
    assert found.vote.value == 1
    assert found.lift.low > 0


def test_a_constructed_model_is_its_routes_on_any_input(task):
    made = Construction.of(task, 5, "successor")
    found = measure_robustness(made.fused, fit_routes(made.fused, task, 5, sequences=20), sequences=20)
    assert [one.inputs for one in found] == ["training", "repeated neighbours", "distinct chains"]
    assert all((one.own, one.routed, one.agree) == (0, 0, 1) for one in found)
    assert all(one.agree_wrong != one.agree_wrong for one in found)  # nowhere wrong
    assert min(one.positions for one in found) > 20


def test_an_untrained_model_is_wrong_on_every_input(task):
    spec = ModelSpec.for_task(task, 2, d_model=32, n_heads=2)
    fresh = FusedTransformer(spec, spec.initial_parameters(seed=1))
    found = measure_robustness(fresh, fit_routes(fresh, task, 2, sequences=20), sequences=10)
    assert all(one.own > 0.5 and one.wrong > 0 for one in found)
    assert measure_robustness(fresh, fit_routes(fresh, task, 2, sequences=20), sequences=10) == found
