"""What a verdict is: typed, printed, shown in a notebook, saved and loaded."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import xarray as xr

from hopinterp.decompile.decompilation import Decompilation, load_decompiled
from hopinterp.decompile.interventions import Rate
from hopinterp.decompile.kept import check_shown, reading_record, unpacked, write_record
from hopinterp.decompile.records import Decompiled, found_files
from hopinterp.decompile.transplants import BlockTransplants
from hopinterp.errors import HopInterpError
from hopinterp.evidence.reading.behaviour import SOLVED
from hopinterp.files import digest, read_digested, read_json
from hopinterp.judgement.laws import Pace
from hopinterp.judgement.readings import Control, Resolved
from hopinterp.judgement.rules import Answer
from hopinterp.models.subject import ModelLike
from hopinterp.shown import Row as Row
from hopinterp.shown import Shown, finite
from hopinterp.task import HopTask
from hopinterp.theory.hypotheses import NO_HYPOTHESES, claims, exact, named

_JUDGEMENT = "judgement.json"
FORMAT = 3


@dataclass(frozen=True)
class Growth:
    """R(ℓ+1)/R(ℓ) before k is reached, by one kind of evidence; the interval spans every R that its uncertainty allows."""

    layers: tuple[int, int]
    by: str
    ratio: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.by} {self.layers[0]}→{self.layers[1]}: {self.figures}"

    @property
    def figures(self) -> str:
        """The ratio; with its interval, where more than one R is possible."""
        ratio, low, high = (f"{value:.2g}" for value in (self.ratio, self.low, self.high))
        return ratio if low == high else f"{ratio} ({low} to {high})"


@dataclass(frozen=True)
class Agreement:
    """In how many of the blocks where two kinds of evidence both speak they agree on R(ℓ)."""

    agree: int
    of: int


@dataclass(frozen=True)
class Capacity:
    """How far a model gets, and how far the block before the last lets the last one get, as it runs at one k.

    Attributes:
        measured: the largest k such that every k from 1 up to it is solved; None where that was not measured.
        held: R of the block before the last by what it holds; None where there is no such block.
        stands_for: likewise by what it stands for; None also where that is not clear.
        reach: likewise by what the program makes known; None where there is no program.
        worst: as `measured`, on chains on which no letter repeats two hops apart, the theorem's worst case.
    """

    measured: int | None
    held: int | None
    stands_for: int | None
    reach: int | None = None
    worst: int | None = None

    def to_json(self) -> dict[str, int | None]:
        """`measured` and `worst`, what doubling allows by what is held (`predicted`), stood for (`predicted_transplant`) and
        reached (`predicted_program`), and what every other hypothesis allows by what is held (`predicted_sequential`)."""
        allowed = {f"predicted_{name}": _allowed(name, self.held) for name in claims() if name != "doubling"}
        by_use = {"predicted_transplant": _allowed("doubling", self.stands_for)}
        by_use |= {"predicted_program": _allowed("doubling", self.reach), "worst": self.worst}
        return {"measured": self.measured, "predicted": _allowed("doubling", self.held), **allowed, **by_use}

    def __str__(self) -> str:
        k, bar = self.measured, f"{SOLVED:.0%}"
        reached = "not measured" if k is None else f"every k ≤ {k} at {bar}" if k else f"k = 1 is not solved at {bar}"
        if self.worst is not None:
            reached += f" (k ≤ {self.worst} on chains without a repeat)"
        ways = {"the program": self.reach, "what the block before holds": self.held}
        ways |= {"what that stands for": self.stands_for}
        said = [f"by {how}, {_reach(r)}" for how, r in ways.items() if r is not None]
        allowed = f"; the last block could reach {'; '.join(said)}" if said else ""
        return f"Capacity: {reached}{allowed}."


def _reach(before: int) -> str:
    return ", ".join(f"{_allowed(name, before)} ({name})" for name in claims())


def _allowed(hypothesis: str, before: int | None) -> int | None:
    return None if before is None else named(hypothesis).grows(before)[-1]


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Verdict(Shown):
    """What a model does at one k, and why we say so. Lists have an entry a block.

    `print` it, let a notebook show it, `save` it; `load_verdict` reads it back.

    Attributes:
        model: its name; empty where nobody named it.
        task: what it was asked.
        version: of hopinterp, by which it was judged.
        hops: k.
        verdict: doubling, sequential (or another hypothesis), mixed, undetermined or none.
        form: lookup or successor, where the evidence tells them apart.
        reasons: sentences: which rule said so, and where.
        error: err_k with `low` and `high`.
        table: what each kind of evidence says of each block, in rows.
        resolved: R(ℓ) by `probe` (the largest held hop), by `transplant` (what the output stands for; None where unclear)
            and by `light_cone` (a pair: with find^j the next position needed, R is j, or j − 1 if the next block goes to the
            position after the one that the pointer names; None where unclear).
        attended: the j of find^j that some head attends to.
        theory: R(ℓ) of each exact hypothesis.
        growth: by each kind of evidence, over blocks strictly before k.
        controls: what would have refuted the method, and whether it did not.
        agreement: for each two kinds of evidence.
        capacity: how far the model gets, and how far its insides let it.
        settings: bars, seeds and numbers of sequences.
        pace: of doubling: "full" where the blocks reach what an exact form says, else "slack": depth is to spare.
        reach: R(ℓ) by the program, where that decided; empty where the other evidence did.
        disagreements: sentences: what other evidence says and the program denies, or the other way round.
        evidence: the datasets, by kind.
        program: what `decompile` found; None where there is no program to be had.
        foretold: how often what the program says of whole blocks' transplants comes true; None without a program.

    Raises:
        HopInterpError: `verdict` or `form` names a hypothesis that there is not.
    """

    model: str
    task: HopTask
    version: str
    hops: int
    verdict: Answer
    form: str | None
    reasons: tuple[str, ...]
    error: Mapping[str, float]
    table: tuple[Row, ...]
    resolved: Mapping[str, list[Resolved]]
    attended: list[list[int]]
    theory: Mapping[str, list[int]]
    growth: tuple[Growth, ...]
    controls: Mapping[str, Control]
    agreement: Mapping[str, Agreement]
    capacity: Capacity
    settings: Mapping[str, Any]
    pace: Pace | None = None
    reach: tuple[int, ...] = ()
    disagreements: tuple[str, ...] = ()
    evidence: Mapping[str, xr.Dataset] = field(default_factory=dict)
    program: Decompiled | None = None
    foretold: BlockTransplants | None = None

    def __post_init__(self) -> None:
        if self.verdict not in NO_HYPOTHESES:
            named(self.verdict)
        if self.form is not None:
            named(self.form)

    @property
    def decided_by(self) -> Literal["program", "blocks"]:
        """What the verdict rests on: the program, or the other evidence of the blocks."""
        return "program" if self.reach else "blocks"

    @property
    def rows(self) -> list[Row]:
        """What every view of a verdict shows: the evidence block by block, and below it each hypothesis."""
        return [*self.table, *((f"theory: {name}", tuple(map(str, r))) for name, r in self.theory.items())]

    @property
    def columns(self) -> list[str]:
        """Over `rows`."""
        return ["", *(f"block {layer}" for layer in range(len(self.attended)))]

    @property
    def headline(self) -> str:
        """The answer in one line: verdict, form, what the blocks reach, and what they could or, by theory, should."""
        form = f" ({self.form})" if self.form else ""
        start = f"{self.model or 'the model'}, k = {self.hops}: {self.verdict}{form}"
        if self.verdict == "none":
            return f"{start}. Its error is {100 * self.error['error']:.1f}%."
        if self.reach:
            most = ", ".join(str(2**layer - 1) for layer in range(len(self.reach)))
            paced = {"full": ", at full pace", "slack": ", with depth to spare"}
            reached = ", ".join(map(str, self.reach))
            return f"{start}{paced.get(self.pace or '', '')}. Blocks reach {reached} of at most {most} hops."
        return f"{start}. Blocks stand for {hops_text(self.resolved['transplant'])} hops; {self._theory_text()}."

    def _theory_text(self) -> str:
        told = self.form or self.verdict
        if told in self.theory:
            return f"theory {hops_text(self.theory[told])}"
        layers = range(len(self.attended))
        theory = (
            f"{name} {', '.join(_range_text(one.holds(layer, self.hops)) for layer in layers)}"
            for name, one in claims().items()
        )
        return f"theory: {'; '.join(theory)}"

    @property
    def reading(self) -> str:
        """The reasons, what disagrees, the capacity, the growth, the controls, and last the headline: a line each."""
        grown = f"Growth before k: {'; '.join(map(str, self.growth))}. {growth_in_theory()}" if self.growth else ""
        return "\n".join(
            filter(
                None,
                [
                    *self.reasons,
                    self.foretold_text,
                    self.disagreements_text,
                    str(self.capacity),
                    grown,
                    self._controls_text(),
                    self.headline,
                ],
            )
        )

    @property
    def foretold_text(self) -> str:
        """How often what the program says of whole blocks' transplants comes true; empty where nothing was measured."""
        if self.foretold is None or math.isnan(self.foretold.agreement.value):
            return ""
        rate, lift = self.foretold.agreement, self.foretold.lift
        said = f"What the program foretells of a block's transplant comes true in {_interval_text(rate)} where all its ways"
        beside = "" if math.isnan(lift.value) else f"; elsewhere {lift.value:+.0%} beside the best single letter"
        return f"{said} agree{beside}."

    @property
    def disagreements_text(self) -> str:
        """What disagrees with the program; empty where there is none."""
        if self.program is None:
            return ""
        if not self.disagreements:
            return "Nothing else that was measured disagrees with the program."
        return f"Disagreeing with the program: {'; '.join(self.disagreements)}."

    def _controls_text(self) -> str:
        outcomes = [control.passed for control in self.controls.values()]
        failed = [name for name, control in self.controls.items() if control.passed is False]
        if failed:
            return f"Controls failed: {', '.join(failed)}."
        if all(outcomes):
            return f"All {len(outcomes)} controls passed."
        return f"{outcomes.count(True)} controls passed; none failed."

    def to_json(self) -> dict[str, Any]:
        """All of it but the datasets, as JSON's own types; an undefined number is NaN."""
        names = ("verdict", "form", "hops", "error", "resolved", "attended", "theory")
        layers = range(len(self.attended))
        looks = {name: [sorted(one.attends(layer, self.hops)) for layer in layers] for name, one in exact().items()}
        values: dict[str, Any] = {name: getattr(self, name) for name in names}
        values["growth"] = [asdict(step) | {"layers": list(step.layers)} for step in self.growth]
        values["controls"] = {name: control.to_json() for name, control in self.controls.items()}
        values["agreement"] = {pair: asdict(count) for pair, count in self.agreement.items()}
        values |= {"capacity": self.capacity.to_json(), "theory_attended": looks, "reasons": list(self.reasons)}
        values |= {"settings": dict(self.settings), "table": {label: list(cells) for label, cells in self.table}}
        program = None if self.program is None else self.program.to_json()
        values |= {"pace": self.pace, "decided_by": self.decided_by, "disagreements": list(self.disagreements)}
        values |= {"program": program, "explained": None if self.program is None else self.program.explained}
        values["derivations"] = [] if program is None else program["derivations"]
        values["reach"] = list(self.reach) or ([] if program is None else program["reach"])
        values["foretold"] = None if self.foretold is None else self.foretold.to_json()
        return values | {"model": self.model, "task": asdict(self.task), "version": self.version}

    def save(self, directory: str | Path) -> None:
        """Write a directory, whole or not at all: judgement.json, a netCDF file for each kind of evidence, and the program
        as `Decompiled.save` writes it.

        Raises:
            HopInterpError: it exists, or cannot be written.
        """
        write_record(directory, self.files(), "a verdict")

    def files(self) -> dict[str, bytes]:
        """What `save` writes, by the files' names."""
        plain_fields = asdict(replace(self, evidence={}, program=None))
        evidence = {kind: bytes(found.to_netcdf()) for kind, found in self.evidence.items()}
        digests = {kind: digest(data) for kind, data in evidence.items()}
        kept = {"evidence": digests, "program": self.program is not None}
        text = json.dumps({"format": FORMAT, **finite(plain_fields), **kept}, indent=2, allow_nan=False)
        files = {_JUDGEMENT: text.encode() + b"\n", **{f"{kind}.nc": data for kind, data in evidence.items()}}
        if self.program is not None:
            files |= found_files({self.hops: self.program}, {"one": self.hops})
        return files


def load_verdict(directory: str | Path, model: ModelLike | None = None) -> Verdict:
    """What `Verdict.save` wrote, evidence and program included: judging these again gives the same verdict.

    Args:
        model: the model that was judged, so that its program can be run again.

    Raises:
        HopInterpError: no such directory, or one that holds no verdict.
    """
    source = Path(directory)
    with reading_record(source, "verdict"):
        given = read_json(source / _JUDGEMENT)
        if given.pop("format") != FORMAT:
            raise HopInterpError("it was saved by another version")
        evidence = {kind: _evidence(source, kind, sha256) for kind, sha256 in given.pop("evidence").items()}
        program = load_decompiled(source, model) if given.pop("program") else None
        assert not isinstance(program, Decompilation)
        verdict = Verdict(**_typed(given), evidence=evidence, program=program)
        check_shown(verdict)
        return verdict


def _evidence(source: Path, kind: str, sha256: str) -> xr.Dataset:
    return xr.load_dataset(io.BytesIO(read_digested(source / f"{kind}.nc", sha256, _JUDGEMENT)))


def _typed(given: dict[str, Any]) -> dict[str, Any]:
    """The fields of a verdict, its records made of what JSON kept of them."""
    values = given | {"task": HopTask(**given["task"])}
    values |= {name: tuple(given[name]) for name in ("reasons", "disagreements", "reach")}
    values["foretold"] = unpacked(BlockTransplants | None, given["foretold"])
    values["error"] = {name: _number(value) for name, value in given["error"].items()}
    values["table"] = tuple((label, tuple(cells)) for label, cells in given["table"])
    values["resolved"] = {
        kind: [tuple(r) if isinstance(r, list) else r for r in by_block] for kind, by_block in given["resolved"].items()
    }
    values["growth"] = tuple(Growth(**step | {"layers": tuple(step["layers"])}) for step in given["growth"])
    controls = given["controls"].items()
    values["controls"] = {name: Control(**one | {"value": _number(one["value"])}) for name, one in controls}
    values["agreement"] = {pair: Agreement(**count) for pair, count in given["agreement"].items()}
    return values | {"capacity": Capacity(**given["capacity"])}


def _number(value: float | None) -> float:
    return math.nan if value is None else value


# -- words ---------------------------------------------------------------------------------------------------------------


def hops_text(values: Iterable[Resolved]) -> str:
    """R(ℓ) block by block; "?" where the evidence does not single one out."""
    return ", ".join("?" if r is None else str(r) for r in values)


def growth_in_theory() -> str:
    """Between which ratios each hypothesis grows."""
    said = ("{} {:g} to {:g}".format(name, *one.ratios()) for name, one in claims().items())
    return f"In theory: {', '.join(said)}."


def _interval_text(rate: Rate) -> str:
    return f"{rate.value:.0%} ({100 * rate.low:.0f} to {100 * rate.high:.0f})"


def _range_text(r: range) -> str:
    return str(r[0]) if len(r) == 1 else f"{r[0]}–{r[-1]}"
