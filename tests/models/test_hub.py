"""Models as local directories in a layout of the Hugging Face Hub: exact there and back, and their cards can be read."""

import json

import pytest
import torch
from huggingface_hub import ModelCard

import hopinterp as hi
from hopinterp import HopInterpError
from hopinterp.models import hub, store

LIKE_GPT2 = {"d_model": 32, "n_heads": 2, "n_ctx": 22, "act_fn": "gelu_new"}


@pytest.fixture
def saved(tmp_path, small_model, small_task):
    errors = {"errors": {"1": 0.5, "2": None}, "low": {"1": 0.25}, "high": {"1": 0.75}}
    store.save(tmp_path / "m", small_model, small_task, {"how": "by a test", "command": "test --it"}, errors)
    return tmp_path / "m"


@pytest.fixture(params=["learned", "identity"])
def gpt2_like(request, tmp_path, small_task):
    """A model that a GPT-2 can stand for, none of its parameters zero, and its directory."""
    spec = hi.ModelSpec(2, **LIKE_GPT2, d_vocab=30, unembed=request.param)
    generator = torch.Generator().manual_seed(0)
    parameters = {name: torch.randn(shape, generator=generator) for name, shape in spec.parameter_shapes().items()}
    parameters["unembed.b_U"] = torch.zeros(30)
    if request.param == "identity":
        parameters["unembed.W_U"] = torch.eye(32, 30)
    model = hi.FusedTransformer(spec, parameters)
    store.save(tmp_path / "like", model, small_task, {"how": "by a test"})
    return model, tmp_path / "like"


def same(model, other):
    return model.spec == other.spec and all(torch.equal(p, other.parameters[name]) for name, p in model.parameters.items())


def test_it_loads_to_the_same_bits(saved, tmp_path, small_model, small_task):
    out = hi.export(saved, tmp_path / "shared", license="mit")
    assert {path.name for path in out.iterdir()} == {"model.safetensors", "card.json", "config.json", "README.md"}
    model, task = hi.load_fused(out)
    assert task == small_task
    assert same(small_model, model)
    assert store.read_card(out) == store.read_card(saved)
    assert json.loads((out / "config.json").read_text())["model_type"] == "hopinterp"


def test_the_card_says_what_it_is(saved, tmp_path):
    card = ModelCard.load(hub.export(saved, tmp_path / "shared", license="mit") / "README.md")
    assert (card.data.library_name, card.data.license, card.data.model_name) == ("hopinterp", "mit", "shared")
    assert "mechanistic-interpretability" in card.data.tags
    (result,) = card.data.eval_results
    assert (result.metric_name, result.metric_value) == ("err_1", 0.5)
    for words in (
        "2 blocks, width 32, 2 heads",
        'hi.load("shared")',
        "by a test",
        "    test --it",
        "| 1 | 50.00 | 25.00 to",
    ):
        assert words in card.text
    bare = ModelCard.load(hub.export(saved, tmp_path / "bare") / "README.md")
    assert bare.data.license is None


def test_as_a_gpt2_it_comes_back_to_the_same_bits(gpt2_like, tmp_path, small_task):
    model, directory = gpt2_like
    out = hi.export(directory, tmp_path / "gpt2", layout="gpt2")
    again, task = hi.import_gpt2(out)
    assert task == small_task  # its config says so
    assert same(model, again)
    assert ModelCard.load(out / "README.md").data.library_name == "transformers"
    assert hi.import_gpt2(out, max_hops=5)[1].max_hops == 5


def test_transformers_loads_it(gpt2_like, tmp_path, small_task, monkeypatch):
    from transformers import GPT2LMHeadModel, GPT2Model

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    model, directory = gpt2_like
    out = hi.export(directory, tmp_path / "gpt2", layout="gpt2")
    tokens = small_task.sample(3, seed=0).tokens
    if model.spec.unembed == "identity":
        module, found = GPT2Model.from_pretrained(out, output_loading_info=True)
        logits = module.eval()(tokens).last_hidden_state[..., :30].detach()
    else:
        module, found = GPT2LMHeadModel.from_pretrained(out, output_loading_info=True)
        logits = module.eval()(tokens).logits.detach()
    assert not any(found[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert torch.allclose(logits, model(tokens), atol=1e-4 * float(logits.abs().max()))


def test_what_the_authors_checkpoint_holds_comes_back(paper, tmp_path):
    """Imported, exported, and imported again: the same tensors, and the config says the heads."""
    model, task = hi.import_gpt2(paper / "width4-depth3.pt", n_heads=4)
    store.save(tmp_path / "m", model, task, {"how": "imported"})
    out = hi.export(tmp_path / "m", tmp_path / "gpt2", layout="gpt2")
    again, its_task = hi.import_gpt2(out)
    assert its_task == task
    assert same(model, again)


def test_what_is_no_gpt2_is_not_written(saved, tmp_path, small_task):
    constructed = hi.Construction.of(small_task, 2, "lookup").fused
    store.save(tmp_path / "made", constructed, small_task, {"how": "by a test"})
    with pytest.raises(HopInterpError, match=r"GPT-2 has .*; this model has not"):
        hub.export(tmp_path / "made", tmp_path / "out", layout="gpt2")
    biased, _ = hi.load_fused(saved)
    biased.parameters["unembed.b_U"] += 1
    store.save(tmp_path / "biased", biased, small_task, {"how": "by a test"})
    with pytest.raises(HopInterpError, match=r"GPT-2 has no unembed\.b_U, and this model's is not zero"):
        hub.export(tmp_path / "biased", tmp_path / "out", layout="gpt2")
    with pytest.raises(HopInterpError, match="layout is 'onnx'; it is one of hopinterp, gpt2"):
        hub.export(saved, tmp_path / "out", layout="onnx")
    assert not (tmp_path / "out").exists()


def test_only_what_it_wrote_is_overwritten(saved, tmp_path):
    out = hub.export(saved, tmp_path / "shared")
    with pytest.raises(HopInterpError, match="shared exists"):
        hub.export(saved, out)
    assert hub.export(saved, out, layout="gpt2", overwrite=True) == out
    assert not (out / "card.json").exists()
    (out / "thesis.tex").write_text("years of work")
    with pytest.raises(HopInterpError, match="more than a model"):
        hub.export(saved, out, overwrite=True)
    with pytest.raises(HopInterpError, match="more than a model"):
        store.check_free(hub.export(saved, tmp_path / "other"), overwrite=True)


def test_each_way_in_points_to_the_other(saved, tmp_path):
    out = hub.export(saved, tmp_path / "gpt2", layout="gpt2")
    with pytest.raises(HopInterpError, match="is taken in by `hopinterp import`"):
        hi.load_fused(out)
    with pytest.raises(HopInterpError, match="is a model directory already"):
        hi.import_gpt2(hub.export(saved, tmp_path / "shared"))
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(config | {"hopinterp": {"task": {"letters": 3}}}))
    with pytest.raises(HopInterpError, match=r"the config's hopinterp\.task holds other things"):
        hi.import_gpt2(out)
