"""How a tool enters HopBench: one function from (model, task, k) to an Answer.

    from benchmarks.hopbench.contract import Answer

    def mine(model, task, hops):
        scores = ...                      # however: {(layer, head, j): how surely that head at find^j(i) matters}
        return Answer(nodes=scores)

    python -m benchmarks.hopbench --enter mypackage.mymodule:mine

- `model` is a TransformerLens `HookedTransformer` on the CPU, in eval mode: blocks with or without MLPs and layer norms.
- `task` is a `hopinterp.HopTask`: `task.sample(100, hops=k, seed=0)` gives tokens, labels, and `find` [batch, hop,
  position], so that find^j(i) of every sequence is at hand. |Σ| ≥ 3.
- `hops` is k, the same for every sequence that the model is to be judged on.

Everything in an Answer may be left out; what is left out is not scored. Nothing is told about how the model was made. A tool
may raise `hopinterp.HopInterpError` to say that it makes no claim about a model. A head's number is its place in
`blocks.{layer}.attn`. Only the order of scores counts.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks.hopbench.truth import HeadAt, Route
from hopinterp.errors import HopInterpError
from hopinterp.task import HopTask

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a tool says of one model at one k.

    Attributes:
        nodes: how surely a head's output at find^j(i), by (layer, head, j), matters for the answer at i; 0 where left out.
        heads: the same by (layer, head), for tools that know no positions; by default the most of `nodes`.
        routes: where heads look: (layer, head, kind, hop) with kinds "hop" (find^hop(i)), "before hop" (one position before
            it; hop 0: the previous token), "self", "same letter". Heads that look at the first token are left out.
        derivations: jumps that add up to k, last block first.
        verdict: "doubling", "sequential", "linear by two", "beyond", "mixed", "undetermined" or "none".
        form: "successor", "lookup" or None; `pace`: "full", "slack" or None.
    """

    nodes: Mapping[HeadAt, float] | None = None
    heads: Mapping[tuple[int, int], float] | None = None
    routes: frozenset[Route] | None = None
    derivations: frozenset[tuple[int, ...]] | None = None
    verdict: str | None = None
    form: str | None = None
    pace: str | None = None


Entry = Callable[["HookedTransformer", HopTask, int], Answer]
ENTRIES: dict[str, Entry] = {}
"""Tools by name, in the order of the table."""
RANKS: set[str] = set()
"""Those of them that only rank nodes: they claim nothing, so that a model without a circuit tells nothing about them."""


def entry(name: str, *, ranks: bool = False) -> Callable[[Entry], Entry]:
    """Register a tool; `ranks` if it claims nothing and only ranks nodes."""

    def add(function: Entry) -> Entry:
        ENTRIES[name] = function
        if ranks:
            RANKS.add(name)
        return function

    return add


def enter(reference: str) -> str:
    """Register "module:function", and return the name that it goes by.

    Raises:
        HopInterpError: no such function.
    """
    module, _, name = reference.partition(":")
    try:
        ENTRIES[reference] = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise HopInterpError(f"{reference!r} is no entry; give module:function ({error})") from None
    return reference
