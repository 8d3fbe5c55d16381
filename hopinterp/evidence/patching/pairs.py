"""Pairs of sequences that differ in a known way, and the one position of each whose answer is watched."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, SupportsIndex, TypedDict, get_args

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor

from hopinterp.errors import HopInterpError
from hopinterp.seeds import seeded
from hopinterp.shown import Row, Shown
from hopinterp.task import Batch, HopTask
from hopinterp.whole import whole

Kind = Literal["resample", "one-link"]
_ROUNDS = 200  # of drawing, before a request counts as one that cannot be met
_LEAST_ROUND = 64


_SHOWN = 8  # pairs of the table


@dataclass(frozen=True, eq=False, repr=False)
class Pairs(Shown):
    """Clean sequences and their counterfactuals, and the one position of each pair whose answer is watched.

    Attributes:
        clean, corrupt: two batches of equal size with the same k, pair by pair.
        position: i, whose answer is read. Its chain find¹(i) … find^k(i) is not null, and hop_k differs between the two.
        kind: "resample" or "one-link", or what the maker of other pairs calls them.
        link: j, for one-link pairs: the letter at find^j(i) is the only token that differs.
        redrawn: share of the drawn sequences that were thrown away because no counterfactual of them exists.

    Raises:
        HopInterpError: pairs of unequal shape or k, or a position whose answers are null or the same.
    """

    clean: Batch
    corrupt: Batch
    position: Int[Tensor, " pair"]
    kind: str = "given"
    link: Int[Tensor, " pair"] | None = None
    redrawn: float = 0.0

    def __post_init__(self) -> None:
        if self.clean.tokens.shape != self.corrupt.tokens.shape or len(self.position) != len(self.clean):
            raise HopInterpError(
                f"pairs need two batches of one shape and a position for each; got tokens {list(self.clean.tokens.shape)} "
                f"and {list(self.corrupt.tokens.shape)}, positions {list(self.position.shape)}"
            )
        if not torch.equal(self.clean.hops, self.corrupt.hops) or len(self.clean.hops.unique()) != 1:
            raise HopInterpError("both sequences of every pair must ask for the same k")
        null = self.clean.task.null
        if ((self.right == null) | (self.wrong == null) | (self.right == self.wrong)).any():
            raise HopInterpError("at its position, each pair needs two answers that are letters and differ")

    def __len__(self) -> int:
        return len(self.position)

    @property
    def columns(self) -> list[str]:
        """Over `rows`."""
        return ["pair", "i", "right", "wrong", *(["changed"] if self.link is not None else [])]

    @property
    def rows(self) -> list[Row]:
        """The first few pairs: the watched position, both answers, and of one-link pairs which link was changed."""
        name, shown = self.clean.task.token_name, range(min(len(self), _SHOWN))
        links = [] if self.link is None else [f"find^{j}(i)" for j in self.link[:_SHOWN].tolist()]
        answers = zip(
            self.position[:_SHOWN].tolist(), self.right[:_SHOWN].tolist(), self.wrong[:_SHOWN].tolist(), strict=True
        )
        cells = [(str(i), name(right), name(wrong)) for i, right, wrong in answers]
        return [(str(n), (*cells[n], *links[n : n + 1])) for n in shown]

    @property
    def reading(self) -> str:
        """How many pairs of which kind."""
        return f"{len(self)} {self.kind} pairs, k = {self.hops}; {self.redrawn:.0%} of the sequences were drawn again."

    @property
    def hops(self) -> int:
        """k, the same for all pairs."""
        return int(self.clean.hops[0])

    @property
    def right(self) -> Int[Tensor, " pair"]:
        """The clean sequence's answer at the watched position, as a token."""
        return at_position(self.clean.labels, self.position)

    @property
    def wrong(self) -> Int[Tensor, " pair"]:
        """The counterfactual answer: the corrupt sequence's at the same position."""
        return at_position(self.corrupt.labels, self.position)

    @cached_property
    def chain(self) -> Int[Tensor, "pair hop"]:
        """find^j(i) in the clean sequence, j = 0 … k."""
        return self.clean.find[torch.arange(len(self)), : self.hops + 1, self.position]

    @cached_property
    def distinct(self) -> Bool[Tensor, "pair hop where"]:
        """Where a chain position (where = 0), or the position before it (1), plays one part only.

        find^j(i) − 1 is find^(j+1)(i) itself for one link in three (|Σ| = 4): such a position is neither clearly the one nor
        the other. No other two can coincide, for neighbours differ and so the chain falls strictly.
        """
        met = self.chain[:, :-1] - 1 == self.chain[:, 1:]
        apart = torch.ones(len(self), self.chain.shape[1], 2, dtype=torch.bool, device=met.device)
        apart[:, 1:, 0] = ~met
        apart[:, :-1, 1] = ~met
        return apart

    @property
    def settings(self) -> dict[str, Any]:
        """What the pairs are, for the attrs of a result."""
        found: dict[str, Any] = {"hops": self.hops, "pairs": self.kind, "sequences": len(self), "redrawn": self.redrawn}
        if self.link is None:
            return found
        return found | {"link": int(self.link[0]) if len(self.link.unique()) == 1 else "drawn"}

    def to(self, device: str | torch.device) -> Pairs:
        """The same pairs on another device."""
        link = None if self.link is None else self.link.to(device)
        clean, corrupt, position = self.clean.to(device), self.corrupt.to(device), self.position.to(device)
        return replace(self, clean=clean, corrupt=corrupt, position=position, link=link)


def draw_pairs(
    task: HopTask,
    hops: SupportsIndex,
    sequences: int = 100,
    *,
    kind: Kind = "resample",
    link: int | None = None,
    position: int | None = None,
    seed: int = 0,
) -> Pairs:
    """Counterfactual pairs of the task, drawn from a seed.

    A sequence is drawn, and one of the positions whose chain is not null up to find^k(i). Then
    *resample*: an independent sequence with the same k. *one-link*: the letter at find^j(i), 1 ≤ j ≤ k, changed so that
    neighbours still differ, hop_k(X)_i changes, and find^0 … find^j of i stay where they are; the change moves
    find^(j+1)(i), or for j = k the letter answered. Where no such counterfactual exists everything is drawn again.

    Args:
        sequences: how many pairs.
        link: j of one-link pairs; by default drawn with the sequence, uniformly on 1 … k.
        position: i of all pairs; drawn for each pair by default.

    Raises:
        HopInterpError: k, the link or the position out of range, or no (or hardly any) such pair exists at this size.
    """
    hops = task.hop_count(hops)
    _check(task, hops, sequences, kind, link, position)
    generator = seeded(seed)
    kept_parts: list[tuple[Tensor, ...]] = []
    drawn = kept = 0
    while kept < sequences:
        if drawn > _ROUNDS * max(_LEAST_ROUND, sequences):
            where = "" if position is None else f" at position {position}"
            raise HopInterpError(f"only {kept} {kind} pairs with k = {hops}{where} turned up in {drawn} sequences")
        first = task.sample(max(_LEAST_ROUND, sequences), hops=hops, generator=generator)
        drawn += len(first)
        rows, chosen = _choose_positions(first, hops, position, generator)
        if not len(rows):
            continue
        first = first[rows]
        if kind == "resample":
            second, links_of = task.sample(len(rows), hops=hops, generator=generator), torch.zeros_like(rows)
            possible = _differ(first, second, chosen)
        else:
            links_of = torch.full_like(rows, link) if link else torch.randint(1, hops + 1, rows.shape, generator=generator)
            second, possible = _edit_one_link(first, chosen, links_of, generator)
        kept += int(possible.sum())
        kept_parts.append(tuple(x[possible] for x in (first.tokens, second.tokens, chosen, links_of)))
    clean, corrupt, positions, links = (torch.cat(parts)[:sequences] for parts in zip(*kept_parts, strict=True))
    first, second = (task.from_letters(tokens[:, 1:] - task.first_letter, hops) for tokens in (clean, corrupt))
    return Pairs(first, second, positions, kind, links if kind == "one-link" else None, 1 - kept / drawn)


class PairSettings(TypedDict, total=False):
    """The keywords by which `patch`, `attribution_patch`, `path_patch` and `direct_logit_attribution` choose their pairs.

    Attributes:
        pairs: which counterfactuals are drawn, "resample" (the default) or "one-link"; or pairs of your own (then `hops`
            must be theirs, and the other settings do nothing).
        link, position: see `draw_pairs`. By position i is the last by default, so that the pairs line up.
        sequences: how many pairs; 100 by default.
    """

    pairs: Kind | Pairs
    link: int | None
    position: int | None
    sequences: int


def choose_pairs(
    task: HopTask,
    hops: SupportsIndex,
    seed: int,
    *,
    pairs: Kind | Pairs = "resample",
    link: int | None = None,
    position: int | None = None,
    sequences: int = 100,
    lined_up: bool = False,
) -> Pairs:
    """The given pairs, or pairs drawn by the settings; `lined_up`: all watched at the last position unless one is named."""
    hops = task.hop_count(hops)
    if isinstance(pairs, str):
        position = task.n_letters if position is None and lined_up else position
        return draw_pairs(task, hops, sequences, kind=pairs, link=link, position=position, seed=seed)
    if pairs.hops != hops:
        raise HopInterpError(f"hops is {hops}; the given pairs ask for {pairs.hops}")
    return pairs


def _check(task: HopTask, hops: int, sequences: int, kind: str, link: int | None, position: int | None) -> None:
    if kind not in get_args(Kind):
        raise HopInterpError(f"pairs are {kind!r}; they are {' or '.join(get_args(Kind))}")
    whole("sequences", sequences, 1)
    if link is not None and (kind != "one-link" or not 1 <= link <= hops):
        raise HopInterpError(f"link is {link}; it is for one-link pairs, from 1 to k = {hops}")
    if kind == "one-link" and hops < 1:
        raise HopInterpError("k = 0 has no link to change; ask for at least one hop, or for resampled pairs")
    if position is not None and not 1 <= position <= task.n_letters:
        raise HopInterpError(f"position is {position}; letters stand at 1 to {task.n_letters}")


def _choose_positions(
    clean: Batch, hops: int, position: int | None, generator: torch.Generator
) -> tuple[Int[Tensor, " row"], Int[Tensor, " row"]]:
    """A position with a full chain for every sequence that has one, and which sequences those are."""
    full = clean.find[:, hops] > 0
    if position is not None:
        full = full & (torch.arange(full.shape[1]) == position)
    preference = torch.rand(full.shape, generator=generator).masked_fill(~full, -1)
    rows = full.any(1).nonzero()[:, 0]
    return rows, preference.argmax(1)[rows]


def _edit_one_link(
    clean: Batch, position: Int[Tensor, " row"], links: Int[Tensor, " row"], generator: torch.Generator
) -> tuple[Batch, Bool[Tensor, " row"]]:
    """Tries every other letter at find^j(i), in a random order, and keeps the first that does what is asked."""
    task, hops, row = clean.task, int(clean.hops[0]), torch.arange(len(clean))
    place = clean.find[row, links, position]
    letters = clean.letters
    kept, possible = letters.clone(), torch.zeros(len(clean), dtype=torch.bool)
    shifts = torch.rand(len(clean), task.alphabet_size - 1, generator=generator).argsort(1) + 1
    for shift in shifts.unbind(1):
        edited = letters.clone()
        edited[row, place - 1] = (edited[row, place - 1] + shift) % task.alphabet_size
        good = _is_one_link(clean, task.from_letters(edited, hops), position, links) & ~possible
        kept[good] = edited[good]
        possible |= good
    return task.from_letters(kept, hops), possible


def _is_one_link(
    clean: Batch, corrupt: Batch, position: Int[Tensor, " row"], links: Int[Tensor, " row"]
) -> Bool[Tensor, " row"]:
    row, hops = torch.arange(len(clean)), int(clean.hops[0])
    before, after = (batch.find[row, : hops + 1, position] for batch in (clean, corrupt))
    stays = ((before == after) | (torch.arange(hops + 1) > links[:, None])).all(1)
    no_repeats = (corrupt.tokens[:, 1:-1] != corrupt.tokens[:, 2:]).all(1)
    return stays & no_repeats & _differ(clean, corrupt, position)


def _differ(clean: Batch, corrupt: Batch, position: Int[Tensor, " row"]) -> Bool[Tensor, " row"]:
    """Whether both answers are letters, and not the same one."""
    right, wrong = at_position(clean.labels, position), at_position(corrupt.labels, position)
    return (right != clean.task.null) & (wrong != clean.task.null) & (right != wrong)


def at_position(values: Shaped[Tensor, "row position *rest"], position: Int[Tensor, " row"]) -> Shaped[Tensor, "row *rest"]:
    """One position of each row."""
    return values[torch.arange(len(position), device=position.device), position]
