"""The models of HopBench, each made by code and seed, with what is true of it."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from benchmarks.hopbench import circuits, disguises, interchange, untaught
from benchmarks.hopbench.circuits import Naming
from benchmarks.hopbench.truth import Truth, nothing, truth_of
from hopinterp.errors import HopInterpError
from hopinterp.models.fused import FusedTransformer
from hopinterp.models.spec import ModelSpec
from hopinterp.task import HopTask
from hopinterp.theory.compiler import compile_program
from hopinterp.theory.program import Program
from hopinterp.theory.programs import lookup, printed, sequential, successor

SIZES = ((40, 4), (60, 4), (40, 3), (48, 6))
"""n and |Σ|. Chains of k hops need about k·|Σ| letters."""
NOISE = (1e-5, 1e-4)
"""The stated range, for compiled models whose pointers are places. Those that count letters fail from 1e-7 on."""
SOFT = (0.5, 0.3, 0.2)
"""The stated range: margins of 20, 12 and 8 nats."""
NAMINGS: tuple[Naming, Naming] = ("occurrence", "place")
BEYOND_NOISE, BEYOND_SOFT = (2e-4, 3e-4, 5e-4), (0.15, 0.12, 0.1)
"""Beyond it, reported apart."""


@dataclass(frozen=True)
class Known:
    """One model of the benchmark.

    Attributes:
        name: says how it is made; unique, and stable for one seed.
        kind: compiled, disguised, beyond, trained or nothing. `group`: what it is of its kind.
        task, hops: what it is asked.
        make: the weights and what is true of them.
    """

    name: str
    kind: str
    group: str
    task: HopTask
    hops: int
    make: Callable[[], tuple[FusedTransformer, Truth]]


def _compiled(program: Program, hops: int) -> tuple[FusedTransformer, Truth]:
    return compile_program(program).model, truth_of(program, hops)


# -- compiled ---------------------------------------------------------------------------------------------------------

ALGORITHMS: dict[str, Callable[[HopTask, int], Program]] = {
    "lookup": lookup,
    "successor": successor,
    "sequential": sequential,
    "sequential by numbers": partial(circuits.stepped, gain=1),
    "linear by two": partial(circuits.stepped, gain=2),
}
_KS = {"sequential": (4, 5, 6), "sequential by numbers": (4, 5, 6), "linear by two": (6, 7, 8)}


def _task(size: tuple[int, int], hops: int) -> HopTask:
    """At least as many letters as a chain of k hops is long on average, and some more."""
    n, alphabet = size
    return HopTask(max(n, (hops + 3) * alphabet), alphabet, hops + 2)


def compiled(count: int, seed: int) -> Iterator[Known]:
    """The algorithms at several k, |Σ| and n, for every k at once too; then random programs."""
    chosen = list(itertools.islice(_algorithms(), count // 2))
    yield from chosen
    for number in range(count - len(chosen)):
        yield _random(number, seed, "compiled", "random")


def _algorithms() -> Iterator[Known]:
    """In an order in which the first few hold something of each."""
    for turn in range(4):
        for name, build in ALGORITHMS.items():
            ks = _KS.get(name, (4, 6, 8, 9))
            k, size = ks[turn % len(ks)], SIZES[(turn + len(name)) % len(SIZES)]
            task = _task(size, k)
            where = f"k={k} n={task.n_letters} alphabet={task.alphabet_size}"
            yield Known(f"{name} {where}", "compiled", name, task, k, partial(_build, build, task, k))
        for name, every in (("lookup", lookup), ("successor", successor), ("sequential", sequential)):
            k = (4, 5, 7, 6)[turn] if name != "sequential" else 4 + turn % 2
            task = HopTask(60, 4, 8 if name != "sequential" else 5)
            make = partial(_every_k, every, task, k)
            yield Known(f"{name}, every k, k={k} n=60 alphabet=4 turn={turn}", "compiled", f"{name}, every k", task, k, make)


def _build(build: Callable[[HopTask, int], Program], task: HopTask, hops: int) -> tuple[FusedTransformer, Truth]:
    return _compiled(build(task, hops), hops)


def _every_k(build: Callable[[HopTask, int | None], Program], task: HopTask, hops: int) -> tuple[FusedTransformer, Truth]:
    return _compiled(build(task, None), hops)


@dataclass(frozen=True)
class _Drawn:
    """A random program's settings."""

    task: HopTask
    hops: int
    n_layers: int
    ways: int
    naming: Naming
    draw: random.Random

    @classmethod
    def of(cls, number: int, seed: int, naming: Naming | None = None, ways: int | None = None) -> _Drawn:
        """The first draw that the depth allows; naming or ways may be given."""
        draw = random.Random(f"{seed} {number}")
        while True:
            named = draw.choice(NAMINGS) if naming is None else naming
            hops, n_layers, drawn = draw.randint(4, 10), draw.randint(4, 6), draw.choice((1, 1, 2, 3))
            found = cls(_task(draw.choice(SIZES), hops), hops, n_layers, ways or drawn, named, draw)
            state = draw.getstate()
            try:
                found.program()
            except HopInterpError:
                continue
            draw.setstate(state)
            return found

    def program(self, *, apart: bool = False) -> Program:
        """Drawn; once for each `_Drawn`."""
        return circuits.random_program(self.task, self.draw, self.hops, self.n_layers, self.ways, self.naming, apart=apart)

    def __str__(self) -> str:
        task = self.task
        sizes = f"n={task.n_letters} alphabet={task.alphabet_size} depth={self.n_layers}"
        return f"k={self.hops} {sizes} ways={self.ways} {self.naming}"


def _random(number: int, seed: int, kind: str, group: str) -> Known:
    drawn = _Drawn.of(number, seed)

    def make() -> tuple[FusedTransformer, Truth]:
        again = _Drawn.of(number, seed)
        return _compiled(again.program(), again.hops)

    return Known(f"{group} {number} {drawn}", kind, group, drawn.task, drawn.hops, make)


# -- disguised --------------------------------------------------------------------------------------------------------

Made = tuple[FusedTransformer, Truth]


def _rotated(drawn: _Drawn) -> Made:
    model, truth = _compiled(drawn.program(), drawn.hops)
    return disguises.rotated(model, drawn.hops), truth


def _permuted(drawn: _Drawn) -> Made:
    model, truth = _compiled(drawn.program(), drawn.hops)
    changed, became = disguises.permuted(model, drawn.n_layers)
    return changed, truth.renamed(became, changed.spec.n_heads)


def _split(drawn: _Drawn) -> Made:
    return _compiled(circuits.split_moves(drawn.program()), drawn.hops)


def _apart(drawn: _Drawn) -> Made:
    return _compiled(drawn.program(apart=True), drawn.hops)


def _halved(share: float, drawn: _Drawn) -> Made:
    model, truth = _compiled(drawn.program(), drawn.hops)
    changed, became = disguises.halved(model, share)
    return changed, truth.renamed(became, changed.spec.n_heads)


def _decoys(drawn: _Drawn) -> Made:
    return _compiled(circuits.with_decoys(drawn.program(), drawn.draw, 4), drawn.hops)


def _bare(drawn: _Drawn) -> Made:
    return _compiled(circuits.bare(drawn.program(), drawn.hops), drawn.hops)


def _normed(drawn: _Drawn) -> Made:
    model, truth = _compiled(drawn.program(), drawn.hops)
    return disguises.normed(model), truth


def _soft(sharpness: float, drawn: _Drawn) -> Made:
    model, truth = _compiled(drawn.program(), drawn.hops)
    return disguises.soft(model, sharpness), truth


def _noisy(size: float, drawn: _Drawn) -> Made:
    model, truth = _compiled(drawn.program(), drawn.hops)
    return disguises.noisy(model, size, drawn.hops), truth


def _several(drawn: _Drawn) -> Made:
    """Decoys, heads for each move, in another order and basis, softer, with layer norms."""
    program = circuits.with_decoys(circuits.split_moves(drawn.program()), drawn.draw, 3)
    model, truth = _compiled(program, drawn.hops)
    model, became = disguises.permuted(disguises.rotated(disguises.soft(model, 0.5), drawn.hops), drawn.hops)
    return disguises.normed(model), truth.renamed(became, model.spec.n_heads)


Disguise = tuple[str, Callable[[_Drawn], Made], Naming | None]
DISGUISES: tuple[Disguise, ...] = (
    ("rotated basis", _rotated, None),
    ("heads permuted", _permuted, None),
    ("a head for each move", _split, None),
    ("heads of their own for each way", _apart, None),
    ("heads halved", partial(_halved, 0.5), None),
    ("decoy heads", _decoys, None),
    ("pointers without letters", _bare, "place"),
    ("layer norms", _normed, None),
    ("several at once", _several, None),
    *((f"softness {size:g}", partial(_soft, size), None) for size in SOFT),
    *((f"noise {size:g}", partial(_noisy, size), "place") for size in NOISE),
    ("heads split 7 : 3", partial(_halved, 0.7), None),
)
BEYOND: tuple[Disguise, ...] = (
    *((f"softness {size:g}", partial(_soft, size), None) for size in BEYOND_SOFT),
    *((f"noise {size:g}", partial(_noisy, size), "place") for size in BEYOND_NOISE),
)


def _disguised(kind: str, chosen: tuple[Disguise, ...], count: int, seed: int) -> Iterator[Known]:
    for number in range(count):
        group, disguise, naming = chosen[number % len(chosen)]
        drawn = _Drawn.of(1000 + number, seed, naming)

        def make(
            number: int = number, disguise: Callable[[_Drawn], Made] = disguise, naming: Naming | None = naming
        ) -> Made:
            return disguise(_Drawn.of(1000 + number, seed, naming))

        yield Known(f"{kind} {number}: {group}, {drawn}", kind, group, drawn.task, drawn.hops, make)


# -- redundant --------------------------------------------------------------------------------------------------------

VOTES: tuple[tuple[int, tuple[circuits.Schedule, ...], Naming], ...] = (
    (4, ((1, 1, 0, 2), (0, 0, 2, 2), (1, 1, 1, 1)), "place"),
    (5, ((1, 0, 0, 4), (1, 0, 1, 3), (1, 0, 2, 2)), "place"),
    (5, ((0, 0, 0, 5), (1, 1, 1, 2), (1, 0, 3, 1)), "occurrence"),
)
"""k, and three ways of which any two are enough."""


def redundant(count: int, seed: int) -> Iterator[Known]:
    """Programs of three ways that vote: two that agree outvote the third, so that no head matters by itself."""
    task = HopTask(40, 4, 8)
    for k, ways, naming in VOTES[:count]:
        words = " = ".join("+".join(str(jump) for jump in reversed(way) if jump) for way in ways)
        make = partial(_schedules_that_vote, task, k, ways, naming)
        yield Known(f"{words} vote, {naming}", "redundant", "three ways that vote", task, k, make)
    for number in range(count - len(VOTES)):
        drawn = _Drawn.of(3000 + number, seed, ways=3)
        make = partial(_drawn_that_vote, 3000 + number, seed)
        yield Known(f"vote {number}: {drawn}", "redundant", "three ways that vote", drawn.task, drawn.hops, make)


def _schedules_that_vote(task: HopTask, hops: int, ways: tuple[circuits.Schedule, ...], naming: Naming) -> Made:
    return _compiled(replace(circuits.scheduled(task, hops, list(ways), naming), quorum=1), hops)


def _drawn_that_vote(number: int, seed: int) -> Made:
    drawn = _Drawn.of(number, seed, ways=3)
    return _compiled(replace(drawn.program(), quorum=1), drawn.hops)


# -- trained to a known circuit ---------------------------------------------------------------------------------------


def trained(count: int, runs: Path) -> Iterator[Known]:
    """Models trained to follow a program; each is trained in `runs` if it is not there yet (see interchange.py)."""
    for name, plan in itertools.islice(interchange.PLANS.items(), count):

        def make(name: str = name) -> Made:
            return interchange.known(name, runs / name)

        yield Known(name, "trained", name.rpartition("-")[0], plan.config.task, plan.hops, make)


UNTAUGHT = (("few", "solves only k ≤ 2"), ("shuffled", "shuffled labels"))

# -- nothing ----------------------------------------------------------------------------------------------------------


def none(count: int, seed: int, few: int, runs: Path) -> Iterator[Known]:
    """`count` untrained models, and `few` of each: circuits of another k, models that solve only k ≤ 2, and models trained
    on shuffled labels."""
    for number in range(few):
        task, k = HopTask(40, 4, 8), 4 + number % 4
        built = (
            printed(task, k) if number % 2 else (lookup, successor, sequential)[number // 2 % 3](task, 1 + number % 4 // 2)
        )
        what = "the printed construction" if number % 2 else "a circuit of fewer hops"
        make = partial(_wrong, built, k)
        yield Known(f"{what} {number}, asked k={k}", "nothing", what, task, k, make)
    for plan, words in UNTAUGHT:
        for number in range(few):
            task, k = untaught.TASK, 4 + number % 2
            make = partial(_untaught, plan, seed * 1000 + number, k, runs)
            yield Known(f"{words} {number}, k={k}", "nothing", words, task, k, make)
    for number in range(count):
        task, k = HopTask(30, 4, 6), 2 + number % 5
        depth, width, heads = 2 + number % 4, (32, 64, 128)[number % 3], (2, 4)[number % 2]
        spec = ModelSpec.for_task(task, depth, d_model=width, n_heads=heads)
        yield Known(
            f"untrained {number}", "nothing", "untrained", task, k, partial(_untrained, spec, seed * 10_000 + number, k)
        )


def _wrong(program: Program, hops: int) -> Made:
    model = compile_program(program).model
    return model, nothing(hops, model.spec.n_layers, model.spec.n_heads)


def _untaught(plan: str, seed: int, hops: int, runs: Path) -> Made:
    model = untaught.model(plan, seed, runs)
    return model, nothing(hops, model.spec.n_layers, model.spec.n_heads)


def _untrained(spec: ModelSpec, seed: int, hops: int) -> Made:
    return FusedTransformer(spec, spec.initial_parameters(seed)), nothing(hops, spec.n_layers, spec.n_heads)


# -- all --------------------------------------------------------------------------------------------------------------

KINDS = ("compiled", "disguised", "redundant", "beyond", "trained", "nothing")


def models(kinds: list[str], count: int, untrained: int, seed: int, runs: Path) -> Iterator[Known]:
    """All models of some kinds.

    Args:
        count: of each kind. untrained: of the untrained ones. runs: where trained models are, or go.

    Raises:
        HopInterpError: an unknown kind.
    """
    makers: dict[str, Callable[[], Iterator[Known]]] = {
        "compiled": lambda: compiled(count, seed),
        "disguised": lambda: _disguised("disguised", DISGUISES, count, seed),
        "redundant": lambda: redundant(count // 4, seed),
        "beyond": lambda: _disguised("beyond", BEYOND, count // 2, seed + 1),
        "trained": lambda: trained(count, runs),
        "nothing": lambda: none(untrained, seed, max(count // 20, 1), runs),
    }
    for kind in kinds:
        if kind not in makers:
            raise HopInterpError(f"there are no {kind!r} models; kinds are {', '.join(KINDS)}")
        yield from makers[kind]()


def solves(model: FusedTransformer, task: HopTask, hops: int) -> float:
    """err_k on 100 sequences that no entry sees."""
    batch = task.sample(100, hops=hops, seed=2**31 - 1)
    with torch.no_grad():
        return float((model(batch.tokens).argmax(-1) != batch.labels)[batch.scored].float().mean())
