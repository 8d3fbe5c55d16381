"""Trainings that are killed at random and resumed, again and again, until they are done: to the same bits.

`python -m tests.robustness.chains --count 50 --seed 0` runs fifty.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from .faults import Server, server

SIZES = ("--layers", 1, "--d-model", 8, "--heads", 1, "--letters", 6, "--alphabet", 3, "--max-hops", 1, "--batch", 2)
TRAIN: tuple[object, ...] = (
    "train",
    *SIZES,
    "--steps",
    250,
    "--checkpoint-every",
    20,
    "--log-every",
    7,
    "--keep-every",
    50,
    "--eval-every",
    100,
)
TRAIN += ("--threads", 1)


@dataclass(frozen=True)
class Chain:
    """How one went.

    Attributes:
        kills: by signal and milliseconds.
        identical: whether its weights, and those kept on the way, are those of a run that nothing stopped.
    """

    kills: tuple[str, ...]
    identical: bool
    left: tuple[str, ...]


def chain(made: Server, where: Path, seed: int) -> Chain:
    """Train with a seed, whole and in pieces."""
    words, drawn = (*TRAIN, "--seed", seed), random.Random(seed)
    whole = made.run(*words, "--out", "whole", cwd=where)
    assert whole.status == 0, whole.err
    kills: list[str] = []
    while True:
        again = (where / "r" / "config.json").exists()
        running = made.start(*(("train", "--resume", "r") if again else (*words, "--out", "r")), cwd=where)
        name, wait = drawn.choice(("SIGKILL", "SIGTERM", "SIGINT", "SIGHUP")), drawn.expovariate(1 / 0.15)
        until = time.monotonic() + wait + (0.3 if len(kills) > 8 else 0)  # in the end it gets there
        while time.monotonic() < until and running.alive:
            time.sleep(0.002)
        running.signal(name)
        done = running.wait()
        if done.status == 0:
            break
        early = (
            done.status == -getattr(signal, name) and not done.out + done.err
        )  # before the program was there to answer it
        assert early or done.status in (-9, 129, 130, 143), done
        kills.append(f"{name} {wait * 1000:.0f}")
    time.sleep(1.1 if any(path.name.startswith(".") for path in (where / "r").rglob("*")) else 0)
    final = made.run("train", "--resume", "r", cwd=where)  # which clears what kills left
    left = tuple(str(path) for path in (where / "r").rglob(".*"))
    same = final.status == 0 and digests(where / "r") == digests(where / "whole")
    return Chain(tuple(kills), same and not left, left)


def digest(run: Path) -> str:
    """Of a finished run's weights."""
    return hashlib.sha256((run / "model" / "model.safetensors").read_bytes()).hexdigest()


def digests(run: Path) -> dict[str, str]:
    """Of all weights in a run, but its checkpoint's, which has times in it."""
    return {str(path.relative_to(run)): hashlib.sha256(path.read_bytes()).hexdigest() for path in run.rglob("*.safetensors")}


def main() -> None:
    """Run many, and say how they went."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    identical = kills = 0
    with server() as made:
        for seed in range(asked.seed, asked.seed + asked.count):
            with tempfile.TemporaryDirectory() as place:
                found = chain(made, Path(place), seed)
            identical, kills = identical + found.identical, kills + len(found.kills)
            print(
                f"seed {seed}: {'identical' if found.identical else 'DIFFERENT'} after {', '.join(found.kills)}",
                flush=True,
            )
    print(f"{identical} of {asked.count} identical, {kills} kills")
    sys.exit(identical != asked.count)


if __name__ == "__main__":
    main()
