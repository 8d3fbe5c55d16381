"""The long campaign: `python -m tests.robustness --cards 1000 --weights 500 …`, or one case again: `--replay cards:0:17`."""

from __future__ import annotations

import argparse
import json
import sys
import time

import torch

from . import caches, cards, checkpoints, commands, records, runs, weights
from .campaign import Generator, Tally, prepare, run, run_one

KINDS: dict[str, Generator] = {
    "cards": cards.generate,
    "weights": weights.generate,
    "checkpoints": checkpoints.generate,
    "runs": runs.generate,
    "commands": commands.generate,
    "records": records.generate,
    "caches": caches.generate,
}


def main() -> int:
    """Run what is asked for; 1 if any case is bad."""
    parser = argparse.ArgumentParser(description=__doc__)
    for kind in KINDS:
        parser.add_argument(f"--{kind}", type=int, default=0, metavar="N", help=f"cases of {kind}")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--replay", metavar="KIND:SEED:NUMBER")
    parser.add_argument("--json", action="store_true", help="print what came of each kind as JSON")
    parser.add_argument("--kinds", action="store_true", help="print what came of each mutation")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    prepare()
    if asked.replay:
        return _replay(*asked.replay.split(":"))
    started, tallies = time.monotonic(), []
    for kind, generator in KINDS.items():
        if count := getattr(asked, kind):
            tallies.append(run(kind, generator, count, asked.seed, asked.first))
    if asked.json:
        print(json.dumps({tally.kind: vars(tally) for tally in tallies}))
    else:
        _table(tallies)
        print(f"seed {asked.seed}, {time.monotonic() - started:.0f} s")
    if asked.kinds:
        for tally in tallies:
            print(*(f"{count:6} {what}" for what, count in sorted(tally.kinds.items())), sep="\n")
    return int(any(tally.bad for tally in tallies))


def _table(tallies: list[Tally]) -> None:
    print(f"{'':12}{'cases':>8}{'accepted':>10}{'refused':>9}{'bad':>6}{'slowest s':>11}{'largest MB':>12}")
    for one in tallies:
        counts = f"{one.cases:8}{one.accepted:10}{one.refused:9}{len(one.bad):6}"
        print(f"{one.kind:12}{counts}{one.slowest:11.2f}{one.largest / 1e6:12.0f}")
    for one in tallies:
        print(*one.bad, sep="\n", end="\n" if one.bad else "")


def _replay(kind: str, seed: str, number: str) -> int:
    case, outcome, fault = run_one(kind, KINDS[kind], int(seed), int(number))
    print(case.what, *map(repr, case.words), sep=" ")
    print(
        f"status {outcome.status}, {outcome.seconds:.2f} s, {outcome.peak / 1e6:.0f} MB", outcome.out, outcome.err, sep="\n"
    )
    print("bad: " + fault if fault else "good")
    return int(fault is not None)


if __name__ == "__main__":
    sys.exit(main())
