"""How the errors of the study's models, and what their first blocks carry, depend on how far apart a chain's letters stand.

    python analyses/distances.py RUNS

A hop from p to find^1(p) is of distance p − find^1(p), and near where that is at most 2: then the last occurrence of X_p is
among the three letters before p. A later hop of distance 1 comes with a letter that repeats two hops apart.

`data/study_distances.jsonl` has a line for each model of the sweep in RUNS. `errors`, of k from the largest that the
theorem grants on: scored positions and wrong answers among them, by whether a letter repeats two hops apart on the
chain, by the number of near hops, and by the mean distance of the hops, rounded down (5: and more). `probes`, of the
letter of hop j after a block, asked that largest k: held-out positions and hits of a linear probe by the distance of
hop j, the last one, and hits on the untrained model.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float, Int
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from study import DATA, grow
from torch import Tensor

import hopinterp as hi
from hopinterp.models.card import read_card
from hopinterp.task import Batch, HopTask
from hopinterp.training.record import read_config
from hopinterp.training.run import Run

NEAR = 2
"""The largest distance of a near hop."""
SPACED = 5
"""The largest mean distance that is told apart."""
BEYOND = 4
"""How many k are asked, from the largest that the theorem grants on."""
ASKED, FITTED, HELD_OUT = 600, 100, 150
"""Sequences for each k, for fitting probes, and for measuring them."""
ROWS = 6000
"""Positions that a probe is fitted on, at most."""
READ = ((0, 1), (1, 2))
"""Blocks and the hop that is read after each: one more than lookup makes known before and with it."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, help="the sweep's directory")
    parser.add_argument("--data", type=Path, default=DATA, help="directory of what is written")
    given = parser.parse_args()
    found = xr.load_dataset(given.data / "study.nc")
    done = [(str(cell),) for cell in found.cell.values[(found.status == "done").values]]
    grow(given.data / "study_distances.jsonl", done, lambda cell: by_distance(given.runs / cell))


def by_distance(run: Path) -> dict[str, Any]:
    """The line of one model."""
    network, task = hi.load_fused(run / "model")
    k = read_card(run / "model").granted
    models = {"trained": network, "untrained": Run(read_config(run), "cpu").averaged}
    return {
        "errors": {hops: errors(network, task, hops) for hops in range(k, min(k + BEYOND, task.max_hops + 1))},
        "probes": probes(models, task, k),
    }


@torch.no_grad()
def errors(network: Any, task: HopTask, hops: int) -> list[dict[str, int]]:
    """Scored positions and wrong answers at one k, by repeats, number of near hops, and mean distance rounded down."""
    batch = task.sample(ASKED, hops, seed=hops)
    answers = torch.cat([network(tokens).argmax(-1) for tokens in batch.tokens.split(100)])
    scored = batch.scored
    wrong, jumped = (answers != batch.labels)[scored], distances(batch)[:, :hops].movedim(1, -1)[scored]
    spacing = (jumped.sum(1) // hops).clamp(max=SPACED)
    keys = torch.stack([(~batch.no_repeats)[scored].long(), (jumped <= NEAR).sum(1), spacing], dim=1)
    groups, of = keys.unique(dim=0, return_inverse=True)
    counts = torch.stack([of.bincount(), of[wrong].bincount(minlength=len(groups))], dim=1)
    names = ("repeats", "near", "spacing", "positions", "wrong")
    return [dict(zip(names, row, strict=True)) for row in torch.cat([groups, counts], dim=1).tolist()]


def distances(batch: Batch) -> Int[Tensor, "batch hop position"]:
    """find^(j−1)(i) − find^j(i), for j = 1 … max_hops."""
    return batch.find[:, :-1] - batch.find[:, 1:]


def probes(models: Mapping[str, Any], task: HopTask, asked: int) -> list[dict[str, Any]]:
    """How often linear probes read the letters of READ in each model, by the distance of the hop; asked so many hops."""
    batches = task.sample(FITTED, asked, seed=1), task.sample(HELD_OUT, asked, seed=2)
    read = {name: [_residuals(model, batch) for batch in batches] for name, model in models.items()}
    return [_probe(read, *batches, layer, hop) for layer, hop in READ]


@torch.no_grad()
def _residuals(model: Any, batch: Batch) -> dict[int, Float[Tensor, "batch position d_model"]]:
    """The residual stream after each block of READ."""
    names = {layer: f"blocks.{layer}.hook_resid_post" for layer, _ in READ}
    caches = [model.run_with_cache(tokens, list(names.values()))[1] for tokens in batch.tokens.split(50)]
    return {layer: torch.cat([cache[name] for cache in caches]) for layer, name in names.items()}


def _probe(
    read: Mapping[str, list[dict[int, Tensor]]], fitting: Batch, held_out: Batch, layer: int, hop: int
) -> dict[str, Any]:
    there = [batch.find[:, hop] > 0 for batch in (fitting, held_out)]
    letters = [batch.hop_letters[:, hop][of].numpy() for batch, of in zip((fitting, held_out), there, strict=True)]
    distance = distances(held_out)[:, hop - 1][there[1]].numpy()
    positions = np.bincount(distance)
    counts = {"positions": positions}
    for name, residuals in read.items():
        rows = [of_batch[layer][of].numpy() for of_batch, of in zip(residuals, there, strict=True)]
        fitted = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300))
        with warnings.catch_warnings(action="ignore", category=ConvergenceWarning):
            fitted.fit(rows[0][:ROWS], letters[0][:ROWS])
        hits = fitted.predict(rows[1]) == letters[1]
        counts[name] = np.bincount(distance[hits], minlength=len(positions))
    seen = {name: row[positions > 0].tolist() for name, row in counts.items()}
    return {"block": layer, "hop": hop, "distance": np.flatnonzero(positions).tolist()} | seen


if __name__ == "__main__":
    main()
