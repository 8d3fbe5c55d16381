"""The app, the options that commands share, how a model is opened and a result printed. No torch until it is needed."""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
from contextlib import contextmanager
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hopinterp.devices import find_device
from hopinterp.errors import HopInterpError
from hopinterp.models.places import model_name
from hopinterp.shown import finite, legible
from hopinterp.signals import at_work
from hopinterp.whole import spans

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    import xarray as xr
    from rich.table import Table

    from hopinterp.models.subject import Subject
    from hopinterp.progress import Progress, Report
    from hopinterp.task import HopTask

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Does layer ℓ of a k-hop transformer resolve 2^ℓ hops? Import or train a model, then look inside.",
)


def _print_version(asked: bool) -> None:
    if asked:
        print(f"hopinterp {metadata.version('hopinterp')}")
        raise typer.Exit


@app.callback()
def _command(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and end.")
    ] = False,
) -> None:
    """What stands before the name of a command."""


class Whole:
    """Parses a whole number, in the digits 0 to 9 alone."""

    name = "INTEGER"

    def __init__(self, least: int | None = None, most: int = 10**18) -> None:
        self.least, self.most = least, most
        self.__name__ = self.name

    def __call__(self, given: str | int) -> int:
        """The number. Raises typer.BadParameter."""
        if isinstance(given, str) and not re.fullmatch(r"[+-]?[0-9]{1,18}", given):
            raise typer.BadParameter(f"{given!r:.40} is no whole number.")
        number = int(given)
        if self.least is not None and number < self.least:
            raise typer.BadParameter(f"{number} is not at least {self.least}.")
        if number > self.most:
            raise typer.BadParameter(f"{number} is more than {self.most}.")
        return number


class Number:
    """Parses a number, in the digits 0 to 9 alone."""

    name = "FLOAT"

    def __init__(self) -> None:
        self.__name__ = self.name

    def __call__(self, given: str | float) -> float:
        """The number. Raises typer.BadParameter."""
        try:
            if isinstance(given, str) and not given.isascii():
                raise ValueError
            return float(given)
        except ValueError:
            raise typer.BadParameter(f"{given!r:.40} is no number.") from None


def whole(words: str, least: int | None = None, most: int = 10**18) -> Any:
    """An option that takes a whole number."""
    return typer.Option(parser=Whole(least, most), metavar=Whole.name, help=words)


def choices(*names: str) -> Any:
    """What completes one of a few names in the shell."""

    def matching(incomplete: str) -> list[str]:
        return [name for name in names if name.startswith(incomplete)]

    return matching


def complete_model(incomplete: str) -> list[str]:
    """The shipped models and the directories that a model's name may go on to, for the shell."""
    from hopinterp.models.places import list_models

    shipped = [path.name for path in list_models() if path.name.startswith(incomplete)]
    folder, typed = os.path.split(incomplete)
    try:
        with os.scandir(folder or ".") as entries:
            below = sorted(one.name for one in entries if one.name.startswith(typed) and one.is_dir())
    except OSError:
        return shipped
    return shipped + [os.path.join(folder, name) for name in below if typed or not name.startswith(".")]


_MODEL = {"help": "A model directory, or a shipped model's name.", "autocompletion": complete_model}
Model = Annotated[str, typer.Argument(**_MODEL)]
Models = Annotated[list[str], typer.Argument(**_MODEL | {"help": "Model directories, or shipped models' names."})]
Hops = Annotated[int, whole("k, the hop count the model is asked for.")]
Layer = Annotated[int | None, whole("One block, counted from 0; every block by default.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
Plot = Annotated[Path | None, typer.Option(help="Also draw the figure into this file (.png, .svg, .pdf).")]
Dpi = Annotated[int, whole("Dots an inch of the figure, if its format has dots.", 20, 1200)]
Seed = Annotated[int, whole("Seed of every random choice.", 0, 2**32 - 1)]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.", autocompletion=choices("auto", "cpu", "cuda", "mps"))]


def hop_range(text: str, max_hops: int) -> list[int]:
    """ "8", "1-16" or "1,2,4" as numbers; 1 … max_hops for nothing."""
    if not text:
        return list(range(1, max_hops + 1))
    parts = spans(text)
    if not parts:
        raise HopInterpError(f"--hops is {text!r:.80}; it is a number, a range or a list: 8, 1-16, 1,2,4")
    if (largest := max(map(max, parts))) > max_hops:
        raise HopInterpError(f"hops is {largest}; this task has 0 to {max_hops}")
    ks = [k for first, last in parts for k in range(first, last + 1)]
    if not ks:
        raise HopInterpError(f"--hops is {text!r}, an empty range")
    return sorted(set(ks))


def one_of(option: str, text: str, allowed: Iterable[str]) -> Any:
    """The text of an option that names one of a few things. Raises HopInterpError if it is none of them."""
    names = tuple(allowed)
    if text not in names:
        raise HopInterpError(f"{option} is {text!r}; it is one of {', '.join(names)}")
    return text


def open_model(model: str, device: str, plot: Path | None = None) -> tuple[Subject, HopTask]:
    """The model that a command names, under its directory's name, and its task; first, that `--plot` can be drawn."""
    from hopinterp.models import store
    from hopinterp.models.subject import Subject

    found = find_device(device)
    if plot is not None:  # ask before the work
        from hopinterp.views import plots

        plots.check_drawable(plot)
    network, task = store.load_fused(model, found)
    return Subject.of(network, task, name=model_name(model)), task


def open_models(given: list[str], device: str, plot: Path | None = None) -> dict[str, tuple[Subject, HopTask]]:
    """Several models, by their directories' names, or as they were given where two have one name."""
    names = [model_name(one) for one in given]
    if len(set(names)) < len(names):
        names = given
    if twice := [name for name in names if names.count(name) > 1]:
        raise HopInterpError(f"the model {twice[0]!r:.200} is named twice")
    opened = (open_model(one, device, plot) for one in given)
    return {name: (replace(subject, name=name), task) for name, (subject, task) in zip(names, opened, strict=True)}


def draw(path: Path | None, dpi: int, kind: str, found: xr.Dataset, **settings: Any) -> None:
    """Draw a figure of views/plots.py into the file that `--plot` names, if it does."""
    if path is None:
        return
    from hopinterp.views import plots, style

    if "title" in settings:
        settings["title"] = style.words(settings["title"])
    plots.write(getattr(plots, kind)(found, **settings), path, dpi)


def command_line() -> str:
    """The command as it was called, for what it makes."""
    return shlex.join(["hopinterp", *sys.argv[1:]])


def measured(opened: Mapping[str, tuple[Subject, HopTask]], ks: list[int], **settings: Any) -> dict[str, xr.Dataset]:
    """What `evaluate` finds of several models, by name."""
    from hopinterp.evidence.reading.behaviour import evaluate

    found = {}
    with working("answering") as report:
        for name, (subject, task) in opened.items():
            found[name] = evaluate(subject, task, ks, report=report, **settings)
    return found


def overlay(path: Path | None, dpi: int, found: Mapping[str, xr.Dataset]) -> None:
    """Draw err_k of several models over each other into the file that `--plot` names, if it does."""
    if path is not None:
        from hopinterp.views import plots, style, trends

        # matplotlib leaves what begins with _ out of its legends
        named = {" " * name.startswith("_") + style.words(legible(name)): one for name, one in found.items()}
        plots.write(trends.threshold(named, title="err$_k$"), path, dpi)


def print_json(value: Mapping[str, Any], *written: Path | None) -> None:
    """One line of JSON on standard output; the files that were written, if any, as its `wrote`."""
    wrote = [str(path) for path in written if path is not None]
    print(json.dumps(finite({**value, "wrote": wrote} if wrote else value), allow_nan=False))


def say_written(*written: Path | None) -> None:
    """A line for each file or directory that was written."""
    for path in written:
        if path is not None:
            print(f"Wrote {legible(str(path))}")


def show(table: Table | None, reading: str, *written: Path | None) -> None:
    """Which files were written, a table, and what reads it, whose last line is the answer; as wide as the terminal."""
    from rich.console import Console

    say_written(*written)
    console = Console()
    if not console.is_terminal:
        console.width = 160  # a pipe or a file has no width to keep to
    if table is not None:
        console.print(table)
    if reading:
        console.print(reading, highlight=False, markup=False, soft_wrap=True)


@contextmanager
def working(what: str) -> Iterator[Report]:
    """Progress on standard error, where there is a terminal to see it: what, figures, how much is done, the time left.

    Args:
        what: shown until the first report, which brings its own word.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description}"), BarColumn(bar_width=20), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with at_work(), Bar(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        shown = bar.add_task(what, total=None)
        last: tuple[int, int | None] = (0, None)

        def report(now: Progress) -> None:
            nonlocal last
            if now.total != last[1] or now.done < last[0]:  # other work, whose speed is its own
                bar.reset(shown, total=now.total)
            last = (now.done, now.total)
            bar.update(shown, description=progress_text(now), completed=now.done)

        yield report


def progress_text(now: Progress) -> str:
    """What is done and its figures: "training  loss 0.12  largest hops 3  error 0.043  tokens per second 51,200"."""

    def digits(value: float) -> str:
        return f"{value:,.0f}" if value == int(value) or abs(value) >= 1000 else f"{value:.3g}"

    return "  ".join([now.what, *(f"{name.replace('_', ' ')} {digits(value)}" for name, value in now.details.items())])
