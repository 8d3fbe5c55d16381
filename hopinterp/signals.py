"""The signals that ask a process to stop: SIGTERM and SIGHUP do what Ctrl-C does, and none meets an import unprepared."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

STOPPING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))

_working: list[bool] = []


class Stopped(KeyboardInterrupt):
    """Another signal than Ctrl-C's asked the process to stop.

    Attributes:
        number: the signal's.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


def status(stopped: KeyboardInterrupt) -> int:
    """The exit status after a signal, 128 and its number."""
    return 128 + (stopped.number if isinstance(stopped, Stopped) else signal.SIGINT)


def in_words(stopped: KeyboardInterrupt) -> str:
    """What happened."""
    return f"stopped by {stopped}" if isinstance(stopped, Stopped) else "interrupted"


def raise_when_stopped() -> Callable[[], Stopped | None]:
    """From now on SIGTERM and SIGHUP raise `Stopped` in the main thread, and SIGINT a KeyboardInterrupt, unless they are
    ignored, as nohup has SIGHUP be.

    In the middle of an import, which may make something else of an exception, the process says what happened and ends at
    once; but not while it is `at_work`, when there may be something to save.

    Returns:
        What gives the last `Stopped` that was raised: others may make something else of it.
    """
    last: Stopped | None = None

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal last
        reason = KeyboardInterrupt() if number == signal.SIGINT else Stopped(number)
        if not _working and _in_an_import(frame):
            with suppress(OSError):  # nobody is there to read it
                os.write(2, f"hopinterp: {in_words(reason)}\n".encode())
            os._exit(status(reason))
        if isinstance(reason, Stopped):
            last = reason
        raise reason

    if threading.current_thread() is threading.main_thread():
        for number in STOPPING:
            if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
                signal.signal(number, stop)
    return lambda: last


def _in_an_import(frame: FrameType | None) -> bool:
    while frame is not None and not frame.f_code.co_filename.startswith("<frozen importlib"):
        frame = frame.f_back
    return frame is not None


@contextmanager
def at_work() -> Iterator[None]:
    """Meanwhile a signal raises, also in the middle of an import."""
    _working.append(True)
    try:
        yield
    finally:
        _working.pop()


def let_end() -> None:
    """From now on a signal to stop changes nothing, for all is done and the process ends; a second one ends it at once."""

    def pass_by(number: int, _frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)

    if threading.current_thread() is threading.main_thread():
        for number in STOPPING:
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, pass_by)


@contextmanager
def held_back() -> Iterator[Callable[[], bool]]:
    """The signal to stop that comes meanwhile is answered at the end, as it would have been; a second one at once.

    Yields:
        Whether one came.
    """
    came: list[int] = []
    over = False

    def restore() -> None:
        nonlocal over
        over = True
        for number, handler in taken.items():
            signal.signal(number, handler)

    def remember(number: int, _frame: FrameType | None) -> None:
        came.append(number)
        if over or len(came) > 1:
            restore()
            signal.raise_signal(number)

    if threading.current_thread() is not threading.main_thread():  # signals reach the main thread alone
        yield lambda: False
        return
    before = {number: signal.getsignal(number) for number in STOPPING}
    # a signal that is ignored, as nohup has SIGHUP ignored, stays so
    taken = {number: handler for number, handler in before.items() if handler not in (signal.SIG_IGN, None)}
    for number in taken:
        signal.signal(number, remember)
    try:
        yield lambda: bool(came)
    finally:
        restore()
        if len(came) == 1:
            signal.raise_signal(came[0])
