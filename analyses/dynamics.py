"""When hops appear during training: every kept model of a run probed, transplanted and asked, into one file for notebook 7.

A run starts with short sequences. So every model is measured on sequences as long as it was trained on at that step, and
err_k also at full length: what a model does on longer sequences than it has seen says when the timetable changed, and not
what it learned.

    hopinterp train --preset first --layers 4 --steps 4000 --keep-every 200 --out RUN_DIR    # a run with its series kept
    python analyses/dynamics.py RUN_DIR OUT.nc

What stands in the file already is not measured again: a series goes on where it was stopped, or as its run does.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

import hopinterp as hi
from hopinterp.files import write_file

HOPS = 7
"""k of the probes and transplants: what a depth-4 successor solves."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="run directory that was trained with --keep-every")
    parser.add_argument("out", type=Path, help="netCDF file to write")
    parser.add_argument(
        "--sequences", type=int, default=100, help="for each kind of evidence (1.6 times as many fit probes)"
    )
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    kept = sorted(path for path in (given.run / "series").iterdir() if path.name.isdigit())
    if not kept:
        parser.error(f"{given.run} has no series: train with --keep-every")
    config = json.loads((given.run / "config.json").read_text(encoding="utf-8"))
    drawn = timetable(given.run, config["batch"])
    attrs = {"hops": HOPS, "sequences": given.sequences, "seed": given.seed, "config": json.dumps(config)}
    found = already(given.out, attrs)
    for path in kept:
        step = int(path.name)
        if step in found:
            continue
        letters, largest = drawn[step]
        one = measured(path, letters, given.sequences, given.seed)
        found[step] = one.assign(letters=letters, largest_hops=largest)
        write(found, attrs, given.out)
        print(f"step {step}: {len(found)} of {len(kept)}", flush=True)


def already(out: Path, attrs: dict[str, Any]) -> dict[int, xr.Dataset]:
    """What was measured before, by step. Raises HopInterpError where the file is of another run, or had other settings."""
    if not out.exists():
        return {}
    series = xr.load_dataset(out)
    if changed := [name for name, value in attrs.items() if series.attrs.get(name) != value]:
        raise hi.HopInterpError(f"{out} was measured with another {changed[0]}; give another file")
    return {int(step): series.sel(step=step, drop=True) for step in series.step.values}


def write(found: dict[int, xr.Dataset], attrs: dict[str, Any], out: Path) -> None:
    """The whole series, small: as float32."""
    steps = sorted(found)
    series = xr.concat([found[step] for step in steps], dim=xr.Variable("step", steps)).assign_attrs(attrs)
    encoding = {name: {"dtype": "float32"} for name, one in series.items() if one.dtype == np.float64}
    write_file(out, bytes(series.to_netcdf(encoding=encoding)))


def timetable(run: Path, batch: int) -> dict[int, tuple[int, int]]:
    """For each logged step, how many letters its sequences had, and the largest k that the curriculum asked for."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    logged = {line["step"]: line for line in lines if "largest_hops" in line}
    found, step, tokens = {}, 0, 0
    for line in logged.values():
        letters = (line["tokens"] - tokens) // ((line["step"] - step) * batch) - 1
        found[line["step"]] = letters, line["largest_hops"]
        step, tokens = line["step"], line["tokens"]
    return found


def measured(path: Path, letters: int, sequences: int, seed: int) -> xr.Dataset:
    """What one kept model does, holds and stands for. Names are those of `evaluate`, `probe` and `transplant`; `full_error`
    is err_k at full length, `error` err_k at the length of the moment, for k up to HOPS + 1."""
    model, whole = hi.load_fused(path)
    task = replace(whole, n_letters=letters)
    full = hi.evaluate(model, whole, sequences=sequences, seed=seed)[["error", "low", "high"]]
    full = full.rename(error="full_error", low="full_low", high="full_high")
    now = hi.evaluate(model, task, range(1, HOPS + 2), sequences=sequences, seed=seed)[["error", "low", "high"]]
    now = now.rename(low="error_low", high="error_high")
    seen = hi.probe(model, task, HOPS, train_sequences=8 * sequences // 5, sequences=sequences, seed=seed)
    seen = seen[["accuracy", "low", "high", "baseline", "untrained", "held", "resolved"]].sel(hop=slice(0, HOPS + 1))
    seen = seen.assign(held=seen.held.astype("int8"))  # netCDF knows no booleans
    moved = hi.transplant(model, task, HOPS, sequences=sequences, seed=seed)
    moved = moved[["leading", "leading_family", "share", "share_low", "contest", "best", "best_family"]]
    return xr.merge([full, now, seen, moved], compat="override", join="outer")


if __name__ == "__main__":
    main()
