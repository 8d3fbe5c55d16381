"""From a model to a verdict: its program and every kind of evidence are gathered, then judged."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from importlib import metadata
from typing import Any, SupportsIndex

import xarray as xr

from hopinterp.decompile.decompiled import LEAST, STAGES, decompile
from hopinterp.decompile.records import Decompiled
from hopinterp.decompile.transplants import BlockTransplants, measure_transplants
from hopinterp.errors import HopInterpError
from hopinterp.evidence.kinds import KINDS
from hopinterp.evidence.reading.behaviour import capacity, evaluate, mismatch
from hopinterp.judgement.comparison import Reaches, disagreements, with_program
from hopinterp.judgement.laws import BEYOND, LINEAR, program_controls
from hopinterp.judgement.readings import Block, Resolved, read_blocks, read_controls, rows
from hopinterp.judgement.records import Agreement, Capacity, Growth, Verdict
from hopinterp.judgement.rules import Decision, decide
from hopinterp.judgement.surveys import Survey
from hopinterp.memory import release_memory
from hopinterp.models.subject import ModelLike, Subject
from hopinterp.progress import Progress, Report
from hopinterp.seeds import check_seed
from hopinterp.task import Hops, HopTask
from hopinterp.theory.hypotheses import claims, exact, resolved
from hopinterp.whole import whole

WORST = 400
"""Chains without a repeat that every k is asked on at least, enough to say that k is solved there."""


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
    """Which law a model follows at one k: decompile it, gather every other kind of evidence, and judge.

    Args:
        sequences: for each kind of evidence (twice as many for behaviour and the program, half for attention, 1.6 times to
            fit probes on).
        seed: of every draw; the same seed gives the same verdict.
        behaviour: what `evaluate` found, if it has been run: every k from 1 up to where the capacity is to be looked for.
        report: called with each kind of evidence before it is gathered, and at the end.

    Raises:
        HopInterpError: k out of range, 0 included; |Σ| = 2, where sequences alternate and every hop can be guessed; a model
            of which only the answers can be had; or a `behaviour` without this k.
    """
    subject, k = _opened(model, task), _checked(task, task.hop_count(hops))[0]
    whole("sequences", sequences, 1)
    check_seed(seed)
    work, said = _Work(subject, task, sequences, seed), report or _silent
    total = 1 + len(STAGES) + len(KINDS)
    if behaviour is None:
        said(Progress("behaviour", 0, total))
        behaviour = KINDS["behaviour"].gather(subject, task, k, sequences, seed)
    _check_measured(behaviour, k)
    # where the model fails there is no program; the other evidence shows how
    program = (None, "") if _fails(behaviour, k) else work.program(k, _part(said, 1, total))
    return work.at(k, {"behaviour": behaviour}, *program, _part(said, 1 + len(STAGES), total))


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

    Behaviour comes first, for all k, on chains without a repeat as well; where a model fails nothing else is gathered.

    Raises:
        HopInterpError: as `verify`, before any work; or no k at which anything could be measured.
    """
    subject = _opened(model, task)
    ks = _checked(task, range(1, task.max_hops + 1) if hops is None else hops)
    whole("sequences", sequences, 1)
    check_seed(seed)
    work, said = _Work(subject, task, sequences, seed), report or _silent
    said(Progress("behaviour", 0, 1))
    behaviour = KINDS["behaviour"].gather(subject, task, max(ks), sequences, seed)
    gathered = {"behaviour": _with_worst(behaviour, subject, task, max(4 * sequences, WORST), seed)}
    once = [kind for kind in KINDS.values() if kind.every_k and kind.name not in gathered]
    gathered |= {kind.name: kind.gather(subject, task, max(ks), sequences, seed) for kind in once}
    looked_into = [k for k in ks if not _fails(gathered["behaviour"], k)]
    found, each = len(STAGES) * len(looked_into), len(KINDS) - len(once)
    total = 1 + found + each * len(looked_into)
    programs = work.programs(looked_into, _part(said, 1, total))
    verdicts, unmeasured = {}, {}
    for done, k in enumerate(sorted(ks, key=looked_into.__contains__)):
        part = _part(said, 1 + found + each * (done - len(ks) + len(looked_into)), total, f"k = {k}: ")
        try:
            verdicts[k] = work.at(k, gathered, *programs[k], part) if k in programs else work.failed(k, gathered)
        except HopInterpError as error:
            unmeasured[k] = str(error)
    if not verdicts:
        raise HopInterpError(next(iter(unmeasured.values())))
    said(Progress("verdicts", total, total))
    verdicts = dict(sorted(verdicts.items()))
    return Survey(model=subject.name, verdicts=verdicts, unmeasured=unmeasured, capacity=_largest(verdicts))


Program = tuple[Decompiled | None, str]
"""What `decompile` found, or why it found nothing."""


@dataclass(frozen=True, eq=False)
class _Work:
    """One model, and how much of everything is gathered of it."""

    subject: Subject
    task: HopTask
    sequences: int
    seed: int

    def at(
        self, hops: int, gathered: Mapping[str, xr.Dataset], program: Decompiled | None, why: str, report: Report
    ) -> Verdict:
        """Gather what has not been, and judge."""
        found = dict(gathered)
        left = [kind for kind in KINDS.values() if kind.name not in found]
        for done, kind in enumerate(left):
            report(Progress(kind.words, done, len(left) + 1))
            release_memory()
            found[kind.name] = kind.gather(self.subject, self.task, hops, self.sequences, self.seed)
        release_memory()
        report(Progress("transplants foretold", len(left), len(left) + 1))
        verdict = judge(found, hops, self.settings, program=program, foretold=self.foretold(program), no_program=why)
        report(Progress("verdict", len(left) + 1, len(left) + 1))
        return verdict

    def failed(self, hops: int, gathered: Mapping[str, xr.Dataset]) -> Verdict:
        """The verdict where behaviour alone says "none"."""
        return _judged({"behaviour": gathered["behaviour"]}, hops, self.settings, len(self.subject.layers()))

    @property
    def settings(self) -> dict[str, Any]:
        return {"sequences": self.sequences, "seed": self.seed}

    def program(self, hops: int, report: Report | None = None) -> Program:
        """What `decompile` finds at one k."""
        try:
            return decompile(self.subject, self.task, hops, report=report, **self._drawn), ""
        except HopInterpError as error:
            return None, f"There is no program to judge ({error}): the evidence of the blocks decides."

    def programs(self, ks: list[int], report: Report) -> dict[int, Program]:
        """What `decompile` finds at several k, all at once; at each for itself where that cannot be."""
        try:
            found = decompile(self.subject, self.task, ks, report=report, **self._drawn) if ks else None
        except HopInterpError:
            return {k: self.program(k) for k in ks}
        return {k: (found.by_hops[k], "") if found and k in found.by_hops else self.program(k) for k in ks}

    @property
    def _drawn(self) -> dict[str, Any]:
        # a law holds of all that a model does: of ways that vote, pruning alone would show no more than are needed
        return {"sequences": max(2 * self.sequences, LEAST), "seed": self.seed, "every_way": True}

    def foretold(self, program: Decompiled | None) -> BlockTransplants | None:
        """How well the program foretells transplants of whole blocks; None where it says nothing of any."""
        if program is None or not program.derivations:
            return None
        try:
            return measure_transplants(program, sequences=self.sequences, seed=self.seed)
        except HopInterpError:  # too few pairs whose answers differ
            return None


def _opened(model: ModelLike, task: HopTask) -> Subject:
    """The subject, if it has blocks to look into."""
    subject = Subject.asked(model, task)
    subject.require_blocks("verify")
    return subject


def _checked(task: HopTask, hops: Hops) -> list[int]:
    ks = task.hop_counts(hops)
    if min(ks) < 1:
        raise HopInterpError("hops is 0: hop_0 is the input itself, about which there is nothing to verify")
    if task.alphabet_size < 3:
        raise HopInterpError("alphabet_size is 2: sequences alternate, and every hop can be guessed; verify needs 3 letters")
    return ks


def _with_worst(behaviour: xr.Dataset, subject: Subject, task: HopTask, distinct: int, seed: int) -> xr.Dataset:
    """With err_k on chains without a repeat, at every k that is not failed on average."""
    ks = [k for k in behaviour.hops.values.tolist() if not _fails(behaviour, k)]
    if not ks:
        return behaviour
    hard = evaluate(subject, task, ks, sequences=2, seed=seed, distinct=distinct)
    told = hard[[name for name in hard if str(name).startswith("distinct_")]].reindex(hops=behaviour.hops)
    told["distinct_solved"] = told.distinct_solved.fillna(0).astype(bool)
    return behaviour.merge(told).assign_attrs(distinct=distinct)


def _check_measured(behaviour: xr.Dataset, hops: int) -> None:
    if hops not in behaviour.hops:
        raise HopInterpError(f"behaviour was measured at k = {behaviour.hops.values.tolist()}, not at k = {hops}")


def _fails(behaviour: xr.Dataset, hops: int) -> bool:
    return bool(behaviour.failed.sel(hops=hops))


def _silent(now: Progress) -> None:
    """Say nothing."""


def _part(report: Report, before: int, total: int, start: str = "") -> Report:
    """Progress of a part of the work, after some steps of all."""
    return lambda now: report(Progress(start + now.what, before + now.done, total, now.details))


def judge(
    found: Mapping[str, xr.Dataset],
    hops: SupportsIndex,
    settings: Mapping[str, Any] | None = None,
    *,
    program: Decompiled | None = None,
    foretold: BlockTransplants | None = None,
    no_program: str = "",
) -> Verdict:
    """The verdict that evidence already gathered allows, by the bars that it was gathered with.

    Args:
        found: behaviour, attention, probe, transplant and patch (by chain), each as its function returned it, and whatever
            other kinds are registered.
        settings: what else to keep of how it was gathered; by default the probes' number of sequences and seed.
        program: what `decompile` found at this k; without it the evidence of the blocks decides.
        foretold: what `measure_transplants` found of it.
        no_program: a sentence: why there is none.

    Raises:
        HopInterpError: a kind of evidence is missing, or behaviour was not measured at this k.
    """
    if missing := [name for name, kind in KINDS.items() if kind.required and name not in found]:
        raise HopInterpError(f"a verdict needs evidence of every kind; {', '.join(missing)} is missing")
    behaviour = found["behaviour"]
    k = _task(behaviour).hop_count(hops)
    _check_measured(behaviour, k)
    n_layers = found["probe"].sizes["layer"]
    drawn = {name: int(found["probe"].attrs[name]) for name in ("sequences", "seed")} if settings is None else settings
    return _judged(found, k, drawn, n_layers, program, foretold, no_program)


def _judged(
    found: Mapping[str, xr.Dataset],
    k: int,
    settings: Mapping[str, Any],
    n_layers: int,
    program: Decompiled | None = None,
    foretold: BlockTransplants | None = None,
    no_program: str = "",
) -> Verdict:
    """The verdict; on behaviour alone where nothing else was gathered."""
    behaviour = found["behaviour"]
    error = {name: float(behaviour[name].sel(hops=k)) for name in ("error", "low", "high")}
    blocks, controls = read_blocks(found, k, n_layers), read_controls(found, k)
    if program is not None:
        blocks, controls = with_program(blocks, program), {**program_controls(program), **controls}
    bars = _bars(found)
    decision = decide(blocks, error, k, bars["solved"], bars["failed"], program)
    if no_program and decision.verdict != "none":
        decision = replace(decision, reasons=(no_program, *decision.reasons))
    if decision.verdict == "none" and (hint := mismatch(behaviour)):
        decision = replace(decision, reasons=(*decision.reasons, hint))
    failed = [name for name, control in controls.items() if control.passed is False]
    if failed and decision.verdict in {*claims(), LINEAR, BEYOND}:
        why = f"It would be {decision.verdict}, but a control failed: {', '.join(failed)}."
        decision = Decision("undetermined", None, (*decision.reasons, why))
    return Verdict(
        model=str(behaviour.attrs["model"]),
        task=_task(behaviour),
        version=metadata.version("hopinterp"),
        hops=k,
        verdict=decision.verdict,
        form=decision.form,
        pace=decision.pace,
        reach=decision.reach,
        reasons=decision.reasons,
        error=error,
        table=tuple(rows(blocks)),
        resolved=_resolved(blocks, found),
        attended=[sorted(block.attended) for block in blocks],
        theory={name: resolved(name, k, n_layers) for name in exact()},
        growth=_growth(blocks, k),
        controls=controls,
        agreement=_agreement(blocks),
        disagreements=() if program is None else disagreements(program, blocks, foretold),
        capacity=_capacity(behaviour, blocks),
        settings={**settings, **bars},
        evidence=found,
        program=program,
        foretold=foretold,
    )


def _task(behaviour: xr.Dataset) -> HopTask:
    return HopTask(*(int(behaviour.attrs[name]) for name in ("n_letters", "alphabet_size", "max_hops")))


def _resolved(blocks: tuple[Block, ...], found: Mapping[str, xr.Dataset]) -> dict[str, list[Resolved]]:
    """R(ℓ) by the program and by each kind of evidence that reads one; None in every block where it was not gathered."""
    speaking = {name: kind.resolves for name, kind in KINDS.items() if kind.resolves and (kind.required or name in found)}
    if any("program" in block.readings for block in blocks):
        speaking = {"program": "program", **speaking}
    return {
        word: [block.readings[name].resolved() if name in block.readings else None for block in blocks]
        for name, word in speaking.items()
    }


# -- figures -------------------------------------------------------------------------------------------------------------


def _bars(found: Mapping[str, xr.Dataset]) -> dict[str, float]:
    """Every bar that the verdict was reached by."""
    bars = {name: ("behaviour", name) for name in ("solved", "failed")}
    bars |= {"held": ("probe", "bar"), "stands_for": ("transplant", "margin"), "needed": ("patch", "bar")}
    bars |= {"attended": ("attention", "attended")}
    return {name: float(found[kind].attrs[attribute]) for name, (kind, attribute) in bars.items() if kind in found}


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
    speaking = [("program", "program"), *((name, kind.resolves) for name, kind in KINDS.items() if kind.resolves)]
    speaking = [(name, word) for name, word in speaking if any(name in block.readings for block in blocks)]
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
    measured, worst = capacity(behaviour), capacity(behaviour, distinct=True)
    before = blocks[-2] if len(blocks) > 1 else None
    if before is None or not before.readings:
        return Capacity(measured, None, None, worst=worst)
    reaches = before.readings.get("program")
    reach = reaches.r if isinstance(reaches, Reaches) else None
    return Capacity(measured, max(before.held, default=0), before.stands_for, reach, worst)


def _largest(verdicts: Mapping[int, Verdict]) -> Capacity:
    """Over the k at which the model does not fail; over all where it fails at each."""
    fine = [one.capacity for one in verdicts.values() if one.verdict != "none"]
    counted = fine or [one.capacity for one in verdicts.values()]

    def most(name: str) -> int | None:
        return max((c for one in counted if (c := getattr(one, name)) is not None), default=None)

    return Capacity(**{field.name: most(field.name) for field in fields(Capacity)})
