"""Counterfactual pairs keep what they promise, checked letter by letter with the definition of find."""

from itertools import pairwise

import pytest
import torch

from hopinterp import HopInterpError, HopTask
from hopinterp.evidence.patching.pairs import Pairs, choose_pairs, draw_pairs


def find(letters, i):
    """find¹ by the definition, positions from 1; 0 for none."""
    return max([0] + [j for j in range(2, i + 1) if letters[j - 2] == letters[i - 1]]) if i else 0


def chain(letters, i, k):
    found = [i]
    for _ in range(k):
        found.append(find(letters, found[-1]))
    return found


def each(pairs):
    """(clean letters, corrupt letters, i, right, wrong) of every pair, as numbers."""
    first = pairs.clean.task.first_letter
    for n in range(len(pairs)):
        clean, corrupt = ((batch.tokens[n, 1:] - first).tolist() for batch in (pairs.clean, pairs.corrupt))
        yield clean, corrupt, int(pairs.position[n]), int(pairs.right[n]) - first, int(pairs.wrong[n]) - first


@pytest.mark.parametrize("kind", ["resample", "one-link"])
@pytest.mark.parametrize("hops", [1, 3, 8])
def test_answers_are_letters_that_differ(task, kind, hops):
    pairs = draw_pairs(task, hops, 40, kind=kind, seed=hops)
    assert len(pairs) == 40
    assert pairs.hops == hops
    assert 0 <= pairs.redrawn < 0.8
    for n, (clean, corrupt, i, right, wrong) in enumerate(each(pairs)):
        ours, theirs = chain(clean, i, hops), chain(corrupt, i, hops)
        assert ours == pairs.chain[n].tolist()
        assert clean[ours[-1] - 1] == right != wrong == corrupt[theirs[-1] - 1]
        assert all(a != b for letters in (clean, corrupt) for a, b in pairwise(letters))


@pytest.mark.parametrize("link", [1, 2, 4, None])
def test_one_link_changes_one_letter_and_nothing_before_it(task, link):
    pairs = draw_pairs(task, 4, 40, kind="one-link", link=link, seed=1)
    assert pairs.link is not None
    assert set(pairs.link.tolist()) == ({link} if link else {1, 2, 3, 4})
    for (clean, corrupt, i, _, _), j in zip(each(pairs), pairs.link.tolist(), strict=True):
        ours, theirs = chain(clean, i, 4), chain(corrupt, i, 4)
        assert [p + 1 for p in range(98) if clean[p] != corrupt[p]] == [ours[j]]
        assert ours[: j + 1] == theirs[: j + 1]
        assert j == 4 or ours[j + 1] != theirs[j + 1]


def test_resampled_pairs_are_independent(task):
    pairs = draw_pairs(task, 4, 100, seed=0)
    agree = (pairs.clean.tokens[:, 1:] == pairs.corrupt.tokens[:, 1:]).double().mean()
    assert float(agree) == pytest.approx(0.25, abs=0.02)


def test_distinct_marks_places_that_play_two_parts(task):
    pairs = draw_pairs(task, 6, 60, seed=2)
    at, before = pairs.chain.tolist(), (pairs.chain - 1).tolist()
    for n in range(len(pairs)):
        for j in range(7):
            assert bool(pairs.distinct[n, j, 0]) == (at[n][j] not in before[n])
            assert bool(pairs.distinct[n, j, 1]) == (before[n][j] not in at[n])
    assert 0.2 < float((~pairs.distinct[:, 1:, 0]).double().mean()) < 0.45  # one link in three


def test_same_seed_same_pairs_and_a_given_position(task):
    a, b, c = (draw_pairs(task, 5, 10, kind="one-link", position=98, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(a.clean.tokens, b.clean.tokens)
    assert torch.equal(a.corrupt.tokens, b.corrupt.tokens)
    assert not torch.equal(a.clean.tokens, c.clean.tokens)
    assert a.position.tolist() == [98] * 10


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hops": 17}, "0 to 16"),
        ({"kind": "swap"}, "resample or one-link"),
        ({"link": 1}, "for one-link pairs"),
        ({"kind": "one-link", "link": 5}, "from 1 to k = 4"),
        ({"kind": "one-link", "hops": 0}, "no link to change"),
        ({"position": 99}, "1 to 98"),
        ({"position": 4}, "turned up"),
        ({"sequences": 0}, "of at least 1"),
    ],
)
def test_bad_requests(refuses, task, settings, message):
    with refuses(message):
        draw_pairs(task, **{"hops": 4, "sequences": 5} | settings)


def test_pairs_of_your_own_are_checked():
    task = HopTask(6, 4, 2)
    clean, corrupt = task.from_letters("abcabc", 1), task.from_letters("abdabd", 1)
    pairs = Pairs(clean, corrupt, torch.tensor([5]))  # b answers c, or d
    assert (int(pairs.right), int(pairs.wrong)) == (task.first_letter + 2, task.first_letter + 3)
    with pytest.raises(HopInterpError, match="letters and differ"):
        Pairs(clean, corrupt, torch.tensor([4]))
    with pytest.raises(HopInterpError, match="same k"):
        Pairs(clean, task.from_letters("abdabd", 2), torch.tensor([5]))
    with pytest.raises(HopInterpError, match="one shape"):
        Pairs(clean, task.from_letters("abdab", 1), torch.tensor([5]))


def test_settings_choose_the_pairs(task):
    drawn = choose_pairs(task, 4, 7, pairs="one-link", link=2, sequences=3)
    again = draw_pairs(task, 4, 3, kind="one-link", link=2, seed=7)
    assert torch.equal(drawn.clean.tokens, again.clean.tokens)
    assert torch.equal(drawn.corrupt.tokens, again.corrupt.tokens)
    assert drawn.settings == {"hops": 4, "pairs": "one-link", "sequences": 3, "redrawn": drawn.redrawn, "link": 2}
    assert choose_pairs(task, 4, 0, pairs=drawn) is drawn
    assert choose_pairs(task, 4, 0, sequences=2, lined_up=True).position.tolist() == [98, 98]
    assert choose_pairs(task, 4, 0, sequences=2, position=90, lined_up=True).position.tolist() == [90, 90]


def test_pairs_move_as_a_whole(task):
    pairs = draw_pairs(task, 4, 3, kind="one-link", seed=7)
    moved = pairs.to("cpu")
    for name in ("clean", "corrupt"):
        assert torch.equal(getattr(moved, name).labels, getattr(pairs, name).labels)
    assert torch.equal(moved.position, pairs.position)
    assert torch.equal(moved.link, pairs.link)
    assert (moved.kind, moved.redrawn) == ("one-link", pairs.redrawn)
