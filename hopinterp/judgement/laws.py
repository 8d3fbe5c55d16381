"""Which law the reach of a decompiled program follows: sequential, linear by two, doubling, or none that is known.

R(ℓ) is the *reach* of blocks 0 … ℓ: the most hops that a kept node makes known, over value trees and query trees.

- *Sequential*: R(0) = 0, R(1) ≤ 1, then every gain R(ℓ) − R(ℓ − 1) ≤ 1.
- *Doubling*: R(1) ≤ 1, every R(ℓ) ≤ 2·R(ℓ − 1) + 1, and a gain that sequential does not allow.
- *Linear by two*: gains of 2 and no more, and no node that adds a jump of two hops or more to two hops or more: no pointers
  are composed. Where k is too small to tell this from doubling, that is said.
- *Beyond*: a block reaches farther than every law allows.

Any other hypothesis in the registry is a law likewise, by its recursion; the slowest that allows every block is the answer.
A law is read off a program only from k = 4 on (see `theory.hypotheses.too_few_hops`).
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from hopinterp.decompile.nodes import Node, Nodes, derivations
from hopinterp.decompile.records import JOINT, ROUTED, TREE, WITHOUT, Decompiled, percent
from hopinterp.judgement.readings import Control
from hopinterp.theory.hypotheses import claims, named, too_few_hops

Pace = Literal["full", "slack"]
LINEAR, BEYOND = "linear by two", "beyond"
"""Verdicts that are no hypotheses of the registry."""
LEAST_COST = 0.1
"""Routes shuffled among the heads must raise the error by this much, or replacing routes proves nothing. Constructed models
(three algorithms, k = 4 … 16, three draws) lose .35 at least: some shuffles of a small one still add up to k."""


@dataclass(frozen=True)
class Law:
    """What a decompiled program's reach says.

    Attributes:
        verdict: a hypothesis of the registry, "linear by two", "beyond", "mixed" (the program does not explain the model) or
            "undetermined".
        form: lookup or successor, by what the queries read; None where they read both, or neither clearly.
        pace: of a hypothesis that has exact forms: "full" where R follows one of them, else "slack"; None otherwise.
        reasons: sentences.
        reach: R(ℓ) as the law was read off it; empty where none was.
        culprits: nodes by which a block reaches farther than every law allows.
        explained: whether the program passes every bar. `carried`: whether it does but for the value tree, which is not
            small: routes and the circuit with its own queries do.
    """

    verdict: str
    form: str | None
    pace: Pace | None
    reasons: tuple[str, ...]
    reach: tuple[int, ...] = ()
    culprits: tuple[Node, ...] = ()
    explained: bool = True
    carried: bool = True


def judge_program(found: Decompiled) -> Law:
    """The law that a program's reach follows, if the program explains its model or at least its routes and queries do."""
    explained, carried = not found.missed, _carried(found)
    if why := too_few_hops(found.hops):
        return Law("undetermined", None, None, (*_residue(found), why), found.reach, (), explained, carried)
    if carried:
        law = read_law(found)
        return replace(law, reasons=(*_residue(found), *law.reasons), explained=explained)
    verdict = "undetermined" if _may_explain(found) else "mixed"
    return Law(verdict, None, None, _residue(found), (), (), explained, carried)


def read_law(found: Decompiled) -> Law:
    """The law that the reach follows, whether or not the program explains its model."""
    reach, hops = found.reach, found.hops
    uncounted = ""
    if _slowest(reach) is None and any(found.queries.implied):
        # what a jump implies of the blocks before is an inference: it cannot show that no law is followed
        reach = tuple(itertools.accumulate(found.queries.known, max))
        uncounted = f" That later jumps imply {', '.join(found.reach_words)} is not counted: no nodes bring so much."
    slowest = _slowest(reach)
    if slowest is None:
        return _beyond(found, reach)
    form, read = _form(found, slowest)
    pace = _pace(reach, hops, slowest)
    told = f"Blocks reach {', '.join(map(str, reach))} hops: {_why(reach, slowest)}.{uncounted}"
    reasons = [told, *_parallel(found), *found.others, *read]
    if slowest != "sequential" and _adds_two_at_most(found, reach):
        if any(min(2 * before + 1, hops) > before + 2 for before in reach[1:-1]):
            reasons.append("No node adds two hops or more to two or more: nothing is composed, each block adds two.")
            return Law(LINEAR, form, None, tuple(reasons), reach)
        reasons.append(f"At k = {hops} that does not tell {slowest} from two hops a block.")
    return Law(slowest, form, pace, tuple(reasons), reach)


def program_controls(found: Decompiled) -> dict[str, Control]:
    """What would have shown that replacing the routes proves nothing."""
    right, own = 1 - found.controls.means()["shuffled"], 1 - found.error["own"]
    words = "With its routes shuffled among the heads the model answers no more"
    bar = own - LEAST_COST
    return {"program_shuffled": Control("program_shuffled", words, right < bar, "answered_right", right, bar)}


# -- what the reach allows --------------------------------------------------------------------------------------------


def _by_speed() -> list[str]:
    """Hypotheses that a verdict names, from the slowest to the fastest."""
    return sorted(claims(), key=lambda name: named(name).holds(20)[-1])


def _slowest(reach: Sequence[int]) -> str | None:
    """The slowest hypothesis that allows every block."""
    return next((name for name in _by_speed() if not _exceeds(reach, name)), None)


def _exceeds(reach: Sequence[int], name: str) -> list[int]:
    """Blocks that reach farther than a hypothesis's recursion allows from the block before."""
    hypothesis = named(name)
    allowed = [0, *(hypothesis.grows(before)[-1] for before in reach)]
    return [layer for layer, (reached, most) in enumerate(zip(reach, allowed, strict=False)) if reached > most]


def _why(reach: Sequence[int], slowest: str) -> str:
    """Why it is this law and none slower."""
    most = "no block gains more than one" if slowest == "sequential" else f"none gains more than {slowest} allows"
    slower = [name for name in _by_speed() if _exceeds(reach, name)]
    if not slower:
        return most
    layer = _exceeds(reach, slower[-1])[0]
    return f"{most}, and block {layer} gains {reach[layer] - reach[layer - 1]}, which {slower[-1]} does not allow"


def _pace(reach: Sequence[int], hops: int, name: str) -> Pace | None:
    forms = [form for form in named(name).forms if form.form_of]
    if not forms:
        return None
    full = ([form.holds(layer, hops)[0] for layer in range(len(reach))] for form in forms)
    return "full" if list(reach) in full else "slack"


def _beyond(found: Decompiled, reach: Sequence[int]) -> Law:
    """Which nodes reach farther than the fastest law allows."""
    fastest = _by_speed()[-1]
    layer = _exceeds(reach, fastest)[0]
    allowed = named(fastest).grows(reach[layer - 1])[-1] if layer else 0
    nodes = {path[0] for path in _steps(found) if path[0].layer == layer and _known(path) > allowed}
    shown = ", ".join(map(str, sorted(nodes)))
    why = f"block {layer} reaches {reach[layer]} where {fastest} allows {allowed}{f', by {shown}' if shown else ''}"
    told = f"Blocks reach {', '.join(map(str, reach))} hops: {why}. No law known here says so."
    form = _form(found, fastest)[0]
    return Law(BEYOND, form, None, (told, *_parallel(found), *found.others), tuple(reach), tuple(sorted(nodes)))


# -- nodes ------------------------------------------------------------------------------------------------------------


def _paths(found: Decompiled) -> Iterator[tuple[Node, ...]]:
    """Every path of the circuit to the letter that it brings: of the value tree to the answer's, of each query tree to the
    letters that its query needs."""
    yield from _flat(found.tree.nodes, found.hops)
    for nodes, pointer in {(query.tree.nodes, query.pointer) for query in found.queries.queries}:
        for hop in range(1, pointer + 1):
            yield from _flat(nodes, hop)


def _flat(nodes: Nodes, hops: int) -> Iterator[tuple[Node, ...]]:
    for paths in derivations(nodes, hops).values():
        yield from paths


def _steps(found: Decompiled) -> Iterator[tuple[Node, ...]]:
    """Every node of every path, with the nodes of earlier blocks that it goes on to."""
    return (path[start:] for path in _paths(found) for start in range(len(path)))


def _known(path: tuple[Node, ...]) -> int:
    """How many hops the first node of a path makes known at its place."""
    return sum(node.jump for node in path)


def _adds_two_at_most(found: Decompiled, reach: Sequence[int]) -> bool:
    """Whether no block gains more than two, and no node adds two hops or more to two or more."""
    gains = (after - before for before, after in itertools.pairwise(reach))
    if max(gains, default=0) > 2 or any(found.queries.implied):
        return False
    return all(min(path[0].jump, _known(path[1:])) <= 1 for path in _steps(found))


def _form(found: Decompiled, law: str) -> tuple[str | None, tuple[str, ...]]:
    """The form that the queries of all far-looking heads read like, and how they read. What looks one hop back has nothing
    to point with but its own letter, in every form."""
    read = {(q.node.layer, q.node.head): q.reading.reads for q in found.queries.queries if q.reading.hop > 1}
    counts = Counter(read.values())
    said = ", ".join(f"{count} {'unclear' if kind == 'other' else f'like {kind}'}" for kind, count in counts.items())
    told = (f"Queries of the heads that look two hops back or more read {said}.",) if said else ()
    forms = [form.name for form in named(law).forms if form.form_of and form.name in counts]
    return (forms[0] if len(forms) == 1 else None), told


def _parallel(found: Decompiled) -> tuple[str, ...]:
    """That several derivations bring the answer at once."""
    count = len(found.derivations)
    if count < 2:
        return ()
    lengths = sorted({len(jumps) for jumps in found.derivations})
    some = f"of {' and '.join(map(str, lengths))} jumps" if len(lengths) > 1 else f"of {lengths[0]} jumps each"
    return (f"{count} derivations bring the answer side by side, {some}: {found.sums}.",)


# -- what is not explained --------------------------------------------------------------------------------------------


def _residue(found: Decompiled) -> tuple[str, ...]:
    """What the program leaves unexplained, in figures."""
    alike = f"{percent(found.inputs_explained)} of inputs answered alike on its routes"
    if not found.missed:
        return (f"The program explains the model: {alike}.",)
    return (f"The program does not explain the model: {'; '.join(found.missed)} ({alike}).",)


def _carried(found: Decompiled) -> bool:
    """Whether all bars but the value tree's are met."""
    error = found.error
    return error["routed"] - error["own"] <= ROUTED and error["joint"] <= JOINT


def _may_explain(found: Decompiled) -> bool:
    """Whether every bar that was missed lies within its figure's interval, so that more sequences might meet it."""
    joint = found.queries.joint
    return (
        found.faithfulness.low <= ROUTED and found.tree.low <= TREE and joint.low <= JOINT and found.tree.without >= WITHOUT
    )
