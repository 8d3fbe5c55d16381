"""What the models of a sweep learned: a table, lines that read it, JSON, and err_k with its spread over seeds."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from rich.markup import escape
from rich.table import Table

from hopinterp.errors import HopInterpError
from hopinterp.evidence.reading.behaviour import capacity
from hopinterp.shown import legible
from hopinterp.sweeps.grid import IMPLIED
from hopinterp.views.axes import log2_ticks, solved_line
from hopinterp.views.style import style, words
from hopinterp.views.tables import ruled_table
from hopinterp.views.trends import Published, looks

_SHOWN = {
    "layers": "depth {}",
    "d_model": "width {}",
    "heads": "{} heads",
    "samples": "{:,} samples",
    "alphabet": "|Σ| = {}",
}
"""How settings are called in figures and readings; others by their name and value."""


def sweep_table(found: xr.Dataset) -> Table:
    """A row a cell: how far it is, up to which k it solves, its verdicts, and of its largest k with a program reach and
    derivations; and its settings, where the cells' names are of a grid that has grown since and do not tell them.

    Args:
        found: what `sweep` or `sweep_results` returned.
    """
    judged, programs = bool((found.get("verdict", xr.DataArray("")) != "").any()), bool(_explaining(found).any())
    settings = _untold(found)
    columns = [
        *["settings"] * bool(settings),
        "status",
        "solves",
        *["verdict"] * judged,
        *["k", "reach", "derivations"] * programs,
        "minutes",
    ]
    table = ruled_table("model", *columns)
    for name in found.cell.values.tolist():
        one = found.sel(cell=name)
        own = [", ".join(_named(setting, one[setting].item()) for setting in settings)] if settings else []
        cells = [
            *own,
            str(one.status.item()),
            _solves(one),
            *[_verdicts(one)] * judged,
            *(_program(one) if programs else ()),
        ]
        seconds = float(one.seconds)
        table.add_row(*map(escape, (legible(name), *cells, "" if np.isnan(seconds) else f"{seconds / 60:.1f}")))
    return table


def _untold(found: xr.Dataset) -> list[str]:
    """The settings that tell the cells apart, where some cell's name does not say its own; else none."""
    varying = _varying(found)
    telling = [name for name in varying if not _follows(found, varying, name)]
    said = [set(cell.lower().split(",")) for cell in found.cell.values.tolist()]
    values = {name: found[name].values.tolist() for name in telling}
    told = all(
        f"{name}={value}".lower() in words for name in telling for value, words in zip(values[name], said, strict=True)
    )
    return [] if told else telling


def _explaining(found: xr.Dataset) -> xr.DataArray:
    none = xr.DataArray(np.zeros(found.sizes["cell"], dtype=bool), dims="cell")
    return none | (found.derivations != "") if "derivations" in found else none


def _solves(one: xr.Dataset) -> str:
    if one.status.item() != "done":
        return ""
    return _up_to(k) if (k := capacity(one)) else f"not even k = 1 ({float(one.error.sel(hops=1)):.0%} wrong)"


def _verdict(row: xr.Dataset) -> str:
    form = row.form.item()
    return f"{row.verdict.item()} ({form})" if form else str(row.verdict.item())


def _verdicts(one: xr.Dataset) -> str:
    """ "doubling (successor) at k = 3"; of several k, how many got which."""
    rows = [one.sel(hops=k) for k in one.hops.values if one.verdict.sel(hops=k).item()]
    if len(rows) == 1:
        return f"{_verdict(rows[0])} at k = {int(rows[0].hops)}"
    return ", ".join(f"{count} {name}" for name, count in Counter(map(_verdict, rows)).items())


def _program(one: xr.Dataset) -> tuple[str, str, str]:
    ks = [k for k in one.hops.values.tolist() if one.derivations.sel(hops=k).item()]
    if not ks:
        return "", "", ""
    row = one.sel(hops=ks[-1])
    reach = " ".join(f"{value:.0f}" for value in row.reach.values if not np.isnan(value))
    return str(ks[-1]), reach, str(row.derivations.item())


def sweep_reading(found: xr.Dataset) -> str:
    """For every setting but the seed: how many models solve up to which k, and how many got which verdict at which k; last,
    how many cells are done."""
    lines = []
    for name, group in _groups(found):
        done = group.isel(cell=group.status.values == "done")
        if not done.sizes["cell"]:
            continue
        far = Counter(capacity(done.isel(cell=row)) or 0 for row in range(done.sizes["cell"]))
        said = [f"{count} of {done.sizes['cell']} solve {_up_to(k)}" for k, count in sorted(far.items(), reverse=True)]
        for k in done.hops.values if "verdict" in done else []:
            rows = [done.isel(cell=row).sel(hops=k) for row in range(done.sizes["cell"])]
            counts = Counter(_verdict(row) for row in rows if row.verdict.item())
            if counts:
                said.append(f"at k = {k}: " + ", ".join(f"{count} {verdict}" for verdict, count in counts.items()))
        lines.append(f"{name or 'all'}: {'; '.join(said)}.")
    states = Counter(found.status.values.tolist())
    others = "".join(f", {count} {state}" for state, count in states.items() if state != "done")
    return "\n".join([*lines, f"{states['done']} of {found.sizes['cell']} cells done{others}."])


def _varying(found: xr.Dataset) -> list[str]:
    """The settings that vary between cells, those last that others imply."""
    varying = [str(name) for name in found.coords if found[name].dims == ("cell",) and name != "cell"]
    return sorted(varying, key=lambda name: name in IMPLIED)


def _up_to(k: int) -> str:
    return f"k ≤ {k}" if k > 1 else "k = 1" if k else "no k"


def _groups(found: xr.Dataset) -> Iterator[tuple[str, xr.Dataset]]:
    """Cells that differ in their seed alone, by what they share and others do not: "depth 3, width 128"."""
    varying = [name for name in _varying(found) if name != "seed"]
    if "preset" in varying and len(varying) > 1:  # what it changes is named itself
        varying = ["preset", *(name for name in varying if name in _SHOWN)]
    keys = [tuple(found[name].values[row].item() for name in varying) for row in range(found.sizes["cell"])]
    for key in dict.fromkeys(keys):
        name = ", ".join(_named(*pair) for pair in zip(varying, key, strict=True) if not _follows(found, varying, pair[0]))
        yield name, found.isel(cell=[row for row, one in enumerate(keys) if one == key])


def _named(setting: str, value: Any) -> str:
    if setting == "samples" and not value:
        return "fresh samples"
    return _SHOWN[setting].format(value) if setting in _SHOWN else f"{setting} {value}"


def _follows(found: xr.Dataset, varying: list[str], setting: str) -> bool:
    """Whether a setting is told by those before it, as heads are by the width."""
    before = varying[: varying.index(setting)]
    if not before:
        return False
    rows = [tuple(found[name].values[row].item() for name in before) for row in range(found.sizes["cell"])]
    return len(set(rows)) == len({(*row, value) for row, value in zip(rows, found[setting].values.tolist(), strict=True)})


def figure(found: xr.Dataset, published: Published | None = None, title: str = "") -> Figure:
    """err_k against k, a line for every setting but the seed: its mean over seeds, and the band from the least to the
    largest; of one seed its 95% interval (the paper's Figures 2, 6 to 9, 16 and 17).

    Args:
        found: what `sweep` or `sweep_results` returned.
        published: errors that others measured, by the lines' names, dotted.

    Raises:
        HopInterpError: no cell is done.
    """
    groups = {}
    for name, group in _groups(found):
        done = group.isel(cell=group.status.values == "done")
        if done.sizes["cell"]:
            groups[name or "all"] = done.sel(hops=done.hops[np.isfinite(done.error.values).any(0)])
    if not groups:
        raise HopInterpError("there is nothing to draw: no cell is done")
    look = looks([*groups, *(name for name in published or {} if name not in groups)])
    with style() as one:
        drawn = Figure(figsize=(5.4, 3.3))
        axes = drawn.subplots()
        for name, group in groups.items():
            error, several = 100 * group.error, group.sizes["cell"] > 1
            low, high = (error.min("cell"), error.max("cell")) if several else (100 * group.low[0], 100 * group.high[0])
            axes.fill_between(group.hops, low, high, color=look[name]["color"], alpha=0.25, lw=0)
            axes.plot(group.hops, error.mean("cell"), label=words(name), **look[name])
        for name, errors in (published or {}).items():
            ks = [k for k in sorted(errors) if k > 0]
            plain = {"color": look[name]["color"], "lw": 1.1, "ls": ":"}
            axes.plot(ks, [100 * errors[k] for k in ks], label=f"{words(name)}, published", **plain)
        ks = [int(k) for group in groups.values() for k in group.hops.values]
        solved_line(axes, min(ks), "left")
        log2_ticks(axes, min(ks), max(ks))
        axes.set(xlabel="hops k", ylabel="error on answered positions (%)", title=title or "err$_k$")
        axes.set_ylim(bottom=-1.5)
        handles, names = axes.get_legend_handles_labels()
        band = _band({group.sizes["cell"] for group in groups.values()})
        drawn.legend([*handles, Patch(color=one.quiet, alpha=0.3, lw=0)], [*names, band], loc="outside right center")
        return drawn


def _band(seeds: set[int]) -> str:
    """What the bands are, where groups have so many seeds."""
    several = sorted(seeds - {1})
    if not several:
        return "95% interval"
    counts = f"{several[0]} to {several[-1]}" if several[1:] else str(several[0])
    return f"least to largest of {counts} seeds" + (",\nof one seed its 95% interval" if 1 in seeds else "")


def sweep_json(found: xr.Dataset) -> dict[str, Any]:
    """By cell: how far it is, its settings that vary, and by k its errors, verdict, reach and derivations; the settings that
    all share, and those of the measurements (`measured`)."""
    varying = _varying(found)
    cells = {}
    for name in found.cell.values.tolist():
        one = found.sel(cell=name)
        values = {
            key: one[key].item() for key in ("status", "failure", "seconds", "cpu_seconds", "tokens", "threads", "device")
        }
        values["settings"] = {key: one[key].item() for key in varying}
        done = values["status"] == "done"
        values["by_hops"] = {str(k): _row(one.sel(hops=k)) for k in one.hops.values.tolist()} if done else {}
        cells[name] = values
    asked = {key: value for key, value in found.attrs.items() if key not in ("settings", "version")}
    shared = json.loads(found.attrs["settings"])
    return {"cells": cells, "settings": shared, "measured": asked, "version": found.attrs["version"]}


def _row(row: xr.Dataset) -> dict[str, Any]:
    names = [
        "error",
        "low",
        "high",
        "solved",
        "verdict",
        "form",
        "pace",
        "explained",
        "derivations",
        "no_verdict",
        "no_program",
    ]
    names += [str(name) for name in row.data_vars if str(name).startswith("distinct_")]
    values = {name: row[name].item() for name in names if name in row}
    return values | {"reach": [int(value) for value in row.reach.values if not np.isnan(value)]}
