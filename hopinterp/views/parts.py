"""What a report says of one k, by a verdict with all its evidence or by a program alone."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import xarray as xr

from hopinterp.decompile.records import Decompiled, percent
from hopinterp.errors import HopInterpError
from hopinterp.evidence.kinds import KINDS, called
from hopinterp.judgement.readings import Control
from hopinterp.judgement.records import Growth, Row, Verdict, hops_text
from hopinterp.theory.hypotheses import HYPOTHESES, claims, exact, resolved
from hopinterp.views.pictures import Picture, pictures
from hopinterp.views.plates import Plate, program_plates
from hopinterp.views.settings import Setting, named_settings, number
from hopinterp.views.style import INKS
from hopinterp.views.verdicts import ink


@dataclass(frozen=True)
class Routes:
    """Where each head looks, as a table: over the columns, and a row a block; of a cell also whether its head carries the
    answer."""

    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[tuple[str, bool]]]]


@dataclass(frozen=True)
class Part:
    """What the page says about one k."""

    hops: int
    verdict: str
    form: str | None
    ink: str
    words: str
    headline: str
    error: str
    program: Sequence[str]
    explained: bool
    routes: Routes | None
    listing: str
    tree: Sequence[Picture]
    reasons: Sequence[str]
    rows: Sequence[Row]
    grows: bool
    seen: Mapping[str, str]
    plates: Sequence[Picture]
    controls: Sequence[tuple[str, str, str]]
    agreement: Sequence[tuple[str, str]]
    settings: Mapping[str, Sequence[Setting]]


def part(one: Verdict | Decompiled, sharp: bool = True) -> Part:
    """What a page says of one k.

    Args:
        sharp: with figures as vector graphics.
    """
    return _program_part(one, sharp) if isinstance(one, Decompiled) else _verdict_part(one, sharp)


def _program_part(program: Decompiled, sharp: bool) -> Part:
    """By the program alone: whether it explains the model, and what it is."""
    layers, own = len(program.reach), program.error["own"]
    theory = [(f"theory: {name}", tuple(map(str, resolved(name, program.hops, layers)))) for name in exact()]
    controls = ((name.replace("_", " "), error) for name, error in program.controls.means().items())
    measured = "not measurable" if own != own else f"the model itself {percent(own)}"
    return Part(
        hops=program.hops,
        verdict="explained" if program.explained else "not explained",
        form=None,
        ink=INKS[2 if program.explained else 5],
        words=program.reading.splitlines()[-1],
        headline=program.headline,
        error=percent(own),
        program=_reading(program),
        explained=program.explained,
        routes=_routes(program),
        listing=_listing(program),
        tree=pictures(lambda: program_plates(program), sharp),
        reasons=[],
        rows=[("reaches (program)", tuple(program.reach_words)), *theory],
        grows=False,
        seen={"program": ", ".join(program.reach_words), "transplant": "", "probe": ""},
        plates=[],
        controls=[(f"routes {words}", "undefined" if e != e else f"{percent(e)} wrong", measured) for words, e in controls],
        agreement=[],
        settings=named_settings(program),
    )


def _verdict_part(verdict: Verdict, sharp: bool) -> Part:
    program = verdict.program
    return Part(
        hops=verdict.hops,
        verdict=verdict.verdict,
        form=verdict.form,
        ink=ink(verdict.verdict),
        words=_words(verdict),
        headline=verdict.headline,
        error=interval_text(verdict.error),
        program=[] if program is None else _reading(program),
        explained=program is not None and program.explained,
        routes=None if program is None else _routes(program),
        listing=_listing(program),
        tree=pictures(lambda: program_plates(program), sharp),
        reasons=[line for line in (*verdict.reasons, verdict.foretold_text, verdict.disagreements_text) if line],
        rows=_rows(verdict),
        grows=bool(verdict.growth),
        seen={kind: _seen(verdict, kind) for kind in ("program", "transplant", "probe")},
        plates=pictures(lambda: _plates(verdict), sharp),
        controls=[_control(control) for control in verdict.controls.values()],
        agreement=[(_pair(pair), f"{count.agree} of {count.of} blocks") for pair, count in verdict.agreement.items()],
        settings=named_settings(verdict),
    )


def _reading(program: Decompiled) -> list[str]:
    """What is said of a program, without what its tree says already."""
    return program.reading.splitlines()[1 if program.derivations else 0 :]


def _routes(program: Decompiled) -> Routes:
    kept = {(node.layer, node.head) for node in program.tree.nodes}
    rows = [
        (f"block {layer}", [(str(route), (layer, head) in kept) for head, route in enumerate(block)])
        for layer, block in enumerate(program.routes)
    ]
    return Routes(program.columns[1:], rows)


def _listing(program: Decompiled | None) -> str:
    """The program as text; nothing where there is none to be written."""
    try:
        return "" if program is None else str(program.program)
    except HopInterpError:
        return ""


def _words(verdict: Verdict) -> str:
    """The verdict as a sentence."""
    known = ", ".join(claims())
    if verdict.verdict == "mixed":
        return f"The evidence fits none of the hypotheses ({known})."
    if verdict.verdict == "beyond":
        return "Some block reaches farther than any law that is known here allows."
    if verdict.verdict == "linear by two":
        return "The hops that a block resolves grow by two from block to block: no pointers are composed."
    if verdict.verdict == "undetermined":
        return f"What was measured does not tell the hypotheses apart ({known})."
    form = f": {HYPOTHESES[verdict.form].words} ({verdict.form})" if verdict.form else ""
    return f"{HYPOTHESES[verdict.verdict].words}{form}."


def _seen(verdict: Verdict, kind: str) -> str:
    """R block by block by one kind of evidence; nothing where it was not gathered."""
    found = verdict.resolved.get(kind, [])
    return "" if all(r is None for r in found) and kind not in verdict.evidence else hops_text(found)


def interval_text(error: Mapping[str, float] | xr.Dataset) -> str:
    """A rate in percent with its interval."""
    middle, low, high = (100 * float(error[name]) for name in ("error", "low", "high"))
    return f"{middle:.2f}% (95% interval {low:.2f} to {high:.2f}%)"


def _rows(verdict: Verdict) -> list[Row]:
    """The rows of every view, and growth: a label, then a cell a block."""
    layers = range(len(verdict.attended))
    grown = {(step.layers[1], step.by): _growth(step) for step in verdict.growth}
    kinds = {"program": "what it reaches"} | {name: kind.grows for name, kind in KINDS.items()}
    growing = {name: words for name, words in kinds.items() if any(step.by == name for step in verdict.growth)}
    growth = [(f"growth of {words}", tuple(grown.get((n, name), "") for n in layers)) for name, words in growing.items()]
    return [*verdict.rows, *growth]


def _growth(step: Growth) -> str:
    return f"×{step.figures}"


def _pair(agreement: str) -> str:
    """Two kinds of evidence in words."""
    words = {"program": "the program", **{kind.resolves: kind.words for kind in KINDS.values() if kind.resolves}}
    pairs = itertools.combinations(words.items(), 2)
    return next((f"{a} and {b}" for (one, a), (other, b) in pairs if f"{one}_{other}" == agreement), agreement)


def _control(control: Control) -> tuple[str, str, str]:
    figures = (f"{key.replace('_', ' ')} {number(value)}" for key, value in control.to_json().items() if key != "passed")
    outcome = {True: "passed", False: "FAILED", None: "not measurable"}[control.passed]
    return control.words, outcome, ", ".join(figures)


def _plates(verdict: Verdict) -> list[Plate]:
    """Of every kind of evidence that the verdict has."""
    drawn = [kind.figures for name, kind in KINDS.items() if kind.figures and name in verdict.evidence]
    return [plate for figures in drawn for plate in called(figures)(verdict.evidence, verdict.hops)]
