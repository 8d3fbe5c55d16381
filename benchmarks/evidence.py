"""Side by side, on one thread: hopinterp's evidence against the plain loops that give the same numbers.

    python benchmarks/evidence.py [--model DIR] [--rounds 5] [--json]

Each pair runs in turn, A B A B …, and is quoted by the medians. Results are compared before times are.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

import hopinterp as hi
from hopinterp.evidence.reading.attention import scores
from hopinterp.evidence.reading.linear import Standardizer, fit_logistic, fit_ridge
from hopinterp.models.fused import FusedTransformer
from hopinterp.models.hooks import pattern, resid_post

ROWS = 12_000
Run = Callable[[], Any]


def alternate(ours: Run, theirs: Run, rounds: int) -> tuple[float, float, Any, Any]:
    """Median seconds of each, and what each returned, after one warm-up of ours."""
    ours()
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        results = []
        for run, spent in zip((ours, theirs), times, strict=True):
            start = time.perf_counter()
            results.append(run())
            spent.append(time.perf_counter() - start)
    return statistics.median(times[0]), statistics.median(times[1]), *results


def batches(rounds: int) -> dict[str, float]:
    """Sampling with labels and every find^j, against a Python generator that follows the definition."""
    task = hi.HopTask()
    rng = np.random.default_rng(0)
    per_call = 500

    def definition() -> list[list[int]]:
        letters = [int(rng.integers(4))]
        while len(letters) < task.n_letters:
            letters.append(int((letters[-1] + rng.integers(1, 4)) % 4))
        chain = [list(range(1, task.n_letters + 1))]
        for _ in range(task.max_hops):
            chain.append([find_by_definition(letters, i) if i else 0 for i in chain[-1]])
        return chain

    def find_by_definition(letters: list[int], i: int) -> int:
        return max({0} | {j for j in range(2, i + 1) if letters[j - 2] == letters[i - 1]})

    ours, theirs, batch, _ = alternate(
        lambda: task.sample(per_call, seed=0).find, lambda: [definition() for _ in range(20)], rounds
    )
    assert batch.shape == (per_call, 17, 99)
    return {
        "us_a_sequence": 1e6 * ours / per_call,
        "definition_us": 1e6 * theirs / 20,
        "ratio": theirs / 20 / (ours / per_call),
    }


def probes(model: FusedTransformer, task: hi.HopTask, hops: int, rounds: int) -> dict[str, dict[str, float]]:
    """The probe grid (blocks × 17 hops, 12,000 rows) against a loop of scikit-learn's LogisticRegression."""
    batch = task.sample(ROWS // task.n_letters + 1, hops=hops, seed=0)
    blocks = range(model.spec.n_layers)
    with torch.no_grad():
        _, cache = model.run_with_cache(batch.tokens, [resid_post(layer) for layer in blocks])
    features = [Standardizer.fit(x)(x) for x in (cache[resid_post(layer)][:, 1:].flatten(0, 1)[:ROWS] for layer in blocks)]
    targets = batch.hop_letters[:, :, 1:].mT.flatten(0, 1)[:ROWS]
    valid = targets >= 0
    one_hot = F.one_hot(targets.clamp_min(0), task.alphabet_size).float()

    def loop() -> list[list[LogisticRegression]]:
        def fit(x: torch.Tensor, hop: int) -> LogisticRegression:
            keep = valid[:, hop]
            return LogisticRegression(C=1.0, max_iter=1000).fit(x[keep, :-1].numpy(), targets[keep, hop].numpy())

        return [[fit(x, hop) for hop in range(targets.shape[1])] for x in features]

    def logistic() -> list[torch.Tensor]:
        return [fit_logistic(x, targets, valid, task.alphabet_size) for x in features]

    def ridge() -> list[torch.Tensor]:
        return [fit_ridge(x, one_hot, valid) for x in features]

    def objective(x: torch.Tensor, hop: int, weights: torch.Tensor) -> float:
        keep = valid[:, hop]
        loss = F.cross_entropy(x[keep].double() @ weights.double(), targets[keep, hop], reduction="sum")
        return float(loss + weights[:-1].double().square().sum() / 2) / int(keep.sum())

    found = {}
    seconds, reference, weights, fitted = alternate(logistic, loop, rounds)
    excess = []
    for x, ours, theirs in zip(features, weights, fitted, strict=True):
        for hop, one in enumerate(theirs):
            best = torch.from_numpy(np.vstack([one.coef_.T, one.intercept_]))
            excess.append(objective(x, hop, ours[hop]) - objective(x, hop, best))
    found["logistic"] = {"seconds": seconds, "sklearn_seconds": reference, "ratio": reference / seconds}
    found["logistic"] |= {"largest_excess_nats_a_row": max(excess), "median_excess_nats_a_row": statistics.median(excess)}
    seconds, _, weights, _ = alternate(ridge, lambda: None, 5 * rounds)
    found["ridge"] = {"seconds": seconds, "sklearn_seconds": reference, "ratio": reference / seconds}
    return found


def alignment(model: FusedTransformer, task: hi.HopTask, rounds: int) -> dict[str, float]:
    """Scores of all (k, block, head, j) on 10 sequences, against plain loops with dense 0/1 matrices."""
    batch = task.sample(10, hops=0, seed=0)
    names = [pattern(layer) for layer in range(model.spec.n_layers)]
    patterns = []
    for k in range(task.max_hops + 1):
        with torch.no_grad():
            _, cache = model.run_with_cache(batch.with_hops(k).tokens, names)
        patterns.append(torch.stack([cache[name] for name in names], 1))
    stacked = torch.stack(patterns)  # k, sequence, layer, head, query, key

    layers = [stacked[:, :, layer].contiguous() for layer in range(model.spec.n_layers)]

    def ours() -> list[torch.Tensor]:
        found = [scores(patterns, batch.find) for patterns in layers]
        return [torch.stack([one[name].nanmean(1) for one in found], 1) for name in found[0]]

    def cosine(a: np.ndarray, b: np.ndarray) -> float:
        return float((a * b).sum() / np.sqrt((a**2).sum() * b.sum()))

    def loops() -> list[np.ndarray]:
        n_ks, n_sequences, n_layers, n_heads, n, _ = stacked.shape
        arrays, finds = stacked.numpy(), batch.find.numpy()
        units = [(k, layer, head) for k in range(n_ks) for layer in range(n_layers) for head in range(n_heads)]
        by_hop = np.zeros((2, n_ks, n_layers, n_heads, task.max_hops + 1))
        fixed = np.zeros((3, n_ks, n_layers, n_heads))
        previous, first, own = np.eye(n, k=-1, dtype=np.float32), np.zeros((n, n), np.float32), np.eye(n, dtype=np.float32)
        first[:, 0] = 1
        for s in range(n_sequences):
            for j in range(task.max_hops + 1):
                dense = np.zeros((n, n), dtype=np.float32)
                for i in range(n):
                    if finds[s, j, i] > 0:
                        dense[i, finds[s, j, i]] = 1
                rows = dense.any(1)
                for unit in units:
                    a = arrays[unit[0], s, unit[1], unit[2]]
                    by_hop[(0, *unit, j)] += cosine(a, dense)
                    by_hop[(1, *unit, j)] += cosine(a[rows], dense[rows])
            for unit in units:
                a = arrays[unit[0], s, unit[1], unit[2]]
                for place, target in enumerate((previous, first, own)):
                    fixed[(place, *unit)] += cosine(a, target)
        return [*(by_hop / n_sequences), *(fixed / n_sequences)]

    seconds, reference, mine, plain = alternate(ours, loops, rounds)
    difference = max(float(np.abs(a.numpy() - b).max()) for a, b in zip(mine, plain, strict=True))
    return {"seconds": seconds, "loops_seconds": reference, "ratio": reference / seconds, "largest_difference": difference}


def fused(rounds: int) -> dict[str, float]:
    """Forward and backward pass, and forward pass alone, of the paper's depth 4, against HookedTransformer's."""
    task, spec = hi.HopTask(), hi.ModelSpec.paper(4)
    hooked = spec.build(spec.initial_parameters(0))
    twin = FusedTransformer.of(hooked)
    batch = task.sample(32, seed=0)

    def step(model: Any) -> Run:
        def run() -> torch.Tensor:
            loss = F.cross_entropy(model(batch.tokens).mT, batch.labels)
            loss.backward()
            return loss.detach()

        return run

    def forward(model: Any) -> Run:
        return torch.no_grad()(lambda: model(batch.tokens))

    found = {}
    for name, make in (("step", step), ("forward", forward)):
        seconds, reference, ours, theirs = alternate(make(twin), make(hooked), 3 * rounds)
        assert torch.allclose(ours, theirs, atol=1e-5)
        found |= {f"{name}_seconds": seconds, f"hooked_{name}_seconds": reference, f"{name}_ratio": reference / seconds}
    return found


def main() -> None:
    """Run all comparisons and print them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a model directory; by default depth 5 with random weights")
    parser.add_argument("--hops", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    settings = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", ConvergenceWarning)
    task = hi.HopTask()
    spec = hi.ModelSpec.paper(5)
    model = FusedTransformer(spec, spec.initial_parameters(0))
    if settings.model:
        model, task = hi.load_fused(settings.model)
    with threadpool_limits(1):
        found: dict[str, Any] = {"batches": batches(settings.rounds), "fused": fused(settings.rounds)}
        found["alignment"] = alignment(model, task, settings.rounds)
        found |= probes(model, task, settings.hops, settings.rounds)
    if settings.json:
        print(json.dumps(found))
        return
    for name, values in found.items():
        print(name, *(f"{key} {value:.4g}" for key, value in values.items()), sep="\n    ")


if __name__ == "__main__":
    main()
