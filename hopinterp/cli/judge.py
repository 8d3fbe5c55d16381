"""The front door to the verdict."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hopinterp.cli.shared import Device, Json, Model, Seed, app, find_device, hop_range, print_json, show, telling

if TYPE_CHECKING:
    from hopinterp.models.store import Card


@app.command()
def verify(
    model: Model,
    hops: Annotated[
        str, typer.Option(help="k, or all; by default the largest k that the theorem grants the model's depth.")
    ] = "",
    report: Annotated[Path | None, typer.Option(help="Also write the report, one HTML file that needs no network.")] = None,
    sequences: Annotated[int, typer.Option(min=2, help="Sequences for each kind of evidence.")] = 100,
    seed: Seed = 0,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """The verdict: does the model double its hops, go one by one, or do something else?"""
    from hopinterp.judgement.verdict import Survey, verify_all
    from hopinterp.judgement.verdict import verify as run_verify
    from hopinterp.models import store
    from hopinterp.views import report as reports
    from hopinterp.views import statements

    network, card = store.load_fused(model, find_device(device))
    task, name = card.task, Path(model).resolve().name
    ks = None if hops == "all" else hop_range(hops, task.max_hops) if hops else [_theorem(card)]
    task.check_hops(*(ks or []))
    if report is not None:
        reports.check_writable(report)
    with telling() as said:
        if ks is not None and len(ks) == 1:
            found: Survey | None = None
            one = run_verify(network, task, ks[0], sequences=sequences, seed=seed, report=said)
        else:
            found = verify_all(network, task, ks, sequences=sequences, seed=seed, report=said)
        if report is not None:
            said("report")
            reports.write_report(report, found or one, name, network, task)
    if as_json:
        print_json(statements.survey_json(found) if found else statements.verdict_json(one))
    elif found:
        show(statements.survey_table(found), statements.survey_reading(found, name))
    else:
        show(statements.verdict_table(one), statements.verdict_reading(one, name))


def _theorem(card: Card) -> int:
    """The k that a model was built for, or the largest k < 2^(L−1), which Theorem 4.2 grants its depth."""
    built_for: int | None = card.made.get("hops")
    return built_for or max(1, min(2 ** (card.spec.n_layers - 1) - 1, card.task.max_hops))
