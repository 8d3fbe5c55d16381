"""Hooks that come off, that fired, and that changed something."""

import pytest
import torch

from hopinterp.models.hooks import SITES, Overwrite, changed, intervening, pattern, resid_post


def test_names_of_sites():
    assert SITES["resid_post"].at(3) == resid_post(3) == "blocks.3.hook_resid_post"
    assert SITES["pattern"].at(3) == pattern(3) == "blocks.3.attn.hook_pattern"


def test_a_hook_that_never_fires_is_an_error(small_model, small_task):
    tokens = small_task.sample(1, seed=0).tokens
    hook = (resid_post(1), lambda value, hook: value)  # noqa: ARG005
    with (
        pytest.raises(RuntimeError, match=r"the hook at blocks\.1\.hook_resid_post never fired"),
        intervening(small_model, [hook]),
    ):
        pass
    with intervening(small_model, [hook]):
        small_model(tokens)
    assert not small_model.is_hooked


@pytest.mark.parametrize("name", ["resid_post", "z", "pattern"])
def test_overwriting_places(name, small_model, small_task):
    """Only the named place of the named row changes, and it must change."""
    site, tokens = SITES[name], small_task.sample(3, seed=0).tokens
    rows, positions, heads = torch.tensor([0, 2]), torch.tensor([5, 9]), torch.tensor([1, 0])
    _, before = small_model.run_with_cache(tokens, [site.at(0)])
    index = site.index(rows, positions, heads)
    there = before[site.at(0)][index]
    seen = []
    hooks = [(site.at(0), Overwrite(index, there + 1)), (site.at(0), lambda value, hook: seen.append(value))]  # noqa: ARG005
    with small_model.hooks(hooks):
        small_model(tokens)
    differs = seen[0] != before[site.at(0)]
    assert torch.allclose(seen[0][index], there + 1)
    assert differs.sum() == there.numel()
    assert site.heads(before[site.at(0)]) == (2 if site.per_head else 1)
    with (
        pytest.raises(RuntimeError, match=r"patching 2 of 2 places at .* changed nothing"),
        small_model.hooks([(site.at(0), Overwrite(index, there))]),
    ):
        small_model(tokens)


def test_changed_is_more_than_rounding():
    before = torch.tensor([[1.0, 100.0], [1.0, 2.0], [3.0, 4.0]])
    after = before + torch.tensor([[5e-5, 0.0], [0.0, 1e-2], [0.0, 0.0]])
    assert changed(before, after).tolist() == [False, True, False]
    assert changed(before[:0], after[:0]).tolist() == []
