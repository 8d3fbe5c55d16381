"""What the words of a report mean, shown on one small sequence whose chain is drawn."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from markupsafe import Markup

from hopinterp.task import Batch, HopTask
from hopinterp.theory.hypotheses import claims

LETTERS, HOPS = "abcadbacb", 2
"""The sequence that is drawn, and how many hops are followed from its last position."""
_CELL, _TALL, _TOP, _HEIGHT = 36, 42, 44, 134  # pixels: of a cell, down to the row of cells, and in all


@dataclass(frozen=True)
class Term:
    """One or more words, and what they mean."""

    words: str
    meaning: str


def example() -> Batch:
    """The sequence that is drawn, as a batch of one."""
    return HopTask(len(LETTERS), len(set(LETTERS)), HOPS).from_letters([LETTERS], HOPS)


def chain() -> list[int]:
    """Positions from the last one, by the task's own find^j."""
    return [int(position) for position in example().find[0, : HOPS + 1, -1]]


def task_words() -> str:
    """The task in words, on the sequence that is drawn."""
    i, *links = chain()
    path = " → ".join(f"{at} ({LETTERS[at - 1]})" for at in (i, *links))
    return (
        "The model reads a hop count k and letters X_1 … X_n. find¹(i) is the position after the last earlier occurrence of "
        f"the letter at i. In the drawing {LETTERS[i - 1]} stands at {i}; the last {LETTERS[i - 1]} before it stands at "
        f"{links[0] - 1}, so find¹({i}) = {links[0]}. find^k follows k such links, and the right answer at i is the letter "
        f"there: for k = {HOPS}, {path}, so the answer is {LETTERS[links[-1] - 1]}. An induction head does k = 1."
    )


def terms() -> Iterator[Term]:
    """The words, in the order in which a reader meets them."""
    first = chain()[1]
    letter, number = LETTERS[first - 1], LETTERS[:first].count(LETTERS[first - 1])
    yield Term("Chain, find^j(i)", "i, find¹(i), find²(i), …; chain position j is find^j(i), 0 where there is none.")
    yield Term("err_k", "The share of wrong answers at k hops, over positions whose answer is a letter.")
    yield Term(
        "Block, head", "Counted from 0, as in TransformerLens: 3.1 is head 1 of block 3. The paper's layer ℓ is block ℓ − 1."
    )
    yield Term("R(ℓ), resolved hops", "How many hops are done after block ℓ. Each kind of evidence has its own word for it:")
    yield Term("Reaches", f"by the program: {_REACHES}.")
    yield Term("Stands for, transplant", f"by what is used: {_STANDS_FOR}.")
    yield Term("Holds, probe", f"by what can be read: {_HOLDS}.")
    yield Term(
        "Light cone",
        "by what is still needed: the chain positions at which another sequence's block output breaks the answer.",
    )
    carried = f"the position alone; its letter and the position (an {letter}, at {first}); the letter and which of its "
    carried += f"occurrences it is ({letter}, number {number})"
    yield Term(
        "Pointer, content, occurrence", f"What a block carries of find^r(i), in the drawing for r = 1 of {first}: {carried}."
    )
    yield Term("Node, jump, derivation", _NODE)
    for one in claims().values():
        yield Term(one.name.capitalize(), _law(one.words, {form.name: form.words for form in one.forms if form is not one}))
    yield Term("Intervals", "All are 95% intervals.")


_REACHES = "the most hops that the nodes of blocks 0 … ℓ make known, by their values or by what their queries need"
_STANDS_FOR = (
    "the block's output at i is replaced by another sequence's; it stands for r hops if the model then answers as if r hops "
    "of that sequence were done"
)
_HOLDS = (
    "a probe is a linear classifier of the letter at find^j(i); the block holds hop j if its output is read well "
    "beyond every cheaper explanation"
)
_NODE = (
    "A node is a head at a chain position; its jump is how many hops it looks back. Jumps of nodes that add up to k are a "
    "derivation: 8 = 4+2+1+1."
)


def _law(words: str, forms: dict[str, str]) -> str:
    said = "; ".join(f"{name}: {what}" for name, what in forms.items())
    return f"{words}. Its forms: {said}." if said else f"{words}."


def drawing() -> Markup:
    """The chain of the last position as an SVG that takes its colours from the page."""
    positions, width = chain(), _CELL * len(LETTERS) + 2
    parts = [_cell(at, at in positions) for at in range(1, len(LETTERS) + 1)]
    parts += [_link(start, end) for start, end in itertools.pairwise(positions)]
    said = "; ".join(f"find^{j}({positions[0]}) = {at}" for j, at in enumerate(positions) if j)
    label = f"The letters {' '.join(LETTERS)}, and the chain of the last position: {said}."
    head = f'<svg class="chain" viewBox="0 0 {width} {_HEIGHT}" width="{width}" height="{_HEIGHT}" role="img"'
    return Markup(f'{head} aria-label="{label}">{"".join(parts)}</svg>')


def _middle(position: int) -> float:
    return (position - 0.5) * _CELL + 1


def _cell(position: int, on_chain: bool) -> str:
    x, kind = (position - 1) * _CELL + 1, ' class="on"' if on_chain else ""
    box = f'<rect{kind} x="{x}" y="{_TOP}" width="{_CELL}" height="{_TALL}"/>'
    letter = f'<text x="{_middle(position):g}" y="{_TOP + 19}">{LETTERS[position - 1]}</text>'
    return f'{box}{letter}<text class="at" x="{_middle(position):g}" y="{_TOP + 36}">{position}</text>'


def _link(start: int, end: int) -> str:
    """Below, from a position to the same letter before it; above, to the position after that: find¹ of it."""
    here, same, there = _middle(start), _middle(end - 1), _middle(end)
    below = _TOP + _TALL
    dotted = f'<path class="same" d="M{here:g} {below} C{here:g} {below + 38}, {same:g} {below + 38}, {same:g} {below}"/>'
    high, bend = _TOP - 18, 8
    arrow = f"M{here:g} {_TOP} V{high + bend} Q{here:g} {high} {here - bend:g} {high} H{there + bend:g} "
    arrow += f"Q{there:g} {high} {there:g} {high + bend} V{_TOP - 1} M{there - 4:g} {_TOP - 8} L{there:g} {_TOP - 1} "
    arrow += f"L{there + 4:g} {_TOP - 8}"
    name = f'<text class="name" x="{(here + there) / 2:g}" y="{high - 6}">find¹</text>'
    return f'{dotted}<path class="link" d="{arrow}"/>{name}'
