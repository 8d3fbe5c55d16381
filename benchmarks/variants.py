"""Changes of a training run that no setting makes, for `time_to_capacity.py` to try: "full +polar", "full +pace=0.35".

`polar` and `normuon` change the optimiser of the blocks' matrices (`muon`, a control for both, is torch's),
`nonnull` what the loss counts, `pace` when the curriculum adds a k, `qk` how large W_Q and W_K begin.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hopinterp.task import Batch
from hopinterp.training.run import Run

Coefficients = Sequence[tuple[float, float, float]]
JORDAN: Coefficients = [(3.4445, -4.7750, 2.0315)] * 5
"""torch's Newton–Schulz steps."""
POLAR_EXPRESS: Coefficients = [
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
]
"""Five steps that are each the best after those before (Amsel and others, "The Polar Express", 2025)."""


class Muon(torch.optim.Optimizer):
    """torch's Muon, with Nesterov momentum 0.95 and updates of AdamW's size; but with other Newton–Schulz steps, or with the
    columns of an update, each a neuron's weights, brought to one size (NorMuon: Li and others, 2025)."""

    def __init__(self, matrices: list[Tensor], lr: float, weight_decay: float, steps: Coefficients, columns: bool) -> None:
        super().__init__(matrices, {"lr": lr, "weight_decay": weight_decay})
        self.steps, self.columns = steps, columns

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # noqa: ARG002 (the base class has it)
        """One step."""
        for group in self.param_groups:
            for matrix in group["params"]:
                state = self.state[matrix]
                momentum = state.setdefault("momentum", torch.zeros_like(matrix))
                momentum.lerp_(matrix.grad, 0.05)
                update = orthogonal(matrix.grad.lerp(momentum, 0.95), self.steps)
                update = self._evened(update, state) if self.columns else update
                matrix.mul_(1 - group["lr"] * group["weight_decay"])
                matrix.add_(update, alpha=-group["lr"] * 0.2 * math.sqrt(max(matrix.shape)))

    def _evened(self, update: Tensor, state: dict[str, Any]) -> Tensor:
        squares = update.square().mean(0, keepdim=True)
        mean = state.setdefault("squares", torch.zeros_like(squares)).lerp_(squares, 0.05)
        state["count"] = state.get("count", 0) + 1
        evened = update / ((mean / (1 - 0.95 ** state["count"])).sqrt() + 1e-8)
        return evened * (update.norm() / evened.norm())


def orthogonal(gradient: Tensor, steps: Coefficients) -> Tensor:
    """The nearest matrix with orthogonal rows or columns, about, by Newton–Schulz steps in bfloat16."""
    wide = gradient.shape[0] <= gradient.shape[1]
    x = (gradient if wide else gradient.T).bfloat16()
    x = x / (1.02 * x.norm() + 1e-7)
    for a, b, c in steps:
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x if wide else x.T).float()


def _with_muon(run: Run, steps: Coefficients, columns: bool) -> None:
    matrices = run.optimizers[0].param_groups[0]["params"]
    run.optimizers[0] = Muon(matrices, run.config.lr, run.config.weight_decay, steps, columns)


def _non_null(run: Run) -> None:
    """Positions that have no answer get logits that are right and sure, which nothing is learned from."""
    drawn: list[Batch] = []
    draw, forward = run._batch, run.forward

    def draw_and_keep() -> tuple[Batch, Tensor | None]:
        batch, positions = draw()
        drawn[:] = [batch]
        return batch, positions

    def answer(*given: Any, **settings: Any) -> Tensor:
        logits: Tensor = forward(*given, **settings)
        sure = 50.0 * F.one_hot(drawn[0].labels, logits.shape[-1])
        return torch.where(drawn[0].scored[..., None], logits, sure.to(logits))

    run._batch, run.forward = draw_and_keep, answer


def _scale_queries_and_keys(run: Run, scale: float) -> None:
    with torch.no_grad():
        for name, matrix in run.matrices.items():
            if name.endswith((".W_Q", ".W_K")):
                for one in (matrix, run.average.get(name)):
                    if one is not None:
                        one.mul_(scale)


VARIANTS: dict[str, Callable[[Run, float], None]] = {
    "muon": lambda run, _: _with_muon(run, JORDAN, columns=False),
    "polar": lambda run, _: _with_muon(run, POLAR_EXPRESS, columns=False),
    "normuon": lambda run, _: _with_muon(run, JORDAN, columns=True),
    "nonnull": lambda run, _: _non_null(run),
    "pace": lambda run, error: setattr(run.curriculum, "grows_under", error),
    "qk": _scale_queries_and_keys,
}
"""By name; called with a run before its first step, and the number after "=", or 1."""


def vary(run: Run, variant: str) -> None:
    """Change a run as "+name" or "+name=number" says. Raises KeyError where there is no such variant."""
    name, _, value = variant.removeprefix("+").partition("=")
    VARIANTS[name](run, float(value or 1))
