"""What the models of the study came to, from its sweep's directory into small files that notebook 10 reads.

    hopinterp sweep analyses/study.toml --out RUNS --workers 2 --threads 1
    python analyses/study.py RUNS

`data/study.nc` is the sweep's Dataset; `data/study_programs.jsonl` has a line for each model, with some k that it solves:
where each head looks, which jumps add up to k, how many hops each block makes known. `data/study_series.jsonl` has the same
for the models on the way of the seeds that --series names, at full length, and the errors of all k.
`data/study_distinct.jsonl` has the program at the largest k that the theorem grants, of chains alone on which no letter
repeats two hops apart. `data/study_heads.nc` says for every model, also one that solves little and those of --also,
how much of each head's attention follows each find^j at k = 3 (`align`), and its errors.

What stands in the files is not measured again, so that a run that was stopped goes on, and a study can grow.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, SupportsIndex

import numpy as np
import torch
import xarray as xr
from jaxtyping import Bool
from torch import Tensor

import hopinterp as hi
from hopinterp.files import write_file
from hopinterp.models.card import read_card
from hopinterp.shown import finite
from hopinterp.task import Batch, HopTask

DATA = Path(__file__).parent / "data"
ATTENDED = 3
"""k at which heads are read: the paper's hop_3."""
ON_THE_WAY = (2, 3, 4, 7)
"""k at which models on the way are decompiled, those that they solve."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, help="the sweep's directory")
    parser.add_argument("--series", type=int, nargs="*", default=[0], help="seeds whose models on the way are decompiled")
    parser.add_argument("--also", type=Path, nargs="*", default=[], help="runs beside the sweep whose heads are read too")
    parser.add_argument("--data", type=Path, default=DATA, help="directory of what is written")
    given = parser.parse_args()
    found = hi.sweep_results(given.runs)
    write_file(given.data / "study.nc", bytes(found.to_netcdf(encoding=_packed(found))))
    done = found.cell.values[(found.status == "done").values].tolist()
    print(f"{len(done)} of {found.sizes['cell']} models are done")
    grow(given.data / "study_programs.jsonl", [(cell,) for cell in done], lambda cell: programs(given.runs / cell))
    seeds = [cell for cell in done if int(found.seed.sel(cell=cell)) in given.series]
    steps = [(cell, path.name) for cell in seeds for path in sorted((given.runs / cell / "series").glob("[0-9]*"))]
    grow(given.data / "study_series.jsonl", steps, lambda cell, step: on_the_way(given.runs / cell / "series" / step))
    judged = [(cell,) for cell in done if not int(found.samples.sel(cell=cell) if "samples" in found else 0)]
    grow(given.data / "study_distinct.jsonl", judged, lambda cell: on_distinct(given.runs / cell / "model"))
    heads([given.runs / cell for cell in done] + given.also, given.data / "study_heads.nc")


def _packed(found: xr.Dataset) -> dict[Any, Any]:
    """Numbers to seven digits, which is more than they mean."""
    return {name: {"dtype": "float32"} for name, one in found.items() if one.dtype == np.float64}


def grow(out: Path, wanted: list[tuple[str, ...]], measure: Any) -> None:
    """A line of JSON for each of what is wanted that has none yet."""
    lines = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()] if out.exists() else []
    there = {tuple(line["of"]) for line in lines}
    with out.open("a", encoding="utf-8") as file:
        for one in wanted:
            if one not in there:
                print(json.dumps({"of": one, **finite(measure(*one))}), file=file, flush=True)
                print(*one, flush=True)


def programs(run: Path) -> dict[str, Any]:
    """The programs that the sweep found in a model, at every k, and its verdicts' reasons."""
    found: dict[int, hi.Decompiled] = {}
    verdicts: dict[str, Any] = {}
    if (run / "programs").is_dir():
        read = hi.load_decompiled(run / "programs")
        found |= {read.hops: read} if isinstance(read, hi.Decompiled) else dict(read.by_hops)
    if (run / "verdicts").is_dir():
        verdict = hi.load_verdict(run / "verdicts")
        verdicts = {"hops": verdict.hops, "verdict": verdict.verdict, "form": verdict.form, "reasons": verdict.reasons}
        if verdict.program is not None:
            found[verdict.hops] = verdict.program
    return {"programs": {k: program(one) for k, one in sorted(found.items())}, "verdict": verdicts}


def program(found: hi.Decompiled) -> dict[str, Any]:
    """What is compared between models. `known`: the hops that nodes bring by each block, where `reach` has also what only a
    later jump implies. `heads`: each head's rule, its parts as (kind, hop, share)."""
    return {
        "derivations": found.derivations,
        "reach": found.reach,
        "known": found.queries.known,
        "nodes": len(found.tree.nodes),
        "explained": found.explained,
        "missed": found.missed_briefly,
        "error": found.error,
        "tree": found.tree.error,
        "without": found.tree.without,
        "heads": [
            [[(part.kind, part.hop, round(part.share, 3)) for part in route.parts] for route in block]
            for block in found.routes
        ],
    }


def on_the_way(model: Path) -> dict[str, Any]:
    """The programs of a model that is not yet trained to the end, at some k that it solves; and all its errors."""
    network, task = hi.load_fused(model)
    errors = hi.evaluate(network, task, sequences=200)
    solved = [k for k in ON_THE_WAY if errors.solved.sel(hops=k)]
    found = {k: hi.decompile(network, task, k, sequences=100, every_way=True) for k in solved}
    return {"programs": {k: program(one) for k, one in found.items()}, "errors": errors.error.values.tolist()}


@dataclass(frozen=True, eq=False, repr=False)
class _Strict(Batch):
    """A batch of which only those positions count on whose chain no letter repeats two hops apart."""

    def __getitem__(self, index: SupportsIndex | slice | Sequence[int] | Tensor) -> Batch:
        return _Strict(**vars(super().__getitem__(index)))

    @cached_property
    def scored(self) -> Bool[Tensor, "batch position"]:
        return Batch(self.task, self.tokens, self.labels, self.find1).no_repeats


class _WithoutRepeats(HopTask):
    """The task asked only on chains on which no letter repeats two hops apart."""

    def sample(self, batch_size: int, hops: Any = None, *, device: str | torch.device = "cpu", **drawn: Any) -> Batch:
        return _Strict(**vars(super().sample(batch_size, hops, **drawn | {"distinct": True}).to(device)))


def on_distinct(model: Path) -> dict[str, Any]:
    """The program at the largest k that the theorem grants, found and measured on chains without repeats."""
    network, task = hi.load_fused(model)
    k = read_card(model).granted
    strict = _WithoutRepeats(task.n_letters, task.alphabet_size, task.max_hops)
    try:
        return {"hops": k} | program(hi.decompile(network, strict, k, sequences=100, every_way=True))
    except hi.HopInterpError as error:  # it does not solve k there
        return {"hops": k, "explained": False, "refused": str(error)}


def heads(runs: list[Path], out: Path) -> None:
    """How much of each head's attention follows each find^j, and err_k, of every run's model."""
    kept = xr.load_dataset(out) if out.exists() else None
    known = [] if kept is None else kept.cell.values.tolist()
    new = [_attended(run) for run in runs if run.name not in known]
    if new:
        parts = [*([] if kept is None else [kept]), *new]
        together = xr.concat(parts, "cell", join="outer", combine_attrs="override")
        write_file(out, bytes(together.to_netcdf(encoding=_packed(together))))


def _attended(run: Path) -> xr.Dataset:
    network, task = hi.load_fused(run / "model")
    errors = hi.evaluate(network, task, sequences=200).error.rename(hops="asked")
    found = hi.align(network, task, ATTENDED, sequences=100)
    return found.assign(error=errors.drop_vars(set(errors.coords) - {"asked"})).expand_dims(cell=[run.name])


if __name__ == "__main__":
    main()
