"""The lock between two runs: pairs, the run that is patched, the run its patches come from, and patching by hooks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hopinterp.errors import HopInterpError
from hopinterp.evidence.patching.effects import Scale, measure
from hopinterp.evidence.patching.pairs import Pairs
from hopinterp.models.fused import FusedTransformer
from hopinterp.models.hooks import Overwrite, Site, changed, intervening, site_of

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

Direction = Literal["noising", "denoising"]
Report = Callable[[int, int], None]
MEMORY = 2**28
"""Bytes that the activations of patched runs may take at one time, unless told otherwise."""
_PAIRS = 128  # whose activations are kept at one time


@dataclass(frozen=True, eq=False)
class Exchange:
    """A model with pairs of sequences, of which one is run and the other gives the activations that are put in.

    Attributes:
        direction: "noising" runs the clean sequence, "denoising" the corrupt one.
    """

    model: HookedTransformer | FusedTransformer
    pairs: Pairs
    direction: Direction

    def __post_init__(self) -> None:
        if self.direction not in ("noising", "denoising"):
            raise HopInterpError(f"direction is {self.direction!r}; it is noising or denoising")

    @property
    def run_tokens(self) -> Int[Tensor, "pair position"]:
        """The sequences that are run with patches."""
        return (self.pairs.clean if self.direction == "noising" else self.pairs.corrupt).tokens

    @property
    def source_tokens(self) -> Int[Tensor, "pair position"]:
        """The sequences whose activations are put in."""
        return (self.pairs.corrupt if self.direction == "noising" else self.pairs.clean).tokens

    @cached_property
    def unpatched(self) -> tuple[Float[Tensor, "pair d_vocab"], Float[Tensor, "pair d_vocab"]]:
        """Logits at the watched positions of the run, and of the source, without any patch."""
        return self.read_logits(self.run_tokens), self.read_logits(self.source_tokens)

    @cached_property
    def scale(self) -> Scale:
        """The metrics of both, on which effects are measured."""
        return Scale(*(measure(logits, self.pairs.right, self.pairs.wrong) for logits in self.unpatched))

    @torch.no_grad()
    def read_logits(self, tokens: Int[Tensor, "pair position"]) -> Float[Tensor, "pair d_vocab"]:
        """The model's logits at each pair's watched position."""
        parts = zip(tokens.split(_PAIRS), self.pairs.position.split(_PAIRS), strict=True)
        return torch.cat([at_position(self.model(part), read) for part, read in parts])


def at_position(logits: Float[Tensor, "row position d_vocab"], read: Int[Tensor, " row"]) -> Float[Tensor, "row d_vocab"]:
    """One position of each row."""
    return logits[torch.arange(len(read), device=read.device), read]


@torch.no_grad()
def patched_by_hooks(
    exchange: Exchange,
    site: str,
    positions: Int[Tensor, "pair cell"] | None,
    memory: int = MEMORY,
    report: Report | None = None,
) -> Float[Tensor, "layer head cell pair d_vocab"]:
    """Logits at the watched position for every block, head and cell: the simple path, by TransformerLens's hooks.

    Each patched run is a whole run of the model with one activation overwritten at one place. Runs whose patch cannot matter
    are not made: those where the two runs agree at that place, and those behind the watched position.

    Args:
        positions: where each pair is patched, a column a cell; None patches all positions at once, in one cell.
        memory: bytes for the activations of the runs that are batched together.

    Returns:
        The head axis has length 1 for sites without heads.
    """
    model: Any = exchange.model
    found = site_of(site, model)
    names = [found.at(layer) for layer in range(model.cfg.n_layers)]
    parts, progress = [], _Progress(report)
    for pairs in torch.arange(len(exchange.pairs), device=exchange.pairs.position.device).split(_PAIRS):
        caches = [
            model.run_with_cache(tokens[pairs], names_filter=names)[1]
            for tokens in (exchange.run_tokens, exchange.source_tokens)
        ]
        here = None if positions is None else positions[pairs]
        cells = found.heads(caches[0][names[0]]) * (1 if here is None else here.shape[1])
        progress.total = len(names) * cells * len(exchange.pairs)
        block = _Block(exchange, found, pairs, here, memory, progress)
        parts.append(torch.stack([block.patched(n, *(cache[name] for cache in caches)) for n, name in enumerate(names)]))
    return torch.cat(parts, dim=3)


@dataclass
class _Progress:
    """Counts patched runs, those that need not be made among them, and tells whoever wants to know."""

    report: Report | None
    total: int = 0
    done: int = 0

    def advance(self, runs: int) -> None:
        self.done += runs
        if self.report and runs:
            self.report(self.done, self.total)


@dataclass(frozen=True, eq=False)
class _Block:
    """Some of the pairs, and where they are patched."""

    exchange: Exchange
    site: Site
    pairs: Int[Tensor, " pair"]
    positions: Int[Tensor, "pair cell"] | None
    memory: int
    progress: _Progress

    def patched(self, layer: int, run: Tensor, source: Tensor) -> Float[Tensor, "head cell pair d_vocab"]:
        """Logits of one block's patches, from the site's activations in both runs."""
        cells = 1 if self.positions is None else self.positions.shape[1]
        shape = (self.site.heads(run), cells, len(self.pairs))
        head, cell, pair = (x.flatten() for x in torch.meshgrid(*(torch.arange(n) for n in shape), indexing="ij"))
        head, cell, pair = (x.to(run.device) for x in (head, cell, pair))
        position = None if self.positions is None else self.positions[pair, cell]
        index = self.site.index(pair, position, head)
        read = self.exchange.pairs.position[self.pairs]
        matters = changed(run[index], source[index])
        if position is not None:
            matters &= position <= read[pair]
        logits = self.exchange.unpatched[0][self.pairs][pair]
        self.progress.advance(int((~matters).sum()))
        for runs in matters.nonzero()[:, 0].split(runs_in_memory(self.exchange.model, run.shape[1], self.memory)):
            rows, p, h = pair[runs], None if position is None else position[runs], head[runs]
            values = source[self.site.index(rows, p, h)]
            write = Overwrite(self.site.index(torch.arange(len(runs), device=rows.device), p, h), values)
            with intervening(self.exchange.model, [(self.site.at(layer), write)]):
                output = self.exchange.model(self.exchange.run_tokens[self.pairs[rows]])
            logits[runs] = at_position(output, read[rows])
            self.progress.advance(len(runs))
        return logits.view(*shape, -1)


def runs_in_memory(model: Any, n_positions: int, memory: int) -> int:
    """How many runs fit into so many bytes, by a block's largest arrays: streams, q k v z, the MLP's, scores and pattern."""
    config = model.cfg
    numbers = n_positions * (12 * config.d_model + 3 * (config.d_mlp or 0) + 4 * config.n_heads * n_positions)
    return max(1, memory // (4 * int(numbers)))
