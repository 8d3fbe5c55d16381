"""Damaged verdicts and programs, saved by the library, before they are loaded and shown."""

from __future__ import annotations

import json
import random
from pathlib import Path

from . import samples, values, weights
from .campaign import Case, Outcome


def generate(rng: random.Random, place: Path) -> Case:
    """A saved verdict, one of its files damaged: loaded, judged again and printed; or its program alone."""
    files = samples.verdict()
    samples.write(place / "v", files)
    name = rng.choice((*sorted(files), "judgement.json", "judgement.json", "decompiled.json", "decompiled.json"))
    path = place / "v" / name
    if rng.random() < 0.08:
        what = values.no_file(rng, path)
    elif name.endswith(".json"):
        data, what = values.mutate_json(rng, files[name])
        path.write_bytes(data)
    else:
        change = weights.mutate if name.endswith(".safetensors") and rng.random() < 0.5 else values.mutate_bytes
        data, what = change(rng, files[name])
        path.write_bytes(data)
    program_alone = name.startswith(("decompiled", "patterns")) and rng.random() < 0.5
    call = (lambda: _show_program(place / "v")) if program_alone else (lambda: _show_verdict(place / "v"))
    # by size first: what stands there may be a sparse file of many gigabytes
    same = path.is_file() and path.stat().st_size == len(files[name]) and path.read_bytes() == files[name]
    binary = path.is_file() and not name.endswith(".json") and not same
    return Case(f"{name} {what}", call=call, must="refuse" if binary else "either", wrong=_told)


def _show_program(directory: Path) -> None:
    from hopinterp.decompile.decompilation import load_decompiled

    found = load_decompiled(directory)
    print(json.dumps({"text": str(found), "json": found.to_json(), "html": found._repr_html_()}))


def _show_verdict(directory: Path) -> None:
    from hopinterp.judgement.records import load_verdict

    found = load_verdict(directory)
    print(json.dumps({"text": str(found), "json": found.to_json(), "html": found._repr_html_()}))


def _told(outcome: Outcome) -> str | None:
    return None if json.loads(outcome.out)["text"] else "nothing is shown"
