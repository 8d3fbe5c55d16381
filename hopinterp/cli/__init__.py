"""The `hopinterp` command: it parses, calls and prints. No science in it, and no torch until it is needed."""

from __future__ import annotations

import os
import sys

import typer

from hopinterp import signals
from hopinterp.cli import decompile, intervene, judge, make, read, train  # noqa: F401 (importing them registers their commands)
from hopinterp.cli.shared import INTERRUPTED, app
from hopinterp.errors import HopInterpError
from hopinterp.shown import legible, use_stand_ins


def main() -> None:
    """Run the command: what a user can mend is one line on standard error and exit status 2."""
    # the base class of everything the parser raises, which typer does not name publicly
    usage_error: type[Exception] = typer.BadParameter.__bases__[0]
    use_stand_ins(sys.stdout, sys.stderr)
    stopped = signals.raise_when_stopped()
    try:
        try:
            status = app(standalone_mode=False) or 0
            sys.stdout.flush()
        except SystemExit as exit_:
            sys.stdout.flush()
            raise exit_
        if status == INTERRUPTED:  # the parser turned a signal into this
            raise stopped() or KeyboardInterrupt
        sys.exit(status)
    except HopInterpError as error:
        _fail(str(error))
    except usage_error as error:
        _fail(error.format_message())  # type: ignore[attr-defined]
    except (KeyboardInterrupt, typer.Abort) as error:
        reason = error if isinstance(error, KeyboardInterrupt) else KeyboardInterrupt()
        _say(f"hopinterp: {signals.in_words(reason)}")
        sys.exit(signals.status(reason))
    except BrokenPipeError:  # whoever read has gone
        _write_no_more()
        sys.exit(1)
    except OSError as error:
        _write_no_more()
        _fail(f"{error.filename or 'cannot write the output'} ({error.strerror or error})")
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "allocate memory" not in str(error):
            raise
        _fail("there is not enough memory for this: ask for less at once (--sequences), or for a smaller model")


def _fail(message: str) -> None:
    _say("hopinterp: " + legible(" ".join(message.split())))
    sys.exit(2)


def _say(line: str) -> None:
    """A line on standard error, if anyone is there to read it."""
    try:
        print(line, file=sys.stderr, flush=True)
    except OSError:
        _write_no_more()


def _write_no_more() -> None:
    """Let what was not written go nowhere: when Python ends it would try, and fail, again."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            os.dup2(nowhere, stream.fileno())
