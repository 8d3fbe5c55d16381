"""Side by side, on one thread: hopinterp's patching sweeps against transformer_lens.patching.

    python benchmarks/patching.py [--model depth5] [--batch 4 16] [--rounds 5] [--json]

Full sweeps, the metric at the last position: resid_pre by (block, position) against `get_act_patch_resid_pre`, and z by
(block, head, position) against `get_act_patch_attn_head_out_by_pos`. Pairs are resampled sequences; TransformerLens has the
source run's cache before its clock starts (we make our own within the time). Each pair of functions runs in turn, A B A B …,
and is quoted by the medians of the CPU time of the thread, which other processes disturb less than the clock on the wall
(`wall_ratio` is by that). The metric is the logit difference between the right letter and the source's, normalised
so that the run's is 0 and the source's 1; `max_difference` is the largest between the two sides, of all patches.

`flop_bound` is what skipping alone could reach, were every operation equally fast: the floating-point operations (two for a
multiplication and addition; products of matrices and attention, nothing else) that TransformerLens spends, divided by those
left when a patch of block l at position p computes, in the blocks from l on, the rows from p on, each query meeting the keys
that are not later; in the last block keys and values of those rows, but the query, the MLP and the logits of the last
position only. A z patch begins with its own position's W_O and MLP, and goes on as a patch of the next block. Tricks that
lower this count further are not in it, nor is what each operation costs beside its arithmetic, so a ratio may exceed it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from threadpoolctl import threadpool_limits
from transformer_lens import HookedTransformer, patching

import hopinterp as hi
from hopinterp.engine.sweeps import head_sweep, resid_sweep

Run = Callable[[], torch.Tensor]


def alternate(ours: Run, theirs: Run, rounds: int) -> dict[str, Any]:
    """Median seconds of each, by the thread's CPU time and by the wall's clock, and the results, after a warm-up of ours."""
    ours()
    spent: dict[str, list[tuple[float, float]]] = {"ours": [], "theirs": []}
    results = {}
    for _ in range(rounds):
        for name, run in (("ours", ours), ("theirs", theirs)):
            cpu, wall = time.thread_time(), time.perf_counter()
            results[name] = run()
            spent[name].append((time.thread_time() - cpu, time.perf_counter() - wall))
    medians = {name: [statistics.median(column) for column in zip(*times, strict=True)] for name, times in spent.items()}
    return {"results": results, "seconds": medians, "ratios": [b / a for a, b in zip(*medians.values(), strict=True)]}


class Pairs:
    """Sequences, what is put into them, and the metric that both sides use."""

    def __init__(self, model: HookedTransformer, task: hi.HopTask, hops: int, batch: int) -> None:
        run, source = (_answered(task, hops, batch, seed) for seed in (0, 1))
        self.model, self.run, self.source = model, run.tokens, source.tokens
        self.fused = hi.FusedTransformer.of(model)
        self.right, self.other = run.labels[:, -1], source.labels[:, -1]
        _, self.cache = model.run_with_cache(self.source)
        self.low, self.high = (self.difference(model(tokens)[:, -1]) for tokens in (self.run, self.source))

    def difference(self, logits: torch.Tensor) -> torch.Tensor:
        """The source's letter against the run's, from logits [… batch, d_vocab], averaged over the batch."""
        columns = torch.arange(len(self.right))
        return (logits[..., columns, self.other] - logits[..., columns, self.right]).mean(-1)

    def metric(self, logits: torch.Tensor) -> torch.Tensor:
        """0 for the run as it is, 1 for the source."""
        return (self.difference(logits) - self.low) / (self.high - self.low)

    def resid(self, rounds: int) -> dict[str, Any]:
        """The two sides of the resid_pre sweep, [layer, position]."""
        return alternate(
            lambda: self.metric(resid_sweep(self.fused, self.run, self.source)),
            lambda: patching.get_act_patch_resid_pre(self.model, self.run, self.cache, lambda x: self.metric(x[:, -1])),
            rounds,
        )

    def head(self, rounds: int) -> dict[str, Any]:
        """The two sides of the z sweep, [layer, position, head]."""
        theirs = patching.get_act_patch_attn_head_out_by_pos
        return alternate(
            lambda: self.metric(head_sweep(self.fused, self.run, self.source)).transpose(1, 2),
            lambda: theirs(self.model, self.run, self.cache, lambda x: self.metric(x[:, -1])),
            rounds,
        )


def _answered(task: hi.HopTask, hops: int, batch: int, seed: int) -> hi.Batch:
    """Sequences whose last answer is a letter, another for each seed."""
    drawn = task.sample(20 * batch, hops=hops, seed=seed)
    wanted = task.first_letter + (torch.arange(batch) + seed) % task.alphabet_size
    rows = [int((drawn.labels[i::batch, -1] == letter).nonzero()[0]) * batch + i for i, letter in enumerate(wanted.tolist())]
    return task.from_letters(drawn.tokens[rows, 1:] - task.first_letter, hops)


def flop_bounds(spec: hi.ModelSpec, n: int) -> dict[str, float]:
    """See the head of this file."""
    assert spec.d_head is not None
    assert spec.d_mlp is not None
    d, layers = spec.d_model, spec.n_layers
    projection = 2 * d * spec.n_heads * spec.d_head  # of one row by W_Q, W_K, W_V or W_O
    mlp = 0 if spec.attn_only else 4 * d * spec.d_mlp
    unembed, pair = 2 * d * spec.d_vocab, 4 * spec.n_heads * spec.d_head  # one query meets one key
    theirs = layers * n * (4 * projection + mlp + n * pair) + n * unembed

    def carried(entry: int, p: int) -> int:
        if entry == layers:
            return unembed if p == n - 1 else 0
        rows, pairs = n - p, sum(range(p + 1, n + 1))
        below = (layers - 1 - entry) * (rows * (4 * projection + mlp) + pairs * pair)
        return below + rows * 2 * projection + 2 * projection + mlp + n * pair + unembed

    def head(layer: int, p: int) -> int:
        reaches = layer < layers - 1 or p == n - 1
        return reaches * (projection // spec.n_heads + mlp) + carried(layer + 1, p)

    patches = [(layer, p) for layer in range(layers) for p in range(n)]
    return {
        "flop_bound_resid": theirs * len(patches) / sum(carried(layer, p) for layer, p in patches),
        "flop_bound_head": theirs * len(patches) / sum(head(layer, p) for layer, p in patches),
    }


@torch.no_grad()
def compare(model: HookedTransformer, task: hi.HopTask, hops: int, batch: int, rounds: int) -> dict[str, Any]:
    """Both sweeps at one batch size."""
    pairs = Pairs(model, task, hops, batch)
    sides = {"resid": pairs.resid(rounds), "head": pairs.head(rounds)}
    differences = [float((a - b).abs().max()) for a, b in (side["results"].values() for side in sides.values())]
    found: dict[str, Any] = {"max_difference": max(differences)}
    found |= {f"{name}_ratio": side["ratios"][0] for name, side in sides.items()}
    found |= flop_bounds(pairs.fused.spec, pairs.run.shape[1])
    found |= {f"{name}_wall_ratio": side["ratios"][1] for name, side in sides.items()}
    found |= {f"{name}_seconds": side["seconds"]["ours"][0] for name, side in sides.items()}
    return found | {f"{name}_transformer_lens_seconds": side["seconds"]["theirs"][0] for name, side in sides.items()}


def main() -> None:
    """Run all comparisons and print them: the first batch size at the top level, the others in objects beside it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="depth5", help="a model directory or a shipped model's name")
    parser.add_argument("--hops", type=int, default=8)
    parser.add_argument("--batch", type=int, nargs="+", default=[4, 16])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    settings = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", DeprecationWarning)
    patching.tqdm = lambda rows: rows  # no bars: they would be timed too
    model, task = hi.load(settings.model)
    with threadpool_limits(1):
        first, *others = (compare(model, task, settings.hops, batch, settings.rounds) for batch in settings.batch)
    found = first | {f"batch_{batch}": other for batch, other in zip(settings.batch[1:], others, strict=True)}
    if settings.json:
        print(json.dumps(found))
        return
    for batch, values in zip(settings.batch, [first, *others], strict=True):
        print(f"batch {batch}", *(f"{key} {value:.4g}" for key, value in values.items()), sep="\n    ")


if __name__ == "__main__":
    main()
