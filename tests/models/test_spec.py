"""Sizes, parameter counts and initial weights."""

import pytest
import torch
from transformers import GPT2Config, GPT2Model

from hopinterp import HopInterpError, HopTask, ModelSpec

TABLE_3 = {
    (2, 4): 413_440,
    (3, 4): 611_712,
    (4, 4): 809_984,
    (5, 4): 1_008_256,
    (6, 4): 1_206_528,
    (2, 8): 1_613_312,
    (3, 8): 2_403_072,
    (4, 8): 3_192_832,
    (5, 8): 3_982_592,
    (6, 8): 4_772_352,
}


@pytest.mark.parametrize(("depth", "heads"), TABLE_3)
def test_the_paper_s_parameter_counts(depth, heads):
    spec = ModelSpec.paper(depth, heads)
    assert spec.n_parameters == TABLE_3[depth, heads]


def test_counts_are_those_of_the_paper_s_own_architecture():
    config = GPT2Config(vocab_size=30, n_positions=100, n_embd=128, n_layer=3, n_head=4)
    assert GPT2Model(config).num_parameters() == ModelSpec.paper(3).n_parameters


@pytest.mark.parametrize(
    "spec",
    [
        ModelSpec.paper(2),
        ModelSpec(2, d_model=32, n_heads=2, d_vocab=23),
        ModelSpec(1, d_model=32, n_heads=2, d_head=5, attn_only=True, normalization_type=None, use_attn_scale=False),
        ModelSpec(1, d_model=32, n_heads=2, normalization_type="LNPre", act_fn="relu"),
    ],
)
def test_hooked_transformer_has_these_parameters_and_gives_the_spec_back(spec):
    model = spec.build(spec.initial_parameters(0))
    named = {name: tuple(p.shape) for name, p in model.named_parameters()}
    assert named == spec.parameter_shapes()
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == spec.n_parameters
    assert ModelSpec.from_model(model) == spec
    assert ModelSpec.from_dict(spec.to_dict()) == spec


def test_initial_weights_come_from_the_seed():
    spec = ModelSpec(2, d_model=32, n_heads=2)
    one, same, other = (spec.initial_parameters(seed) for seed in (0, 0, 1))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["embed.W_E"], other["embed.W_E"])
    assert one["blocks.0.attn.W_Q"].std() == pytest.approx(0.02, rel=0.1)
    assert one["blocks.0.mlp.W_out"].std() == pytest.approx(0.01, rel=0.1)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: ModelSpec(2, n_heads=3), "3 heads were given; they must divide d_model = 128"),
        (lambda: ModelSpec(0), "n_layers is 0"),
        (lambda: ModelSpec(2, act_fn="tanh"), "act_fn is 'tanh'"),
        (lambda: ModelSpec(2, d_model=16, n_heads=2, d_vocab=30, unembed="identity"), "d_vocab ≤ d_model"),
        (lambda: ModelSpec.paper(2, heads=5), "4 or 8 heads"),
        (lambda: ModelSpec.from_dict({"n_layers": 2, "depth": 3}), "no field"),
    ],
)
def test_bad_sizes_are_named(call, words):
    with pytest.raises(HopInterpError, match=words):
        call()


def test_a_feature_that_a_spec_does_not_carry_is_refused():
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    sizes = {"n_layers": 1, "d_model": 16, "d_head": 8, "n_ctx": 10, "d_vocab": 10, "act_fn": "gelu", "device": "cpu"}
    model = HookedTransformer(HookedTransformerConfig(**sizes, positional_embedding_type="rotary", rotary_dim=8))
    with pytest.raises(HopInterpError, match="positional_embedding_type = 'rotary'"):
        ModelSpec.from_model(model)


def test_for_task_fits_the_task():
    task = HopTask(30, 26, 8)
    spec = ModelSpec.for_task(task, 3)
    assert (spec.n_ctx, spec.d_vocab) == (32, task.d_vocab)
