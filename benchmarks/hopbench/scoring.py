"""One tool's answer beside the truth: the scores of HopBench."""

from __future__ import annotations

import math
from collections.abc import Mapping, Set
from dataclasses import asdict, dataclass

from sklearn.metrics import roc_auc_score

from benchmarks.hopbench.contract import Answer
from benchmarks.hopbench.truth import HeadAt, Truth

NAMED = ("doubling", "sequential", "linear by two", "beyond")
"""Verdicts that claim something of the mechanism."""


@dataclass(frozen=True)
class Scores:
    """One tool on one model; NaN (null in JSON) where the tool or the model gives nothing to score.

    Attributes:
        verdict: whether it is right. `form`, `pace`: likewise, on models whose verdict has one.
        precision, recall: of routes, over heads that are told something to do.
        nodes: AUROC over heads at chain positions; those that only let others find a position are left out.
        nodes_with_keys: the same with those counted as part of the circuit.
        heads: AUROC over heads; a head is part of the circuit if it is at any position.
        derivations: whether they are exactly the true ones.
        false_claim: whether it names a law that is not the model's, or, of a model without a circuit, names a derivation.
        seconds: CPU time.
    """

    verdict: float
    form: float
    pace: float
    precision: float
    recall: float
    nodes: float
    nodes_with_keys: float
    heads: float
    derivations: float
    false_claim: float
    seconds: float

    def to_json(self) -> dict[str, float | None]:
        """Plain values."""
        return {name: None if math.isnan(value) else value for name, value in asdict(self).items()}


def score(answer: Answer, truth: Truth, seconds: float) -> Scores:
    """Compare."""
    law = truth.law
    known = law.verdict != "none"
    precision, recall = _routes(answer, truth) if known and answer.routes is not None else (math.nan, math.nan)
    whole = truth.nodes | truth.keys
    return Scores(
        verdict=_same(answer, answer.verdict, law.verdict),
        form=_same(answer, answer.form, law.form) if law.form else math.nan,
        pace=_same(answer, answer.pace, law.pace) if law.pace else math.nan,
        precision=precision,
        recall=recall,
        nodes=_auroc(answer.nodes, truth.nodes, set(truth.every) - truth.keys) if known else math.nan,
        nodes_with_keys=_auroc(answer.nodes, whole, set(truth.every)) if known else math.nan,
        heads=_heads(answer, truth) if known else math.nan,
        derivations=float(answer.derivations == truth.derivations) if known and answer.derivations is not None else math.nan,
        false_claim=_false(answer, truth),
        seconds=seconds,
    )


def _same(answer: Answer, said: str | None, wanted: str | None) -> float:
    return math.nan if answer.verdict is None else float(said == wanted)


def _false(answer: Answer, truth: Truth) -> float:
    if answer.verdict is None and answer.derivations is None:
        return math.nan
    invented = truth.law.verdict == "none" and bool(answer.derivations)
    return float(invented or (answer.verdict in NAMED and answer.verdict != truth.law.verdict))


def _routes(answer: Answer, truth: Truth) -> tuple[float, float]:
    assert answer.routes is not None
    found = {route for route in answer.routes if route[:2] not in truth.free}
    hits = len(found & truth.routes)
    return hits / len(found) if found else math.nan, hits / len(truth.routes)


def _auroc(scores: Mapping[HeadAt, float] | None, positive: Set[HeadAt], every: Set[HeadAt]) -> float:
    """Over all nodes; those that were given no score have 0. NaN where all or none are part of the circuit."""
    if scores is None or not positive or not every - positive:
        return math.nan
    ordered = sorted(every)
    return float(roc_auc_score([node in positive for node in ordered], [scores.get(node, 0.0) for node in ordered]))


def _heads(answer: Answer, truth: Truth) -> float:
    scores: dict[tuple[int, int], float] = dict(answer.heads or {})
    if answer.heads is None:
        if answer.nodes is None:
            return math.nan
        for (layer, head, _), value in answer.nodes.items():
            scores[layer, head] = max(value, scores.get((layer, head), 0.0))
    positive, keys = ({(layer, head) for layer, head, _ in nodes} for nodes in (truth.nodes, truth.keys))
    every = {(layer, head) for layer, head, _ in truth.every} - (keys - positive)
    ordered = sorted(every)
    if not positive or not every - positive:
        return math.nan
    return float(roc_auc_score([head in positive for head in ordered], [scores.get(head, 0.0) for head in ordered]))
