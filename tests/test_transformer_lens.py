"""A shipped model through TransformerLens, whichever is installed: 3.9, whose HookedTransformer it is, or 4, whose bridge.

The second job of CI runs this file, and the tests of `models/`, under the newest 4.x.
"""

from importlib import metadata

import pytest
import torch

import hopinterp as hi
from hopinterp.models.hooks import pattern, resid_post

MAJOR = int(metadata.version("transformer-lens").split(".")[0])


@pytest.fixture(scope="module")
def loaded():
    return hi.load("depth3")


def test_what_load_gives(loaded):
    model, task = loaded
    assert type(model).__name__ == ("HookedTransformer" if MAJOR < 4 else "TransformerBridge")
    assert not model.training
    assert task == hi.HopTask()


def test_logits_and_activations_are_those_of_the_fused_model(loaded):
    model, task = loaded
    fused, same = hi.load_fused("depth3")
    assert same == task
    tokens = task.sample(4, seed=0).tokens
    names = [resid_post(1), pattern(2), "blocks.0.hook_mlp_out", "blocks.1.attn.hook_z"]
    with torch.no_grad():
        logits, cache = model.run_with_cache(tokens, names_filter=names)
        expected, ours = fused.run_with_cache(tokens, names)
        again = model(tokens)
    assert expected.std() > 1
    for name, got, wanted in (
        ("logits", again, expected),
        ("logits", logits, expected),
        *((n, cache[n], ours[n]) for n in names),
    ):
        assert torch.allclose(got, wanted, atol=1e-5 * float(wanted.abs().max()), rtol=0), name


def test_hooks_of_the_user_show(loaded):
    model, task = loaded
    before = float(hi.evaluate(model, task, hops=3, sequences=10).error.squeeze())
    model.add_hook("blocks.1.hook_attn_out", lambda value, hook: value * 0)  # noqa: ARG005
    try:
        assert float(hi.evaluate(model, task, hops=3, sequences=10).error.squeeze()) > before + 0.3
    finally:
        model.reset_hooks()
    assert float(hi.evaluate(model, task, hops=3, sequences=10).error.squeeze()) == before


@pytest.mark.slow
def test_evaluate_probe_and_verify(loaded):
    """Figures are those of the fused model, to the last digit."""
    model, task = loaded
    fused, _ = hi.load_fused("depth3")
    for call in (
        lambda m: hi.evaluate(m, task, hops=3, sequences=20),
        lambda m: hi.probe(m, task, hops=3, train_sequences=40, sequences=20),
    ):
        assert call(model).equals(call(fused))
    found = hi.verify(model, task, hops=3, sequences=20)
    assert found.verdict == "undetermined"  # as at every k < 4
    assert found.resolved["probe"] == [0, 1, 3]


def test_a_loaded_model_saves_to_the_same_bytes(loaded, tmp_path):
    from hopinterp.models import store

    model, task = loaded
    card = hi.save(tmp_path / "again", model, task, {"how": "again"})
    assert card.sha256 == store.read_card(store.find("depth3")).sha256


def test_constructed_models_run():
    """Without layer norms and MLPs, and with scores that are not divided."""
    task = hi.HopTask(30, 4, 4)
    model = hi.construct(task, 3, algorithm="successor")
    assert type(model).__name__ == ("HookedTransformer" if MAJOR < 4 else "TransformerBridge")
    for form in (model, lambda tokens: model(tokens)):  # by its weights, and by itself
        assert float(hi.evaluate(form, task, hops=3, sequences=20).error.squeeze()) == 0
