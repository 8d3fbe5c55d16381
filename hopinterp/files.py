"""Files: read within bounds, written whole or not at all, and by one process at a time where two would mix."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from hopinterp.errors import HopInterpError
from hopinterp.signals import held_back

LARGEST = 4 * 2**30
"""Bytes of the largest file that is read: a model of a thousand million numbers."""
LARGEST_JSON = 64 * 2**20
_PARTIAL, _OLD = ".partial", ".old"
_KEPT, _RANDOM = 50, 6  # of a temporary's name: characters of the target's, bytes that nobody can foresee
_YOUNG = 1.0  # seconds in which a new temporary may not have been locked yet


# -- reading ----------------------------------------------------------------------------------------------------------


def digest(data: bytes) -> str:
    """The SHA-256 of bytes, as 64 characters."""
    return hashlib.sha256(data).hexdigest()


def is_there(path: Path) -> bool:
    """Whether there is anything at a path, be it a link that leads nowhere.

    Raises:
        HopInterpError: that cannot be told: what a damaged disk does not show must not count as not there.
    """
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, ValueError) as error:
        raise HopInterpError(f"cannot read {path} ({reason(error)})") from None
    return True


def read_digested(path: Path, wanted: str, by: str, most: int = LARGEST) -> bytes:
    """A file's bytes, if they are those of which another file, `by`, keeps the digest. Raises HopInterpError otherwise, and
    as `read_file`."""
    data = read_file(path, most)
    if (found := digest(data)) != wanted:
        raise HopInterpError(f"{path} has sha256 {found[:12]}…; its {by} says {wanted!s:.12}…: it is damaged or changed")
    return data


def read_file(path: Path, most: int = LARGEST) -> bytes:
    """A regular file's bytes.

    Raises:
        HopInterpError: there is none, it cannot be read, is a device, a pipe or a directory, or has more than `most` bytes.
    """
    try:
        # not to wait for a pipe's other end
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        with open(handle, "rb") as file:
            found = os.fstat(handle)
            if not stat.S_ISREG(found.st_mode):
                raise HopInterpError(f"{path} is no regular file")
            if found.st_size > most:
                raise HopInterpError(f"{path} has {found.st_size:,} bytes; at most {most:,} are read")
            return file.read(found.st_size)  # Python makes room for all that is asked for
    except FileNotFoundError:
        raise HopInterpError(f"no file {path}") from None
    except (OSError, ValueError) as error:  # ValueError: a path that holds a zero byte
        raise HopInterpError(f"cannot read {path} ({reason(error)})") from None


def read_json(path: Path, most: int = LARGEST_JSON) -> Any:
    """What a JSON file holds. Raises HopInterpError as `read_file`, and where it is no plain JSON: a key that comes twice,
    nesting without end, NaN, or characters that no text can hold."""
    return parse_json(read_file(path, most), path)


def parse_json(data: bytes, path: Path) -> Any:
    """What JSON text holds. Raises HopInterpError, which names the path, as `read_json`."""
    try:
        found = json.loads(data.decode("utf-8"), object_pairs_hook=_once, parse_constant=_no_number)
        json.dumps(found, ensure_ascii=False).encode("utf-8")  # refuses half of a surrogate pair
    except RecursionError:
        raise HopInterpError(f"{path} is no plain JSON: it is nested too deeply") from None
    except ValueError as error:
        raise HopInterpError(f"{path} is no plain JSON ({' '.join(str(error).split())[:120]})") from None
    return found


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r:.40} comes twice")
    return found


def _no_number(name: str) -> Any:
    raise ValueError(f"JSON has no {name}")


# -- writing ----------------------------------------------------------------------------------------------------------


def check_file_target(path: Path) -> None:
    """Raise HopInterpError if no file could be written here: ask before the work, not after it."""
    try:
        if path.is_dir():
            raise HopInterpError(f"cannot write {path}: it is a directory")
        if path.exists() and not path.is_file():
            raise HopInterpError(f"cannot write {path}: it is no regular file")
        if not path.parent.is_dir():
            raise HopInterpError(f"cannot write {path}: no directory {path.parent}")
        os.lstat(path)
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        raise HopInterpError(f"cannot write {path} ({reason(error)})") from None


@held_back()
def write_file(path: Path, data: bytes) -> None:
    """A file whole or not at all: beside its place first, under a name that nobody can foresee, then renamed. A symbolic
    link is replaced, not followed.

    Raises:
        HopInterpError: it cannot be written; what was there is still there.
    """
    check_file_target(path)
    temporary: Path | None = _beside(path, _PARTIAL)
    assert temporary is not None
    try:
        _clear(path)
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
        with open(handle, "wb") as file, _held(handle):
            _write_through(file.fileno(), data)
            os.replace(temporary, path)
            temporary = None
        _settle(path.parent)
    except (OSError, ValueError) as error:
        raise HopInterpError(f"cannot write {path} ({reason(error)}); nothing was written") from None
    finally:
        if temporary is not None:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)


@held_back()
def write_directory(target: Path, contents: Mapping[str, bytes], *, overwrite: bool = False) -> None:
    """A directory whole or not at all: beside its place first, then renamed.

    Args:
        contents: file names and what is in them; a name may lead into a folder of the directory ("k8/judgement.json").
        overwrite: replace what is there. A process that is killed between the two renames leaves the old one under another
            name, from which `recover` brings it back.

    Raises:
        HopInterpError: it exists, or cannot be written; what was there is still there.
    """
    temporary = _beside(target, _PARTIAL)
    try:
        with making(target.parent):
            recover(target)
            _clear(target)
            _fill(temporary, target, contents, overwrite)
        _settle(target.parent)
    except (OSError, ValueError) as error:
        if not overwrite and os.path.lexists(target):
            raise HopInterpError(f"{target} exists; nothing was written") from None
        raise HopInterpError(f"cannot write {target} ({reason(error)}); nothing was written") from None


def _fill(temporary: Path, target: Path, contents: Mapping[str, bytes], overwrite: bool) -> None:
    """Write a directory under a temporary name, then rename it."""
    try:
        temporary.mkdir()
        with _opened(temporary) as handle, _held(handle):
            folders = dict.fromkeys(folder for name in contents if (folder := (temporary / name).parent) != temporary)
            for folder in folders:
                folder.mkdir()
            for name, data in contents.items():
                with open(temporary / name, "xb") as file:
                    _write_through(file.fileno(), data)
            for folder in (*folders, temporary):
                _settle(folder)
            if overwrite and os.path.lexists(target):
                _swap(target, temporary)
            else:
                temporary.rename(target)  # refused where something is
    except BaseException:
        with suppress(OSError, ValueError):  # ValueError: a name that no file can have
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.rmdir()  # one that cannot be read
        raise


@contextmanager
def making(directory: Path) -> Iterator[None]:
    """A directory for what is written there meanwhile. If that fails, what was made for it goes again where it is empty."""
    new = [path for path in (directory, *directory.parents) if not path.exists()]
    try:
        directory.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        for path in new:
            with suppress(OSError):
                path.rmdir()
        raise


def _swap(target: Path, new: Path) -> None:
    """Put a directory in another's place; two processes one after the other."""
    if target.is_symlink():
        raise OSError(0, "it is a symbolic link")
    while True:
        with _opened(target) as handle, _held(handle, wait=True):
            if sys.platform != "win32" and not _is_at(handle, target):
                continue  # another process has put its own there
            old = _beside(target, _OLD)
            target.rename(old)
            try:
                new.rename(target)
            except OSError as error:
                _put_back(old, target, error)
                raise
            shutil.rmtree(old, ignore_errors=True)
            return


def _put_back(old: Path, target: Path, why: OSError) -> None:
    try:
        old.rename(target)
    except OSError:
        raise HopInterpError(
            f"cannot write {target} ({reason(why)}), nor put back what was there: it is in {old.name}, and comes back when "
            f"it is next asked for"
        ) from None


def _is_at(handle: int, path: Path) -> bool:
    """Whether an open directory is still the one at a path."""
    try:
        return os.path.samestat(os.fstat(handle), os.lstat(path))
    except FileNotFoundError:
        return False


def recover(target: Path) -> None:
    """Bring back a directory whose replacement was killed between its two renames; where it cannot, leave all as it is."""
    with suppress(OSError, ValueError):
        for old in [] if os.path.lexists(target) else _siblings(target, _OLD):
            with _opened(old) as handle, _held(handle, wait=True):
                if not os.path.lexists(target) and os.path.lexists(old):
                    old.rename(target)


def recover_all(folder: Path) -> None:
    """`recover` everything in a folder. Of names of 50 characters or more the leftover does not keep the whole."""
    with suppress(OSError, ValueError):
        for old in os.listdir(folder):
            if named := re.fullmatch(rf"\.(.{{1,{_KEPT - 1}}})-[0-9a-f]{{{2 * _RANDOM}}}{re.escape(_OLD)}", old, re.DOTALL):
                recover(folder / named[1])


def leftover(path: Path) -> bool:
    """Whether a file or directory is what a killed process left unfinished."""
    return path.name.startswith(".") and path.name.endswith((_PARTIAL, _OLD))


def clear_leftovers(directory: Path, which: Callable[[Path], bool] = leftover) -> None:
    """Remove everything in a directory that killed processes left unfinished; what one is writing now stays."""
    with suppress(OSError):
        for path in list(directory.iterdir()):
            if which(path):
                _remove(path)


def _clear(target: Path) -> None:
    """Remove what killed processes left of earlier tries to write a target."""
    for path in (*_siblings(target, _PARTIAL), *(_siblings(target, _OLD) if os.path.lexists(target) else ())):
        _remove(path)


def _remove(path: Path) -> None:
    """Remove a temporary, unless a process holds it or has only just made it."""
    with suppress(OSError):
        found = path.lstat()
        with _opened(path) as handle, _held(handle):
            young = abs(time.time() - found.st_mtime) < _YOUNG
            if stat.S_ISDIR(found.st_mode) and not (young and not any(path.iterdir())):
                shutil.rmtree(path)
            elif stat.S_ISREG(found.st_mode) and not (young and not found.st_size):
                path.unlink()


def _beside(path: Path, suffix: str) -> Path:
    """A new name next to a path; names have at most 255 bytes."""
    return path.with_name(f"{_stem(path)}{secrets.token_hex(_RANDOM)}{suffix}")


def _stem(path: Path) -> str:
    return f".{path.name[:_KEPT]}-"


def _siblings(path: Path, suffix: str) -> Iterator[Path]:
    stem = _stem(path)
    if path.parent.is_dir():
        names = [name for name in os.listdir(path.parent) if name.startswith(stem) and name.endswith(suffix)]
        yield from (path.with_name(name) for name in sorted(names))


def _write_through(handle: int, data: bytes) -> None:
    """Write and wait until the disk has it: only then may a file be renamed over another."""
    with open(handle, "wb", closefd=False) as file:
        file.write(data)
        file.flush()
    os.fsync(handle)


def _settle(directory: Path) -> None:
    """Wait until the disk has a directory's names, where that can be asked for."""
    with suppress(OSError), _opened(directory, follow=True) as handle:
        os.fsync(handle)


@contextmanager
def _opened(path: Path, *, follow: bool = False) -> Iterator[int]:
    """A file or directory, to hold or to settle; by default no symbolic link, and no wait for a pipe's other end."""
    if sys.platform == "win32":  # where directories cannot be opened, and nothing is held
        yield -1
        return
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | (0 if follow else os.O_NOFOLLOW))
    try:
        yield handle
    finally:
        os.close(handle)


# -- one at a time ----------------------------------------------------------------------------------------------------


@contextmanager
def alone_in(directory: Path, doing: str = "working") -> Iterator[None]:
    """Refuse a second process in a directory. The lock goes with its process, however that ends."""
    with ExitStack() as held:
        try:
            handle = held.enter_context(_opened(directory, follow=True))
            held.enter_context(_held(handle))
        except BlockingIOError:
            raise HopInterpError(f"another process is {doing} in {directory}") from None
        except (OSError, ValueError) as error:
            raise HopInterpError(f"cannot open {directory} ({reason(error)})") from None
        yield


@contextmanager
def _held(handle: int, *, wait: bool = False) -> Iterator[None]:
    """A lock on an open file; it goes when that is closed. Raises BlockingIOError where another process has it. A disk that
    knows no locks, as a cluster's may, is written to without."""
    if sys.platform != "win32":  # which has no flock
        import fcntl

        try:
            fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK):
                raise
    yield


def reason(error: Exception) -> str:
    """Why a file could not be read or written, without its number and name."""
    return getattr(error, "strerror", None) or str(error)
