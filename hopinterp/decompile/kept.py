"""Records of dataclasses, tuples, sets and numbers as JSON values and back, by their annotations; and their directories."""

from __future__ import annotations

import json
import math
import types
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from hopinterp.errors import HopInterpError
from hopinterp.evidence.remembered import Codec
from hopinterp.files import write_directory


def write_record(directory: str | Path, files: Mapping[str, bytes], what: str) -> None:
    """A record as a directory of its own, whole or not at all.

    Args:
        files: their contents, by name.
        what: is written, in words.

    Raises:
        HopInterpError: the directory exists, or cannot be written.
    """
    target = Path(directory)
    if target.exists():
        raise HopInterpError(f"{target} exists; {what} is saved to a directory of its own")
    write_directory(target, files)


def packed(value: Any) -> Any:
    """A record as JSON has it: dataclasses and mappings as objects, sets as sorted lists, an undefined number as null."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: packed(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): packed(item) for key, item in value.items()}
    if isinstance(value, frozenset):
        return [packed(item) for item in sorted(value)]
    if isinstance(value, list | tuple):
        return [packed(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def unpacked(kind: Any, value: Any) -> Any:
    """What `packed` made of a value of this type.

    Raises:
        ValueError, TypeError, KeyError: the value is none of this type.
    """
    if kind is Any:
        return value
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        others = [one for one in inner if one is not type(None)]
        return None if value is None else unpacked(others[0], value)
    if origin is Literal:
        if value not in inner:
            raise ValueError(f"{value!r} is none of {inner}")
        return value
    if origin is tuple:
        kinds = [inner[0]] * len(value) if inner[-1] is Ellipsis else inner
        return tuple(unpacked(one, item) for one, item in zip(kinds, value, strict=True))
    if origin in (list, frozenset):
        return origin(unpacked(inner[0], item) for item in value)
    if origin is not None and issubclass(origin, Mapping):
        return {_key(inner[0], key): unpacked(inner[1], item) for key, item in value.items()}
    if isinstance(kind, type) and is_dataclass(kind):
        hints = _hints(kind)
        given = dict(value)
        if given.keys() != hints.keys():
            raise KeyError(f"{kind.__name__} has other fields: {', '.join(given.keys() ^ hints.keys())}")
        return kind(**{name: unpacked(hint, given[name]) for name, hint in hints.items()})
    return _plain(kind, value)


def _key(kind: Any, key: str) -> Any:
    return int(key) if kind is int else key


def _plain(kind: Any, value: Any) -> Any:
    """A number, a truth or a text."""
    if kind is float:
        return math.nan if value is None else float(value)
    if not isinstance(value, kind):
        raise TypeError(f"{value!r} is no {kind.__name__}")
    return value


@cache
def _hints(kind: type) -> dict[str, Any]:
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in fields(kind)}


def records_of(kind: Any) -> Codec[Any]:
    """How records of a type are kept in a cache."""
    return Codec(lambda found: (packed(found), {}), lambda given, _: unpacked(kind, given), _same)


def _same(one: Any, other: Any) -> bool:
    return bool(packed(one) == packed(other))


def check_shown(found: Any) -> None:
    """Show a record that was read from a file: one that cannot be shown is none, and raises whatever it does."""
    _ = (str(found), found._repr_html_(), json.dumps(found.to_json()))


@contextmanager
def reading_record(source: Path, what: str) -> Iterator[None]:
    """Inside, a record is read from a directory: whatever a damaged one raises becomes a HopInterpError of one line.

    Args:
        what: it is: "verdict".
    """
    try:
        yield
    except HopInterpError as error:
        raise HopInterpError(f"{source} holds no {what}: {error}") from None
    except Exception as error:  # what is damaged fails in many ways
        why = f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
        raise HopInterpError(f"{source} holds no {what} ({why})") from None
