"""Rows of HopBench gathered into one table, with how often each thing is right and on how many models."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean, median
from typing import Any

from scipy.stats import binomtest

Row = Mapping[str, Any]
RATES = ("verdict", "form", "pace", "derivations", "false_claim")
COLUMNS = {
    "verdict": "verdict",
    "form": "form",
    "pace": "pace",
    "derivations": "derivations exact",
    "precision": "routes precision",
    "recall": "routes recall",
    "nodes": "nodes AUROC",
    "nodes_with_keys": "with keys",
    "heads": "heads AUROC",
    "false_claim": "false claims",
    "seconds": "CPU s",
}


def whole(rows: Sequence[Row], entries: Sequence[str]) -> str:
    """One table: a line for every kind of models and tool."""
    lines = [_line(["models", "tool", *COLUMNS.values()]), _line(["---"] * (2 + len(COLUMNS)))]
    for kind in dict.fromkeys(row["kind"] for row in rows):
        here = [row for row in rows if row["kind"] == kind]
        lines += [_line([f"{kind} ({len(here)})", name, *_cells(here, name)]) for name in entries]
    return "\n".join(lines)


def groups(rows: Sequence[Row], entry: str) -> str:
    """One tool, a line for every group of models."""
    lines = [_line(["group", "models", *COLUMNS.values()]), _line(["---"] * (2 + len(COLUMNS)))]
    for kind, group in dict.fromkeys((row["kind"], row["group"]) for row in rows):
        here = [row for row in rows if (row["kind"], row["group"]) == (kind, group)]
        lines.append(_line([f"{kind}: {group}", str(len(here)), *_cells(here, entry)]))
    return "\n".join(lines)


def _cells(rows: Sequence[Row], entry: str) -> list[str]:
    scored = [row["entries"][entry] for row in rows if entry in row["entries"]]
    return [_cell(name, [one[name] for one in scored if name in one and one[name] is not None]) for name in COLUMNS]


def _cell(name: str, values: Sequence[float]) -> str:
    if not values:
        return "–"
    if name in RATES:
        return f"{sum(values):.0f} of {len(values)}"
    return f"{median(values):.1f}" if name == "seconds" else f"{fmean(values):.3f}"


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def wrong(rows: Sequence[Row], entry: str) -> str:
    """Every model on which a tool's verdict or derivations are wrong, or that it failed on."""
    lines = []
    for row in rows:
        one = row["entries"].get(entry, {})
        missed = [name for name in ("verdict", "derivations") if one.get(name) == 0]
        if "error" in one:
            lines.append(f"- {row['name']}: {one['error']}")
        elif missed:
            said = f"said {one['said']['verdict']}, {one['said']['derivations']}"
            lines.append(f"- {row['name']} (err {row['error']:.3f}): {' and '.join(missed)}; {said}; truth {row['truth']}")
    return "\n".join(lines) or "None."


def rate(rows: Sequence[Row], entry: str, name: str) -> str:
    """A rate in words, with its exact 95% interval."""
    values = [one[name] for row in rows if (one := row["entries"].get(entry, {})).get(name) is not None]
    if not values:
        return "none measured"
    ends = binomtest(int(sum(values)), len(values)).proportion_ci(method="exact")
    return f"{sum(values):.0f} of {len(values)} ({ends.low:.3f} to {ends.high:.3f})"
