"""What decompile found at one k: typed, printed, shown in a notebook, run, saved and loaded."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors.torch
import torch
from jaxtyping import Float, Int
from torch import Tensor

from hopinterp.decompile.controls import Controls, Faithfulness
from hopinterp.decompile.derivations import ValueTree
from hopinterp.decompile.effects import Effect
from hopinterp.decompile.inputs import batch_of, routing_hooks, why
from hopinterp.decompile.kept import check_shown, packed, unpacked, write_record
from hopinterp.decompile.nodes import Jumps, Node, told
from hopinterp.decompile.program import FoundProgram
from hopinterp.decompile.queries import Queries
from hopinterp.decompile.routed_runs import run_routed
from hopinterp.decompile.routes import Route, Routing
from hopinterp.decompile.writing import write_program
from hopinterp.errors import HopInterpError
from hopinterp.evidence.remembered import Codec
from hopinterp.files import digest
from hopinterp.models.fused import FusedTransformer
from hopinterp.models.hooks import HookFunction
from hopinterp.shown import Row, Shown, plain
from hopinterp.task import Batch, HopTask

if TYPE_CHECKING:
    import networkx as nx

ROUTED, TREE, WITHOUT, JOINT = 0.01, 0.05, 0.5, 0.10
"""A cell is explained where routed − own and the errors of tree and joint circuit are at most these, and the error without
the tree at least that; fixed on constructed and untrained models before trained ones were looked at."""
FOUND, TENSORS, FORMAT = "decompiled.json", "patterns.safetensors", 3
_NUMBERS = ("No", "One", "Two", "Three", "Four", "Five", "Six", "Seven", "Eight", "Nine", "Ten", "Eleven", "Twelve")
_MOST = 5  # derivations in one line


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Decompiled(Shown):
    """The program that a model runs at one k, and how far it explains the model.

    `print` it, let a notebook show it, `save` it; `load_decompiled` reads it back.

    Attributes:
        model: its name; empty where nobody named it.
        hops: k.
        version: of hopinterp, by which it was found.
        settings: seed and numbers of sequences.
        routing: every head's rule, and what it does where its rule is null.
        faithfulness: the model with all patterns set by rule, beside the model as it is.
        controls: the same on routes that are not the model's own.
        tree: heads at chain positions that carry the answer.
        queries: how heads know where to look, and the circuit run as one.
        network: the model itself, for runs; None after loading without one.
    """

    model: str
    hops: int
    version: str
    settings: Mapping[str, Any]
    routing: Routing
    faithfulness: Faithfulness
    controls: Controls
    tree: ValueTree
    queries: Queries
    network: FusedTransformer | None = field(default=None)

    # -- what was found -----------------------------------------------------------------------------------------------

    @property
    def task(self) -> HopTask:
        """What the model was asked."""
        return self.routing.task

    @property
    def routes(self) -> tuple[tuple[Route, ...], ...]:
        """Where every head looks, by block and head."""
        return self.routing.routes

    @property
    def derivations(self) -> tuple[Jumps, ...]:
        """Jumps that add up to k, last block first."""
        return self.tree.derivations

    @property
    def reach(self) -> tuple[int, ...]:
        """R(ℓ): the most hops that the circuit makes known up to each block, by values and by queries."""
        return self.queries.reach

    @property
    def error(self) -> dict[str, float]:
        """err_k of the model as it is (`own`), on its routes (`routed`), on each head's strongest rule alone (`routed_hard`)
        and of the circuit whose queries and values are its own (`joint`); `low` and `high`: 95% of routed − own."""
        names = ("own", "routed", "routed_hard", "low", "high")
        return {name: getattr(self.faithfulness, name) for name in names} | {"joint": self.queries.joint.error}

    @property
    def inputs_explained(self) -> float:
        """Share of the scored inputs to which the model on its routes gives the model's own answer."""
        return self.faithfulness.same

    @property
    def missed(self) -> tuple[str, ...]:
        """The bars that were not met, in words; none where the program explains the model."""
        return tuple(words for words, _, met in self._bars if not met)

    @property
    def missed_briefly(self) -> tuple[str, ...]:
        """The same in as few words as a title has room for."""
        return tuple(brief for _, brief, met in self._bars if not met)

    @property
    def _bars(self) -> list[tuple[str, str, bool]]:
        """In words, briefly, and whether it was met."""
        added, tree, joint = self.faithfulness.routed - self.faithfulness.own, self.tree, self.error["joint"]
        more, errs, without, wrong = map(percent, (added, tree.error, tree.without, joint))
        return [
            (f"routed − own is {more}, above {ROUTED:.0%}", f"routing adds {more}", added <= ROUTED),
            (f"the tree errs on {errs}, above {TREE:.0%}", f"tree errs {errs}", tree.error <= TREE),
            (
                f"without the tree the error is {without}, below {WITHOUT:.0%}",
                f"{without} without it",
                tree.without >= WITHOUT,
            ),
            (f"the joint circuit errs on {wrong}, above {JOINT:.0%}", f"joint circuit errs {wrong}", joint <= JOINT),
        ]

    @property
    def explained(self) -> bool:
        """Whether the program passes every bar."""
        return not self.missed

    @property
    def split(self) -> tuple[tuple[int, int, Route], ...]:
        """Heads (layer, head, route) that hold two hops at once."""
        return tuple(unit for unit in self.routing.heads if sum(bool(part.hop) for part in unit[2].parts) > 1)

    @cached_property
    def circuit(self) -> nx.DiGraph:
        """Nodes with `layer`, `head`, `at`, `before`, `kind`, `hop`, the `effect` of their removal (None where only queries
        need them) and `role`: "derivation", "aside" or "query". An edge leads from who writes to who reads, `by` "v" (its
        value), "q" (its query) or "vq"."""
        import networkx as nx

        graph = nx.DiGraph(model=self.model, hops=self.hops)
        effects = {effect.node: effect.effect for effect in (*self.tree.carrying, *self.tree.aside)}
        carrying = {effect.node for effect in self.tree.carrying}
        for node in sorted(self.queries.nodes | self.tree.nodes):
            role = "derivation" if node in carrying else "aside" if node in effects else "query"
            graph.add_node(node, **node.to_json(), effect=effects.get(node), role=role)
        for edge in self.queries.edges:
            for node in (edge.source, edge.target):  # a query tree's node may stand for another part of its head
                if node not in graph:
                    graph.add_node(node, **node.to_json(), effect=None, role="query")
            known = graph.edges.get((edge.source, edge.target), {}).get("by", "")
            graph.add_edge(edge.source, edge.target, by="".join(sorted({*known, edge.by}, reverse=True)))
        return graph

    @cached_property
    def program(self) -> FoundProgram:
        """The value tree, with what its queries read, as a program that prints, runs on whole numbers and compiles.

        Raises:
            HopInterpError: no derivation was found, or a head jumps farther than the blocks before it can point.
        """
        namings = {(query.node.layer, query.node.head): query.reading.naming for query in self.queries.queries}
        carrying = (effect.node for effect in self.tree.carrying)
        return write_program(self.task, self.hops, self.tree.n_layers, carrying, namings)

    # -- runs ---------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def run(self, tokens: Int[Tensor, "batch position"]) -> Float[Tensor, "batch position d_vocab"]:
        """Logits of the model on its routes: every pattern of every head by rule.

        Raises:
            HopInterpError: tokens that ask for another k, or no model to run.
        """
        return run_routed(self.network_to_run, batch_of(self.routing, tokens.cpu()), self.routing)

    def hooks(self, tokens: Int[Tensor, "batch position"] | None = None) -> list[tuple[str, HookFunction]]:
        """The routing as TransformerLens's forward hooks, (name, f), for experiments of one's own:
        `model.run_with_hooks(tokens, fwd_hooks=found.hooks())`, on a HookedTransformer or a FusedTransformer.

        Args:
            tokens: of the runs to come; by default each run's are read from its embeddings.

        Raises:
            HopInterpError: tokens that ask for another k, or no model whose embeddings are known.
        """
        return routing_hooks(self.network_to_run, self.routing, tokens)

    @torch.no_grad()
    def why(self, batch: Batch, index: int = 0, position: int = -1) -> str:
        """Why this answer at i: the chain of one input with the heads that carry the answer along each derivation.

        Args:
            index: which sequence of the batch.
            position: i; the last by default.

        Raises:
            HopInterpError: no such input, one that asks for another k or whose answer is no letter, or no model to run.
        """
        position = position % batch.tokens.shape[1] if position < 0 else position
        return why(self.network_to_run, self.routing, self.tree, batch, index, position)

    @property
    def network_to_run(self) -> FusedTransformer:
        """The model. Raises HopInterpError where this was loaded without one."""
        if self.network is None:
            raise HopInterpError("this program was loaded without its model: load_decompiled(directory, model)")
        return self.network

    # -- words --------------------------------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """The model's name, or what stands for it."""
        return self.model or "the model"

    @property
    def headline(self) -> str:
        """Derivations and reach in one line."""
        said = f"{self.hops} = {self.sums}" if self.derivations else "no derivation was found"
        layers = range(len(self.reach))
        most = ", ".join(str(2**layer - 1) for layer in layers)
        reached = ", ".join(self.reach_words)
        return f"{self.name}, k = {self.hops}: {said}. Blocks reach {reached} hops (at most 2^ℓ − 1: {most})."

    @property
    def sums(self) -> str:
        """Derivations as sums, the first few: "4+2+1+1 = 3+3+1+1"."""
        sums = list(map(told, self.derivations))
        return " = ".join([*sums[:_MOST], *["…"][: len(sums) > _MOST]])

    @property
    def reach_words(self) -> tuple[str, ...]:
        """`reach`, with a "?" where only a later jump implies it: no nodes were found that make so many hops known."""
        marked = zip(self.reach, self.queries.implied, strict=True)
        return tuple(f"{hops}?" if implied else str(hops) for hops, implied in marked)

    @property
    def reading(self) -> str:
        """The headline, how faithful routing, tree and joint circuit are, and the answer."""
        error, tree = self.error, self.tree
        shuffled = self.controls.means()["shuffled"]
        count = len(tree.nodes)
        nodes = f"{_NUMBERS[count] if count < len(_NUMBERS) else count} node{'s' if count != 1 else ''}"
        lines = [
            self.headline,
            f"Routing replaced by this program: {percent(error['routed'])} wrong (own {percent(error['own'])}; program "
            f"shuffled {shuffled:.0%}). {nodes} kept, all else from other sequences: {percent(tree.error)} "
            f"({100 * tree.low:.1f} to {100 * tree.high:.1f}).",
            f"The circuit with queries of its own, all else from other sequences: {percent(error['joint'])} wrong. "
            f"Without the nodes kept: {tree.without:.0%}.",
            *self._aside(),
            self._answer(),
        ]
        return "\n".join(lines)

    def _aside(self) -> Iterator[str]:
        if self.tree.aside:
            yield f"{len(self.tree.aside)} of the nodes lie on no derivation: they tell what the answer is not."
        above = [f"block {layer} ({hops})" for layer, hops in enumerate(self.reach) if hops > 2**layer - 1]
        if above:
            most = "Above 2^ℓ − 1, the most that doubling brings on every chain"
            yield f"{most}: {', '.join(above)}. Where letters repeat along the chain a head can bring more."
        yield from self.others
        if any(self.queries.implied):
            yield "?: a later jump needs so many hops, but no nodes were found that bring them to its query."
        if self.split:
            heads = ", ".join(f"{layer}.{head} ({route})" for layer, head, route in self.split)
            yield f"Heads that hold two hops at once: {heads}."

    @property
    def others(self) -> tuple[str, ...]:
        """That other ways bring the answer too, if they do."""
        spare, all_of = len(self.tree.spare), len(self.tree.carrying)
        if not spare:
            return ()
        shown = "every way found is shown" if self.settings.get("every_way") else "these may not be shown"
        return (f"{spare} of {all_of} nodes can go, each alone, while all else is live: other ways do their work; {shown}.",)

    def _answer(self) -> str:
        share = f"the routed model answers as the model does on {self.inputs_explained:.1%} of inputs"
        if self.explained:
            return f"Explained: {share}."
        return f"Not explained: {'; '.join(self.missed)}; {share}."

    @property
    def columns(self) -> list[str]:
        """Over `rows`."""
        return ["", *(f"head {head}" for head in range(max(map(len, self.routes))))]

    @property
    def rows(self) -> list[Row]:
        """Where each head looks, a row a block, the last on top; with * the heads of the tree."""
        kept = {(node.layer, node.head) for node in self.tree.nodes}
        return [
            (
                f"block {layer}",
                tuple(f"{route}{' *' if (layer, head) in kept else ''}" for head, route in enumerate(self.routes[layer])),
            )
            for layer in reversed(range(len(self.routes)))
        ]

    def __str__(self) -> str:
        return f"{plain(self.columns, self.rows)}\n* carries the answer\n\n{self.reading}"

    def __repr__(self) -> str:
        return f"<Decompiled: {self.headline}>"

    def to_json(self) -> dict[str, Any]:
        """All that was found, as JSON's own types."""
        tree = self.tree
        return {
            "model": self.model,
            "hops": self.hops,
            "error": self.error,
            "controls": self.controls.means(),
            "routes": [
                [
                    {"head": head, "kind": part.kind, "hop": part.hop, "share": part.share}
                    for head, route in enumerate(block)
                    for part in route.parts
                ]
                for block in self.routes
            ],
            "tree": {
                "nodes": [_node(node) for node in sorted(tree.nodes, reverse=True)],
                "stray": [_node(effect.node) | {"effect": effect.effect} for effect in tree.stray],
                "error": tree.error,
                "low": tree.low,
                "high": tree.high,
                "without": tree.without,
            },
            "queries": [
                {
                    "layer": query.node.layer,
                    "head": query.node.head,
                    "at": query.node.place.at,
                    "reads": query.reading.reads,
                    "iia": query.reading.best,
                    "nodes": [_effect(effect) for effect in query.placed(query.tree.carrying)],
                }
                for query in self.queries.queries
            ],
            "derivations": [list(jumps) for jumps in self.derivations],
            "reach": list(self.reach),
            "explained": self.explained,
            "inputs_explained": self.inputs_explained,
        }

    def digest(self) -> str:
        """The SHA-256 of all that was found."""
        return digest(b"".join(found_files({self.hops: self}, {}).values()))

    def save(self, directory: str | Path) -> None:
        """Write a directory, whole or not at all: what was found as JSON, and the heads' mean patterns. The model itself is
        not written.

        Raises:
            HopInterpError: it exists, or cannot be written.
        """
        write_record(directory, self.files(), "what was found")

    def files(self) -> dict[str, bytes]:
        """What `save` writes, by the files' names."""
        return found_files({self.hops: self}, {"one": self.hops})


def _node(node: Node) -> dict[str, Any]:
    return {name: value for name, value in node.to_json().items() if name != "kind"}


def _effect(effect: Effect) -> dict[str, Any]:
    return {name: value for name, value in effect.to_json().items() if name != "kind"}


def percent(share: float) -> str:
    """A share in percent, to a tenth."""
    return f"{100 * share:.1f}%"


# -- files ------------------------------------------------------------------------------------------------------------

_RECORDS = {"faithfulness": Faithfulness, "controls": Controls, "tree": ValueTree, "queries": Queries}


def found_files(found: Mapping[int, Decompiled], more: Mapping[str, Any]) -> dict[str, bytes]:
    """What was found at some k as files of a directory, by name."""
    records = {str(k): _record(one) for k, one in found.items()}
    data = safetensors.torch.save({name: mean for one in found.values() for name, mean in _means(one).items()})
    kept = {"format": FORMAT, **more, "sha256": digest(data), "by_hops": records}
    return {FOUND: json.dumps(kept, indent=1, allow_nan=False).encode() + b"\n", TENSORS: data}


def _means(one: Decompiled) -> dict[str, Tensor]:
    return {f"{one.hops}.{name}": getattr(one.routing, name).contiguous() for name in ("mean", "null_mean")}


def _record(one: Decompiled) -> dict[str, Any]:
    plainly = {"model": one.model, "hops": one.hops, "version": one.version, "settings": dict(one.settings)}
    records = {name: packed(getattr(one, name)) for name in _RECORDS}
    return {**plainly, "task": asdict(one.task), "routes": packed(one.routes), **records}


def read_record(
    given: dict[str, Any], hops: int, tensors: Mapping[str, Tensor], network: FusedTransformer | None
) -> Decompiled:
    """What `found_files` kept of one k. Raises ValueError, KeyError or TypeError where it is none of its records."""
    task = HopTask(**given["task"])
    routes = unpacked(tuple[tuple[Route, ...], ...], given["routes"])
    return Decompiled(
        model=given["model"],
        hops=hops,
        version=given["version"],
        settings=given["settings"],
        routing=Routing(task, hops, routes, tensors[f"{hops}.mean"], tensors[f"{hops}.null_mean"]),
        network=network,
        **{name: unpacked(kind, given[name]) for name, kind in _RECORDS.items()},
    )


def programs_of(network: FusedTransformer) -> Codec[Decompiled]:
    """How what was found in a model is kept in a cache."""

    def pack(one: Decompiled) -> tuple[Any, dict[str, np.ndarray]]:
        return _record(one) | {"hops": one.hops}, {name: mean.numpy() for name, mean in _means(one).items()}

    def unpack(given: Any, arrays: Mapping[str, np.ndarray]) -> Decompiled:
        found = read_record(given, given["hops"], {name: torch.tensor(mean) for name, mean in arrays.items()}, network)
        check_shown(found)
        return found

    def same(one: Decompiled, other: Decompiled) -> bool:
        means, others = _means(one), _means(other)
        return _record(one) == _record(other) and all(torch.equal(mean, others[name]) for name, mean in means.items())

    return Codec(pack, unpack, same)
