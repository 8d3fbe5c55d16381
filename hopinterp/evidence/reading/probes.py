"""Linear probes of each block for every hop of the chain, with the controls that could refute what they read."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, SupportsIndex

import numpy as np
import torch
import xarray as xr
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hopinterp.errors import HopInterpError
from hopinterp.evidence.datasets import described
from hopinterp.evidence.intervals import LEVEL, bootstrap
from hopinterp.evidence.reading.linear import Standardizer, fit_logistic, fit_ridge
from hopinterp.evidence.remembered import remembered
from hopinterp.memory import release_memory
from hopinterp.models.hooks import resid_post
from hopinterp.models.subject import ModelLike, Subject
from hopinterp.progress import Advance, Report, counted
from hopinterp.seeds import seeded
from hopinterp.task import Batch, HopTask

Target = Literal["token", "position"]
Method = Literal["logistic", "ridge"]
BAR = 0.8
"""A hop is held where its probe closes at least this share of the gap between the best cheaper explanation and 1."""
MEMORY = 2**27
"""Bytes for the streams that are kept at one time, of one block at least: the model runs again for those of the others."""

_FREQUENCIES = (1, 2, 3, 5, 8, 13, 21, 34)
_LETTER_SEQUENCES = 2000  # letters cost nothing: enough for a table of 4^5 contexts
_MAX_CONTEXTS = 4096


@dataclass(frozen=True)
class _Rows:
    """Positions 1 … n of some sequences, a row each.

    Attributes:
        sequence: which sequence a row is of.
        position: i, from 1.
        letter: [row, hop], X_{find^j(i)}, or −1.
        find: [row, hop], find^j(i), or 0.
    """

    sequence: Int[Tensor, " row"]
    position: Int[Tensor, " row"]
    letter: Int[Tensor, "row hop"]
    find: Int[Tensor, "row hop"]

    @classmethod
    def of(cls, batch: Batch, furthest: int) -> _Rows:
        """Hops 0 … furthest."""

        def flat(x: Tensor) -> Tensor:
            return x[:, : furthest + 1, 1:].transpose(1, 2).flatten(0, 1)

        n_sequences, n = len(batch), batch.tokens.shape[1] - 1
        index = torch.arange(n_sequences * n, device=batch.tokens.device)
        return cls(index // n, index % n + 1, flat(batch.hop_letters), flat(batch.find))

    @property
    def valid(self) -> Bool[Tensor, "row hop"]:
        return self.find > 0


@remembered
def probe(
    model: ModelLike,
    task: HopTask,
    hops: SupportsIndex,
    *,
    target: Target = "token",
    layers: int | Iterable[int] | None = None,
    method: Method = "logistic",
    furthest: SupportsIndex | None = None,
    train_sequences: int = 160,
    sequences: int = 100,
    seed: int = 0,
    report: Report | None = None,
) -> xr.Dataset:
    """How well every block's resid_post at position i tells where the chain of i goes, by linear probes.

    Target *token*: the letter X_{find^j(i)}, by multinomial logistic regression (or ridge on one-hot letters, a quick
    scan up to 5 points off in mid-chain). Target *position*: find^j(i) itself, by ridge regression on cosines and sines
    of several frequencies of the position, decoded to the nearest position.

    Every accuracy is measured on held-out sequences and stands beside the cheaper explanations of it.

    Args:
        hops: the k that the model is asked for.
        layers: which blocks; all by default.
        furthest: the last hop to read; max_hops by default.
        train_sequences, sequences: for fitting and for measuring. Drawn apart.
        seed: of the sequences, the untrained model, the control task and the bootstrap.
        report: called after each block of the model, and of the untrained one.

    Returns:
        Dims layer, hop (j = 0 … furthest). `accuracy` with `low`, `high` (95%, bootstrap over sequences); the
        explanations `majority` [hop], `untrained` (the same probe on the same sizes with random weights) and
        `lower_hops` [hop] (the best predictor from the letters of all lower hops); `baseline`, the largest of them
        (hop 0, the position's own letter, is the model's input: there only the majority counts); `control`, the accuracy
        on a control task (Hewitt and Liang 2019: the target drawn at random, once for each position and letter), and
        `selectivity`, what the accuracy is above it; `held`; and `resolved`, `frontier` [layer] (see `resolved`).

    Raises:
        HopInterpError: k, the furthest hop or a layer out of range.
    """
    subject, hops = Subject.asked(model, task), task.hop_count(hops)
    last = task.max_hops if furthest is None else task.hop_count(furthest)
    chosen, readout = subject.layers(layers), _Readout.of(task, target, method, last)
    generator = seeded(seed)
    train, test = (
        task.sample(n, hops=hops, generator=generator, device=subject.device) for n in (train_sequences, sequences)
    )
    fitted = counted("fitting probes", 2 * len(chosen), report)
    grid = _probe_grid(subject, train, test, chosen, readout, seed, fitted)
    without_training = _probe_grid(subject.untrained(seed), train, test, chosen, readout, None, fitted)
    release_memory()
    rows = _Rows.of(test, last)
    majority, lower = _cheap_explanations(task, target, rows, seed)
    counts = _per_sequence(rows.valid, rows)
    accuracy = _rate(grid["target"], counts)
    low, high = bootstrap(grid["target"], counts[:, None].expand_as(grid["target"]), seed)
    values = {
        "accuracy": accuracy,
        "low": low,
        "high": high,
        "untrained": _rate(without_training["target"], counts),
        "control": _rate(grid["control"], counts),
        "majority": majority,
        "lower_hops": lower,
    }
    data = {name: (("layer", "hop")[-value.ndim :], value.cpu().double().numpy()) for name, value in values.items()}
    judged = _judge(xr.Dataset(data, {"layer": chosen, "hop": range(last + 1)}), hops)
    settings: dict[str, Any] = {"hops": hops, "target": target, "method": method if target == "token" else "ridge"}
    settings |= {"train_sequences": train_sequences, "sequences": sequences, "bar": BAR, "level": LEVEL}
    return described(judged, subject, task, seed=seed, **settings)


def _judge(found: xr.Dataset, hops: int) -> xr.Dataset:
    """Add baseline, selectivity and what `resolved` says."""
    cheap = np.maximum(np.maximum(found.untrained, found.lower_hops), found.majority)
    found["baseline"] = cheap.where(found.hop > 0, found.majority)
    found["selectivity"] = found.accuracy - found.control
    return found.merge(resolved(found.low, found.baseline, hops))


def resolved(low: xr.DataArray, baseline: xr.DataArray, hops: SupportsIndex, bar: float = BAR) -> xr.Dataset:
    """Which hops each block holds, and how far that goes.

    Args:
        low: [layer, hop], the lower confidence bound of the accuracy.
        baseline: [layer, hop], c, the best cheaper explanation.
        hops: k.
        bar: the share of the gap between c and 1 that is to be closed; evidence carries its own in its attrs.

    Returns:
        `held` [layer, hop]: low > c + bar·(1 − c). `resolved` [layer]: R(ℓ), the largest held hop ≤ k (0 if there is
        none). `frontier` [layer]: the largest r with hops 1 … r all held.
    """
    held = low > baseline + bar * (1 - baseline)
    within = held & (held.hop <= operator.index(hops))
    largest = held.hop.where(within, 0).max("hop")
    unbroken = held.where(held.hop > 0, True).astype(int).cumprod("hop").sum("hop") - 1
    return xr.Dataset({"held": held, "resolved": largest, "frontier": unbroken})


@dataclass(frozen=True)
class _Readout:
    """How a target is put to linear regressions and how their outputs are read."""

    task: HopTask
    target: Target
    method: Method
    furthest: int

    @classmethod
    def of(cls, task: HopTask, target: str, method: str, furthest: int) -> _Readout:
        if target not in ("token", "position"):
            raise HopInterpError(f"target is {target!r}; it is token or position")
        if method not in ("logistic", "ridge"):
            raise HopInterpError(f"method is {method!r}; it is logistic or ridge")
        return cls(task, target, method, furthest)  # type: ignore[arg-type]

    @property
    def n_classes(self) -> int:
        """Answers a probe can give: letters, or positions (0 is never right)."""
        return self.task.alphabet_size if self.target == "token" else self.task.n_positions

    def answers(self, rows: _Rows) -> Int[Tensor, "row hop"]:
        """What the probes should say; valid rows only."""
        return rows.letter if self.target == "token" else rows.find

    def fit(
        self,
        features: Float[Tensor, "row feature_and_one"],
        answers: Int[Tensor, "row problem"],
        valid: Bool[Tensor, "row problem"],
    ) -> tuple[Float[Tensor, "problem feature_and_one output"], Float[Tensor, "problem output"]]:
        """Probes for all problems at once, and how far each of their outputs is to be trusted (1 / residual variance)."""
        if self.target == "token" and self.method == "logistic":
            weights = fit_logistic(features, answers, valid, self.n_classes)
            return weights, torch.ones_like(weights[:, 0])
        wanted = self._code(features.device)[answers.clamp_min(0)]
        weights = fit_ridge(features, wanted, valid)
        if self.target == "token":
            return weights, torch.ones_like(weights[:, 0])
        missed = (torch.einsum("rf,pfo->rpo", features, weights) - wanted) * valid[..., None]
        return weights, valid.sum(0)[:, None] / missed.square().sum(0).clamp_min(1e-6)

    def read(
        self,
        features: Float[Tensor, "row feature_and_one"],
        weights: Float[Tensor, "problem feature_and_one output"],
        trust: Float[Tensor, "problem output"],
    ) -> Int[Tensor, "row problem"]:
        """The probes' answers: the highest output, or the position whose code is nearest, each output weighed by its
        trust (a frequency that cannot be read must not pull towards its mean)."""
        outputs = torch.einsum("rf,pfo->rpo", features, weights)
        if self.target == "token":
            return outputs.argmax(-1)
        code = self._code(features.device)
        return (torch.einsum("rpo,po,ao->rpa", outputs, trust, code) - 0.5 * trust @ code.square().T).argmax(-1)

    def _code(self, device: torch.device) -> Float[Tensor, "answer output"]:
        """A row an answer: one-hot letters, or cosines and sines of the position. Frequencies are turns in twice the
        length, so that both ends stay apart."""
        if self.target == "token":
            return torch.eye(self.n_classes, device=device)
        turns = torch.tensor(_FREQUENCIES, device=device) / (2 * self.n_classes)
        angle = 2 * math.pi * torch.arange(self.n_classes, device=device)[:, None] * turns
        return torch.cat([angle.cos(), angle.sin()], dim=1)


def _probe_grid(
    subject: Subject,
    train: Batch,
    test: Batch,
    layers: list[int],
    readout: _Readout,
    control_seed: int | None,
    fitted: Advance,
) -> dict[str, Float[Tensor, "sequence layer _hop"]]:
    """Right answers a held-out sequence, for the target and (with a seed) the control task, fitted in one solve a block."""
    train_rows, test_rows = (_Rows.of(batch, readout.furthest) for batch in (train, test))
    train_answers, test_answers = readout.answers(train_rows), readout.answers(test_rows)
    train_valid, test_valid = train_rows.valid, test_rows.valid
    if control_seed is not None:
        control = _ControlTask.draw(readout, control_seed)
        train_answers = torch.cat([train_answers, control(train_rows)], dim=1)
        test_answers = torch.cat([test_answers, control(test_rows)], dim=1)
        train_valid, test_valid = train_valid.repeat(1, 2), test_valid.repeat(1, 2)
    right = []
    together = max(1, MEMORY // (4 * subject.sizes.d_model * (len(train_rows.find) + len(test_rows.find))))
    for some in (layers[start : start + together] for start in range(0, len(layers), together)):
        train_resid, test_resid = (_resid_post(subject, batch, some) for batch in (train, test))
        for layer in some:
            standardize = Standardizer.fit(train_resid[layer])
            probes = readout.fit(standardize(train_resid.pop(layer)), train_answers, train_valid)
            hits = (readout.read(standardize(test_resid.pop(layer)), *probes) == test_answers) & test_valid
            right.append(_per_sequence(hits, test_rows))
            fitted(1)
    counts = torch.stack(right, dim=1)
    n_hops = train_rows.find.shape[1]
    return {"target": counts[..., :n_hops], "control": counts[..., n_hops:]}


@dataclass(frozen=True)
class _ControlTask:
    """Hewitt and Liang's control: an answer drawn once for every (position, letter, hop), which only memory can give."""

    answers: Int[Tensor, "position letter hop"]

    @classmethod
    def draw(cls, readout: _Readout, seed: int) -> _ControlTask:
        task = readout.task
        shape = (task.n_positions, task.alphabet_size, readout.furthest + 1)
        generator = seeded(seed)
        return cls(torch.randint(readout.n_classes, shape, generator=generator))

    def __call__(self, rows: _Rows) -> Int[Tensor, "row hop"]:
        return self.answers.to(rows.position.device)[rows.position, rows.letter[:, 0]]


@torch.no_grad()
def _resid_post(subject: Subject, batch: Batch, layers: list[int]) -> dict[int, Float[Tensor, "row d_model"]]:
    names = {layer: resid_post(layer) for layer in layers}
    caches = [
        subject.run_with_cache(tokens, list(names.values()))[1]
        for tokens in batch.tokens.split(subject.at_once(batch.tokens.shape[1]))
    ]
    return {
        layer: torch.cat([cache[name][:, 1:] for cache in caches]).flatten(0, 1).float() for layer, name in names.items()
    }


def _cheap_explanations(
    task: HopTask, target: Target, test: _Rows, seed: int
) -> tuple[Float[Tensor, " hop"], Float[Tensor, " hop"]]:
    """Accuracy, for every hop, of the commonest answer and of the best predictor from the letters of lower hops.

    The predictor is a table over the letters of the last t lower hops, for the t that does best; what it looks up is
    the letter, or for positions the distance from the last lower hop.
    """
    furthest = test.find.shape[1] - 1
    rows = _Rows.of(task.sample(_LETTER_SEQUENCES, hops=0, seed=seed, device=test.find.device), furthest)
    majority, lower = [], []
    for hop in range(furthest + 1):
        reads = [
            _table_accuracy(task, target, rows, test, hop, depth)
            for depth in range(hop + 1)
            if task.alphabet_size**depth <= _MAX_CONTEXTS
        ]
        majority.append(_table_accuracy(task, target, rows, test, hop, 0, relative=False))
        lower.append(max(reads))
    return torch.tensor(majority), torch.tensor(lower)


def _table_accuracy(
    task: HopTask, target: Target, train: _Rows, test: _Rows, hop: int, depth: int, relative: bool = True
) -> float:
    def context_and_answer(rows: _Rows) -> tuple[Tensor, Tensor]:
        keep = rows.valid[:, hop]
        powers = task.alphabet_size ** torch.arange(depth, device=keep.device)
        context = (rows.letter[keep, hop - depth : hop] * powers).sum(1)
        if target == "token":
            return context, rows.letter[keep, hop]
        step = rows.find[keep, hop - 1] if hop and relative else 0
        return context, (step - rows.find[keep, hop]) % (task.n_positions + 1)

    n_answers = task.alphabet_size if target == "token" else task.n_positions + 1
    context, answer = context_and_answer(train)
    table = torch.bincount(context * n_answers + answer, minlength=task.alphabet_size**depth * n_answers)
    best = table.view(-1, n_answers).argmax(1)
    context, answer = context_and_answer(test)
    return float((best[context] == answer).cpu().double().mean())


def _per_sequence(hits: Bool[Tensor, "row problem"], rows: _Rows) -> Float[Tensor, "sequence problem"]:
    counts = torch.zeros(int(rows.sequence[-1]) + 1, hits.shape[1], device=hits.device)
    return counts.index_add_(0, rows.sequence, hits.float()).cpu()


def _rate(right: Float[Tensor, "sequence layer hop"], counted: Float[Tensor, "sequence hop"]) -> Float[Tensor, "layer hop"]:
    return right.sum(0) / counted.sum(0)
