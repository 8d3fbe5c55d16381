"""Options of every command that measures: --save, --csv, --no-cache; and the command that lists and clears the cache."""

from __future__ import annotations

import functools
import inspect
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hopinterp import cache as results
from hopinterp.cli.shared import Json, print_json, show
from hopinterp.errors import HopInterpError
from hopinterp.files import check_file_target, write_directory, write_file
from hopinterp.memory import bytes_in_words
from hopinterp.shown import legible

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

    from hopinterp.decompile.decompilation import Decompilation
    from hopinterp.decompile.records import Decompiled
    from hopinterp.judgement.records import Verdict
    from hopinterp.judgement.surveys import Survey

_PANEL = "Keeping"
Save = Annotated[
    Path | None,
    typer.Option(help="Also save all that was found to this new directory, datasets as netCDF.", rich_help_panel=_PANEL),
]
Csv = Annotated[
    Path | None, typer.Option(help="Also write a table into this file (.csv), a row a cell.", rich_help_panel=_PANEL)
]
NoCache = Annotated[
    bool, typer.Option("--no-cache", help="Measure all anew, and keep nothing in the cache.", rich_help_panel=_PANEL)
]
_OPTIONS: dict[str, tuple[Any, Any]] = {"save": (Save, None), "csv": (Csv, None), "no_cache": (NoCache, False)}


@dataclass(frozen=True)
class _Asked:
    """What --save and --csv name."""

    save: Path | None = None
    csv: Path | None = None

    def check(self) -> None:
        """Raise HopInterpError if nothing could be written there: ask before the work, not after it."""
        if self.save is not None and self.save.exists():
            raise HopInterpError(f"{self.save} exists; give another --save")
        if self.csv is not None:
            check_file_target(self.csv)


_asked: ContextVar[_Asked] = ContextVar("hopinterp.cli.asked", default=_Asked())  # noqa: B039 (it is frozen)


def keeps(command: Callable[..., None]) -> Callable[..., None]:
    """A command with --save, --csv and --no-cache beside its own options; inside, evidence is looked up in the cache."""

    @functools.wraps(command)
    def run(*given: Any, save: Path | None, csv: Path | None, no_cache: bool, **settings: Any) -> None:
        asked = _Asked(save, csv)
        asked.check()
        before = _asked.set(asked)
        try:
            with _cached(not no_cache):
                command(*given, **settings)
        finally:
            _asked.reset(before)

    own = inspect.signature(command, eval_str=True)
    more = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)
        for name, (kind, default) in _OPTIONS.items()
    ]
    run.__signature__ = own.replace(parameters=[*own.parameters.values(), *more])  # type: ignore[attr-defined]
    run.__annotations__ = command.__annotations__ | {name: kind for name, (kind, _) in _OPTIONS.items()}
    return run


@contextmanager
def _cached(on: bool) -> Iterator[None]:
    """Inside, evidence is looked up in the cache, unless it is off; at the end a terminal is told what came from there."""
    if not on or results.place() is None:
        yield
        return
    from hopinterp.evidence.remembered import cached

    def warn(line: str) -> None:
        print(f"hopinterp: {legible(line)}", file=sys.stderr)

    with cached(warn=warn) as used:
        yield
        if used is not None and used.found and sys.stderr.isatty():
            names = ", ".join(dict.fromkeys(str(key["what"]) for key in used.found))
            print(f"From the cache: {names} (--no-cache measures anew).", file=sys.stderr)


def keep_datasets(found: Mapping[str, xr.Dataset]) -> list[Path]:
    """Write datasets where --save and --csv say.

    Args:
        found: by their files' names.

    Returns:
        What was written.
    """
    from hopinterp.views import frames

    asked = _asked.get()
    if asked.save is not None:
        write_directory(asked.save, {f"{name}.nc": bytes(one.to_netcdf()) for name, one in found.items()})
    _write_csv(asked.csv, lambda: frames.of_datasets(found.values()))
    return _written(asked)


def keep_found(found: Verdict | Survey | Decompiled | Decompilation) -> list[Path]:
    """Write a verdict or a program where --save and --csv say.

    Returns:
        What was written.
    """
    from hopinterp.views import frames

    asked = _asked.get()
    if asked.save is not None:
        found.save(asked.save)
    _write_csv(asked.csv, lambda: frames.of_found(found))
    return _written(asked)


def _write_csv(path: Path | None, made: Callable[[], pd.DataFrame]) -> None:
    if path is not None:
        write_file(path, made().to_csv(index=False).encode())


def _written(asked: _Asked) -> list[Path]:
    return [path for path in (asked.save, asked.csv) if path is not None]


# -- the cache --------------------------------------------------------------------------------------------------------

cache = typer.Typer(help="What was measured and is kept, so that it is not measured again: list it, or clear it.")


@cache.callback(invoke_without_command=True)
def _list(context: typer.Context, as_json: Json = False) -> None:
    """What was measured and is kept, so that it is not measured again: list it, or clear it."""
    if context.invoked_subcommand is not None:
        return
    where = results.place()
    entries = [] if where is None else _opened(where).entries()
    if as_json:
        print_json({"directory": where and str(where), "results": [_row(entry) for entry in entries]})
        return
    if where is None:
        show(None, f"The cache is off ({results.PLACE}).")
        return
    from rich.table import Table

    table = Table("what", "model", "k", "size", "kept", "used", box=None, pad_edge=False)
    now = time.time()
    for entry in entries:
        row = _row(entry)
        ages = (_age(now - then) if then is not None else "?" for then in (entry.written, entry.used))
        table.add_row(*(legible(str(row[name])) for name in ("what", "model", "k")), bytes_in_words(entry.size), *ages)
    total = sum(entry.size for entry in entries)
    used = f"{bytes_in_words(total)} of at most {bytes_in_words(results.MOST)}"
    lines = f"{len(entries)} result(s), {used}, in {legible(str(where))}."
    show(table if entries else None, lines)


@cache.command("clear")
def _clear(as_json: Json = False) -> None:
    """Remove all that is kept."""
    where = results.place()
    count, size = (0, 0) if where is None else _opened(where).clear()
    if as_json:
        print_json({"directory": where and str(where), "removed": count, "bytes": size})
    else:
        show(
            None,
            "The cache is off."
            if where is None
            else f"Removed {count} result(s), {bytes_in_words(size)}, from {legible(str(where))}.",
        )


def _opened(where: Path) -> results.Cache:
    return results.Cache(where, lambda _: None)


def _row(entry: results.Entry) -> dict[str, Any]:
    """What an entry's file says of itself, which may be anything."""
    key, settings = entry.key, entry.key.get("settings")
    hops = settings.get("hops", "") if isinstance(settings, dict) else ""
    if isinstance(hops, list) and hops:
        hops = hops[0] if len(hops) == 1 else f"{hops[0]}–{hops[-1]}"
    said = {"what": key.get("what", "?"), "model": key.get("model", "?"), "k": hops}
    return {name: str(value)[:100] for name, value in said.items()} | {
        "bytes": entry.size,
        "written": entry.written,
        "used": entry.used,
        "version": str((key.get("versions") or {}).get("hopinterp", "")) if isinstance(key.get("versions"), dict) else "",
    }


def _age(seconds: float) -> str:
    """Seconds in words: "3 h ago"."""
    for name, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {name} ago"
    return "now"
