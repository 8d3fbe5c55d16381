"""What a block's output *does* downstream, by interchange interventions between two sequences."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, SupportsIndex

import numpy as np
import torch
import xarray as xr
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hopinterp.engine.per_position import Site, transplanted
from hopinterp.errors import HopInterpError
from hopinterp.evidence.datasets import described
from hopinterp.evidence.intervals import LEVEL, bootstrap
from hopinterp.evidence.remembered import remembered
from hopinterp.evidence.transplants.pairs import MatchedPairs
from hopinterp.models.subject import ModelLike, Subject
from hopinterp.progress import Advance, Report, counted
from hopinterp.task import Batch, HopTask
from hopinterp.theory.predictions import FAMILIES, predicted

Prediction = Callable[[int, Batch, Batch], Int[Tensor, "batch position"]]
"""(layer, base, source) → the token answered at i with the source's output of that block at i, for every i; −1 abstains."""

Hits = Bool[Tensor, "batch site family hop position"]

MARGIN = 0.1
"""A block stands for a prediction only if that closes more than this share of the gap from chance to 1, at the lower end of
its interval. Constructed circuits close all of it, untrained models none: of 248 the nearest ended at −0.04."""

_BATCH = 50


@dataclass(frozen=True, eq=False)
class Predictions:
    """What every prediction says of some pairs, −1 at positions that do not count.

    Attributes:
        letters: for each base and its source.
        strangers: for each base and an unrelated source.
    """

    pairs: MatchedPairs
    letters: Int[Tensor, "batch family hop position"]
    strangers: Int[Tensor, "batch family hop position"]

    @classmethod
    def of(cls, pairs: MatchedPairs, hops: int, next_agrees: bool = False) -> Predictions:
        """Of all families and r at once."""
        counted = pairs.counted[:, None, None]
        sources = (pairs.source, pairs.stranger())
        letters, strangers = (predicted(pairs.base, source, hops, next_agrees).where(counted, -1) for source in sources)
        return cls(pairs, letters, strangers)

    def hits(self, answers: Int[Tensor, "batch site position"], strangers: bool = False) -> Hits:
        """Where the answers are what is predicted."""
        task, letters = self.pairs.base.task, self.strangers if strangers else self.letters
        return answers[:, :, None, None] == torch.where(letters < 0, -1, letters + task.first_letter)[:, None]


@remembered
@torch.no_grad()
def transplant(
    model: ModelLike,
    task: HopTask,
    hops: SupportsIndex,
    layers: int | Iterable[int] | None = None,
    *,
    heads: bool = False,
    match: str = "nothing",
    next_agrees: bool = False,
    sequences: int = 100,
    seed: int = 0,
    predictions: Mapping[str, Prediction] | None = None,
    report: Report | None = None,
) -> xr.Dataset:
    """What each block's output at i stands for, by interchange interventions (Geiger et al. 2021).

    In the base run the block's output at i, and nowhere else, becomes the source run's, and the base's own blocks go on.
    Counted are positions whose base and source answers are letters and differ. The interchange intervention accuracy (IIA)
    of "r hops done" is the share of them at which the answer is the one `predicted`. Pointer r = 0 is the base's own answer:
    no effect. What the last block's output stands for is the source's answer, whatever the model: content r = k.

    Args:
        hops: k, of base and source alike.
        layers: blocks; all by default.
        heads: transplant each head's z instead of the whole resid_post; results gain a dim head.
        match: what base and source have in common at the positions counted (see MatchedPairs.draw).
        next_agrees: count a prediction only where the base's next letter is the source's too (see `predicted`).
        sequences: pairs drawn.
        predictions: causal models of your own, by name: (layer, base, source) → the token at every i (−1: no prediction).
        report: called after each transplant of some pairs, in the model and in the untrained one.

    Returns:
        Dims layer, (head,) family, hop (r). `iia`, with `low`, `high` (95%, bootstrap over pairs).
        `chance`, the largest of three: `unmoved`, how often the prediction is what the base run answers anyway; `unrelated`,
        how often the answer is the prediction for an unrelated source; `guess`, how often the prediction can be guessed from
        X_i and X′_i. `untrained` (with `untrained_low`): IIA of an untrained model of the same sizes, which may name letters
        only. `positions`
        [family, hop]: how many count. By layer: `leading`, `leading_family`, the prediction that closes most of the gap from
        max(chance, untrained) to 1; `share`, how much of it, and `share_low`; `contest`: how often it comes true rather than
        a rival of another r, where the two differ and one of them does (against the best rival, lower bound), and
        `family_contest`, likewise against the other families at that r. What the block stands for: `best`, the leading r if
        share_low exceeds 0.1 and contest 0.5, else −1; `best_family`, its family if family_contest exceeds 0.5, else
        "undecided"; "none" where best is −1. With `predictions`: `model_iia`, `model_low`, `model_high`
        [layer, (head,) prediction].

    Raises:
        HopInterpError: k or a layer out of range, an unknown match, no position that counts, or a site at which the two
            runs do not differ.
    """
    subject, hops = Subject.asked(model, task), task.hop_count(hops)
    blocks = subject.layers(layers)
    pairs = MatchedPairs.draw(task, hops, sequences, match, seed, subject.device)
    if not pairs.counted.any():
        raise HopInterpError(f"no position counts in {sequences} pairs of {task.n_letters} letters at k = {hops}: draw more")
    sites: list[Site] = [(layer, head) for layer in blocks for head in (range(subject.sizes.n_heads) if heads else [None])]
    advance = counted("transplanting", 2 * len(sites) * sequences, report)
    answers = _answers(subject, pairs, sites, advance)
    control = _answers(subject.untrained(seed), pairs, sites, advance, letters_only=True)
    says = Predictions.of(pairs, hops, next_agrees)
    found, bare = (accuracies(says, given, seed) for given in (answers, control))
    found = found.assign(untrained=bare.iia, untrained_low=bare.low)
    found = found.merge(_judged(found, says, answers, seed))
    if predictions:
        found = found.merge(_own_models(predictions, pairs, sites, answers, seed))
    settings: dict[str, Any] = {"hops": hops, "match": match, "next_agrees": next_agrees, "sequences": sequences}
    settings |= {"margin": MARGIN, "level": LEVEL, "weights": subject.processing}
    return described(_by_layer(found, sites, heads), subject, task, seed=seed, **settings)


def _by_layer(found: xr.Dataset, sites: list[Site], heads: bool) -> xr.Dataset:
    """Sites as layer, or layer and head."""
    found = found.assign_coords(layer=("site", [layer for layer, _ in sites]))
    if not heads:
        return found.swap_dims(site="layer")
    found = found.assign_coords(head=("site", [head for _, head in sites])).set_index(site=["layer", "head"])
    return found.unstack("site").transpose("layer", "head", ...)


def _answers(
    subject: Subject, pairs: MatchedPairs, sites: list[Site], advance: Advance, letters_only: bool = False
) -> Int[Tensor, "batch site_and_none position"]:
    """Tokens answered after each transplant, and last without one."""
    task = pairs.base.task
    span = slice(task.first_letter, task.null) if letters_only else slice(None)
    parts = []
    for base, source in zip(pairs.base.tokens.split(_BATCH), pairs.source.tokens.split(_BATCH), strict=True):
        answers = []
        for logits in transplanted(subject, base, source, sites):
            answers.append(logits[..., span].argmax(-1))
            advance(len(base))
        parts.append(torch.stack([*answers, subject(base)[..., span].argmax(-1)], dim=1))
    return torch.cat(parts) + (task.first_letter if letters_only else 0)


def accuracies(says: Predictions, answers: Int[Tensor, "batch site_and_none position"], seed: int) -> xr.Dataset:
    """IIA of every prediction with its interval, and the three kinds of chance."""
    right, counts = says.hits(answers).sum(-1).cpu(), (says.letters >= 0).sum(-1)[:, None].cpu()
    moved, untouched = right[:, :-1], right[:, -1:]
    low, high = bootstrap(moved.double(), counts.double().expand_as(moved), seed)
    met = says.hits(answers[:, :-1], strangers=True).sum((0, -1)).cpu()
    n = counts.sum(0).double()
    values = {"iia": moved.sum(0) / n, "low": low, "high": high}
    values |= {"unmoved": (untouched.sum(0) / n).expand_as(low), "unrelated": met / (says.strangers >= 0).sum((0, -1)).cpu()}
    values["guess"] = _guessed(says).cpu().expand_as(low)
    values["chance"] = (
        torch.stack([values[name].double() for name in ("unmoved", "unrelated", "guess")]).nan_to_num().amax(0)
    )
    data: dict[str, Any] = {name: (("site", "family", "hop"), value.numpy()) for name, value in values.items()}
    data["positions"] = (("family", "hop"), counts.sum((0, 1)).numpy())
    return xr.Dataset(data, {"family": list(FAMILIES), "hop": range(counts.shape[-1])})


def _guessed(says: Predictions) -> Float[Tensor, "family hop"]:
    """How often the best guess from the two letters that stand at i, learned on every other pair, is what is predicted."""
    pairs, task = says.pairs, says.pairs.base.task
    size = task.alphabet_size
    context = (pairs.base.tokens - task.first_letter) * size + pairs.source.tokens - task.first_letter
    learned = (torch.arange(len(context), device=context.device) % 2 == 0)[:, None]
    shares = []
    for wanted in says.letters.flatten(1, 2).unbind(1):
        seen, unseen = (wanted >= 0) & learned, (wanted >= 0) & ~learned
        table = torch.bincount(context[seen] * size + wanted[seen], minlength=size**3).view(size**2, size)
        shares.append((table.argmax(1)[context[unseen]] == wanted[unseen]).double().mean())
    return torch.stack(shares).view(says.letters.shape[1:3])


def _judged(
    found: xr.Dataset, says: Predictions, answers: Int[Tensor, "batch site_and_none position"], seed: int
) -> xr.Dataset:
    """Which prediction each site follows, and whether it is clear."""
    bar = np.fmax(found.chance, found.untrained)
    room = (1 - bar).where(bar < 1)  # what chance gives for certain tells nothing
    share, share_low = (
        ((x - bar) / room).stack(prediction=("family", "hop")).fillna(-np.inf) for x in (found.iia, found.low)
    )
    best = share.argmax("prediction")
    leading, surely = share.isel(prediction=best), share_low.isel(prediction=best)
    letters, hits = says.letters.flatten(1, 2), says.hits(answers[:, :-1]).flatten(2, 3)
    values = {"leading": leading.hop, "leading_family": leading.family, "share": leading, "share_low": surely}
    won = [_contests(letters, hits[:, site], index, seed) for site, index in enumerate(best.values.tolist())]
    wins = xr.DataArray(np.stack(won), {"prediction": share.prediction}, ("site", "prediction"))
    for name, rivals in (("contest", wins.hop != leading.hop), ("family_contest", wins.hop == leading.hop)):
        values[name] = wins.where(rivals).min("prediction")
    stands, told = (surely > MARGIN) & ~(values["contest"] <= 0.5), ~(values["family_contest"] <= 0.5)
    values["best"] = leading.hop.where(stands, -1).astype(int)
    values["best_family"] = leading.family.where(told, "undecided").where(stands, "none")
    return xr.Dataset({name: ("site", value.values) for name, value in values.items()})


def _contests(
    letters: Int[Tensor, "batch prediction position"], hits: Bool[Tensor, "batch prediction position"], index: int, seed: int
) -> Float[np.ndarray, " prediction"]:
    """Of the cases where one prediction and a rival differ and one of them comes true, the share that it wins: the lower
    bounds, against every rival; NaN where there is no such case."""
    apart = (letters >= 0) & (letters[:, index, None] >= 0) & (letters != letters[:, index, None])
    won, lost = (hits[:, index, None] & apart).sum(-1).cpu(), (hits & apart).sum(-1).cpu()
    low: np.ndarray = bootstrap(won.double(), (won + lost).double(), seed)[0].numpy()
    return low


def _own_models(
    predictions: Mapping[str, Prediction],
    pairs: MatchedPairs,
    sites: list[Site],
    answers: Int[Tensor, "batch site_and_none position"],
    seed: int,
) -> xr.Dataset:
    """IIA of predictions that a researcher brings."""
    says = {layer: [predict(layer, pairs.base, pairs.source) for predict in predictions.values()] for layer, _ in sites}
    expected = torch.stack([torch.stack(says[layer], dim=1) for layer, _ in sites], dim=1)
    asked = (expected >= 0) & pairs.counted[:, None, None]
    right, counts = ((answers[:, :-1, None] == expected) & asked).sum(-1).cpu().double(), asked.sum(-1).cpu().double()
    low, high = bootstrap(right, counts, seed)
    values = {"model_iia": right.sum(0) / counts.sum(0), "model_low": low, "model_high": high}
    data: dict[str, Any] = {name: (("site", "prediction"), value.numpy()) for name, value in values.items()}
    return xr.Dataset(data, {"prediction": list(predictions)})
