"""The pictures of README.md: one figure of each notebook, from its kept outputs, small.

python analyses/pictures.py
"""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path

from PIL import Image

HERE = Path(__file__).parent
SHOWN = {1: 0, 2: 3, 3: 0, 4: 0, 5: 0, 6: 0, 7: 2, 8: 0, 9: 0, 10: 2}
"""Which of its figures stands for each notebook."""
WIDTH, COLOURS = 480, 256


def main() -> None:
    for number, which in SHOWN.items():
        (HERE / "pictures" / f"{number}.png").write_bytes(picture(number, which))


def picture(number: int, which: int) -> bytes:
    """A figure of a notebook, at most WIDTH pixels wide, as a small PNG."""
    (notebook,) = HERE.glob(f"{number}_*.ipynb")
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    figures = [
        out["data"]["image/png"] for cell in cells for out in cell.get("outputs", []) if "image/png" in out.get("data", {})
    ]
    text = figures[which]
    with Image.open(io.BytesIO(base64.b64decode(text if isinstance(text, str) else "".join(text)))) as figure:
        small = figure.convert("RGB")
    small.thumbnail((WIDTH, WIDTH))
    buffer = io.BytesIO()
    small.quantize(COLOURS).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


if __name__ == "__main__":
    main()
