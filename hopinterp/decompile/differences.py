"""How two programs differ: heads with other rules, derivations that one has and the other lacks, reach and error."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hopinterp.decompile.nodes import Jumps, summed
from hopinterp.decompile.records import Decompiled
from hopinterp.decompile.routes import Part, Route
from hopinterp.shown import Row, Shown


@dataclass(frozen=True, eq=False, repr=False)
class Difference(Shown):
    """Two programs side by side: of two models at one k, or of one model at two.

    Attributes:
        routes: (layer, head) → the rules of the first and the second, where they look elsewhere; None where one has no such
            head. Shares of a mixture do not count.
        derivations: jumps of the first alone, of both, of the second alone.
    """

    first: Decompiled
    second: Decompiled
    routes: dict[tuple[int, int], tuple[Route | None, Route | None]]
    derivations: tuple[tuple[Jumps, ...], tuple[Jumps, ...], tuple[Jumps, ...]]

    @property
    def columns(self) -> list[str]:
        """Over `rows`."""
        return ["", *(f"{one.name}, k = {one.hops}" for one in (self.first, self.second))]

    @property
    def rows(self) -> list[Row]:
        """Reach, errors, then each derivation that one of them lacks and each head that looks elsewhere."""
        both = (self.first, self.second)
        rows: list[Row] = [("reach", tuple(" ".join(map(str, one.reach)) for one in both))]
        rows += [(f"error: {name}", tuple(f"{one.error[name]:.1%}" for one in both)) for name in ("own", "routed", "joint")]
        alone, _, other = self.derivations
        rows += [(summed(jumps), ("yes", "–")) for jumps in alone] + [(summed(jumps), ("–", "yes")) for jumps in other]
        for (layer, head), pair in self.routes.items():
            rows.append((f"head {layer}.{head}", tuple("–" if route is None else str(route) for route in pair)))
        return rows

    @property
    def reading(self) -> str:
        """How much they share, in one line."""
        heads = max(sum(map(len, one.routes)) for one in (self.first, self.second))
        alone, shared, other = map(len, self.derivations)
        same = heads - len(self.routes)
        return (
            f"{same} of {heads} heads look at the same place; {shared} of {alone + shared + other} derivations are shared."
        )

    def to_json(self) -> dict[str, Any]:
        """Whose programs they are, `rows` by name, and the derivations of the first alone, of both, of the second alone."""
        whose = [{"model": one.name, "hops": one.hops} for one in (self.first, self.second)]
        names = ("first", "both", "second")
        sums = {name: [list(jumps) for jumps in one] for name, one in zip(names, self.derivations, strict=True)}
        return {"programs": whose, "rows": {name: list(cells) for name, cells in self.rows}, "derivations": sums}


def diff(first: Decompiled, second: Decompiled) -> Difference:
    """What two programs do differently: of two models at one k, or of one model at two."""
    units = [{(layer, head): route for layer, head, route in one.routing.heads} for one in (first, second)]
    pairs = {unit: (units[0].get(unit), units[1].get(unit)) for unit in sorted({*units[0], *units[1]})}
    routes = {unit: pair for unit, pair in pairs.items() if _places(pair[0]) != _places(pair[1])}
    a, b = set(first.derivations), set(second.derivations)
    found = tuple(tuple(sorted(jumps, reverse=True)) for jumps in (a - b, a & b, b - a))
    return Difference(first, second, routes, (found[0], found[1], found[2]))


def _places(route: Route | None) -> set[Part]:
    return set() if route is None else {Part(part.kind, part.hop) for part in route.parts}
