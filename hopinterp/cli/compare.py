"""The command that sets models side by side: errors, verdicts, programs."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hopinterp.cli.keep import keep_datasets, keeps
from hopinterp.cli.shared import (
    Device,
    Dpi,
    Json,
    Models,
    Plot,
    Seed,
    hop_range,
    measured,
    open_models,
    overlay,
    print_json,
    show,
    whole,
    working,
)
from hopinterp.errors import HopInterpError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from hopinterp.decompile.differences import Difference
    from hopinterp.judgement.records import Verdict
    from hopinterp.models.subject import Subject
    from hopinterp.task import HopTask

    Opened = Mapping[str, tuple[Subject, HopTask]]


@keeps
def compare(
    models: Models,
    hops: Annotated[
        str, typer.Option(help="Values of k: 8, 1-16 or 1,2,4; by default 1 to the largest of every model's task.")
    ] = "",
    sequences: Annotated[int, whole("Sequences a k, and for each kind of evidence.", 2)] = 100,
    verify: Annotated[
        bool,
        typer.Option("--verify", help="Also the verdicts: at --hops where that is one k, else as `verify` would choose k."),
    ] = False,
    program: Annotated[
        bool, typer.Option("--program", help="Also how the programs of two models differ at the one k of --hops.")
    ] = False,
    seed: Seed = 0,
    device: Device = "auto",
    plot: Plot = None,
    dpi: Dpi = 150,
    as_json: Json = False,
) -> None:
    """Two or more models side by side: their errors and how these differ; if asked, their verdicts and programs.

    Models of one task answer the same sequences. A difference is marked where its 95% interval leaves out 0.
    """
    from hopinterp.evidence.reading import comparing
    from hopinterp.models import store
    from hopinterp.views import side_by_side, tables

    if len(models) < 2:
        raise HopInterpError("compare needs two models or more")
    if program and not (len(models) == 2 and hops.isdecimal()):
        raise HopInterpError("--program compares two models at one k: give two, and --hops K")
    opened = open_models(models, device, plot)
    cards = {name: store.read_card(store.find(given)) for name, given in zip(opened, models, strict=True)}
    ks = hop_range(hops, min(task.max_hops for _, task in opened.values()))
    found = measured(opened, ks, sequences=sequences, seed=seed)
    compared = comparing.compare(found)
    asked = {name: ks[0] if len(ks) == 1 else card.granted for name, card in cards.items()}
    verdicts = _verdicts(opened, asked, sequences, seed) if verify else {}
    difference = _difference(opened, ks[0], sequences, seed) if program else None
    overlay(plot, dpi, found)
    kept = keep_datasets({"compare": compared})
    if as_json:
        said: dict[str, Any] = {
            "models": {
                name: {"card": json.loads(card.to_json())} | tables.errors_json(found[name]) for name, card in cards.items()
            },
            "differences": side_by_side.differences_json(compared),
        }
        said |= {"verdicts": {name: verdict.to_json() for name, verdict in verdicts.items()}} if verify else {}
        said |= {"program": difference.to_json()} if difference is not None else {}
        print_json(said, plot, *kept)
        return
    show(tables.models_table(cards), "", plot, *kept)
    show(side_by_side.differences_table(compared), side_by_side.differences_reading(compared, found))
    if verify:
        print("\n".join(verdict.headline for verdict in verdicts.values()))
    if difference is not None:
        print(f"\n{difference}")


def _verdicts(opened: Opened, ks: Mapping[str, int], sequences: int, seed: int) -> dict[str, Verdict]:
    from hopinterp.judgement import verdict

    with working("gathering evidence") as said:
        return {
            name: verdict.verify(subject, task, ks[name], sequences=sequences, seed=seed, report=said)
            for name, (subject, task) in opened.items()
        }


def _difference(opened: Opened, k: int, sequences: int, seed: int) -> Difference:
    from hopinterp.decompile.decompiled import decompile
    from hopinterp.decompile.differences import diff

    with working("decompiling") as said:
        settings: dict[str, Any] = {"sequences": sequences, "seed": seed, "report": said}
        first, second = (decompile(subject, task, k, **settings) for subject, task in opened.values())
    return diff(first, second)
