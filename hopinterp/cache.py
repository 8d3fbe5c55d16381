"""Results kept on disk: one file a result, found again by all that it depends on, and never served where it is damaged."""

from __future__ import annotations

import json
import os
import re
import stat
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from threading import Lock
from typing import Any

from hopinterp.errors import HopInterpError
from hopinterp.files import clear_leftovers, digest, parse_json, read_file, reason, write_file

PLACE = "HOPINTERP_CACHE"
"""The environment's name for the cache's directory, or "off"."""
MOST = 10**9
"""Bytes that a cache may have. Beyond that what was not used for longest goes."""
LARGEST = 2**28
"""Bytes of the largest result that is kept or read."""
_MAGIC = b"hopinterp result 1 "
_HEAD = 2**20  # bytes in which a result's label ends
_NAME = re.compile(r"[0-9a-f]{64}\.kept")
_LEFT = re.compile(r"\.[0-9a-f]{50}-[0-9a-f]+\.partial")  # by a process that was killed while it wrote a result
_ROOM = 0.9  # of MOST, to which a cache that is too large is cut: not at every write anew

Key = Mapping[str, Any]
"""All that a result depends on, as JSON's own values."""


def place() -> Path | None:
    """The cache's directory: what the environment names, else the platform's own for caches; None where it is off."""
    named = os.environ.get(PLACE, "")
    if named.lower() == "off":
        return None
    if named:
        return Path(named).absolute()
    try:
        home = Path.home()
    except RuntimeError:  # an account without a home
        return None
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local") / "hopinterp" / "Cache"
    if sys.platform == "darwin":
        return home / "Library" / "Caches" / "hopinterp"
    caches = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(caches) if os.path.isabs(caches) else home / ".cache") / "hopinterp"


@dataclass(frozen=True)
class Entry:
    """One result that is kept.

    Attributes:
        key: what it depends on; empty where the file does not say so.
        written, used: seconds since the epoch; `written` is None where the file does not say so.
        size: bytes.
    """

    path: Path
    key: Key
    written: float | None
    used: float
    size: int


@dataclass(eq=False)
class Cache:
    """Results in a directory, by key. It never raises for what is in there or cannot be written there.

    Attributes:
        warn: told, once, that results cannot be kept.
        most: bytes that it may have.
        found: of which keys results were served, in turn.
    """

    directory: Path
    warn: Callable[[str], None]
    most: int = MOST
    found: list[Key] = field(default_factory=list)
    _warned: bool = False
    _lock: Lock = field(default_factory=Lock)

    def read(self, key: Key) -> tuple[Any, bytes] | None:
        """The record and the bytes that are kept under a key; None where there are none, or they are damaged."""
        path, label = self._path(key), _text(key)
        try:
            data = read_file(path, LARGEST)
            first, _, rest = data.partition(b"\n")
            if first != _MAGIC + digest(rest).encode():
                return None
            head, _, rest = rest.partition(b"\n")
            if _text(parse_json(head, path)["key"]) != label:
                return None
            record, _, payload = rest.partition(b"\n")
            found = parse_json(record, path)
        except (HopInterpError, KeyError, TypeError):  # not there, or another's file of that name
            return None
        return found, payload

    def served(self, key: Key) -> None:
        """Note that what is kept under a key was of use."""
        self.found.append(key)
        with suppress(OSError):
            os.utime(self._path(key))

    def keep(self, key: Key, record: Any, payload: bytes) -> None:
        """Keep a result, whole or not at all; where that cannot be, say so once."""
        try:
            written = datetime.now(UTC).isoformat(timespec="seconds")
            lines = (_text({"key": key, "written": written}), json.dumps(record, allow_nan=False))
            rest = b"".join(line.encode() + b"\n" for line in lines) + payload
            if len(rest) + 100 > min(LARGEST, self.most) or len(lines[0]) > _HEAD:
                return
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_file(self._path(key), _MAGIC + digest(rest).encode() + b"\n" + rest)
            self._shrink()
        except (HopInterpError, OSError, ValueError) as error:
            self._say(f"the cache {self.directory} cannot be written ({_why(error)}): results are not kept")

    def entries(self) -> list[Entry]:
        """What is kept, last used first.

        Raises:
            HopInterpError: the directory cannot be read.
        """
        try:
            files = [path for path in self.directory.iterdir() if _NAME.fullmatch(path.name)]
        except FileNotFoundError:
            return []
        except (OSError, ValueError) as error:
            raise HopInterpError(f"cannot read the cache {self.directory} ({reason(error)})") from None
        return sorted((entry for path in files for entry in _entry(path)), key=lambda entry: -entry.used)

    def clear(self) -> tuple[int, int]:
        """Remove what is kept, and nothing else that may be there.

        Returns:
            How many results went, and of how many bytes.

        Raises:
            HopInterpError: the directory cannot be read, or a file in it not be removed.
        """
        entries = self.entries()
        for entry in entries:
            try:
                entry.path.unlink(missing_ok=True)
            except OSError as error:
                raise HopInterpError(f"cannot remove {entry.path} ({reason(error)})") from None
        self._clear_leftovers()
        with suppress(OSError):
            self.directory.rmdir()
        return len(entries), sum(entry.size for entry in entries)

    def _path(self, key: Key) -> Path:
        return self.directory / f"{digest(_text(key).encode())}.kept"

    def _shrink(self) -> None:
        """Remove what was not used for longest, where all of it is too much."""
        with self._lock:
            found = []
            with os.scandir(self.directory) as files:
                for file in files:
                    with suppress(OSError):
                        if _NAME.fullmatch(file.name):
                            seen = file.stat(follow_symlinks=False)
                            found.append((seen.st_mtime, seen.st_size, file.path))
            total = sum(size for _, size, _ in found)
            if total <= self.most:
                return
            self._clear_leftovers()
            for _, size, path in sorted(found):
                if total <= _ROOM * self.most:
                    return
                with suppress(OSError):
                    os.unlink(path)
                total -= size

    def _clear_leftovers(self) -> None:
        clear_leftovers(self.directory, lambda path: _LEFT.fullmatch(path.name) is not None)

    def _say(self, line: str) -> None:
        with self._lock:
            first, self._warned = not self._warned, True
        if first:
            self.warn(line)


def _entry(path: Path) -> Iterator[Entry]:
    """A file's entry, by its head alone; nothing where the file has gone."""
    try:
        seen = path.lstat()
        if not stat.S_ISREG(seen.st_mode):
            return
        with open(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb") as file:
            first, head = file.readline(_HEAD), file.readline(_HEAD)
    except OSError:
        return
    key: Key = {}
    written = None
    with suppress(HopInterpError, KeyError, TypeError, ValueError):
        if first.startswith(_MAGIC):
            label = parse_json(head, path)
            written = datetime.fromisoformat(label["written"]).timestamp()
            key = dict(label["key"])
    yield Entry(path, key, written, seen.st_mtime, seen.st_size)


def _text(key: Key) -> str:
    return json.dumps(key, sort_keys=True, allow_nan=False)


def _why(error: Exception) -> str:
    """The reason in what `write_file` says."""
    said = " ".join(str(error).split())
    inner = re.search(r"\((.*)\)", said)
    return (inner[1] if inner and isinstance(error, HopInterpError) else reason(error))[:160]
