"""The `hopinterp` command: it parses, calls and prints. No science in it, and no torch until it is needed."""

from __future__ import annotations

import os
import sys

try:
    from hopinterp.signals import in_words, let_end, raise_when_stopped, status
except KeyboardInterrupt:  # Ctrl-C before there is anything to answer it
    os._exit(130)


def main() -> None:
    """Run the command: what a user can mend is one line on standard error and exit status 2."""
    stopped = raise_when_stopped()  # first: all other imports take some tenths of a second, and torch seconds
    from hopinterp.errors import HopInterpError
    from hopinterp.shown import use_stand_ins

    try:
        use_stand_ins(sys.stdout, sys.stderr)
        done = _run()
        sys.stdout.flush()
        if done == status(KeyboardInterrupt()):  # the parser turned a signal into this
            raise stopped() or KeyboardInterrupt
        sys.exit(done)
    except HopInterpError as error:
        _fail(str(error))
    except KeyboardInterrupt as reason:
        _say(f"hopinterp: {in_words(reason)}")
        sys.exit(status(reason))
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
    finally:
        let_end()


def _run() -> int:
    """The exit status of what was asked for. Raises HopInterpError where the parser does not understand it."""
    import typer

    from hopinterp.cli import commands
    from hopinterp.errors import HopInterpError

    # the base class of everything the parser raises, which typer does not name publicly
    usage_error: type[Exception] = typer.BadParameter.__bases__[0]
    try:
        return commands.app(standalone_mode=False) or 0
    except SystemExit:
        sys.stdout.flush()
        raise
    except typer.Abort:
        raise KeyboardInterrupt from None
    except usage_error as error:
        message: str = error.format_message()  # type: ignore[attr-defined]
        if not message:  # no command was given: the help is shown already
            sys.stdout.flush()
            return error.exit_code  # type: ignore[attr-defined, no-any-return]
        raise HopInterpError(message) from None


def _fail(message: str) -> None:
    from hopinterp.shown import legible

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
