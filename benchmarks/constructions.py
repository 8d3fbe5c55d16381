"""How exact the constructed models are: errors, softmax margins and the longest sequence that float32 still carries.

    python benchmarks/constructions.py [--positions 100000] [--longest] [--json]

Half of the sequences have no repeated neighbours, half are uniform; each uses four letters of its alphabet, so that chains
of 16 hops are common however large the alphabet is. Margins are also measured on sequences of one and of two letters, where
occurrence numbers are largest.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from typing import Any

import torch

import hopinterp as hi
from hopinterp.models.fused import FusedTransformer
from hopinterp.theory.construction import ALGORITHMS, Construction
from hopinterp.theory.margins import margins

HOPS = 16
SIZES = ((100, 4), (100, 26), (500, 4))


def sequences(task: hi.HopTask, count: int, seed: int) -> torch.Tensor:
    """Letters [sequence, n] over four letters of the alphabet each: half without repeated neighbours, half uniform."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.rand(count, task.alphabet_size, generator=generator).argsort(1)[:, :4]
    steps = torch.randint(1, 4, (count, task.n_letters), generator=generator).cumsum(1) % 4
    uniform = torch.randint(4, (count, task.n_letters), generator=generator)
    rows = torch.where(torch.arange(count)[:, None] % 2 == 0, steps, uniform)
    return chosen.gather(1, rows)


def extremes(task: hi.HopTask) -> torch.Tensor:
    """One letter only, and two at random."""
    generator = torch.Generator().manual_seed(0)
    return torch.stack([torch.zeros(task.n_letters).long(), torch.randint(2, (task.n_letters,), generator=generator)])


def chunks(task: hi.HopTask, positions: int, hops: int, seed: int) -> Iterator[hi.Batch]:
    """Batches that hold at least so many positions in all."""
    for start in range(0, positions, 100 * task.n_letters):
        yield task.from_letters(sequences(task, 100, seed + start), hops)


@torch.no_grad()
def exactness(algorithm: str, task: hi.HopTask, positions: int, multi_task: bool) -> dict[str, Any]:
    """Errors over every k from 1 (0 for a multi-task model) to 16, and the smallest margin."""
    every = Construction.of(task, None, algorithm)
    found: dict[str, Any] = {"errors": 0, "positions": 0, "fewest_long_chains": None, "smallest_margin": torch.inf}
    for k in range(0 if multi_task else 1, HOPS + 1):
        made = every if multi_task else Construction.of(task, k, algorithm)
        long_chains = 0
        for index, batch in enumerate(chunks(task, positions, k, seed=k)):
            found["errors"] += int((made.fused(batch.tokens).argmax(-1) != batch.labels)[:, 1:].sum())
            found["positions"] += batch.labels[:, 1:].numel()
            chain = batch.find[:, : k + 1]
            long_chains += int(((chain > 0).all(1) & (chain.diff(dim=1) < 0).all(1)).sum())
            if index == 0:
                few = task.from_letters(torch.cat([sequences(task, 10, seed=k), extremes(task)]), k)
                found["smallest_margin"] = min(found["smallest_margin"], float(margins(made, few).margin.min()))
        found["fewest_long_chains"] = min(found["fewest_long_chains"] or long_chains, long_chains)
    return found


@torch.no_grad()
def longest(algorithm: str, hops: int = 8) -> dict[str, int]:
    """The longest n of a growing series at which two sequences (one uniform) are answered without an error."""
    exact = 0
    for n in (500, 600, 700, 800, 1000, 1500, 2000, 3000, 6000, 10_000, 20_000, 30_000):
        task = hi.HopTask(n, 4, HOPS)
        model: FusedTransformer = Construction.of(task, hops, algorithm).fused
        batch = task.from_letters(sequences(task, 2, seed=0), hops)
        wrong = 0
        for row, label in zip(batch.tokens, batch.labels, strict=True):  # one by one: attention of 30,000 positions is large
            wrong += int((model(row[None]).argmax(-1)[0] != label)[1:].sum())
        if wrong:
            return {"exact_to": exact, "wrong_at": n}
        exact = n
    return {"exact_to": exact}


def main() -> None:
    """Run the series and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--positions", type=int, default=100_000, help="at least so many for each k")
    parser.add_argument("--longest", action="store_true", help="also look for the longest exact n (minutes)")
    parser.add_argument("--json", action="store_true")
    settings = parser.parse_args()
    found: dict[str, Any] = {}
    for n, alphabet in SIZES:
        task = hi.HopTask(n, alphabet, HOPS)
        for algorithm in ALGORITHMS:
            for multi_task in (False, True):
                name = f"{algorithm}{', every k' if multi_task else ''}, n = {n}, |Σ| = {alphabet}"
                found[name] = exactness(algorithm, task, settings.positions, multi_task)
                if not settings.json:
                    print(name, found[name], flush=True)
    for algorithm in ALGORITHMS if settings.longest else ():
        found[f"{algorithm}, longest"] = longest(algorithm)
        if not settings.json:
            print(f"{algorithm}, longest", found[f"{algorithm}, longest"], flush=True)
    if settings.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
