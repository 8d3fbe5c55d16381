"""Seconds that `decompile` takes, by stage: of a processor and of the wall clock.

    python benchmarks/decompile.py [--model depth5] [--hops 8] [--threads 2] [--sequences 200] [--json]

Each k is decompiled alone, on one thread, so that each stage's processor seconds are its own; then, with several k, all of
them in one call, on as many threads as asked for. Loading is not counted.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import torch

import hopinterp as hi
from hopinterp.decompile.decompiled import STAGES
from hopinterp.progress import Progress


class Clock:
    """Seconds since it was last read."""

    def __init__(self) -> None:
        self.last = self._now()

    def read(self) -> dict[str, float]:
        """Of this process's processors, and of the wall clock."""
        before, self.last = self.last, self._now()
        return {"cpu": self.last[0] - before[0], "wall": self.last[1] - before[1]}

    @staticmethod
    def _now() -> tuple[float, float]:
        return time.process_time(), time.perf_counter()


def stages(model: str, hops: int, sequences: int) -> dict[str, dict[str, float]]:
    """One k alone, by stage; `total` is all of them."""
    network, task = hi.load(model)
    spent: list[dict[str, float]] = []
    clock = Clock()

    def report(_: Progress) -> None:
        spent.append(clock.read())

    hi.decompile(network, task, hops, sequences=sequences, report=report)
    found = dict(zip(STAGES, spent, strict=True))
    return found | {"total": {name: sum(one[name] for one in spent) for name in ("cpu", "wall")}}


def together(model: str, hops: list[int], sequences: int, threads: int) -> dict[str, Any]:
    """All k in one call, with how many are explained."""
    network, task = hi.load(model)
    torch.set_num_threads(threads)
    clock = Clock()
    found = hi.decompile(network, task, hops, sequences=sequences)
    return clock.read() | {"threads": threads, "explained": [k for k, one in found.by_hops.items() if one.explained]}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="depth5", help="a shipped model's name or a directory")
    parser.add_argument("--hops", default="8", help="k: 8, 1,2,5 or 1-16")
    parser.add_argument("--threads", type=int, default=2, help="for several k in one call")
    parser.add_argument("--sequences", type=int, default=200)
    parser.add_argument("--together", action="store_true", help="several k in one call alone, not each by itself before")
    parser.add_argument("--json", action="store_true")
    settings = parser.parse_args()
    ks = [k for part in settings.hops.split(",") for k in _range(part)]
    found: dict[str, Any] = {}
    torch.set_num_threads(1)
    for k in () if settings.together else ks:
        found[f"k = {k}"] = stages(settings.model, k, settings.sequences)
        if not settings.json:
            print(f"{settings.model}, k = {k}")
            for name, one in found[f"k = {k}"].items():
                print(f"  {name:<24}{one['cpu']:8.2f} s cpu{one['wall']:8.2f} s wall", flush=True)
    if len(ks) > 1:
        all_k = found["all k"] = together(settings.model, ks, settings.sequences, settings.threads)
        if not settings.json:
            print(
                f"{len(ks)} k on {settings.threads} threads: {all_k['cpu']:.1f} s cpu, {all_k['wall']:.1f} s wall;", end=" "
            )
            print("explained:", *all_k["explained"])
    if settings.json:
        print(json.dumps(found))


def _range(text: str) -> range:
    first, _, last = text.partition("-")
    return range(int(first), int(last or first) + 1)


if __name__ == "__main__":
    main()
