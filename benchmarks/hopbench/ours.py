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
from hopinterp.decompile.records import TREE, Decompiled
from hopinterp.decompile.routes import fit_routes
from hopinterp.errors import HopInterpError
from hopinterp.judgement.laws import judge_program
from hopinterp.models.subject import Subject
from hopinterp.task import HopTask

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

SEQUENCES = 100
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
    """Nodes on derivations by what their removal does, above those that queries need, above those that the joint circuit has
    besides."""
    ranked: dict[HeadAt, float] = {}

    def rank(where: HeadAt, score: float) -> None:
        ranked[where] = max(score, ranked.get(where, 0.0))

    for effect in (*found.tree.carrying, *found.tree.aside):
        if not effect.node.place.back:
            rank((effect.node.layer, effect.node.head, effect.node.place.at), 2 + effect.effect)
    for node in found.queries.nodes:
        if not node.place.back:
            rank((node.layer, node.head, node.place.at), 1.0)
    for site in found.queries.joint.sites:
        if not site.place.back:
            rank((site.layer, site.head, site.place.at), 0.5)
    for where in _keys(found):
        rank(where, 0.25)
    return ranked


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
