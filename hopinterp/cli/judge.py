"""The command that judges: verify."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hopinterp.cli.keep import keep_found, keeps
from hopinterp.cli.shared import (
    Device,
    Json,
    Model,
    Seed,
    command_line,
    hop_range,
    open_model,
    print_json,
    show,
    whole,
    working,
)
from hopinterp.dates import today

if TYPE_CHECKING:
    from hopinterp.judgement.records import Verdict
    from hopinterp.judgement.surveys import Survey


@keeps
def verify(
    model: Model,
    hops: Annotated[
        str, typer.Option(help="k, or all; by default the largest k that the theorem grants the model's depth.")
    ] = "",
    report: Annotated[Path | None, typer.Option(help="Also write the report, one HTML file that needs no network.")] = None,
    sequences: Annotated[int, whole("Sequences for each kind of evidence.", 2)] = 100,
    seed: Seed = 0,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """The verdict: does the model double its hops, go one by one, or do something else? By the program that it runs."""
    from hopinterp.judgement import verdict
    from hopinterp.models import store
    from hopinterp.views import report as reports
    from hopinterp.views import statements

    subject, task = open_model(model, device)
    card = store.read_card(store.find(model))
    ks = None if hops == "all" else hop_range(hops, task.max_hops) if hops else [card.granted]
    task.hop_counts(ks)
    if report is not None:
        reports.check_writable(report)
    found: Verdict | Survey
    with working("gathering evidence") as said:
        if ks is not None and len(ks) == 1:
            found = verdict.verify(subject, task, ks[0], sequences=sequences, seed=seed, report=said)
        else:
            found = verdict.verify_all(subject, task, ks, sequences=sequences, seed=seed, report=said)
        if report is not None:
            reports.write_report(report, found, subject.name, subject, task, card=card, command=command_line())
    kept = keep_found(found)
    if as_json:
        print_json({**found.to_json(), "model": subject.name, **_asked()}, report, *kept)
    else:
        show(statements.judged_table(found), found.reading, report, *kept)


def _asked() -> dict[str, str]:
    """By which version, when and by which command a result was had."""
    return {
        "version": metadata.version("hopinterp"),
        "date": today().isoformat(timespec="seconds"),
        "command": command_line(),
    }
