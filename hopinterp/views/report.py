"""A verdict and everything behind it as one HTML file that asks for nothing from anywhere else."""

from __future__ import annotations

import base64
import io
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import jinja2
import matplotlib as mpl
import xarray as xr
from matplotlib.figure import Figure
from PIL import Image

from hopinterp.errors import HopInterpError
from hopinterp.evidence.kinds import KINDS, called
from hopinterp.files import check_file_target, write_file
from hopinterp.judgement.readings import Control
from hopinterp.judgement.records import Growth, Row, Survey, Verdict, growth_in_theory, hops_text
from hopinterp.models.subject import ModelLike, Subject
from hopinterp.task import HopTask
from hopinterp.theory.hypotheses import HYPOTHESES, claims
from hopinterp.views import circuits
from hopinterp.views.circuits import Example
from hopinterp.views.plates import Plate, error_plate, program_plates
from hopinterp.views.verdicts import ink

_PACKAGES = ("hopinterp", "torch", "transformer-lens", "circuitsvis", "matplotlib")


@dataclass(frozen=True)
class Picture:
    """A plate as the page shows it.

    Attributes:
        source: a data URI.
        alt: what it shows, in words.
        caption: how to read it.
        width: in CSS pixels, at which its text has the size of the page's.
    """

    title: str
    source: str
    alt: str
    caption: str
    width: int


@dataclass(frozen=True)
class Part:
    """What the page says about one k."""

    hops: int
    verdict: str
    form: str | None
    ink: str
    words: str
    error: str
    program: Sequence[str]
    tree: Sequence[Picture]
    reasons: Sequence[str]
    rows: Sequence[Row]
    seen: Mapping[str, str]
    plates: Sequence[Picture]
    controls: Sequence[tuple[str, str, str]]
    agreement: Sequence[tuple[str, str]]
    settings: Sequence[tuple[str, str]]


def report(
    found: Verdict | Survey,
    name: str = "",
    model: ModelLike | None = None,
    task: HopTask | None = None,
) -> str:
    """One self-contained HTML document: the verdict in words, the table, the figures, the controls, the settings.

    Nothing in it comes from elsewhere, which its own content security policy enforces: figures are data URIs, and the
    script of CircuitsVis, which draws the example, stands in the page, once.

    Args:
        found: what `verify` or `verify_all` returned. Of a survey, every k has a section that opens.
        name: of the model, for the title; by default the verdict's own.
        model, task: to show what the heads attend to in one sequence, drawn from the verdict's seed: a reader chooses block,
            head and find^j. Of a survey, at the largest k at which it does not fail. Without a model the page has no script
            of CircuitsVis.
    """
    many = isinstance(found, Survey)
    verdicts = list(found.verdicts.values()) if isinstance(found, Survey) else [found]
    example = None if model is None or task is None else _read_example(verdicts, Subject.asked(model, task), task)
    behaviour, name = verdicts[0].evidence["behaviour"], name or found.model or "this model"
    context = {
        "name": name,
        # with many k, vector graphics would make tens of megabytes
        "parts": [_part(verdict, sharp=not many) for verdict in verdicts],
        "many": many,
        "capacity": str(found.capacity),
        "notes": [kind.explains for kind in KINDS.values() if kind.explains],
        "growth": growth_in_theory(),
        "errors": _picture(error_plate(behaviour, name), sharp=True),
        "error_rows": [(int(k), _percent(behaviour.sel(hops=k))) for k in behaviour.hops.values],
        "versions": [(package, metadata.version(package)) for package in _PACKAGES],
        "example": None if example is None else _example(example, verdicts),
        "bundle": "" if example is None else circuits.bundled_script(),
        "ink": {"on": circuits.ON, "elsewhere": circuits.ELSEWHERE},
    }
    return _page().render(context)


def write_report(
    path: str | Path,
    found: Verdict | Survey,
    name: str = "",
    model: ModelLike | None = None,
    task: HopTask | None = None,
) -> None:
    """Write the page, whole or not at all. Raises HopInterpError as `check_writable` does, or where the disk refuses."""
    target = Path(path)
    check_writable(target)
    write_file(target, report(found, name, model, task).encode("utf-8"))


def check_writable(target: Path) -> None:
    """Raise HopInterpError if no page could be written here: ask before the work, not after it."""
    if target.suffix not in (".html", ".htm"):
        raise HopInterpError(f"cannot write a report to {target.name!r}: the ending must be .html")
    check_file_target(target)


def _page() -> jinja2.Template:
    room = jinja2.PackageLoader("hopinterp", "views")
    house = jinja2.Environment(
        loader=room, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    return house.get_template("report.html.j2")


# -- what is said of one k ---------------------------------------------------------------------------------------------


def _part(verdict: Verdict, sharp: bool) -> Part:
    settings = {**verdict.settings, **_attributes(verdict.evidence)}
    return Part(
        verdict.hops,
        verdict.verdict,
        verdict.form,
        ink(verdict.verdict),
        _words(verdict),
        _percent(verdict.error),
        [] if verdict.program is None else verdict.program.reading.splitlines(),
        [_picture(plate, sharp) for plate in program_plates(verdict.program)],
        [line for line in (*verdict.reasons, verdict.foretold_text, verdict.disagreements_text) if line],
        _rows(verdict),
        {kind: hops_text(verdict.resolved.get(kind, [])) or "–" for kind in ("program", "transplant", "probe")},
        [_picture(plate, sharp) for plate in _plates(verdict)],
        [_control(control) for control in verdict.controls.values()],
        [(_pair(pair), f"{count.agree} of {count.of} blocks") for pair, count in verdict.agreement.items()],
        [(str(key), _number(value)) for key, value in settings.items()],
    )


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


def _percent(error: Mapping[str, float] | xr.Dataset) -> str:
    middle, low, high = (100 * float(error[name]) for name in ("error", "low", "high"))
    return f"{middle:.2f}% (95% interval {low:.2f} to {high:.2f}%)"


def _attributes(evidence: Mapping[str, xr.Dataset]) -> dict[str, Any]:
    return {f"{kind}: {key}": value for kind, one in evidence.items() for key, value in one.attrs.items()}


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
    figures = (f"{key.replace('_', ' ')} {_number(value)}" for key, value in control.to_json().items() if key != "passed")
    outcome = {True: "passed", False: "FAILED", None: "not measurable"}[control.passed]
    return control.words, outcome, ", ".join(figures)


def _number(value: Any) -> str:
    if isinstance(value, float):
        return "undefined" if value != value else f"{value:.4g}"
    return str(value)


# -- figures -----------------------------------------------------------------------------------------------------------


def _plates(verdict: Verdict) -> list[Plate]:
    """Of every kind of evidence that the verdict has."""
    drawn = [kind.figures for name, kind in KINDS.items() if kind.figures and name in verdict.evidence]
    return [plate for figures in drawn for plate in called(figures)(verdict.evidence, verdict.hops)]


def _picture(plate: Plate, sharp: bool) -> Picture:
    width = round(plate.figure.get_figwidth() * 110)
    source = _vector(plate.figure) if sharp else _pixels(plate.figure)
    return Picture(plate.title, source, plate.shows, plate.caption, width)


def _vector(figure: Figure) -> str:
    # glyphs as paths look alike on every machine; the salt and the missing date make the same figure the same bytes
    buffer = io.BytesIO()
    with mpl.rc_context({"svg.fonttype": "path", "svg.hashsalt": "hopinterp"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = re.sub(rb"\s*<!DOCTYPE.*?>", b"", buffer.getvalue(), flags=re.DOTALL)
    return f"data:image/svg+xml;base64,{base64.b64encode(text).decode()}"


def _pixels(figure: Figure) -> str:
    # WebP without loss: a third of a PNG's bytes, and lines keep their colours, which a palette mixes up
    buffer, small = io.BytesIO(), io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    Image.open(buffer).convert("RGB").save(small, format="webp", lossless=True)
    return f"data:image/webp;base64,{base64.b64encode(small.getvalue()).decode()}"


# -- the example -------------------------------------------------------------------------------------------


def _read_example(verdicts: Sequence[Verdict], subject: Subject, task: HopTask) -> Example:
    fine = [verdict for verdict in verdicts if verdict.verdict != "none"] or verdicts
    shown = max(fine, key=lambda verdict: verdict.hops)
    batch = task.sample(1, hops=shown.hops, seed=shown.settings.get("seed", 0), device=subject.device)
    return circuits.read_example(subject, batch)


def _example(example: Example, verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """What the page's own script reads, and the chain of the last position in words."""
    attended = next((v.attended for v in verdicts if v.hops == example.hops), [])
    data = {
        "labels": example.labels,
        "hops": example.hops,
        "layers": example.layers,
        "patterns": [[circuits.triangle(head) for head in heads] for heads in example.patterns],
        "find": example.find[: example.hops + 1].tolist(),
        "attended": [attended[layer] if layer < len(attended) else [] for layer in example.layers],
    }
    chain = [int(position) for position in example.find[: example.hops + 1, -1]]
    words = " → ".join([example.labels[position] for position in chain if position] + ["none"] * (0 in chain))
    return {
        "data": circuits.script_json(data),
        "hops": example.hops,
        "layers": example.layers,
        "letters": " ".join(example.labels),
        "chain": words,
    }
