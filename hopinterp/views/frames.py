"""Results as tidy tables: pandas DataFrames of one row a cell, a block or a head."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import pandas as pd
import xarray as xr

from hopinterp.decompile.decompilation import Decompilation
from hopinterp.decompile.records import Decompiled
from hopinterp.judgement.records import Verdict
from hopinterp.judgement.surveys import Survey


def of_datasets(found: Iterable[xr.Dataset]) -> pd.DataFrame:
    """Datasets of one kind as one table: a row a cell (layer, hop, …), the model and k before it, then every variable; what
    has fewer dims is repeated."""
    frames = []
    for one in found:
        widest = max(one.data_vars.values(), key=lambda variable: variable.ndim)
        dims = [*widest.dims, *(name for name in one.dims if name not in widest.dims)]
        frame = one.to_dataframe(dim_order=dims).reset_index()
        if "hops" not in frame and "hops" in one.attrs:
            frame.insert(0, "hops", one.attrs["hops"])
        if "model" not in frame:
            frame.insert(0, "model", one.attrs.get("model", ""))
        frames.append(frame)
    return pd.concat(frames, ignore_index=True)


def of_sweep(found: xr.Dataset) -> pd.DataFrame:
    """A sweep as a row a cell and k; R(ℓ) of all blocks in one column, "0 1 3"."""
    plain = found.drop_vars([name for name in ("reach", "layer") if name in found.variables])
    if "hops" not in plain.dims or not any("hops" in one.dims for one in plain.data_vars.values()):
        return plain.drop_vars("hops", errors="ignore").to_dataframe().reset_index()
    frame = plain.to_dataframe(dim_order=["cell", "hops"]).reset_index()
    reach = found.reach.transpose("cell", "hops", "layer").values.reshape(len(frame), -1)
    frame["reach"] = [" ".join(str(int(value)) for value in row if value == value) for row in reach]
    return frame


def of_found(found: Verdict | Survey | Decompiled | Decompilation) -> pd.DataFrame:
    """A verdict as a row a block, or a program as a row a head; of several k one under the other."""
    if isinstance(found, Verdict):
        return pd.DataFrame(_blocks(found))
    if isinstance(found, Survey):
        return pd.DataFrame([row for one in found.verdicts.values() for row in _blocks(one)])
    programs = [found] if isinstance(found, Decompiled) else list(found.by_hops.values())
    return pd.DataFrame([row for one in programs for row in _heads(one)])


def _blocks(one: Verdict) -> Iterator[dict[str, Any]]:
    start = {"model": one.model, "hops": one.hops, "verdict": one.verdict, "form": one.form, "pace": one.pace, **one.error}
    for layer in range(len(one.attended)):
        row = start | {"layer": layer, "attended": " ".join(map(str, one.attended[layer]))}
        for name, values in one.resolved.items():
            row |= _ends(name, values[layer], any(isinstance(value, tuple) for value in values))
        yield row | {f"theory_{name}": values[layer] for name, values in one.theory.items()}


def _ends(name: str, value: Any, pair: bool) -> Mapping[str, Any]:
    """R(ℓ) as a column, or as two where it is known between two ends."""
    if not pair:
        return {name: value}
    low, high = value if isinstance(value, tuple) else (value, value)
    return {f"{name}_low": low, f"{name}_high": high}


def _heads(one: Decompiled) -> Iterator[dict[str, Any]]:
    start = {"model": one.model, "hops": one.hops, "explained": one.explained}
    start |= {"own": one.error["own"], "routed": one.error["routed"], "tree": one.tree.error, "joint": one.error["joint"]}
    kept = {(node.layer, node.head) for node in one.tree.nodes}
    for layer, routes in enumerate(one.routes):
        for head, route in enumerate(routes):
            carries = (layer, head) in kept
            yield start | {"layer": layer, "reach": one.reach[layer], "head": head, "route": str(route), "carries": carries}
