"""The task against its definition, written out by brute force."""

import random

import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from hopinterp import HopInterpError, HopTask


def find_by_definition(letters: list[int], i: int) -> int:
    """find¹(i) = max({0} ∪ {j ≤ i : X_{j−1} = X_i}), positions from 1."""
    return max([0] + [j for j in range(2, i + 1) if letters[j - 2] == letters[i - 1]])


def chain_by_definition(letters: list[int], i: int, k: int) -> list[int]:
    chain = [i]
    for _ in range(k):
        chain.append(find_by_definition(letters, chain[-1]) if chain[-1] else 0)
    return chain


@pytest.mark.parametrize("repeats", [False, True])
def test_find_and_labels_are_the_definition_s(repeats):
    draw = random.Random(0)
    for trial in range(40):
        n, size, max_hops = draw.randint(1, 40), draw.randint(2, 30), draw.randint(0, 9)
        task = HopTask(n, size, max_hops)
        if repeats:
            k = draw.randint(0, max_hops)
            batch = task.from_letters([[draw.randrange(size) for _ in range(n)] for _ in range(3)], k)
        else:
            batch = task.sample(3, seed=trial)
        for row in range(3):
            letters = batch.letters[row].tolist()
            k = int(batch.tokens[row, 0])
            assert batch.labels[row, 0] == task.blank
            for i in range(1, n + 1):
                chain = chain_by_definition(letters, i, max_hops)
                assert batch.find[row, :, i].tolist() == chain
                answer = task.first_letter + letters[chain[k] - 1] if chain[k] else task.null
                assert batch.labels[row, i] == answer
                assert batch.hop_letters[row, :, i].tolist() == [letters[j - 1] if j else -1 for j in chain]
            assert batch.find[row, :, 0].tolist() == [0] * (max_hops + 1)


def test_a_repeated_letter_can_be_its_own_find():
    batch = HopTask(4, 2, 2).from_letters("abb", 1)
    assert batch.find[0, 1].tolist() == [0, 0, 0, 3]


def test_tokens_are_the_paper_s():
    task = HopTask()
    assert (task.first_letter, task.null, task.blank, task.d_vocab, task.n_positions) == (17, 21, 22, 23, 99)
    batch = task.from_letters("abcab", 1)
    assert batch.tokens.tolist() == [[1, 17, 18, 19, 17, 18]]
    assert batch.labels.tolist() == [[22, 21, 21, 21, 18, 19]]


def test_training_distribution():
    task = HopTask(98, 4, 16)
    batch = task.sample(4000, seed=0)
    letters = batch.letters
    assert (letters[:, 1:] != letters[:, :-1]).all()
    for counts in (letters[:, 0].bincount(minlength=4), letters[:, 50].bincount(minlength=4)):
        assert torch.allclose(counts / 4000, torch.tensor(0.25), atol=0.04)
    steps = ((letters[:, 1:] - letters[:, :-1]) % 4).flatten().bincount(minlength=4) / (4000 * 97)
    assert torch.allclose(steps, torch.tensor([0, 1 / 3, 1 / 3, 1 / 3]), atol=0.01)
    assert torch.allclose(batch.hops.bincount(minlength=17) / 4000, torch.tensor(1 / 17), atol=0.02)


def no_repeats_by_definition(letters: list[int], i: int, k: int) -> bool:
    chain = chain_by_definition(letters, i, k)
    named = [letters[j - 1] for j in chain]
    return chain[k] > 0 and all(named[j] != named[j + 2] for j in range(k - 1))


def test_chains_without_a_repeat_are_the_definition_s():
    task = HopTask(30, 4, 5)
    for k in range(6):
        for batch in (task.sample(4, hops=k, seed=k), task.sample(4, hops=k, seed=k, distinct=True)):
            for row in range(4):
                wanted = [no_repeats_by_definition(batch.letters[row].tolist(), i, k) for i in range(1, 31)]
                assert batch.no_repeats[row].tolist() == [False, *wanted]
    assert HopTask(5, 3, 0).sample(2, hops=0, seed=0).no_repeats[:, 1:].all()


@pytest.mark.parametrize("alphabet_size", [3, 4])
def test_distinct_sequences_are_the_training_ones_that_have_such_a_position(alphabet_size):
    """Against rejection: plain sequences, each counted once for every such position."""
    task = HopTask(12, alphabet_size, 3)
    plain, drawn = task.sample(60_000, hops=3, seed=0), task.sample(12_000, hops=3, seed=1, distinct=True)
    asked = drawn.no_repeats.double()
    assert (asked.sum(1) >= 1).all()
    weights = (plain.no_repeats.double(), asked / asked.sum(1, keepdim=True))
    own = torch.arange(task.n_positions)

    def seen(batch, weight):
        total = weight.sum()
        where = weight.sum(0) / total
        span = ((own - batch.find[:, 3]) * weight).sum() / total
        after = ((batch.letters[:, -1] == batch.letters[:, -3]) * weight.sum(1)).sum() / total
        return torch.cat([where, span[None] / 10, after[None]])

    by_rejection, direct = (seen(batch, weight) for batch, weight in zip((plain, drawn), weights, strict=True))
    assert torch.allclose(by_rejection, direct, atol=0.02)


def test_sixteen_hops_without_a_repeat_are_found(task):
    hops = torch.tensor([16, 2, 9])
    batch = task.sample(3, hops=hops, seed=0, distinct=True)
    assert batch.hops.tolist() == hops.tolist()
    assert batch.no_repeats.any(1).all()
    assert (batch.letters[:, 1:] != batch.letters[:, :-1]).all()
    assert torch.equal(batch.tokens, task.sample(3, hops=hops, seed=0, distinct=True).tokens)
    for impossible in (HopTask(98, 2, 4), HopTask(8, 4, 4)):
        assert impossible.sample(3, hops=1, seed=0, distinct=True).no_repeats.any(1).all()
        with pytest.raises(HopInterpError, match="no chain of 4 hops"):
            impossible.sample(3, hops=4, seed=0, distinct=True)


def test_one_seed_one_batch_and_the_same_letters_for_every_k(task):
    first, again = task.sample(5, seed=1), task.sample(5, seed=1)
    assert torch.equal(first.tokens, again.tokens)
    assert not torch.equal(first.tokens, task.sample(5, seed=2).tokens)
    four, seven = task.sample(5, hops=4, seed=1), task.sample(5, hops=7, seed=1)
    assert torch.equal(four.tokens[:, 1:], seven.tokens[:, 1:])
    assert torch.equal(four.with_hops(7).labels, seven.labels)


def test_hops_for_each_sequence(task):
    hops = torch.tensor([0, 3, 16])
    batch = task.sample(3, hops=hops, seed=0)
    assert torch.equal(batch.hops, hops)
    for row, k in enumerate(hops.tolist()):
        alone = task.from_letters(batch.letters[row], k)
        assert torch.equal(alone.labels[0], batch.labels[row])


def test_decode_prints_the_chain():
    task = HopTask(12, 4, 3)
    text = task.decode(task.from_letters("abcadbacb", 2), position=9)
    assert text.splitlines() == [
        "k = 2",
        "       i  1 2 3 4 5 6 7 8 9",
        "       X  a b c a d b a c b",
        "hop_2(X)  ⊥ ⊥ ⊥ ⊥ ⊥ ⊥ ⊥ b d",
        "chain of 9: 9 (b) → 7 (a) → 5 (d)",
    ]
    assert task.decode(task.from_letters("abcadbacb", 3), position=6).endswith("chain of 6: 6 (b) → 3 (c) → ⊥")


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: HopTask(0), "n_letters is 0"),
        (lambda: HopTask(98, 1), "alphabet_size is 1"),
        (lambda: HopTask(98, 4, 2.5), "max_hops is 2.5"),
        (lambda: HopTask().sample(1, hops=17, seed=0), "hops is 17"),
        (lambda: HopTask().sample(1, hops=-1, seed=0), "hops is -1"),
        (lambda: HopTask().sample(1, hops=True, seed=0), "got True"),
        (lambda: HopTask().sample(1, hops=1.0, seed=0), "got 1.0"),
        (lambda: HopTask().sample(0, seed=0), "batch_size is 0"),
        (lambda: HopTask().sample(1), "needs a seed"),
        (lambda: HopTask().from_letters("abe", 1), "'e' is outside the alphabet a … d"),
        (lambda: HopTask().from_letters([[0, 4]], 1), "letter 4 at position 2 is outside"),
        (lambda: HopTask().from_letters([[0, 1], [0]], 1), "one length"),
        (lambda: HopTask(3).from_letters("abab", 1), "4 letters was given"),
        (lambda: HopTask().from_letters(torch.tensor([0.5]), 1), "whole numbers"),
        (lambda: HopTask().from_letters("", 1), "0 letters"),
    ],
)
def test_bad_input_is_named(refuses, call, words):
    with refuses(words):
        call()


def test_work_grows_with_the_batch_not_with_python():
    """No Python loop over sequences or positions: the count of Python-level torch calls does not depend on the batch."""
    import gc
    import sys

    def calls(batch_size: int) -> int:
        count = 0

        def tally(_frame, event, _arg):
            nonlocal count
            count += event == "c_call"

        gc.disable()  # what other tests left to be collected would be counted too
        sys.setprofile(tally)
        try:
            _ = HopTask().sample(batch_size, hops=8, seed=0).find
        finally:
            sys.setprofile(None)
            gc.enable()
        return count

    for size in (2, 200):
        calls(size)  # what is set up once, and the shapes of this size, which are checked once while tests run
    assert calls(2) == calls(200)


@given(letters=st.lists(st.integers(0, 3), min_size=1, max_size=30), hops=st.integers(0, 16))
def test_find_is_its_definition_on_any_sequence(letters, hops):
    """find¹(i) = max({0} ∪ {j ≤ i : X_{j−1} = X_i}), composed, repeated neighbours included."""
    batch = HopTask(30).from_letters([letters], hops)
    word = [None, *letters]  # positions count from 1
    find1 = [0] + [max((j for j in range(2, i + 1) if word[j - 1] == word[i]), default=0) for i in range(1, len(word))]
    for i in range(1, len(word)):
        j = i
        for _ in range(hops):
            j = find1[j]
        assert int(batch.find[0, hops, i]) == j
        assert int(batch.labels[0, i]) == (word[j] + HopTask().first_letter if j else HopTask().null)


@given(seed=st.integers(0, 2**32 - 1), batch_size=st.integers(1, 5))
def test_training_sequences_have_no_repeated_neighbours_and_chains_that_fall(seed, batch_size):
    batch = HopTask(20).sample(batch_size, seed=seed)
    assert (batch.letters[:, 1:] != batch.letters[:, :-1]).all()
    assert ((batch.find[:, 1:] < batch.find[:, :-1]) | (batch.find[:, 1:] == 0)).all()


def test_batches_are_indexed_moved_and_read_as_letters():
    batch = HopTask(10).sample(6, seed=0)
    assert torch.equal(batch.letters, batch.tokens[:, 1:] - batch.task.first_letter)
    chosen = torch.tensor([True, False, True, False, False, False])
    for index, rows in (
        (2, [2]),
        (-1, [5]),
        (np.int64(2), [2]),
        (torch.tensor(3), [3]),
        (slice(1, 3), [1, 2]),
        ([4, 0], [4, 0]),
        (chosen, [0, 2]),
    ):
        some = batch[index]
        assert torch.equal(some.tokens, batch.tokens[rows])
        assert torch.equal(some.labels, batch.labels[rows])
        assert torch.equal(some.find, batch.find[rows])
    for outside in (6, -7):
        with pytest.raises(IndexError):
            batch[outside]
    assert batch.to("meta").tokens.device.type == "meta"


@given(seed=st.integers(0, 2**32 - 1), size=st.integers(2, 30), hops=st.integers(0, 16))
def test_letters_and_from_letters_are_inverses(seed, size, hops):
    batch = HopTask(15, size).sample(3, hops=hops, seed=seed)
    again = batch.task.from_letters(batch.letters, hops)
    assert torch.equal(again.tokens, batch.tokens)
    assert torch.equal(again.labels, batch.labels)
    assert torch.equal(again.letters, batch.letters)


def test_hop_counts_of_any_kind(refuses):
    task = HopTask(max_hops=4)
    one = xr.DataArray([3], {"hops": [3]})["hops"]
    assert task.hop_count(np.int64(3)) == task.hop_count(torch.tensor(3)) == task.hop_count(one[0]) == 3
    assert task.hop_counts() == [0, 1, 2, 3, 4]
    assert task.hop_counts(np.int64(3)) == task.hop_counts(one) == task.hop_counts(one[0]) == [3]
    assert task.hop_counts(np.arange(1, 3)) == task.hop_counts(x for x in (1, 2)) == [1, 2]
    values = (True, np.True_, torch.tensor(True), 1.0, np.float64(1), "2", None, [2], np.array([2]), torch.tensor([2]))
    for bad in values:
        with refuses("one whole number from 0 to 4"):
            task.hop_count(bad)
    lists = (([], "no values"), ([True], "True"), ([1, 2.0], "2.0"), ("12", "'12'"), (5, "0 to 4"), (-1, "-1"))
    for several, words in lists:
        with refuses(words):
            task.hop_counts(several)
