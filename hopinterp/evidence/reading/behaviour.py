"""err_k, the share of answered positions that a model gets wrong, for each k; and what it means to solve a k."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import xarray as xr
from jaxtyping import Float, Int
from torch import Tensor

from hopinterp.errors import HopInterpError
from hopinterp.evidence.datasets import described
from hopinterp.evidence.intervals import LEVEL, korn_graubard
from hopinterp.evidence.remembered import remembered
from hopinterp.models.subject import ModelLike, Subject
from hopinterp.progress import Advance, Report, counted
from hopinterp.seeds import seeded
from hopinterp.task import Hops, HopTask

SOLVED = 0.01
"""A model solves k where the upper end of err_k's interval is at most this."""
FAILED = 0.05
"""A model fails at k, so that nothing is claimed about its mechanism there, where the lower end is above this."""


@remembered
def evaluate(
    model: ModelLike,
    task: HopTask,
    hops: Hops | None = None,
    sequences: int = 100,
    seed: int = 0,
    dropout: float = 0.0,
    report: Report | None = None,
    distinct: int = 0,
) -> xr.Dataset:
    """err_k on fresh sequences (the paper's Figures 2 and 6 to 8). The same sequences serve every k.

    Args:
        model: anything that `Subject.of` takes, a plain function from tokens to logits included.
        hops: one k or several; 1 … max_hops by default.
        sequences: how many sequences a k.
        dropout: rate of dropout left on while answering. The paper's published table was measured so, at 0.1.
        report: called as sequences are answered.
        distinct: how many further sequences a k, to split by chain: err_k where no letter repeats two hops apart along the
            chain, the hardest ones. None by default, for they take their own time; to say that k is solved there takes 370
            without a mistake, and 1,000 bear three.

    Returns:
        Dim hops (k). `error`: share of the positions whose answer is a letter (null and blank left out) where the most
        likely token is another; `low`, `high`: its 95% interval (Korn and Graubard's, by sequence); `solved`, `failed`:
        `high` ≤ SOLVED, `low` > FAILED; `null_error`: the same share over positions whose answer is null; `positions`: how
        many positions `error` counts. Of chains on which no letter repeats two hops apart, drawn as `HopTask.sample` draws
        them: `distinct_error`, the mean over such positions; `distinct_low`, `distinct_high`, `distinct_solved`,
        `distinct_positions`. NaN and 0 where there is no such chain.

    Raises:
        HopInterpError: k out of range, too few sequences, or dropout asked of a model that runs by its hooks only.
    """
    subject = Subject.asked(model, task)
    ks = task.hop_counts(range(1, task.max_hops + 1) or [0]) if hops is None else task.hop_counts(hops)
    for wanted in (sequences, distinct or 1):  # before anything is answered
        task.check_batch(wanted)
    if dropout:
        subject.weights_for("dropout")
    generator = seeded(seed, subject.device)
    advance = counted("answering", len(ks) * (sequences + distinct), report)
    chains = _Distinct(subject, task, distinct, seed, dropout, advance)
    wrong, answered, null_error = [], [], []
    for k in ks:
        batch = task.sample(sequences, hops=k, seed=seed, device=subject.device)
        mistakes = _answers(subject, batch.tokens, dropout, generator, advance) != batch.labels
        wrong.append((mistakes & batch.scored).sum(1).cpu())
        answered.append(batch.scored.sum(1).cpu())
        null_error.append(float(mistakes[batch.labels == task.null].cpu().double().mean()))
        if distinct:
            chains.add(k)
    wrongs, counts = torch.stack(wrong, 1).double(), torch.stack(answered, 1).double()
    low, high = korn_graubard(wrongs, counts)
    positions = counts.sum(0)
    error = wrongs.sum(0) / positions
    values = {"error": error, "low": low, "high": high, "solved": high <= SOLVED, "failed": low > FAILED}
    values |= {"null_error": torch.tensor(null_error), "positions": positions.long()}
    if distinct:
        values |= chains.values()
    found = xr.Dataset({name: ("hops", value.numpy()) for name, value in values.items()}, {"hops": ks})
    bars: dict[str, Any] = {"solved": SOLVED, "failed": FAILED}
    settings: dict[str, Any] = {"sequences": sequences, "distinct": distinct, "dropout": dropout, "level": LEVEL}
    return described(found, subject, task, seed=seed, **settings, **bars)


@dataclass
class _Distinct:
    """Chains on which no letter repeats two hops apart: for each k, the share of each sequence's that is answered wrong.

    A sequence counts once, whatever number of such positions it has: that often it is drawn.
    """

    subject: Subject
    task: HopTask
    sequences: int
    seed: int
    dropout: float
    advance: Advance
    shares: list[Float[Tensor, " sequence"]] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)

    def add(self, k: int) -> None:
        """Measure one k."""
        try:
            batch = self.task.sample(self.sequences, hops=k, seed=self.seed, device=self.subject.device, distinct=True)
        except HopInterpError:  # no such chain
            self.shares.append(torch.full((self.sequences,), torch.nan, dtype=torch.float64))
            self.positions.append(0)
            self.advance(self.sequences)
            return
        generator = seeded(self.seed, self.subject.device)  # the other numbers do not depend on these
        asked = batch.no_repeats
        mistakes = (_answers(self.subject, batch.tokens, self.dropout, generator, self.advance) != batch.labels) & asked
        self.shares.append((mistakes.sum(1) / asked.sum(1)).double().cpu())
        self.positions.append(int(asked.sum()))

    def values(self) -> dict[str, Tensor]:
        """What was measured, by k."""
        share = torch.stack(self.shares, 1)
        low, high = korn_graubard(share.nan_to_num(), (~share.isnan()).double())
        found = {"distinct_error": share.mean(0), "distinct_low": low, "distinct_high": high}
        return found | {"distinct_solved": high <= SOLVED, "distinct_positions": torch.tensor(self.positions)}


@torch.no_grad()
def _answers(
    subject: Subject, tokens: Int[Tensor, "batch position"], dropout: float, generator: torch.Generator, advance: Advance
) -> Int[Tensor, "batch position"]:
    def logits(part: Int[Tensor, "row position"]) -> Tensor:
        return subject.weights_for("dropout")(part, dropout=dropout, generator=generator) if dropout else subject(part)

    def answers(part: Int[Tensor, "row position"]) -> Int[Tensor, "row position"]:
        best, answer = logits(part).max(-1)  # NaN where any is
        if best.isnan().any():
            raise HopInterpError("the model's logits are NaN: its numbers are too large to be reckoned with")
        advance(len(part))
        return answer

    return torch.cat([answers(part) for part in tokens.split(subject.at_once(tokens.shape[1]))])


def capacity(found: xr.Dataset, *, distinct: bool = False) -> int | None:
    """The largest k up to which `evaluate` found every k from 1 on solved; None where not all of these were measured.

    Args:
        distinct: on chains on which no letter repeats two hops apart, the theorem's worst case, instead of on average.
    """
    name = "distinct_solved" if distinct else "solved"
    if name not in found:
        return None
    solved = found[name].sel(hops=found.hops > 0).sortby("hops")
    if solved.hops.values.tolist() != list(range(1, solved.sizes["hops"] + 1)):
        return None
    return int(solved.astype(int).cumprod("hops").sum())


def mismatch(found: xr.Dataset) -> str:
    """A hint, where fewer answers are right than guesses would be, at every k; else nothing."""
    guessed = 1 / int(found.attrs["alphabet_size"])
    if not bool((found.low > 1 - guessed / 2).all()):
        return ""
    return (
        "Guessing would be right more often: are the model's token ids those of HopTask (hop counts from 0, then letters, "
        "null, blank), and its alphabet and lengths the task's?"
    )


def error_table(found: xr.Dataset) -> dict[str, Any]:
    """What `evaluate` found as JSON values, which a model's card stores: `errors`, `low`, `high` by k, and `settings`."""
    names = {"errors": "error", "low": "low", "high": "high"}
    table: dict[str, Any] = {
        key: {str(k): float(found[name].sel(hops=k)) for k in found.hops.values} for key, name in names.items()
    }
    return table | {"settings": dict(found.attrs)}


def solved_by(table: Mapping[str, Any]) -> list[int]:
    """Every k that a table as `error_table` makes it, or as a card keeps it (undefined numbers are None), shows solved."""
    return sorted(int(k) for k, high in table.get("high", {}).items() if high is not None and high <= SOLVED)
