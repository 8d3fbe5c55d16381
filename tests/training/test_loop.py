"""The training loop learns, repeats itself bit for bit, and refuses what cannot work."""

import pytest
import torch

import hopinterp as hi
from hopinterp import HopInterpError, HopTask, ModelSpec

TASK = HopTask(n_letters=12, alphabet_size=3, max_hops=2)
SPEC = ModelSpec.for_task(TASK, 2, d_model=32, n_heads=2)


def test_one_seed_one_model():
    one, same, other = (hi.train(SPEC, TASK, steps=5, batch_size=8, seed=seed) for seed in (0, 0, 1))
    assert all(torch.equal(one.parameters[name], same.parameters[name]) for name in one.parameters)
    assert not torch.equal(one.parameters["embed.W_E"], other.parameters["embed.W_E"])


def test_it_learns_one_hop():
    model = hi.train(SPEC, TASK, steps=600, batch_size=32, learning_rate=4e-3)
    untrained = hi.FusedTransformer(SPEC, SPEC.initial_parameters(0))
    learned, before = (float(hi.evaluate(m, TASK, hops=[1]).error[0]) for m in (model, untrained))
    assert learned < 0.2 < 0.5 < before


def test_an_identity_unembedding_stays():
    spec = ModelSpec.for_task(TASK, 1, d_model=32, n_heads=2, unembed="identity")
    model = hi.train(spec, TASK, steps=3, batch_size=4)
    spec.check_parameters(model.parameters)


def test_refusals():
    with pytest.raises(HopInterpError, match="diverged at step"):
        hi.train(SPEC, TASK, steps=50, batch_size=4, learning_rate=1e18)
    with pytest.raises(HopInterpError, match="must be above 0"):
        hi.train(SPEC, TASK, steps=0)
    with pytest.raises(HopInterpError, match="positions"):
        hi.train(SPEC, HopTask(n_letters=50, alphabet_size=3, max_hops=2))
