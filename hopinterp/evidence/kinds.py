"""The kinds of evidence that a verdict rests on: one record each, in a registry that all above iterate over.

A kind costs its record and a test. What stands above evidence (how a kind is read, what is drawn of it) is named, not
imported: "module:function", looked up when it is needed.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import xarray as xr

from hopinterp.errors import HopInterpError
from hopinterp.evidence.patching.activation import patch
from hopinterp.evidence.reading.attention import align
from hopinterp.evidence.reading.behaviour import evaluate
from hopinterp.evidence.reading.probes import probe
from hopinterp.evidence.transplants.interchange import transplant
from hopinterp.models.subject import Subject
from hopinterp.task import HopTask

Gather = Callable[[Subject, HopTask, int, int, int], xr.Dataset]
"""(subject, task, k, sequences, seed) → what was found."""

Named = str | Callable[..., Any]
"""A function, or "module:function"."""

ATTENDED = 0.5
"""A head attends to find^j where its cosine over non-null rows is at least this."""


@dataclass(frozen=True)
class Kind:
    """One kind of evidence, from its measurement to its figure.

    Attributes:
        name: what it is called in `Verdict.evidence`, and its file's name.
        gather: measures it at one k.
        words: what is said while it is gathered.
        read: (found, layer, k) → a `judgement.readings.Reading` of one block, which has its cells in the table, and may
            object to what a hypothesis says of the block.
        controls: (found, k) → the `judgement.readings.Control`s by which it could have been refuted.
        figures: (all evidence, k) → `views.plates.Plate`s for the report.
        explains: how to read its cells, for the report.
        resolves: under which name `Verdict.resolved` has the R(ℓ) that it reads; empty where it reads none.
        grows: what that R is of a block, for the row of its growth.
        every_k: gathered once for all k, not at each.
        required: whether a verdict can be had without it.
    """

    name: str
    gather: Gather
    words: str
    read: Named | None = None
    controls: Named | None = None
    figures: Named | None = None
    explains: str = ""
    resolves: str = ""
    grows: str = "R"
    every_k: bool = False
    required: bool = False


def called(function: Named) -> Callable[..., Any]:
    """The function itself."""
    found: Callable[..., Any] = function if callable(function) else pkgutil.resolve_name(function)
    return found


KINDS: dict[str, Kind] = {}
"""Every kind by name, those that decide most first: the order of gathering, of objections, of rows and of figures."""


def register(kind: Kind) -> None:
    """Make a kind known to verify, judge, tables and report. Raises HopInterpError if its name is taken."""
    if kind.name in KINDS:
        raise HopInterpError(f"there is a kind of evidence {kind.name!r} already")
    KINDS[kind.name] = kind


@contextmanager
def registered(kind: Kind) -> Iterator[Kind]:
    """Inside, the kind is known; afterwards no longer. Raises HopInterpError as `register`."""
    register(kind)
    try:
        yield kind
    finally:
        del KINDS[kind.name]


# -- the kinds ------------------------------------------------------------------------------------------------------------


def _behaviour(subject: Subject, task: HopTask, _hops: int, sequences: int, seed: int) -> xr.Dataset:
    # every k, whichever is asked: the capacity is read off it
    return evaluate(subject, task, range(1, task.max_hops + 1), sequences=2 * sequences, seed=seed)


def _transplant(subject: Subject, task: HopTask, hops: int, sequences: int, seed: int) -> xr.Dataset:
    return transplant(subject, task, hops, sequences=sequences, seed=seed)


def _probe(subject: Subject, task: HopTask, hops: int, sequences: int, seed: int) -> xr.Dataset:
    # beyond 2k nothing is held that k could need, whichever law holds
    last = min(2 * hops, task.max_hops)
    return probe(subject, task, hops, furthest=last, train_sequences=8 * sequences // 5, sequences=sequences, seed=seed)


def _patch(subject: Subject, task: HopTask, hops: int, sequences: int, seed: int) -> xr.Dataset:
    return patch(subject, task, hops, by="chain", sequences=sequences, seed=seed)


def _attention(subject: Subject, task: HopTask, hops: int, sequences: int, seed: int) -> xr.Dataset:
    found = align(subject, task, hops, max(sequences // 2, 2), seed)
    return found.assign_attrs(attended=ATTENDED)


register(Kind("behaviour", _behaviour, "behaviour", every_k=True, required=True))
register(
    Kind(
        "transplant",
        _transplant,
        "transplants",
        read="hopinterp.judgement.readings:read_transplant",
        controls="hopinterp.judgement.readings:transplant_controls",
        figures="hopinterp.views.plates:transplant_plates",
        explains="Stands for: after how many hops the block's output goes on in another sequence, and as what it is carried;"
        " ? where that is not clear.",
        resolves="transplant",
        grows="what it stands for",
        required=True,
    )
)
register(
    Kind(
        "probe",
        _probe,
        "probes",
        read="hopinterp.judgement.readings:read_probe",
        controls="hopinterp.judgement.readings:probe_controls",
        figures="hopinterp.views.plates:probe_plates",
        explains="Holds: the largest hop that probes read.",
        resolves="probe",
        grows="what it holds",
        required=True,
    )
)
register(
    Kind(
        "patch",
        _patch,
        "light cone",
        read="hopinterp.judgement.readings:read_patch",
        controls="hopinterp.judgement.readings:patch_controls",
        figures="hopinterp.views.plates:patch_plates",
        explains="Light cone: the next position needed leaves two R open.",
        resolves="light_cone",
        required=True,
    )
)
register(
    Kind(
        "attention",
        _attention,
        "attention",
        read="hopinterp.judgement.readings:read_attention",
        figures="hopinterp.views.plates:attention_plates",
        explains=f"Attends to: every find^j with which some head's cosine is at least {ATTENDED:g}.",
        required=True,
    )
)
