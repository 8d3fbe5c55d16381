"""Every shipped model loads through all checks, and answers as its card says."""

import pytest

import hopinterp as hi
from hopinterp.models import store

SHIPPED = [path.name for path in store.list_models()]
BARS = {f"depth{depth}": min(2 ** (depth - 1) - 1, 16) for depth in (2, 3, 4, 5, 6)}


def test_depths_2_to_6_are_shipped():
    assert set(BARS) <= set(SHIPPED)


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_model_answers_as_its_card_says(name):
    model, task = hi.load_fused(name)
    card = store.read_card(store.find(name))
    assert (card.spec.d_model, card.spec.n_heads, card.spec.n_ctx) == (128, 4, 100)
    assert task == card.task == hi.HopTask()
    assert card.errors["settings"]["sequences"] == 400
    assert f"--layers {card.spec.n_layers} " in card.made["command"]
    found = hi.evaluate(model, task, sequences=60, seed=12345)
    for k in found.hops.values:
        error, said = float(found.error.sel(hops=k)), card.errors["errors"][str(k)]
        assert error == pytest.approx(said, abs=0.003 + 0.2 * said)


@pytest.mark.parametrize("name", BARS)
def test_the_capacity_that_the_theory_gives_each_depth(name):
    """err_k ≤ 1% for every k < 2^(L−1), k ≤ 16, on the card's 400 sequences a k and on fresh ones."""
    model, task = hi.load_fused(name)
    card = store.read_card(store.find(name))
    ks = range(1, BARS[name] + 1)
    found = hi.evaluate(model, task, hops=ks, sequences=60, seed=54321)
    for k in ks:
        assert card.errors["errors"][str(k)] <= 0.01
        assert float(found.error.sel(hops=k)) <= 0.015
