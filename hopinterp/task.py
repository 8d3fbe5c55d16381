"""The k-hop task: vocabulary, sampling, find^j and labels. Tensors only; knows no model."""

from __future__ import annotations

import string
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, SupportsIndex, cast

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from hopinterp.errors import HopInterpError
from hopinterp.memory import require_memory
from hopinterp.seeds import seeded
from hopinterp.shown import Row, Shown
from hopinterp.whole import whole

Hops = SupportsIndex | Iterable[SupportsIndex]
"""Values of k: one whole number (NumPy's and xarray's among them) or several."""
_SHOWN = 24  # positions of a batch's first sequence
_TRIES, _ROUNDS = 8, 60
"""Candidates for a sequence that are drawn at once, and how often, before it is said that there is none."""
Letters = str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]] | Tensor


@dataclass(frozen=True)
class HopTask:
    """The k-hop induction heads task (the paper's Definition 4.1) at one size.

    The model reads the tokens (k, X_1 … X_n) and predicts hop_k(X)_i at every position i. Token ids are those of
    the paper's code, so that its models read our batches: 0 … max_hops are hop counts, the next `alphabet_size` are
    letters, then null (⊥) and blank (the label of the hop token itself).

    Args:
        n_letters: n, the letters in a sequence. The paper's 98 and the hop token fill 99 of its 100 positions.
        alphabet_size: |Σ|. At least 2, since neighbouring letters differ in the training distribution.
        max_hops: the largest k.

    Raises:
        HopInterpError: a size that is not a whole number or is too small.
    """

    n_letters: int = 98
    alphabet_size: int = 4
    max_hops: int = 16

    def __post_init__(self) -> None:
        for name, least, most in (("n_letters", 1, 100_000), ("alphabet_size", 2, 10_000), ("max_hops", 0, 10_000)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
                raise HopInterpError(f"{name} is {value!r:.40}; it must be a whole number from {least} to {most:,}")

    # -- vocabulary ---------------------------------------------------------------------------------------------

    @property
    def first_letter(self) -> int:
        """Token id of letter 0."""
        return self.max_hops + 1

    @property
    def null(self) -> int:
        """Token id of ⊥, the label where find^k(i) = 0."""
        return self.first_letter + self.alphabet_size

    @property
    def blank(self) -> int:
        """Token id of the label of position 0, where nothing is asked."""
        return self.null + 1

    @property
    def d_vocab(self) -> int:
        """How many token ids the task uses (the paper's models have room for 30)."""
        return self.blank + 1

    @property
    def n_positions(self) -> int:
        """Positions of a full batch: the hop token and the letters."""
        return self.n_letters + 1

    def letter_name(self, letter: int) -> str:
        """Letter 0 is "a"; alphabets beyond 26 letters are written as numbers."""
        return string.ascii_lowercase[letter] if self.alphabet_size <= 26 else str(letter)

    # -- batches ------------------------------------------------------------------------------------------------

    def sample(
        self,
        batch_size: int,
        hops: SupportsIndex | Int[Tensor, " batch"] | None = None,
        *,
        seed: int | None = None,
        generator: torch.Generator | None = None,
        device: str | torch.device = "cpu",
        distinct: bool = False,
    ) -> Batch:
        """A batch from the training distribution: X_1 uniform on Σ, each later letter uniform on Σ without the last.

        The letters are drawn before the hop counts, so one seed gives the same letters for every `hops`.

        Args:
            batch_size: how many sequences.
            hops: k for all (a number), for each (a tensor), or None: uniform on 0 … max_hops.
            seed: seeds a fresh generator; or give `generator`. One of the two is needed.
            device: where the batch is put. It is always drawn on the CPU: one seed, the same bits everywhere.
            distinct: draw a position and its sequence given that the position has a chain of k links on which no letter
                repeats two hops apart (`Batch.no_repeats`). By k = 16 hardly any plain sequence has one. A sequence's share
                of the draw grows with how many such positions it has: for a mean over positions, average within sequences.

        Raises:
            HopInterpError: hops out of range, no sequences asked for, or no source of randomness; with `distinct`, no such
                chain: two letters, or more hops than the sequence has room for.
        """
        batch_size = self.check_batch(batch_size)
        if (seed is None) == (generator is None):
            raise HopInterpError("sample() needs a seed or a generator, and not both")
        if generator is None:
            generator = seeded(seed)
        if distinct:
            return self._sample_distinct(batch_size, hops, generator).to(device)
        steps = torch.randint(1, self.alphabet_size, (batch_size, self.n_letters), generator=generator)
        steps[:, 0] = torch.randint(self.alphabet_size, (batch_size,), generator=generator)
        letters = steps.cumsum(-1) % self.alphabet_size
        if hops is None:
            hops = torch.randint(self.max_hops + 1, (batch_size,), generator=generator)
        return self._batch(letters.to(device), self._hop_counts(hops, batch_size).to(device))

    def check_batch(self, batch_size: int) -> int:
        """The number of a batch's sequences, as an int. Raises HopInterpError where it is none, or memory has no room."""
        batch_size = whole("batch_size", batch_size, 1)
        # find^j of every position, and as much again while it is made
        require_memory(f"{batch_size:,} sequences", 16 * batch_size * self.n_positions * (self.max_hops + 1))
        return batch_size

    def _sample_distinct(
        self, batch_size: int, hops: SupportsIndex | Int[Tensor, " batch"] | None, generator: torch.Generator
    ) -> Batch:
        """Positions are drawn evenly, and again with their sequence where the chain does not fit."""
        if hops is None:
            hops = torch.randint(self.max_hops + 1, (batch_size,), generator=generator)
        ks = self._hop_counts(hops, batch_size)
        letters = torch.zeros(batch_size, self.n_letters, dtype=torch.long)
        left = torch.arange(batch_size)
        most = int(ks.max())
        possible = most < 2 or (self.alphabet_size > 2 and 2 * most < self.n_letters)  # every link spans two letters or more
        for _ in range(_ROUNDS if possible else 0):
            rows = left.repeat_interleave(_TRIES)
            drawn, fits = distinct_letters(self.n_letters, self.alphabet_size, ks[rows], generator)
            fits = fits.view(len(left), _TRIES)
            first = torch.arange(len(left)) * _TRIES + fits.int().argmax(1)
            letters[left] = drawn[first]
            left = left[~fits.any(1)]
            if not len(left):
                return self._batch(letters, ks)
        raise HopInterpError(
            f"no chain of {most} hops on which no letter repeats two hops apart was found among "
            f"{self.n_letters} letters of {self.alphabet_size}"
        )

    def from_letters(self, letters: Letters, hops: SupportsIndex | Int[Tensor, " batch"]) -> Batch:
        """A batch from given sequences; neighbours may repeat (the definition allows it, training has none).

        Args:
            letters: a string ("abcab"), a list of strings or of letter numbers, or a tensor [batch, n] or [n].
            hops: k, one for all or one a sequence.

        Raises:
            HopInterpError: a letter outside Σ, sequences of unequal or too great length, hops out of range.
        """
        tensor = self._letter_tensor(letters)
        if tensor.shape[-1] > self.n_letters or tensor.shape[-1] < 1:
            raise HopInterpError(f"a sequence of {tensor.shape[-1]} letters was given; the task has 1 to {self.n_letters}")
        outside = (tensor < 0) | (tensor >= self.alphabet_size)
        if outside.any():
            row, column = outside.nonzero()[0].tolist()
            last = self.alphabet_size - 1
            raise HopInterpError(
                f"letter {tensor[row, column].item()} at position {column + 1} is outside the alphabet "
                f"0 … {last} ({self.letter_name(0)} … {self.letter_name(last)})"
            )
        return self._batch(tensor, self._hop_counts(hops, len(tensor)).to(tensor.device))

    def _letter_tensor(self, letters: Letters) -> Int[Tensor, "batch position"]:
        if isinstance(letters, str):
            letters = [letters]
        if isinstance(letters, Sequence):
            words = [[self._letter_number(x) for x in word] if isinstance(word, str) else word for word in letters]
            letters = cast(Letters, words)
        try:
            tensor = torch.as_tensor(letters)
        except (ValueError, TypeError, RuntimeError, OverflowError) as error:
            reason = " ".join(str(error).split())[:120]
            raise HopInterpError(f"letters must be sequences of one length, of whole numbers or words ({reason})") from None
        if (tensor.is_floating_point() and tensor.numel()) or tensor.ndim not in (1, 2):
            raise HopInterpError(
                f"letters must be whole numbers, [n] or [batch, n]; got {tensor.dtype} {list(tensor.shape)}"
            )
        return tensor.long() if tensor.ndim == 2 else tensor.long()[None]

    def _letter_number(self, name: str) -> int:
        number = string.ascii_lowercase.find(name)
        if not 0 <= number < self.alphabet_size or len(name) != 1:
            last = string.ascii_lowercase[min(self.alphabet_size, 26) - 1]
            raise HopInterpError(f"letter {name!r} is outside the alphabet a … {last}")
        return number

    def _hop_counts(self, hops: SupportsIndex | Int[Tensor, " batch"], batch_size: int) -> Int[Tensor, " batch"]:
        try:
            counts = torch.as_tensor(_number(hops))
        except (TypeError, ValueError, RuntimeError, OverflowError):  # as_tensor raises each of them
            raise HopInterpError(f"hops is {hops!r:.40}; it is a whole number or one a sequence") from None
        whole = not counts.is_floating_point() and counts.dtype != torch.bool
        if not whole or counts.ndim > 1 or (counts.ndim == 1 and len(counts) != batch_size):
            raise HopInterpError(f"hops must be a whole number or one for each of {batch_size} sequences; got {hops!r}")
        self.check_hops(int(counts.min()), int(counts.max()))
        return counts.long().expand(batch_size)

    def check_hops(self, *hops: int) -> None:
        """Raise HopInterpError unless every hop count is one of 0 … max_hops."""
        for k in hops:
            if not 0 <= k <= self.max_hops:
                raise HopInterpError(f"hops is {k}; this task has 0 to {self.max_hops}")

    def hop_count(self, hops: object) -> int:
        """One k as an int: any whole number (NumPy's and xarray's among them) of 0 … max_hops.

        Raises:
            HopInterpError: anything else.
        """
        k = _number(hops)
        if not isinstance(k, int) or isinstance(k, bool):
            raise HopInterpError(f"hops is {k!r}; it is one whole number from 0 to {self.max_hops}")
        self.check_hops(k)
        return k

    def hop_counts(self, hops: object = None) -> list[int]:
        """Several k as ints: one whole number, any iterable of them, or None for 0 … max_hops.

        Raises:
            HopInterpError: no values, or one that is no whole number of 0 … max_hops.
        """
        if hops is None:
            return list(range(self.max_hops + 1))
        several = isinstance(hops, Iterable) and not isinstance(hops, str) and getattr(hops, "ndim", 1) > 0
        given: Iterable[object] = hops if several else [hops]  # type: ignore[assignment]
        ks = [self.hop_count(k) for k in given]
        if not ks:
            raise HopInterpError("no values of k were given")
        return ks

    def _batch(self, letters: Int[Tensor, "batch n"], hops: Int[Tensor, " batch"]) -> Batch:
        find1 = find_one(letters)
        target = _find_power(find1, hops)
        tokens = torch.cat([hops[:, None], letters + self.first_letter], dim=1)
        labels = torch.where(target > 0, tokens.gather(1, target), self.null)
        labels[:, 0] = self.blank
        return Batch(task=self, tokens=tokens, labels=labels, find1=find1)

    def decode(self, batch: Batch, index: int = 0, position: int | None = None) -> str:
        """One sequence of a batch, its answers, and the chain of one position, for people to read.

        Args:
            index: which sequence.
            position: whose chain i → find¹(i) → … → find^k(i) is written out; the last by default.
        """
        tokens, labels = batch.tokens[index].tolist(), batch.labels[index].tolist()
        k = tokens[0]
        position = len(tokens) - 1 if position is None else position
        if not 1 <= position < len(tokens):
            raise HopInterpError(f"position is {position}; this sequence has 1 to {len(tokens) - 1}")
        width = max(len(str(len(tokens) - 1)), len(self.letter_name(self.alphabet_size - 1)))
        rows = {
            "i": [str(i) for i in range(1, len(tokens))],
            "X": [self.token_name(token) for token in tokens[1:]],
            f"hop_{k}(X)": [self.token_name(label) for label in labels[1:]],
        }
        margin = max(map(len, rows))
        lines = [f"{name:>{margin}}  " + " ".join(f"{cell:>{width}}" for cell in row) for name, row in rows.items()]
        return "\n".join([f"k = {k}", *lines, f"chain of {position}: {self._chain(batch, index, position, k)}"])

    def _chain(self, batch: Batch, index: int, position: int, k: int) -> str:
        links = batch.find[index, : k + 1, position].tolist()
        names = [f"{i} ({self.token_name(int(batch.tokens[index, i]))})" if i else "⊥" for i in links]
        return " → ".join(names[: names.index("⊥") + 1] if "⊥" in names else names)

    def token_name(self, token: int) -> str:
        """A token as people write it: a hop count "k=3", a letter "a", "⊥" for null, "_" for blank."""
        if token < self.first_letter:
            return f"k={token}"
        if token < self.null:
            return self.letter_name(token - self.first_letter)
        return {self.null: "⊥", self.blank: "_"}.get(token, f"<{token}>")


@dataclass(frozen=True, eq=False, repr=False)
class Batch(Shown):
    """Sequences of one task with their answers. Position 0 is the hop token; position i ≥ 1 is X_i.

    Attributes:
        tokens: [batch, position], (k, X_1 … X_n).
        labels: [batch, position], hop_k(X)_i; blank at position 0, null where find^k(i) = 0.
        find1: [batch, position], find¹(i); 0 where there is none, and at position 0.
    """

    task: HopTask
    tokens: Int[Tensor, "batch position"]
    labels: Int[Tensor, "batch position"]
    find1: Int[Tensor, "batch position"]

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: SupportsIndex | slice | Sequence[int] | Tensor) -> Batch:
        """Some of the sequences, as tensors are indexed; one number gives a batch of one."""
        rows = _number(index)
        if isinstance(rows, int):
            if not -len(self) <= rows < len(self):
                raise IndexError(f"sequence {rows} of {len(self)}")
            rows = [rows]
        return Batch(self.task, self.tokens[rows], self.labels[rows], self.find1[rows])

    def to(self, device: str | torch.device) -> Batch:
        """The same sequences on another device."""
        return Batch(self.task, self.tokens.to(device), self.labels.to(device), self.find1.to(device))

    @property
    def columns(self) -> list[str]:
        """Over `rows`: the last positions of the first sequence."""
        return ["i", *map(str, self._last)]

    @property
    def rows(self) -> list[Row]:
        """The first sequence: its letters, where each points, and the answers."""
        name, found = self.task.token_name, self.find1[0].tolist() if len(self) else []
        if not found:
            return []
        letters, answers = ([name(token) for token in tokens[0].tolist()] for tokens in (self.tokens, self.labels))
        cells = {"X": letters, "find¹(i)": [str(j or "–") for j in found], "answer": answers}
        return [(label, tuple(row[i] for i in self._last)) for label, row in cells.items()]

    @property
    def _last(self) -> range:
        """Positions that are shown."""
        length = self.tokens.shape[1]
        return range(max(1, length - _SHOWN), length)

    @property
    def reading(self) -> str:
        """How many sequences of what."""
        ks = sorted(set(self.hops.tolist()))
        asked = f"k = {ks[0]}" if len(ks) == 1 else f"k from {ks[0]} to {ks[-1]}" if ks else "no k"
        size = f"{self.tokens.shape[1] - 1} letters of {self.task.alphabet_size}"
        return f"{len(self)} sequence{'' if len(self) == 1 else 's'} of {size}, {asked}; shown: the end of the first."

    @property
    def letters(self) -> Int[Tensor, "batch n"]:
        """Letter numbers 0 … |Σ|−1 of X_1 … X_n."""
        return self.tokens[:, 1:] - self.task.first_letter

    @property
    def hops(self) -> Int[Tensor, " batch"]:
        """k of each sequence."""
        return self.tokens[:, 0]

    @cached_property
    def find(self) -> Int[Tensor, "batch hop position"]:
        """find^j(i) for j = 0 … max_hops, by composition of find¹; 0 means none."""
        batch, positions = self.tokens.shape
        powers = self.find1.new_empty(batch, self.task.max_hops + 1, positions)
        powers[:, 0] = torch.arange(positions, device=powers.device)
        for j in range(self.task.max_hops):
            torch.gather(self.find1, 1, powers[:, j], out=powers[:, j + 1])
        return powers

    @property
    def scored(self) -> Bool[Tensor, "batch position"]:
        """Positions that count for err_k: the label is neither null nor blank."""
        return (self.labels != self.task.null) & (self.labels != self.task.blank)

    @cached_property
    def no_repeats(self) -> Bool[Tensor, "batch position"]:
        """Scored positions on whose chain no letter repeats two hops apart: X_{find^j(i)} ≠ X_{find^(j+2)(i)}, j ≤ k − 2.

        A repeat lets a model know find^(j+2)(i) by other means than hopping; the theorem's worst case has none.
        """
        letters = self.hop_letters
        j = torch.arange(max(letters.shape[1] - 2, 0), device=letters.device)
        asked = (j <= self.hops[:, None] - 2)[..., None]
        return self.scored & ~((letters[:, :-2] == letters[:, 2:]) & asked).any(1)

    @cached_property
    def hop_letters(self) -> Int[Tensor, "batch hop position"]:
        """X_{find^j(i)} as a letter number 0 … |Σ|−1, or −1 where find^j(i) = 0."""
        letters = self.tokens - self.task.first_letter
        letters[:, 0] = -1
        return letters[:, None].expand_as(self.find).gather(2, self.find)

    def with_hops(self, hops: SupportsIndex) -> Batch:
        """The same sequences asked for another k."""
        return self.task.from_letters(self.letters, hops)


def _number(value: Any) -> Any:
    """What NumPy, torch or xarray wrap as a number without dimensions, unwrapped; anything else as it is."""
    return value.item() if getattr(value, "ndim", None) == 0 else value


def distinct_letters(
    n: int, alphabet_size: int, hops: Int[Tensor, " batch"], generator: torch.Generator
) -> tuple[Int[Tensor, "batch n"], Bool[Tensor, " batch"]]:
    """Sequences from the training distribution, given that on the chain of a position drawn evenly no letter repeats two
    hops apart; and where the chain fits: it has k links. Where it does not, the sequence is to be drawn again.

    From the position the letters are drawn backwards. Reversed, the sequence has the same distribution, and a chain is a
    series of waits for a letter: at find^j(i), with letter b, one waits for b, and the letter seen right before it (right
    after it, in the sequence) is that of hop j + 1. It is to be another than a, the letter of hop j − 1, from which the
    wait starts. From a that comes about with probability 1 − 2/|Σ|, from any other letter with 1 − 1/|Σ|: each step is drawn
    with these as weights. At the start of every wait they are the same, so that waits do not weigh upon each other.
    """
    batch, rows = len(hops), torch.arange(len(hops))
    start = torch.randint(n, (batch,), generator=generator)
    path = torch.empty(batch, 2 * n - 1, dtype=torch.long)  # the position is in the middle, at n − 1
    letter = torch.randint(alphabet_size, (batch,), generator=generator)
    path[:, n - 1] = current = awaited = letter
    avoided, done, length = torch.full_like(letter, -1), torch.zeros_like(letter), torch.zeros_like(letter)
    for step in range(1, n):
        weights = torch.full((batch, alphabet_size), 1 - 1 / alphabet_size)
        bound = (done > 0) & (done < hops)
        weights[rows[bound], avoided[bound]] = 1 - 2 / alphabet_size
        weights[rows[bound], awaited[bound]] = (current != avoided)[bound].float()
        weights[~bound] = 1
        weights[rows, current] = 0
        drawn = torch.multinomial(weights, 1, generator=generator)[:, 0]
        met = drawn == awaited
        done = done + met
        length = torch.where(met & (done == hops), step, length)
        avoided, awaited = torch.where(met, awaited, avoided), torch.where(met, current, awaited)
        path[:, n - 1 - step] = current = drawn
    onward = torch.randint(1, alphabet_size, (batch, n - 1), generator=generator).cumsum(1)
    path[:, n:] = (letter[:, None] + onward) % alphabet_size
    begin = n - 1 - start
    letters = path.gather(1, begin[:, None] + torch.arange(n))
    return letters, (done >= hops) & (length <= start)


def find_one(letters: Int[Tensor, "batch n"]) -> Int[Tensor, "batch position"]:
    """find¹(i) = max({0} ∪ {j ≤ i : X_{j−1} = X_i}) at every position, with position 0 (the hop token) set to 0.

    A stable sort by letter puts each position right behind the last earlier one of its letter, whatever |Σ|.
    """
    letter, order = letters.sort(dim=1, stable=True)
    same = letter[:, 1:] == letter[:, :-1]
    find1 = letters.new_zeros(len(letters), letters.shape[1] + 1)
    # a letter last seen at (1-based) position m points to m + 1; `order` counts from 0, so m = order + 1
    find1.scatter_(1, order[:, 1:] + 1, torch.where(same, order[:, :-1] + 2, 0))
    return find1


def _find_power(find1: Int[Tensor, "batch position"], hops: Int[Tensor, " batch"]) -> Int[Tensor, "batch position"]:
    """find^k with each sequence's own k, by repeated squaring."""
    result = torch.arange(find1.shape[1], device=find1.device).expand_as(find1)
    power, bits = find1, hops[:, None]
    for bit in range(int(hops.max()).bit_length()):
        if bit:
            power = power.gather(1, power)
        result = torch.where((bits >> bit) & 1 == 1, power.gather(1, result), result)
    return result
