"""hopinterp's own entry: what `decompile` finds, and the law that its reach follows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

from benchmarks.hopbench.contract import Answer, entry
from benchmarks.hopbench.truth import HeadAt, Route
from hopinterp.decompile.decompilation import unsolved
from hopinterp.decompile.decompiled import decompile
from hopinterp.decompile.derivations import find_tree
from hopinterp.decompile.live import Site
from hopinterp.decompile.nodes import Node
from hopinterp.decompile.pointers import moved
from hopinterp.decompile.records import TREE, Decompiled
from hopinterp.decompile.route_fitting import fit_routes
from hopinterp.errors import HopInterpError
from hopinterp.judgement.laws import judge_program
from hopinterp.models.subject import Subject
from hopinterp.task import HopTask

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

SEQUENCES = 100
_IN_JOINT, _KEY = 0.2, 0.1
_FREE = ("first", "content-free")


@entry("hopinterp")
def ours(model: HookedTransformer, task: HopTask, hops: int) -> Answer:
    """The program that `verify` judges, with every way that brings the answer; "none" where the model does not solve k."""
    return _answer(model, task, hops, every_way=True)


@entry("hopinterp (fewest nodes)")
def fewest_nodes(model: HookedTransformer, task: HopTask, hops: int) -> Answer:
    """The program that `decompile` shows by default: no more ways than the answer needs."""
    return _answer(model, task, hops, every_way=False)


def _answer(model: HookedTransformer, task: HopTask, hops: int, every_way: bool) -> Answer:
    name = "the model"
    try:
        found = decompile(Subject.of(model, task, name=name), task, hops, sequences=SEQUENCES, every_way=every_way)
    except HopInterpError as error:
        if str(error).startswith(unsolved(name, hops, 0.0).partition(":")[0]):
            return Answer(nodes={}, routes=frozenset(), derivations=frozenset(), verdict="none")
        raise
    return answer_of(found)


@torch.no_grad()
def unasked(model: HookedTransformer, task: HopTask, hops: int) -> Answer:
    """Derivations alone, looked for whether or not the model solves k; claimed where their tree carries the answer. Not in
    the table: a control on models without a circuit, `--enter benchmarks.hopbench.ours:unasked --kinds nothing`."""
    weights = Subject.of(model, task).weights_for("decompile")
    routing = fit_routes(weights, task, hops, sequences=SEQUENCES // 3)
    tree = find_tree(weights, routing, sequences=SEQUENCES // 2, orders=1)
    return Answer(derivations=frozenset(tree.derivations if tree.error <= TREE else ()))


def answer_of(found: Decompiled) -> Answer:
    """What was found, as an answer. A program that does not explain its model is not claimed: its verdict is not named."""
    law = judge_program(found)
    return Answer(
        nodes=scores(found),
        routes=_routes(found),
        derivations=frozenset(found.derivations),
        verdict=law.verdict,
        form=law.form,
        pace=law.pace,
    )


def scores(found: Decompiled) -> dict[HeadAt, float]:
    """Nodes by what their removal does: the share of answers that go wrong, or of a query's landings that go astray. Below
    them sites that the joint circuit has besides, and below these heads that only write keys."""
    ranked: dict[HeadAt, float] = {}

    def rank(node: Node | Site, score: float) -> None:
        if not node.place.back:
            where = (node.layer, node.head, node.place.at)
            ranked[where] = max(score, ranked.get(where, 0.0))

    for effect in (*found.tree.carrying, *found.tree.aside):
        rank(effect.node, effect.effect)
    for query in found.queries.queries:
        for effect in query.tree.carrying:
            rank(moved(effect.node, query.node.place), effect.effect)
    for site in found.queries.joint.sites:
        rank(site, _IN_JOINT)
    return dict.fromkeys(_keys(found), _KEY) | ranked


def _keys(found: Decompiled) -> Iterator[HeadAt]:
    """Heads that look at the previous token, at places where a kept head finds a position by what stands before it: no more
    than a guess from the routes, for `decompile` takes all keys from the clean run."""
    previous = [
        (layer, head)
        for layer, head, route in found.routing.heads
        if (route.parts[0].kind, route.parts[0].hop) == ("before hop", 0)
    ]
    for query in found.queries.queries:
        place = query.node.target
        if place is not None and not place.back and query.reading.naming != "lookup":
            yield from ((layer, head, place.at) for layer, head in previous if layer < query.node.layer)


def _routes(found: Decompiled) -> frozenset[Route]:
    """Every part of every head's rule but those that depend on no letter's place."""
    heads = found.routing.heads
    return frozenset(
        (layer, head, part.kind, part.hop) for layer, head, route in heads for part in route.parts if part.kind not in _FREE
    )
