"""Side by side in one run: a training step of hopinterp, of the authors' loop, and of HookedTransformer's own forward pass.

    python benchmarks/training.py [--layers 4] [--rounds 5] [--threads 2] [--json]
    python benchmarks/training.py --run DIR      after how many tokens a run reached the authors' depth-3 or depth-4 errors

All three train the same sizes at full length (98 letters, every k) with batches of 64, our recipe's, and run in turn,
A B C A B C …; medians are quoted. The authors' loop is re-created from the paper's description: GPT-2 of Hugging Face with
its default attention, dropout 0.1, AdamW at 1e-4, and batches made one sequence at a time in Python. The rate of matrix
products is measured on the very shapes of the model, in the precision that the step uses.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F

import hopinterp as hi
from hopinterp.training.run import Run

BATCH = 64
STEPS = 5


def authors_loop(layers: int) -> Callable[[], int]:
    """One step as the authors' code takes it."""
    from transformers import GPT2Config, GPT2Model

    task, draw = hi.HopTask(), random.Random(0)
    config = GPT2Config(vocab_size=30, n_positions=100, n_embd=128, n_layer=layers, n_head=4, use_cache=False)
    config.bos_token_id = config.eos_token_id = None
    model = GPT2Model(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def sequence() -> tuple[list[int], list[int]]:
        letters = ""
        for _ in range(task.n_letters + 2):
            letters += draw.choice([c for c in "abcd" if not letters.endswith(c)])
        names, places = letters, list(range(len(letters)))
        k = draw.randrange(task.max_hops + 1)
        chains = [names]
        for _ in range(task.max_hops):  # the authors compute every hop of every sequence
            following = []
            for i, place in enumerate(places):
                last = letters.rfind(names[i], 0, place) if place >= 0 else -1
                following.append(last + 1 if last >= 0 else -1)
            places = following
            names = "".join(letters[p] if p >= 0 else "~" for p in places)
            chains.append(names)
        code = {c: task.first_letter + i for i, c in enumerate("abcd")} | {"~": task.null}
        return [k, *(code[c] for c in letters[:-2])], [task.blank, *(code[c] for c in chains[k][:-2])]

    def step() -> int:
        pairs = [sequence() for _ in range(BATCH)]
        tokens, labels = torch.tensor([p[0] for p in pairs]), torch.tensor([p[1] for p in pairs])
        logits = model(tokens).last_hidden_state
        loss = F.cross_entropy(logits.reshape(-1, logits.shape[-1]), labels.reshape(-1))
        _ = loss.item(), (logits.argmax(-1) != labels).float().mean().item()
        model.zero_grad()
        loss.backward()
        optimizer.step()
        return tokens.numel()

    return step


def hooked_step(layers: int) -> Callable[[], int]:
    """One step through HookedTransformer.forward: our batches, AdamW, the same sizes."""
    config = plan(layers)
    task, spec = config.task, config.spec
    model = spec.build(spec.initial_parameters(0)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    generator = torch.Generator().manual_seed(0)

    def step() -> int:
        batch = task.sample(BATCH, generator=generator)
        loss = F.cross_entropy(model(batch.tokens).flatten(0, 1), batch.labels.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return batch.tokens.numel()

    return step


def plan(layers: int) -> hi.TrainConfig:
    """Our recipe as it is at full length."""
    return hi.TrainConfig.preset("full", layers=layers, batch=BATCH, curriculum=False, short_until=(0.0, 0.0))


def ours(layers: int) -> Callable[[], int]:
    """One step of our loop: Muon, bfloat16 products, curriculum bookkeeping and all."""
    run = Run(plan(layers))

    def step() -> int:
        before = run.tokens
        run.advance()
        return run.tokens - before

    return step


def products(layers: int) -> Iterator[tuple[int, int, int, int]]:
    """(rows, inner, outer, how often) of the matrix products of one forward pass, without attention's."""
    rows = BATCH * 99
    for inner, outer in ((128, 384), (128, 128), (128, 512), (512, 128)):
        yield rows, inner, outer, layers
    yield rows, 128, 23, 1


def model_flops(layers: int) -> float:
    """Floating-point operations of one step: products, and half of attention's square; backward is twice forward."""
    linear = sum(2 * rows * inner * outer * times for rows, inner, outer, times in products(layers))
    attention = layers * 2 * 2 * BATCH * 99 * 99 * 128 / 2
    return 3 * (linear + attention)


def product_rate(layers: int, dtype: torch.dtype) -> float:
    """FLOP a second of the model's own products, forward and both of backward, each as a plain torch.mm."""
    flops = seconds = 0.0
    for rows, inner, outer, times in products(layers):
        if outer < 64:
            continue
        x, w, g = (torch.randn(*shape).to(dtype) for shape in ((rows, inner), (inner, outer), (rows, outer)))
        for a, b in ((x, w), (g, w.T), (x.T, g)):
            torch.mm(a, b)
            start = time.perf_counter()
            for _ in range(10):
                torch.mm(a, b)
            seconds += times * (time.perf_counter() - start) / 10
            flops += times * 2 * rows * inner * outer
    return flops / seconds


# the authors' depth-3 and depth-4 checkpoints with dropout off, 200 sequences a k, in per cent, k = 1 … 16
EVAL_MODE = {
    3: (0.0, 0.0, 0.2, 4.4, 15.9, 23.9, 31.5, 38.3, 44.4, 49.2, 54.5, 59.8, 62.5, 65.1, 67.6, 68.6),
    4: (0.0, 0.0, 0.0, 0.0, 0.0, 0.1, 1.0, 6.9, 13.7, 20.1, 27.0, 34.9, 40.2, 44.3, 49.0, 53.7),
}
PAPER_TOKENS = 100_000 * 32 * 99


def tokens_to_reach(directory: Path) -> dict[str, float]:
    """Tokens at a run's first measurement (--eval-every) that is nowhere above the authors' table, rounding allowed for."""
    config = json.loads((directory / "config.json").read_text())
    table = EVAL_MODE[config["layers"]]
    for line in (directory / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        measured = record.get("eval", {})
        if measured and all(100 * measured[str(k)] <= bar + 0.05 for k, bar in enumerate(table, start=1)):
            return {"tokens_to_reach": record["tokens"], "share_of_paper_tokens": record["tokens"] / PAPER_TOKENS}
    return {"tokens_to_reach": float("inf"), "share_of_paper_tokens": float("inf")}


def main() -> None:
    """Run the comparison and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--run", type=Path, help="only say after how many tokens this run reached the authors' errors")
    parser.add_argument("--json", action="store_true")
    settings = parser.parse_args()
    if settings.run:
        print(json.dumps(tokens_to_reach(settings.run)))
        return
    torch.set_num_threads(settings.threads)
    steps = {"ours": ours, "ours_float32": ours_float32, "authors": authors_loop, "hooked": hooked_step}
    running = {name: make(settings.layers) for name, make in steps.items()}
    speeds: dict[str, list[float]] = {name: [] for name in steps}
    rates: dict[torch.dtype, list[float]] = {torch.bfloat16: [], torch.float32: []}
    for step in running.values():
        step()
    for _ in range(settings.rounds):
        for name, step in running.items():
            start = time.perf_counter()
            tokens = sum(step() for _ in range(STEPS))
            speeds[name].append(tokens / (time.perf_counter() - start))
        for dtype, found in rates.items():
            found.append(product_rate(settings.layers, dtype))
    speed = {name: statistics.median(values) for name, values in speeds.items()}
    rate = {dtype: statistics.median(values) for dtype, values in rates.items()}
    per_token = model_flops(settings.layers) / (BATCH * 99)
    found = {f"{name}_tokens_per_second": value for name, value in speed.items()}
    found |= {"ratio_to_authors": speed["ours"] / speed["authors"], "ratio_to_hooked": speed["ours"] / speed["hooked"]}
    found |= {"model_gflops": speed["ours"] * per_token / 1e9, "bf16_product_gflops": rate[torch.bfloat16] / 1e9}
    found |= {"float32_product_gflops": rate[torch.float32] / 1e9}
    found |= {"utilization_bf16": speed["ours"] * per_token / rate[torch.bfloat16]}
    found |= {"utilization_float32": speed["ours_float32"] * per_token / rate[torch.float32]}
    if settings.json:
        print(json.dumps(found))
        return
    for name, value in found.items():
        print(f"{name:32} {value:.4g}")


def ours_float32(layers: int) -> Callable[[], int]:
    """Our loop with every product in float32, to set against the float32 rate."""
    run = Run(replace(plan(layers), bf16=False))

    def step() -> int:
        before = run.tokens
        run.advance()
        return run.tokens - before

    return step


if __name__ == "__main__":
    main()
