"""Several models' errors beside each other, as a table, as JSON, and as the lines that read them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

from hopinterp.shown import legible
from hopinterp.views.tables import errors_reading, ruled_table

if TYPE_CHECKING:
    import xarray as xr

_ERROR = ("error", "low", "high")
_DIFFERENCE = ("difference", "difference_low", "difference_high")


def errors_side_by_side(found: Mapping[str, xr.Dataset]) -> Table:
    """err_k in %, a row a k, a column a model, with its interval; another column on chains without repeats, if measured.

    Args:
        found: what `evaluate` returned, by name.
    """
    named = {legible(name): (one, "") for name, one in found.items()}
    named |= {f"{legible(name)}, no repeats": (one, "distinct_") for name, one in found.items() if "distinct_error" in one}
    table = ruled_table("k", *map(escape, named))
    for k in sorted({int(k) for one in found.values() for k in one.hops.values}):
        table.add_row(str(k), *(_error(one, kind, k) for one, kind in named.values()))
    return table


def _error(one: xr.Dataset, kind: str, k: int) -> str:
    row = one.sel(hops=k)
    if not int(row[f"{kind}positions"]):
        return "–"
    return _interval(row, *(f"{kind}{name}" for name in _ERROR))


def _interval(row: xr.Dataset, *names: str, sign: str = "") -> str:
    """A value in per cent, with the ends of its 95% interval in brackets."""
    middle, *ends = (format(round(100 * float(row[name]), 2) + 0.0, f"{sign}.2f") for name in names)
    return f"{middle} ({' – '.join(ends)})"


def differences_table(found: xr.Dataset) -> Table:
    """A row a k: each model's err_k, and by how much it differs from the first one's; what leaves 0 out is marked,
    green where it errs less and red where it errs more.

    Args:
        found: what `compare` returned.
    """
    first, *others = (legible(name) for name in found.model.values.tolist())
    beside = [heading for name in others for heading in (name, f"{name} − {first}")]
    table = ruled_table("k", escape(first), *map(escape, beside))
    for k in found.hops.values.tolist():
        base, *rest = (found.sel(hops=k).isel(model=n) for n in range(found.sizes["model"]))
        cells = [_interval(base, *_ERROR)]
        for row in rest:
            cells.append(_interval(row, *_ERROR))
            said = _interval(row, *_DIFFERENCE, sign="+")
            ink = "green" if float(row.difference) < 0 else "red"
            cells.append(f"[bold {ink}]{said}*[/]" if bool(row.differs) else f"{said} ")
        table.add_row(str(k), *cells)
    return table


def differences_reading(compared: xr.Dataset, found: Mapping[str, xr.Dataset]) -> str:
    """How far each model gets, and at which k it errs less or more than the first.

    Args:
        compared: what `compare` returned of `found`.
    """
    first, *others = compared.model.values.tolist()
    lines = ["err_k in %, with its 95% interval, and how much it is above the first model's. *: the interval leaves 0 out."]
    if not compared.attrs["same_task"]:
        lines[0] += " The models read other lengths or alphabets, so that their sequences differ."
    lines += [errors_reading(one, legible(name)) for name, one in found.items()]
    for name in others:
        row = compared.sel(model=name)
        less, more = (row.hops.values[(row.differs & (sign * row.difference > 0)).values] for sign in (-1, 1))
        said = [f"{words} at k = {_ranges(ks.tolist())}" for words, ks in (("less", less), ("more", more)) if len(ks)]
        shown = f"errs {' and '.join(said)}" if said else "is not shown to err less or more at any k"
        lines.append(f"{legible(name)} {shown} than {legible(first)}." if said else f"{legible(name)} {shown}.")
    return "\n".join(lines)


def _ranges(ks: list[int]) -> str:
    """Numbers in rising order, those that follow each other as a range: "1, 3 to 5"."""
    parts: list[list[int]] = []
    for k in ks:
        if parts and parts[-1][-1] == k - 1:
            parts[-1].append(k)
        else:
            parts.append([k])
    return ", ".join(f"{part[0]} to {part[-1]}" if len(part) > 1 else str(part[0]) for part in parts)


def differences_json(found: xr.Dataset) -> dict[str, Any]:
    """By model but the first, and by k: err_k less the first model's, its interval, and whether that leaves 0 out."""
    first, *others = found.model.values.tolist()
    values: dict[str, Any] = {}
    for name in others:
        row = found.sel(model=name)
        values[name] = {
            key: {str(k): row[key].sel(hops=k).item() for k in row.hops.values.tolist()} for key in (*_DIFFERENCE, "differs")
        }
    return {"compared_with": first, "same_task": bool(found.attrs["same_task"]), "models": values}
