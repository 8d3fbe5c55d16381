"""Heads at chain positions as nodes, and what their jumps add up to: paths, and the hops they make known."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from hopinterp.decompile.routes import Kind, Part, Routing

FURTHEST_BACK = 2
"""How far before find^j(i) a place may lie. The letter two before tells whether find^(j+1)(i) is the position before."""


@dataclass(frozen=True, order=True)
class Place:
    """A position named by the chain of i: find^at(i), or `back` positions before it."""

    at: int
    back: int = 0

    @property
    def letter(self) -> int | None:
        """j of the letter X_{find^j(i)} that stands there; the letter before find^j(i) is that of find^(j−1)(i). None for
        the letter two before, which the chain does not name."""
        return self.at - self.back if self.back <= 1 and self.at >= self.back else None

    def of(self, chain: Int[Tensor, "row chain"]) -> Int[Tensor, " row"]:
        """The position in every sequence; −1 where there is none."""
        found = chain[:, self.at]
        return torch.where(found > self.back, found - self.back, -1)

    def __str__(self) -> str:
        return f"{self.at}−{self.back}" if self.back else str(self.at)


START = Place(0)
"""i itself."""


@dataclass(frozen=True, order=True)
class Node:
    """One part of a head's rule at one place: a value that the head brings there.

    Attributes:
        layer, head: which head.
        place: where it stands, on the chain of i.
        kind, hop: the part of its rule; see `routes.Part`.
    """

    layer: int
    head: int
    place: Place
    kind: Kind
    hop: int | None = None

    @property
    def target(self) -> Place | None:
        """The place that it reads; None for a leaf, which reads no single place of the chain.

        From a position before find^j(i), only the rules `self` and previous token lead to a place with a name.
        """
        if self.kind == "self":
            return self.place
        if self.kind == "before hop" and self.hop == 0:
            return Place(self.place.at, self.place.back + 1) if self.place.back < FURTHEST_BACK else None
        if self.hop is None or self.place.back:
            return None
        return Place(self.place.at + self.hop, int(self.kind == "before hop"))

    @property
    def reads(self) -> int | None:
        """j of the letter X_{find^j(i)} at the place that it reads. A content-free head of block 0 reads the letters before
        its own position, of which the last is that of one hop less. None where the chain does not name it."""
        if self.target is not None:
            return self.target.letter
        leaf = self.layer == 0 and self.kind == "content-free" and self.place.back == 0 and self.place.at > 0
        return self.place.at - 1 if leaf else None

    @property
    def jump(self) -> int:
        """How many hops further the letter is that it reads; −1 is a step to the position before. 0 where unnamed."""
        reads, stands = self.reads, self.place.letter
        return 0 if reads is None or stands is None else reads - stands

    def to_json(self) -> dict[str, Any]:
        """As the JSON result has it: `before` for every position before find^at(i)."""
        place = {"at": self.place.at, "before": self.place.back > 0}
        return {"layer": self.layer, "head": self.head, **place, "kind": self.kind, "hop": self.hop}

    def __str__(self) -> str:
        return f"{self.layer}.{self.head} at {self.place}: {Part(self.kind, self.hop)}"


Nodes = frozenset[Node]
Path = tuple[Node, ...]
Jumps = tuple[int, ...]


def jumps_of(path: Path) -> Jumps:
    """How many hops each node of a path goes, without heads that look at their own position; −1 is a step to the position
    before."""
    return tuple(node.jump for node in path if node.target != node.place)


def summed(jumps: Jumps) -> str:
    """Jumps as a sum: "4+2+1+1", "5+3−1"."""
    return "+".join(map(str, jumps)).replace("+-", "−")


def told(jumps: Jumps) -> str:
    """What stands behind "k =": the sum, or that one jump is enough."""
    return "one jump" if len(jumps) == 1 else summed(jumps)


def reachable(routing: Routing) -> Nodes:
    """Every node that the routes can reach from i, up to the place one beyond the answer's.

    A head that looks at the hop token is no node: what stands there is the same in all sequences of one k.
    """
    furthest = min(routing.hops + 1, routing.task.max_hops)
    needed, found = {START}, set[Node]()
    for layer in reversed(range(len(routing.routes))):
        parts = [(head, part) for head, route in enumerate(routing.routes[layer]) for part in route.parts]
        nodes = [Node(layer, head, place, part.kind, part.hop) for head, part in parts for place in needed]
        here = {node for node in nodes if _is_live(node, furthest)}
        found |= here
        needed |= {node.target for node in here if node.target is not None}
    return frozenset(found)


def _is_live(node: Node, furthest: int) -> bool:
    """Whether a node can bring what the chain up to `furthest` names; off the chain nothing is live."""
    if node.target is None:
        return node.hop is None and node.kind != "first"
    return node.target.at <= furthest


def connected(nodes: Iterable[Node]) -> Nodes:
    """The nodes that a path from i reaches: those at i, and those at places that connected nodes of later blocks read."""
    needed, found = {START}, set[Node]()
    for here in _layers(nodes)[::-1]:
        live = [node for node in here if node.place in needed]
        found |= set(live)
        needed |= {node.target for node in live if node.target is not None}
    return frozenset(found)


def on_paths(nodes: Iterable[Node], hops: int) -> Nodes:
    """The nodes that lie on a path from i to where the letter of find^hops(i) stands."""
    nodes = connected(nodes)
    good, alive = {Place(hops), Place(hops + 1, 1)}, set[Node]()
    for here in _layers(nodes):
        ending = {node for node in here if node.reads == hops or node.target in good}
        alive |= ending
        good |= {node.place for node in ending}
    return connected(alive)


def derivations(nodes: Iterable[Node], hops: int) -> dict[Jumps, list[Path]]:
    """Paths of nodes, last block first, from i to where the letter of find^hops(i) stands; by their jumps."""
    found: dict[Jumps, list[Path]] = {}
    nodes = sorted(nodes)

    def walk(place: Place, layer: int, path: Path) -> None:
        for node in nodes:
            if node.place != place or node.layer >= layer:
                continue
            longer = (*path, node)
            if node.reads == hops:
                found.setdefault(jumps_of(longer), []).append(longer)
            if node.target is not None:
                walk(node.target, node.layer, longer)

    walk(START, 1 + max((node.layer for node in nodes), default=0), ())
    return found


def reach(nodes: Iterable[Node], hops: int, n_layers: int) -> tuple[int, ...]:
    """The most hops that a node of a block ≤ ℓ makes known, for every ℓ: on a derivation, its jump and all later ones.

    Over value trees alone: what a query needs to know is not counted.
    """
    most = [0] * n_layers
    for path in (path for paths in derivations(nodes, hops).values() for path in paths):
        known = 0
        for node in reversed(path):
            known += node.jump
            most[node.layer] = max(most[node.layer], known)
    return tuple(accumulate(most, max))


def _layers(nodes: Iterable[Node]) -> list[list[Node]]:
    nodes = list(nodes)
    found: list[list[Node]] = [[] for _ in range(1 + max((node.layer for node in nodes), default=-1))]
    for node in nodes:
        found[node.layer].append(node)
    return found
