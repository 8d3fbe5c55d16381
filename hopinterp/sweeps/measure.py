"""What is measured of a trained cell, its errors and where asked its programs and verdicts, kept in its run directory."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from hopinterp.decompile.decompilation import Decompilation, unsolved
from hopinterp.decompile.decompiled import decompile
from hopinterp.decompile.records import Decompiled
from hopinterp.errors import HopInterpError
from hopinterp.evidence.reading.behaviour import evaluate
from hopinterp.files import write_directory
from hopinterp.judgement.records import Verdict
from hopinterp.judgement.surveys import Survey
from hopinterp.judgement.verdict import verify, verify_all
from hopinterp.models import card as cards
from hopinterp.models.places import MODEL
from hopinterp.models.subject import Subject
from hopinterp.progress import Report
from hopinterp.sweeps.cells import ASKED, MEASURED, PROGRAMS, RESULTS, VERDICTS
from hopinterp.sweeps.grid import After
from hopinterp.task import HopTask


def measure(run: Path, after: After, device: str, report: Report | None) -> None:
    """Measure the model of a run directory, and write what was found there: the Dataset last, for then all is done.

    Each is what the command of its name says of this model at its defaults; where verdicts are asked for, their programs
    stand for those that are asked for too.

    Raises:
        HopInterpError: the model cannot be read, or something not be written.
    """
    card = cards.read_card(run / MODEL)
    network, task = cards.load_fused(run / MODEL, device)
    subject = Subject.of(network, task, name=run.name)
    errors = evaluate(subject, task, sequences=after.sequences, distinct=after.distinct, report=report)
    solved = errors.hops.values[errors.solved.values].tolist()
    verified = after.at(after.verify, solved, card.granted, task.max_hops)
    decompiled = after.at(after.decompile, solved, card.granted, task.max_hops)
    verdicts, unmeasured = _verdicts(subject, task, verified, run / VERDICTS, report)
    programs = {k: one.program for k, one in verdicts.items() if one.program is not None}
    others, unfound = _programs(subject, task, [k for k in decompiled if k not in verified], run / PROGRAMS, report)
    missing = {"no_verdict": unmeasured, "no_program": unfound}
    found = _dataset(errors, card.spec.n_layers, verdicts, programs | others, missing).assign_attrs(
        threads=int(card.made["threads"]), device=str(card.made["device"]), seconds=float(card.made["seconds"]),
        tokens=float(card.made["tokens"]),
    )  # fmt: skip
    written = {ASKED: json.dumps(asdict(after)).encode(), RESULTS: bytes(found.to_netcdf())}
    write_directory(run / MEASURED, written, overwrite=True)


def _verdicts(
    subject: Subject, task: HopTask, ks: list[int], target: Path, report: Report | None
) -> tuple[dict[int, Verdict], dict[int, str]]:
    """The verdict at each k; and why there is none at the others."""
    if not ks:
        return {}, {}
    found: Verdict | Survey
    try:
        found = verify(subject, task, ks[0], report=report) if len(ks) == 1 else verify_all(subject, task, ks, report=report)
    except HopInterpError as error:
        return {}, dict.fromkeys(ks, str(error))
    write_directory(target, found.files(), overwrite=True)
    if isinstance(found, Verdict):
        return {found.hops: found}, {}
    return dict(found.verdicts), dict(found.unmeasured)


def _programs(
    subject: Subject, task: HopTask, ks: list[int], target: Path, report: Report | None
) -> tuple[dict[int, Decompiled], dict[int, str]]:
    """The program at each k that the model solves; and why there is none at the others."""
    if not ks:
        return {}, {}
    found: Decompiled | Decompilation
    try:
        settings: dict[str, Any] = {"every_way": True, "report": report}
        found = decompile(subject, task, ks[0] if len(ks) == 1 else ks, **settings)
    except HopInterpError as error:  # it does not solve the only one, say
        return {}, dict.fromkeys(ks, str(error))
    write_directory(target, found.files(), overwrite=True)
    if isinstance(found, Decompiled):
        return {found.hops: found}, {}
    return dict(found.by_hops), {k: unsolved(found.name, k, error) for k, error in found.unsolved.items()}


def _dataset(
    errors: xr.Dataset,
    n_layers: int,
    verdicts: Mapping[int, Verdict],
    programs: Mapping[int, Decompiled],
    missing: Mapping[str, Mapping[int, str]],
) -> xr.Dataset:
    """What `evaluate` found, and beside it what verdicts and programs say, by k; and why there are none (`missing`)."""
    ks = errors.hops.values.tolist()
    reach = np.full((len(ks), n_layers), np.nan)
    for row, k in enumerate(ks):
        if k in programs and (k not in verdicts or not verdicts[k].reach):
            reach[row] = programs[k].reach
        elif k in verdicts and verdicts[k].reach:
            reach[row] = verdicts[k].reach
    words = {
        "verdict": [verdicts[k].verdict if k in verdicts else "" for k in ks],
        "form": [(verdicts[k].form or "") if k in verdicts else "" for k in ks],
        "pace": [(verdicts[k].pace or "") if k in verdicts else "" for k in ks],
        "derivations": [programs[k].sums if k in programs else "" for k in ks],
    }
    words |= {name: [why.get(k, "") for k in ks] for name, why in missing.items()}
    found = errors.assign({name: ("hops", np.array(values, dtype=str)) for name, values in words.items()})
    explained = np.array([k in programs and programs[k].explained for k in ks], dtype=bool)
    return found.assign(explained=("hops", explained), reach=(("hops", "layer"), reach)).assign_coords(layer=range(n_layers))
