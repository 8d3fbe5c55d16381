"""Damaged results in a cache: what is asked for is measured again, or what is there is right; never an error."""

from __future__ import annotations

import json
import random
from pathlib import Path

from . import samples, values
from .campaign import Case, Outcome


def generate(rng: random.Random, place: Path) -> Case:
    """A cache with one file changed, before what it keeps is asked for."""
    files, told = samples.kept()
    samples.write(place / "c", files)
    path = place / "c" / rng.choice(sorted(files, key=lambda one: len(files[one])))
    if rng.random() < 0.1:
        what = values.no_file(rng, path)
    elif rng.random() < 0.2:
        lines = files[path.name].split(b"\n", 3)
        number = rng.choice((1, 2))
        changed, what = values.mutate_json(rng, lines[number])
        lines[number] = changed
        path.write_bytes(b"\n".join(lines))
    else:
        data, what = values.mutate_bytes(rng, files[path.name])
        path.write_bytes(data)

    def ask() -> None:
        print(json.dumps({one: measure(place / "c") for one, measure in samples.MEASURED.items()}))

    def wrong(outcome: Outcome) -> str | None:
        return None if json.loads(outcome.out) == told else "another result than was measured"

    return Case(what, call=ask, must="accept", wrong=wrong, makes=("c",))
