"""Verdicts as tables for the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hopinterp.views.tables import ruled_table

if TYPE_CHECKING:
    from rich.table import Table

    from hopinterp.judgement.records import Survey, Verdict


def verdict_table(found: Verdict) -> Table:
    """A column a block: R(ℓ) by each kind of evidence, what heads attend to, and each hypothesis."""
    table = ruled_table("", *(f"block {layer}" for layer in range(len(found.attended))))
    for label, cells in found.rows:
        table.add_row(label, *cells, style="dim" if label.startswith("theory") else "")
    return table


def survey_table(found: Survey) -> Table:
    """A row a k."""
    table = ruled_table(*found.COLUMNS)
    for k, cells in found.rows:
        table.add_row(k, *cells)
    return table
