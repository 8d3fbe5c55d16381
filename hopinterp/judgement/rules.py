"""Which law a model follows at one k: by the program that it runs, where that is known, else by the readings of all blocks.

*Behaviour* comes first. A model *solves* k where the upper 95% end of err_k is at most 1%, here as everywhere; it fails at
k, verdict "none", where the lower end is above 5%. Of one that surely does not fail (the upper end is at most 5%) the
mechanism can be judged, whether it solves k or not: which of the two, the first reason says. Where 5% lies inside the
interval, the verdict is "undetermined".

Then the *program*: where it explains the model, its reach decides (`laws`). Where it does not, the readings of the blocks
may: *transplants* say what a block's output stands for downstream: where they single out one r, the hypothesis must say r.
*Probes* say what can be read: hop r must not be surely absent. The *light cone* says what is still needed: no find^j(i) with
j < r may be. So each kind of evidence objects for itself (`Reading.objection`). The last block must have resolved k. A
hypothesis stands if some course R(0), R(1), … that follows its recursion passes every block. Attention is reported, and does
not vote. Where the blocks name nothing either, but the model runs on its routes and the circuit with its own queries
answers, the reach still decides: only the value tree is not small. What is left is "mixed".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, NewType

from hopinterp.decompile.records import Decompiled
from hopinterp.evidence.reading.behaviour import FAILED, SOLVED
from hopinterp.judgement.laws import Pace, judge_program
from hopinterp.judgement.readings import Block
from hopinterp.theory.hypotheses import Hypothesis, claims, exact, too_few_hops

HypothesisName = NewType("HypothesisName", str)
"""The name of a hypothesis in the registry."""

Answer = Literal["doubling", "sequential", "linear by two", "beyond", "mixed", "undetermined", "none"] | HypothesisName
"""A verdict: one of these words, or a hypothesis that was registered besides."""


@dataclass(frozen=True)
class Decision:
    """A verdict's word, the form where the evidence tells forms apart, and the sentences that say why; where the program
    decided, its reach and the pace of that."""

    verdict: Answer
    form: str | None
    reasons: tuple[str, ...]
    pace: Pace | None = None
    reach: tuple[int, ...] = ()


def decide(
    blocks: tuple[Block, ...],
    error: Mapping[str, float],
    hops: int,
    solved: float = SOLVED,
    failed: float = FAILED,
    program: Decompiled | None = None,
) -> Decision:
    """The verdict on every block's evidence, the program and err_k with its interval (`error`, `low`, `high`), by
    behaviour's bars."""
    percent = f"err_{hops} is {100 * error['error']:.1f}% ({100 * error['low']:.1f} to {100 * error['high']:.1f})"
    if error["low"] > failed:
        return Decision("none", None, (f"{percent}, over {failed:.0%}: no claim is made about its mechanism.",))
    if not error["high"] <= failed:  # NaN, where nothing could be scored, included
        return Decision("undetermined", None, (f"{percent}: that does not tell whether it is under {failed:.0%}.",))
    answers = f"solved (at most {solved:.0%})" if error["high"] <= solved else f"not surely solved ({solved:.0%})"
    reasons = (f"{percent}, {answers}, under {failed:.0%}: its mechanism can be judged.",)
    by_blocks = _by_blocks(blocks, hops)
    found = by_blocks if program is None else _with_program(program, by_blocks)
    return replace(found, reasons=reasons + found.reasons)


def _with_program(program: Decompiled, by_blocks: Decision) -> Decision:
    """What the program says where it explains the model; else what the blocks say, where they name something; else what can
    still be read off routes and queries."""
    law = judge_program(program)
    if law.explained:
        beside = f"From the other evidence alone, by one number a block, it would be {by_blocks.verdict}:"
        reasons = (*law.reasons, beside, *by_blocks.reasons)
        return Decision(HypothesisName(law.verdict), law.form, reasons, law.pace, law.reach)
    if by_blocks.verdict in claims():
        return replace(by_blocks, reasons=(law.reasons[0], "So the evidence of the blocks decides.", *by_blocks.reasons))
    if law.carried:
        return Decision(HypothesisName(law.verdict), law.form, law.reasons, law.pace, law.reach)
    verdict = by_blocks.verdict if law.verdict == "mixed" else law.verdict
    both = dict.fromkeys((*law.reasons, *by_blocks.reasons))  # that k is too small may be said by both
    return Decision(HypothesisName(verdict), None, tuple(both))


def _by_blocks(blocks: tuple[Block, ...], hops: int) -> Decision:
    """The verdict that readings of the blocks allow."""
    courses = {name: _course(one, blocks, hops) for name, one in (exact() | claims()).items()}
    standing = {name for name, (course, _) in courses.items() if course is not None}
    found = _between(blocks, standing, hops)
    return replace(found, reasons=(*_told(courses, standing), *_surplus(blocks), *found.reasons))


def _between(blocks: tuple[Block, ...], standing: set[str], hops: int) -> Decision:
    """Which of the hypotheses that stand is the verdict, if one is; and if not, why not."""
    if why := too_few_hops(hops):
        return Decision("undetermined", None, (why,))
    names = [name for name in claims() if name in standing]
    if not names:
        return Decision("mixed", None, ())
    if len(names) > 1:
        both = "both" if len(names) == 2 else "all"
        why = f"{' and '.join(names).capitalize()} {both} stand: no block tells them apart."
        return Decision("undetermined", None, (why,))
    (name,) = names
    rivals = (rival for other, rival in claims().items() if other != name)
    if unclear := next((rival.name for rival in rivals if not _supported(blocks, hops, rival)), None):
        why = f"No block between the first look-up and the last clearly stands for what {name} says and {unclear} does not."
        return Decision("undetermined", None, (why,))
    forms = [form.name for form in claims()[name].forms if form.form_of and form.name in standing]
    return Decision(HypothesisName(name), forms[0] if len(forms) == 1 else None, ())


Course = tuple[list[int] | None, str]
"""R(0), R(1), … of a hypothesis that stands, None of one that fails; and why."""


def _course(hypothesis: Hypothesis, blocks: tuple[Block, ...], hops: int) -> Course:
    """R(0), R(1), … by the hypothesis's recursion through what every block allows, if there is such a course."""
    name = hypothesis.name.capitalize()
    courses: list[list[int]] = [[]]
    for block in blocks:
        longer = []
        objections: list[str] = []
        short: list[int] = []
        for course in courses:
            for r in hypothesis.grows(course[-1], hops) if course else hypothesis.holds(0):
                if block is blocks[-1] and r < hops:
                    short.append(r)
                elif objection := block.objection(r):
                    objections.append(objection)
                else:
                    longer.append([*course, r])
        if not longer:
            reached = f"{min(short)} to {max(short)}" if len({*short}) > 1 else str(*{*short})
            objections += [f"it would have resolved {reached} of {hops} hops, and the model answers"] if short else []
            return None, f"{name} fails at block {block.layer}: {objections[0]}."
        courses = longer
    return courses[0], f"{name} stands: {', '.join(map(str, courses[0]))}."


def _told(courses: Mapping[str, Course], standing: set[str]) -> list[str]:
    """What became of every hypothesis; of a union of forms only where none of them stands by itself."""
    unions = {one.form_of for name, one in exact().items() if name in standing}
    return [why for name, (_, why) in courses.items() if name not in unions]


def _surplus(blocks: tuple[Block, ...]) -> list[str]:
    """What can be read beyond what a block stands for."""
    more = {block.layer: [j for j in sorted(block.held) if j > r] for block in blocks if (r := block.stands_for) is not None}
    told = [f"block {layer} also hop {', '.join(map(str, js))}" for layer, js in more.items() if js]
    return [f"Readable beyond what a block stands for: {'; '.join(told)}."] if told else []


def _supported(blocks: tuple[Block, ...], hops: int, against: Hypothesis) -> bool:
    """Whether a block after the first look-up, before the last, clearly stands for some hops, and so excludes the other
    hypothesis; or, where that is too slow for the model's depth, leaves it excluded."""
    clear = [block for block in blocks[2:-1] if block.stands_for is not None]
    too_slow = against.holds(blocks[-1].layer, hops)[-1] < hops
    return any(too_slow or block.stands_for not in against.holds(block.layer, hops) for block in clear)
