"""The `hopinterp` command: it parses, calls and prints. No science in it, and no torch until it is needed."""

from __future__ import annotations

import sys

import typer

from hopinterp.cli import decompile, intervene, judge, make, read, train  # noqa: F401 (importing them registers their commands)
from hopinterp.cli.shared import INTERRUPTED, app
from hopinterp.errors import HopInterpError


def main() -> None:
    """Run the command: what a user can mend is one line on standard error and exit status 2."""
    # the base class of everything the parser raises, which typer does not name publicly
    usage_error: type[Exception] = typer.BadParameter.__bases__[0]
    try:
        status = app(standalone_mode=False) or 0
        if status == INTERRUPTED:  # the parser turned Ctrl-C into this
            raise KeyboardInterrupt
        sys.exit(status)
    except HopInterpError as error:
        _fail(str(error))
    except usage_error as error:
        _fail(error.format_message())  # type: ignore[attr-defined]
    except (KeyboardInterrupt, typer.Abort):
        print("hopinterp: interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)


def _fail(message: str) -> None:
    print("hopinterp: " + " ".join(message.split()), file=sys.stderr)
    sys.exit(2)
