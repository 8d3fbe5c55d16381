"""HopBench: what is true of its models, disguises that keep it, scores, and the command on a few models."""

import json
import random
from dataclasses import replace

import pytest
import torch

import hopinterp as hi
from benchmarks.hopbench import circuits, disguises, interchange, scoring
from benchmarks.hopbench.__main__ import ROWS, main
from benchmarks.hopbench.contract import ENTRIES, Answer, enter
from benchmarks.hopbench.models import DISGUISES, compiled, models, solves
from benchmarks.hopbench.truth import NONE, Law, truth_of
from hopinterp import HopInterpError
from hopinterp.theory.compiler import compile_program
from hopinterp.theory.hypotheses import resolved
from hopinterp.theory.programs import lookup, sequential, successor

TASK = hi.HopTask(32, 4, 8)


@pytest.mark.parametrize(
    ("build", "k", "reach", "law", "derivations"),
    [
        (lookup, 6, (0, 1, 2, 4, 6), Law("doubling", "lookup", "full"), {(4, 1, 1)}),
        (successor, 6, (0, 1, 3, 6), Law("doubling", "successor", "full"), {(4, 2)}),
        (successor, 8, (0, 1, 3, 7, 8), Law("doubling", "successor", "full"), {(8,)}),
        (successor, 3, (0, 1, 3), Law("undetermined"), {(2, 1)}),
        (sequential, 5, (0, 1, 2, 3, 4, 5), Law("sequential"), {(4, 1)}),
        (lambda task, k: circuits.stepped(task, k, 1), 4, (0, 1, 2, 3, 4), Law("sequential"), {(4,)}),
        (lambda task, k: circuits.stepped(task, k, 2), 7, (0, 1, 3, 5, 7), Law("linear by two", "successor"), {(6, 1)}),
        (lambda task, k: circuits.stepped(task, k, 2), 5, (0, 1, 3, 5), Law("doubling", "successor", "full"), {(4, 1)}),
    ],
)
def test_the_truth_of_a_program_is_what_its_text_says(build, k, reach, law, derivations):
    truth = truth_of(build(TASK, k), k)
    assert (truth.reach, truth.law, truth.derivations) == (reach, law, derivations)
    if build in (lookup, successor, sequential):
        assert list(truth.reach) == resolved(build.__name__, k, truth.n_layers)


def test_nodes_are_those_by_which_values_and_queries_go():
    truth = truth_of(successor(TASK, 6), 6)
    carry, point = {(3, 0, 0), (2, 0, 4)}, {(2, 0, 0), (1, 0, 2), (1, 0, 4), (1, 0, 0)}
    assert carry <= truth.nodes
    assert {node for node in truth.nodes if node[0]} <= carry | point
    assert not truth.nodes & truth.keys
    assert {layer for layer, _, _ in truth.keys} == {0, 1}


@pytest.mark.parametrize("seed", range(6))
def test_a_random_program_changed_without_changing_what_it_does_computes_hop_k(seed):
    draw = random.Random(seed)
    k, naming = 4 + seed // 2, ("occurrence", "place")[seed % 2]
    program = circuits.random_program(TASK, draw, k, 6, 1 + seed % 3, naming)
    batch = TASK.sample(20, hops=k, seed=seed)
    truth = truth_of(program, k)
    changed = [circuits.bare(program, k), circuits.split_moves(program), circuits.with_decoys(program, draw, 3)]
    for one in (program, *changed):
        assert torch.equal(one.answers(one.run(batch.tokens)[-1])[:, 1:], batch.labels[:, 1:])
        again = truth_of(one, k)
        assert (again.law, again.derivations, again.reach) == (truth.law, truth.derivations, truth.reach)
    assert sum(map(len, changed[2].blocks)) == sum(map(len, program.blocks)) + 3


def test_every_disguise_leaves_the_answers_as_they_are():
    seen = list(models(["disguised"], len(DISGUISES), 0, 0, None))
    assert [one.group for one in seen] == [name for name, _, _ in DISGUISES]
    for one in seen:
        made, truth = one.make()
        assert solves(made, one.task, one.hops) == 0, one.name
        heads = {(layer, head) for layer, head, _ in truth.nodes | truth.keys}
        assert heads <= {(layer, head) for layer in range(made.spec.n_layers) for head in range(made.spec.n_heads)}


def test_one_seed_makes_one_model():
    first, again, other = (list(compiled(8, seed))[-1] for seed in (3, 3, 4))
    assert first.name == again.name != other.name
    one, same = (known.make()[0].parameters for known in (first, again))
    assert all(torch.equal(one[name], same[name]) for name in one)


def test_noise_and_softness_without_end_destroy_a_model():
    model = compile_program(lookup(TASK, 4)).model
    assert solves(disguises.noisy(model, 0.1, 0), TASK, 4) > 0.5
    assert solves(disguises.soft(model, 0.01), TASK, 4) > 0.5


# -- trained to a known circuit ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("build", [sequential, lookup, successor])
def test_a_compiled_model_follows_its_program_under_every_exchange(build):
    program = build(TASK, 4)
    found = interchange.interchange_accuracy(compile_program(program).model, program, 4, sequences=30)
    assert found["error"] == 0
    # an exchanged number can name two positions: the program takes the later one, weights made for one take both
    assert found["least"] > 0.9 if build is successor else found["least"] == 1


def test_a_model_of_another_program_does_not():
    """Both compute hop_4; a successor's heads that look like the lookup's do not hand on what these hand on."""
    model = compile_program(sequential(TASK, 4)).model
    program = circuits.scheduled(TASK, 4, [(1, 1, 1, 1)], "place")
    found = interchange.interchange_accuracy(model, program, 4, sequences=30)
    assert found["error"] == 0
    assert found["least"] < 0.6


def test_training_goes_on_where_it_stopped(tmp_path, monkeypatch):
    config = replace(interchange.PLANS["lookup-4"].config, steps=6, checkpoint_every=3, d_model=16, batch=4, bf16=False)
    monkeypatch.setitem(interchange.PLANS, "lookup-4", interchange.Plan(4, lookup, config))
    whole = interchange.train("lookup-4", tmp_path / "whole")
    step = interchange._Training.advance

    def stop(run):
        if run.step == 4:
            raise KeyboardInterrupt
        return step(run)

    monkeypatch.setattr(interchange._Training, "advance", stop)
    with pytest.raises(KeyboardInterrupt):
        interchange.train("lookup-4", tmp_path / "parts")
    monkeypatch.setattr(interchange._Training, "advance", step)
    parts = interchange.train("lookup-4", tmp_path / "parts")
    assert all(torch.equal(whole.parameters[name], parts.parameters[name]) for name in whole.parameters)
    with pytest.raises(HopInterpError, match="does not follow its program"):
        interchange.known("lookup-4", tmp_path / "parts")


# -- scores -----------------------------------------------------------------------------------------------------------


def test_the_truth_scores_one_and_its_opposite_none():
    truth = truth_of(lookup(TASK, 6), 6)
    law = truth.law
    said = Answer(
        nodes=dict.fromkeys(truth.nodes, 1.0),
        routes=truth.routes,
        derivations=truth.derivations,
        verdict=law.verdict,
        form=law.form,
        pace=law.pace,
    )
    right = scoring.score(said, truth, 1.0)
    assert (right.verdict, right.form, right.pace, right.precision, right.recall, right.derivations) == (1,) * 6
    assert (right.nodes, right.false_claim, right.seconds) == (1, 0, 1.0)
    assert 0.5 < right.nodes_with_keys < 1
    opposite = replace(said, nodes=dict.fromkeys(truth.nodes, -1.0), verdict="sequential", derivations=frozenset({(6,)}))
    wrong = scoring.score(opposite, truth, 1.0)
    assert (wrong.verdict, wrong.nodes, wrong.derivations, wrong.false_claim) == (0, 0, 0, 1)
    silent = scoring.score(Answer(), truth, 1.0).to_json()
    assert {name for name, value in silent.items() if value is not None} == {"seconds"}


def test_a_claim_about_a_model_without_a_circuit_is_false():
    truth = replace(truth_of(lookup(TASK, 6), 6), law=NONE)
    assert scoring.score(Answer(verdict="none", derivations=frozenset()), truth, 0.0).false_claim == 0
    assert scoring.score(Answer(verdict="none", derivations=frozenset({(4, 2)})), truth, 0.0).false_claim == 1
    assert scoring.score(Answer(verdict="doubling"), truth, 0.0).false_claim == 1
    assert scoring.score(Answer(verdict="mixed"), truth, 0.0).false_claim == 0


# -- the command ------------------------------------------------------------------------------------------------------


def nobody(model, task, hops):  # noqa: ARG001 (the contract's names)
    """A tool that ranks no node before another."""
    return Answer(nodes={})


def test_the_command_measures_every_model_once(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("torch.set_num_threads", lambda _: None)
    few = ["--kinds", "compiled,disguised,nothing", "--models", "2", "--untrained", "2", "--out", str(tmp_path)]
    tools = ["--entries", "hopinterp,attribution patching", "--enter", f"{__name__}:nobody"]
    monkeypatch.setattr("benchmarks.hopbench.models.UNTAUGHT", ())
    main([*few, *tools])
    text = capsys.readouterr().out
    rows = [json.loads(line) for line in (tmp_path / ROWS).read_text().splitlines()]
    known = [row for row in rows if row["truth"]["verdict"] != "none"]
    assert (len(rows), len(known)) == (7, 4)
    for row in rows:
        ours = row["entries"]["hopinterp"]
        assert (ours["verdict"], ours["false_claim"]) == (1, 0)
    for row in known:
        ours, rival, blank = (row["entries"][name] for name in ("hopinterp", "attribution patching", f"{__name__}:nobody"))
        assert (ours["derivations"], ours["precision"], ours["recall"]) == (1, 1, 1)
        assert ours["nodes"] == 1 >= rival["nodes"]
        assert blank["nodes"] == 0.5
    lines = (tmp_path / ROWS).read_text().splitlines()
    (tmp_path / ROWS).write_text("\n".join(lines[:-1]) + "\n" + lines[-1][:20])
    main([*few, *tools])
    assert [json.loads(line)["name"] for line in (tmp_path / ROWS).read_text().splitlines()[-1:]] == [rows[-1]["name"]]
    page = (tmp_path / "hopbench.md").read_text()
    assert "| compiled (2) | hopinterp | 2 of 2 |" in page
    assert "| compiled (2) | hopinterp | 2 of 2 |" in text


def test_what_is_no_tool_is_refused():
    with pytest.raises(HopInterpError, match="is no entry"):
        enter("benchmarks.hopbench.contract:missing")
    assert enter(f"{__name__}:nobody") in ENTRIES
