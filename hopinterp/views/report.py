"""The front page: a verdict and everything behind it as one HTML file that asks for nothing from anywhere else."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import matplotlib as mpl
import xarray as xr
from matplotlib.figure import Figure
from PIL import Image

from hopinterp.errors import HopInterpError
from hopinterp.judgement.readings import ATTENDED
from hopinterp.judgement.verdict import Survey, Verdict
from hopinterp.models.fused import FusedTransformer, device_of
from hopinterp.task import HopTask
from hopinterp.views import circuits, graph, plots, statements, tables
from hopinterp.views.circuits import Example

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

_METRIC = "probability"
_PACKAGES = ("hopinterp", "torch", "transformer-lens", "circuitsvis", "matplotlib")
_WORDS = {
    "doubling": "The hops that a block resolves about double from block to block, by pointer doubling",
    "sequential": "The model takes one hop a block",
    "mixed": "The model solves the task, but the evidence fits neither doubling nor one hop a block",
    "undetermined": "What was measured does not tell doubling from one hop a block",
    "none": "The model does not solve the task here, so nothing is claimed about its mechanism",
}
_FORMS = {
    "lookup": ": each block goes where its pointer points and takes the pointer that it finds there (lookup)",
    "successor": ": each block goes to the position after the one that its pointer names (successor)",
}
_CONTROLS = {
    "untrained_probe": "Probes of an untrained model of the same sizes hold nothing",
    "selectivity": "What is held is read better than labels drawn at random",
    "off_chain": "Patching a place off the chain does not matter",
    "untrained_transplant": "Blocks of an untrained model stand for nothing",
}
_AGREEMENTS = {
    "transplant_probe": "transplants and probes",
    "transplant_light_cone": "transplants and the light cone",
    "probe_light_cone": "probes and the light cone",
}


@dataclass(frozen=True)
class Plate:
    """A figure as the page shows it.

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
    words: str
    error: str
    reasons: Sequence[str]
    rows: Sequence[tuple[str, Sequence[str]]]
    seen: Mapping[str, str]
    plates: Sequence[Plate]
    controls: Sequence[tuple[str, str, str]]
    agreement: Sequence[tuple[str, str]]
    settings: Sequence[tuple[str, str]]


def report(
    found: Verdict | Survey,
    name: str,
    model: HookedTransformer | FusedTransformer | None = None,
    task: HopTask | None = None,
) -> str:
    """One self-contained HTML document: the verdict in words, the table, the figures, the controls, the settings.

    Nothing in it comes from elsewhere, which its own content security policy enforces: figures are data URIs, and the
    script of CircuitsVis, which draws the example, stands in the page, once.

    Args:
        found: what `verify` or `verify_all` returned. Of a survey, every k has a section that opens.
        name: of the model, for the title.
        model, task: to show what the heads attend to in one sequence, drawn from the verdict's seed: a reader chooses block,
            head and find^j. Of a survey, at the largest k that is solved. Without a model the page has no script of
            CircuitsVis.
    """
    many = isinstance(found, Survey)
    verdicts = list(found.verdicts.values()) if isinstance(found, Survey) else [found]
    example = None if model is None or task is None else _read_example(verdicts, model, task)
    behaviour = verdicts[0].evidence["behaviour"]
    context = {
        "name": name,
        # with many k, vector graphics would make tens of megabytes
        "parts": [_part(verdict, sharp=not many) for verdict in verdicts],
        "many": many,
        "capacity": statements.capacity_text(found.capacity),
        "errors": _errors(behaviour, name),
        "error_rows": [(int(k), _percent(behaviour.sel(k=k))) for k in behaviour.k.values],
        "versions": [(package, metadata.version(package)) for package in _PACKAGES],
        "example": None if example is None else _example(example, verdicts),
        "bundle": "" if example is None else circuits.bundled_script(),
        "ink": {"on": circuits.ON, "elsewhere": circuits.ELSEWHERE},
    }
    return _page().render(context)


def write_report(
    path: str | Path,
    found: Verdict | Survey,
    name: str,
    model: HookedTransformer | FusedTransformer | None = None,
    task: HopTask | None = None,
) -> None:
    """Write the page, whole or not at all. Raises HopInterpError as `check_writable` does, or where the disk refuses."""
    target = Path(path)
    check_writable(target)
    temporary = target.with_name(f".{target.name}.partial")
    try:
        temporary.write_text(report(found, name, model, task), encoding="utf-8")
        temporary.replace(target)
    except OSError as error:
        raise HopInterpError(f"cannot write {target} ({error.strerror})") from None
    finally:
        temporary.unlink(missing_ok=True)


def check_writable(target: Path) -> None:
    """Raise HopInterpError if no page could be written here: ask before the work, not after it."""
    if target.suffix not in (".html", ".htm"):
        raise HopInterpError(f"cannot write a report to {target.name!r}: the ending must be .html")
    if target.is_dir() or not target.resolve().parent.is_dir():
        raise HopInterpError(
            f"cannot write {target}: " + ("it is a directory" if target.is_dir() else f"no directory {target.parent}")
        )


def _page() -> jinja2.Template:
    room = jinja2.PackageLoader("hopinterp", "views")
    house = jinja2.Environment(
        loader=room, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    return house.get_template("report.html.j2")


# -- what is said of one k ---------------------------------------------------------------------------------------------


def _part(verdict: Verdict, sharp: bool) -> Part:
    form = _FORMS.get(verdict.form or "", "")
    settings = {**verdict.settings, **{f"{kind}: {key}": value for kind, key, value in _attributes(verdict.evidence)}}
    return Part(
        verdict.hops,
        verdict.verdict,
        verdict.form,
        f"{_WORDS[verdict.verdict]}{form}.",
        _percent(verdict.error),
        verdict.reasons,
        _rows(verdict),
        {kind: statements.hops_text(verdict.resolved[kind]) for kind in ("transplant", "probe")},
        [_plate(title, figure, alt, caption, sharp) for title, figure, alt, caption in _figures(verdict)],
        [_control(name, control) for name, control in verdict.controls.items()],
        [(_AGREEMENTS.get(name, name), f"{x['agree']} of {x['of']} blocks") for name, x in verdict.agreement.items()],
        [(str(key), _number(value)) for key, value in settings.items()],
    )


def _percent(error: Mapping[str, float] | xr.Dataset) -> str:
    middle, low, high = (100 * float(error[name]) for name in ("error", "low", "high"))
    return f"{middle:.2f}% (95% interval {low:.2f} to {high:.2f}%)"


def _attributes(evidence: Mapping[str, xr.Dataset]) -> Iterable[tuple[str, str, Any]]:
    for kind, one in evidence.items():
        for key, value in one.attrs.items():
            yield kind, key, value


def _rows(verdict: Verdict) -> list[tuple[str, list[str]]]:
    """The rows of `statements.table_rows`, what the output stands for it as, and growth: a label, then a cell a block."""
    stands, *others = statements.table_rows(verdict)
    families = _families(verdict.evidence.get("transplant"))
    layers = range(len(verdict.attended))
    growth = {(step["layers"][1], step["by"]): _growth(step) for step in verdict.growth}
    by = {"growth of what it stands for": "transplant", "growth of what it holds": "probe"}
    rows = [(label, [growth.get((layer, kind), "") for layer in layers]) for label, kind in by.items()]
    carried = [families.get(layer, "–") for layer in layers]
    return [stands, ("carried as", carried), *others, *(row for row in rows if any(row[1]))]


def _families(transplants: xr.Dataset | None) -> dict[int, str]:
    if transplants is None:
        return {}
    clear = transplants.sel(layer=transplants.best >= 0)
    return dict(zip(clear.layer.values.tolist(), clear.best_family.values.tolist(), strict=True))


def _growth(step: Mapping[str, Any]) -> str:
    return f"×{step['ratio']:.3g} ({step['low']:.3g}–{step['high']:.3g})"


def _control(name: str, control: Mapping[str, Any]) -> tuple[str, str, str]:
    figures = (f"{key.replace('_', ' ')} {_number(value)}" for key, value in control.items() if key != "passed")
    outcome = {True: "passed", False: "FAILED", None: "not measurable"}[control["passed"]]
    return _CONTROLS.get(name, name.replace("_", " ")), outcome, ", ".join(figures)


def _number(value: Any) -> str:
    if isinstance(value, float):
        return "undefined" if value != value else f"{value:.4g}"
    return str(value)


# -- figures -----------------------------------------------------------------------------------------------------------


def _figures(verdict: Verdict) -> Iterable[tuple[str, Figure, str, str]]:
    """Title, figure, what it shows, how to read it: of every kind of evidence that the verdict has."""
    found, k = verdict.evidence, verdict.hops
    attention, probes, cone, swaps = (found.get(kind) for kind in ("attention", "probe", "patch", "transplant"))
    if probes is not None:
        caption = "Held-out accuracy of linear probes for the letter of every hop. Boxed: held, well above every cheaper"
        caption += " explanation. Lines: R(ℓ) of each hypothesis."
        yield "What can be read off each block", plots.probe_staircase(probes), _shown(tables.probe_reading(probes)), caption
    if attention is not None:
        circuit = graph.circuit_graph(attention, k, cone=cone, probes=probes, transplants=swaps)
        caption = "A box is a head (block.head), its column the hop that it brings to i: where its cosine with find^j is at"
        caption += f" least {ATTENDED:g}. A dot: the answer at i hangs on the block's output there. Below, the constructed"
        caption += " models."
        reading = tables.attention_reading(attention.sel(k=k))
        yield "Which head moves which hop", circuit, reading, caption
        caption = "Mean cosine of each head's pattern with the 0/1 matrix of find^j (the paper's Figures 12 and 13, layers"
        caption += " counted from 0)."
        yield "Attention and find^j", plots.alignment_heatmap(attention, k), reading, caption
    if cone is not None:
        reading = _shown(tables.patch_reading(cone, _METRIC))
        caption = "How much the answer at i suffers when a block's output on the chain is another sequence's. Boxed: it"
        caption += f" matters, the interval lies above {cone.attrs['bar']:.2f}."
        yield "The light cone: what the answer still needs", plots.light_cone(cone, _METRIC), reading, caption
    if swaps is not None:
        reading = _shown(tables.transplant_reading(swaps))
        caption = "How often the answer, once a block's output at i is another sequence's, is what \"r hops done\" predicts."
        caption += " Ringed: what the block stands for."
        yield "What each block's output stands for", plots.iia_by_r(swaps), reading, caption


def _errors(found: xr.Dataset, name: str) -> Plate:
    """err_k of every k that was measured."""
    caption = "err_k, the share of answered positions whose answer is wrong (the paper's Figure 2, one depth)."
    return _plate("err_k", plots.error_curve(found), tables.errors_reading(found, name), caption, sharp=True)


def _shown(reading: str) -> str:
    """The last line of a reading, what was found, without what explains the terminal's table."""
    return reading.splitlines()[-1].partition(" In brackets")[0]


def _plate(title: str, figure: Figure, alt: str, caption: str, sharp: bool) -> Plate:
    width = round(figure.get_figwidth() * 110)
    return Plate(title, _vector(figure) if sharp else _pixels(figure), alt, caption, width)


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


def _read_example(verdicts: Sequence[Verdict], model: HookedTransformer | FusedTransformer, task: HopTask) -> Example:
    solved = [verdict for verdict in verdicts if verdict.verdict != "none"] or verdicts
    shown = max(solved, key=lambda verdict: verdict.hops)
    batch = task.sample(1, hops=shown.hops, seed=shown.settings.get("seed", 0), device=device_of(model))
    return circuits.read_example(model, batch)


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
