"""A disk beneath which one reading call fails, as on a damaged device."""

from __future__ import annotations

import builtins
import errno
import io
import mmap
import os
from collections.abc import Callable
from typing import Any

from .faults import Disk


class Unreadable(Disk):
    """Python's own calls that read something beneath a directory: counted, and from one on that same call always fails."""

    bad: tuple[str, str] | None = None

    def meets(self, name: str, path: Any, _half: Callable[[], object] | None = None) -> None:
        """A call is about to be made."""
        place = os.path.abspath(os.fsdecode(path)) if not isinstance(path, int) else self.paths.get(path, "")
        if not place.startswith(self.root) or os.getpid() != self.pid:
            return
        self.calls.append(name)
        if self.fault is not None and len(self.calls) - 1 == self.fault.at:
            self.bad = (name, place)
        if self.bad == (name, place):
            raise OSError(errno.EIO, os.strerror(errno.EIO), place)

    def install(self) -> None:
        """Put it between Python and the disk, for good."""
        for name in ("stat", "lstat", "listdir", "scandir", "fstat", "read", "readlink"):
            setattr(os, name, self._reading(name, getattr(os, name)))
        real_open, real_close, real_map, disk = os.open, os.close, mmap.mmap, self

        def open_(path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
            place = self._place(path, dir_fd)
            if not flags & (os.O_WRONLY | os.O_RDWR):
                self.meets("open", place)
            handle = real_open(path, flags, mode, dir_fd=dir_fd)
            self.paths[handle] = place
            return handle

        def close(handle: int) -> None:
            self.paths.pop(handle, None)
            real_close(handle)

        class Map(real_map):  # type: ignore[valid-type]
            """A file in memory."""

            def __new__(cls, handle: int, *others: Any, **settings: Any) -> Any:
                disk.meets("mmap", handle)
                return real_map.__new__(cls, handle, *others, **settings)

        for module, name, call in ((os, "open", open_), (os, "close", close), (mmap, "mmap", Map)):
            setattr(module, name, call)
        builtins.open = io.open = self._reader(builtins.open)

    def _reading(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: Any = ".", *others: Any, **settings: Any) -> Any:
            place = path if isinstance(path, int) else self._place(path, settings.get("dir_fd"))
            self.meets(name, place)
            return real(path, *others, **settings)

        return call

    def _reader(self, real: Callable[..., Any]) -> Callable[..., Any]:
        disk = self

        class File(io.FileIO):
            """A file whose reads are met one by one."""

            def read(self, *size: Any) -> Any:
                disk.meets("read", self.fileno())
                return super().read(*size)

            def readall(self) -> Any:
                disk.meets("read", self.fileno())
                return super().readall()

            def readinto(self, room: Any) -> Any:
                disk.meets("read", self.fileno())
                return super().readinto(room)

            def close(self) -> None:
                if not self.closed and self.closefd:
                    disk.paths.pop(self.fileno(), None)
                super().close()

        def open_(
            file: Any,
            mode: str = "r",
            buffering: int = -1,
            encoding: str | None = None,
            errors: str | None = None,
            newline: str | None = None,
            closefd: bool = True,
            opener: Any = None,
        ) -> Any:
            if set(mode) & set("wax+"):
                return real(file, mode, buffering, encoding, errors, newline, closefd, opener)
            if not isinstance(file, int):
                disk.meets("open", file)
            raw = File(file, "r", closefd, opener)
            disk.paths[raw.fileno()] = disk.paths.get(file, "") if isinstance(file, int) else os.path.abspath(file)
            buffered = io.BufferedReader(raw)
            return buffered if "b" in mode else io.TextIOWrapper(buffered, encoding, errors, newline)

        return open_
