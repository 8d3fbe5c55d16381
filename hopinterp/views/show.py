"""What a command prints of a result, for notebooks and scripts: `hi.show(hi.probe(…))`, its table with a reading of it."""

from __future__ import annotations

import html
import io
from dataclasses import dataclass

import xarray as xr
from rich.console import Console
from rich.table import Table

from hopinterp.errors import HopInterpError
from hopinterp.evidence.patching.effects import default_metric
from hopinterp.views import sweeps, tables

_WIDTH = 160
_PRE = "<pre style='white-space: pre; overflow-x: auto; line-height: 1.25'>{code}</pre>"


@dataclass(frozen=True)
class Reading:
    """A table and its reading, whose last line is the answer: prints itself, and shows itself in a notebook."""

    table: Table
    reading: str

    def _printed(self) -> Console:
        console = Console(file=io.StringIO(), record=True, width=_WIDTH)
        console.print(self.table)
        return console

    def __str__(self) -> str:
        text = self._printed().export_text()
        return "\n".join(line.rstrip() for line in text.splitlines()).strip("\n") + f"\n\n{self.reading}"

    def __repr__(self) -> str:
        return f"<Reading: {self.reading.splitlines()[-1]}>"

    def _repr_html_(self) -> str:
        *lines, answer = map(html.escape, self.reading.splitlines())
        table = self._printed().export_html(inline_styles=True, code_format=_PRE)
        return f"<div><p><strong>{answer}</strong></p>{table}<p>{'<br>'.join(lines)}</p></div>"


def show(found: xr.Dataset, *, hops: int | None = None, metric: str | None = None) -> Reading:
    """What a command prints of what `evaluate`, `align`, `probe`, `patch`, `transplant` or `sweep` returned: a table and its
    reading.

    Args:
        hops: the k to show of what `align` returned for several.
        metric: of what `patch` returned; probability along the chain, else logit_difference, unless given.

    Raises:
        HopInterpError: another result, or a k or metric that was not measured.
    """
    if "status" in found and "cell" in found.dims:
        return Reading(sweeps.sweep_table(found), sweeps.sweep_reading(found))
    if "iia" in found and "leading" in found:
        return Reading(tables.transplant_table(found), tables.transplant_reading(found))
    if "accuracy" in found and "frontier" in found:
        return Reading(tables.probe_table(found), tables.probe_reading(found))
    if "score_valid" in found:
        one = found if hops is None and found.hops.size != 1 else _at(found, "hops", hops)
        if "hops" in one.dims:
            raise HopInterpError(f"this has {one.sizes['hops']} k: say which, as hops={int(one.hops[0])}")
        return Reading(tables.attention_table(one), tables.attention_reading(one))
    if "normalised" in found and "by" in found.attrs:
        name = metric or default_metric(found.attrs["by"])
        _at(found, "metric", name)
        return Reading(tables.patch_table(found, name), tables.patch_reading(found, name))
    if "null_error" in found:
        return Reading(tables.errors_table(found), tables.errors_reading(found, found.attrs.get("model") or "the model"))
    raise HopInterpError(
        "show knows what evaluate, align, probe, patch, transplant and sweep return; others show themselves"
    )


def _at(found: xr.Dataset, dim: str, value: int | str | None) -> xr.Dataset:
    """One entry of a dim, the only one where none is named."""
    if dim not in found.dims:
        return found
    known = found[dim].values.tolist()
    wanted = known[0] if value is None else value
    if wanted not in known:
        raise HopInterpError(f"{dim} is {wanted}; measured were {', '.join(map(str, known))}")
    return found.sel({dim: wanted})
