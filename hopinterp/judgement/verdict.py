"""From a model to a verdict: every kind of evidence is gathered, then judged."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from importlib import metadata
from typing import Any, SupportsIndex

import xarray as xr

from hopinterp.errors import HopInterpError
from hopinterp.evidence.kinds import KINDS
from hopinterp.evidence.reading.behaviour import capacity
from hopinterp.judgement.readings import Block, read_blocks, read_controls, rows
from hopinterp.judgement.records import Agreement, Capacity, Growth, Survey, Verdict
from hopinterp.judgement.rules import Decision, decide
from hopinterp.models.subject import ModelLike, Subject
from hopinterp.progress import Progress, Report
from hopinterp.task import Hops, HopTask
from hopinterp.theory.hypotheses import claims, exact, resolved


def verify(
    model: ModelLike,
    task: HopTask,
    hops: SupportsIndex,
    *,
    sequences: int = 100,
    seed: int = 0,
    behaviour: xr.Dataset | None = None,
    report: Report | None = None,
) -> Verdict:
    """Which hypothesis a model follows at one k: gather every kind of evidence, and judge.

    Args:
        sequences: for each kind of evidence (twice as many for behaviour, half for attention, 1.6 times to fit probes on).
        seed: of every draw; the same seed gives the same verdict.
        behaviour: what `evaluate` found, if it has been run: every k from 1 up to where the capacity is to be looked for.
        report: called with each kind of evidence before it is gathered, and at the end.

    Raises:
        HopInterpError: k out of range, 0 included; |Σ| = 2, where sequences alternate and every hop can be guessed; a model
            of which only the answers can be had; or a `behaviour` without this k.
    """
    subject, k = _opened(model, task), _checked(task, task.hop_count(hops))[0]
    gathered = {} if behaviour is None else {"behaviour": behaviour}
    return _verify(subject, task, k, sequences, seed, gathered, report or _silent)


def verify_all(
    model: ModelLike,
    task: HopTask,
    hops: Hops | None = None,
    *,
    sequences: int = 100,
    seed: int = 0,
    report: Report | None = None,
) -> Survey:
    """`verify` for every k (1 … max_hops by default), and the capacity that the insides predict.

    Raises:
        HopInterpError: as `verify`, before any work; or no k at which anything could be measured.
    """
    subject = _opened(model, task)
    ks = _checked(task, range(1, task.max_hops + 1) if hops is None else hops)
    said = report or _silent
    at_each = sum(not kind.every_k for kind in KINDS.values())
    once = len(KINDS) - at_each
    total = once + at_each * len(ks)
    gathered: dict[str, xr.Dataset] = {}
    for kind in (kind for kind in KINDS.values() if kind.every_k):
        said(Progress(kind.words, len(gathered), total))
        gathered[kind.name] = kind.gather(subject, task, max(ks), sequences, seed)
    verdicts, unmeasured = {}, {}
    for done, k in enumerate(ks):
        shifted = _shifted(said, k, once + done * at_each, total)
        try:
            verdicts[k] = _verify(subject, task, k, sequences, seed, gathered, shifted)
        except HopInterpError as error:
            unmeasured[k] = str(error)
    if not verdicts:
        raise HopInterpError(next(iter(unmeasured.values())))
    said(Progress("verdicts", total, total))
    return Survey(model=subject.name, verdicts=verdicts, unmeasured=unmeasured, capacity=_largest(verdicts))


def _verify(
    subject: Subject,
    task: HopTask,
    hops: int,
    sequences: int,
    seed: int,
    gathered: Mapping[str, xr.Dataset],
    report: Report,
) -> Verdict:
    """Gather what has not been, and judge."""
    found = dict(gathered)
    left = [kind for kind in KINDS.values() if kind.name not in found]
    for done, kind in enumerate(left):
        report(Progress(kind.words, done, len(left)))
        found[kind.name] = kind.gather(subject, task, hops, sequences, seed)
    verdict = judge(found, hops, {"sequences": sequences, "seed": seed})
    report(Progress("verdict", len(left), len(left)))
    return verdict


def _opened(model: ModelLike, task: HopTask) -> Subject:
    """The subject, if it has blocks to look into."""
    subject = Subject.of(model, task)
    subject.require_blocks("verify")
    return subject


def _checked(task: HopTask, hops: Hops) -> list[int]:
    ks = task.hop_counts(hops)
    if min(ks) < 1:
        raise HopInterpError("hops is 0: hop_0 is the input itself, about which there is nothing to verify")
    if task.alphabet_size < 3:
        raise HopInterpError("alphabet_size is 2: sequences alternate, and every hop can be guessed; verify needs 3 letters")
    return ks


def _silent(now: Progress) -> None:
    """Say nothing."""


def _shifted(report: Report, k: int, start: int, total: int) -> Report:
    return lambda now: report(Progress(f"k = {k}: {now.what}", start + now.done, total, now.details))


def judge(found: Mapping[str, xr.Dataset], hops: SupportsIndex, settings: Mapping[str, Any] | None = None) -> Verdict:
    """The verdict that evidence already gathered allows, by the bars that it was gathered with.

    Args:
        found: behaviour, attention, probe, transplant and patch (by chain), each as its function returned it, and whatever
            other kinds are registered.
        settings: what else to keep of how it was gathered; by default the probes' number of sequences and seed.

    Raises:
        HopInterpError: a kind of evidence is missing, or behaviour was not measured at this k.
    """
    if missing := [name for name, kind in KINDS.items() if kind.required and name not in found]:
        raise HopInterpError(f"a verdict needs evidence of every kind; {', '.join(missing)} is missing")
    behaviour = found["behaviour"]
    task = HopTask(*(int(behaviour.attrs[name]) for name in ("n_letters", "alphabet_size", "max_hops")))
    k = task.hop_count(hops)
    if k not in behaviour.hops:
        raise HopInterpError(f"behaviour was measured at k = {behaviour.hops.values.tolist()}, not at k = {k}")
    error = {name: float(behaviour[name].sel(hops=k)) for name in ("error", "low", "high")}
    blocks, controls = read_blocks(found, k), read_controls(found, k)
    bars = _bars(found)
    decision = decide(blocks, error, k, bars["solved"], bars["failed"])
    failed = [name for name, control in controls.items() if control.passed is False]
    if failed and decision.verdict in claims():
        why = f"It would be {decision.verdict}, but a control failed: {', '.join(failed)}."
        decision = Decision("undetermined", None, (*decision.reasons, why))
    drawn = {name: int(found["probe"].attrs[name]) for name in ("sequences", "seed")} if settings is None else settings
    return Verdict(
        model=str(behaviour.attrs["model"]),
        task=task,
        version=metadata.version("hopinterp"),
        hops=k,
        verdict=decision.verdict,
        form=decision.form,
        reasons=decision.reasons,
        error=error,
        table=tuple(rows(blocks)),
        resolved={
            kind.resolves: [block.readings[name].resolved() for block in blocks]
            for name, kind in KINDS.items()
            if kind.resolves and name in found
        },
        attended=[sorted(block.attended) for block in blocks],
        theory={name: resolved(name, k, len(blocks)) for name in exact()},
        growth=_growth(blocks, k),
        controls=controls,
        agreement=_agreement(blocks),
        capacity=_capacity(behaviour, blocks),
        settings={**drawn, **bars},
        evidence=found,
    )


# -- figures -------------------------------------------------------------------------------------------------------------


def _bars(found: Mapping[str, xr.Dataset]) -> dict[str, float]:
    """Every bar that the verdict was reached by."""
    bars = {name: ("behaviour", name) for name in ("solved", "failed")}
    bars |= {"held": ("probe", "bar"), "stands_for": ("transplant", "margin"), "needed": ("patch", "bar")}
    bars |= {"attended": ("attention", "attended")}
    return {name: float(found[kind].attrs[attribute]) for name, (kind, attribute) in bars.items()}


def _growth(blocks: tuple[Block, ...], hops: int) -> tuple[Growth, ...]:
    """R(ℓ+1)/R(ℓ) while R(ℓ+1) < k, by each kind of evidence that it can be read off."""
    found = []
    for before, after in itertools.pairwise(blocks):
        for kind in sorted(before.readings):
            ends, next_ends = before.readings[kind].span(), after.readings[kind].span()
            if ends is None or next_ends is None:
                continue
            (low, r, high), (next_low, next_r, next_high) = ends, next_ends
            if r and 0 < next_r < hops:
                steps = (before.layer, after.layer)
                found.append(Growth(steps, kind, next_r / r, next_low / max(high, 1), next_high / max(low, 1)))
    return tuple(found)


def _agreement(blocks: tuple[Block, ...]) -> dict[str, Agreement]:
    """Blocks where two kinds of evidence agree, of those where both say something."""
    speaking = [(name, kind.resolves) for name, kind in KINDS.items() if kind.resolves]
    found = {}
    for (one, its), (other, others) in itertools.combinations(speaking, 2):
        said = [(_possible(block, one), _possible(block, other)) for block in blocks]
        same = [bool(a & b) for a, b in said if a and b]
        found[f"{its}_{others}"] = Agreement(sum(same), len(same))
    return found


def _possible(block: Block, kind: str) -> set[int]:
    """The R(ℓ) that one kind of evidence leaves open; none where it does not speak."""
    r = block.readings[kind].resolved() if kind in block.readings else None
    return set() if r is None else {r} if isinstance(r, int) else set(r)


def _capacity(behaviour: xr.Dataset, blocks: tuple[Block, ...]) -> Capacity:
    before = blocks[-2] if len(blocks) > 1 else None
    held = None if before is None else max(before.held, default=0)
    return Capacity(capacity(behaviour), held, None if before is None else before.stands_for)


def _largest(verdicts: Mapping[int, Verdict]) -> Capacity:
    """Over the k at which the model does not fail; over all where it fails at each."""
    fine = [one.capacity for one in verdicts.values() if one.verdict != "none"]
    counted = fine or [one.capacity for one in verdicts.values()]

    def most(name: str) -> int | None:
        return max((c for one in counted if (c := getattr(one, name)) is not None), default=None)

    return Capacity(most("measured"), most("held"), most("stands_for"))
