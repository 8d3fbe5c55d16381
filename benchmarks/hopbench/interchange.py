"""Interchange-intervention training: a transformer of the paper's blocks trained to follow a given program, head by head.

    python -m benchmarks.hopbench.interchange lookup-4 --out runs/lookup-4      # stops and goes on: the same command again

Head number h of a block is made to do what the program's head h of that block does. At every step the outputs (z) of some
heads, at some positions, become those of another sequence; the program, run on whole numbers with the same fields exchanged,
says what the answers become at every position, and that is the target (Geiger et al. 2022). Exchanging heads to which the
program gives nothing to do has to change nothing (Gupta et al. 2024, "strict"), here all of them at once. What the program
knows after a block, letters and places, is read off the stream by linear maps that are thrown away, and heads are asked to
look where the program's do: exchanges alone let a model in that takes find³(i) for find²(find¹(i)), where sequential has it
for find¹(find²(i)), and still answers most exchanges (IIA .90 at one head, 1 elsewhere).
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from benchmarks.hopbench.circuits import scheduled
from benchmarks.hopbench.truth import Truth, truth_of
from hopinterp.errors import HopInterpError
from hopinterp.files import write_file
from hopinterp.models import blocks, store
from hopinterp.models.fused import FusedTransformer
from hopinterp.models.places import CHECKPOINT
from hopinterp.task import Batch, HopTask
from hopinterp.theory.program import Field, Program, SameLetter, State
from hopinterp.theory.programs import lookup, sequential, successor
from hopinterp.training.config import TrainConfig
from hopinterp.training.record import save_checkpoint
from hopinterp.training.run import Run, set_rate

REACHED = 0.95
"""The least rate of `interchange_accuracy` at which a model counts as one that follows its program."""
IIA = "iia.json"
_READ, _LOOK = 0.5, 0.5  # weights of what is read off the stream, and of where heads look
Tokens = Int[Tensor, "batch position"]
Mask = Bool[Tensor, "batch head position"]
Streams = list[Float[Tensor, "batch position d_model"]]
Outputs = list[Float[Tensor, "batch head position d_head"]]


@dataclass(frozen=True)
class Plan:
    """A program that a model is trained to follow at one k, and the training's settings."""

    hops: int
    program: Callable[[HopTask, int], Program]
    config: TrainConfig


def _parallel(task: HopTask, hops: int) -> Program:
    """4+1, 3+1+1 and 2+2+1 side by side, for k = 5: pointers name places."""
    return scheduled(task, hops, [(1, 0, 0, 4), (1, 0, 1, 3), (1, 0, 2, 2)], "place")


def _parallel_by_numbers(task: HopTask, hops: int) -> Program:
    """4+2, 4+1+1 and 3+2+1 side by side, for k = 6: pointers are letters with their numbers."""
    return scheduled(task, hops, [(0, 2, 4), (1, 1, 4), (1, 2, 3)], "occurrence")


def _config(**settings: Any) -> TrainConfig:
    small = {"d_model": 64, "letters": 30, "max_hops": 5, "batch": 32, "checkpoint_every": 500, "curriculum": False}
    return TrainConfig.preset("first", **small | {"short_until": (0.0, 0.0)} | settings)


PLANS = {
    "lookup-4": Plan(4, lookup, _config(layers=4, steps=1_500)),
    "sequential-4": Plan(4, sequential, _config(layers=5, steps=2_000)),
    "parallel-5": Plan(5, _parallel, _config(layers=5, steps=2_000, letters=36)),
    "successor-6": Plan(6, successor, _config(layers=4, steps=2_500, letters=40, max_hops=6)),
    "parallel by numbers-6": Plan(6, _parallel_by_numbers, _config(layers=4, steps=2_500, letters=40, max_hops=6)),
}


# -- exchanges --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Exchange:
    """Outputs of heads that become another sequence's, and what the program makes of it.

    Attributes:
        layer: the first block of which some do.
        source: of each sequence, the row that its outputs come from.
        masks: which outputs of which heads at which positions, for this block and every later one.
        states: the program's fields after this block and every later one.
    """

    layer: int
    source: Int[Tensor, " batch"]
    masks: Sequence[Mask]
    states: Sequence[State]


def exchange(program: Program, states: Sequence[State], layer: int, masks: Sequence[Mask]) -> Exchange:
    """Exchange heads' outputs between sequences that follow each other in a batch.

    Args:
        states: the program's fields after every block, without an exchange.
    """
    source = torch.arange(len(masks[0])).roll(1)
    found: list[State] = []
    for later, mask in enumerate(masks, start=layer):
        after = dict(program.step(later, found[-1]) if found else states[layer])
        for number, head in enumerate(program.blocks[later]):
            for field in program.written(head):
                other = states[later][field.name][source]
                after[field.name] = torch.where(mask[:, number], other, after[field.name])
        found.append(after)
    return Exchange(layer, source, masks, found)


def draw(program: Program, n_heads: int, layer: int, tokens: Tokens, generator: torch.Generator) -> list[Mask]:
    """Which outputs are exchanged, of a block and every later one: in three sequences of four those of one of the block's
    heads that have something to do; in every second those of all heads that have nothing to do, of all these blocks."""
    chosen = units(program, layer)
    members = torch.tensor([[head in unit for head in range(n_heads)] for unit in chosen])
    drawn = members[torch.randint(len(chosen), (len(tokens),), generator=generator)]
    busy, idle = (torch.rand(len(tokens), 1, 1, generator=generator) < share for share in (0.75, 0.5))
    masks = idle_masks(program, n_heads, layer, _positions(tokens, generator) & idle[:, :, 0])
    masks[0] = masks[0] | (drawn[:, :, None] & _positions(tokens, generator)[:, None] & busy)
    return masks


def idle_masks(program: Program, n_heads: int, layer: int, positions: Bool[Tensor, "batch position"]) -> list[Mask]:
    """All heads of a block and of the later ones to which the program gives nothing to do, at some positions.

    One at a time would not do: two that bring the same hide each other. So trained, a model passed for sequential at k = 4
    (err 0, IIA ≥ .94 at every head) that ran 2+1+1 on two heads which were to do nothing.
    """
    blocks_on = program.blocks[layer:]
    return [(torch.arange(n_heads) >= len(block))[:, None] & positions[:, None] for block in blocks_on]


def units(program: Program, layer: int) -> list[tuple[int, ...]]:
    """Heads of a block's program that are exchanged as one: heads that count write to one field."""
    block = program.blocks[layer]
    counting = tuple(number for number, head in enumerate(block) if isinstance(head.look, SameLetter))
    return [*([counting] if counting else []), *((number,) for number in range(len(block)) if number not in counting)]


def run(model: FusedTransformer, x: Tensor, layer: int = 0) -> tuple[Streams, Outputs]:
    """The streams before a block, before every later one and after the last, and these blocks' heads' outputs."""
    return _run(model, x, layer, None, ())


def run_exchanged(model: FusedTransformer, streams: Streams, outputs: Outputs, change: Exchange) -> Streams:
    """The streams before the exchange's block, before every later one and after the last.

    Args:
        streams, outputs: of the whole run without it.
    """
    put = [z[change.source] for z in outputs[change.layer :]]
    return _run(model, streams[change.layer], change.layer, put, change.masks)[0]


def _run(
    model: FusedTransformer, x: Tensor, layer: int, put: Outputs | None, masks: Sequence[Mask]
) -> tuple[Streams, Outputs]:
    streams, outputs = [x], []
    for later in range(layer, model.spec.n_layers):
        q, k, v = model.qkv(model.norm(streams[-1], f"blocks.{later}.ln1"), later)
        z = blocks.attend(q, k, v, model.scale)
        if put is not None:
            z = torch.where(masks[later - layer][..., None], put[later - layer], z)
        outputs.append(z)
        streams.append(model.block_end(streams[-1] + model.attn_out(z, later), later))
    return streams, outputs


# -- training ---------------------------------------------------------------------------------------------------------


class _Readers:
    """Linear maps from a block's output to what the program knows after it."""

    def __init__(self, program: Program, d_model: int) -> None:
        self.task = program.task
        generator = torch.Generator().manual_seed(0)
        self.fields: list[list[Field]] = [
            list(dict.fromkeys(f for head in block for f in program.written(head) if f.kind != "flag"))
            for block in program.blocks
        ]
        self.maps = {
            (layer, field.name): (torch.randn(d_model, self._classes(field), generator=generator) / d_model**0.5)
            for layer, block in enumerate(self.fields)
            for field in block
        }
        for one in self.maps.values():
            one.requires_grad_()

    def _classes(self, field: Field) -> int:
        return self.task.alphabet_size + 1 if field.kind == "letter" else self.task.n_positions

    def loss(self, streams: Streams, states: Sequence[State], first: int) -> Tensor:
        """Mean cross-entropy over the fields that blocks from `first` on write; `streams` are these blocks' outputs."""
        found = []
        for layer, (x, state) in enumerate(zip(streams, states, strict=True), start=first):
            normed = F.layer_norm(x, x.shape[-1:])
            for field in self.fields[layer]:
                wanted = state[field.name]
                wanted = torch.where(wanted < 0, self.task.alphabet_size, wanted)
                found.append(
                    F.cross_entropy((normed @ self.maps[layer, field.name]).flatten(0, 1).float(), wanted.flatten())
                )
        return torch.stack(found).mean() if found else torch.zeros(())


class _Training(Run):
    """A run whose loss also holds the program's answers under exchanges."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan.config)
        self.plan = plan
        self.program = plan.program(plan.config.task, plan.hops)
        self.readers = _Readers(self.program, plan.config.d_model)
        self.reading = torch.optim.AdamW(self.readers.maps.values(), lr=3e-3, weight_decay=0.0)

    def advance(self) -> float:
        """One step; returns its loss."""
        config, program = self.config, self.program
        batch = config.task.sample(config.batch, hops=self.plan.hops, generator=self.generator)
        states = program.run(batch.tokens)
        layer = int(torch.randint(config.layers, (), generator=self.generator))
        change = exchange(program, states, layer, draw(program, config.heads, layer, batch.tokens, self.generator))
        set_rate(self.optimizers, config, self.step)
        model = self.model
        with torch.autocast("cpu", torch.bfloat16, enabled=config.bf16):
            streams, outputs = run(model, model.embed(batch.tokens))
            swapped = run_exchanged(model, streams, outputs, change)
            loss = _answer_loss(model, streams[-1], batch.labels) + _READ * self.readers.loss(streams[1:], states, 0)
            loss = loss + _answer_loss(model, swapped[-1], program.answers(change.states[-1]))
            loss = loss + _READ * self.readers.loss(swapped[1:], change.states, layer)
            before = [program.embed(batch.tokens), *states]
            loss = loss + _LOOK * _look_loss(model, program, streams, before, 0)
            loss = loss + _LOOK * _look_loss(model, program, swapped, [before[layer], *change.states], layer)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.learned, config.clip)
        for optimizer in (*self.optimizers, self.reading):
            optimizer.step()
            optimizer.zero_grad()
        self.step += 1
        self.tokens += 2 * batch.tokens.numel()
        return float(loss.detach())

    def state(self) -> dict[str, Any]:
        """As Run's, with the maps that read."""
        maps = {f"{layer}|{name}": one.detach() for (layer, name), one in self.readers.maps.items()}
        return super().state() | {"maps": maps, "reading": self.reading.state_dict()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """As Run's, with the maps that read."""
        super().restore(state)
        with torch.no_grad():
            for (layer, name), one in self.readers.maps.items():
                one.copy_(state["maps"][f"{layer}|{name}"])
        self.reading.load_state_dict(state["reading"])


def _look_loss(
    model: FusedTransformer, program: Program, streams: Streams, states: Sequence[State], first: int
) -> Float[Tensor, ""]:
    """Mean of −log of the attention that heads have where the program's look, from block `first` on.

    Args:
        streams, states: before each of these blocks, with or without one more.
    """
    found = []
    for layer in range(first, len(program.blocks)):
        x, state = model.norm(streams[layer - first], f"blocks.{layer}.ln1"), states[layer - first]
        name = f"blocks.{layer}.attn."
        for number, head in enumerate(program.blocks[layer]):
            if isinstance(head.look, SameLetter):
                continue
            q, k = (x @ model.parameters[name + f"W_{s}"][number] + model.parameters[name + f"b_{s}"][number] for s in "QK")
            scores = (q @ k.mT).float() * model.scale + blocks.causal_mask(q.shape[1], k.shape[1], q)
            there = scores.log_softmax(-1).gather(2, head.targets(state)[..., None])
            found.append(-there[:, 1:].mean())
    return torch.stack(found).mean() if found else torch.zeros(())


def _answer_loss(model: FusedTransformer, last: Tensor, labels: Int[Tensor, "batch position"]) -> Tensor:
    """Over all positions but the hop token's."""
    logits = model.unembed(last).float()
    return F.cross_entropy(logits[:, 1:].flatten(0, 1), labels[:, 1:].flatten())


@torch.no_grad()
def interchange_accuracy(
    model: FusedTransformer, program: Program, hops: int, *, sequences: int = 200, seed: int = 0
) -> dict[str, Any]:
    """IIA of every head of a program, on fresh sequences.

    Returns:
        `error`: err_k.
        `heads`: by "layer.head", how often the model answers what the program says when that head's outputs are exchanged
        (at one position, half or all), of the positions at which the program's answer changes; the less of two rates, of
        which one is with all heads that the program does not use exchanged too.
        `idle`: how often the answer stays when these alone are.
        `looks`: by "layer.head", the share of attention on the chain position where the program's head looks.
        `least`: of all these.
    """
    batch = program.task.sample(sequences, hops=hops, seed=seed)
    states = program.run(batch.tokens)
    generator = torch.Generator().manual_seed(seed)
    streams, outputs = run(model, model.embed(batch.tokens))
    own, before, width = model.unembed(streams[-1]).argmax(-1), program.answers(states[-1]), model.spec.n_heads

    def rate(layer: int, unit: tuple[int, ...], idle: bool) -> float:
        """Of the answers that change in the program; of all where none is to change."""
        nowhere = torch.zeros_like(batch.tokens, dtype=torch.bool)
        masks = idle_masks(program, width, layer, _positions(batch.tokens, generator) if idle else nowhere)
        masks[0][:, list(unit)] = _positions(batch.tokens, generator)[:, None]
        change = exchange(program, states, layer, masks)
        said = model.unembed(run_exchanged(model, streams, outputs, change)[-1]).argmax(-1)
        wanted = program.answers(change.states[-1])
        counted = ((wanted != before) if unit else torch.ones_like(nowhere))[:, 1:]
        return float((said == (wanted if unit else own))[:, 1:][counted].float().mean())

    heads = {
        f"{layer}.{unit[0]}": min(rate(layer, unit, idle) for idle in (False, True))
        for layer in range(len(program.blocks))
        for unit in units(program, layer)
    }
    looks = _looks(model, program, batch, states)
    idle = rate(0, (), True)
    error = float((own != batch.labels)[batch.scored].float().mean())
    least = min(*heads.values(), *looks.values(), idle)
    return {"error": error, "heads": heads, "idle": idle, "looks": looks, "least": least}


def _looks(model: FusedTransformer, program: Program, batch: Batch, states: Sequence[State]) -> dict[str, float]:
    """Attention on the program's targets, over positions whose answer is a letter."""
    names = [f"blocks.{layer}.attn.hook_pattern" for layer in range(len(program.blocks))]
    _, cache = model.run_with_cache(batch.tokens, names)
    found: dict[str, float] = {}
    for layer, block in enumerate(program.blocks):
        before = states[layer - 1] if layer else program.embed(batch.tokens)
        for number, head in enumerate(block):
            if head.hop:
                there = cache[names[layer]][:, number].gather(2, head.targets(before)[..., None])[..., 0]
                found[f"{layer}.{number}"] = float(there[batch.scored].mean())
    return found


def _positions(tokens: Tokens, generator: torch.Generator) -> Bool[Tensor, "batch position"]:
    """In each sequence one position, half of them or all."""
    batch, positions = tokens.shape
    kind = torch.randint(3, (batch, 1), generator=generator)
    one = torch.arange(positions) == torch.randint(1, positions, (batch, 1), generator=generator)
    some = torch.rand(batch, positions, generator=generator) < 0.5
    return torch.where(kind == 0, one, some | (kind == 2))


def train(name: str, directory: Path, *, report_every: int = 250) -> FusedTransformer:
    """Train a plan's model, or go on with it; `directory` gets the checkpoint and at the end model/ and iia.json."""
    plan = PLANS[name]
    directory.mkdir(parents=True, exist_ok=True)
    training = _Training(plan)
    if (directory / CHECKPOINT).exists():
        training.restore(torch.load(directory / CHECKPOINT, weights_only=True))
    started, before = time.process_time(), training.seconds
    while training.step < plan.config.steps:
        loss = training.advance()
        training.seconds = before + time.process_time() - started
        if training.step % report_every == 0:
            print(f"{name} step {training.step} loss {loss:.3f} CPU s {training.seconds:.0f}", flush=True)
        if training.step % plan.config.checkpoint_every == 0:
            save_checkpoint(training, directory)
        if training.step % (8 * report_every) == 0:
            found = interchange_accuracy(_detached(training), training.program, plan.hops, sequences=50, seed=training.step)
            print(f"{name} step {training.step} {json.dumps(found)}", flush=True)
    model = _detached(training)
    found = interchange_accuracy(model, training.program, plan.hops, seed=2**31)
    made = {
        "how": f"interchange-intervention training to follow {name}",
        "steps": training.step,
        "cpu_seconds": training.seconds,
    }
    store.save(directory / "model", model, plan.config.task, made, overwrite=True)
    write_file(directory / IIA, json.dumps(found, indent=2).encode())
    return model


def _detached(training: Run) -> FusedTransformer:
    return FusedTransformer(training.spec, {name: p.detach().clone() for name, p in training.model.parameters.items()})


def known(name: str, directory: Path) -> tuple[FusedTransformer, Truth]:
    """A plan's model, trained if it is not there yet, and what is true of it.

    Heads that the program does not use change nothing, wherever they look. Heads that count do so together: which of them
    does what, and by which pattern, is not known; they are left out where nodes are scored.

    Raises:
        HopInterpError: it did not reach its program.
    """
    plan = PLANS[name]
    if not (directory / IIA).exists():
        train(name, directory)
    found = json.loads((directory / IIA).read_text())
    if found["least"] < REACHED:
        raise HopInterpError(f"{name} does not follow its program: its least rate is {found['least']:.3f}, below {REACHED}")
    model, task = store.load_fused(directory / "model")
    program, heads = plan.program(task, plan.hops), model.spec.n_heads
    truth = truth_of(program, plan.hops, n_heads=heads)
    free = {(layer, head) for layer, block in enumerate(program.blocks) for head in range(len(block), heads)}
    counting = {
        (layer, number)
        for layer, block in enumerate(program.blocks)
        for number, head in enumerate(block)
        if isinstance(head.look, SameLetter)
    }
    together = {node for node in truth.nodes if node[:2] in counting}
    routes = frozenset(route for route in truth.routes if route[:2] not in counting)
    nodes, keys = truth.nodes - together, truth.keys | together
    return model, replace(truth, free=frozenset(free | counting), routes=routes, nodes=nodes, keys=keys)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train one of PLANS."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=PLANS)
    parser.add_argument("--out", type=Path, required=True, help="the run's directory; an unfinished run in it goes on")
    settings = parser.parse_args(arguments)
    torch.set_num_threads(1)
    train(settings.name, settings.out)
    print((settings.out / IIA).read_text())


if __name__ == "__main__":
    main()
