"""The registry of kinds of evidence: what is in it, and a kind of one's own from its measurement to the report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import pytest
import torch
import xarray as xr
from matplotlib.figure import Figure

import hopinterp as hi
from hopinterp import HopInterpError
from hopinterp.evidence.kinds import KINDS, Kind, called, register, registered
from hopinterp.judgement.readings import Control, Reading
from hopinterp.judgement.records import load_verdict
from hopinterp.judgement.verdict import judge
from hopinterp.models.subject import Subject
from hopinterp.theory.construction import Construction
from hopinterp.views.plates import Plate
from hopinterp.views.report import report
from hopinterp.views.statements import judged_table

# -- a kind of evidence in full: the error without a block's attention ----------------------------------------------------


def without_attention(subject: Subject, task: hi.HopTask, hops: int, sequences: int, seed: int) -> xr.Dataset:
    """err_k with each block's attention output put to zero."""
    batch = task.sample(sequences, hops=hops, seed=seed, device=subject.device)
    errors = []
    for layer in subject.layers():
        with subject.hooks([(f"blocks.{layer}.hook_attn_out", lambda out, **_: torch.zeros_like(out))]) as run:
            wrong = run(batch.tokens).argmax(-1) != batch.labels
        errors.append(float(wrong[batch.scored].double().mean()))
    return xr.Dataset({"error": ("layer", errors)}, {"layer": subject.layers()}, {"needed": 0.5})


@dataclass(frozen=True)
class Without(Reading):
    """The error without one block's attention."""

    error: float

    def cells(self) -> Mapping[str, str]:
        return {"error without its attention": f"{100 * self.error:.0f}%"}

    def objection(self, r: int) -> str:
        return "nothing is lost without it (attention)" if r and not self.error else ""


def read(found: xr.Dataset, layer: int, hops: int) -> Without:
    assert hops == 4
    return Without(float(found.error.sel(layer=layer)))


def controls(found: xr.Dataset, hops: int) -> list[Control]:
    assert hops == 4
    most = float(found.error.max())
    return [Control("some_block", "Some block is needed", most > found.attrs["needed"], "largest_error", most)]


def plates(evidence: Mapping[str, xr.Dataset], hops: int) -> Iterator[Plate]:
    figure = Figure()
    figure.subplots().bar(evidence["without"].layer, evidence["without"].error)
    yield Plate("Which block is needed", figure, f"Without a block's attention k = {hops} is lost.", "Bars: err_k.")


WITHOUT = Kind("without", without_attention, "removal", read=read, controls=controls, figures=plates, explains="By removal.")


@pytest.fixture(scope="module")
def made():
    task = hi.HopTask(20, 4, 4)
    return Construction.of(task, 4, "successor").fused, task


@pytest.fixture(scope="module")
def found(made):
    model, task = made
    heard: list[str] = []
    with registered(WITHOUT):
        verdict = hi.verify(model, task, 4, sequences=20, report=lambda now: heard.append(now.what))
    assert "removal" in heard
    return verdict


def test_it_is_gathered_and_read(found):
    assert list(found.evidence)[-1] == "without"
    label, cells = found.table[-1]
    assert label == "error without its attention"
    assert [float(cell.rstrip("%")) > 40 for cell in cells] == [True] * 4
    assert found.to_json()["table"][label] == list(cells)
    assert label in str(found)
    assert label in found._repr_html_()
    assert [row for row in judged_table(found).columns[0].cells if row == label] == [label]
    assert found.verdict == "doubling"


def test_its_controls_count(found):
    assert found.controls["some_block"].passed is True
    assert "All 6 controls passed." in found.reading
    broken = found.evidence["without"].assign_attrs(needed=2.0)
    with registered(WITHOUT):
        doubtful = judge({**found.evidence, "without": broken}, 4)
    assert doubtful.verdict == "undetermined"
    assert doubtful.reasons[-1] == "It would be doubling, but a control failed: some_block."


def test_it_may_object(found):
    nothing = found.evidence["without"].copy(deep=True)
    nothing["error"][2] = 0
    with registered(WITHOUT):
        objected = judge({**found.evidence, "without": nothing}, 4)
    assert objected.verdict == "mixed"
    assert "Successor fails at block 2: nothing is lost without it (attention)." in objected.reasons


def test_it_is_in_the_report(found):
    with registered(WITHOUT):
        page = report(found, "m")
    assert "error without its attention" in page
    assert "Without a block&#39;s attention k = 4 is lost." in page
    assert "Some block is needed" in page
    assert "By removal." in page
    assert page.count("<img") == report(found, "m").count("<img") + 2  # by day and by night; forgotten, it is drawn no more


def test_it_is_saved_and_loaded(found, tmp_path):
    found.save(tmp_path / "v")
    again = load_verdict(tmp_path / "v")
    assert again.evidence["without"].identical(found.evidence["without"])
    assert str(again) == str(found)


def test_evidence_without_it_can_still_be_judged(found):
    with registered(WITHOUT):
        judged = judge({kind: one for kind, one in found.evidence.items() if kind != "without"}, 4)
    assert judged.verdict == "doubling"


# -- the registry ----------------------------------------------------------------------------------------------------------


def test_a_name_is_taken_once():
    with pytest.raises(HopInterpError, match="a kind of evidence 'probe' already"):
        register(Kind("probe", without_attention, "…"))
    with registered(WITHOUT), pytest.raises(HopInterpError, match="'without' already"):
        register(WITHOUT)
    assert "without" not in KINDS


def test_what_stands_above_is_found_by_name():
    for kind in KINDS.values():
        for named in filter(None, (kind.read, kind.controls, kind.figures)):
            assert callable(called(named))
    assert called(read) is read
