"""Damaged safetensors files: in a model directory, with the old digest in its card or a new one, and before an import."""

from __future__ import annotations

import hashlib
import json
import math
import random
import struct
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch

from . import samples, values
from .campaign import Case, Outcome

_DTYPES = ("F32", "F64", "F16", "BF16", "I64", "I8", "U8", "BOOL", "F8_E5M2", "F4", "X", "", None, 3, "f32")
_EVAL = ("eval", "m", "--sequences", "4", "--json")
_ODD_FLOATS = (math.nan, math.inf, -math.inf, 3e38, 1e-45, 0.0)


def generate(rng: random.Random, place: Path) -> Case:
    """A model directory whose weights are damaged, or a safetensors file to import."""
    return rng.choice((_kept, _sealed, _sealed, _foreign))(rng, place)


def _kept(rng: random.Random, place: Path) -> Case:
    """Weights damaged under the digest that they had: any change is noticed."""
    files, path = samples.model(), place / "m" / "model.safetensors"
    samples.write(place / "m", files)
    if rng.random() < 0.1:
        return Case(values.no_file(rng, path), _EVAL, must="refuse")
    data, what = values.mutate_bytes(rng, files[path.name])
    path.write_bytes(data)
    words = rng.choice((_EVAL, _EVAL, ("probe", "m", "--hops", "1"), ("verify", "m"), ("decompile", "m", "--hops", "1")))
    return Case(what, words, must="refuse" if data != files[path.name] else "either")


def _sealed(rng: random.Random, place: Path) -> Case:
    """Weights that were changed together with their digest."""
    files = dict(samples.model())
    data, what = mutate(rng, files["model.safetensors"])
    card = json.loads(files["card.json"])
    card["sha256"] = hashlib.sha256(data).hexdigest()
    samples.write(place / "m", files | {"model.safetensors": data, "card.json": json.dumps(card).encode()})
    return Case(f"sealed {what}", _EVAL, wrong=lambda outcome: _finite(data) or _shares(outcome))


def _foreign(rng: random.Random, place: Path) -> Case:
    """A GPT-2 state dict as safetensors: without a checksum, so that what is readable is read."""
    plain = safetensors.torch.save(samples.gpt2())
    data, what = mutate(rng, plain)
    (place / "x.safetensors").write_bytes(data)
    words = ("import", "x.safetensors", "--heads", "2", "--out", "new", "--letters", "12", "--max-hops", "4")
    return Case(f"imported {what}", words, makes=("new",), wrong=lambda outcome: _finite(weights_at(outcome.place / "new")))


def mutate(rng: random.Random, data: bytes) -> tuple[bytes, str]:
    """A safetensors file with one thing changed: in its header, in its numbers, or anywhere."""
    kind = rng.choice(("header", "header", "header", "length", "number", "bytes"))
    if kind == "bytes":
        return values.mutate_bytes(rng, data)
    (size,) = struct.unpack("<Q", data[:8])
    header, numbers = json.loads(data[8 : 8 + size]), data[8 + size :]
    if kind == "length":
        size = rng.choice((0, 1, size - 1, size + 1, size + 8, 2**31, 2**32, 2**63, 2**64 - 1, len(data), 100_000_001))
        return struct.pack("<Q", size) + data[8:], f"length: {size}"
    if kind == "number":
        found = np.frombuffer(numbers, "<f4").copy()
        at = rng.randrange(len(found))
        found[at] = rng.choice(_ODD_FLOATS)
        return data[: 8 + size] + found.tobytes(), f"number: {found[at]}"
    header, what = _mutate_header(rng, header)
    text = header if isinstance(header, bytes) else values.text_of(rng, header)
    return struct.pack("<Q", len(text)) + text + numbers, what


def _mutate_header(rng: random.Random, header: dict[str, Any]) -> tuple[Any, str]:
    name = rng.choice([one for one in header if one != "__metadata__"])
    entry, other = header[name], header[rng.choice([one for one in header if one != "__metadata__"])]
    start, end = entry["data_offsets"]
    kind = rng.choice(
        ("tree", "tree", "dtype", "shape", "offsets", "offsets of another", "metadata", "name", "text", "many")
    )
    if kind == "tree":
        return values.mutate_tree(rng, header)
    if kind == "text":
        return values.mutate_json(rng, json.dumps(header).encode())
    if kind == "dtype":
        entry["dtype"] = rng.choice(_DTYPES)
    elif kind == "shape":
        shape = entry["shape"]
        odd = ([], [0], [2**62, 4], [*shape, 1], shape[::-1], [math.prod(shape)], [-1], [10**9, 10**9], [2**64], [0, 2**63])
        entry["shape"] = rng.choice(odd)
    elif kind == "offsets":
        places: tuple[list[int], ...] = (
            [0, 0],
            [end, start],
            [start, 2**63],
            [start - 4, end],
            [start, end + 4],
            [-4, end],
            [2**64, 2**64],
            [0, 2**40],
        )
        entry["data_offsets"] = rng.choice(places)
    elif kind == "offsets of another":
        entry["data_offsets"], other["data_offsets"] = other["data_offsets"], entry["data_offsets"]
    elif kind == "metadata":
        header["__metadata__"] = rng.choice(
            ({"a": "b"}, {"a": 1}, [], "x", None, {"x": "y" * 10**6}, {"[/nope]": "\x1b[31m"})
        )
    elif kind == "name":
        header[str(rng.choice((*values.WORDS, "a" * 10**6)))] = header.pop(name)
    else:
        header |= {f"x{number}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for number in range(20_000)}
    return header, f"{kind}: {name}"


def weights_at(directory: Path) -> bytes:
    """The weights file of a model directory."""
    return (directory / "model.safetensors").read_bytes()


def _finite(data: bytes) -> str | None:
    """What is wrong with a weights file that was taken, by an own reading of it: NaN, infinite numbers."""
    (size,) = struct.unpack("<Q", data[:8])
    for name, entry in json.loads(data[8 : 8 + size]).items():
        if name != "__metadata__":
            start, end = entry["data_offsets"]
            if (
                entry["dtype"] != "F32"
                or not np.isfinite(np.frombuffer(data[8 + size + start : 8 + size + end], "<f4")).all()
            ):
                return f"{name} is not finite"
    return None


def _shares(outcome: Outcome) -> str | None:
    found = json.loads(outcome.out)["errors"]
    return None if all(share is None or 0 <= share <= 1 for share in found.values()) else f"errors are {found}"
