"""The fused pass against the hooked one: logits, gradients, activations; and when it must not be used."""

import pytest
import torch
import torch.nn.functional as F

from hopinterp import HopInterpError, ModelSpec
from hopinterp.models.fused import FusedTransformer
from hopinterp.models.hooks import pattern, resid_post

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


def loud(spec):
    """A HookedTransformer whose every parameter matters, biases and layer norms too: one that is forgotten shows."""
    generator = torch.Generator().manual_seed(0)
    parameters = {}
    for name, p in spec.initial_parameters(0).items():
        scaled = p * (6 if "W_" in name and "embed.W_U" not in name else 1)
        noise = 0.3 * torch.randn(p.shape, generator=generator)
        parameters[name] = scaled + noise * (p.ndim == 1 or ".b_" in name) if spec.is_trained(name) else p
    return spec.build(parameters)


@pytest.fixture(params=SPECS)
def both(request):
    """The hooked model and its fused twin."""
    model = loud(request.param)
    return model, FusedTransformer.of(model)


@pytest.fixture
def tokens(small_task):
    return small_task.sample(8, seed=0).tokens


def test_logits_and_gradients_equal_the_hooked_ones(both, small_task):
    batch = small_task.sample(8, seed=0)
    results = []
    for model in both:
        both[0].zero_grad()
        logits = model(batch.tokens)
        F.cross_entropy(logits.mT, batch.labels).backward()
        results.append((logits, {name: p.grad.clone() for name, p in both[0].named_parameters() if p.grad is not None}))
    (hooked_logits, hooked_gradients), (fused_logits, fused_gradients) = results
    assert hooked_logits.std() > 0.01
    assert torch.allclose(hooked_logits, fused_logits, atol=1e-5, rtol=0)
    assert hooked_gradients.keys() == fused_gradients.keys()
    for name, gradient in hooked_gradients.items():
        assert torch.allclose(gradient, fused_gradients[name], atol=1e-5, rtol=0), name


def test_every_activation_equals_the_hooked_one(both, tokens):
    """All that TransformerLens caches by default, in its order."""
    hooked, fused = both
    _, expected = hooked.run_with_cache(tokens)
    logits, cache = fused.run_with_cache(tokens)
    assert list(cache) == list(fused.hook_names) == list(expected)
    assert torch.allclose(logits, fused(tokens), atol=1e-6)
    for name, activation in cache.items():
        assert activation.shape == expected[name].shape, name
        assert torch.allclose(activation, expected[name], atol=1e-5, rtol=0), name


def test_names_are_chosen_as_transformer_lens_chooses_them(both, tokens):
    for names in ("hook_embed", ["blocks.1.hook_resid_post", pattern(0)], lambda name: name.endswith("hook_z")):
        hooked, fused = (model.run_with_cache(tokens, names_filter=names)[1] for model in both)
        assert list(hooked) == list(fused)


def test_keeping_the_stream_leaves_the_logits_as_they_are(both, tokens):
    """Bit for bit: evidence that keeps resid_post reports the same model."""
    _, fused = both
    assert torch.equal(fused.run_with_cache(tokens, [resid_post(0), resid_post(1)])[0], fused(tokens))


def test_gradients_of_every_activation_equal_the_hooked_ones(both, tokens):
    """As attribution patching takes them: with respect to activations that a hook kept, all of them at once."""
    kept = [{}, {}]
    for model, seen in zip(both, kept, strict=True):

        def keep(activation, hook, seen=seen):
            seen[hook.name] = activation

        logits = model.run_with_hooks(tokens, fwd_hooks=[(lambda name: "hook_resid" in name or "attn." in name, keep)])
        found = torch.autograd.grad(logits.square().sum(), list(seen.values()))
        seen |= dict(zip(seen, found, strict=True))
    for name, gradient in kept[0].items():
        size = float(gradient[gradient.isfinite()].abs().max())
        assert torch.allclose(gradient, kept[1][name], atol=1e-5 * max(1, size), rtol=0), name


def at(name):
    """Two hooks: twice the activation at one position, in place, with nothing returned; then some change everywhere."""

    def double(activation, hook):
        assert hook.name == name
        place = (slice(None), 0, 5) if name.endswith(("pattern", "scores")) else (slice(None), 5)
        activation[place] *= 2

    def shifted(activation, hook):  # noqa: ARG001 (TransformerLens calls it hook)
        return activation + 0.1 * activation.tanh()

    return [(name, double), (name, shifted)]


def test_patched_runs_equal_the_hooked_ones(both, tokens):
    """Two hooks at every place in turn, the first writing in place and returning nothing."""
    hooked, fused = both
    with torch.no_grad():
        plain = fused(tokens)
        for name in fused.hook_names:
            expected = hooked.run_with_hooks(tokens, fwd_hooks=at(name))
            got = fused.run_with_hooks(tokens, fwd_hooks=at(name))
            assert torch.allclose(got, expected, atol=2e-5, rtol=1e-5), name
            assert not torch.allclose(got, plain, atol=1e-4), name
        assert torch.equal(fused(tokens), plain)


def test_a_query_with_nothing_to_look_at_gathers_nothing(both, tokens):
    """Attention knocked out in the scores, whole rows of them."""
    knock_out = [("blocks.0.attn.hook_attn_scores", lambda scores, hook: scores.masked_fill(scores < 9, -torch.inf))]  # noqa: ARG005
    expected, got = (model.run_with_hooks(tokens, fwd_hooks=knock_out) for model in both)
    assert expected.isfinite().all()
    assert torch.allclose(got, expected, atol=1e-5)


def test_hooks_write_to_no_parameter(both, tokens):
    """TransformerLens hands out a copy of the position embeddings, and so do we."""
    _, fused = both
    before = {name: p.clone() for name, p in fused.parameters.items()}
    with torch.no_grad():
        fused.run_with_hooks(tokens, fwd_hooks=[(lambda name: True, lambda x, hook: x.zero_())])  # noqa: ARG005
    assert all(torch.equal(p, before[name]) for name, p in fused.parameters.items())


def test_hooks_come_off_whatever_happens(small_model, small_task):
    tokens = small_task.sample(2, seed=0).tokens
    plain, seen = small_model(tokens), []

    def note(activation, hook):  # noqa: ARG001
        seen.append((hook.name, hook.layer()))

    def fail(activation, hook):  # noqa: ARG001
        raise ValueError(hook.name)

    with small_model.hooks(fwd_hooks=[(resid_post(1), note)]) as hooked:
        assert hooked is small_model
        assert small_model.is_hooked
        with pytest.raises(ValueError, match="hook_z"), small_model.hooks([("blocks.0.attn.hook_z", fail)]):
            small_model(tokens)
        small_model(tokens)
    assert seen == [(resid_post(1), 1)]
    assert not small_model.is_hooked
    assert torch.equal(small_model(tokens), plain)
    with pytest.raises(HopInterpError), small_model.hooks([(resid_post(1), note), ("hook_nothing", note)]):
        pass
    assert not small_model.is_hooked


def test_the_twin_follows_updates(small_task):
    hooked = SPECS[0].build(SPECS[0].initial_parameters(0))
    fused = FusedTransformer.of(hooked)
    tokens = small_task.sample(2, seed=0).tokens
    before = fused(tokens)
    with torch.no_grad():
        hooked.W_E.add_(1.0 * torch.randn_like(hooked.W_E))
    assert not torch.allclose(before, fused(tokens))
    assert torch.allclose(hooked(tokens), fused(tokens), atol=1e-5)


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
        (lambda m, t: m.run_with_cache(t.sample(1, seed=0).tokens, ["blocks.2.hook_mlp_out"]), "no activation 'blocks.2"),
        (
            lambda m, t: m.run_with_hooks(t.sample(1, seed=0).tokens, [("blocks.0.hook_z", print)]),
            "attn.hook_z, hook_attn_out",
        ),
    ],
)
def test_bad_calls_are_named(call, words, small_model, small_task):
    with pytest.raises(HopInterpError, match=words):
        call(small_model, small_task)
