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
        place = self._beneath(path)
        if place is None:
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
        self._handles(lambda flags: not flags & (os.O_WRONLY | os.O_RDWR))
        real_map, disk = mmap.mmap, self

        class Map(real_map):  # type: ignore[valid-type]
            """A file in memory."""

            def __new__(cls, handle: int, *others: Any, **settings: Any) -> Any:
                disk.meets("mmap", handle)
                return real_map.__new__(cls, handle, *others, **settings)

        mmap.mmap = Map  # type: ignore[assignment]
        builtins.open = io.open = self._opens(builtins.open, self._file(), writing=False)

    def _reading(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: Any = ".", *others: Any, **settings: Any) -> Any:
            place = path if isinstance(path, int) else self._place(path, settings.get("dir_fd"))
            self.meets(name, place)
            return real(path, *others, **settings)

        return call

    def _file(self) -> type[io.FileIO]:
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

        return File
