"""Small models that were trained and have no circuit for the k that they are asked: on shuffled labels, and on k ≤ 2."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

from hopinterp.models import store
from hopinterp.models.fused import FusedTransformer
from hopinterp.task import HopTask
from hopinterp.training.config import TrainConfig
from hopinterp.training.run import Run, set_rate

TASK = HopTask(n_letters=30, alphabet_size=4, max_hops=6)


@dataclass(frozen=True)
class Plan:
    """What is asked, whose answers are given, and for how long."""

    hops: tuple[int, ...]
    shuffled: bool
    steps: int


PLANS = {"few": Plan((1, 2), False, 1200), "shuffled": Plan((1, 2, 3, 4, 5, 6), True, 300)}


def model(name: str, seed: int, runs: Path) -> FusedTransformer:
    """A plan's model, trained if it is not in `runs` yet."""
    directory = runs / f"{name}-{seed}"
    if not directory.exists():
        plan = PLANS[name]
        config = TrainConfig.preset(
            "first",
            layers=3,
            d_model=64,
            letters=30,
            max_hops=6,
            batch=32,
            steps=plan.steps,
            seed=seed,
            short_until=(0.0, 0.0),
        )
        trained = _train(Run(config), plan)
        runs.mkdir(parents=True, exist_ok=True)
        store.save(directory, trained, TASK, {"how": f"HopBench's {name}", "seed": seed}, overwrite=True)
    return store.load_fused(directory)[0]


def _train(run: Run, plan: Plan) -> FusedTransformer:
    """Plain training on the plan's k alone; shuffled labels are those of the sequence before in the batch."""
    config = run.config
    for step in range(plan.steps):
        asked = torch.tensor(plan.hops)[torch.randint(len(plan.hops), (config.batch,), generator=run.generator)]
        batch = TASK.sample(config.batch, hops=asked, generator=run.generator)
        labels = batch.labels.roll(1, 0) if plan.shuffled else batch.labels
        set_rate(run.optimizers, config, step)
        loss = F.cross_entropy(run.model(batch.tokens).flatten(0, 1), labels.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(run.learned, config.clip)
        for optimizer in run.optimizers:
            optimizer.step()
            optimizer.zero_grad()
    return FusedTransformer(run.spec, {name: p.detach().clone() for name, p in run.model.parameters.items()})
