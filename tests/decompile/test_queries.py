"""What queries read and need, and the circuit with live patterns: exact on constructed models, nothing on untrained ones."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import Tensor

from hopinterp.decompile.derivations import find_tree
from hopinterp.decompile.live import LiveRunner, Pairs, Site
from hopinterp.decompile.nodes import START, Node, Place
from hopinterp.decompile.pointers import Pointers, PointerTree, _Query, looks
from hopinterp.decompile.queries import Queries, find_queries
from hopinterp.decompile.readings import NAMINGS, predicted, read_queries
from hopinterp.decompile.route_fitting import fit_routes
from hopinterp.decompile.routes import Routing
from hopinterp.errors import HopInterpError
from hopinterp.models.fused import FusedTransformer
from hopinterp.task import HopTask
from hopinterp.theory.construction import Construction
from hopinterp.theory.hypotheses import resolved

TASK = HopTask(n_letters=48, alphabet_size=4, max_hops=6)
CELLS = [("lookup", 5), ("successor", 6), ("sequential", 4)]


@cache
def routed(algorithm: str, hops: int, multi_task: bool = False) -> tuple[FusedTransformer, Routing]:
    model = Construction.of(TASK, None if multi_task else hops, algorithm).fused
    return model, fit_routes(model, TASK, hops, sequences=20)


@cache
def found(algorithm: str, hops: int, multi_task: bool = False) -> Queries:
    model, routing = routed(algorithm, hops, multi_task)
    tree = find_tree(model, routing, sequences=20, orders=1)
    return find_queries(model, routing, tree.nodes, sequences=20)


def sites(queries: Queries) -> set[Site]:
    return {Site(node.layer, node.head, node.place) for node in queries.nodes}


# -- constructed models -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("algorithm", "hops"), CELLS)
@pytest.mark.parametrize("multi_task", [False, True])
def test_reach_is_the_programs(algorithm, hops, multi_task):
    queries = found(algorithm, hops, multi_task)
    assert queries.reach == tuple(resolved(algorithm, hops, queries.n_layers))
    assert not any(queries.implied)


@pytest.mark.parametrize(("algorithm", "hops"), CELLS)
def test_queries_read_what_the_program_says(algorithm, hops):
    for query in found(algorithm, hops).queries:
        # block 1 of every program looks for the letter at the position itself; later ones as their algorithm does
        reads = "successor" if query.node.layer == 1 or algorithm == "successor" else "lookup"
        assert query.reading.reads == reads
        assert query.reading.best == 1
    naming = {query.node.layer: query.reading.naming for query in found(algorithm, hops).queries}
    assert naming[1] == "position"
    assert naming[2] == ("occurrence" if algorithm == "successor" else "lookup")


@pytest.mark.parametrize(("algorithm", "hops"), CELLS)
def test_the_joint_circuit_is_the_trees(algorithm, hops):
    queries = found(algorithm, hops)
    assert queries.joint.error == 0
    assert queries.joint.sites == sites(queries)
    assert queries.joint.values > 0.3  # without the pointers the values' own heads look elsewhere


def test_query_trees_are_the_programs():
    head = Node(3, 0, START, "hop", 4)
    query = next(query for query in found("successor", 6).queries if query.node == head)
    pointer = {Node(2, 0, START, "hop", 2), Node(1, 0, Place(2), "hop", 1)}
    counted = {Node(0, head, Place(3), "same letter") for head in (1, 2)}
    assert query.nodes == pointer | counted
    assert query.tree.beside == (Node(2, 0, START, "hop", 2),)
    assert query.tree.without < 0.1 < query.tree.lands == query.tree.own == 1
    assert query.tree.stray == ()
    assert all(0.3 < effect.low <= effect.effect <= effect.high for effect in query.tree.carrying)
    chain = next(query for query in found("sequential", 4).queries if query.node.layer == 4)
    assert chain.nodes == {Node(3, 0, START, "hop", 2), Node(1, 0, Place(2), "hop", 1)}


def test_a_node_that_does_nothing_is_stray():
    model, routing = routed("lookup", 5)
    pointers = Pointers.of(model, routing, sequences=10)
    query = _Query.of(pointers.fresh, 4, 0, looks(routing.routes[4][0].parts))
    needed = pointers.tree(4, 0)
    idle = Node(2, 0, START, "hop", routing.routes[2][0].parts[0].hop)  # a pointer that only queries read
    tree = query.measure(needed.kept | {idle}, True)
    assert (tree.carrying, [effect.node for effect in tree.stray]) == (needed.carrying, [idle])
    assert tree.stray[0].effect == 0
    assert tree.kept == tree.nodes | {idle}


def test_block_one_needs_no_pointer():
    model, routing = routed("lookup", 5)
    pointers = Pointers.of(model, routing, sequences=10)
    tree = pointers.tree(1, 0)
    assert tree is not None
    assert tree.found
    assert tree.nodes == frozenset()
    assert pointers.tree(0, 0) is None  # the previous token, wherever the letters are


def test_every_site_of_a_circuit_matters():
    model, routing = routed("successor", 6)
    runner = LiveRunner.of(model, Pairs.draw(TASK, 6, 15, seed=5), routing.hops)
    state = runner.run(sites(found("successor", 6)))
    assert runner.error(state) == 0
    for site in state.kept:
        assert runner.error(runner.change(state, remove=[site])) > 0.3, site


def test_edges_join_what_is_read():
    queries = found("lookup", 5)
    top = Node(4, 0, START, "hop", 4)
    into = {(edge.source, edge.by) for edge in queries.edges if edge.target == top}
    assert into == {(Node(1, 0, Place(4), "hop", 1), "v"), (Node(3, 0, START, "hop", 2), "q")}
    assert all(edge.source.layer < edge.target.layer for edge in queries.edges)


def test_json():
    plain = json.loads(json.dumps(found("lookup", 5).to_json()))
    assert plain["reach"] == [0, 1, 2, 4, 5]
    assert {"layer", "head", "at", "reads", "iia", "nodes"} <= plain["queries"][0].keys()
    assert plain["joint"]["error"] == 0
    assert all(node["low"] > 0 for query in plain["queries"] for node in query["nodes"])
    assert {edge["by"] for edge in plain["edges"]} == {"v", "q"}


def test_a_tree_that_was_not_found_is_implied():
    queries = found("sequential", 4)
    first = queries.queries[0]
    lost = replace(first, tree=PointerTree(4, 0, 3, (), (), lands=0.2, own=1.0, without=0.0, found=False))
    bare = Queries(4, queries.n_layers, frozenset(), (lost,), queries.joint)
    assert bare.reach == (0, 0, 0, 2, 2)
    assert bare.implied == (False, False, False, True, True)


# -- readings ---------------------------------------------------------------------------------------------------------


def test_where_a_query_would_look():
    base, source = TASK.from_letters("bcbabdabca", 1), TASK.from_letters("cacbabcbac", 1)
    lookup, occurrence, position, letter = predicted(base, source, 2)[:, 0, 10].tolist()
    # the source's X_10 is a c; the last before it is at 7, so find¹ is 8, the third b; the second is at 6, so find² is 7
    assert source.find[0, :3, 10].tolist() == [10, 8, 7]
    assert lookup == 7
    assert occurrence == 4  # behind the base's second b
    assert position == 6  # behind its last b before 8, the third
    assert letter == 9  # behind its last b before 10, the fourth
    assert predicted(base, source, 2)[:, 0, 0].eq(0).all()


def test_untrained_heads_read_nothing(small_model, small_task):
    heads = {(layer, head): 1 + layer for layer in range(2) for head in range(2)}
    for reading in read_queries(small_model, small_task, 2, heads).values():
        assert reading.reads == "other"
        assert reading.naming is None
        assert set(reading.iia) == set(NAMINGS)


def test_another_algorithm_is_not_read():
    """A lookup's query does not say where the successor's prediction is, and the other way round."""
    for algorithm, mine, other in (("lookup", "lookup", "occurrence"), ("successor", "occurrence", "lookup")):
        model, routing = routed(algorithm, 6)
        reading = read_queries(model, routing.task, 6, {(3, 0): 2 if algorithm == "lookup" else 4})[3, 0]
        assert reading.iia[mine] == 1
        assert reading.iia[other] < 0.2


# -- runs -------------------------------------------------------------------------------------------------------------


def by_hand(model: FusedTransformer, pairs: Pairs, kept: set[Site], pair: int, watched: int) -> Tensor:
    """The answer of a circuit at one position, over all positions and without any shortcut."""
    base = pairs.batch.tokens[pairs.base[pair]][None]
    streams = {"base": model.embed(base), "partner": model.embed(pairs.batch.tokens[pairs.partner[pair]][None])}
    x = streams["base"]
    chain = pairs.batch.find[pairs.base[pair], :, pairs.position[pair, watched]]
    for layer in range(model.spec.n_layers):
        qkv = {name: model.qkv(model.norm(s, f"blocks.{layer}.ln1"), layer) for name, s in streams.items()}
        z = {name: attend(*t, model.scale) for name, t in qkv.items()}
        q, _, v = model.qkv(model.norm(x, f"blocks.{layer}.ln1"), layer)
        live = attend(q, qkv["base"][1], v, model.scale)
        mixed = z["partner"].clone()
        for site in kept:
            if site.layer == layer:
                at = int(chain[site.place.at]) - site.place.back
                mixed[:, site.head, at] = live[:, site.head, at]
        streams = {name: end(model, s, z[name], layer) for name, s in streams.items()}
        x = end(model, x, mixed, layer)
    return model.unembed(x)[0, pairs.position[pair, watched]]


def attend(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)


def end(model: FusedTransformer, x: Tensor, z: Tensor, layer: int) -> Tensor:
    mid = x + model.attn_out(z, layer)
    return mid + model.mlp(model.norm(mid, f"blocks.{layer}.ln2"), layer)


def test_a_circuit_is_what_it_says(small_model, small_task):
    pairs = Pairs.draw(small_task, 2, 8, seed=1)
    runner = LiveRunner.of(small_model, pairs, 2)
    drawn = torch.rand(len(runner.whole), generator=torch.Generator().manual_seed(0)) < 0.5
    kept = {site for site, keep in zip(sorted(runner.whole), drawn.tolist(), strict=True) if keep}
    state = runner.run(kept)
    assert runner._twice.any()  # two names of one position are among them
    for pair, watched in ((0, 0), (3, 1), (7, 2)):
        wanted = by_hand(small_model, pairs, kept, pair, watched)
        assert torch.allclose(state.logits[pair, watched], wanted, atol=1e-3)


def test_changes_are_exact(small_model, small_task):
    runner = LiveRunner.of(small_model, Pairs.draw(small_task, 2, 8, seed=1), 2)
    whole = runner.run(runner.whole)
    ordered = sorted(runner.whole)
    kept = frozenset(ordered[::3])
    wanted = runner.run(kept).logits
    assert torch.allclose(runner.change(whole, remove=runner.whole - kept).logits, wanted, atol=1e-4)
    grown = runner.change(runner.run(ordered[::6]), add=kept)
    assert torch.allclose(grown.logits, wanted, atol=1e-4)
    assert (whole.logits - wanted).abs().max() > 0.1


def test_pairs_are_other_sequences_and_scored(small_task):
    pairs = Pairs.draw(small_task, 2, 12, seed=3)
    assert (pairs.base != pairs.partner).all()
    assert pairs.batch.scored[pairs.base].gather(1, pairs.position).all()
    again = Pairs.draw(small_task, 2, 12, seed=3)
    assert torch.equal(pairs.position, again.position)


def test_no_chain_is_refused():
    short = HopTask(n_letters=4, alphabet_size=4, max_hops=4)
    with pytest.raises(HopInterpError, match="chain of 4 links"):
        Pairs.draw(short, 4, 5)
