"""The fused pass against the hooked one: logits, gradients, activations; and when it must not be used."""

import pytest
import torch
import torch.nn.functional as F
from torch.nn.utils import prune

from hopinterp import HopInterpError, ModelSpec
from hopinterp.models.fused import FusedTransformer, pattern, resid_post, runner

SPECS = [
    ModelSpec(2, d_model=32, n_heads=4, n_ctx=22, d_vocab=11),
    ModelSpec(2, d_model=32, n_heads=4, n_ctx=22, d_vocab=30, act_fn="gelu_new", unembed="identity"),
    ModelSpec(2, d_model=32, n_heads=2, n_ctx=22, d_vocab=11, act_fn="relu", normalization_type="LNPre"),
    ModelSpec(
        3,
        d_model=32,
        n_heads=1,
        d_head=7,
        n_ctx=22,
        d_vocab=11,
        attn_only=True,
        normalization_type=None,
        use_attn_scale=False,
    ),
]


@pytest.mark.parametrize("spec", SPECS)
def test_logits_gradients_and_activations_equal_the_hooked_ones(spec, small_task):
    parameters = {
        name: p * (6 if "W_" in name and "embed.W_U" not in name else 1) for name, p in spec.initial_parameters(0).items()
    }
    hooked = spec.build(parameters)
    fused = FusedTransformer.of(hooked)
    batch = small_task.sample(8, seed=0)
    results = []
    for model in (hooked, fused):
        hooked.zero_grad()
        logits = model(batch.tokens)
        F.cross_entropy(logits.mT, batch.labels).backward()
        results.append((logits, {name: p.grad.clone() for name, p in hooked.named_parameters() if p.grad is not None}))
    (hooked_logits, hooked_gradients), (fused_logits, fused_gradients) = results
    assert hooked_logits.std() > 0.01
    assert torch.allclose(hooked_logits, fused_logits, atol=1e-5, rtol=0)
    assert hooked_gradients.keys() == fused_gradients.keys()
    for name, gradient in hooked_gradients.items():
        assert torch.allclose(gradient, fused_gradients[name], atol=1e-5, rtol=0), name
    names = [resid_post(1), pattern(0)]
    hooked_cache, fused_cache = (model.run_with_cache(batch.tokens, names_filter=names)[1] for model in (hooked, fused))
    for name in names:
        assert torch.allclose(hooked_cache[name], fused_cache[name], atol=1e-5), name


def test_the_twin_follows_updates(small_task):
    hooked = SPECS[0].build(SPECS[0].initial_parameters(0))
    fused = FusedTransformer.of(hooked)
    tokens = small_task.sample(2, seed=0).tokens
    before = fused(tokens)
    with torch.no_grad():
        hooked.W_E.add_(1.0 * torch.randn_like(hooked.W_E))
    assert not torch.allclose(before, fused(tokens))
    assert torch.allclose(hooked(tokens), fused(tokens), atol=1e-5)


def test_a_model_with_hooks_runs_hooked(small_task):
    """An ablation that a user attached must not be lost on the way to the fused pass."""
    hooked = SPECS[0].build(SPECS[0].initial_parameters(0))
    assert isinstance(runner(hooked, small_task), FusedTransformer)
    hooked.add_hook("blocks.0.hook_attn_out", lambda value, hook: value * 0)  # noqa: ARG005
    assert runner(hooked, small_task) is hooked
    hooked.reset_hooks()
    assert isinstance(runner(hooked, small_task), FusedTransformer)


def test_pytorch_hooks_and_pruning_are_not_lost_either(small_task):
    hooked = SPECS[0].build(SPECS[0].initial_parameters(0))
    handle = hooked.blocks[1].attn.register_forward_hook(lambda module, given, out: out * 0)  # noqa: ARG005
    assert runner(hooked, small_task) is hooked
    handle.remove()
    prune.l1_unstructured(hooked.blocks[0].mlp, "W_in", 0.5)
    assert runner(hooked, small_task) is hooked


def test_dropout_is_drawn_from_the_generator(small_model, small_task):
    tokens = small_task.sample(4, seed=0).tokens

    def run(seed):
        return small_model(tokens, dropout=0.2, generator=torch.Generator().manual_seed(seed))

    assert torch.equal(run(0), run(0))
    assert not torch.equal(run(0), run(1))
    assert not torch.equal(run(0), small_model(tokens))


def test_dropout_is_hugging_face_s(task):
    """Mean logits over many draws, GPT2Model in training mode against ours: same distribution, different generators."""
    from transformers import GPT2Config, GPT2Model

    from hopinterp.models import gpt2

    torch.manual_seed(0)
    config = GPT2Config(vocab_size=30, n_positions=100, n_embd=32, n_layer=1, n_head=2, attn_implementation="eager")
    theirs = GPT2Model(config).train()
    ours = gpt2.convert(theirs.state_dict(), n_heads=2)
    tokens = task.sample(1, seed=0).tokens.expand(400, -1)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        expected = theirs(tokens).last_hidden_state[..., :30]
        got = ours(tokens, dropout=0.1, generator=generator)
        still = ours(tokens[:1])
    assert torch.allclose(got.mean(0), expected.mean(0), atol=6 * float(expected.std(0).max()) / 20)
    assert torch.allclose(got.std(0).mean(), expected.std(0).mean(), rtol=0.03)
    assert got.std(0).mean() > 0.1 * still.std()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda m, t: m(t.sample(1, seed=0).tokens.repeat(1, 2)), "42 tokens were given; the model has 22 positions"),
        (lambda m, t: m(t.sample(1, seed=0).tokens, dropout=1.0), "dropout is 1.0"),
        (lambda m, t: m.run_with_cache(t.sample(1, seed=0).tokens, ["blocks.0.hook_mlp_out"]), "no activation"),
    ],
)
def test_bad_calls_are_named(call, words, small_model, small_task):
    with pytest.raises(HopInterpError, match=words):
        call(small_model, small_task)
