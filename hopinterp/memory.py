"""How much memory there is, a refusal in one line of what would need more, and giving back what is free."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path

from hopinterp.errors import HopInterpError

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _KEPT = -1, -3, 10**9
_CONTROL_GROUPS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


@cache
def memory() -> int:
    """Bytes of memory that this process may have: the machine's, or its container's where that has less."""
    try:
        found = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):  # Windows
        return 2**34
    for name in _CONTROL_GROUPS:
        try:
            found = min(found, int(Path(name).read_text()))
        except (OSError, ValueError):  # there is no such group, or it says "max"
            continue
    return found


def release_memory() -> None:
    """Give what was freed back to the system, between two stages of work whose tensors have different sizes: glibc keeps it,
    in holes that the next stage's do not fit. Elsewhere nothing is done."""
    if trim := _of_c_library("malloc_trim"):
        trim(0)


def keep_memory() -> None:
    """Keep what is freed from now on, for work that asks for the same sizes again and again: glibc gives large blocks back,
    and a training step spends 7 to 15% of its time on getting them anew. `release_memory` still gives all of it back.
    Elsewhere nothing is done."""
    if set_option := _of_c_library("mallopt"):
        set_option(_M_TRIM_THRESHOLD, _KEPT)
        set_option(_M_MMAP_THRESHOLD, _KEPT)


@cache
def _of_c_library(name: str) -> Callable[..., int] | None:
    """A function of glibc that other C libraries need not have."""
    try:
        return getattr(ctypes.CDLL(None), name, None)
    except (OSError, TypeError):  # Windows, or a system without a C library to load
        return None


def require_memory(what: str, wanted: int) -> None:
    """Raise HopInterpError where something would need more memory than there is: before it is asked for.

    Args:
        what: in the plural: "4 sequences".
        wanted: bytes.
    """
    if wanted > memory():
        raise HopInterpError(f"{what} need about {bytes_in_words(wanted)} of memory; there are {bytes_in_words(memory())}")


def bytes_in_words(number: float) -> str:
    """A size as people say it: "12 MB", to three digits."""
    for unit in ("bytes", "kB", "MB", "GB", "TB", "PB"):
        if number < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} EB"
