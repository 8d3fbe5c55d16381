"""CircuitsVis pictures of what heads attend to in one sequence, with find^j beside or over them. Offline."""

from __future__ import annotations

import base64
import gzip
import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hopinterp.errors import HopInterpError
from hopinterp.files import digest
from hopinterp.models.hooks import SITES
from hopinterp.models.subject import ModelLike, Subject
from hopinterp.task import Batch
from hopinterp.views.style import INKS

ON, ELSEWHERE = INKS[0], INKS[1]
"""Inks of attention, and, where a find^j is laid over it, of attention that goes elsewhere."""

_DIGITS = 3
_numbers = itertools.count()
_UNPACK = """(async () => {
if (!window.CircuitsVis) {
const packed = Uint8Array.from(atob("PACKED"), (letter) => letter.charCodeAt(0));
const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
const script = document.createElement("script");
script.textContent = await new Response(stream).text();
document.head.append(script);
}
DRAW
})();"""


@dataclass(frozen=True, eq=False)
class Example:
    """One sequence as a model reads it.

    Attributes:
        labels: each token by letter and position: "k=7", "a1", "c2", …
        hops: k.
        layers: which blocks `patterns` has.
        patterns: what each head attends to.
        find: find^j(i) for j = 0 … max_hops; 0 for none.
    """

    labels: tuple[str, ...]
    hops: int
    layers: tuple[int, ...]
    patterns: Float[Tensor, "layer head query key"]
    find: Int[Tensor, "hop position"]

    def layer(self, layer: int) -> Float[Tensor, "head query key"]:
        """The patterns of one block. Raises HopInterpError where they were not read."""
        if layer not in self.layers:
            raise HopInterpError(f"layer is {layer}; this example has {', '.join(map(str, self.layers))}")
        return self.patterns[self.layers.index(layer)]

    def pairs(self, hop: int) -> Float[Tensor, "query key"]:
        """The 0/1 matrix of find^j: row i has its one at find^j(i), and is empty where that is 0."""
        if not 0 <= hop < len(self.find):
            raise HopInterpError(f"there is no find^{hop}; this task has find^0 to find^{len(self.find) - 1}")
        row = self.find[hop]
        matrix = torch.zeros(len(row), len(row))
        matrix[torch.arange(len(row)), row] = (row > 0).float()
        return matrix


@torch.no_grad()
def read_example(model: ModelLike, batch: Batch, index: int = 0, layers: int | Iterable[int] | None = None) -> Example:
    """What every head attends to in one sequence of a batch.

    Args:
        index: which sequence.
        layers: which blocks; all by default.

    Raises:
        HopInterpError: no such sequence or block.
    """
    subject = Subject.of(model, batch.task)
    wanted = tuple(subject.layers(layers))
    if not 0 <= index < len(batch):
        raise HopInterpError(f"index is {index}; this batch has sequences 0 to {len(batch) - 1}")
    names = [SITES["pattern"].at(layer) for layer in wanted]
    _, cache = subject.run_with_cache(batch.tokens[index : index + 1].to(subject.device), names)
    patterns = torch.stack([cache[name][0].float().cpu() for name in names])
    labels = token_labels(batch, index)
    return Example(tuple(labels), int(batch.hops[index]), wanted, patterns, batch.find[index].cpu())


def token_labels(batch: Batch, index: int = 0) -> list[str]:
    """Tokens by letter and position: "k=7", "a1", "c2", … ("30:1" where letters are numbers)."""
    between = "" if batch.task.alphabet_size <= 26 else ":"
    first, *letters = batch.tokens[index].tolist()
    named = (f"{batch.task.token_name(token)}{between}{i}" for i, token in enumerate(letters, start=1))
    return [batch.task.token_name(first), *named]


@dataclass(frozen=True, repr=False)
class Picture:
    """A CircuitsVis component with what it shows. Notebooks display it; it never asks the network for anything.

    CircuitsVis's own objects ask the internet whether it is there, and then load their script from it; this one carries
    the script that is installed with the package.

    Attributes:
        component: its name in CircuitsVis.
        props: what it is given, ready for JSON.
    """

    component: str
    props: Mapping[str, Any]

    def html(self, bundle: bool = True) -> str:
        """The picture as HTML.

        Args:
            bundle: with CircuitsVis's script, packed (1.3 MB as 0.5). Without it the page must have run `bundled_script`
                before.
        """
        props = script_json(self.props)
        # notebooks that are shown on one page have counters of their own
        name = f"hopinterp-picture-{digest(props.encode())[:8]}-{next(_numbers)}"
        draw = f'CircuitsVis.render("{name}", CircuitsVis.{self.component}, {props});'
        script = _UNPACK.replace("PACKED", packed_script()).replace("DRAW", draw) if bundle else draw
        style = "margin: 15px 0; padding: 0 20px; overflow: hidden"
        words = "CircuitsVis draws here where scripts may run: trust the notebook." if bundle else ""
        return f'<div id="{name}" style="{style}">{words}</div>\n<script>\n{script}\n</script>\n'

    def __repr__(self) -> str:
        return f"<Picture: CircuitsVis {self.component}, {len(self.props['tokens'])} tokens>"

    def _repr_html_(self) -> str:
        return self.html()


def attention_heads(example: Example, layers: Iterable[int] | None = None, find: Iterable[int] | None = None) -> Picture:
    """All heads of some blocks as small maps, of which one is shown large (CircuitsVis's AttentionHeads).

    Args:
        layers: which blocks; all that the example has by default.
        find: the find^j that stand behind the heads as maps of their own, to compare with; 1 … k by default.
    """
    shown = example.layers if layers is None else tuple(layers)
    hops = range(1, example.hops + 1) if find is None else list(find)
    maps = {f"{layer}.{head}": one for layer in shown for head, one in enumerate(example.layer(layer))}
    maps |= {f"find^{j}": example.pairs(j) for j in hops}
    if not maps:
        raise HopInterpError("there is nothing to show: no layers and no find^j were given")
    props = {"attention": [triangle(one) for one in maps.values()], "attentionHeadNames": list(maps)}
    return Picture("AttentionHeads", props | _looks(example))


def attention_pattern(example: Example, layer: int, head: int, find: int | None = None) -> Picture:
    """One head's pattern, large, with a find^j laid over it (CircuitsVis's AttentionPattern).

    Args:
        find: attention from i to find^j(i) is blue, and attention that goes elsewhere is orange. Without it, all is blue.
    """
    heads = example.layer(layer)
    if not 0 <= head < len(heads):
        raise HopInterpError(f"head is {head}; block {layer} has 0 to {len(heads) - 1}")
    shown = heads[head]
    if find is not None:
        shown = torch.where(example.pairs(find) > 0, shown, -shown)
    return Picture("AttentionPattern", {"attention": triangle(shown), "zoomed": True} | _looks(example))


def _looks(example: Example) -> dict[str, Any]:
    scale = {"maxValue": 1, "minValue": -1, "positiveColor": ON, "negativeColor": ELSEWHERE}
    return {"tokens": list(example.labels), "maskUpperTri": False} | scale


def triangle(values: Float[Tensor, "query key"]) -> list[list[float | int]]:
    """Rows up to the diagonal, to three digits: what is above it is never attended to, and need not be drawn."""
    rows: Sequence[Sequence[float]] = values.double().tolist()
    return [[_short(value) for value in row[: i + 1]] for i, row in enumerate(rows)]


def _short(value: float) -> float | int:
    rounded = round(value, _DIGITS)
    return int(rounded) if rounded == int(rounded) else rounded


def script_json(value: Any) -> str:
    """JSON that may stand inside a script element: nothing in it can close the element."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")


@cache
def bundled_script() -> str:
    """CircuitsVis's script as it is installed: defines `CircuitsVis`, and asks the network for nothing.

    Raises:
        HopInterpError: the installed CircuitsVis has none.
    """
    place = resources.files("circuitsvis") / "dist" / "cdn" / "iife.js"
    if not place.is_file():
        raise HopInterpError("the installed circuitsvis has no bundled script (dist/cdn/iife.js); install it again")
    text = place.read_text(encoding="utf-8")
    # the text must not close the script element that it stands in, and a source map would be asked for by its name
    return text.replace("</script", "<\\/script").partition("//# sourceMappingURL=")[0].rstrip()


@cache
def packed_script() -> str:
    """`bundled_script` in gzip and base64; the same bytes every day."""
    return base64.b64encode(gzip.compress(bundled_script().encode(), mtime=0)).decode("ascii")
