"""The statute book: which hypothesis the readings of all blocks allow.

What decides, block by block. *Transplants* say what a block's output stands for downstream: where they single out one r,
the hypothesis must say r. *Probes* say what can be read: hop r must not be surely absent; that more is held is reported, not
counted against a hypothesis, since what can be read need not be used. The *light cone* says what is still needed: no
find^j(i) with j < r may be. *Behaviour*: the last block must have resolved k. A hypothesis stands if some course R(0),
R(1), … that follows its recursion passes every block. Attention is reported, and does not vote.
"""

from __future__ import annotations

from collections.abc import Mapping

from hopinterp.judgement.readings import BlockReading
from hopinterp.theory.hypotheses import HYPOTHESES, Hypothesis

SOLVED = 0.05
"""A model solves the task at k where the interval of err_k lies below this: else nothing is claimed about its mechanism."""


def decide(blocks: tuple[BlockReading, ...], error: Mapping[str, float], hops: int) -> tuple[str, str | None, list[str]]:
    """Verdict, form and reasons, from every block's evidence and err_k with its interval (`error`, `low`, `high`)."""
    percent = f"err_{hops} is {100 * error['error']:.1f}% ({100 * error['low']:.1f} to {100 * error['high']:.1f})"
    if error["low"] > SOLVED:
        return "none", None, [f"{percent}, over {SOLVED:.0%}: no claim is made about its mechanism."]
    if not error["high"] <= SOLVED:  # NaN, where nothing could be scored, included
        return "undetermined", None, [f"{percent}: that does not tell whether it is under {SOLVED:.0%}."]
    reasons = [f"{percent}, under {SOLVED:.0%}: the model does the task at k = {hops}."]
    courses = {name: _course(Hypothesis(name), blocks, hops) for name in (*HYPOTHESES, "doubling")}
    standing = {name for name, (course, _) in courses.items() if course is not None}
    reasons += [why for name, (_, why) in courses.items() if name != "doubling" or not standing & {"lookup", "successor"}]
    reasons += _surplus(blocks)
    if hops < 4:
        return (
            "undetermined",
            None,
            [*reasons, "At k < 4 doubling and sequential are not told apart: 2 hops or 3 after block 2."],
        )
    if not standing:
        return "mixed", None, reasons
    if "doubling" in standing and "sequential" in standing:
        return "undetermined", None, [*reasons, "Doubling and sequential both stand: no block tells them apart."]
    name = "sequential" if "sequential" in standing else "doubling"
    against = "doubling" if name == "sequential" else "sequential"
    if not _supported(blocks, hops, against):
        why = f"No block between the first look-up and the last clearly stands for what {name} says and {against} does not."
        return "undetermined", None, [*reasons, why]
    forms = standing & {"lookup", "successor"}
    return name, forms.pop() if len(forms) == 1 else None, reasons


def _course(hypothesis: Hypothesis, blocks: tuple[BlockReading, ...], hops: int) -> tuple[list[int] | None, str]:
    """R(0), R(1), … by the hypothesis's recursion through what every block allows, if there is such a course; and why."""
    name = hypothesis.name
    courses: list[list[int]] = [[]]
    for block in blocks:
        longer = []
        objections: list[str] = []
        for course in courses:
            steps = hypothesis.grows(block.layer, course[-1], hops) if course else hypothesis.holds(0, hops)
            for r in steps:
                objection = _objection(block, r, hops, last=block is blocks[-1])
                (objections.append(objection) if objection else longer.append([*course, r]))
        if not longer:
            return None, f"{name.capitalize()} fails at block {block.layer}: {objections[0]}."
        courses = longer
    return courses[0], f"{name.capitalize()} stands: {', '.join(map(str, courses[0]))}."


def _objection(block: BlockReading, r: int, hops: int, last: bool) -> str:
    """Why a block cannot have resolved exactly r hops; empty if nothing says so."""
    if last and r < hops:
        return f"it would have resolved {r} of {hops} hops, and the model answers"
    if block.stands_for is not None and block.stands_for != r:
        return f"its output stands for {block.stands_for} hops done (transplants), not {r}"
    if r not in block.perhaps_held:
        return f"it surely does not hold hop {r} (probes)"
    if early := sorted(j for j in block.needed if j < r):
        return f"the answer still needs find^{early[0]}(i), before hop {r} (light cone)"
    return ""


def _surplus(blocks: tuple[BlockReading, ...]) -> list[str]:
    """What can be read beyond what a block stands for."""
    more = {
        block.layer: sorted(j for j in block.held if block.stands_for is not None and j > block.stands_for)
        for block in blocks
    }
    told = [f"block {layer} also hop {', '.join(map(str, js))}" for layer, js in more.items() if js]
    return [f"Readable beyond what a block stands for: {'; '.join(told)}."] if told else []


def _supported(blocks: tuple[BlockReading, ...], hops: int, against: str) -> bool:
    """Whether a block after the first look-up, before the last, clearly stands for some hops, and so excludes the other
    hypothesis; or, where that is too slow for the model's depth, leaves it excluded."""
    other = Hypothesis(against)
    clear = [block for block in blocks[2:-1] if block.stands_for is not None]
    too_slow = other.holds(blocks[-1].layer, hops)[-1] < hops
    return any(too_slow or block.stands_for not in other.holds(block.layer, hops) for block in clear)
