"""The one style of all figures, and inks that every kind of colour vision tells apart."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl

INKS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
"""Okabe and Ito's colours, without their yellow, which is too light for a line."""

FAMILY_INK = {"pointer": INKS[0], "content": INKS[1], "occurrence": INKS[2]}
"""Of the families of transplants, by what they say was carried."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X")

_STYLE: dict[Any, Any] = {
    "figure.dpi": 150,
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
}


@contextmanager
def style() -> Iterator[None]:
    """Figures made within it look like all others."""
    with mpl.rc_context(_STYLE):
        yield
