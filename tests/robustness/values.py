"""Odd values, and damage to JSON text and to bytes."""

from __future__ import annotations

import json
import math
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

_DEEP, _BIG, _LONG_NUMBER, _TWICE = "@deep@", "@big@", "@number@", "@twice@"  # filled in as text
NUMBERS = (0, -1, 1, 2, 3, 7, 1.5, 1e308, 5e-324, math.nan, math.inf, -math.inf, 10**6, 10**9, 2**31, 2**32, 2**63, 10**30)
WORDS = (
    *("", "3", "٣", "x" * 500, "[/nope]", "[red]x", "\x1b[31mred\x1b[0m", "\x00", "a\nb", "\u202eevil", "\ud800", "\u2028"),
    *(
        "../../x",
        "/dev/zero",
        "$HOME",
        "$x^2$",
        "nan",
        "-",
        "--help",
        "é" * 300,
        "😀",
        "{}",
        "%s%n",
        "a'b\"c",
        "\r",
        "\x9b31m",
    ),
)
VALUES: tuple[Any, ...] = (None, True, False, *NUMBERS, *WORDS, [], [1], [[]], {}, {"a": 1}, [None], {"": None}, _DEEP, _BIG)


def odd(rng: random.Random) -> Any:
    """A value that hardly anything is meant to have."""
    return rng.choice((rng.choice(VALUES), rng.choice(VALUES), rng.choice(NUMBERS), _LONG_NUMBER))


def paths_in(tree: Any, under: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The keys that lead to every value in nested objects and lists."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [path for key, value in items for path in ((*under, key), *paths_in(value, (*under, key)))]


def mutate_tree(rng: random.Random, tree: Any) -> tuple[Any, str]:
    """Nested objects with one thing changed, and what that is."""
    tree = json.loads(json.dumps(tree))
    # fields of every depth alike, or a long list of numbers would be all that is ever touched
    every = paths_in(tree)
    depth = rng.choice(sorted({len(path) for path in every}))
    *above, key = rng.choice([path for path in every if len(path) == depth])
    place = tree
    for step in above:
        place = place[step]
    name = "/".join(map(str, (*above, key)))
    kind = rng.choice(("value", "value", "value", "value", "missing", "added", "renamed", "number", "twice", "swapped"))
    if kind == "missing":
        del place[key]
    elif kind == "added" and isinstance(place, dict):
        place[str(rng.choice(WORDS))] = odd(rng)
    elif kind == "renamed" and isinstance(place, dict):
        place[str(rng.choice(WORDS))] = place.pop(key)
    elif kind == "number" and isinstance(place[key], int | float):
        place[key] = rng.choice(
            (place[key] + 1, place[key] - 1, -place[key], place[key] * 1000, float(place[key]), str(place[key]))
        )
    elif kind == "twice" and isinstance(place, dict):
        place[_TWICE + str(key)] = rng.choice((place[key], odd(rng)))
    elif kind == "swapped":
        *_, other = rng.choice(every)
        place[key] = other
    else:
        kind, place[key] = "value", odd(rng)
    return tree, f"{kind}: {name}"


def text_of(rng: random.Random, tree: Any) -> bytes:
    """JSON text of what `mutate_tree` gave."""
    text = json.dumps(tree, ensure_ascii=rng.random() < 0.7, indent=rng.choice((None, 2)))
    for mark, filling in (
        (_DEEP, lambda: "[" * (n := rng.choice((10, 500, 5000, 100_000))) + "]" * n),
        (_BIG, lambda: json.dumps("x" * rng.choice((10_000, 900_000, 3_000_000)))),
        (_LONG_NUMBER, lambda: "9" * rng.choice((20, 400, 4000, 5000))),
    ):
        if f'"{mark}"' in text:
            text = text.replace(f'"{mark}"', filling())
    return text.replace(_TWICE, "").encode("utf-8", "surrogatepass")


def mutate_json(rng: random.Random, data: bytes) -> tuple[bytes, str]:
    """JSON text with one thing changed: in what it says, or as text."""
    if rng.random() < 0.7:
        tree, what = mutate_tree(rng, json.loads(data))
        if rng.random() < 0.2:  # a second change, or it may hide behind the first
            tree, more = mutate_tree(rng, tree)
            what = f"{what} and {more}"
        return text_of(rng, tree), what
    text = data.decode()
    ways: dict[str, Callable[[], bytes]] = {
        "utf-16": lambda: text.encode("utf-16"),
        "a mark of byte order": lambda: text.encode("utf-8-sig"),
        "junk behind": lambda: data + rng.choice((b"x", b"{}", b"\x00", b"]", b"\xff")),
        "blanks": lambda: data + b" " * rng.choice((1, 2**21, 70 * 2**20)),
        "nested": lambda: b"[" * 100_000,
        "another value": lambda: rng.choice((b"[]", b"null", b"3", b'"x"', b"{}", b"NaN", b"[" + data + b"]", b"\n")),
        "python": lambda: repr(json.loads(data)).encode(),
    }
    name = rng.choice((*ways, "bytes", "bytes", "bytes", "bytes"))
    if name != "bytes":
        return ways[name](), f"{name}: json"
    return mutate_bytes(rng, data)


def mutate_bytes(rng: random.Random, data: bytes) -> tuple[bytes, str]:
    """Bytes with one thing changed, and what that is."""
    kind = rng.choice(
        ("bit", "bit", "bit", "byte", "truncated", "zeros", "removed", "inserted", "doubled", "swapped", "empty")
    )
    found, at = bytearray(data), rng.randrange(len(data))
    size = min(len(data) - at, rng.choice((1, 8, 64, 512)))
    if kind == "bit":
        return flip(data, 8 * at + rng.randrange(8)), f"bit: {at}"
    if kind == "byte":
        found[at] = (found[at] + rng.randrange(1, 256)) % 256
    elif kind == "truncated":
        del found[rng.choice((at, len(data) - 1, len(data) // 2)) :]
    elif kind == "zeros":
        found[at : at + size] = bytes(size)
    elif kind == "removed":
        del found[at : at + size]
    elif kind == "inserted":
        found[at:at] = rng.randbytes(size)
    elif kind == "doubled":
        found[at:at] = found[at : at + size]
    elif kind == "swapped":
        other = rng.randrange(len(data))
        found[at], found[other] = found[other], found[at]
    else:
        found.clear()
    return bytes(found), f"{kind}: {at}"


def flip(data: bytes, bit: int) -> bytes:
    """Bytes with one bit flipped."""
    found = bytearray(data)
    found[bit // 8] ^= 1 << bit % 8
    return bytes(found)


def no_file(rng: random.Random, path: Path) -> str:
    """Put something that is no plain file in a file's place: what it is."""
    kind = rng.choice(("a pipe", "a directory", "/dev/zero", "a loop", "empty", "20 GB", "nothing", "a dangling link"))
    path.unlink(missing_ok=True)
    if kind == "a pipe":
        os.mkfifo(path)
    elif kind == "a directory":
        path.mkdir()
    elif kind in ("/dev/zero", "a loop", "a dangling link"):
        path.symlink_to({"/dev/zero": kind, "a loop": path.name}.get(kind, "nowhere"))
    elif kind == "empty":
        path.touch()
    elif kind == "20 GB":
        with open(path, "wb") as file:
            file.truncate(20 * 10**9)
    return f"{kind}: in the place of {path.name}"
