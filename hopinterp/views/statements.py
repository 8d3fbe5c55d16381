"""A verdict, or a survey of verdicts, as a table for the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hopinterp.views.tables import ruled_table

if TYPE_CHECKING:
    from rich.table import Table

    from hopinterp.judgement.records import Verdict
    from hopinterp.judgement.surveys import Survey


def judged_table(found: Verdict | Survey) -> Table:
    """Of a verdict, a column a block: R(ℓ) by each kind of evidence, and each hypothesis. Of a survey, a row a k."""
    table = ruled_table(*found.columns)
    for label, cells in found.rows:
        table.add_row(label, *cells, style="dim" if label.startswith("theory") else "")
    return table
