"""Pointer doubling on the machines: right answers, what is held after each pair of rounds, and what it costs."""

import itertools
import math
import random

import pytest
import torch

from hopinterp import HopInterpError, HopTask
from hopinterp.theory import doubling
from hopinterp.theory.doubling import Held, HopProtocol, mpc_costs, mpc_hop, powers
from hopinterp.theory.hypotheses import resolved
from hopinterp.theory.mpc import MPC, Message, Step, execute


def with_repeats(task, batch_size, hops, seed):
    generator = torch.Generator().manual_seed(seed)
    return task.from_letters(torch.randint(task.alphabet_size, (batch_size, task.n_letters), generator=generator), hops)


def assert_exact(batch, run):
    """Answers, and find^(2^p) and find^(k mod 2^p) after every pair of rounds, are the task's."""
    assert torch.equal(torch.as_tensor(run.label.values), batch.labels)
    deep = HopTask(batch.task.n_letters, batch.task.alphabet_size, max(1, 2 * run.attrs["hops"]))
    find = deep.from_letters(batch.tokens[:, 1:] - batch.task.first_letter, 0).find
    for pair in range(run.sizes["pair"]):
        assert torch.equal(torch.as_tensor(run.pointer.values[:, pair]), find[:, int(run.pointer_power[pair])])
        assert torch.equal(torch.as_tensor(run.answer.values[:, pair]), find[:, int(run.answer_power[pair])])


def stated_rounds(n, alphabet_size, hops, delta):
    """2⌈log2 k⌉ + D(2H + 1) + 6, from n, |Σ|, k and δ alone, by other arithmetic than the protocol's."""
    if hops == 0:
        return 0
    block = math.ceil(round(n**delta, 9))
    words = 8 * block
    radix = min(alphabet_size, math.floor(math.sqrt(words)))
    digits = next(d for d in itertools.count(1) if radix**d >= alphabet_size)
    fan_out, homes, height = words // radix - 1, math.ceil(n / block), 1
    while fan_out**height < homes:
        height += 1
    return 2 * math.ceil(math.log2(hops)) + digits * (2 * height + 1) + 6


@pytest.mark.parametrize("alphabet_size", [4, 26])
@pytest.mark.parametrize("hops", [1, 2, 3, 5, 8, 13, 16])
def test_random_sequences(alphabet_size, hops):
    task = HopTask(100, alphabet_size, max_hops=16)
    for batch in (task.sample(2, hops=hops, seed=hops), with_repeats(task, 2, hops, seed=hops)):
        run = mpc_hop(batch)
        assert_exact(batch, run)
        assert run.attrs["rounds"] == stated_rounds(100, alphabet_size, hops, 0.5)


def test_every_short_sequence():
    task = HopTask(5, 3, max_hops=6)
    letters = torch.tensor(list(itertools.product(range(3), repeat=5)))
    for hops in range(7):
        batch = task.from_letters(letters, hops)
        assert_exact(batch, mpc_hop(batch))


@pytest.mark.parametrize(
    "letters", ["aaaaaaaaaaaaaaaaaaaaaaaa", "abababababababababababab", "abcdefghijklmnopqrstuvwx", "a", "ab"]
)
@pytest.mark.parametrize("hops", [0, 1, 6, 8])
def test_sequences_of_one_kind(letters, hops):
    batch = HopTask(len(letters), 26, max_hops=8).from_letters(letters, hops)
    assert_exact(batch, mpc_hop(batch))


@pytest.mark.parametrize(
    ("n", "alphabet_size", "delta", "gamma"),
    [
        (1000, 4, 0.5, 0.0),
        (1000, 26, 0.25, 0.0),
        (300, 300, 0.2, 0.0),
        (50, 1000, 0.5, 0.0),
        (60, 4, 1.0, 0.0),
        (60, 4, 0.4, 0.6),
    ],
)
def test_other_sizes(n, alphabet_size, delta, gamma):
    """Alphabets larger than a memory (32 words of 300 letters, 64 of 1000), tall trees, one machine, idle machines."""
    task = HopTask(n, alphabet_size, max_hops=16)
    batch = with_repeats(task, 1, 11, seed=n)
    run = mpc_hop(batch, delta=delta, gamma=gamma)
    assert_exact(batch, run)
    assert run.attrs["rounds"] == stated_rounds(n, alphabet_size, 11, delta)
    assert int(run.memory.max()) <= run.attrs["words"]


def test_powers_are_the_lookup_recurrence():
    assert powers(5) == (Held(1, 0), Held(2, 1), Held(4, 1), Held(8, 5))
    assert powers(8) == (Held(1, 0), Held(2, 0), Held(4, 0), Held(8, 0))
    assert powers(1) == (Held(1, 0),)
    assert powers(0) == ()
    for hops in range(1, 65):
        held = powers(hops)
        assert hops in (held[-1].pointer, held[-1].answer)
        assert all(hops not in (power.pointer, power.answer) for power in held[:-1])  # and no pair is wasted
        blocks = resolved("lookup", hops, len(held) + 1)[1:]  # pair p is block p + 1
        assert [min(hops, power.pointer) for power in held] == blocks


def test_rounds_do_not_grow_with_n():
    """For four letters at most 2⌈log2 k⌉ + 2⌈(1 − δ)/δ⌉ + 7, and for n letters a bound of δ alone; the tree always fits."""
    ns = [*range(2, 300), 1000, 4095, 4096, 4097, 10**5, 10**6, 10**6 + 1]
    for delta in (0.2, 1 / 3, 0.5, 0.7, 1.0):
        deep = math.ceil(round((1 - delta) / delta, 9))
        for n, alphabet_size in itertools.product(ns, (2, 4, 26, 1000, None)):
            alphabet_size = min(alphabet_size or n, n)
            mpc = MPC.sized(n, n, delta=delta)
            protocol = HopProtocol(n, alphabet_size, 16, mpc.words)
            assert protocol.tree[-1].stop <= mpc.machines
            rounds = len(protocol.schedule)
            assert rounds == stated_rounds(n, alphabet_size, 16, delta)
            assert rounds <= 8 + 6 + math.ceil(2 / delta) * (2 * max(1, 2 * deep) + 1)
            if alphabet_size <= 4:
                assert rounds <= 8 + 2 * max(1, deep) + 7


def test_no_round_is_to_spare():
    batch = with_repeats(HopTask(40, 4, max_hops=5), 1, 5, seed=0)
    words = (batch.tokens[0, 1:] - batch.task.first_letter + 1).tolist()
    mpc = MPC.sized(40, 40)
    protocol = HopProtocol(40, 4, 5, mpc.words)
    right = [
        label - batch.task.first_letter + 1 if label != batch.task.null else 0 for label in batch.labels[0, 1:].tolist()
    ]
    rounds = len(protocol.schedule)
    assert list(execute(mpc, protocol, words, rounds).output) == right
    assert list(execute(mpc, protocol, words, rounds - 1).output) != right
    first = execute(mpc, protocol, words, rounds).memories[-1]
    assert [len(memory.words) for memory in first[:2]] == [40, 0]  # the output lies as the input did: 40 ≤ s = 56


def test_lookups_do_not_pile_up():
    """find^j is injective off null, repeats or not: so says the proof in HopProtocol's docstring."""
    find = with_repeats(HopTask(200, 3, max_hops=8), 20, 0, seed=1).find
    for hop in range(9):
        for row in find[:, hop]:
            named = row[row > 0]
            assert len(named.unique()) == len(named)


class EveryoneAsksPositionOne(HopProtocol):
    """Pointers that are not injective: all name position 1."""

    def _return(self, passes, machine, memory):
        step = super()._return(passes, machine, memory)
        return Step(
            (), tuple(Message(m.machine, [1 if i % 3 == 2 else w for i, w in enumerate(m.words)]) for m in step.messages)
        )


def test_lookups_that_pile_up_overflow():
    mpc = MPC.sized(400, 400)
    words = [1 + i % 4 for i in range(400)]
    honest, crowd = (kind(400, 4, 8, mpc.words) for kind in (HopProtocol, EveryoneAsksPositionOne))
    execute(mpc, honest, words, len(honest.schedule))
    asks = honest.schedule.index(("request", 0)) + 1
    says = rf"round {asks}: machine 0 keeps 60 words and receives 400; 160 are allowed"
    with pytest.raises(HopInterpError, match=says):
        execute(mpc, crowd, words, len(crowd.schedule))


def test_the_protocol_is_a_pure_local_function():
    """Every step, replayed alone, in any order and on a fresh protocol, from the machine's own memory, is the same."""
    batch = with_repeats(HopTask(150, 26, max_hops=6), 1, 6, seed=2)
    mpc, calls = MPC.sized(150, 150, delta=0.3), []
    make = lambda: HopProtocol(150, 26, 6, mpc.words)  # noqa: E731
    protocol = make()

    def recorded(number, machine, memory):
        step = protocol(number, machine, memory)
        calls.append((number, machine, memory, step))
        return step

    execute(mpc, recorded, (batch.tokens[0, 1:] - 6).tolist(), len(protocol.schedule))
    random.Random(0).shuffle(calls)
    assert len(calls) == mpc.machines * len(protocol.schedule)
    assert all(make()(number, machine, memory) == step for number, machine, memory, step in calls)


def test_costs():
    ns, ks, delta = [1, 20, 100, 400], [0, 1, 2, 3, 7, 8, 9, 16], 0.5
    costs = mpc_costs(ns, ks, delta=delta, sequences=2, seed=3)
    assert int(costs.wrong.sum()) == 0
    total = costs.rounds.sum("stage")
    for n, k in itertools.product(ns, ks):
        assert int(total.sel(n=n, k=k)) == stated_rounds(n, 4, k, delta)
        assert int(costs.rounds.sel(n=n, k=k, stage="doubling")) == (2 * math.ceil(math.log2(k)) if k else 0)
    for load in ("sent", "received", "memory"):
        assert bool((costs[load] <= costs.words).all())
        # a position has three words, asks with one and is told two
        assert bool((costs[load].sel(stage="doubling") <= 5 * costs.words / 8).all())
    assert bool((costs.memory.sel(stage="doubling", k=16, n=ns[1:]) > 3 * costs.words.sel(n=ns[1:]) / 8).all())
    assert costs.words.values.tolist() == [8 * math.ceil(n**0.5) for n in ns]
    assert costs.machines.values.tolist() == [2 * math.ceil(n**0.5) for n in ns]
    assert int(costs.rounds.sel(k=0).sum()) == 0


def test_costs_show_wrong_answers(monkeypatch):
    """Take the accumulated answer at the end, always: right but for powers of two, where the pointer holds find^k."""
    fetch = lambda self, pairs, _machine, memory: Step(  # noqa: E731
        (table := self.held(pairs, memory)).letters + table.answers, self._asked(table.answers)
    )
    monkeypatch.setattr(doubling.HopProtocol, "_fetch", fetch)
    wrong = mpc_costs([50], [2, 3, 4, 5]).wrong.sel(n=50)
    assert wrong.values.astype(bool).tolist() == [True, False, True, False]


def test_errors():
    task = HopTask(10, 4, max_hops=4)
    with pytest.raises(HopInterpError, match="hops 1, 3; one protocol computes one k"):
        mpc_hop(task.from_letters(["abc", "abc"], torch.tensor([1, 3])))
    with pytest.raises(HopInterpError, match="delta 0"):
        mpc_hop(task.sample(1, hops=1, seed=0), delta=0)
    with pytest.raises(HopInterpError, match="0 values of n"):
        mpc_costs([], [1])
    with pytest.raises(HopInterpError, match="sizes count from 1"):
        HopProtocol(0, 4, 1, 8)
