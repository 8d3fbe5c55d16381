"""The date that stands on what is made: now, or SOURCE_DATE_EPOCH, for who wants the same bytes again."""

from __future__ import annotations

import os
from datetime import UTC, datetime

from hopinterp.errors import HopInterpError

EPOCH = "SOURCE_DATE_EPOCH"


def today() -> datetime:
    """Now, to the second, in UTC; what the environment's SOURCE_DATE_EPOCH says, if it is set.

    Raises:
        HopInterpError: it is no whole number of seconds since 1970, or one of no date.
    """
    given = os.environ.get(EPOCH, "")
    if not given:
        return datetime.now(UTC).replace(microsecond=0)
    try:
        if not (given.isascii() and given.isdigit()):
            raise ValueError
        return datetime.fromtimestamp(int(given), UTC)
    except (ValueError, OverflowError, OSError):
        raise HopInterpError(f"{EPOCH} is {given!r:.40}; it must be whole seconds since 1970") from None
