"""decompile: the program of constructed models, what is printed, saved, run and refused."""

import json
import subprocess
import sys
from dataclasses import replace

import networkx as nx
import pytest
import torch

import hopinterp as hi
from hopinterp import HopInterpError
from hopinterp.decompile.decompilation import load_decompiled
from hopinterp.decompile.decompiled import STAGES, decompile
from hopinterp.decompile.differences import diff
from hopinterp.decompile.nodes import told
from hopinterp.decompile.routed_runs import run_routed
from hopinterp.models.fused import FusedTransformer
from hopinterp.models.subject import Subject
from hopinterp.theory.construction import Construction

K = 4
TASK = hi.HopTask(n_letters=40, alphabet_size=4, max_hops=5)


@pytest.fixture(scope="module")
def made():
    return Construction.of(TASK, K, "successor").fused


@pytest.fixture(scope="module")
def found(made):
    return decompile(Subject.of(made, TASK, name="made"), TASK, K, sequences=30)


@pytest.fixture(scope="module")
def several(made):
    seen = []
    return decompile(made, TASK, [K, 2], sequences=20, report=seen.append), seen


def test_a_constructed_model_is_its_program(found):
    assert found.explained
    assert found.missed == ()
    assert found.derivations == ((4,),)
    assert found.reach[-1] == K
    assert (found.error["own"], found.error["routed"], found.tree.error, found.inputs_explained) == (0, 0, 0, 1)
    assert found.controls.means()["shuffled"] > 0.3
    assert found.split == ()


def test_it_prints_the_program_and_the_proof(found):
    lines = str(found).splitlines()
    head = next(line for line in lines if line.startswith("made, k = 4: 4 = "))
    assert head == found.headline
    assert f"4 = {told(found.derivations[0])}." in head
    assert head.endswith(f"Blocks reach {', '.join(map(str, found.reach))} hops (at most 2^ℓ − 1: 0, 1, 3, 7).")
    assert any(
        line.startswith("Routing replaced by this program: 0.0% wrong (own 0.0%; program shuffled ") for line in lines
    )
    assert lines[-1] == "Explained: the routed model answers as the model does on 100.0% of inputs."
    assert [line.split()[:2] for line in lines[1:5]] == [["block", str(n)] for n in (3, 2, 1, 0)]
    page = found._repr_html_()
    assert "<table>" in page
    assert "k = 4" in page


NODE = {"layer", "head", "at", "before", "hop"}


def test_json_has_the_names_that_were_promised(found):
    given = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert list(given) == [
        *("model", "hops", "error", "controls", "routes", "tree", "queries", "derivations", "reach"),
        *("explained", "inputs_explained"),
    ]
    assert set(given["error"]) == {"own", "routed", "routed_hard", "joint", "low", "high"}
    assert set(given["controls"]) == {"shuffled", "shuffled_within_block", "one_hop_off", "content_free", "untrained"}
    assert [len(block) for block in given["routes"]] == [len(block) for block in found.routes]
    assert all(set(part) == {"head", "kind", "hop", "share"} for block in given["routes"] for part in block)
    assert set(given["tree"]) == {"nodes", "stray", "error", "low", "high", "without"}
    assert all(set(node) == NODE for node in given["tree"]["nodes"])
    assert all(set(query) == {"layer", "head", "at", "reads", "iia", "nodes"} for query in given["queries"])
    assert given["derivations"] == [list(jumps) for jumps in found.derivations]


def test_it_comes_back_as_it_was_saved(found, made, tmp_path):
    found.save(tmp_path / "p")
    again = load_decompiled(tmp_path / "p", made)
    assert again.to_json() == found.to_json()
    assert (str(again), again.settings, again.tree, again.queries) == (str(found), found.settings, found.tree, found.queries)
    tokens = TASK.sample(3, hops=K, seed=5).tokens
    assert torch.equal(again.run(tokens), found.run(tokens))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p"]
    with pytest.raises(HopInterpError, match="exists"):
        found.save(tmp_path / "p")
    with pytest.raises(HopInterpError, match="loaded without its model"):
        load_decompiled(tmp_path / "p").run(tokens)


def test_what_is_no_saved_program_is_refused(found, tmp_path):
    with pytest.raises(HopInterpError, match="holds no decompiled model"):
        load_decompiled(tmp_path)
    found.save(tmp_path / "p")
    path = tmp_path / "p" / "decompiled.json"
    given = json.loads(path.read_text())
    given["by_hops"]["4"]["tree"].pop("without")
    path.write_text(json.dumps(given))
    with pytest.raises(HopInterpError, match="ValueTree has other fields: without"):
        load_decompiled(tmp_path / "p")


def test_nothing_is_left_where_saving_fails(found, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(HopInterpError, match="No space left on device"):
        found.save(tmp_path / "p")
    assert list(tmp_path.iterdir()) == []


def test_the_public_name_can_be_called_whatever_was_imported_before():
    code = "import hopinterp as hi\nfrom hopinterp.decompile import routes\nassert callable(hi.decompile)\nhi.decompile"
    subprocess.run([sys.executable, "-c", code + "\nassert callable(hi.decompile)"], check=True)


# -- on inputs of one's own -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def moved(found):
    """The same with one head's hop moved, so that the routes are not what the model does anyway."""
    node = found.tree.carrying[0].node
    return replace(found, routing=found.routing.moved(node.layer, node.head, -1))


@pytest.mark.parametrize("told", [True, False])
def test_hooks_set_the_routing_on_either_kind_of_model(moved, made, told):
    batch = TASK.sample(4, hops=K, seed=6)
    expected = run_routed(made, batch, moved.routing)
    assert not torch.allclose(made(batch.tokens), expected, atol=0.1)
    assert torch.equal(moved.run(batch.tokens), expected)
    hooks = moved.hooks(batch.tokens) if told else moved.hooks()
    assert torch.allclose(made.run_with_hooks(batch.tokens, hooks), expected, atol=1e-3)
    lens = made.spec.build(made.parameters)
    assert torch.allclose(lens.run_with_hooks(batch.tokens, fwd_hooks=hooks), expected, atol=1e-3)


def test_hooks_refuse_what_they_were_not_made_for(found, made):
    other = TASK.sample(2, hops=K - 1, seed=6).tokens
    with pytest.raises(HopInterpError, match="the tokens ask for k = 3; this program is for k = 4"):
        found.run(other)
    elsewhere = FusedTransformer(made.spec, made.spec.initial_parameters(1))
    with pytest.raises(HopInterpError, match="the embeddings are not those of k = 4"):
        elsewhere.run_with_hooks(TASK.sample(2, hops=K, seed=6).tokens, found.hooks())


def test_why_tells_one_chain(found):
    batch = TASK.sample(4, hops=K, seed=7)
    index, position = batch.scored.nonzero()[-1].tolist()
    told = found.why(batch, index, position).splitlines()
    answer = TASK.token_name(int(batch.labels[index, position]))
    chain = batch.find[index, : K + 1, position].tolist()
    assert told[0] == f"k = 4, position {position}: the answer is {answer}, and the model says {answer}."
    assert told[1].startswith(f"The chain of {position}: {position} (")
    assert f"give {answer} in 20 of 20;" in told[2]
    node = found.tree.carrying[0].node
    assert f"{node.layer}.{node.head} at {position} looks at {chain[node.hop]} (" in told[3]
    nowhere = (~batch.scored[0]).nonzero()[-1].item()
    with pytest.raises(HopInterpError, match="its answer is no letter"):
        found.why(batch, 0, nowhere)
    with pytest.raises(HopInterpError, match="index is 4"):
        found.why(batch, 4)


def test_the_circuit_is_a_graph_of_values_and_queries(found):
    graph = found.circuit
    assert isinstance(graph, nx.DiGraph)
    assert {edge.by for edge in found.queries.edges} == {by for *_, name in graph.edges(data="by") for by in name}
    carrying = {effect.node for effect in found.tree.carrying}
    assert {node for node, role in graph.nodes(data="role") if role == "derivation"} == carrying
    assert all(source.layer < target.layer for source, target in graph.edges)


# -- several k, and where it ends -------------------------------------------------------------------------------------


def test_an_unsolved_k_is_refused_alone_and_marked_among_others(several, made):
    found, seen = several
    assert (list(found.by_hops), list(found.unsolved)) == ([K], [2])
    assert found.unsolved[2] > 0.05
    with pytest.raises(HopInterpError, match=r"does not solve k = 2: its error is .*; there is no program"):
        found[2]
    with pytest.raises(HopInterpError, match="the model does not solve k = 2"):
        decompile(made, TASK, 2, sequences=20)
    assert "Not solved: k = 2." in found.reading
    given = found.to_json()["by_hops"]
    assert given["4"]["explained"] is True
    assert given["2"]["explained"] is False
    assert given["2"].keys() == given["4"].keys()
    assert (seen[-1].done, seen[-1].total) == (2 * len(STAGES), 2 * len(STAGES))
    assert [now.done for now in seen] == sorted(now.done for now in seen)


def test_several_come_back_as_they_were_saved(several, tmp_path):
    found, _ = several
    found.save(tmp_path / "p")
    again = load_decompiled(tmp_path / "p")
    assert again.to_json() == found.to_json()
    assert str(again) == str(found)


def test_several_k_share_the_untrained_control():
    made = Construction.of(TASK, None, "successor").fused
    found = decompile(made, TASK, range(2, 4), sequences=20)
    assert [found[k].derivations for k in (2, 3)] == [((2,),), ((2, 1),)]
    assert found[2].controls.untrained == found[3].controls.untrained
    assert found.reading.endswith("2 of 2 solved k explained: k = 2, 3.")


def test_an_untrained_model_has_no_program(small_model, small_task):
    found = decompile(small_model, small_task, None, sequences=20)
    assert (found.by_hops, list(found.unsolved)) == ({}, [1, 2, 3, 4])


def test_a_bar_that_is_missed_is_named(found):
    worse = replace(found, tree=replace(found.tree, error=0.216))
    assert not worse.explained
    assert worse.reading.splitlines()[-1].startswith("Not explained: the tree errs on 21.6%, above 5%; ")


@pytest.mark.parametrize(
    ("hops", "sequences", "words"),
    [(0, 30, "hop_0 is the input itself"), (9, 30, "this task has 0 to 5"), (4, 5, "of at least 20")],
)
def test_what_cannot_be_decompiled_is_refused(made, hops, sequences, words):
    with pytest.raises(HopInterpError, match=words):
        decompile(made, TASK, hops, sequences=sequences)


def test_reach_above_doubling_is_said_in_words(found):
    assert "Above 2^ℓ − 1" not in found.reading
    head = found.queries.queries[0]
    lost = replace(head, tree=replace(head.tree, carrying=(), stray=(), hop=5, found=False))
    more = replace(found, queries=replace(found.queries, queries=(lost,)))
    layer = head.node.layer - 1
    assert f"the most that doubling brings on every chain: block {layer} (4)" in more.reading


def test_two_programs_are_told_apart(found):
    other = decompile(Construction.of(TASK, K, "lookup").fused, TASK, K, sequences=20)
    told = diff(found, other)
    alone, shared, its = told.derivations
    assert {*alone, *shared} == set(found.derivations)
    assert {*its, *shared} == set(other.derivations)
    assert told.routes
    assert "made, k = 4" in str(told)
    same = diff(found, found)
    assert (same.routes, same.derivations[0], same.derivations[2]) == ({}, (), ())


def test_its_program_runs_on_whole_numbers(found):
    batch = TASK.sample(10, hops=K, seed=8)
    assert found.program.derivations == found.derivations
    assert torch.equal(found.program.run(batch.tokens)[batch.scored], batch.labels[batch.scored])
