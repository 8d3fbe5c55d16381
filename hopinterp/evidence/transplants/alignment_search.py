"""How little of a block's output has to be transplanted, by probes and by distributed alignment search."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, SupportsIndex

import torch
import torch.nn.functional as F
import xarray as xr
from jaxtyping import Float, Int
from torch import Tensor

from hopinterp.engine.cached_run import Run
from hopinterp.engine.per_position import go_on
from hopinterp.errors import HopInterpError
from hopinterp.evidence.datasets import described
from hopinterp.evidence.intervals import LEVEL
from hopinterp.evidence.reading.linear import Standardizer, fit_ridge
from hopinterp.evidence.transplants.interchange import Predictions, accuracies
from hopinterp.evidence.transplants.pairs import MatchedPairs
from hopinterp.models.fused import FusedTransformer, Residual
from hopinterp.models.subject import ModelLike, Subject
from hopinterp.progress import Advance, Report, counted
from hopinterp.seeds import check_seed, seeded
from hopinterp.task import HopTask
from hopinterp.theory.predictions import FAMILIES, predicted

Basis = Float[Tensor, "d_model _dimension"]
"""Orthonormal columns."""

_BATCH = 20
_RATE = 0.02
_TURNS = (1, 2, 3, 5, 8, 13)  # in twice the length, so that both ends stay apart
_DUST = 1e-3  # directions weaker than this share of the strongest are no part of a span


def transplant_subspaces(
    model: ModelLike,
    task: HopTask,
    hops: SupportsIndex,
    layer: int,
    hop: int,
    family: str = "content",
    dimensions: Sequence[int] = (1, 2, 4, 8, 16, 32),
    *,
    match: str = "nothing",
    steps: int = 200,
    train_sequences: int = 200,
    sequences: int = 100,
    seed: int = 0,
    report: Report | None = None,
) -> xr.Dataset:
    """Transplants of a subspace of one block's output: base + (source − base)·B·Bᵀ at i, B orthonormal.

    Distributed alignment search (Geiger et al. 2023) learns B so that the prediction (family, r) comes true: on training
    pairs it descends the cross-entropy of the predicted letter. Maps are linear only, and a learned subspace can wake a
    pathway that the model does not use (Makelov et al. 2023): beside it stand the whole vector, a random subspace of the
    same size (where the search starts), what linear probes of hop r read and what its letter and position vary with, and
    the same methods in an untrained model.

    Args:
        layer: the block.
        hop: r, with `family`: the prediction that the search is for.
        dimensions: sizes of B that are searched and drawn at random.
        match: see MatchedPairs.draw, for training and held-out pairs alike.
        steps: of Adam, on 20 pairs each.
        report: called after each step of each search, in the model and in the untrained one.

    Returns:
        Dims subspace, family, hop, of held-out pairs: `iia`, `low`, `high`, `unmoved`, `unrelated`, `guess`, `chance` and
        `positions` as `transplant` gives them, and `untrained`, the same method's IIA in an untrained model, which may name
        letters only. `basis` [subspace, d_model, axis], NaN beyond a subspace's dimension and for the whole vector. Coords
        of subspace: `method` (full, probe, means, search, random) and `dimension`.

    Raises:
        HopInterpError: a model whose weights cannot be used; layer, hop, family, or a dimension out of range.
    """
    subject, hops = Subject.asked(model, task), task.hop_count(hops)
    weights = subject.weights_for("a search for subspaces")
    check_seed(seed)
    asked = _Asked(subject.layers(layer)[0], hops, family, hop, tuple(dimensions), steps, seed)
    asked.check(weights.spec.d_model)
    train = MatchedPairs.draw(task, hops, train_sequences, match, seed + 1, subject.device)
    test = MatchedPairs.draw(task, hops, sequences, match, seed, subject.device)
    frozen = FusedTransformer(weights.spec, {name: p.detach() for name, p in weights.parameters.items()})
    bare = subject.untrained(seed).weights_for("a search for subspaces")
    advance = counted("searching subspaces", 2 * len(asked.dimensions) * steps, report)
    found = _tried(frozen, train, test, asked, slice(None), advance)
    found["untrained"] = _tried(bare, train, test, asked, slice(task.first_letter, task.null), advance).iia
    settings: dict[str, Any] = {"hops": hops, "layer": asked.layer, "family": family, "hop": hop, "match": match}
    settings |= {"steps": steps, "train_sequences": train_sequences, "sequences": sequences, "level": LEVEL}
    return described(found, subject, task, seed=seed, weights=subject.processing, **settings)


@dataclass(frozen=True)
class _Asked:
    """What is searched for, the prediction (family, hop) at a block, and how."""

    layer: int
    hops: int
    family: str
    hop: int
    dimensions: tuple[int, ...]
    steps: int
    seed: int

    def check(self, d_model: int) -> None:
        """Raise HopInterpError unless there is such a prediction, and room for the dimensions."""
        if not 0 <= self.hop <= self.hops:
            raise HopInterpError(f"hop is {self.hop}; it must be 0 to {self.hops}")
        if self.family not in FAMILIES:
            raise HopInterpError(f"family is {self.family!r}; it is one of {', '.join(FAMILIES)}")
        if bad := [d for d in self.dimensions if not 1 <= d <= d_model]:
            raise HopInterpError(f"a subspace of {bad[0]} dimensions was asked for; the stream has 1 to {d_model}")

    def letters(self, pairs: MatchedPairs) -> Int[Tensor, "batch position"]:
        """The letters predicted, −1 where none counts."""
        wanted = predicted(pairs.base, pairs.source, self.hops)[:, FAMILIES.index(self.family), self.hop]
        return wanted.where(pairs.counted, -1)


@dataclass(frozen=True, eq=False)
class _Chunk:
    """Some pairs, run: the base with all that later blocks need of it, the source's streams, and the letters wanted."""

    base: Run
    source: Residual
    wanted: Int[Tensor, "batch position"]

    def logits(self, layer: int, basis: Basis | None) -> Float[Tensor, "batch position d_vocab"]:
        """What is answered at each i when the basis's part of the stream (None: all of it) is the source's at i."""
        streams = self.base.resid[layer + 1]
        moved = self.source - streams
        return go_on(self.base, layer, streams + (moved if basis is None else moved @ basis @ basis.T))


@torch.no_grad()
def _chunks(model: FusedTransformer, pairs: MatchedPairs, asked: _Asked) -> Iterator[_Chunk]:
    parts = (pairs.base.tokens, pairs.source.tokens, asked.letters(pairs))
    for base, source, wanted in zip(*(part.split(_BATCH) for part in parts), strict=True):
        run = Run.of(model, base)
        run.mid.clear()  # not needed to go on, and there are many chunks
        run.z.clear()
        yield _Chunk(run, Run.of(model, source).resid[asked.layer + 1], wanted)


def _tried(
    model: FusedTransformer, train: MatchedPairs, test: MatchedPairs, asked: _Asked, span: slice, advance: Advance
) -> xr.Dataset:
    """Every kind of subspace in one model, measured on held-out pairs. `span`: the tokens that may be answered."""
    chunks = list(_chunks(model, train, asked))
    generator = seeded(asked.seed)
    read, means = _readable(chunks, train, asked)
    bases: list[tuple[str, Basis | None]] = [("full", None), ("probe", read), ("means", means)]
    for n in asked.dimensions:
        start = torch.linalg.qr(torch.randn(model.spec.d_model, n, generator=generator)).Q.to(model.device)
        learned = search(chunks, asked.layer, start, train.base.task.first_letter, span, asked.steps, advance)
        bases += [("search", learned), ("random", start)]
    answers = []
    with torch.no_grad():
        for chunk in _chunks(model, test, asked):
            logits = [chunk.logits(asked.layer, basis) for _, basis in bases] + [chunk.base.logits]
            answers.append(torch.stack([one[..., span].argmax(-1) for one in logits], dim=1))
    says = Predictions.of(test, asked.hops)
    found = accuracies(says, torch.cat(answers) + (span.start or 0), asked.seed).rename(site="subspace")
    sizes = [model.spec.d_model if basis is None else basis.shape[1] for _, basis in bases]
    widest = max(basis.shape[1] for _, basis in bases if basis is not None)
    columns = torch.full((len(bases), model.spec.d_model, widest), torch.nan)
    for column, (_, basis) in zip(columns, bases, strict=True):
        if basis is not None:
            column[:, : basis.shape[1]] = basis
    found["basis"] = (("subspace", "d_model", "axis"), columns.numpy())
    return found.assign_coords(method=("subspace", [method for method, _ in bases]), dimension=("subspace", sizes))


def search(
    chunks: list[_Chunk], layer: int, start: Basis, first_letter: int, span: slice, steps: int, advance: Advance
) -> Basis:
    """The subspace whose transplant makes the wanted letters likeliest, from `start`, by Adam with a falling rate."""
    rows = torch.nn.utils.skip_init(torch.nn.Linear, *start.shape, bias=False)
    rows.weight.data = start.T.clone()
    with torch.random.fork_rng():  # the parametrization draws what completes its base from the global generator
        torch.manual_seed(0)
        torch.nn.utils.parametrizations.orthogonal(rows)
    optimizer = torch.optim.Adam(rows.parameters(), lr=_RATE)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=max(steps, 1))
    for step in range(steps):
        chunk = chunks[step % len(chunks)]
        counted = chunk.wanted >= 0
        logits = chunk.logits(layer, rows.weight.T)[counted][:, span]
        loss = F.cross_entropy(logits, chunk.wanted[counted] + first_letter - (span.start or 0))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        advance(1)
    found: Tensor = rows.weight.detach().T
    return found


@torch.no_grad()
def _readable(chunks: list[_Chunk], pairs: MatchedPairs, asked: _Asked) -> tuple[Basis, Basis]:
    """Where the letter and the position of hop r are in the streams: the span of what linear probes of both read (ridge
    regressions), and of what they vary with (the probes' cross-covariances, so the mean streams of each letter)."""
    source = pairs.source
    found = source.find[:, asked.hop]
    valid = found > 0
    rows = torch.cat([chunk.source for chunk in chunks])[valid]
    place = 2 * math.pi * found[valid][:, None] * torch.tensor(_TURNS, device=found.device) / (2 * found.shape[1])
    letter = F.one_hot(source.hop_letters[:, asked.hop][valid], source.task.alphabet_size)
    targets = torch.cat([letter, place.cos(), place.sin()], dim=1)
    features = Standardizer.fit(rows)(rows)
    every = torch.ones(len(rows), 1, dtype=torch.bool, device=rows.device)
    read = fit_ridge(features, targets[:, None], every)[0, :-1]
    return _span(read), _span(features[:, :-1].T @ (targets - targets.mean(0)))


def _span(columns: Float[Tensor, "d_model column"]) -> Basis:
    directions, strength, _ = torch.linalg.svd(columns, full_matrices=False)
    basis: Tensor = directions[:, strength > _DUST * strength[0]]
    return basis
