"""Damaged run directories, before `train --resume`."""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
from pathlib import Path
from typing import Any

import torch

from . import checkpoints, samples, values
from .campaign import Case, Outcome

_WORDS = ("train", "--resume", "run")
_FILES = ("checkpoint.pt", "config.json", "metrics.jsonl")


_STEPS = ('"x"', "null", "-1", "1e400", "99", "true", "NaN", '2, "step": 3')
_LINES = tuple(f'{{"step": {step}}}'.encode() for step in _STEPS)
_LINES += (b"", b"{", b"null", b"3", b"\xff\xfe", b"[" * 100_000, b"9" * 5000)


def generate(rng: random.Random, place: Path) -> Case:
    """A run that was killed, one thing in it changed: it goes on to the same weights, or is refused."""
    ways = (
        _checkpoint,
        _checkpoint,
        _checkpoint,
        _config,
        _config,
        _config,
        _metrics,
        _odd_file,
        _leftover,
        _resealed,
        _link,
    )
    return rng.choice(ways)(rng, place)


def _case(place: Path, changed: samples.Files, what: str, must: Any = "either", tidies: tuple[str, ...] = ()) -> Case:
    samples.write(place / "run", samples.run() | changed)
    return Case(what, _WORDS, must=must, wrong=_same, makes=("run",), tidies=tidies)


def _same(outcome: Outcome) -> str | None:
    """What is wrong with a run that went on: other weights, or anything left beside its files."""
    found, wanted = samples.files_of(outcome.place / "run"), samples.finished()
    if found["model/model.safetensors"] != wanted["model/model.safetensors"]:
        return "it went on to other weights"
    if strange := sorted(name for name in found.keys() ^ wanted.keys() if not name.startswith("stranger")):
        return f"its files differ: {strange[:3]}"
    steps = [json.loads(line)["step"] for line in found["metrics.jsonl"].decode().splitlines()]
    return (
        None if steps[-3:] == [4, 5, 6] and all(0 <= step <= 3 for step in steps[:-3]) else f"metrics are of steps {steps}"
    )


def _checkpoint(rng: random.Random, place: Path) -> Case:
    plain = samples.run()["checkpoint.pt"]
    data, what = values.mutate_bytes(rng, plain)
    return _case(place, {"checkpoint.pt": data}, f"checkpoint {what}", "refuse" if data != plain else "accept")


def _config(rng: random.Random, place: Path) -> Case:
    plain = samples.run()["config.json"]
    given = json.loads(plain)
    if rng.random() < 0.4:
        name = rng.choice(sorted(given))
        data = values.text_of(rng, given | {name: values.odd(rng)})
        what = f"value: {name}"
    else:
        data, what = values.mutate_json(rng, plain)
    return _case(place, {"config.json": data}, f"config {what}", "either" if _equal(data, given) else "refuse")


def _equal(data: bytes, given: dict[str, Any]) -> bool:
    """Whether text says the same settings, whatever it looks like."""
    try:
        found = json.loads(data)
        # how often things are written is no part of what is trained, and may be left out where it is the default
        plain = {"checkpoint_every": 200, "keep_every": 0, "log_every": 50, "eval_every": 1000}
        return {**plain, **found} == given
    except (ValueError, TypeError, RecursionError):
        return False


def _metrics(rng: random.Random, place: Path) -> Case:
    """Whatever metrics.jsonl holds, the run goes on."""
    plain = samples.run()["metrics.jsonl"]
    lines = plain.splitlines()
    at = rng.randrange(len(lines))
    if rng.random() < 0.4:
        data, what = values.mutate_bytes(rng, plain)
    else:
        lines[at] = rng.choice(_LINES)
        data, what = b"\n".join(lines), f"line: {lines[at][:20]!r}"
    return _case(place, {"metrics.jsonl": data}, f"metrics {what}")


def _odd_file(rng: random.Random, place: Path) -> Case:
    """Something else in a file's place."""
    case = _case(place, {}, "")
    name = rng.choice(_FILES)
    what = values.no_file(rng, place / "run" / name)
    must = "either" if name == "metrics.jsonl" or what.startswith("nothing") else "refuse"
    if what.startswith("nothing") and name == "checkpoint.pt":
        return Case(what, case.words, wrong=_from_the_start, makes=("run",))
    return Case(what, case.words, must=must, wrong=_same, makes=("run",))


def _from_the_start(outcome: Outcome) -> str | None:
    """Without a checkpoint a run begins again, and comes to the same weights."""
    return _same(outcome)


def _leftover(rng: random.Random, place: Path) -> Case:
    """What processes that were killed left: gone when the run has gone on. What is nobody's stays."""
    case = _case(place, {}, "leftover")
    run, kind = (
        place / "run",
        rng.choice(("file", "folder", "in the series", "foreign", "old model", "old beside a new model")),
    )
    name = f".{rng.choice(_FILES)}-{rng.randbytes(6).hex()}.partial"
    if kind == "file":
        (run / name).write_bytes(rng.randbytes(50))
    elif kind == "folder":
        (run / f".model-{rng.randbytes(6).hex()}.partial").mkdir()
        (run / f".model-{rng.randbytes(6).hex()}.partial" / "x").parent.mkdir()
        samples.write(run / f".model-{rng.randbytes(6).hex()}.partial", samples.model())
    elif kind == "in the series":
        samples.write(run / "series" / f".0000002-{rng.randbytes(6).hex()}.partial", samples.model())
    elif kind == "old model":
        samples.write(run / f".model-{rng.randbytes(6).hex()}.old", samples.model())
    elif kind == "old beside a new model":
        samples.write(run / f".model-{rng.randbytes(6).hex()}.old", samples.model())
        samples.write(run / "model", samples.model())
    else:
        (run / "stranger").write_bytes(b"x")
        (run / "stranger.partial").write_bytes(b"x")
    long_ago = 10**9
    for path in run.rglob("*"):
        os.utime(path, (long_ago, long_ago))
    return Case(f"leftover {kind}: run", case.words, must="accept", wrong=_same, makes=("run",), tidies=("run",))


def _resealed(rng: random.Random, place: Path) -> Case:
    """A checkpoint changed by hand, with a digest that is right."""
    plain = samples.run()["checkpoint.pt"]
    data = plain[: -len(_seal(b""))]
    if rng.random() < 0.5:
        state = torch.load(io.BytesIO(data), weights_only=True)
        keys = [path for path in values.paths_in(state) if path != ("config",)]
        *above, key = rng.choice(keys)
        holder: Any = state
        for step in above:
            holder = holder[step]
        value = rng.choice(
            (*(one for one in values.VALUES if one != "\ud800"), torch.zeros(3), torch.zeros(0, dtype=torch.uint8))
        )
        if isinstance(holder, dict | list):
            holder[key] = value
        changed, what = samples.torch_saved(state), f"value: {'/'.join(map(str, (*above, key)))} = {value!r:.20}"
    else:

        def change(pickled: bytes) -> bytes:
            nonlocal what
            found, what = values.mutate_bytes(rng, pickled)
            return found

        what = ""
        changed = checkpoints.with_pickle(data, change)
    case = _case(place, {"checkpoint.pt": changed + _seal(changed)}, f"resealed {what}")
    # whoever makes a digest can make any state: it may go on to other weights, but in order
    return Case(case.what, case.words, wrong=lambda _: None, makes=("run",))


def _seal(data: bytes) -> bytes:
    return b"\nsha256 " + hashlib.sha256(data).hexdigest().encode() + b"\n"


def _link(rng: random.Random, place: Path) -> Case:
    """A symbolic link where the run writes: what it points to stays as it is."""
    case = _case(place, {}, "")
    (place / "outside").mkdir()
    samples.write(place / "outside", samples.run() | {f"model/{name}": data for name, data in samples.model().items()})
    name = rng.choice((*_FILES, "model", "series", "series/0000004"))
    path = place / "run" / name
    if path.is_dir():
        path.rename(place / "outside" / "moved")
    path.unlink(missing_ok=True)
    path.parent.mkdir(exist_ok=True)
    target = place / "outside" / name
    path.symlink_to(target if target.exists() else place / "outside" / "model")
    return Case(f"link: {name}", case.words, wrong=_still_the_same, makes=("run",))


def _still_the_same(outcome: Outcome) -> str | None:
    found = (outcome.place / "run" / "model" / "model.safetensors").read_bytes()
    return None if found == samples.finished()["model/model.safetensors"] else "it went on to other weights"
