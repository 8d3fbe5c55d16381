"""The two runs of each pair, what they answer unpatched, and the one with activations of the other put in."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, SupportsIndex, Unpack

import torch
import xarray as xr
from jaxtyping import Float, Int
from torch import Tensor

from hopinterp.engine.sweeps import head_sweep, resid_sweep
from hopinterp.errors import HopInterpError
from hopinterp.evidence.datasets import described
from hopinterp.evidence.intervals import LEVEL
from hopinterp.evidence.patching.effects import Scale, measure
from hopinterp.evidence.patching.pairs import Pairs, PairSettings, at_position, choose_pairs
from hopinterp.evidence.patching.positions import By
from hopinterp.models.hooks import Overwrite, Site, changed
from hopinterp.models.subject import ModelLike, Subject
from hopinterp.progress import Advance, Report, counted
from hopinterp.task import HopTask

Direction = Literal["noising", "denoising"]
MEMORY = 2**28
"""Bytes that the activations of patched runs may take at one time, unless told otherwise."""
_PAIRS = 128  # whose activations are kept at one time


def in_one_pass(subject: Subject) -> Subject:
    """The subject by its weights alone where it has them: runs with hooks and without are then of one pass, to the bit."""
    return subject if subject.weights is None else replace(subject, model=subject.weights)


@dataclass(frozen=True, eq=False)
class PairedRuns:
    """A model with pairs of sequences, of which one is run and the other gives the activations that are put in.

    Attributes:
        direction: "noising" runs the clean sequence, "denoising" the corrupt one.

    Raises:
        HopInterpError: no such direction.
    """

    subject: Subject
    pairs: Pairs
    direction: Direction

    def __post_init__(self) -> None:
        if self.direction not in ("noising", "denoising"):
            raise HopInterpError(f"direction is {self.direction!r}; it is noising or denoising")

    @classmethod
    def of(
        cls,
        model: ModelLike,
        task: HopTask,
        hops: SupportsIndex,
        seed: int,
        by: By = "all",
        direction: Direction | None = None,
        **given: Unpack[PairSettings],
    ) -> PairedRuns:
        """The runs of a model on the pairs that are asked for; noising along the chain by default, denoising otherwise."""
        subject = in_one_pass(Subject.asked(model, task))
        pairs = choose_pairs(task, hops, seed, **given, lined_up=by == "position").to(subject.device)
        return cls(subject, pairs, direction or ("noising" if by == "chain" else "denoising"))

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

    @property
    def bar(self) -> float:
        """Half of the effect that a place of the light cone has where a model uses it and nothing else.

        That is 1 where the patch decides between the pair's two answers; noise from an independent sequence sends the answer
        anywhere, so that 1/|Σ| of the answers are right by chance.
        """
        anywhere = self.direction == "noising" and self.pairs.link is None
        return 0.5 * (1 - 1 / self.pairs.clean.task.alphabet_size if anywhere else 1.0)

    @torch.no_grad()
    def read_logits(self, tokens: Int[Tensor, "pair position"]) -> Float[Tensor, "pair d_vocab"]:
        """The model's logits at each pair's watched position, from the pass that patched runs are made by."""
        parts = zip(tokens.split(_PAIRS), self.pairs.position.split(_PAIRS), strict=True)
        with self.subject.hooks([]) as run:
            return torch.cat([at_position(run(part), read) for part, read in parts])

    @torch.no_grad()
    def patched(
        self, site: Site, positions: Int[Tensor, "pair cell"] | None, memory: int = MEMORY, report: Report | None = None
    ) -> Float[Tensor, "layer head cell pair d_vocab"]:
        """Logits at the watched position for every block, head and cell: the simple path, by hooks.

        Each patched run is a whole run of the model with one activation overwritten at one place. Runs whose patch cannot
        matter are not made: those where the two runs agree at that place, and those behind the watched position.

        Args:
            positions: where each pair is patched, a column a cell; None patches all positions at once, in one cell.
            memory: bytes for the activations of the runs that are batched together.

        Returns:
            The head axis has length 1 for sites without heads.
        """
        sizes = self.subject.sizes
        cells = (sizes.n_heads if site.per_head else 1) * (1 if positions is None else positions.shape[1])
        advance = counted("patching", sizes.n_layers * cells * len(self.pairs), report)
        names = [site.at(layer) for layer in range(sizes.n_layers)]
        parts = []
        for pairs in torch.arange(len(self.pairs), device=self.pairs.position.device).split(_PAIRS):
            run, source = (
                self.subject.run_with_cache(tokens[pairs], names)[1] for tokens in (self.run_tokens, self.source_tokens)
            )
            block = _Block(self, site, pairs, None if positions is None else positions[pairs], memory, advance)
            parts.append(torch.stack([block.patched(name, run[name], source[name]) for name in names]))
        return torch.cat(parts, dim=3)

    def runs_in_memory(self, memory: int) -> int:
        """How many runs fit into so many bytes, by a block's largest arrays: streams, q k v z, MLP, scores, pattern."""
        sizes, n = self.subject.sizes, self.run_tokens.shape[1]
        numbers = n * (12 * sizes.d_model + 3 * (sizes.d_mlp or 0) + 4 * sizes.n_heads * n)
        return max(1, memory // (4 * int(numbers)))

    def normalised(self, found: xr.Dataset) -> xr.Dataset:
        """The result with its effects on the scale from corrupt (0) to clean (1), and what the unpatched runs gave."""
        noising = self.direction == "noising"
        normalised = 1 - found.effect if noising else found.effect
        return found.assign(normalised=normalised).merge(self.scale.unpatched(noising))

    def described(self, found: xr.Dataset, seed: int, **settings: Any) -> xr.Dataset:
        """The result with these settings and with those that every result on pairs of runs has."""
        settings = {"direction": self.direction, **self.pairs.settings, "level": LEVEL, **settings}
        task = self.pairs.clean.task
        return described(found, self.subject, task, seed=seed, weights=self.subject.processing, **settings)


@dataclass(frozen=True, eq=False)
class _Block:
    """Some of the pairs, and where they are patched."""

    runs: PairedRuns
    site: Site
    pairs: Int[Tensor, " pair"]
    positions: Int[Tensor, "pair cell"] | None
    memory: int
    advance: Advance

    def patched(
        self, name: str, run: Float[Tensor, "pair ..."], source: Float[Tensor, "pair ..."]
    ) -> Float[Tensor, "head cell pair d_vocab"]:
        """Logits of one block's patches, from the site's activations in both runs."""
        cells = 1 if self.positions is None else self.positions.shape[1]
        shape = (self.site.heads(run), cells, len(self.pairs))
        head, cell, pair = (x.flatten() for x in torch.meshgrid(*(torch.arange(n) for n in shape), indexing="ij"))
        head, cell, pair = (x.to(run.device) for x in (head, cell, pair))
        position = None if self.positions is None else self.positions[pair, cell]
        index = self.site.index(pair, position, head)
        read = self.runs.pairs.position[self.pairs]
        matters = changed(run[index], source[index])
        if position is not None:
            matters &= position <= read[pair]
        logits = self.runs.unpatched[0][self.pairs][pair]
        self.advance(int((~matters).sum()))
        for some in matters.nonzero()[:, 0].split(self.runs.runs_in_memory(self.memory)):
            rows, p, h = pair[some], None if position is None else position[some], head[some]
            values = source[self.site.index(rows, p, h)]
            write = Overwrite(self.site.index(torch.arange(len(some), device=rows.device), p, h), values)
            with self.runs.subject.hooks([(name, write)]) as patched:
                output = patched(self.runs.run_tokens[self.pairs[rows]])
            logits[some] = at_position(output, read[rows])
            self.advance(len(some))
        return logits.view(*shape, -1)


@dataclass(frozen=True, eq=False)
class SweptRuns(PairedRuns):
    """Paired runs patched by the sweeps that skip what cannot change, for a subject with weights."""

    @torch.no_grad()
    def read_logits(self, tokens: Int[Tensor, "pair position"]) -> Float[Tensor, "pair d_vocab"]:
        """The model's logits at each pair's watched position: those of a run patched with its own activation, so that
        patches that change nothing have exactly no effect."""
        first = torch.zeros(len(tokens), 1, dtype=torch.long, device=tokens.device)
        weights = self.subject.weights_for("a sweep")
        return resid_sweep(weights, tokens, tokens, read=self.pairs.position, positions=first)[0, 0]

    @torch.no_grad()
    def patched(
        self, site: Site, positions: Int[Tensor, "pair cell"] | None, memory: int = MEMORY, report: Report | None = None
    ) -> Float[Tensor, "layer head cell pair d_vocab"]:
        """What the simple path gives, for z and for the sites outside the heads."""
        weights, tokens = self.subject.weights_for("a sweep"), (self.run_tokens, self.source_tokens)
        given: dict[str, Any] = {"read": self.pairs.position, "positions": positions, "memory": memory, "report": report}
        if site.name == "z":
            return head_sweep(weights, *tokens, **given)
        logits = resid_sweep(weights, *tokens, **given, site=site.name)
        if site.name == "resid_post" and positions is not None:  # the last block's at i is the source's answer, to the bit
            whole = (positions == self.pairs.position[:, None]).T
            logits[-1, whole] = self.unpatched[1].expand(*whole.shape, -1)[whole]
        return logits[:, None]
