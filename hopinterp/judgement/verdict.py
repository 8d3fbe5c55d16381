"""The bench: all kinds of evidence beside the hypotheses, and the one answer that they allow (by the rules of rules.py)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import xarray as xr

from hopinterp.errors import HopInterpError
from hopinterp.evidence.patching.activation import patch
from hopinterp.evidence.reading.attention import align
from hopinterp.evidence.reading.behaviour import evaluate
from hopinterp.evidence.reading.probes import BAR, probe
from hopinterp.evidence.transplants.interchange import MARGIN, transplant
from hopinterp.judgement.readings import ATTENDED, BlockReading, read_blocks
from hopinterp.judgement.rules import SOLVED, decide
from hopinterp.models.fused import FusedTransformer
from hopinterp.task import HopTask
from hopinterp.theory.hypotheses import HYPOTHESES, resolved

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

CAPACITY = 0.01
"""Capacity counts the k whose err_k is not above this, by the lower end of its interval."""

Report = Callable[[str], None]


@dataclass(frozen=True, eq=False)
class Verdict:
    """What a model does at one k, and why we say so. Lists have an entry a block.

    Attributes:
        hops: k.
        verdict: doubling, sequential, mixed, undetermined or none.
        form: lookup or successor, where the evidence tells them apart.
        reasons: sentences: which rule said so, and where.
        error: err_k with `low` and `high`.
        resolved: R(ℓ) by `probe` (the largest held hop), by `transplant` (what the output stands for; None where unclear)
            and by `light_cone` (a pair: with find^j the next position needed, R is j, or j − 1 if the next block goes to the
            position after the one that the pointer names; None where unclear).
        attended: the j of find^j that some head attends to.
        theory: R(ℓ) of each exact hypothesis.
        growth: R(ℓ+1)/R(ℓ) over blocks strictly before k, by probe and by transplant, with an interval.
        controls: what would have refuted the method, and whether it did not.
        agreement: for each two kinds of evidence, in how many of the blocks where both speak they agree.
        capacity: `measured`, the largest k up to which no err_k is surely above 1% (lower end); and what the block before
            the last allows: `predicted` by what it holds (2R + 1), `predicted_sequential` (R + 1), `predicted_transplant`
            (2R + 1 of what it stands for; None where that is not clear).
        evidence: the datasets, by kind: behaviour, attention, probe, transplant, patch.
        settings: thresholds, seeds and numbers of sequences.
    """

    hops: int
    verdict: str
    form: str | None
    reasons: tuple[str, ...]
    error: Mapping[str, float]
    resolved: Mapping[str, list[Any]]
    attended: list[list[int]]
    theory: Mapping[str, list[int]]
    growth: list[dict[str, Any]]
    controls: Mapping[str, dict[str, Any]]
    agreement: Mapping[str, dict[str, int]]
    capacity: Mapping[str, int | None]
    evidence: Mapping[str, xr.Dataset] = field(repr=False)
    settings: Mapping[str, Any] = field(repr=False)


@dataclass(frozen=True, eq=False)
class Survey:
    """The verdict at every k, and whether the insides predict the outside.

    Attributes:
        verdicts: by k.
        unmeasured: k → why no verdict could be had (too few positions count, say).
        capacity: as in Verdict, with R the largest over the k that the model solves.
    """

    verdicts: Mapping[int, Verdict]
    unmeasured: Mapping[int, str]
    capacity: Mapping[str, int | None]


def verify(
    model: HookedTransformer | FusedTransformer,
    task: HopTask,
    hops: int,
    *,
    sequences: int = 100,
    seed: int = 0,
    behaviour: xr.Dataset | None = None,
    report: Report | None = None,
) -> Verdict:
    """Which hypothesis a model follows at one k: run every kind of evidence, and judge.

    Args:
        sequences: for each kind of evidence (twice as many for behaviour, half for attention, 1.6 times to fit probes on).
        seed: of every draw; the same seed gives the same verdict.
        behaviour: what `evaluate` found, if it has been run: every k from 1 up to where the capacity is to be looked for.
        report: called with the name of each kind of evidence before it is gathered.

    Raises:
        HopInterpError: k out of range, 0 included; |Σ| = 2, where sequences alternate and every hop can be guessed; or a
            `behaviour` without this k.
    """
    hops = int(hops)  # numpy's numbers come from coordinates
    _check(task, [hops])
    said = report or (lambda _: None)
    found = {}
    if behaviour is None:
        said("behaviour")
        behaviour = evaluate(model, task, sequences=2 * sequences, seed=seed)
    found["behaviour"] = behaviour
    said("attention")
    found["attention"] = align(model, task, hops, max(sequences // 2, 2), seed)
    said("probes")
    found["probe"] = probe(model, task, hops, train_sequences=8 * sequences // 5, sequences=sequences, seed=seed)
    said("patching")
    found["patch"] = patch(model, task, hops, by="chain", sequences=sequences, seed=seed)
    said("transplants")
    found["transplant"] = transplant(model, task, hops, sequences=sequences, seed=seed)
    return judge(found, hops, {"sequences": sequences, "seed": seed})


def verify_all(
    model: HookedTransformer | FusedTransformer,
    task: HopTask,
    hops: Iterable[int] | None = None,
    *,
    sequences: int = 100,
    seed: int = 0,
    report: Report | None = None,
) -> Survey:
    """`verify` for every k (1 … max_hops by default), and the capacity that the insides predict.

    Raises:
        HopInterpError: as `verify`, before any work; or no k at which anything could be measured.
    """
    ks = [int(k) for k in (range(1, task.max_hops + 1) if hops is None else hops)]
    _check(task, ks)
    said = report or (lambda _: None)
    said("behaviour")
    behaviour = evaluate(model, task, sequences=2 * sequences, seed=seed)
    verdicts, unmeasured = {}, {}
    for k in ks:
        prefixed = _prefixed(said, f"k = {k}: ")
        try:
            verdicts[k] = verify(model, task, k, sequences=sequences, seed=seed, behaviour=behaviour, report=prefixed)
        except HopInterpError as error:
            unmeasured[k] = str(error)
    if not verdicts:
        raise HopInterpError(next(iter(unmeasured.values())))
    return Survey(verdicts, unmeasured, _largest_capacity(verdicts))


def _check(task: HopTask, ks: list[int]) -> None:
    if not ks:
        raise HopInterpError("no values of k were given")
    task.check_hops(*ks)
    if min(ks) < 1:
        raise HopInterpError("hops is 0: hop_0 is the input itself, about which there is nothing to verify")
    if task.alphabet_size < 3:
        raise HopInterpError("alphabet_size is 2: sequences alternate, and every hop can be guessed; verify needs 3 letters")


def _prefixed(report: Report, prefix: str) -> Report:
    return lambda kind: report(prefix + kind)


def judge(found: Mapping[str, xr.Dataset], hops: int, settings: Mapping[str, Any]) -> Verdict:
    """The verdict that evidence already gathered allows.

    Args:
        found: behaviour, attention, probe, transplant and patch (by chain), each as its function returned it.

    Raises:
        HopInterpError: behaviour was not measured at this k.
    """
    if hops not in found["behaviour"].k:
        raise HopInterpError(f"behaviour was measured at k = {found['behaviour'].k.values.tolist()}, not at k = {hops}")
    blocks = read_blocks(found["probe"], found["transplant"], found["patch"], found["attention"], hops)
    error = {name: float(found["behaviour"][name].sel(k=hops)) for name in ("error", "low", "high")}
    verdict, form, reasons = decide(blocks, error, hops)
    controls = _controls(found, hops)
    failed = [name for name, control in controls.items() if control["passed"] is False]
    if failed and verdict in ("doubling", "sequential"):
        reasons.append(f"It would be {verdict}, but a control failed: {', '.join(failed)}.")
        verdict, form = "undetermined", None
    thresholds = {"solved": SOLVED, "capacity": CAPACITY, "held": BAR, "stands_for": MARGIN, "attended": ATTENDED}
    thresholds["needed"] = float(found["patch"].attrs["bar"])
    return Verdict(
        hops,
        verdict,
        form,
        tuple(reasons),
        error,
        {
            "probe": [max(block.held, default=0) for block in blocks],
            "transplant": [block.stands_for for block in blocks],
            "light_cone": [_light_cone(block, hops) for block in blocks],
        },
        [sorted(block.attended) for block in blocks],
        {name: resolved(name, hops, len(blocks)) for name in HYPOTHESES},
        _growth(blocks, hops),
        controls,
        _agreement(blocks, hops),
        _capacity(found["behaviour"], blocks),
        found,
        {**settings, **thresholds},
    )


# -- figures -------------------------------------------------------------------------------------------------------------


def _light_cone(block: BlockReading, hops: int) -> list[int] | None:
    """The two R(ℓ) that the next needed position leaves open."""
    if block.next_needed is None:
        return None
    return [min(block.next_needed - 1, hops), min(block.next_needed, hops)]


def _growth(blocks: tuple[BlockReading, ...], hops: int) -> list[dict[str, Any]]:
    """R(ℓ+1)/R(ℓ) while R(ℓ+1) < k, by each kind of evidence; the interval spans every R that its uncertainty allows."""
    found = []
    for before, after in itertools.pairwise(blocks):
        for kind in ("probe", "transplant"):
            (low, r, high), (next_low, next_r, next_high) = (_span(block, kind) for block in (before, after))
            if not r or not next_r or next_r >= hops:
                continue
            step = {"layers": [before.layer, after.layer], "by": kind, "ratio": next_r / r}
            found.append(step | {"low": next_low / max(high, 1), "high": next_high / max(low, 1)})
    return found


def _span(block: BlockReading, kind: str) -> tuple[int, int | None, int]:
    if kind == "probe":
        r = max(block.held, default=0)
        return r, r, max(block.perhaps_held, default=r)
    if block.stands_for is None:
        return 0, None, 0
    close = block.not_told_apart | {block.stands_for}
    return min(close), block.stands_for, max(close)


def _agreement(blocks: tuple[BlockReading, ...], hops: int) -> dict[str, dict[str, int]]:
    """Blocks where two kinds of evidence agree, of those where both say something."""
    pairs: dict[str, list[bool]] = {"transplant_probe": [], "transplant_light_cone": [], "probe_light_cone": []}
    for block in blocks:
        held, cone = max(block.held, default=0), _light_cone(block, hops)
        if cone is not None:
            pairs["probe_light_cone"].append(held in cone)
        if block.stands_for is not None:
            pairs["transplant_probe"].append(held == block.stands_for)
        if block.stands_for is not None and cone is not None:
            pairs["transplant_light_cone"].append(block.stands_for in cone)
    return {name: {"agree": sum(same), "of": len(same)} for name, same in pairs.items()}


def _controls(found: Mapping[str, xr.Dataset], hops: int) -> dict[str, dict[str, Any]]:
    """What would have shown that a method finds hops where there are none. `passed` is None where it cannot be measured."""
    probes, cones, swaps = found["probe"].sel(hop=slice(1, hops)), found["patch"], found["transplant"]
    cheap = xr.where(probes.majority > probes.lower_hops, probes.majority, probes.lower_hops)
    gap = float(((probes.untrained - cheap) / (1 - cheap)).max())
    held = probes.selectivity.where(probes.held)
    least = float(held.min())
    off, off_high = (float(cones[x].sel(metric="probability").max()) for x in ("off_chain_low", "off_chain_high"))
    cone_bar = float(cones.attrs["bar"])
    bar = swaps.chance.where(swaps.chance < 1)
    # what reaches r = 0 is the input itself, and the last block's output is the answer of any model
    moved = ((swaps.untrained_low - bar) / (1 - bar)).sel(hop=slice(1, None)).isel(layer=slice(None, -1))
    moved = float(moved.max()) if moved.size else float("nan")
    return {
        "untrained_probe": {"passed": _under(gap, BAR), "largest_share_of_the_gap": gap, "bar": BAR},
        "selectivity": {"passed": _under(-least, 0), "least_of_held": least},
        # few pairs leave an interval on both sides of the bar: that tells nothing
        "off_chain": {
            "passed": None if off < cone_bar <= off_high else _under(off_high, cone_bar),
            "largest_effect": off_high,
            "bar": cone_bar,
        },
        "untrained_transplant": {"passed": _under(moved, MARGIN), "largest_share_of_the_gap": moved, "bar": MARGIN},
    }


def _under(value: float, bar: float) -> bool | None:
    return None if math.isnan(value) else value < bar


def _capacity(behaviour: xr.Dataset, blocks: tuple[BlockReading, ...]) -> dict[str, int | None]:
    """How far the model gets, and how far the block before the last lets the last one get, as it runs at one k."""
    fine = (behaviour.low <= CAPACITY).sel(k=behaviour.k > 0).sortby("k")
    whole = fine.k.values.tolist() == list(range(1, fine.sizes["k"] + 1))  # or "every k up to" could not be said
    measured = int(fine.astype(int).cumprod("k").sum()) if whole else None
    before = blocks[-2] if len(blocks) > 1 else None
    held = None if before is None else max(before.held, default=0)
    stands = None if before is None else before.stands_for
    return {
        "measured": measured,
        "predicted": None if held is None else 2 * held + 1,
        "predicted_sequential": None if held is None else held + 1,
        "predicted_transplant": None if stands is None else 2 * stands + 1,
    }


def _largest_capacity(verdicts: Mapping[int, Verdict]) -> dict[str, int | None]:
    """Over the k that are solved; of all k where none is."""
    solved = [v.capacity for v in verdicts.values() if v.verdict != "none"] or [v.capacity for v in verdicts.values()]
    names = solved[0].keys()
    return {name: max((c for one in solved if (c := one[name]) is not None), default=None) for name in names}
