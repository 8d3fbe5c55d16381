"""MPC, massively parallel computation, as an executor of (γ, δ)-MPC protocols (Figure 1).

The model is Karloff, Suri and Vassilvitskii's (2010), as the paper defines it: the input is N words of p = Θ(log N) bits;
q = Θ(N^(1+γ−δ)) machines have s = O(N^δ) words of memory each. Machine i starts with input words i·s … (i+1)·s − 1. In a
round each machine computes any function of its own memory, sends at most s words and receives at most s words; what it
then has is its memory. After the last round the output lies as the input did.

Figure 1 has no words that stay: a machine remembers by sending to itself. So kept words count against both limits here,
kept + sent ≤ s and kept + received ≤ s. An address is not a word: a receiver learns each message's source for nothing, as
in the figure. Machines count from 0, rounds from 1 (the input is memory 0). The constants: s = 8·⌈N^δ⌉, q =
2·⌈N^(1+γ−δ)⌉, p = bits of the largest word.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain

from hopinterp.errors import HopInterpError

Words = tuple[int, ...]

MEMORY = 8  # s / ⌈N^δ⌉: a reply round needs 5 words a position; 16 words, at N = 2, give the tree a fan-out of 3
_MACHINES = 2  # q / ⌈N^(1+γ−δ)⌉: one half hold the sequence, the other half are the inner nodes of the tree


@dataclass(frozen=True)
class MPC:
    """The sizes of one machine park: q = `machines`, s = `words` of memory each, words of p = `word_bits` bits.

    Raises:
        HopInterpError: a size that is not a whole number of at least 1.
    """

    machines: int
    words: int
    word_bits: int

    def __post_init__(self) -> None:
        for name in ("machines", "words", "word_bits"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise HopInterpError(f"{name} is {value!r}; it must be a whole number of at least 1")

    @classmethod
    def sized(cls, n_words: int, largest_word: int, *, gamma: float = 0.0, delta: float = 0.5) -> MPC:
        """The (γ, δ)-MPC for an input of N = `n_words` words, with the constants at the head of this module.

        Raises:
            HopInterpError: γ < 0, or δ outside 0 < δ ≤ 1.
        """
        if not gamma >= 0 or not 0 < delta <= 1 or math.isinf(gamma):
            raise HopInterpError(f"gamma is {gamma} and delta {delta}; wanted gamma ≥ 0 and 0 < delta ≤ 1")
        machines, words = (_power(n_words, exponent) for exponent in (1 + gamma - delta, delta))
        return cls(_MACHINES * machines, MEMORY * words, max(1, largest_word.bit_length()))


@dataclass(frozen=True)
class Message:
    """Words on their way. `machine` is where to, when sent, and where from, when received."""

    machine: int
    words: Words

    def __post_init__(self) -> None:
        object.__setattr__(self, "words", tuple(self.words))


@dataclass(frozen=True)
class Memory:
    """All that a machine knows when a round begins: what it kept, and what came (by source, then as sent)."""

    kept: Words = ()
    inbox: tuple[Message, ...] = ()

    @property
    def words(self) -> Words:
        """Every word, the kept ones first."""
        return self.kept + tuple(chain.from_iterable(message.words for message in self.inbox))


@dataclass(frozen=True)
class Step:
    """What a machine does in a round: the words that it keeps and the messages that it sends."""

    kept: Words = ()
    messages: tuple[Message, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "kept", tuple(self.kept))
        object.__setattr__(self, "messages", tuple(self.messages))


Protocol = Callable[[int, int, Memory], Step]
"""The local computation: (round, machine, its memory) → Step. A pure function; it is never shown another's memory."""


@dataclass(frozen=True)
class Execution:
    """What happened. Loads are the largest of any machine, one a round.

    Attributes:
        memories: of each machine, before the first round and after each: memories[round][machine].
        sent: words in the messages of one machine.
        received: words that came to one machine.
    """

    memories: tuple[tuple[Memory, ...], ...]
    sent: Words
    received: Words

    @property
    def output(self) -> Words:
        """The words in all memories after the last round, by machine."""
        return tuple(chain.from_iterable(memory.words for memory in self.memories[-1]))

    @property
    def memory(self) -> Words:
        """Words that one machine holds after each round, kept and received."""
        return tuple(max(len(memory.words) for memory in memories) for memories in self.memories[1:])


def execute(mpc: MPC, protocol: Protocol, inputs: Sequence[int], rounds: int) -> Execution:
    """Run a protocol (the paper's Figure 1). All machines compute on the memories of before the round.

    Raises:
        HopInterpError: more words than a machine may send, receive or hold, something that is not a word of p bits, or
            a message to a machine that there is not: with the machine, the round, what was given and what is allowed.
    """
    s = mpc.words
    if len(inputs) > mpc.machines * s:
        raise HopInterpError(f"the input has {len(inputs)} words; {mpc.machines} machines of {s} words have no room for it")
    memories = [tuple(Memory(tuple(inputs[i * s : (i + 1) * s])) for i in range(mpc.machines))]
    for machine, memory in enumerate(memories[0]):
        _check_words(mpc, 0, machine, memory.kept)
    sent, received = [], []
    for number in range(1, rounds + 1):
        steps = [protocol(number, machine, memory) for machine, memory in enumerate(memories[-1])]
        sent.append(max(_check_step(mpc, number, machine, step) for machine, step in enumerate(steps)))
        inboxes: list[list[Message]] = [[] for _ in steps]
        for machine, step in enumerate(steps):
            for message in step.messages:
                inboxes[message.machine].append(Message(machine, message.words))
        arrivals = enumerate(zip(steps, inboxes, strict=True))
        received.append(max(_check_load(mpc, number, i, step.kept, "receives", inbox) for i, (step, inbox) in arrivals))
        memories.append(tuple(Memory(step.kept, tuple(inbox)) for step, inbox in zip(steps, inboxes, strict=True)))
    return Execution(tuple(memories), tuple(sent), tuple(received))


def _check_step(mpc: MPC, number: int, machine: int, step: Step) -> int:
    for words in (step.kept, *(message.words for message in step.messages)):
        _check_words(mpc, number, machine, words)
    for message in step.messages:
        if message.machine not in range(mpc.machines):
            last = mpc.machines - 1
            raise HopInterpError(f"round {number}: machine {machine} writes to machine {message.machine!r} of 0 … {last}")
    return _check_load(mpc, number, machine, step.kept, "sends", step.messages)


def _check_load(mpc: MPC, number: int, machine: int, kept: Words, does: str, messages: Sequence[Message]) -> int:
    moved = sum(len(message.words) for message in messages)
    if len(kept) + moved > mpc.words:
        load = f"keeps {len(kept)} words and {does} {moved}"
        raise HopInterpError(f"round {number}: machine {machine} {load}; {mpc.words} are allowed in all")
    return moved


def _check_words(mpc: MPC, number: int, machine: int, words: Words) -> None:
    for word in words:
        # an object that is not a plain number could carry more than p bits, another machine's memory for one
        if type(word) is not int or not 0 <= word < 2**mpc.word_bits:
            allowed = f"a word is a whole number of {mpc.word_bits} bits, 0 … {2**mpc.word_bits - 1}"
            raise HopInterpError(f"round {number}: machine {machine} has the word {word!r}; {allowed}")


def _power(n: int, exponent: float) -> int:
    """⌈n^exponent⌉, with what floating point adds to a whole number taken off."""
    return math.ceil(round(math.pow(n, exponent), 9))
