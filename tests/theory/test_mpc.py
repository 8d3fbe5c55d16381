"""The machines keep to their sizes, see their own memory alone, and say who broke a rule."""

import dataclasses

import pytest

from hopinterp import HopInterpError
from hopinterp.theory.mpc import MPC, Memory, Message, Step, execute

SMALL = MPC(machines=4, words=3, word_bits=8)


def ring(_number, machine, memory):
    """Keep what is known, and pass on the newest of it: what came last, or at first the own word."""
    newest = memory.inbox[0].words if memory.inbox else memory.kept
    return Step(memory.words, (Message((machine + 1) % 4, newest),))


def keeps(count):
    return lambda number, machine, _: Step(tuple(range(count)) if (number, machine) == (2, 1) else ())


def sends(count, kept=0):
    def protocol(number, machine, _):
        if (number, machine) != (2, 1):
            return Step()
        return Step((9,) * kept, tuple(Message(i % 3, (i,)) for i in range(count)))

    return protocol


def receives(count, kept=0):
    def protocol(number, machine, _):
        messages = (Message(1, (7,)),) * (count // 2 if machine == 2 else count - count // 2 if machine == 3 else 0)
        return Step((9,) * kept if machine == 1 else (), messages) if number == 2 else Step()

    return protocol


def test_sizes_are_the_definitions():
    assert MPC.sized(100, 100, delta=0.5) == MPC(machines=20, words=80, word_bits=7)
    assert MPC.sized(1000, 26, delta=1 / 3) == MPC(machines=200, words=80, word_bits=5)
    assert MPC.sized(216, 216, delta=1 / 3).words == 48  # 216 ** (1 / 3) is 5.99… in floating point, and 125 ** (1/3) too
    assert MPC.sized(125, 125, delta=1 / 3).words == 40
    assert MPC.sized(100, 100, gamma=0.5, delta=0.5).machines == 200


@pytest.mark.parametrize("sizes", [{"gamma": -0.1}, {"delta": 0}, {"delta": 1.5}, {"gamma": float("nan")}])
def test_sizes_that_make_no_mpc(sizes):
    with pytest.raises(HopInterpError, match="wanted gamma ≥ 0 and 0 < delta ≤ 1"):
        MPC.sized(10, 10, **sizes)
    with pytest.raises(HopInterpError, match="words is 0"):
        MPC(1, 0, 1)


def test_the_input_fills_the_first_machines():
    run = execute(SMALL, lambda _number, _machine, memory: Step(memory.kept), [1, 2, 3, 4, 5], 0)
    assert [memory.kept for memory in run.memories[0]] == [(1, 2, 3), (4, 5), (), ()]
    assert run.output == (1, 2, 3, 4, 5)
    with pytest.raises(HopInterpError, match="13 words; 4 machines of 3 words have no room"):
        execute(SMALL, ring, range(13), 1)


def test_news_travels_one_machine_a_round():
    mpc = MPC(machines=4, words=4, word_bits=8)
    spread = execute(mpc, lambda _n, _m, memory: Step((), tuple(Message(w, (w,)) for w in memory.kept)), range(4), 1)
    assert spread.memories[1] == tuple(Memory((), (Message(0, (w,)),)) for w in range(4))

    def after_spreading(number, machine, memory):
        return Step((), tuple(Message(w, (w,)) for w in memory.kept)) if number == 1 else ring(number, machine, memory)

    run = execute(mpc, after_spreading, range(4), 4)
    for number in range(4):
        for machine in range(4):
            known = set(run.memories[number + 1][machine].words)
            assert known == {(machine - back) % 4 for back in range(number + 1)}


@pytest.mark.parametrize(
    ("fits", "too_much", "says"),
    [
        (keeps(3), keeps(4), "round 2: machine 1 keeps 4 words and sends 0; 3 are allowed in all"),
        (sends(3), sends(4), "round 2: machine 1 keeps 0 words and sends 4; 3 are allowed in all"),
        (sends(2, kept=1), sends(3, kept=1), "round 2: machine 1 keeps 1 words and sends 3; 3 are allowed in all"),
        (receives(3), receives(4), "round 2: machine 1 keeps 0 words and receives 4; 3 are allowed in all"),
        (receives(1, kept=2), receives(2, kept=2), "round 2: machine 1 keeps 2 words and receives 2; 3 are allowed in all"),
    ],
)
def test_overflow_names_machine_round_and_words(fits, too_much, says):
    assert len(execute(SMALL, fits, [], 3).memories) == 4
    with pytest.raises(HopInterpError, match=says):
        execute(SMALL, too_much, [], 3)


def test_loads_are_counted():
    run = execute(SMALL, receives(3, kept=0), [1], 2)
    assert (run.sent, run.received, run.memory) == ((0, 2), (0, 3), (0, 3))
    assert run.memories[2][1].inbox == (Message(2, (7,)), Message(3, (7,)), Message(3, (7,)))  # by source


@pytest.mark.parametrize("word", [256, -1, 1.0, True, (1, 2), [3], Memory((1,))])
@pytest.mark.parametrize("where", ["kept", "sent"])
def test_a_word_is_a_small_whole_number(word, where):
    step = Step((word,)) if where == "kept" else Step((), (Message(0, (word,)),))
    with pytest.raises(
        HopInterpError, match=r"round 1: machine 3 has the word .*; a word is a whole number of 8 bits, 0 … 255"
    ):
        execute(SMALL, lambda _number, machine, _: step if machine == 3 else Step(), [], 1)


def test_the_input_is_of_words_too():
    with pytest.raises(HopInterpError, match="round 0: machine 1 has the word 256"):
        execute(SMALL, ring, [0, 0, 0, 256], 1)


@pytest.mark.parametrize("address", [4, -1, "1"])
def test_no_such_machine(address):
    with pytest.raises(HopInterpError, match=r"round 1: machine 0 writes to machine .* of 0 … 3"):
        execute(SMALL, lambda _number, machine, _: Step((), (Message(address, (1,)),) * (machine == 0)), [], 1)


def test_a_machine_is_shown_its_own_memory_alone():
    """Whatever can be reached from what a machine is given are the words that it kept or was sent, and who sent them."""
    shown = []

    def spy(number, machine, memory):
        shown.append((number, machine, memory))
        return Step(memory.words[:1], (Message((machine + 1) % 4, memory.words[1:]),))

    run = execute(MPC(machines=4, words=2, word_bits=8), spy, [11, 12, 13], 2)
    for number, machine, memory in shown:
        assert memory == run.memories[number - 1][machine]
        assert set(vars(memory)) == {"kept", "inbox"}
        assert all(type(word) is int for word in memory.words)
    assert [memory.words for number, _, memory in shown if number == 1] == [(11, 12), (13,), (), ()]


def test_nothing_that_is_handed_over_can_be_changed_later():
    shared = [5]

    def smuggler(number, machine, memory):
        if machine == 0:
            step = Step(shared, [Message(1, shared)])
            shared[0] = 6  # after the step was made: what was handed over stays 5
            return step
        if number == 2 and machine == 1:
            with pytest.raises(dataclasses.FrozenInstanceError):
                memory.kept = (1,)
            with pytest.raises(TypeError):
                memory.inbox[0].words[0] = 1
        return Step()

    run = execute(SMALL, smuggler, [], 2)
    assert run.memories[1][0].kept == (5,)
    assert run.memories[1][1].words == (5,)
