"""The timetable asks what it says, when it says."""

import math
from dataclasses import replace

import pytest
import torch

from hopinterp import TrainConfig
from hopinterp.training.curriculum import Curriculum

CONFIG = TrainConfig(
    layers=2, letters=30, max_hops=8, steps=1000, batch=512, short_until=(0.2, 0.5), even_tokens=False, focus=0.0
)


def drawn(curriculum, step, seed=0):
    return curriculum.draw(step, torch.Generator().manual_seed(seed))


def test_lengths_and_offsets():
    curriculum = Curriculum(CONFIG)
    for step, letters in ((0, 10), (199, 10), (200, 20), (499, 20), (500, 30), (999, 30)):
        batch, positions = drawn(curriculum, step)
        assert batch.tokens.shape[1] == letters + 1
        if letters == 30:
            assert positions is None
            continue
        assert (positions[:, 0] == 0).all()
        assert (positions[:, 2:] - positions[:, 1:-1] == 1).all()
        assert positions[:, 1].min() == 1
        assert positions[:, -1].max() == 30


def test_draws_follow_the_errors_and_leave_out_what_was_not_reached():
    curriculum = Curriculum(CONFIG, largest=2, errors=torch.tensor([0.0, 0.0, 0.48, *[1.0] * 6]))
    counts = drawn(curriculum, 600)[0].hops.bincount(minlength=9) / 512
    assert counts[2] > 0.7  # (0.48 + 0.02) / 0.54 of the nine tenths that are not uniform
    assert 0 < counts[3:].sum() < 0.15


def test_short_batches_have_as_many_tokens_as_long_ones():
    curriculum = Curriculum(replace(CONFIG, even_tokens=True))
    for step, letters, count in ((0, 10, 512 * 31 // 11), (300, 20, 512 * 31 // 21), (500, 30, 512)):
        batch, positions = drawn(curriculum, step)
        assert batch.tokens.shape == (count, letters + 1)
        assert positions is None or len(positions) == count


def test_focus_holds_back_what_lies_beyond_errors():
    errors = torch.tensor([0.0, 0.0, 0.48, *[1.0] * 6])
    shares = {}
    for focus in (0.0, 4.0):
        drawing = Curriculum(replace(CONFIG, focus=focus), largest=3, errors=errors)
        counts = torch.stack([drawn(drawing, 600, seed)[0].hops.bincount(minlength=9) for seed in range(10)]).sum(0)
        shares[focus] = float(counts[3] / counts[2])
    uniform = 0.1 / 9
    plain = 0.9 * torch.tensor([0.02, 0.02, 0.5, 1.02]) / 1.56 + uniform
    held = torch.tensor([0.02, 0.02, 0.5, 1.02 * math.exp(-4 * 0.48)])
    held = 0.9 * held / held.sum() + uniform
    assert shares[0.0] == pytest.approx(float(plain[3] / plain[2]), rel=0.1)
    assert shares[4.0] == pytest.approx(float(held[3] / held[2]), rel=0.1)


def test_the_end_is_the_task_s_own_distribution():
    curriculum = Curriculum(CONFIG, largest=2)
    counts = torch.stack([drawn(curriculum, 900, seed)[0].hops.bincount(minlength=9) for seed in range(10)]).sum(0) / 5120
    assert torch.allclose(counts, torch.tensor(1 / 9), atol=0.02)
    halfway = drawn(curriculum, 800)[0].hops.bincount(minlength=9)[3:].sum() / 512
    assert 0.2 < halfway < 0.5  # half of the draws are uniform here, and 6 of 9 values of k lie beyond K


def test_it_grows_by_one_when_the_hardest_is_learned():
    curriculum = Curriculum(CONFIG)
    assert curriculum.largest == 1
    asked = torch.ones(512, dtype=torch.long)
    curriculum.update(asked, wrong=torch.full((512,), 5), scored=torch.full((512,), 20), step=0)
    assert curriculum.largest == 1
    curriculum.update(asked, wrong=torch.full((512,), 3), scored=torch.full((512,), 20), step=0)
    assert curriculum.largest == 2
    curriculum.errors[:] = 0
    curriculum.update(asked, wrong=torch.zeros(512, dtype=torch.long), scored=torch.full((512,), 20), step=0)
    assert curriculum.largest == 2  # ten letters are too few for chains of three
    curriculum.update(asked, wrong=torch.zeros(512, dtype=torch.long), scored=torch.full((512,), 20), step=999)
    assert curriculum.largest == 3


def test_without_a_curriculum_every_k_is_asked_from_the_start():
    config = TrainConfig(layers=2, letters=30, max_hops=8, curriculum=False, short_until=(0.0, 0.0), batch=512)
    batch, positions = drawn(Curriculum(config), 0)
    assert positions is None
    assert (batch.hops.bincount(minlength=9) > 20).all()
