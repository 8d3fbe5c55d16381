"""Damaged and forged results in a cache: what is asked for is measured again, or what is there is right; never an error."""

from __future__ import annotations

import json
import random
from pathlib import Path

from hopinterp.files import digest

from . import samples, values
from .campaign import Case, Outcome


def generate(rng: random.Random, place: Path) -> Case:
    """A cache with one file changed, before what it keeps is asked for. A third of the changes have their digest put right,
    as only another hand would: then the numbers may be others, but nothing may fail."""
    files, told = samples.kept()
    samples.write(place / "c", files)
    name = rng.choice(sorted(files, key=lambda one: len(files[one])))
    path, forged, what = place / "c" / name, False, ""
    if rng.random() < 0.1:
        what = values.no_file(rng, path)
    elif rng.random() < 0.4:
        first, label, record, payload = files[name].split(b"\n", 3)
        if rng.random() < 0.8:
            record, what = values.mutate_json(rng, record)
            record = record.replace(b"\n", b" ")
        else:
            payload, what = values.mutate_bytes(rng, payload)
        rest, forged = b"\n".join([label, record, payload]), True
        path.write_bytes(first.rsplit(b" ", 1)[0] + b" " + digest(rest).encode() + b"\n" + rest)
    else:
        data, what = values.mutate_bytes(rng, files[name])
        path.write_bytes(data)

    def ask() -> None:
        print(json.dumps({one: measure(place / "c") for one, measure in samples.MEASURED.items()}))

    def wrong(outcome: Outcome) -> str | None:
        said = json.loads(outcome.out)
        if forged:
            return None if said.keys() == told.keys() else "not all is said"
        return None if said == told else "another result than was measured"

    return Case(f"{'forged' if forged else 'damaged'} {what}", call=ask, must="accept", wrong=wrong, makes=("c",))
