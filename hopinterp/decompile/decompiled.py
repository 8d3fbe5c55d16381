"""decompile: the program that a trained model runs at a k, the proof that it runs it, and where that ends."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from threading import Event, Lock
from typing import Any, overload

from hopinterp.decompile.abreast import Stopped, abreast
from hopinterp.decompile.controls import measure_controls, measure_faithfulness, measure_untrained
from hopinterp.decompile.decompilation import Decompilation, unsolved
from hopinterp.decompile.derivations import find_tree
from hopinterp.decompile.kept import records_of
from hopinterp.decompile.queries import find_queries
from hopinterp.decompile.records import Decompiled, programs_of
from hopinterp.decompile.route_fitting import fit_routes
from hopinterp.errors import HopInterpError
from hopinterp.evidence.reading.behaviour import evaluate
from hopinterp.evidence.remembered import recall
from hopinterp.memory import release_memory
from hopinterp.models.fused import FusedTransformer
from hopinterp.models.subject import ModelLike, Subject
from hopinterp.progress import Progress, Report
from hopinterp.seeds import check_seed
from hopinterp.task import HopTask
from hopinterp.whole import whole

SHARES = {"routes": 0.3, "faithfulness": 1.0, "controls": 0.12, "tree": 0.5, "queries": 0.5}
"""Of `sequences`, how many each stage draws; every stage draws others. Of the controls each draw has so many."""
OF_SEVERAL = SHARES | {"faithfulness": 0.5, "controls": 0.1}
"""The same where several k are asked for. There the untrained control is measured once, at the first k."""
MOST = {"routes": 200}
"""The most that a stage draws, where rules are fitted to all patterns of all sequences; what is measured has no such end."""
DRAWS, ORDERS = 3, 3
"""Of each control that is drawn; and of pruning the tree."""
STAGES = ("does it solve k", "routes", "the model on its routes", "controls", "values", "queries")
LEAST = 20
"""Sequences, below which some stage would hardly see a chain."""


@overload
def decompile(
    model: ModelLike,
    task: HopTask,
    hops: int,
    *,
    sequences: int = 200,
    every_way: bool = False,
    seed: int = 0,
    report: Report | None = None,
) -> Decompiled: ...
@overload
def decompile(
    model: ModelLike,
    task: HopTask,
    hops: Iterable[int] | None = None,
    *,
    sequences: int = 200,
    every_way: bool = False,
    seed: int = 0,
    report: Report | None = None,
) -> Decompilation: ...
def decompile(
    model: ModelLike,
    task: HopTask,
    hops: int | Iterable[int] | None = None,
    *,
    sequences: int = 200,
    every_way: bool = False,
    seed: int = 0,
    report: Report | None = None,
) -> Decompiled | Decompilation:
    """The program that a model runs at one k, or at each of several.

    Every head gets a rule for where it looks, and all patterns are replaced by the rules' own; with these, the nodes (heads
    at chain positions) are found that carry the answer while all else is another sequence's; then what their queries read,
    and the circuit of all of these is run as one. All is found on some sequences and measured on others.

    Args:
        model: anything that `Subject.of` takes whose weights can be read. It runs on the CPU.
        hops: k, or several: a range, a list, or None for 1 … max_hops.
        sequences: that the model is run on with its routes; see SHARES and MOST for the other stages.
        every_way: find also the ways that do the work of others. Where more ways bring the answer than are needed, pruning
            leaves as many as are, and says which of their nodes other ways could do without.
        report: called after each stage.

    Returns:
        `Decompiled` for one k; `Decompilation` for several, in which every k that the model fails at is marked.

    Raises:
        HopInterpError: k out of range; a single k that the model does not solve; a model whose weights cannot be read; too
            few sequences.
    """
    subject = Subject.asked(model, task)
    network = subject.weights_for("decompile").to("cpu")
    ks = _checked(task, hops, sequences)
    check_seed(seed)
    single = hops is not None and not isinstance(hops, Iterable)
    done = _Steps(report, len(ks) * len(STAGES), Event())
    seen = Subject.of(network, name=subject.name)
    own = evaluate(seen, task, ks, sequences=sequences // 2, seed=seed + _FRESH)
    failed = {int(k): float(own.error.sel(hops=k)) for k in own.hops.values if bool(own.failed.sel(hops=k))}
    if single and failed:
        raise HopInterpError(unsolved(subject.name or "the model", ks[0], failed[ks[0]]))
    work = _Work(network, seen, task, SHARES if single else OF_SEVERAL, sequences, seed, done, every_way)
    if single:
        return work.at(ks[0], None)
    for k in failed:
        done(len(STAGES), f"k = {k} is not solved")
    solved = [k for k in ks if k not in failed]
    untrained = work.untrained(solved[0]) if solved else None
    late_first = solved[::-1]  # they take longest: what is left at the end, when not all threads have work, is short
    by_hops = abreast(lambda k: work.at(k, untrained), late_first, done.stop)
    return Decompilation(model=subject.name, by_hops=dict(sorted(by_hops.items())), unsolved=failed)


_FRESH = 500_009  # far from the seeds of all stages


def _checked(task: HopTask, hops: object, sequences: int) -> list[int]:
    ks = list(range(1, task.max_hops + 1)) if hops is None else sorted(set(task.hop_counts(hops)))
    if not ks or ks[0] < 1:
        raise HopInterpError("hops is 0: hop_0 is the input itself, about which there is nothing to decompile")
    if task.alphabet_size < 3:
        raise HopInterpError(
            "alphabet_size is 2: sequences alternate, and every hop can be guessed; decompile needs 3 letters"
        )
    whole("sequences", sequences, LEAST)
    return ks


class _Steps:
    """Counts stages over all k, and reports. Stops the work on a k at the end of its stage once `stop` is set."""

    def __init__(self, report: Report | None, total: int, stop: Event) -> None:
        self.report, self.total, self.done, self.stop, self._lock = report, total, 0, stop, Lock()

    def __call__(self, stages: int, what: str) -> None:
        if self.stop.is_set():
            raise Stopped
        with self._lock:
            self.done += stages
            if self.report:
                self.report(Progress(what, self.done, self.total))


@dataclass(frozen=True, eq=False)
class _Work:
    """What all k have in common."""

    network: FusedTransformer
    subject: Subject
    task: HopTask
    shares: Mapping[str, float]
    sequences: int
    seed: int
    done: Callable[[int, str], None]
    every_way: bool

    @property
    def count(self) -> dict[str, int]:
        """How many sequences each stage draws."""
        wanted = {stage: max(round(share * self.sequences), LEAST) for stage, share in self.shares.items()}
        return {stage: min(count, MOST.get(stage, count)) for stage, count in wanted.items()}

    def untrained(self, k: int) -> tuple[float, ...]:
        """The control that is measured at one k for all."""
        settings = {"sequences": self.count["controls"], "draws": DRAWS, "seed": self.seed}
        errors = records_of(tuple[float, ...])
        measured = partial(measure_untrained, self.network, self.task, k, **settings)
        return recall("untrained control", self.subject, self.task, {"hops": k, **settings}, errors, measured)

    def at(self, k: int, untrained: tuple[float, ...] | None) -> Decompiled:
        """The program at one k: kept, or found."""
        settings: dict[str, Any] = {"hops": k, "untrained": untrained, "every_way": self.every_way, "seed": self.seed}
        settings |= {"sequences": self.sequences, "shares": self.shares, "draws": DRAWS, "orders": ORDERS}
        computed: list[Decompiled] = []

        def compute() -> Decompiled:
            computed.append(self.found(k, untrained))
            return computed[0]

        found = recall("decompile", self.subject, self.task, settings, programs_of(self.network), compute)
        if not computed:
            self.done(len(STAGES), f"k = {k}: found in the cache")
        return found

    def found(self, k: int, untrained: tuple[float, ...] | None) -> Decompiled:
        """Every stage at one k."""
        # of its own: several k run at once, and a model's hooks are its state
        network, seed, count = FusedTransformer(self.network.spec, self.network.parameters), self.seed, self.count
        self._finished(k, 0)
        routing = fit_routes(network, self.task, k, sequences=count["routes"], seed=seed)
        self._finished(k, 1)
        faithfulness = measure_faithfulness(network, routing, sequences=count["faithfulness"], seed=seed)
        self._finished(k, 2)
        settings = {"sequences": count["controls"], "draws": DRAWS, "seed": seed}
        controls = measure_controls(network, routing, untrained=untrained, **settings)
        self._finished(k, 3)
        tree = find_tree(network, routing, sequences=count["tree"], orders=ORDERS, every_way=self.every_way, seed=seed)
        self._finished(k, 4)
        queries = find_queries(network, routing, tree.nodes, sequences=count["queries"], seed=seed)
        self._finished(k, 5)
        return Decompiled(
            model=self.subject.name,
            hops=k,
            version=metadata.version("hopinterp"),
            settings={"seed": seed, "draws": DRAWS, "orders": ORDERS, "every_way": self.every_way, "sequences": count},
            routing=routing,
            faithfulness=faithfulness,
            controls=controls,
            tree=tree,
            queries=queries,
            network=self.network,
        )

    def _finished(self, k: int, stage: int) -> None:
        release_memory()
        self.done(1, f"k = {k}: {STAGES[min(stage + 1, len(STAGES) - 1)]}")
