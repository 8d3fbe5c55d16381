"""Which k a run asks for at each step, how long its sequences are, and at which positions they stand."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hopinterp.task import Batch, HopTask
from hopinterp.training.config import TrainConfig

_MEMORY = 0.9  # of the running errors, for each sequence that asks that k
_FLOOR = 0.02  # weight of a k that is never wrong
_UNIFORM = 0.1  # share of draws from the task's own distribution, at first
_UNIFORM_END = 0.1  # the end of the run that is wholly the task's own distribution


@dataclass
class Curriculum:
    """What has been asked, and how well it went.

    While it grows, k is drawn from 0 … K with weight (running error + 0.02), times e^(−focus · the largest running error
    of a smaller k): what lies below is learned first. One draw in ten is uniform on 0 … max_hops. K grows by one when its
    running error falls under 20%. As the learning rate decays, the uniform share rises to 1, and the run's last tenth is the
    task's own distribution: all k alike, full length.

    Attributes:
        largest: K.
        errors: [k], running error of each k, from training batches, each of which is seen only once.
        grows_under: the running error of K under which K grows.
    """

    config: TrainConfig
    largest: int = 1
    errors: Float[Tensor, " k"] = field(default_factory=lambda: torch.ones(0))
    grows_under: float = 0.2

    def __post_init__(self) -> None:
        if not len(self.errors):
            self.errors = torch.ones(self.config.max_hops + 1)
        self.largest = min(self.largest, self.config.max_hops) if self.config.curriculum else self.config.max_hops

    def draw(self, step: int, generator: torch.Generator) -> tuple[Batch, Int[Tensor, "batch position"] | None]:
        """A batch, and the rows of W_pos that its tokens stand at (None: 0 … n)."""
        config = self.config
        task = HopTask(self._letters(step / config.steps), config.alphabet, config.max_hops)
        count = config.batch * (config.letters + 1) // task.n_positions if config.even_tokens else config.batch
        batch = task.sample(count, self._hops(step / config.steps, count, generator), generator=generator)
        room = config.letters - task.n_letters
        if not room:
            return batch, None
        offset = torch.randint(room + 1, (count, 1), generator=generator)
        positions = torch.arange(task.n_positions) + offset
        positions[:, 0] = 0  # the hop token keeps its place
        return batch, positions

    def _letters(self, progress: float) -> int:
        first, second = self.config.short_until
        if progress < second:
            return max(1, self.config.letters // 3 if progress < first else 2 * self.config.letters // 3)
        return self.config.letters

    def _hops(self, progress: float, count: int, generator: torch.Generator) -> Int[Tensor, " batch"] | None:
        if not self.config.curriculum or progress >= 1 - _UNIFORM_END:
            return None
        start, end = 1 - self.config.decay, 1 - _UNIFORM_END
        uniform = max(_UNIFORM, (progress - start) / (end - start) if end > start else 0.0)
        below = torch.cat([torch.zeros(1), self.errors.cummax(0).values[:-1]])
        weights = (self.errors + _FLOOR) * (-self.config.focus * below).exp()
        weights = torch.where(torch.arange(len(self.errors)) <= self.largest, weights, 0.0)
        weights = (1 - uniform) * weights / weights.sum() + uniform / len(weights)
        return torch.multinomial(weights, count, replacement=True, generator=generator)

    def update(
        self, hops: Int[Tensor, " batch"], wrong: Int[Tensor, " batch"], scored: Int[Tensor, " batch"], step: int
    ) -> None:
        """Learn from a batch how many of each sequence's answers were wrong, and grow if the letters leave room for it."""
        for k in hops.unique().tolist():
            asked = hops == k
            if positions := int(scored[asked].sum()):
                memory = _MEMORY ** int(asked.sum())
                self.errors[k] = memory * self.errors[k] + (1 - memory) * float(wrong[asked].sum()) / positions
        letters = self._letters(step / self.config.steps)
        # a link leads back |Σ| − 1 letters on average: in short sequences long chains are rare
        room = letters == self.config.letters or letters > (self.config.alphabet - 1) * (self.largest + 2)
        if room and self.largest < self.config.max_hops and self.errors[self.largest] < self.grows_under:
            self.largest += 1

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"largest": self.largest, "errors": self.errors.clone()}
