"""HopBench: models of the k-hop task whose circuit is known, and how often tools read it right, in one table.

    python -m benchmarks.hopbench --models 60 --untrained 1000 --seed 0 --out runs/hopbench     # stops and goes on

Each model is a line of OUT/rows.jsonl as soon as it is done; the same command goes on where it stopped. Models are made anew
by code and seed; those that have to be trained are kept in OUT/runs. A tool of one's own: see contract.py.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from benchmarks.hopbench import ours, rivals, table  # noqa: F401 (ours, rivals: they enter themselves)
from benchmarks.hopbench.contract import ENTRIES, RANKS, Answer, enter
from benchmarks.hopbench.models import KINDS, Known, models, solves
from benchmarks.hopbench.scoring import score
from benchmarks.hopbench.truth import NONE, Truth
from hopinterp.errors import HopInterpError
from hopinterp.evidence.reading.behaviour import SOLVED
from hopinterp.files import alone_in, write_file

ROWS = "rows.jsonl"
Row = dict[str, Any]


def measured(known: Known, entries: Iterable[str]) -> Row:
    """One model made, and every tool's scores."""
    model, truth = known.make()
    row: Row = {"name": known.name, "kind": known.kind, "group": known.group, "hops": known.hops}
    row |= {"truth": _told(truth), "error": solves(model, known.task, known.hops), "entries": {}}
    if known.kind == "disguised" and row["error"] > SOLVED:  # not only disguised: its function is another one
        row["kind"] = "beyond"
    hooked = model.spec.build(model.parameters)
    for name in entries:
        if name in RANKS and truth.law == NONE:
            row["entries"][name] = {}
            continue
        started = time.process_time()
        try:
            answer = ENTRIES[name](hooked, known.task, known.hops)
        except HopInterpError as error:  # no claim, and no scores
            row["entries"][name] = {"error": str(error)}
            continue
        found = score(answer, truth, time.process_time() - started)
        row["entries"][name] = {**found.to_json(), "said": _said(answer)}
    return row


def _told(truth: Truth) -> Row:
    law = truth.law
    told = {"verdict": law.verdict, "form": law.form, "pace": law.pace, "reach": list(truth.reach)}
    return told | {"derivations": sorted(map(list, truth.derivations))}


def _said(answer: Answer) -> Row:
    found = None if answer.derivations is None else sorted(map(list, answer.derivations))
    return {"verdict": answer.verdict, "form": answer.form, "pace": answer.pace, "derivations": found}


def run(wanted: Iterable[Known], entries: Sequence[str], path: Path) -> list[Row]:
    """Measure every model that is not in the file yet; a line each. Returns the lines of all that are wanted."""
    kept = _read(path)
    write_file(path, "".join(json.dumps(row) + "\n" for row in kept).encode())  # without a line that was cut short
    done = {row["name"]: row for row in kept}
    rows = []
    for known in wanted:
        row = done.get(known.name)
        left = [name for name in entries if row is None or name not in row["entries"]]
        if left:
            try:
                new = measured(known, left)
            except HopInterpError as error:  # a model that was trained to follow a program and does not
                print(f"{known.name} is left out: {error}", flush=True)
                continue
            new["entries"] = {**(row["entries"] if row else {}), **new["entries"]}
            row = new
            with open(path, "a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            print(_progress(row), flush=True)
        assert row is not None
        rows.append(row)
    return rows


def _read(path: Path) -> list[Row]:
    """The lines of an earlier run; one that was cut short is left out, and a later line of a model stands for an earlier."""
    if not path.exists():
        return []
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


def _progress(row: Row) -> str:
    said = [f"{name} {one.get('said', {}).get('verdict')} {one.get('nodes')}" for name, one in row["entries"].items()]
    return f"{row['name']} ({row['truth']['verdict']}): {'; '.join(said)}"


def page(rows: Sequence[Row], entries: Sequence[str], settings: argparse.Namespace) -> str:
    """The report: one table of all tools, what each group of models gave, and what was wrong."""
    first = entries[0]
    known = [row for row in rows if row["kind"] in ("compiled", "disguised")]
    nothing = [row for row in rows if row["kind"] == "nothing"]
    command = f"python -m benchmarks.hopbench --kinds {','.join(settings.kinds)} --models {settings.models}"
    command += f" --untrained {settings.untrained} --seed {settings.seed} --out OUT"
    return "\n\n".join(
        [
            "# HopBench",
            f"`{command}`, {datetime.now(UTC):%Y-%m-%d}, one thread, torch {torch.__version__}. Medians of CPU seconds.",
            (Path(__file__).parent / "words.md").read_text(encoding="utf-8").strip(),
            f"Verdicts of {first} right on compiled and disguised models: {table.rate(known, first, 'verdict')}; false "
            f"claims on models without a circuit: {table.rate(nothing, first, 'false_claim')} (exact 95% intervals).",
            "## All tools",
            table.whole(rows, entries),
            f"## {first}, by group",
            table.groups(rows, first),
            f"## Where {first} is wrong",
            table.wrong(rows, first),
            "",
        ]
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark, print the table, and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", type=lambda text: text.split(","), default=list(KINDS), help=",".join(KINDS))
    parser.add_argument("--models", type=int, default=60, help="of each kind; of trained ones at most what there are")
    parser.add_argument("--untrained", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--entries", type=lambda text: text.split(","), default=list(ENTRIES), help=",".join(ENTRIES))
    parser.add_argument("--enter", action="append", default=[], metavar="MODULE:FUNCTION", help="a further tool")
    parser.add_argument("--out", type=Path, required=True, help="an unfinished run in it goes on")
    parser.add_argument("--page", type=Path, help="where the report goes; OUT/hopbench.md by default")
    settings = parser.parse_args(arguments)
    torch.set_num_threads(1)
    entries = [*settings.entries, *map(enter, settings.enter)]
    if unknown := [name for name in entries if name not in ENTRIES]:
        parser.error(f"no tool {unknown[0]!r}; there are {', '.join(ENTRIES)}")
    settings.out.mkdir(parents=True, exist_ok=True)
    try:
        with alone_in(settings.out):
            wanted = models(settings.kinds, settings.models, settings.untrained, settings.seed, settings.out / "runs")
            rows = run(wanted, entries, settings.out / ROWS)
    except HopInterpError as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        parser.exit(130, "stopped; the same command goes on\n")
    text = page(rows, entries, settings)
    write_file(settings.page or settings.out / "hopbench.md", text.encode())
    print(table.whole(rows, entries))


if __name__ == "__main__":
    main()
