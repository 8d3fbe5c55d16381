"""What is shown: tables and their readings, in characters and as HTML; JSON's values; text that any terminal bears."""

from __future__ import annotations

import codecs
import html
import math
from collections.abc import Iterable, Sequence
from typing import Any, TextIO

_LONGEST = 300
_STAND_INS = {
    **dict.fromkeys("−–—‐", "-"),
    **{"ℓ": "l", "…": "...", "Σ": "S", "≤": "<=", "≥": ">=", "→": "->", "′": "'", "·": "*", "×": "x", "δ": "d", "γ": "g"},
    **{
        "⌈": "ceil(",
        "⌊": "floor(",
        "⌉": ")",
        "⌋": ")",
        "⊥": "null",
        "√": "sqrt ",
        "≠": "!=",
        "±": "+-",
        "½": "1/2",
        "ö": "oe",
    },
    **{power: f"^{number}" for number, power in enumerate("⁰¹²³⁴⁵⁶⁷⁸⁹")},
    **{"●": "o", "╴": "-", "“": '"', "”": '"', "’": "'", "‖": "|"},
}

Row = tuple[str, tuple[str, ...]]
"""A row of a table: its label, and a cell a column."""


def finite(value: Any) -> Any:
    """JSON has no NaN: an undefined number is null."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def plain(columns: Sequence[str], rows: Sequence[Row]) -> str:
    """A table in characters, its first column on the left and all others on the right."""
    lines = [tuple(columns), *((label, *cells) for label, cells in rows)]
    first, *others = (max(map(len, column)) for column in zip(*lines, strict=True))
    padded = ([label.ljust(first), *map(str.rjust, cells, others)] for label, *cells in lines)
    return "\n".join("  ".join(line).rstrip() for line in padded)


def as_html(columns: Sequence[str], rows: Sequence[Row], reading: str) -> str:
    """A table and its reading as HTML, the last line, the answer, on top."""
    *lines, answer = map(html.escape, reading.splitlines())

    def row(cells: Iterable[str], tag: str) -> str:
        first, *others = map(html.escape, cells)
        return f"<tr><th style='text-align: left'>{first}</th>{''.join(f'<{tag}>{cell}</{tag}>' for cell in others)}</tr>"

    body = "".join(row((label, *cells), "td") for label, cells in rows)
    table = f"<table><thead>{row(columns, 'th')}</thead><tbody>{body}</tbody></table>"
    return f"<div><p><strong>{answer}</strong></p>{table}<ul>{''.join(f'<li>{line}</li>' for line in lines)}</ul></div>"


class Shown:
    """What prints and, in a notebook, shows itself: by `columns`, `rows` and a `reading` whose last line is the answer."""

    @property
    def columns(self) -> list[str]:
        """Over `rows`."""
        raise NotImplementedError

    @property
    def rows(self) -> list[Row]:
        """The table."""
        raise NotImplementedError

    @property
    def reading(self) -> str:
        """What it says, in words."""
        raise NotImplementedError

    def __str__(self) -> str:
        return f"{plain(self.columns, self.rows)}\n\n{self.reading}"

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.reading.splitlines()[-1]}>"

    def _repr_html_(self) -> str:
        return as_html(self.columns, self.rows, self.reading)


def legible(text: str) -> str:
    """Text from outside in characters that a terminal shows and does not obey, and not too long."""
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
    return shown if len(shown) <= _LONGEST else shown[: _LONGEST - 1] + "…"


def use_stand_ins(*streams: TextIO) -> None:
    """From now on, where a stream's encoding lacks a character, others are written that say the same."""
    codecs.register_error("hopinterp.stand_ins", _stand_in)
    for stream in streams:
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="hopinterp.stand_ins")


def _stand_in(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    missing = error.object[error.start : error.end]
    return "".join(_STAND_INS.get(character, "?") for character in missing), error.end
