"""A verdict and everything behind it as one HTML file that asks for nothing from anywhere else."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any, TypeAlias

import jinja2
import xarray as xr
from markupsafe import Markup, escape

from hopinterp.dates import today
from hopinterp.decompile.decompilation import Decompilation
from hopinterp.decompile.records import Decompiled, percent
from hopinterp.errors import HopInterpError
from hopinterp.evidence.kinds import KINDS
from hopinterp.files import check_file_target, write_file
from hopinterp.judgement.records import Verdict, growth_in_theory
from hopinterp.judgement.surveys import Survey
from hopinterp.models.card import Card, read_card
from hopinterp.models.places import find
from hopinterp.models.subject import ModelLike, Subject
from hopinterp.task import HopTask
from hopinterp.views import circuits, glossary
from hopinterp.views.circuits import Example
from hopinterp.views.parts import interval_text, part
from hopinterp.views.pictures import pictures
from hopinterp.views.plates import error_plate, hop_plate
from hopinterp.views.settings import number
from hopinterp.views.style import SCHEMES

_PACKAGES = ("hopinterp", "torch", "transformer-lens", "circuitsvis", "matplotlib")
_DIGITS = 12  # of a digest, enough to tell files apart

Judged: TypeAlias = Verdict | Survey | Decompiled | Decompilation
"""What a page can be made of: the answer at one k or at several, with all evidence or by the program alone."""


def report(
    found: Judged,
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
        found: what `verify`, `verify_all` or `decompile` returned. Of several k, every one has a section that opens.
        name: of the model, for the title; by default the verdict's own.
        model, task: to show what the heads attend to in one sequence, drawn from the verdict's seed: a reader chooses block,
            head and find^j. Of a survey, at the largest k at which it does not fail. Without a model the page has no script
            of CircuitsVis.
        card: of the model's directory, which says how the model was made; read where `model` is a directory or a name.
        command: the command line that made the page, where one did.
    """
    made, many = today(), isinstance(found, Survey | Decompilation)
    asked = _by_k(found)
    subject = None if model is None or task is None else Subject.asked(model, task)
    example = None if subject is None or task is None or not asked else _read_example(asked, subject, task)
    card = read_card(find(model)) if card is None and isinstance(model, str | Path) else card
    name = name or found.model or "this model"
    behaviour = next((one.evidence["behaviour"] for one in asked if isinstance(one, Verdict)), None)
    context = {
        "name": name,
        # with many k, vector graphics would make tens of megabytes
        "parts": [part(one, sharp=not many) for one in asked],
        "many": many,
        "judged": isinstance(found, Verdict | Survey),
        "overview": found.reading.splitlines()[-1],
        "capacity": str(found.capacity) if isinstance(found, Verdict | Survey) else "",
        "unmeasured": _unmeasured(found),
        "table": pictures(lambda: [hop_plate(found)])[0] if isinstance(found, Decompilation) and found.by_hops else None,
        "facts": [*_model_facts(asked[0], subject, card), *_page_facts(asked[0], command, made)] if asked else [],
        "task_words": glossary.task_words(),
        "terms": list(glossary.terms()),
        "chain": glossary.drawing(),
        "notes": [] if behaviour is None else [kind.explains for kind in KINDS.values() if kind.explains],
        "growth": growth_in_theory(),
        **_errors(behaviour, name),
        "versions": [(package, metadata.version(package)) for package in _PACKAGES],
        "example": None if example is None else _example(example, asked),
        "bundle": "" if example is None else circuits.bundled_script(),
        "ink": {"on": circuits.ON, "elsewhere": circuits.ELSEWHERE},
        "schemes": SCHEMES,
    }
    return _page().render(context)


def _by_k(found: Judged) -> list[Verdict | Decompiled]:
    """What is said of each k."""
    if isinstance(found, Survey):
        return list(found.verdicts.values())
    return list(found.by_hops.values()) if isinstance(found, Decompilation) else [found]


def _unmeasured(found: Judged) -> Mapping[int, str]:
    """Of which k nothing is said, and why."""
    if isinstance(found, Survey):
        return found.unmeasured
    failed = found.unsolved.items() if isinstance(found, Decompilation) else ()
    return {k: f"the model fails there: {percent(error)} of its answers are wrong" for k, error in failed}


def _errors(behaviour: xr.Dataset | None, name: str) -> dict[str, Any]:
    """The figure and the table of err_k; none where it was not measured."""
    if behaviour is None:
        return {"errors": None, "error_rows": []}
    rows = [(int(k), interval_text(behaviour.sel(hops=k))) for k in behaviour.hops.values]
    return {"errors": pictures(lambda: [error_plate(behaviour, name)])[0], "error_rows": rows}


def write_report(
    path: str | Path,
    found: Judged,
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


def _model_facts(one: Verdict | Decompiled, subject: Subject | None, card: Card | None) -> Iterator[tuple[str, str]]:
    """What was judged: sizes, task, where it is from."""
    sizes = card.spec if card is not None else None if subject is None else subject.config
    if sizes is not None:
        inside = "attention only" if sizes.attn_only else f"MLPs of {sizes.d_mlp:,}"
        norm = "no layer norm" if sizes.normalization_type is None else "layer norm"
        yield "Model", f"{sizes.n_layers} blocks of {sizes.n_heads} heads, width {sizes.d_model:,}, {inside}, {norm}"
    else:
        yield "Model", f"{len(one.reach if isinstance(one, Decompiled) else one.attended)} blocks"
    if subject is not None and subject.plain is not None:
        yield "Parameters", f"{sum(p.numel() for p in subject.plain.parameters.values()):,}"
    task = one.task
    yield "Task", f"{task.n_letters} letters of an alphabet of {task.alphabet_size}, k up to {task.max_hops}"
    if card is not None:
        yield "Where from", str(card.made.get("how", "")) or "not said by its card"
        if command := card.made.get("command"):
            yield "Made by", str(command)
        yield "Weights file", f"SHA-256 {card.sha256[:_DIGITS]}…"
    elif subject is not None:
        yield "Where from", f"given in Python as a {type(subject.model).__name__}"


def _page_facts(one: Verdict | Decompiled, command: str, made: datetime) -> Iterator[tuple[str, str]]:
    """How what the page shows was had."""
    if command:
        yield "Command", command
    shown, judged = metadata.version("hopinterp"), one.version
    yield "Version", f"hopinterp {judged}" if judged == shown else f"judged by hopinterp {judged}, shown by {shown}"
    yield "Date", f"{made:%Y-%m-%d %H:%M} UTC"
    names = {"seed": "Seed", "sequences": "Sequences"}
    drawn = {words: one.settings.get(key) for key, words in names.items()}
    yield from ((words, number(value)) for words, value in drawn.items() if isinstance(value, int))


# -- the example -------------------------------------------------------------------------------------------


def _read_example(asked: Sequence[Verdict | Decompiled], subject: Subject, task: HopTask) -> Example:
    fine = [one for one in asked if isinstance(one, Decompiled) or one.verdict != "none"] or asked
    shown = max(fine, key=lambda one: one.hops)
    batch = task.sample(1, hops=shown.hops, seed=shown.settings.get("seed", 0), device=subject.device)
    return circuits.read_example(subject, batch)


def _attended(one: Verdict | Decompiled) -> list[list[int]]:
    """The j of the find^j that some head of each block looks at."""
    if isinstance(one, Verdict):
        return one.attended
    return [sorted({part.hop for route in block for part in route.parts if part.hop}) for block in one.routes]


def _example(example: Example, asked: Sequence[Verdict | Decompiled]) -> dict[str, Any]:
    """What the page's own script reads, and the chain of the last position in words."""
    attended = next((_attended(one) for one in asked if one.hops == example.hops), [])
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
