"""The signals that ask a process to stop, as exceptions: SIGTERM and SIGHUP do what Ctrl-C does."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

STOPPING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


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
    """From now on SIGTERM and SIGHUP raise `Stopped` in the main thread, unless they are ignored, as nohup has SIGHUP be.

    Returns:
        What gives the last one that was raised: others may make something else of it.
    """
    last: Stopped | None = None

    def stop(number: int, _frame: FrameType | None) -> None:
        nonlocal last
        last = Stopped(number)
        raise last

    if threading.current_thread() is threading.main_thread():
        for number in STOPPING:
            if number != signal.SIGINT and signal.getsignal(number) == signal.SIG_DFL:
                signal.signal(number, stop)
    return lambda: last


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
