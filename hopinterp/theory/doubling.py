"""hop_k by pointer doubling on an MPC, in O(log k) rounds; the lookup construction's counterpart."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate, chain, repeat

import numpy as np
import xarray as xr
from jaxtyping import Int

from hopinterp.errors import HopInterpError
from hopinterp.task import Batch, HopTask
from hopinterp.theory.mpc import MEMORY, MPC, Execution, Memory, Message, Step, Words, execute

_STAGES = {
    "spread": "spread",
    **dict.fromkeys(("count", "up", "down", "route", "link", "return"), "find1"),
    **dict.fromkeys(("request", "reply"), "doubling"),
    **dict.fromkeys(("fetch", "letter", "gather"), "output"),
}
"""What a round's phase is for: letters to their homes; find¹; find^k; the letter there, and back to where the input lay."""


@dataclass(frozen=True)
class Held:
    """Which powers of find¹ the machines hold for every position: find^pointer and find^answer."""

    pointer: int
    answer: int


def powers(hops: int) -> tuple[Held, ...]:
    """What is held after pair p of request and reply, p = 0 … ⌈log2 k⌉: find^(2^p) and find^(k mod 2^p).

    Pair 0 stands for the search of find¹. Pair p is block p + 1 of the lookup construction (appendix D.1 repaired: bit
    p − 1 of k at block p + 1). At the end find^k is the answer, or the pointer where k is a power of two. k = 0 needs none.
    """
    return tuple(Held(2**p, hops % 2**p) for p in range(_pairs(hops) + 1)) if hops else ()


@dataclass(frozen=True)
class Table:
    """What a home holds of its positions, in their order. Letters count from 1; 0 is null."""

    letters: Words
    pointers: Words
    answers: Words


@dataclass(frozen=True)
class HopProtocol:
    """hop_k in 2·⌈log2 k⌉ + D·(2H + 1) + 6 rounds (none for k = 0); calling it is a machine's local computation.

    Positions 1 … n live at *homes*, b = s/8 each. Their find¹ comes from sorting (letter, position) stably by letter: the
    last earlier occurrence of a letter is the neighbour in that order. D = ⌈log_r |Σ|⌉ passes of a radix sort, r =
    min(|Σ|, ⌊√s⌋), each with a prefix sum of r counts over the homes, up and down a tree of fan-out f = ⌊s/r⌋ − 1 and
    height H = max(1, ⌈log_f ⌈n/b⌉⌉), and a round that takes each item to its rank. For a fixed alphabet that is O(1/δ)
    rounds, for any alphabet of poly(n) letters O(1/δ²); n does not enter. Then, for the bits of k from the lowest, a
    position asks the one that its pointer names for its pointer and, where the bit is set, its answer.

    No position is asked twice: find¹ is injective off null. Let find¹(i) = find¹(j) = m > 0 and i < j. Then X_{m−1} =
    X_i = X_j and m − 1 < i < j; so i is an occurrence of X_j before j and after m − 1, which was the last. So are
    its powers, and a home of b positions gets at most b requests. Repeated neighbours change nothing in this. Who has
    null asks nobody, and null stays null.
    """

    n_letters: int
    alphabet_size: int
    hops: int
    words: int

    def __post_init__(self) -> None:
        if min(self.n_letters, self.alphabet_size, self.words) < 1 or self.hops < 0:
            raise HopInterpError(f"{self}: sizes count from 1 and hops from 0")

    # -- sizes

    @property
    def block(self) -> int:
        """b, the positions of a home."""
        return max(1, self.words // MEMORY)

    @property
    def radix(self) -> int:
        """r, the buckets of a pass."""
        return min(self.alphabet_size, max(2, math.isqrt(self.words)))

    @property
    def passes(self) -> int:
        """D, the digits of a letter."""
        return next(d for d in range(1, self.alphabet_size + 1) if self.radix**d >= self.alphabet_size)

    @property
    def fan_out(self) -> int:
        """f: a node keeps f children's tables of r words, and gets or sends one more."""
        return max(2, self.words // self.radix - 1)

    @cached_property
    def tree(self) -> tuple[range, ...]:
        """The machines of each level: the homes, then the inner nodes, up to the root."""
        levels = [range(-(-self.n_letters // self.block))]
        while len(levels) == 1 or len(levels[-1]) > 1:
            levels.append(range(levels[-1].stop, levels[-1].stop - (-len(levels[-1]) // self.fan_out)))
        return tuple(levels)

    @cached_property
    def schedule(self) -> tuple[tuple[str, int], ...]:
        """What each round does, and with which level, pass of the sort or pair of rounds."""
        if not self.hops:
            return ()
        top, pairs = len(self.tree) - 1, _pairs(self.hops)
        scan = [*(("up", level) for level in range(1, top)), *(("down", level) for level in range(top, 0, -1))]
        sort = [(("count", digit), *scan, ("route", digit)) for digit in range(self.passes)]
        doubling = [(("request", pair), ("reply", pair)) for pair in range(pairs)]
        last = (("fetch", pairs), ("letter", pairs), ("gather", 0))
        return (("spread", 0), *chain(*sort), ("link", self.passes), ("return", self.passes), *chain(*doubling), *last)

    def __call__(self, number: int, machine: int, memory: Memory) -> Step:
        phase, index = self.schedule[number - 1]
        if machine not in self.tree[index if phase in ("up", "down") else 0]:
            return Step(memory.kept)
        step: Step = getattr(self, f"_{phase}")(index, machine, memory)
        return step

    def home(self, position: int) -> int:
        """The machine that holds a position (or, in the sort, a rank counted from 1)."""
        return (position - 1) // self.block

    # -- find¹

    def _spread(self, _: int, machine: int, memory: Memory) -> Step:
        """From where the input lies, each letter goes home."""
        first = machine * self.words + 1
        return Step((), _post((self.home(i), (letter,)) for i, letter in enumerate(memory.kept, first)))

    def _count(self, digit: int, machine: int, memory: Memory) -> Step:
        """Counts of each digit go up; the items, (letter, position) pairs, stay."""
        items = self._items(digit, machine, memory)
        counts = np.bincount([self._digit(letter, digit) for letter, _ in items], minlength=self.radix).tolist()
        return Step(tuple(chain(*items)), (Message(self._parent(0, machine), counts),))

    def _up(self, level: int, machine: int, memory: Memory) -> Step:
        """A node keeps its children's counts and sends their sum up."""
        totals = _sum(_chunks(memory.words, self.radix))
        return Step(memory.words, (Message(self._parent(level, machine), totals),))

    def _down(self, level: int, machine: int, memory: Memory) -> Step:
        """A node tells each child at which rank its items of each digit begin."""
        tables = _chunks(memory.kept or memory.words, self.radix)  # the root kept none: its children's have just come
        if level == len(self.tree) - 1:
            base = tuple(accumulate(_sum(tables), initial=0))[: self.radix]  # where each bucket begins
        else:
            base = memory.inbox[0].words
        child, messages = self.tree[level - 1].start + (machine - self.tree[level].start) * self.fan_out, []
        for offset, table in enumerate(tables):
            messages.append(Message(child + offset, base))
            base = _sum((base, table))
        return Step((), tuple(messages))

    def _route(self, digit: int, _machine: int, memory: Memory) -> Step:
        """Each item goes to the machine of its rank."""
        base, parcels = list(memory.inbox[0].words), []
        for item in _chunks(memory.kept, 2):
            bucket = self._digit(item[0], digit)
            base[bucket] += 1
            parcels.append((self.home(base[bucket]), item))
        return Step((), _post(parcels))

    def _link(self, passes: int, machine: int, memory: Memory) -> Step:
        """The last item of each machine goes to the next one, whose first item it precedes."""
        items = self._items(passes, machine, memory)
        following = (Message(machine + 1, items[-1]),) if machine + 1 in self.tree[0] else ()
        return Step(tuple(chain(*items)), following)

    def _return(self, _passes: int, _machine: int, memory: Memory) -> Step:
        """Each position's letter and find¹ go home: the place after the item before it, if that has its letter."""
        items = _chunks(memory.kept, 2)
        before = [memory.inbox[0].words if memory.inbox else (0, 0), *items]
        find1 = (m + 1 if other == letter else 0 for (letter, _), (other, m) in zip(items, before, strict=False))
        return Step((), _post((self.home(i), (i, x, pointer)) for (x, i), pointer in zip(items, find1, strict=True)))

    def _items(self, digits: int, machine: int, memory: Memory) -> list[Words]:
        """(letter, position) of a machine, in the order of the letters' lowest digits."""
        if digits == 0:
            return list(zip(memory.words, range(machine * self.block + 1, self.n_letters + 1), strict=False))
        return sorted(_chunks(memory.words, 2), key=lambda item: ((item[0] - 1) % self.radix**digits, item[1]))

    def _digit(self, letter: int, digit: int) -> int:
        shifted: int = (letter - 1) // self.radix**digit
        return shifted % self.radix

    def _parent(self, level: int, machine: int) -> int:
        return self.tree[level + 1].start + (machine - self.tree[level].start) // self.fan_out

    # -- doubling

    def held(self, pair: int, memory: Memory) -> Table:
        """What a home holds after a pair of rounds, read from its memory alone: what `powers` says."""
        if pair == 0:
            positions, letters, find1 = zip(*sorted(_chunks(memory.words, 3)), strict=True)
            return Table(letters, find1, positions)
        old, bit = _table(memory.kept), self.hops >> (pair - 1) & 1
        replies = {message.machine: iter(message.words) for message in memory.inbox}
        pointers, answers = [], []
        for pointer, answer in zip(old.pointers, old.answers, strict=True):
            reply = replies[self.home(pointer)] if pointer else repeat(0)
            pointers.append(next(reply))
            answers.append(next(reply) if bit else answer)
        return Table(old.letters, tuple(pointers), tuple(answers))

    def _request(self, pair: int, _machine: int, memory: Memory) -> Step:
        """Who has a pointer asks the position that it names."""
        table = self.held(pair, memory)
        return Step(table.letters + table.pointers + table.answers, self._asked(table.pointers))

    def _reply(self, pair: int, machine: int, memory: Memory) -> Step:
        """The asked position sends its pointer and, where k's bit is set, its answer so far."""
        table = _table(memory.kept)
        columns = (table.pointers, table.answers) if self.hops >> pair & 1 else (table.pointers,)
        rows = list(zip(*columns, strict=True))
        return Step(memory.kept, self._answered(machine, memory, rows))

    def _fetch(self, pairs: int, _machine: int, memory: Memory) -> Step:
        """Who has find^k asks for the letter there."""
        table = self.held(pairs, memory)
        targets = table.pointers if self.hops == 2**pairs else table.answers
        return Step(table.letters + targets, self._asked(targets))

    def _letter(self, _: int, machine: int, memory: Memory) -> Step:
        """The asked position sends its letter."""
        half = len(memory.kept) // 2
        return Step(memory.kept[half:], self._answered(machine, memory, _chunks(memory.kept[:half], 1)))

    def _gather(self, _: int, machine: int, memory: Memory) -> Step:
        """Each answer goes where its input word lay."""
        replies = {message.machine: iter(message.words) for message in memory.inbox}
        letters = (next(replies[self.home(target)]) if target else 0 for target in memory.kept)
        first = machine * self.block  # words of the output count from 0
        return Step((), _post((word // self.words, (letter,)) for word, letter in enumerate(letters, first)))

    def _asked(self, targets: Words) -> tuple[Message, ...]:
        """A request is one word, the position that is asked. Its reply is known by its place among the replies."""
        return _post((self.home(target), (target,)) for target in targets if target)

    def _answered(self, machine: int, memory: Memory, rows: Sequence[Words]) -> tuple[Message, ...]:
        first = machine * self.block + 1
        return tuple(Message(m.machine, tuple(chain(*(rows[i - first] for i in m.words)))) for m in memory.inbox)


def mpc_hop(batch: Batch, *, delta: float = 0.5, gamma: float = 0.0) -> xr.Dataset:
    """Compute hop_k of each sequence by pointer doubling on a (γ, δ)-MPC (the paper's Figure 1), and watch the machines.

    Args:
        batch: sequences with one k. It is part of the protocol (hop_k is one function for each k) and costs no words.
        delta: δ of the local memory, s = 8·⌈n^δ⌉ words.
        gamma: γ of the memory in all, q = 2·⌈n^(1+γ−δ)⌉ machines. Those beyond γ = 0 idle.

    Returns:
        `label` [sequence, position]: the protocol's answers, as `batch.labels`. `pointer`, `answer` [sequence, pair,
        position]: what the machines hold after each pair of rounds, find^j with j = coords `pointer_power` and
        `answer_power` (see `powers`). `sent`, `received`, `memory` [sequence, round]: words, the largest of any machine
        (coords `phase` and `stage` say what the round does). attrs: hops, γ, δ, q, s, p and the number of rounds.

    Raises:
        HopInterpError: sequences with different k, or sizes that make no MPC.
    """
    task, n, hops = batch.task, batch.tokens.shape[1] - 1, sorted(set(batch.hops.tolist()))
    if len(hops) != 1:
        raise HopInterpError(f"the sequences have hops {', '.join(map(str, hops))}; one protocol computes one k")
    mpc = MPC.sized(n, max(n, task.alphabet_size), gamma=gamma, delta=delta)
    protocol = HopProtocol(n, task.alphabet_size, hops[0], mpc.words)
    letters = (batch.tokens[:, 1:] - task.first_letter + 1).tolist()
    runs = [execute(mpc, protocol, sequence, len(protocol.schedule)) for sequence in letters]
    label = np.full((len(runs), n + 1), task.blank)
    for sequence, run in enumerate(runs):
        label[sequence, 1:] = [word - 1 + task.first_letter if word else task.null for word in run.output]
    pointer, answer = _held_by_homes(protocol, runs)
    by_pair, by_round, phases = ("sequence", "pair", "position"), ("sequence", "round"), [p for p, _ in protocol.schedule]
    loads = {name: (by_round, [getattr(run, name) for run in runs]) for name in ("sent", "received", "memory")}
    return xr.Dataset(
        {"label": (("sequence", "position"), label), "pointer": (by_pair, pointer), "answer": (by_pair, answer), **loads},
        coords={
            "pair": range(pointer.shape[1]),
            "pointer_power": ("pair", [power.pointer for power in powers(hops[0])]),
            "answer_power": ("pair", [power.answer for power in powers(hops[0])]),
            "round": range(1, len(phases) + 1),
            "phase": ("round", phases),
            "stage": ("round", [_STAGES[phase] for phase in phases]),
        },
        attrs={"hops": hops[0], "gamma": gamma, "delta": delta, **vars(mpc), "rounds": len(phases)},
    )


def mpc_costs(
    ns: Iterable[int],
    hops: Iterable[int],
    *,
    alphabet_size: int = 4,
    delta: float = 0.5,
    gamma: float = 0.0,
    sequences: int = 1,
    seed: int = 0,
) -> xr.Dataset:
    """Rounds and words of `mpc_hop`, counted while it runs on sequences of the training distribution.

    Returns:
        Dims n, k, stage ("spread", "find1", "doubling", "output"). `rounds`; `sent`, `received`, `memory`: words, the
        largest of any machine in any round of the stage (0 where it has none); `wrong` [n, k]: answers that are not the
        task's. `machines`, `words`, `word_bits` [n]: q, s, p.

    Raises:
        HopInterpError: no n or k, or one out of range.
    """
    ns, hops, stages = list(ns), list(hops), list(dict.fromkeys(_STAGES.values()))
    if not ns or not hops:
        raise HopInterpError(f"{len(ns)} values of n and {len(hops)} of k were given; at least one of each is needed")
    task, loads = HopTask(max(ns), alphabet_size, max(hops)), ("sent", "received", "memory")
    table = {name: np.zeros((len(ns), len(hops), len(stages)), dtype=np.int64) for name in ("rounds", *loads)}
    wrong, sizes = np.zeros((len(ns), len(hops)), dtype=np.int64), []
    for row, n in enumerate(ns):
        batch = replace(task, n_letters=n).sample(sequences, hops=0, seed=seed)
        for column, k in enumerate(hops):
            asked = batch.with_hops(k)
            run = mpc_hop(asked, delta=delta, gamma=gamma)
            wrong[row, column] = (run.label.values != asked.labels.numpy()).sum()
            for place, stage in enumerate(stages):
                part = run.isel(round=run.stage.values == stage)
                table["rounds"][row, column, place] = part.sizes["round"]
                for name in loads:
                    table[name][row, column, place] = part[name].values.max(initial=0)
        sizes.append(run.attrs)
    return xr.Dataset(
        {
            **{name: (("n", "k", "stage"), values) for name, values in table.items()},
            "wrong": (("n", "k"), wrong),
            **{name: ("n", [size[name] for size in sizes]) for name in ("machines", "words", "word_bits")},
        },
        coords={"n": ns, "k": hops, "stage": stages},
        attrs={"alphabet_size": alphabet_size, "delta": delta, "gamma": gamma, "sequences": sequences, "seed": seed},
    )


def _held_by_homes(
    protocol: HopProtocol, runs: Sequence[Execution]
) -> tuple[Int[np.ndarray, "sequence pair position"], Int[np.ndarray, "sequence pair position"]]:
    """Pointers and answers of all positions, read from the homes' memories after each pair of rounds; 0 at position 0."""
    pairs = len(powers(protocol.hops))
    start = len(protocol.schedule) - 2 * (pairs - 1) - 3  # the round after which find¹ is held
    pointer, answer = np.zeros((2, len(runs), pairs, protocol.n_letters + 1), dtype=np.int64)
    for sequence, run in enumerate(runs):
        for pair in range(pairs):
            tables = [protocol.held(pair, run.memories[start + 2 * pair][home]) for home in protocol.tree[0]]
            pointer[sequence, pair, 1:] = list(chain(*(table.pointers for table in tables)))
            answer[sequence, pair, 1:] = list(chain(*(table.answers for table in tables)))
    return pointer, answer


def _pairs(hops: int) -> int:
    """⌈log2 k⌉, the pairs of rounds after find¹."""
    return (hops - 1).bit_length() if hops else 0


def _chunks(words: Words, size: int) -> list[Words]:
    return [words[i : i + size] for i in range(0, len(words), size)]


def _sum(tables: Iterable[Words]) -> Words:
    return tuple(map(sum, zip(*tables, strict=True)))


def _table(words: Words) -> Table:
    return Table(*_chunks(words, len(words) // 3))


def _post(parcels: Iterable[tuple[int, Words]]) -> tuple[Message, ...]:
    """One message a destination, each with its parcels in their order."""
    boxes: dict[int, list[int]] = {}
    for machine, words in parcels:
        boxes.setdefault(machine, []).extend(words)
    return tuple(Message(machine, tuple(words)) for machine, words in boxes.items())
