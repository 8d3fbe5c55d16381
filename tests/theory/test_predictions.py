"""What "r hops done" predicts, letter by letter by the definition of find."""

import torch

from hopinterp.evidence.transplants.pairs import MatchedPairs
from hopinterp.theory.predictions import FAMILIES, predicted


def chain(letters, hops, i):
    """find^hops(i) by the definition; letters[0] is no letter."""
    for _ in range(hops):
        i = max([0] + [j for j in range(2, i + 1) if letters[j - 1] == letters[i]]) if i else 0
    return i


def behind_the_same_occurrence(base, source, q, i):
    """Where the next hop leads if q's letter and its occurrence number were carried: behind the occurrence before."""
    places = [p for p in range(1, len(base)) if base[p] == source[q]]
    number = source[1 : q + 1].count(source[q])
    link = places[number - 2] + 1 if 2 <= number <= len(places) + 1 else 0
    return link if link < i else 0


def test_predictions_are_the_definition_s(small_task):
    k, pairs = 3, MatchedPairs.draw(small_task, 3, 6, "nothing", seed=4)
    base, source = ([[None, *row] for row in x.hop_letters[:, 0, 1:].tolist()] for x in (pairs.base, pairs.source))
    found, seen = predicted(pairs.base, pairs.source, k), [0, 0, 0]
    for n in range(6):
        for r in range(k + 1):
            for i in range(1, 21):
                q = chain(source[n], r, i)
                end = chain(base[n], k - r, q)
                pointer = base[n][end] if end else -1
                other = list(base[n])
                if q:
                    other[q] = source[n][q]
                impossible = q > 1 and other[q - 1] == other[q] and r < k
                end = 0 if impossible else chain(other, k - r, q)
                content = other[end] if end else -1
                end = chain(base[n], k - r - 1, behind_the_same_occurrence(base[n], source[n], q, i)) if q and r < k else 0
                occurrence = base[n][end] if end else (source[n][q] if q and r == k else -1)
                assert found[n, :, r, i].tolist() == [pointer, content, occurrence]
                seen = [count + (letter >= 0) for count, letter in zip(seen, (pointer, content, occurrence), strict=True)]
    assert min(seen) > 100


def test_next_agrees_keeps_what_the_source_says_too(small_task):
    k, pairs = 3, MatchedPairs.draw(small_task, 3, 40, "nothing", seed=4)
    every, kept = (predicted(pairs.base, pairs.source, k, agrees) for agrees in (False, True))
    assert (kept[:, :, 2] == -1).all()  # the same as r = 3
    assert torch.equal(kept[:, :, 3], every[:, :, 3])
    for r in (0, 1):
        onward = predicted(pairs.base.with_hops(r + 1), pairs.source.with_hops(r + 1), r + 1)[:, :, r]
        agrees = onward == pairs.source.hop_letters[:, r + 1][:, None]
        assert torch.equal(kept[:, :, r], every[:, :, r].where(agrees, -1))
        assert 50 < (kept[:, 1, r] >= 0).sum() < (every[:, 1, r] >= 0).sum() / 2


def test_the_families_agree_where_they_must(task):
    """All hops done: content and occurrence are the source's own answer; none done: the pointer is the base's."""
    pairs = MatchedPairs.draw(task, 5, 20, "nothing", seed=1)
    found = dict(zip(FAMILIES, predicted(pairs.base, pairs.source, 5).unbind(1), strict=True))
    assert torch.equal(found["pointer"][:, 0], pairs.base.hop_letters[:, 5])
    for family in ("content", "occurrence"):
        assert torch.equal(found[family][:, 5], pairs.source.hop_letters[:, 5])
    same = predicted(pairs.base, pairs.base, 5)
    assert (same == pairs.base.hop_letters[:, 5][:, None, None]).all()  # nothing is transplanted
