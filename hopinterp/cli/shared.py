"""The front door's counter: the app, the options that commands share, and how they print. No torch until it is needed."""

from __future__ import annotations

import json
import re
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hopinterp.errors import HopInterpError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import xarray as xr
    from rich.table import Table

INTERRUPTED = 130
"""Exit status after Ctrl-C."""

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Does layer ℓ of a k-hop transformer resolve 2^ℓ hops? Import or train a model, then look inside.",
)

Model = Annotated[str, typer.Argument(help="A model directory, or a shipped model's name.")]
Hops = Annotated[int, typer.Option(help="k, the hop count the model is asked for.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
Plot = Annotated[Path | None, typer.Option(help="Also draw the figure into this file (.png, .svg, .pdf).")]
Seed = Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Seed of every random choice.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]


def hop_range(text: str, max_hops: int) -> list[int]:
    """ "8", "1-16" or "1,2,4" as numbers; 1 … max_hops for nothing."""
    if not text:
        return list(range(1, max_hops + 1))
    if not re.fullmatch(r"\d+(-\d+)?(,\d+(-\d+)?)*", text):
        raise HopInterpError(f"--hops is {text!r}; it is a number, a range or a list: 8, 1-16, 1,2,4")
    ks: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        ks += range(int(first), int(last or first) + 1)
    if not ks:
        raise HopInterpError(f"--hops is {text!r}, an empty range")
    return sorted(set(ks))


def find_device(name: str) -> str:
    """What `--device` names, with auto resolved. Raises HopInterpError where this machine has none."""
    import torch

    found = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return next(kind for kind in ("cuda", "mps", "cpu") if found[kind])
    if name not in found:
        raise HopInterpError(f"--device is {name!r}; it is auto, cpu, cuda or mps")
    if not found[name]:
        raise HopInterpError(f"--device is {name}; this machine has none")
    return name


def check_drawable(path: Path | None) -> None:
    """Raise HopInterpError if `--plot` names no place for a figure: ask before the work."""
    if path is not None:
        from hopinterp.views import plots

        plots.check_drawable(path)


def draw(path: Path | None, kind: str, found: xr.Dataset, **settings: Any) -> None:
    """Draw a figure of views/plots.py into the file that `--plot` names, if it does."""
    if path is None:
        return
    from hopinterp.views import plots

    plots.write(getattr(plots, kind)(found, **settings), path)


def print_json(value: dict[str, Any]) -> None:
    """One line of JSON on standard output."""
    from hopinterp.views import tables

    print(json.dumps(tables.finite(value), allow_nan=False))


def show(table: Table | None, reading: str) -> None:
    """A table and the line that reads it, as wide as the terminal."""
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console.width = 160  # a pipe or a file has no width to keep to
    if table is not None:
        console.print(table)
    console.print(reading, highlight=False, soft_wrap=True)


@contextmanager
def working(what: str) -> Iterator[None]:
    """A spinner on standard error, where there is a terminal to see it."""
    from rich.console import Console

    with Console(stderr=True).status(what + " …"):
        yield


@contextmanager
def telling() -> Iterator[Callable[[str], None]]:
    """A spinner on standard error, where there is a terminal to see it, whose words change as the work goes on."""
    from rich.console import Console

    with Console(stderr=True).status("starting …") as status:
        yield lambda what: status.update(what + " …")


@contextmanager
def counting(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on standard error, where there is a terminal to see it: how much of how much is done, and the time left."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(bar_width=20), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
