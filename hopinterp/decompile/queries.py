"""What heads' queries read to know where to look: readings, query trees, and a circuit that has all of its own."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from typing import Any, Literal

import torch

from hopinterp.decompile.effects import Effect
from hopinterp.decompile.joint import Joint, find_joint
from hopinterp.decompile.live import LiveRunner, Pairs, Site
from hopinterp.decompile.nodes import Node, Nodes, Place
from hopinterp.decompile.pointers import Pointers, PointerTree, carried, looks, moved
from hopinterp.decompile.readings import Reading, read_queries
from hopinterp.decompile.routes import Routing
from hopinterp.memory import release_memory
from hopinterp.models.fused import FusedTransformer

FIT_SEQUENCES, WATCHED = 60, 2
"""Sequences that the joint circuit is found on, and positions watched in each: with two partners each 240 answers."""
AT_ONCE = 60
"""Fresh pairs that the joint circuit runs on at once."""


@dataclass(frozen=True)
class Query:
    """How one kept node knows where to look.

    Attributes:
        node: the node; its head looks `reading.hop` hops back.
        reading: what the head's query reads, by interchange of the query alone.
        tree: which earlier nodes the head's query needs, at places of its own chain.
    """

    node: Node
    reading: Reading
    tree: PointerTree

    @property
    def pointer(self) -> int:
        """How many hops the query has to know to look u hops back: u if it reads like lookup, else u − 1."""
        return self.tree.hop if self.reading.reads == "lookup" else self.tree.hop - 1

    @property
    def nodes(self) -> Nodes:
        """The query tree, at places of i's chain."""
        return self.tree.at(self.node.place)

    def to_json(self) -> dict[str, Any]:
        """As the JSON result has it."""
        where = {"layer": self.node.layer, "head": self.node.head, "at": self.node.place.at}
        read = {"reads": self.reading.reads, "naming": self.reading.naming, "iia": self.reading.best}
        tree = {"lands": self.tree.lands, "own": self.tree.own, "without": self.tree.without, "found": self.tree.found}
        return {**where, **read, **tree, "nodes": self._placed(self.tree.carrying), "stray": self._placed(self.tree.stray)}

    def _placed(self, effects: Iterable[Effect]) -> list[dict[str, Any]]:
        return [effect.to_json() for effect in self.placed(effects)]

    def placed(self, effects: Iterable[Effect]) -> list[Effect]:
        """Effects of nodes of the head's own chain, at places of i's, the last block first."""
        at_place = (replace(effect, node=moved(effect.node, self.node.place)) for effect in effects)
        return sorted(at_place, key=lambda effect: effect.node, reverse=True)


@dataclass(frozen=True)
class Edge:
    """`source` writes at a place what `target` reads there: as its value, or for its query."""

    source: Node
    target: Node
    by: Literal["v", "q"]


@dataclass(frozen=True)
class Queries:
    """Every query of a circuit at one k, and the circuit run as one.

    Attributes:
        hops: k.
        values: the value tree that the queries serve.
        queries: of every node that looks by letters: the value tree's, and, recursively, those that queries need.
        joint: the circuit found from all of these, with live queries, patterns and values.
    """

    hops: int
    n_layers: int
    values: Nodes
    queries: tuple[Query, ...]
    joint: Joint

    @cached_property
    def nodes(self) -> Nodes:
        """The value tree and all query trees."""
        return self.values.union(*(query.nodes for query in self.queries))

    @cached_property
    def known(self) -> tuple[int, ...]:
        """The most hops that a kept node of a block ≤ ℓ makes known, over the value tree and all query trees; at most k."""
        trees = [carried(self.values, [self.hops], self.n_layers)]
        trees += [query.tree.reach(self.n_layers, query.pointer) for query in self.queries]
        return tuple(min(max(column), self.hops) for column in zip(*trees, strict=True))

    @cached_property
    def reach(self) -> tuple[int, ...]:
        """R(ℓ): `known`, and what must be known although no nodes were found to bring it (no tree, or stray nodes in it): a
        jump of u hops needs a pointer of at least u − 1 hops from the blocks before."""
        most = list(self.known)
        for query in self.queries:
            if query.tree.stray or not query.tree.found:
                most[query.node.layer - 1] = max(most[query.node.layer - 1], query.tree.hop - 1)
        return tuple(accumulate(most, max))

    @property
    def implied(self) -> tuple[bool, ...]:
        """Where R(ℓ) is only implied by a later jump."""
        return tuple(most > seen for most, seen in zip(self.reach, self.known, strict=True))

    @cached_property
    def edges(self) -> tuple[Edge, ...]:
        """Between nodes: by v within a tree, where one reads the place at which the other stands; by q from a query tree's
        nodes at the place of the head itself. Ready for a networkx graph."""
        found = set(_reads(self.values))
        for query in self.queries:
            found |= set(_reads(query.nodes))
            beside = (moved(node, query.node.place) for node in query.tree.beside)
            found |= {Edge(source, query.node, "q") for source in beside}
        return tuple(sorted(found, key=lambda edge: (edge.target, edge.source, edge.by)))

    def to_json(self) -> dict[str, Any]:
        """As the JSON result has it."""
        sites = [site.to_json() for site in sorted(self.joint.sites)]
        joint = {name: getattr(self.joint, name) for name in ("error", "low", "high", "fitted", "seeded", "values", "whole")}
        return {
            "queries": [query.to_json() for query in self.queries],
            "joint": {**joint, "nodes": sites},
            "reach": list(self.reach),
            "implied": list(self.implied),
            "edges": [{"source": e.source.to_json(), "target": e.target.to_json(), "by": e.by} for e in self.edges],
        }


def _reads(nodes: Nodes) -> Iterable[Edge]:
    """Value edges among the nodes of one tree."""
    by_place: dict[Place, list[Node]] = {}
    for node in nodes:
        by_place.setdefault(node.place, []).append(node)
    for node in nodes:
        for source in by_place.get(node.target, ()) if node.target is not None else ():
            if source.layer < node.layer:
                yield Edge(source, node, "v")


@torch.no_grad()
def find_queries(
    model: FusedTransformer, routing: Routing, values: Iterable[Node], *, sequences: int = 80, seed: int = 0
) -> Queries:
    """The queries of a value tree, and the joint circuit.

    Three parts, each with keys from the clean run:
    - a *query tree* keeps the earlier nodes that a head's query needs, on fixed routes: the stream at the head's place is
      run with all other head outputs from another sequence; embeddings and MLPs are live (`pointers`);
    - a *reading* exchanges the query alone between clean runs of two sequences, and predicts where the head then looks
      (`readings`);
    - the *joint circuit* keeps heads at places with live queries, patterns and values and takes all else from other
      sequences; it starts from the value tree and the query trees (`joint`).

    Args:
        values: nodes of a value tree (`derivations.find_tree`).
        sequences: fresh ones for the joint error, with two scored positions each and two partners.

    Raises:
        HopInterpError: no sequence of a draw has a chain of k links.
    """
    tree = frozenset(values)
    pointers = Pointers.of(model, routing, seed=5 * seed + 1)
    needed = tree | pointers.behind(tree)
    asked = [(node, part) for node in sorted(needed, reverse=True) if (part := _asked(routing, node))]
    heads = {(node.layer, node.head): part for node, part in asked}
    read = read_queries(model, routing.task, routing.hops, heads, seed=5 * seed + 2)
    once = {(node.layer, node.head, node.place): node for node, _ in asked}
    queries = []
    for node in once.values():
        found = pointers.tree(node.layer, node.head)
        assert found is not None
        queries.append(Query(node, read[node.layer, node.head], found))
    seeds = tree | pointers.behind(tree, stray=True)
    del pointers  # and with it the runs that trees were found on
    release_memory()
    joint = _joint(model, routing, tree, seeds, sequences, seed)
    return Queries(routing.hops, model.spec.n_layers, tree, tuple(queries), joint)


def _asked(routing: Routing, node: Node) -> int | None:
    """How far a node's head looks, where its query has to know letters for that."""
    part = looks(routing.routes[node.layer][node.head].parts)
    return part.hop if part and part.kind == "hop" and node.place.back == 0 and node.kind == "hop" else None


def _joint(model: FusedTransformer, routing: Routing, tree: Nodes, seeds: Nodes, sequences: int, seed: int) -> Joint:
    task, hops = routing.task, routing.hops
    fit = Pairs.draw(task, hops, FIT_SEQUENCES, watched=WATCHED, seed=5 * seed + 3)
    fresh = Pairs.draw(task, hops, sequences, watched=WATCHED, seed=5 * seed + 4)
    judging = (LiveRunner.of(model, part, hops) for part in fresh.parts(AT_ONCE))
    # none stays longer than it is needed: they are the largest things that a decompilation holds
    return find_joint(LiveRunner.of(model, fit, hops), judging, _sites(tree), _sites(seeds))


def _sites(nodes: Iterable[Node]) -> list[Site]:
    return [Site(node.layer, node.head, node.place) for node in nodes]
