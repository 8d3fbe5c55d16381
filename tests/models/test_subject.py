"""Whatever is a model is read as one, with the hooks that are on it; whatever is none is refused in one line."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import prune
from transformers import GPT2Config, GPT2LMHeadModel, GPT2Model

import hopinterp as hi
from hopinterp import HopInterpError, HopTask, ModelSpec
from hopinterp.models import bridge, store
from hopinterp.models.fused import FusedTransformer
from hopinterp.models.hooks import SITES, pattern, resid_post
from hopinterp.models.subject import Subject

SPECS = [
    ModelSpec(2, d_model=32, n_heads=4, n_ctx=22, d_vocab=11),
    ModelSpec(2, d_model=32, n_heads=2, n_ctx=22, d_vocab=11, act_fn="relu", normalization_type="LNPre", eps=0.1),
    ModelSpec(2, d_model=32, n_heads=4, n_ctx=22, d_vocab=30, act_fn="gelu_new", unembed="identity"),
    ModelSpec(2, d_model=32, n_heads=1, d_head=7, n_ctx=22, d_vocab=11, attn_only=True, normalization_type=None),
    ModelSpec(1, d_model=32, n_heads=2, n_ctx=22, d_vocab=11, use_attn_scale=False),
]


def drawn(spec, seed=3):
    """A model whose patterns and logits are far from uniform."""
    generator = torch.Generator().manual_seed(seed)
    parameters = spec.initial_parameters(seed)
    for name, p in parameters.items():
        if spec.is_trained(name):
            p.mul_(8 if "W_" in name else 1).add_(0.1 * torch.randn(p.shape, generator=generator))
    return FusedTransformer(spec, parameters)


def native(model):
    """A bridge with a model's weights, as TransformerLens 4 has them."""
    return model.spec._bridge(model.parameters)


def gpt2_module(head=True, tie=False):
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=30, n_positions=22, n_embd=32, n_layer=2, n_head=4, tie_word_embeddings=tie)
    module = (GPT2LMHeadModel if head else GPT2Model)(config).eval()
    with torch.no_grad():
        for p in module.parameters():
            p.mul_(4).add_(0.1 * torch.randn_like(p))
    return module


def bridged(module, directory):
    from transformer_lens.model_bridge import TransformerBridge

    module.save_pretrained(directory)
    return TransformerBridge.boot_transformers(str(directory), hf_model=module)


@pytest.fixture
def tokens(small_task):
    return small_task.sample(3, seed=0).tokens


def close(a, b):
    return torch.allclose(a, b, rtol=0, atol=1e-5 * max(1.0, float(b.detach().abs().max())))


@pytest.mark.parametrize("spec", SPECS)
def test_a_native_bridge_and_its_weights_are_one_function(spec, tokens):
    """boot_native with our weights: read back they are the same, to the bit."""
    model = drawn(spec)
    made = native(model)
    subject = Subject.of(made)
    assert close(made(tokens), model(tokens))
    assert subject.weights is not None
    assert subject.weights.spec == spec
    assert all(torch.equal(subject.weights.parameters[name], p) for name, p in model.parameters.items())
    assert subject.processing == Subject.of(model).processing
    assert model(tokens).std() > 0.1


@pytest.mark.parametrize("mode", ["as booted", "compatible", "processed"])
def test_a_bridge_on_hugging_face_s_gpt2(mode, tmp_path, tokens):
    module = gpt2_module()
    made = bridged(module, tmp_path)
    if mode != "as booted":
        made.enable_compatibility_mode(no_processing=mode == "compatible")
    subject = Subject.of(made)
    assert subject.weights is not None
    assert close(subject(tokens), made(tokens))
    assert ("layer norm weights folded in" in subject.processing) == (mode == "processed")
    assert ("W_U centred" in subject.processing) == (mode == "processed")
    names = [site.at(1) for site in SITES.values()]
    _, ours = subject.run_with_cache(tokens, names)
    _, theirs = made.run_with_cache(tokens, names_filter=names)
    for name in names:
        assert close(ours[name], theirs[name]), name


@pytest.mark.parametrize("head", [True, False])
@pytest.mark.parametrize("kind", ["module", "state dict", "directory", "file"])
def test_hugging_face_s_gpt2(kind, head, tmp_path, tokens):
    module = gpt2_module(head)
    module.save_pretrained(tmp_path / "gpt")
    sources = {
        "module": module,
        "state dict": module.state_dict(),
        "directory": str(tmp_path / "gpt"),
        "file": tmp_path / "gpt" / "model.safetensors",
    }
    subject = Subject.of(sources[kind], n_heads=4 if kind == "state dict" else None)
    with torch.no_grad():
        found = module(tokens)
    expected = found.logits if head else found.last_hidden_state[..., :30]
    assert close(subject(tokens), expected)
    assert subject.name == {"directory": "gpt", "file": "model.safetensors"}.get(kind, "")


def test_what_is_evaluated_is_the_same_whatever_its_form(tmp_path, small_task):
    module = gpt2_module()
    forms = [module, bridged(gpt2_module(), tmp_path), str(tmp_path), lambda tokens: module(tokens).logits]
    errors = [hi.evaluate(form, small_task, hops=2, sequences=10) for form in forms]
    assert len({float(found.error.squeeze()) for found in errors}) == 1


def test_names_and_directories_of_ours(tmp_path, small_model, small_task, tokens):
    store.save(tmp_path / "mine", small_model, small_task, {"how": "by a test"})
    assert torch.equal(Subject.of(tmp_path / "mine", small_task)(tokens), small_model(tokens))
    shipped = Subject.of("depth2", HopTask())
    assert (shipped.name, shipped.sizes.n_layers) == ("depth2", 2)
    assert Subject.of("depth2", name="mine").name == "mine"
    assert Subject.of(Subject.of("depth2")).name == "depth2"


def test_a_function_gives_behaviour_alone(small_model, small_task):
    subject = Subject.of(lambda tokens: small_model(tokens), small_task, name="f")
    found = hi.evaluate(subject, small_task, hops=1, sequences=5)
    assert float(found.error.squeeze()) == float(hi.evaluate(small_model, small_task, hops=1, sequences=5).error.squeeze())
    for needs in (
        lambda: subject.sizes,
        lambda: subject.layers(),
        lambda: subject.processing,
        lambda: subject.untrained(0),
        lambda: subject.site("z"),
        lambda: subject.run_with_cache(small_task.sample(1, seed=0).tokens, [resid_post(0)]),
        lambda: subject.weights_for("verify"),
        lambda: subject.hooks([]).__enter__(),
    ):
        with pytest.raises(HopInterpError, match="needs the model's blocks; a function gives only answers"):
            needs()
    assert subject.device == torch.device("cpu")


def test_what_needs_blocks_says_so_of_a_function(small_model, small_task):
    for call in (hi.probe, hi.align):
        with pytest.raises(HopInterpError, match="needs the model's blocks; a function gives only answers"):
            call(lambda tokens: small_model(tokens), small_task, 2)


class Answers(nn.Module):
    """A module of no architecture: an answer for every token."""

    def __init__(self, size):
        super().__init__()
        self.table = nn.Embedding(size, size)

    def forward(self, tokens):
        return self.table(tokens)


def test_a_module_of_no_known_architecture_is_a_function(small_task):
    assert float(hi.evaluate(Answers(11), small_task, hops=1, sequences=2).error.squeeze()) > 0.2


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (None, "a NoneType is no model"),
        (3, "a int is no model"),
        (torch.zeros(3), "a Tensor is no model"),
        (HopTask(), r"a HopTask was given where a model belongs: the order is \(model, task\)"),
        ("depth99", "no model 'depth99': it is neither a directory nor a shipped model"),
        (Path("nowhere/at/all"), "no model 'nowhere/at/all'"),
        (Path(__file__), "is no checkpoint"),
        (Path(__file__).parent, "is no model directory: no file card.json"),
        ({}, "a mapping is read as a state dict"),
        ({"a": 1}, "a mapping is read as a state dict"),
        ({"a": torch.zeros(1)}, r"no architecture that is known \(GPT-2\); its names: a, …"),
        (nn.Linear(3, 4), "a Linear does not take tokens: RuntimeError"),
        (nn.Embedding(30, 4), "the task needs 11 tokens; a Embedding gives logits of 4"),
        (print, "print gives a NoneType for tokens"),
        (lambda tokens: tokens, r"<lambda> gives shape \[1, 21\] for tokens \[1, 21\]; a model gives logits"),
        (HopTask, "HopTask does not take tokens|HopTask gives"),
        (gpt2_module().state_dict(), "do not show the number of heads: give it"),
        (ModelSpec(2), "a ModelSpec is no model"),
    ],
)
def test_what_is_no_model(given, words, small_task, capsys):  # noqa: ARG001  # what print prints
    with pytest.raises(HopInterpError, match=words) as caught:
        Subject.of(given, small_task)
    assert "\n" not in str(caught.value)


def test_swapped_arguments(small_model, small_task, refuses):
    with refuses(r"the order is \(model, task\)"):
        hi.evaluate(small_task, small_model)
    with refuses("the task is a FusedTransformer; it must be a HopTask"):
        Subject.of(small_model, small_model)


def test_sizes_that_do_not_fit(small_model, small_task):
    with pytest.raises(HopInterpError, match="the task needs 23 tokens; the model has 11"):
        Subject.of(small_model, HopTask())
    with pytest.raises(HopInterpError, match="n_heads is 4; the model has 2"):
        Subject.of(small_model, small_task, n_heads=4)


def test_hooks_on_a_hooked_transformer_show(small_model, tokens, hooked_transformer):
    plain = Subject.of(hooked_transformer)
    assert plain.weights is not None
    hooked_transformer.add_hook("blocks.0.hook_attn_out", lambda value, hook: value * 0)  # noqa: ARG005
    changed = Subject.of(hooked_transformer)
    assert changed.weights is None
    assert torch.equal(changed(tokens), hooked_transformer(tokens))
    assert not torch.allclose(changed(tokens), small_model(tokens), atol=0.1)
    with pytest.raises(HopInterpError, match="a sweep needs the model's weights in a plain architecture"):
        changed.weights_for("a sweep")
    _, cache = changed.run_with_cache(tokens, [resid_post(1)])
    assert torch.equal(cache[resid_post(1)], hooked_transformer.run_with_cache(tokens)[1][resid_post(1)])
    hooked_transformer.reset_hooks()
    assert Subject.of(hooked_transformer).weights is not None


def test_pytorch_hooks_and_pruning_show_too(hooked_transformer, tokens):
    handle = hooked_transformer.blocks[1].attn.register_forward_hook(lambda module, given, out: out * 0)  # noqa: ARG005
    assert Subject.of(hooked_transformer).weights is None
    handle.remove()
    assert Subject.of(hooked_transformer).weights is not None
    prune.l1_unstructured(hooked_transformer.blocks[0].mlp, "W_in", 0.5)
    pruned = Subject.of(hooked_transformer)
    assert pruned.weights is None
    assert torch.equal(pruned(tokens), hooked_transformer(tokens))


@pytest.fixture
def hooked_transformer(small_model):
    pytest.importorskip("transformer_lens")
    made = small_model.spec.build(small_model.parameters)
    if bridge.is_bridge(made):
        pytest.skip("TransformerLens 4 has no HookedTransformer")
    return made


@pytest.mark.parametrize("where", ["hook point", "module", "wrapped module"])
def test_hooks_on_a_bridge_show(where, tokens, small_task):
    model = drawn(SPECS[0])
    made = native(model)
    if where == "hook point":
        made.add_hook("blocks.0.hook_attn_out", lambda value, hook: value * 0)  # noqa: ARG005
    else:
        part = made.blocks[0].mlp if where == "module" else made.original_model.layers[0].mlp
        part.register_forward_hook(lambda module, given, out: out * 0)  # noqa: ARG005
    subject = Subject.of(made, small_task)
    assert subject.weights is None
    assert torch.equal(subject(tokens), made(tokens))
    assert not torch.allclose(subject(tokens), model(tokens), atol=0.1)
    assert subject.processing == Subject.of(model).processing
    assert torch.equal(subject.untrained(1)(tokens), Subject.of(model).untrained(1)(tokens))


def test_hooks_on_a_module_show(tokens):
    module = gpt2_module()
    plain = Subject.of(module)(tokens)
    module.transformer.h[0].mlp.register_forward_hook(lambda part, given, out: out * 0)  # noqa: ARG005
    subject = Subject.of(module)
    assert subject.weights is None
    with torch.no_grad():
        assert torch.equal(subject(tokens), module(tokens).logits)
    assert not torch.allclose(subject(tokens), plain, atol=0.1)
    with pytest.raises(HopInterpError, match="activations are not to be had by name"):
        subject.run_with_cache(tokens, [resid_post(0)])
    module.train()
    with pytest.raises(HopInterpError, match=r"call its \.eval"):
        Subject.of(module)


def test_hooks_on_our_own_model_show(small_model, tokens):
    with small_model.hooks([("blocks.0.hook_mlp_out", lambda value, hook: value * 0)]):  # noqa: ARG005
        subject = Subject.of(small_model)
        assert subject.weights is None
        inside = subject(tokens)
    assert Subject.of(small_model).weights is small_model
    assert not torch.allclose(inside, small_model(tokens), atol=0.1)


def test_a_bridge_that_only_shows_its_pattern_refuses_it(tokens):
    """With the weights in hand it can be changed; on a bridge of TransformerLens 3 with hooks of its own, it cannot."""
    model = drawn(SPECS[0])
    made = native(model)
    nothing = lambda value, hook: value * 0  # noqa: ARG005, E731
    with Subject.of(made).hooks([(pattern(0), nothing)]) as run:
        changed = run(tokens)
    with model.hooks([(pattern(0), nothing)]):
        assert close(changed, model(tokens))
    made.add_hook("blocks.1.hook_resid_post", lambda value, hook: value * 2)  # noqa: ARG005
    subject = Subject.of(made)
    if bridge.reads_only(made, pattern(0)):
        with pytest.raises(HopInterpError, match=r"shows blocks\.0\.attn\.hook_pattern, but does not take it back"):
            subject.hooks([(pattern(0), nothing)]).__enter__()
    else:
        with subject.hooks([(pattern(0), nothing)]) as run:
            inside = run(tokens)
        assert not torch.allclose(inside, made(tokens), atol=0.1)


def forms(kind, tmp_path):
    model = drawn(SPECS[0])
    if kind == "ours":
        return model
    if kind == "load":
        return model.spec.build(model.parameters)
    if kind == "native bridge":
        return native(model)
    return bridged(gpt2_module(), tmp_path)


@pytest.mark.parametrize("on", [False, True])
@pytest.mark.parametrize("kind", ["ours", "load", "native bridge", "bridge on GPT-2"])
def test_every_site_of_every_form(kind, on, tmp_path, tokens):
    """A hook at each site changes the answers; with it gone they are what they were. `on`: beside a hook of the user's."""
    made = forms(kind, tmp_path)
    if on and kind != "ours":
        made.add_hook("blocks.1.hook_resid_post", lambda value, hook: value * 1.5)  # noqa: ARG005
    subject = Subject.of(made)
    before = subject(tokens)
    for name in [site.at(0) for site in SITES.values()]:
        if subject.weights is None and bridge.is_bridge(made) and bridge.reads_only(made, name):
            continue
        with subject.hooks([(name, lambda value, hook: value * 0)]) as run:  # noqa: ARG005
            assert not torch.allclose(run(tokens), before, atol=1e-3), name
        assert torch.equal(subject(tokens), before), name


@pytest.mark.parametrize("kind", ["ours", "load", "native bridge", "bridge on GPT-2"])
def test_hooks_come_off_when_a_run_raises(kind, tmp_path, tokens):
    subject = Subject.of(forms(kind, tmp_path))
    before = subject(tokens)
    with pytest.raises(ZeroDivisionError), subject.hooks([(resid_post(0), lambda value, hook: 1 / 0)]) as run:  # noqa: ARG005
        run(tokens)
    assert torch.equal(subject(tokens), before)


@pytest.mark.parametrize("kind", ["ours", "load", "native bridge", "bridge on GPT-2"])
def test_names_that_a_model_does_not_have(kind, tmp_path, tokens):
    subject = Subject.of(forms(kind, tmp_path))
    for name in ("blocks.7.hook_resid_post", "nonsense"):
        with pytest.raises(HopInterpError, match="the model has no activation"):
            subject.run_with_cache(tokens, [name])
        with pytest.raises(HopInterpError, match="the model has no activation"):
            subject.hooks([(name, lambda value, hook: value)]).__enter__()  # noqa: ARG005
    with pytest.raises(HopInterpError, match="site is 'resid'; it is one of resid_pre"):
        subject.site("resid")


def test_sites_of_a_model_without_mlps():
    subject = Subject.of(drawn(SPECS[3]))
    assert subject.site("z").per_head
    with pytest.raises(HopInterpError, match="site is mlp_out; this model's blocks have none, for they have no MLP"):
        subject.site("mlp_out")


@pytest.mark.parametrize("kind", ["ours", "load", "native bridge", "bridge on GPT-2"])
def test_untrained_twins(kind, tmp_path, tokens):
    subject = Subject.of(forms(kind, tmp_path))
    one, same, other = (subject.untrained(seed)(tokens) for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert not torch.allclose(one, subject(tokens), atol=0.1)
    assert subject.untrained(0).sizes == subject.sizes


def test_a_feature_beyond_the_spec_runs_by_its_hooks(tokens):
    transformer_lens = pytest.importorskip("transformer_lens")
    if not hasattr(transformer_lens, "config") or bridge.is_bridge(SPECS[0].build(drawn(SPECS[0]).parameters)):
        pytest.skip("TransformerLens 4 has no HookedTransformer")
    sizes = {"n_layers": 1, "d_model": 16, "d_head": 8, "n_ctx": 22, "d_vocab": 11, "device": "cpu", "seed": 0}
    config = transformer_lens.HookedTransformerConfig(**sizes, act_fn="silu")
    subject = Subject.of(transformer_lens.HookedTransformer(config))
    assert subject.weights is None
    assert subject.sizes.d_model == 16
    assert "layer norm with its weights" in subject.processing
    assert torch.equal(subject.untrained(2)(tokens), subject.untrained(2)(tokens))
    with pytest.raises(HopInterpError, match="needs the model's weights in a plain architecture"):
        subject.weights_for("this")


@pytest.mark.parametrize(
    ("given", "found"),
    [(None, [0, 1]), (1, [1]), (np.int64(1), [1]), ([1, 0], [1, 0]), (np.arange(2), [0, 1]), (range(1), [0])],
)
def test_layers(given, found, small_model):
    assert Subject.of(small_model).layers(given) == found


@pytest.mark.parametrize("given", [2, -1, [0, 5], 1.0, True, [0.5], "a"])
def test_layers_that_a_model_does_not_have(given, small_model, refuses):
    with refuses(r"layer is .*; this model has 0 to 1"):
        Subject.of(small_model).layers(given)


@pytest.mark.parametrize("kind", ["ours", "load", "native bridge", "bridge on GPT-2"])
def test_what_is_hooked_is_hooked_for_everybody(kind, tmp_path, tokens):
    """Inside, the model that was given, and whatever is asked of it or of its subject, is changed; after, it is not."""
    made = forms(kind, tmp_path)
    subject, before = Subject.of(made), made(tokens)
    with subject.hooks([("blocks.0.hook_attn_out", lambda value, hook: value * 0)]) as run:  # noqa: ARG005
        inside = run(tokens)
        assert not torch.allclose(inside, before, atol=0.1)
        for form in (made, Subject.of(made), Subject.of(subject)):
            assert close(form(tokens), inside)
    for form in (made, Subject.of(made), Subject.of(subject)):
        assert close(form(tokens), before)
    assert Subject.of(subject).weights is subject.weights


def test_long_sequences_are_taken_fewer_at_once(small_model):
    subject = Subject.of(small_model)
    assert subject.at_once(20) == 100
    assert 1 <= subject.at_once(20_000, patterns=True) < subject.at_once(20_000) <= 100
    assert Subject.of(lambda tokens: torch.zeros(*tokens.shape, 30)).at_once(10**6) == 100
