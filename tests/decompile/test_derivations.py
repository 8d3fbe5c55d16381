"""Trees: exactly the program's on constructed models; runs of a tree against runs of the model; what paths add up to."""

from dataclasses import replace

import pytest
import torch

import hopinterp as hi
from hopinterp import HopInterpError
from hopinterp.decompile import derivations as finding
from hopinterp.decompile import fresh_runs, interventions
from hopinterp.decompile.derivations import Pruner, find_tree, printed
from hopinterp.decompile.nodes import Node, Place, connected, derivations, on_paths, reach, reachable
from hopinterp.decompile.route_fitting import fit_routes
from hopinterp.decompile.routed_runs import run_routed
from hopinterp.decompile.scrubbing import scrub
from hopinterp.decompile.tree_runs import Outside, TreeRunner
from hopinterp.decompile.watched_rows import Rows
from hopinterp.decompile.writing import write_program
from hopinterp.models import store
from hopinterp.theory.compiler import compile_program
from hopinterp.theory.construction import ALGORITHMS, Construction


@pytest.fixture(scope="module")
def task():
    return hi.HopTask(60, 4, 8)


def program_nodes(made, k):
    """The heads that bring the answer, at their chain positions, worked out from the program: last block first."""
    model = made.asked(k)
    field, place, found = model.program.answer, 0, []
    for layer in reversed(range(model.n_layers)):
        for number, head in enumerate(model.program.blocks[layer]):
            moves = [move for move in head.moves if move.target == field] if model.is_open(head) else []
            if moves:
                kind = "hop" if head.hop is not None else "self"
                found.append(Node(layer, number, Place(place), kind, head.hop))
                field, place = moves[0].source, place + (head.hop or 0)
                break
    assert place == k
    return found


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize(("built_for", "k"), [(1, 1), (5, 5), (6, 6), (None, 3), (None, 7)])
def test_the_tree_of_a_constructed_model_is_its_program(task, algorithm, built_for, k):
    made = Construction.of(task, built_for, algorithm)
    tree = find_tree(made.fused, fit_routes(made.fused, task, k, sequences=20), sequences=30)
    nodes = program_nodes(made, k)
    assert [effect.node for effect in tree.carrying] == nodes
    assert (tree.aside, tree.stray, tree.backup) == ((), (), frozenset())
    assert tree.derivations == (tuple(node.hop for node in nodes if node.hop),)
    assert tree.error == tree.carrying_error == tree.whole_error == 0
    assert tree.without > 0.5
    assert tree.stability == 1
    assert all(effect.low > 0.3 for effect in tree.carrying)
    assert tree.reach[-1] == k


@pytest.fixture(scope="module")
def trained():
    model, task = store.load_fused("depth3")
    routing = fit_routes(model, task, 2, sequences=30)
    rows = Rows.draw(task, 2, 12, seed=0)
    return model, routing, TreeRunner.of(model, routing, rows)


def test_a_sequence_that_stands_in_for_itself_changes_nothing(trained):
    model, routing, runner = trained
    rows = runner.rows
    same = Rows(rows.batch, rows.sequence, rows.position, rows.sequence, rows.position)
    state = TreeRunner.of(model, routing, same).run(frozenset())
    own = model(rows.batch.tokens)[rows.sequence, rows.position]
    assert torch.allclose(state.logits, own, atol=1e-3)


def test_a_tree_that_keeps_all_is_the_routed_model(task):
    made = Construction.of(task, 5, "successor")
    routing = fit_routes(made.fused, task, 5, sequences=20)
    rows = Rows.draw(task, 5, 12, seed=0)
    state = TreeRunner.of(made.fused, routing, rows).run(reachable(routing))
    routed = run_routed(made.fused, rows.batch, routing)[rows.sequence, rows.position]
    assert torch.allclose(state.logits, routed, atol=1e-3)


def test_what_is_computed_anew_is_what_a_whole_run_gives(trained):
    _, routing, runner = trained
    whole = reachable(routing)
    state = runner.run(whole)
    for node in sorted(whole)[::3]:
        again = runner.run(whole - {node})
        assert torch.allclose(runner.without(state, [node]).logits, again.logits, atol=1e-4), node
    removed = sorted(whole)[::2]
    chained = runner.without(runner.without(state, removed[:4]), removed[4:])
    assert torch.allclose(chained.logits, runner.run(whole - set(removed)).logits, atol=1e-4)


def test_a_partner_brings_its_own_answer(task):
    """With nothing kept, what decides is the partner's last block at its own position."""
    made = Construction.of(task, 4, "lookup")
    routing = fit_routes(made.fused, task, 4, sequences=20)
    rows = Rows.draw(task, 4, 20, seed=1)
    assert (rows.sequence != rows.partner).all()
    answers = TreeRunner.of(made.fused, routing, rows).run(frozenset()).logits.argmax(-1)
    assert torch.equal(answers, rows.batch.labels[rows.partner, rows.partner_position])


def test_rows_watch_scored_positions_of_their_sequences(task):
    rows = Rows.draw(task, 6, 10, positions=3, partners=2, seed=0)
    assert rows.batch.scored[rows.sequence, rows.position].all()
    assert rows.batch.scored[rows.partner, rows.partner_position].all()
    assert (rows.chain[:, 6] > 0).all()
    with pytest.raises(HopInterpError, match="fewer than two"):
        Rows.draw(hi.HopTask(4, 4, 8), 8, 5)


def test_rows_in_parts_are_whole_draws_of_their_own(task):
    (alone,) = Rows.draw_parts(task, 6, 10, most=10, positions=3, seed=0)
    rows = Rows.draw(task, 6, 10, positions=3, seed=0)
    for name in ("sequence", "position", "partner", "partner_position"):
        assert torch.equal(getattr(alone, name), getattr(rows, name))
    parts = Rows.draw_parts(task, 6, 50, most=20, positions=3, seed=0)
    scored = task.sample(50, hops=6, seed=0).scored.any(1)
    assert sum(len(part.batch) for part in parts) == scored.sum()
    assert all(2 <= len(part.batch) <= 20 for part in parts)
    assert all((part.sequence != part.partner).all() for part in parts)


def test_more_sequences_narrow_the_intervals_and_no_more_are_run_at_once(task, monkeypatch):
    run = []

    def outside(model, routing, batch, real=Outside.of):
        run.append(len(batch))
        return real(model, routing, batch)

    monkeypatch.setattr(Outside, "of", outside)
    monkeypatch.setattr(fresh_runs, "AT_ONCE", 30)
    monkeypatch.setattr(finding, "MOST_FITTED", 30)
    made = Construction.of(task, 5, "sequential")
    routing = fit_routes(made.fused, task, 5, sequences=20)
    few, many = (find_tree(made.fused, routing, sequences=n, orders=1) for n in (30, 240))
    assert 3 < max(run) <= 30
    assert many.high - many.low < (few.high - few.low) / 3
    for one, other in zip(few.carrying, many.carrying, strict=True):
        assert one.node == other.node
        assert other.high - other.low < (one.high - one.low) / 2


def hop(layer, head, at, jump):
    return Node(layer, head, Place(at), "hop", jump)


def test_jumps_add_up():
    nodes = {
        hop(3, 0, 0, 4),
        hop(3, 1, 0, 3),
        hop(2, 0, 4, 2),
        hop(2, 0, 3, 2),
        hop(1, 0, 6, 1),
        hop(1, 0, 5, 1),
        hop(2, 1, 1, 1),
    }
    assert set(derivations(nodes, 7)) == {(4, 2, 1)}
    assert set(derivations(nodes, 6)) == {(4, 2), (3, 2, 1)}
    assert hop(2, 1, 1, 1) not in connected(nodes)  # nothing reads find¹
    assert on_paths(nodes, 7) == {hop(3, 0, 0, 4), hop(2, 0, 4, 2), hop(1, 0, 6, 1)}
    assert reach(nodes, 7, 4) == (0, 1, 3, 7)
    assert printed(frozenset(nodes), 7) == connected(nodes)  # find^6 is what the answer is not, find^5 a guess


def test_the_letter_before_is_that_of_one_hop_less():
    back = Node(0, 0, Place(8), "before hop", 0)
    assert back.target == Place(8, 1)
    assert (back.reads, back.jump) == (7, -1)
    assert set(derivations({hop(2, 0, 0, 8), back}, 7)) == {(8, -1)}
    assert reach({hop(2, 0, 0, 8), back}, 7, 3) == (0, 0, 7)
    assert Node(0, 0, Place(8, 1), "before hop", 0).reads is None


def test_every_order_prunes_to_one_tree_where_there_is_but_one(task):
    made = Construction.of(task, 6, "lookup")
    routing = fit_routes(made.fused, task, 6, sequences=20)
    runner = TreeRunner.of(made.fused, routing, Rows.draw(task, 6, 30, seed=2))
    pruner = Pruner(runner, reachable(routing))
    assert {pruner.prune(seed) for seed in range(3)} == {frozenset(program_nodes(made, 6))}


def test_scrubbing_finds_no_letter_but_the_answers(task):
    made = Construction.of(task, 5, "successor")
    routing = fit_routes(made.fused, task, 5, sequences=20)
    scrubbed = scrub(made.fused, routing, find_tree(made.fused, routing, sequences=30), sequences=30)
    assert [result.letters for result in scrubbed] == [(5,), (5,)]
    assert all(result.rise == 0 and result.also is None for result in scrubbed)
    assert min(result.matched for result in scrubbed) > 0.9


def test_nothing_is_found_in_an_untrained_model(task):
    from hopinterp.models.fused import FusedTransformer
    from hopinterp.models.spec import ModelSpec

    spec = ModelSpec.for_task(task, 3, d_model=32, n_heads=2)
    fresh = FusedTransformer(spec, spec.initial_parameters(seed=1))
    tree = find_tree(fresh, fit_routes(fresh, task, 2, sequences=20), sequences=20)
    assert tree.error > 0.5
    assert tree.derivations == ()


def test_ways_that_vote_are_all_found(task):
    """Any two of the three outvote the rest: pruning alone leaves two of them, and by them reach would be 0, 1, 2, 2, 4."""
    nodes = [hop(4, 0, 0, 2), hop(4, 1, 0, 1), hop(3, 0, 2, 2), hop(3, 1, 1, 1), hop(2, 0, 2, 1), hop(1, 0, 3, 1)]
    namings = dict.fromkeys(((node.layer, node.head) for node in nodes), "lookup")
    program = replace(write_program(task, 4, 5, nodes, namings).program, quorum=1)
    model = compile_program(program).model
    routing = fit_routes(model, task, 4, sequences=20)
    enough = find_tree(model, routing, sequences=30)
    assert len(enough.derivations) == 2
    assert enough.spare  # and it says that there are more
    tree = find_tree(model, routing, sequences=30, every_way=True)
    assert set(tree.derivations) == {(2, 2), (2, 1, 1), (1, 1, 1, 1)}
    assert tree.reach == (0, 1, 2, 3, 4)
    assert tree.error == 0
    assert all(effect.low > 0 for effect in tree.carrying)


def test_scrubbing_and_exchanges_in_parts_say_the_same_of_more_sequences(task, monkeypatch):
    monkeypatch.setattr(fresh_runs, "AT_ONCE", 15)
    monkeypatch.setattr(interventions, "AT_ONCE", 15)
    made = Construction.of(task, 4, "successor")
    routing = fit_routes(made.fused, task, 4, sequences=20)
    tree = find_tree(made.fused, routing, sequences=15, orders=1)
    assert all(one.rise == 0 and one.matched == 1 for one in scrub(made.fused, routing, tree, sequences=40))
    few, many = (interventions.measure_interventions(made.fused, routing, tree, sequences=n) for n in (15, 60))
    assert few.agreement.value == many.agreement.value == 1
    assert many.agreement.low > few.agreement.low
    assert many.rows > 3 * few.rows
