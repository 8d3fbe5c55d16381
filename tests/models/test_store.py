"""A model directory: what goes in comes out, and nothing damaged does."""

import json
import os

import pytest
import torch

import hopinterp as hi
from hopinterp import HopInterpError
from hopinterp.models import store


@pytest.fixture
def saved(tmp_path, small_model, small_task):
    store.save(tmp_path / "m", small_model, small_task, {"how": "by a test"}, {"errors": {"1": 0.5}})
    return tmp_path / "m"


def test_round_trip(saved, small_model, small_task):
    fused, task = store.load_fused(saved)
    card = store.read_card(store.find(saved))
    assert task == card.task == small_task
    assert card.spec == small_model.spec
    assert card.made == {"how": "by a test"}
    assert card.errors == {"errors": {"1": 0.5}}
    assert card.versions["torch"] == torch.__version__
    for name, tensor in small_model.parameters.items():
        assert torch.equal(fused.parameters[name], tensor)
    hooked, task = hi.load(saved)
    tokens = task.sample(2, seed=0).tokens
    assert torch.allclose(hooked(tokens), small_model(tokens), atol=1e-5)


def test_a_hooked_transformer_saves_to_the_same_bytes(saved, tmp_path, small_task):
    hooked, _ = hi.load(saved)
    again = hi.save(tmp_path / "again", hooked, small_task, {"how": "again"})
    assert again.sha256 == store.read_card(saved).sha256


def test_whatever_has_weights_saves(tmp_path, small_task):
    """A Hugging Face module, saved, is the same function; a function has nothing to save."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=small_task.d_vocab, n_positions=22, n_embd=32, n_layer=1, n_head=2)
    module = GPT2LMHeadModel(config).eval()
    card = hi.save(tmp_path / "m", module, small_task, {"how": "by a test"})
    assert card.spec.n_heads == 2
    tokens = small_task.sample(2, seed=0).tokens
    assert torch.allclose(store.load_fused(tmp_path / "m")[0](tokens), module(tokens).logits, atol=1e-5)
    with pytest.raises(HopInterpError, match="saving needs the model's blocks; a function gives only answers"):
        hi.save(tmp_path / "n", lambda tokens: torch.zeros(*tokens.shape, 11), small_task, {})


def edit_card(directory, **changes):
    card = json.loads((directory / "card.json").read_text())
    for key, value in changes.items():
        part = card
        *path, last = key.split("__")
        for name in path:
            part = part[name]
        part[last] = value
    (directory / "card.json").write_text(json.dumps(card))


def rewrite(directory, change):
    """Put other weights in place, with their right digest in the card."""
    import hashlib

    from safetensors.torch import load_file, save_file

    parameters = load_file(directory / "model.safetensors")
    change(parameters)
    save_file(parameters, directory / "model.safetensors")
    edit_card(directory, sha256=hashlib.sha256((directory / "model.safetensors").read_bytes()).hexdigest())


def poison(parameters):
    parameters["embed.W_E"][0, 0] = float("nan")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda d: (d / "card.json").unlink(), "no model directory"),
        (lambda d: (d / "card.json").write_text("{"), "no model card"),
        (lambda d: (d / "card.json").write_text("[]"), "no model card"),
        (lambda d: edit_card(d, format=9), "another version"),
        (lambda d: edit_card(d, spec__n_layers=3), "lack 16 tensors"),
        (lambda d: edit_card(d, spec__d_mlp=64), "shape"),
        (lambda d: edit_card(d, spec__depth=3), "no field"),
        (lambda d: edit_card(d, task__n_letters=500), "the task needs 501 positions; the model has 22"),
        (lambda d: edit_card(d, task__alphabet_size=50), "the task needs 57 tokens; the model has 11"),
        (lambda d: (d / "model.safetensors").unlink(), "no file"),
        (
            lambda d: (d / "model.safetensors").write_bytes((d / "model.safetensors").read_bytes()[:-40]),
            "damaged or changed",
        ),
        (lambda d: rewrite(d, poison), "embed.W_E holds NaN"),
        (lambda d: rewrite(d, lambda p: p.update({"embed.W_E": p["embed.W_E"].half()})), "torch.float16"),
        (lambda d: rewrite(d, lambda p: p.update(extra=torch.zeros(1))), "foreign"),
        (lambda d: rewrite(d, lambda p: p.pop("embed.W_E")), "lack 1 tensors, the first is 'embed.W_E'"),
    ],
)
def test_damage_is_named(saved, damage, words):
    damage(saved)
    with pytest.raises(HopInterpError, match=words) as caught:
        store.load_fused(saved)
    assert "\n" not in str(caught.value)


def test_nothing_is_overwritten_unasked(saved, small_model, small_task):
    before = (saved / "card.json").read_text()
    with pytest.raises(HopInterpError, match="exists"):
        store.save(saved, small_model, small_task, {"how": "again"})
    assert (saved / "card.json").read_text() == before
    store.save(saved, small_model, small_task, {"how": "again"}, overwrite=True)
    assert store.read_card(saved).made == {"how": "again"}
    (saved / "thesis.tex").write_text("years of work")
    with pytest.raises(HopInterpError, match="more than a model"):
        store.save(saved, small_model, small_task, {"how": "again"}, overwrite=True)
    assert (saved / "thesis.tex").exists()
    assert [path.name for path in saved.parent.iterdir()] == ["m"]


def test_a_full_disk_leaves_nothing_behind(tmp_path, small_model, small_task, monkeypatch):
    def full(_descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(HopInterpError, match="No space left on device"):
        store.save(tmp_path / "m", small_model, small_task, {})
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_cannot_read_the_task_is_not_saved(tmp_path, small_model):
    with pytest.raises(HopInterpError, match="the task needs 23 tokens; the model has 11"):
        store.save(tmp_path / "m", small_model, hi.HopTask(), {})
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_name_lists_what_there_is(tmp_path):
    with pytest.raises(HopInterpError, match="no model 'depth99': it is neither a directory nor a shipped model"):
        store.find("depth99")
    assert store.list_models(tmp_path) == []


def test_the_identity_unembedding_is_checked(tmp_path, small_task):
    spec = hi.ModelSpec(1, d_model=32, n_heads=2, n_ctx=22, d_vocab=11, unembed="identity")
    parameters = spec.initial_parameters(0)
    parameters["unembed.W_U"][0, 0] = 2
    with pytest.raises(HopInterpError, match="not the identity"):
        store.save(tmp_path / "m", hi.FusedTransformer(spec, parameters), small_task, {})
