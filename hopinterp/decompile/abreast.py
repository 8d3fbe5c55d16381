"""Several pieces of work at once, each on one of torch's threads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextvars import copy_context
from threading import Event
from typing import TypeVar

import torch

Key = TypeVar("Key")
Result = TypeVar("Result")


class Stopped(Exception):
    """Raised by work that was told to stop."""


def abreast(work: Callable[[Key], Result], keys: Sequence[Key], stop: Event) -> dict[Key, Result]:
    """What some work gives for each key, in the order of the keys: as many at once as torch may use threads.

    Torch lets other threads run while it computes, and small tensors gain more from two pieces of work than from two threads
    for each product. Nothing is copied, and a piece of work has one thread, whatever else runs.

    Args:
        stop: set when a piece of work raised, or the wait was interrupted: what runs should raise `Stopped` soon. What has
            not begun never does. The first error is raised when all have ended.
    """
    threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
    try:
        futures = {key: pool.submit(copy_context().run, work, key) for key in keys}  # within the caller's `cached`, if any
        wait(futures.values(), return_when=FIRST_EXCEPTION)
        failed = [error for f in futures.values() if f.done() and (error := f.exception())]
        if failed:
            raise failed[0]
        return {key: future.result() for key, future in futures.items()}
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)  # before what runs makes room for what has not begun
        stop.set()
        raise
    finally:
        pool.shutdown()
        torch.set_num_threads(threads)
