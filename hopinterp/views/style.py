"""The one style of all figures: its colours, in a light and a dark scheme, and what each of them stands for."""

from __future__ import annotations

import colorsys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any

import matplotlib as mpl
from matplotlib.colors import Colormap, LinearSegmentedColormap, to_hex, to_rgb
from matplotlib.patheffects import AbstractPathEffect, withStroke

from hopinterp.errors import HopInterpError

INKS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
"""Okabe and Ito's colours, which every kind of colour vision tells apart, without their yellow, too light for a line. As
all constants here, they are the light scheme's: `current().ink` says how the scheme in force draws them."""

FAMILY_INK = {"pointer": "#000000", "content": "#AA4499", "occurrence": "#E69F00"}
"""Of the families of transplants, by what they say was carried: none is a hypothesis's colour."""
FAMILY_MARKER = {"pointer": "o", "content": "s", "occurrence": "^"}

MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LINES: tuple[Any, ...] = ("-", (0, (4, 1.3)), (0, (1.2, 1)), (0, (5, 1.2, 1.2, 1.2)))
"""Of lines that have one colour."""
_DEEPEST = 6  # depths beyond have the last colour

SHARES = "cividis"
"""Colour map of what lies between 0 and 1."""


@dataclass(frozen=True)
class Scheme:
    """The colours of what is no data, and how those of data are drawn beside them.

    Attributes:
        ground: under the figure.
        text: words, axes and marks in the foremost colour. `quiet`: words and lines beside them.
        grid, band: lines and stripes that lead the eye.
        least: lightness below which a colour of data is lifted; None: all are drawn as they are.
    """

    name: str
    ground: str
    text: str
    quiet: str
    grid: str
    band: str
    least: float | None = None

    def ink(self, colour: str) -> str:
        """A colour of data so light that it shows on the ground; black becomes the colour of words."""
        if self.least is None:
            return colour
        hue, lightness, saturation = colorsys.rgb_to_hls(*to_rgb(colour))
        if saturation == 0 and lightness < 0.2:
            return self.text
        return to_hex(colorsys.hls_to_rgb(hue, max(lightness, self.least), min(saturation, 0.75)))

    def depth(self, n_layers: int) -> tuple[str, str]:
        """Ink and marker of a model's depth, in every figure that compares depths: the deeper, the brighter."""
        place = min(max(n_layers, 1), _DEEPEST) - 1
        first, last = (0.0, 0.88) if self.least is None else (0.25, 1.0)
        colour = mpl.colormaps["plasma"](first + (last - first) * place / (_DEEPEST - 1))
        return to_hex(colour), MARKERS[place % len(MARKERS)]

    @property
    def signed(self) -> Colormap:
        """Of effects that have a sign, red below 0 and blue above: no effect is the ground."""
        red, blue = (
            (("#67001F", "#D6604D"), ("#4393C3", "#053061"))
            if self.least is None
            else (("#FFB4A2", "#C44536"), ("#2E86C1", "#AED6F1"))
        )
        return LinearSegmentedColormap.from_list("signed", [*red, self.ground, *blue])

    def rim(self, width: float = 2.2) -> list[AbstractPathEffect]:
        """Around words and lines that cross others: the ground shows between."""
        return [withStroke(linewidth=width, foreground=self.ground)]


SCHEMES = {
    "light": Scheme("light", "#FFFFFF", "#000000", "#595959", "#EDEDED", "#F6F6F6"),
    "dark": Scheme("dark", "#0D1117", "#E6EDF3", "#A5AFBA", "#262C36", "#161B22", least=0.58),
}

_current: ContextVar[Scheme] = ContextVar("scheme", default=SCHEMES["light"])

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


def current() -> Scheme:
    """The scheme in force."""
    return _current.get()


def words(text: str) -> str:
    """Text that comes from outside, such as a model's name, for a title: no dollar in it begins a formula; find^j and err_k
    are set as everywhere."""
    return text.replace("$", r"\$").replace("find^j", "find$^j$").replace("err_k", "err$_k$")


@contextmanager
def scheme(name: str, ground: str | None = None) -> Iterator[Scheme]:
    """Every figure made within it has these colours, wherever it is written later.

    Args:
        name: "light" or "dark".
        ground: the colour of the page that it will stand on; the scheme's own by default.

    Raises:
        HopInterpError: no such scheme.
    """
    if name not in SCHEMES:
        raise HopInterpError(f"scheme is {name!r}; it is one of {', '.join(SCHEMES)}")
    chosen = SCHEMES[name] if ground is None else replace(SCHEMES[name], ground=to_hex(ground))
    before = _current.set(chosen)
    try:
        yield chosen
    finally:
        _current.reset(before)


@contextmanager
def style() -> Iterator[Scheme]:
    """Figures made within it look like all others, in the scheme in force."""
    one = current()
    words = ("text.color", "axes.labelcolor", "axes.edgecolor", "axes.titlecolor", "xtick.color", "ytick.color")
    grounds = ("figure.facecolor", "axes.facecolor", "savefig.facecolor")
    with mpl.rc_context(_STYLE | dict.fromkeys(words, one.text) | dict.fromkeys(grounds, one.ground)):
        yield one
