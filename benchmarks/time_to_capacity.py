"""How long recipes train until a model has its depth's capacity: err_k ≤ 1% for every k < 2^(L − 1), Theorem 4.2's bound.

    python benchmarks/time_to_capacity.py [--layers 3 4 5] [--seeds 3] [--recipes first full] [--out times.jsonl]
    python benchmarks/time_to_capacity.py --layers 3 --recipes full "full lr=0.002" "full +polar"    single effects

Recipes of one depth and seed run in turn, 100 steps each, A B C A B C …, so that a machine whose speed drifts is as fast for
each. Only training is timed: CPU seconds of this process on a CPU, seconds on another device. Every 100 steps the model is
measured on sequences that it was not trained on, where the running errors of its training batches are all under 8%; the time
is that of the first measurement at which every err_k is at most 1%. What was run stands in --out, a line of JSON a run, and
is not run again. `first` is the recipe of version 0.1, for as many steps as the shipped model of that depth was trained.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from variants import vary

import hopinterp as hi
from hopinterp.evidence.reading.behaviour import SOLVED
from hopinterp.memory import keep_memory
from hopinterp.models import store
from hopinterp.training.run import Run
from hopinterp.views.tables import ruled_table

EVERY = 100
NEAR = 0.08  # running error above which a measurement would be in vain
SEQUENCES = {2: 200, 3: 200, 4: 150, 5: 80, 6: 50}


def shipped_steps(layers: int) -> int:
    """For how long the shipped model of a depth was trained."""
    steps: int = store.read_card(store.find(f"depth{layers}")).made["settings"]["steps"]
    return steps


@dataclass
class Trial:
    """One recipe at one depth and seed, as far as it was run.

    Attributes:
        recipe: a preset, settings that differ, and variants (see variants.py): "full lr=0.002 +polar".
        seconds: that its training steps took. `reached`: those at which capacity was measured, None before.
        worst: the largest err_k when it was last measured; None before that.
        most: steps after which it is given up; None: those that its recipe plans.
    """

    recipe: str
    layers: int
    seed: int
    device: str
    seconds: float = 0.0
    reached: float | None = None
    worst: float | None = None
    most: int | None = None
    run: Run = field(init=False)

    def __post_init__(self) -> None:
        preset, *words = self.recipe.split()
        changes, variants = [[word for word in words if word.startswith("+") is so] for so in (False, True)]
        settings: dict[str, Any] = {"steps": shipped_steps(self.layers)} if preset == "first" else {}
        settings |= {name: json.loads(value) for name, value in (change.split("=") for change in changes)}
        config = hi.TrainConfig.preset(preset, layers=self.layers, seed=self.seed, **settings)
        self.run = Run(config, self.device)
        for variant in variants:
            vary(self.run, variant)

    @property
    def hops(self) -> list[int]:
        """Every k that the theorem grants this depth, but for k = 0."""
        return list(range(1, 2 ** (self.layers - 1)))

    @property
    def last(self) -> int:
        """The step after which nothing more is trained."""
        return min(self.run.config.steps, self.most or self.run.config.steps)

    @property
    def done(self) -> bool:
        """Whether capacity was reached, or no step is left."""
        return self.reached is not None or self.run.step >= self.last

    def go_on(self) -> None:
        """The next steps, timed, and a measurement, not timed."""
        start = self._clock()
        for _ in range(min(EVERY, self.last - self.run.step)):
            self.run.advance()
        self.seconds += self._clock() - start
        if float(self.run.curriculum.errors[self.hops].max()) < NEAR or self.run.step == self.last:
            task = self.run.config.task
            found = hi.evaluate(self.run.averaged, task, hops=self.hops, sequences=SEQUENCES[self.layers], seed=2**20)
            self.worst = float(found.error.max())
            if self.worst <= SOLVED:
                self.reached = self.seconds

    def _clock(self) -> float:
        if self.device == "cpu":
            return time.process_time()
        torch.accelerator.synchronize()
        return time.perf_counter()

    def record(self) -> dict[str, Any]:
        """A line of results."""
        where = {"recipe": self.recipe, "layers": self.layers, "seed": self.seed, "device": self.device}
        threads = torch.get_num_threads()
        return where | {
            "threads": threads,
            "reached": self.reached,
            "worst": self.worst,
            "seconds": self.seconds,
            "steps": self.run.step,
            "tokens": self.run.tokens,
        }


def trials(
    layers: Sequence[int], seeds: int, recipes: Sequence[str], device: str, out: Path, most: int | None = None
) -> Iterator[dict[str, Any]]:
    """The results of all, those that `out` has first."""
    known = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
    kept = {(one["recipe"], one["layers"], one["seed"], one["device"]): one for one in known}
    for depth in layers:
        for seed in range(seeds):
            names = {recipe: (recipe, depth, seed, device) for recipe in recipes}
            yield from (kept[key] for key in names.values() if key in kept)
            running = [Trial(*key, most=most) for key in names.values() if key not in kept]
            while running:
                for trial in running:
                    trial.go_on()
                for trial in (trial for trial in running if trial.done):
                    record = trial.record()
                    with out.open("a") as file:
                        file.write(json.dumps(record) + "\n")
                    yield record
                running = [trial for trial in running if not trial.done]


def table(records: Sequence[dict[str, Any]], recipes: Sequence[str]) -> Any:
    """A row a depth and recipe: each seed's seconds, their median, and its ratio to the first recipe's."""
    shown = ruled_table("depth", "recipe", "seconds, a seed each", "median", "of the first", "steps, median")
    for depth in sorted({one["layers"] for one in records}):
        base = None
        for recipe in recipes:
            own = [one for one in records if (one["layers"], one["recipe"]) == (depth, recipe)]
            if not own:
                continue
            times = [one["reached"] if one["reached"] is not None else float("inf") for one in own]
            median = statistics.median(times)
            base = base or median
            each = ", ".join("not reached" if time == float("inf") else f"{time:.0f}" for time in times)
            steps = statistics.median(one["steps"] for one in own)
            shown.add_row(str(depth), recipe, each, f"{median:.0f}", f"{median / base:.2f}", f"{steps:.0f}")
    return shown


def main() -> None:
    """Run what is not there yet, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--layers", type=int, nargs="+", default=[3, 4, 5], choices=SEQUENCES, help="depths (default: 3 4 5)"
    )
    parser.add_argument("--seeds", type=int, default=3, help="how many, from 0 on (default: 3)")
    parser.add_argument("--recipes", nargs="+", default=["first", "full"], help="a preset and changes (default: first full)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or mps (default: cpu)")
    parser.add_argument("--most", type=int, help="steps after which a run is given up (default: those it plans)")
    parser.add_argument("--threads", type=int, default=1, help="processor threads (default: 1)")
    parser.add_argument(
        "--out", type=Path, default=Path("times.jsonl"), help="results kept and found (default: times.jsonl)"
    )
    settings = parser.parse_args()
    torch.set_num_threads(settings.threads)
    keep_memory()  # for every recipe alike: the process has one allocator
    records = []
    for record in trials(settings.layers, settings.seeds, settings.recipes, settings.device, settings.out, settings.most):
        records.append(record)
        print(json.dumps(record), flush=True)
    Console().print(table(records, settings.recipes))


if __name__ == "__main__":
    main()
