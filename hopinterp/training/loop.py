"""The gym: one training run, readable from top to bottom."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from hopinterp.errors import HopInterpError
from hopinterp.models.fused import FusedTransformer
from hopinterp.models.spec import ModelSpec, check_fits
from hopinterp.task import HopTask

_WARM_UP = 100
_GROW_UNDER = 0.3  # running error of the hardest k at which the next one is added
_MEMORY = 0.9  # of the running errors, a batch in which k occurs


def train(
    spec: ModelSpec,
    task: HopTask,
    steps: int = 4000,
    batch_size: int = 32,
    learning_rate: float = 3e-3,
    seed: int = 0,
    report: Callable[[int, float, int], None] | None = None,
) -> FusedTransformer:
    """Train a model on fresh sequences with AdamW: a warm-up, then a linear decay to 0.

    Hop counts are drawn from 0 … K, where K starts at 1 and grows by one whenever the model answers K well; in the last
    tenth of the run they are uniform on 0 … max_hops, the task's own distribution.

    Args:
        report: called after every step with the step, its loss and K.

    Raises:
        HopInterpError: sizes that do not fit the task, settings out of range, or a run that diverges.
    """
    check_fits(spec, task)
    if steps < 1 or batch_size < 1 or not learning_rate > 0:
        raise HopInterpError(f"steps, batch and rate must be above 0; got {steps}, {batch_size}, {learning_rate}")
    generator = torch.Generator().manual_seed(seed)
    parameters = spec.initial_parameters(seed)
    learned = [tensor.requires_grad_() for name, tensor in parameters.items() if spec.is_trained(name)]
    model = FusedTransformer(spec, parameters)
    optimizer = torch.optim.AdamW(learned, lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    largest, running_error = min(1, task.max_hops), torch.ones(task.max_hops + 1)
    for step in range(steps):
        whole = largest == task.max_hops or step > 0.9 * steps
        hops = None if whole else torch.randint(largest + 1, (batch_size,), generator=generator)
        batch = task.sample(batch_size, hops, generator=generator)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * min((step + 1) / _WARM_UP, 1.0, 1.25 * (1 - step / steps))
        logits = model(batch.tokens)
        loss = F.cross_entropy(logits.flatten(0, 1), batch.labels.flatten())
        if not loss.isfinite():
            raise HopInterpError(f"the run diverged at step {step} (loss {loss.item()}); try a lower learning rate")
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learned, 1.0)
        optimizer.step()
        wrong = (logits.argmax(-1) != batch.labels) & batch.scored
        asked = batch.hops == largest
        if asked.any():
            error = wrong[asked].sum() / batch.scored[asked].sum().clamp_min(1)
            running_error[largest] = _MEMORY * running_error[largest] + (1 - _MEMORY) * error
        if running_error[largest] < _GROW_UNDER and largest < task.max_hops:
            largest += 1
        if report is not None:
            report(step, loss.item(), largest)
    return FusedTransformer(spec, {name: tensor.detach() for name, tensor in parameters.items()})
