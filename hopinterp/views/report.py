"""A verdict and everything behind it as one HTML file that asks for nothing from anywhere else."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import jinja2
import xarray as xr
from markupsafe import Markup, escape

from hopinterp.dates import today
from hopinterp.decompile.records import Decompiled
from hopinterp.errors import HopInterpError
from hopinterp.evidence.kinds import KINDS, called
from hopinterp.files import check_file_target, write_file
from hopinterp.judgement.readings import Control
from hopinterp.judgement.records import Growth, Row, Survey, Verdict, growth_in_theory, hops_text
from hopinterp.models.card import Card, read_card
from hopinterp.models.places import find
from hopinterp.models.subject import ModelLike, Subject
from hopinterp.task import HopTask
from hopinterp.theory.hypotheses import HYPOTHESES, claims
from hopinterp.views import circuits, glossary
from hopinterp.views.circuits import Example
from hopinterp.views.pictures import Picture, pictures
from hopinterp.views.plates import Plate, error_plate, program_plates
from hopinterp.views.settings import Setting, named_settings, number
from hopinterp.views.style import SCHEMES
from hopinterp.views.verdicts import ink

_PACKAGES = ("hopinterp", "torch", "transformer-lens", "circuitsvis", "matplotlib")
_DIGITS = 12  # of a digest, enough to tell files apart


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
    routes: Routes | None
    listing: str
    tree: Sequence[Picture]
    reasons: Sequence[str]
    rows: Sequence[Row]
    seen: Mapping[str, str]
    plates: Sequence[Picture]
    controls: Sequence[tuple[str, str, str]]
    agreement: Sequence[tuple[str, str]]
    settings: Mapping[str, Sequence[Setting]]


def report(
    found: Verdict | Survey,
    name: str = "",
    model: ModelLike | None = None,
    task: HopTask | None = None,
    *,
    card: Card | None = None,
    command: str = "",
) -> str:
    """One self-contained HTML document: the verdict in words, the program, the evidence, the controls, the settings.

    Nothing in it comes from elsewhere, which its own content security policy enforces: figures are data URIs, in a light and
    a dark scheme, and the script of CircuitsVis, which draws the example, stands in the page, once. It says when it was
    made; under the same SOURCE_DATE_EPOCH the same result gives the same bytes.

    Args:
        found: what `verify` or `verify_all` returned. Of a survey, every k has a section that opens.
        name: of the model, for the title; by default the verdict's own.
        model, task: to show what the heads attend to in one sequence, drawn from the verdict's seed: a reader chooses block,
            head and find^j. Of a survey, at the largest k at which it does not fail. Without a model the page has no script
            of CircuitsVis.
        card: of the model's directory, which says how the model was made; read where `model` is a directory or a name.
        command: the command line that made the page, where one did.
    """
    made, many = today(), isinstance(found, Survey)
    verdicts = list(found.verdicts.values()) if isinstance(found, Survey) else [found]
    subject = None if model is None or task is None else Subject.asked(model, task)
    example = None if subject is None or task is None else _read_example(verdicts, subject, task)
    card = read_card(find(model)) if card is None and isinstance(model, str | Path) else card
    behaviour, name = verdicts[0].evidence["behaviour"], name or found.model or "this model"
    context = {
        "name": name,
        # with many k, vector graphics would make tens of megabytes
        "parts": [_part(verdict, sharp=not many) for verdict in verdicts],
        "many": many,
        "overview": found.reading.splitlines()[-1],
        "capacity": str(found.capacity),
        "unmeasured": found.unmeasured if isinstance(found, Survey) else {},
        "facts": [*_model_facts(verdicts[0], subject, card), *_page_facts(verdicts[0], command, made)],
        "task_words": glossary.task_words(),
        "terms": list(glossary.terms()),
        "chain": glossary.drawing(),
        "notes": [kind.explains for kind in KINDS.values() if kind.explains],
        "growth": growth_in_theory(),
        "errors": pictures(lambda: [error_plate(behaviour, name)])[0],
        "error_rows": [(int(k), _percent(behaviour.sel(hops=k))) for k in behaviour.hops.values],
        "versions": [(package, metadata.version(package)) for package in _PACKAGES],
        "example": None if example is None else _example(example, verdicts),
        "bundle": "" if example is None else circuits.bundled_script(),
        "ink": {"on": circuits.ON, "elsewhere": circuits.ELSEWHERE},
        "schemes": SCHEMES,
    }
    return _page().render(context)


def write_report(
    path: str | Path,
    found: Verdict | Survey,
    name: str = "",
    model: ModelLike | None = None,
    task: HopTask | None = None,
    *,
    card: Card | None = None,
    command: str = "",
) -> None:
    """Write the page, whole or not at all: see `report`. Raises HopInterpError as `check_writable` does, or where the disk
    refuses."""
    target = Path(path)
    check_writable(target)
    write_file(target, report(found, name, model, task, card=card, command=command).encode("utf-8"))


def check_writable(target: Path) -> None:
    """Raise HopInterpError if no page could be written here, or none could be dated: ask before the work, not after it."""
    today()
    if target.suffix not in (".html", ".htm"):
        raise HopInterpError(f"cannot write a report to {target.name!r}: the ending must be .html")
    check_file_target(target)


def _page() -> jinja2.Template:
    room = jinja2.PackageLoader("hopinterp", "views")
    house = jinja2.Environment(
        loader=room, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    house.filters["typeset"] = _typeset
    return house.get_template("report.html.j2")


def _typeset(text: str) -> Markup:
    """find^j, 2^ℓ, X_1, err_k and hop_k as print has them."""
    raised = re.sub(r"\^([\wℓ]+)", r"<sup>\1</sup>", str(escape(text)))
    return Markup(re.sub(r"\b(X|err|hop)_(\w+)", r"\1<sub>\2</sub>", raised))


# -- the model, and the page itself --------------------------------------------------------------------------------------


def _model_facts(verdict: Verdict, subject: Subject | None, card: Card | None) -> Iterator[tuple[str, str]]:
    """What was judged: sizes, task, where it is from."""
    sizes = card.spec if card is not None else None if subject is None else subject.config
    if sizes is not None:
        inside = "attention only" if sizes.attn_only else f"MLPs of {sizes.d_mlp:,}"
        norm = "no layer norm" if sizes.normalization_type is None else "layer norm"
        yield "Model", f"{sizes.n_layers} blocks of {sizes.n_heads} heads, width {sizes.d_model:,}, {inside}, {norm}"
    else:
        yield "Model", f"{len(verdict.attended)} blocks"
    if subject is not None and subject.plain is not None:
        yield "Parameters", f"{sum(p.numel() for p in subject.plain.parameters.values()):,}"
    task = verdict.task
    yield "Task", f"{task.n_letters} letters of an alphabet of {task.alphabet_size}, k up to {task.max_hops}"
    if card is not None:
        yield "Where from", str(card.made.get("how", "")) or "not said by its card"
        if command := card.made.get("command"):
            yield "Made by", str(command)
        yield "Weights", f"sha256 {card.sha256[:_DIGITS]}…"
    elif subject is not None:
        yield "Where from", f"given in Python as a {type(subject.model).__name__}"


def _page_facts(verdict: Verdict, command: str, made: datetime) -> Iterator[tuple[str, str]]:
    """How what the page shows was had."""
    if command:
        yield "Command", command
    shown, judged = metadata.version("hopinterp"), verdict.version
    yield "Version", f"hopinterp {judged}" if judged == shown else f"judged by hopinterp {judged}, shown by {shown}"
    yield "Date", f"{made:%Y-%m-%d %H:%M} UTC"
    names = {"seed": "Seed", "sequences": "Sequences"}
    yield from ((words, number(verdict.settings[key])) for key, words in names.items() if key in verdict.settings)


# -- what is said of one k ---------------------------------------------------------------------------------------------


def _part(verdict: Verdict, sharp: bool) -> Part:
    program = verdict.program
    return Part(
        hops=verdict.hops,
        verdict=verdict.verdict,
        form=verdict.form,
        ink=ink(verdict.verdict),
        words=_words(verdict),
        headline=verdict.headline,
        error=_percent(verdict.error),
        program=[] if program is None else _reading(program),
        routes=None if program is None else _routes(program),
        listing=_listing(verdict),
        tree=pictures(lambda: program_plates(program), sharp),
        reasons=[line for line in (*verdict.reasons, verdict.foretold_text, verdict.disagreements_text) if line],
        rows=_rows(verdict),
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


def _listing(verdict: Verdict) -> str:
    """The program as text; nothing where there is none to be written."""
    try:
        return "" if verdict.program is None else str(verdict.program.program)
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


def _percent(error: Mapping[str, float] | xr.Dataset) -> str:
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
