"""Figures as a page carries them: in a light and a dark scheme, as data."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import matplotlib as mpl
from matplotlib.figure import Figure
from PIL import Image

from hopinterp.views.plates import Plate
from hopinterp.views.style import scheme

_PIXELS_AN_INCH = 110  # at which a figure's text has the size of the page's
_LARGEST = 200_000  # characters of a vector graphic; numbers in hundreds of cells are smaller as pixels
_COARSE, _FINE = 130, 220  # dots an inch of bitmaps
_SVG = "data:image/svg+xml;base64,"


@dataclass(frozen=True)
class Picture:
    """A plate as the page shows it.

    Attributes:
        light, dark: data URIs.
        alt: what it shows, in words.
        caption: how to read it.
        width: in CSS pixels.
    """

    title: str
    light: str
    dark: str
    alt: str
    caption: str
    width: int


def pictures(plates: Callable[[], Iterable[Plate]], sharp: bool = True) -> list[Picture]:
    """What a function draws, drawn once in each scheme.

    Args:
        sharp: as vector graphics, or fine bitmaps where these are smaller; else as bitmaps for a page that has very many.
    """
    with scheme("light"):
        light = [(plate, _smaller(plate.figure) if sharp else _pixels(plate.figure, _COARSE)) for plate in plates()]
    with scheme("dark"):
        dark = [_like(data, plate.figure, sharp) for (_, data), plate in zip(light, plates(), strict=True)]
    return [
        Picture(plate.title, data, other, plate.shows, plate.caption, round(plate.figure.get_figwidth() * _PIXELS_AN_INCH))
        for (plate, data), other in zip(light, dark, strict=True)
    ]


def _smaller(figure: Figure) -> str:
    vector = _vector(figure)
    return vector if len(vector) <= _LARGEST else _pixels(figure, _FINE)


def _like(light: str, figure: Figure, sharp: bool) -> str:
    """In the form that the light one has: to find out anew which is smaller would cost seconds."""
    return _vector(figure) if light.startswith(_SVG) else _pixels(figure, _FINE if sharp else _COARSE)


def _vector(figure: Figure) -> str:
    # glyphs as paths look alike on every machine; the salt and the missing date make the same figure the same bytes
    buffer = io.BytesIO()
    with mpl.rc_context({"svg.fonttype": "path", "svg.hashsalt": "hopinterp"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = re.sub(rb"\s*<!DOCTYPE.*?>", b"", buffer.getvalue(), flags=re.DOTALL)
    return _SVG + base64.b64encode(text).decode()


def _pixels(figure: Figure, dpi: int) -> str:
    # WebP without loss: a third of a PNG's bytes, and lines keep their colours, which a palette mixes up
    buffer, small = io.BytesIO(), io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    Image.open(buffer).convert("RGB").save(small, format="webp", lossless=True)
    return f"data:image/webp;base64,{base64.b64encode(small.getvalue()).decode()}"
