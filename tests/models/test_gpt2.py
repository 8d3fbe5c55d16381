"""Imported GPT-2 checkpoints answer as Hugging Face's GPT2Model does."""

import pickle

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, GPT2Model

from hopinterp import HopInterpError, HopTask
from hopinterp.models import gpt2
from hopinterp.models.hooks import pattern


def reference(state, n_layers, prefix="backbone."):
    config = GPT2Config(vocab_size=30, n_positions=100, n_embd=128, n_layer=n_layers, n_head=4, attn_implementation="eager")
    model = GPT2Model(config).eval()
    model.load_state_dict({name.removeprefix(prefix): tensor for name, tensor in state.items()})
    return model


@pytest.fixture
def random_model():
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=30, n_positions=100, n_embd=32, n_layer=2, n_head=4, attn_implementation="eager")
    model = GPT2Model(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(4).add_(0.1 * torch.randn_like(p))
    return model


def check_equal(model, theirs, tokens):
    n_layers = model.spec.n_layers
    with torch.no_grad():
        output = theirs(tokens, output_attentions=True)
        logits, cache = model.run_with_cache(tokens, [pattern(layer) for layer in range(n_layers)])
    assert torch.allclose(logits, output.last_hidden_state[..., : model.spec.d_vocab], atol=1e-4, rtol=0)
    for layer in range(n_layers):
        assert torch.allclose(cache[pattern(layer)], output.attentions[layer], atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["width4-depth3", "width4-depth4", "width4-depth4-samples1k"])
def test_the_authors_checkpoints_equal_hugging_face(paper, task, name):
    state = gpt2.read_state_dict(paper / f"{name}.pt")
    model = gpt2.convert(state, n_heads=4)
    theirs = reference(state, model.spec.n_layers)
    tokens = task.sample(16, seed=0).tokens
    check_equal(model, theirs, tokens)
    hooked = model.spec.build(model.parameters)
    with torch.no_grad():
        assert torch.allclose(hooked(tokens), theirs(tokens).last_hidden_state[..., :30], atol=1e-4, rtol=0)
        patterns = theirs(tokens, output_attentions=True).attentions
        _, cache = hooked.run_with_cache(tokens)
    for layer, theirs_pattern in enumerate(patterns):
        assert torch.allclose(cache["pattern", layer], theirs_pattern, atol=1e-4, rtol=0)


def test_sizes_are_the_paper_s(depth4):
    from hopinterp import ModelSpec

    assert depth4.spec == ModelSpec.paper(4)


@pytest.mark.parametrize("prefix", ["", "backbone.", "transformer.", "a.b."])
def test_any_prefix_and_old_mask_buffers(random_model, task, prefix):
    state = {prefix + name: tensor for name, tensor in random_model.state_dict().items()}
    state[f"{prefix}h.0.attn.bias"] = torch.ones(1, 1, 100, 100, dtype=torch.bool)
    state[f"{prefix}h.0.attn.masked_bias"] = torch.tensor(-1e4)
    check_equal(gpt2.convert(state, 4), random_model, task.sample(3, seed=0).tokens)


def test_a_language_model_head_is_the_unembedding(task):
    torch.manual_seed(0)
    theirs = GPT2LMHeadModel(GPT2Config(vocab_size=30, n_positions=100, n_embd=32, n_layer=1, n_head=2)).eval()
    model = gpt2.convert(theirs.state_dict(), 2)
    tokens = task.sample(3, seed=0).tokens
    with torch.no_grad():
        assert torch.allclose(model(tokens), theirs(tokens).logits, atol=1e-4)
    assert model.spec.unembed == "learned"


@pytest.mark.parametrize("ending", ["pt", "safetensors"])
def test_both_file_formats(random_model, tmp_path, ending):
    from safetensors.torch import save_file

    path = tmp_path / f"m.{ending}"
    state = random_model.state_dict()
    save_file(state, path) if ending == "safetensors" else torch.save(state, path)
    assert torch.equal(gpt2.read_state_dict(path)["wte.weight"], state["wte.weight"])


class Exploit:
    def __reduce__(self):
        import os

        return os.system, ("touch exploited",)


def write(path, value):
    torch.save(value, path)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda *_: None, "no file"),
        (lambda path, _: path.write_bytes(b"not a checkpoint"), "is no checkpoint"),
        (lambda path, _: path.write_bytes(b""), "no checkpoint, is truncated"),
        (lambda path, state: (write(path, state), path.write_bytes(path.read_bytes()[:2000])), "truncated"),
        (lambda path, _: path.write_bytes(pickle.dumps(Exploit())), "is no checkpoint"),
        (lambda path, _: write(path, {"model": Exploit()}), "more than tensors"),
        (lambda path, _: write(path, [1, 2]), "no state dict"),
        (lambda path, _: write(path, {"step": 3}), "no state dict"),
    ],
)
def test_files_that_are_no_checkpoints(make, words, tmp_path, random_model, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "m.pt", random_model.state_dict())
    with pytest.raises(HopInterpError, match=words) as caught:
        gpt2.read_state_dict(tmp_path / "m.pt")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "exploited").exists()


def without(name):
    return lambda state: state.pop(name)


@pytest.mark.parametrize(
    ("change", "heads", "words"),
    [
        (without("wte.weight"), 4, "not a GPT-2 state dict"),
        (without("h.1.mlp.c_fc.bias"), 4, "lacks GPT-2's h.1.mlp.c_fc.bias"),
        (without("h.0.mlp.c_fc.weight"), 4, "h.0.mlp.c_proj.weight|h.0.mlp.c_fc.weight"),
        (lambda state: state.update({"h.0.attn.c_attn.weight": torch.zeros(32, 64)}), 4, "h.0.attn.c_attn.weight has shape"),
        (lambda state: state.update(extra=torch.zeros(1)), 4, "not GPT-2's, the first is 'extra'"),
        (lambda state: state["wpe.weight"].fill_(float("nan")), 4, "pos_embed.W_pos holds NaN"),
        (lambda _: None, 3, "3 heads were given; they must divide d_model = 32"),
        (lambda _: None, 0, "n_heads is 0"),
    ],
)
def test_foreign_checkpoints(random_model, change, heads, words):
    state = {name: tensor.clone() for name, tensor in random_model.state_dict().items()}
    change(state)
    with pytest.raises(HopInterpError, match=words):
        gpt2.convert(state, heads)


@pytest.mark.parametrize("heads", [1, 2, 8, 128])
def test_a_wrong_number_of_heads_shows_in_the_answers(paper, task, heads):
    model = gpt2.convert(gpt2.read_state_dict(paper / "width4-depth4.pt"), heads)
    with pytest.raises(HopInterpError, match=f"{heads} heads were given, but these weights fit 4"):
        gpt2.check_heads(model, task)


def test_the_right_number_of_heads_passes(depth3, depth4_1000_samples, task):
    gpt2.check_heads(depth3, task)
    gpt2.check_heads(depth4_1000_samples, task)
    untrained = GPT2Model(GPT2Config(vocab_size=30, n_positions=100, n_embd=32, n_layer=2, n_head=4)).state_dict()
    gpt2.check_heads(gpt2.convert(untrained, 4), task)


@pytest.mark.parametrize("kind", ["file", "directory", "module", "state dict"])
def test_import_takes_every_form(tmp_path, kind):
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=30, n_positions=100, n_embd=32, n_layer=2, n_head=4, attn_implementation="eager")
    random_model = GPT2Model(config).eval()
    random_model.save_pretrained(tmp_path)
    source = {
        "file": tmp_path / "model.safetensors",
        "directory": tmp_path,
        "module": random_model,
        "state dict": random_model.state_dict(),
    }[kind]
    model, task = gpt2.import_gpt2(source, 4 if kind == "state dict" else None)
    assert task == HopTask()
    check_equal(model, random_model, task.sample(2, seed=0).tokens)


def test_a_tied_unembedding_is_not_lost(tmp_path, task):
    """save_pretrained leaves it out of the file: the config alone says that there is one."""
    torch.manual_seed(0)
    theirs = GPT2LMHeadModel(GPT2Config(vocab_size=30, n_positions=100, n_embd=32, n_layer=1, n_head=2)).eval()
    theirs.save_pretrained(tmp_path)
    tokens = task.sample(3, seed=0).tokens
    model, _ = gpt2.import_gpt2(tmp_path)
    assert model.spec.unembed == "learned"
    assert torch.allclose(model(tokens), theirs(tokens).logits, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"activation_function": "silu"}, "act_fn is 'silu'; it must be one of gelu, gelu_new, relu"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx, which is not read"),
        ({"add_cross_attention": True}, "tensors that are not GPT-2's"),
    ],
)
def test_features_that_are_not_read(settings, words):
    config = GPT2Config(vocab_size=30, n_positions=100, n_embd=32, n_layer=2, n_head=2, **settings)
    with pytest.raises(HopInterpError, match=words):
        gpt2.import_gpt2(GPT2Model(config).eval())


@pytest.mark.parametrize(
    "settings",
    [
        {"activation_function": "relu"},
        {"activation_function": "gelu"},
        {"activation_function": "gelu_pytorch_tanh"},
        {"layer_norm_epsilon": 0.1},
        {"scale_attn_weights": False},
        {"n_inner": 40},
    ],
)
def test_the_config_is_obeyed(settings, task):
    """Each changes the function; the module beside it says whether we have read it."""
    torch.manual_seed(1)
    config = GPT2Config(vocab_size=30, n_positions=100, n_embd=32, n_layer=2, n_head=4, **settings)
    theirs = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for p in theirs.parameters():
            p.mul_(4).add_(0.1 * torch.randn_like(p))
    model, _ = gpt2.import_gpt2(theirs)
    tokens = task.sample(2, seed=0).tokens
    with torch.no_grad():
        expected = theirs(tokens).logits
        assert torch.allclose(model(tokens), expected, atol=1e-5 * float(expected.abs().max()), rtol=0)


def test_what_contradicts_the_config(random_model):
    with pytest.raises(HopInterpError, match="n_heads is 8; the model's own config says 4"):
        gpt2.import_gpt2(random_model, 8)
    with pytest.raises(HopInterpError, match="act_fn is 'relu'; the model's own config says 'gelu_new'"):
        gpt2.import_gpt2(random_model, act_fn="relu")


def test_a_task_too_large_for_the_checkpoint(depth3):
    with pytest.raises(HopInterpError, match="the task needs 43 tokens; the model has 30"):
        gpt2.check_heads(depth3, HopTask(98, 24, 16))
