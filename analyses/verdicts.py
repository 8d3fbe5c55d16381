"""Every shipped model at every k: its verdict, reach and what the program foretells, as JSON lines, and as one figure.

    python analyses/verdicts.py analyses/data/verdicts.jsonl analyses/verdicts.png

What stands in the file already is not measured again, so that a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import xarray as xr

import hopinterp as hi
from hopinterp.shown import finite
from hopinterp.views import plots
from hopinterp.views.verdicts import Cell, verdict_table

MODELS = ("depth2", "depth3", "depth4", "depth5", "depth6")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path, help="JSON lines, written and read")
    parser.add_argument("figure", type=Path)
    parser.add_argument("--models", nargs="*", default=MODELS, help="shipped models, model or run directories")
    parser.add_argument("--sequences", type=int, default=100, help="for each kind of evidence")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    rows = [json.loads(line) for line in given.file.read_text().splitlines()] if given.file.exists() else []
    for model in given.models:
        done = {row["hops"] for row in rows if row["model"] == Path(model).name}
        with given.file.open("a", encoding="utf-8") as out:
            for row in measured(model, done, given.sequences, given.seed):
                rows.append(row)
                print(json.dumps(row), file=out, flush=True)
                print(row["headline"])
    cells = [Cell(row["model"], row["hops"], row["verdict"], row["form"], row["pace"], tuple(row["reach"])) for row in rows]
    plots.write(verdict_table(cells), given.figure)


def measured(name: str, done: set[int], sequences: int, seed: int) -> Any:
    """A row for each k that is not done."""
    model, task = hi.load_fused(name)
    left = [k for k in range(1, task.max_hops + 1) if k not in done]
    behaviour = hi.evaluate(model, task, sequences=2 * sequences, seed=seed) if left else xr.Dataset()
    for k in left:
        if bool(behaviour.failed.sel(hops=k)):
            error = float(behaviour.error.sel(hops=k))
            row = {"verdict": "none", "form": None, "pace": None, "reach": [], "error": error}
            yield {"model": Path(name).name, "hops": k, **row, "headline": f"{name}, k = {k}: none"}
            continue
        found = hi.verify(model, task, k, sequences=sequences, seed=seed, behaviour=behaviour)
        yield {"model": Path(name).name, "hops": k, **finite(_row(replace(found, model=Path(name).name)))}


def _row(found: hi.Verdict) -> dict[str, Any]:
    told = found.to_json()
    names = ("verdict", "form", "pace", "reach", "decided_by", "explained", "derivations", "disagreements", "foretold")
    program = found.program
    row = {name: told[name] for name in names} | {"error": found.error["error"], "headline": found.headline}
    if program is not None:
        row |= {"errors": program.error, "tree": program.tree.error, "without": program.tree.without}
        row |= {"nodes": len(program.tree.nodes), "missed": list(program.missed), "sums": program.sums}
    return row


if __name__ == "__main__":
    main()
