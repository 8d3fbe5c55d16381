"""Patching along the chain, on models whose circuit is known: the light cone is the causal model's at every block.

A place is in the cone where the interval of its effect lies above the bar that `patch` records, half of what a broken
answer shows, and out of it where the interval lies below: here every place must be one or the other.
"""

import pytest

from hopinterp import FusedTransformer, HopTask
from hopinterp.evidence.patching.activation import patch
from hopinterp.theory.construction import Construction

TASK = HopTask()
BUILT = [("lookup", 4), ("lookup", 7), ("successor", 4), ("successor", 7), ("sequential", 4)]


def cone(found, layer, where):
    """The chain positions that matter; and that no others are left in doubt."""
    one = found.sel(metric="probability", layer=layer, where=where)
    assert (one.matters | (one.high < found.attrs["bar"])).all(), one.effect.values
    return {int(j) for j in one.hop.values[one.matters.values]}


@pytest.mark.parametrize(("algorithm", "hops"), BUILT)
def test_light_cone_of_every_block(algorithm, hops):
    made = Construction.of(TASK, hops, algorithm)
    found = patch(made.fused, TASK, hops, by="chain", sequences=200, seed=0)
    assert float(found.clean.sel(metric="accuracy")) == 1
    for offset, where in ((0, "at"), (-1, "before")):
        for layer in range(made.fused.spec.n_layers):
            assert cone(found, layer, where) == made.causal.light_cone(layer, offset), (layer, where)
    assert (found.off_chain.sel(metric="probability") < found.attrs["bar"]).all()


@pytest.mark.parametrize("algorithm", ["lookup", "successor"])
def test_light_cone_of_the_embedding(algorithm):
    made = Construction.of(TASK, 4, algorithm)
    found = patch(made.fused, TASK, 4, site="resid_pre", by="chain", sequences=200, seed=0)
    for offset, where in ((0, "at"), (-1, "before")):
        assert cone(found, 0, where) == made.causal.light_cone(-1, offset)


def test_lookup_halves_its_cone():
    """The places that block ℓ ≥ 1 still needs: j < k that 2^(ℓ−1) divides."""
    made = Construction.of(TASK, 8, "lookup")
    found = patch(made.fused, TASK, 8, by="chain", sequences=200, seed=1)
    for layer in range(1, 5):
        assert cone(found, layer, "at") == set(range(0, 8, 2 ** (layer - 1)))
        assert cone(found, layer, "before") == set()
        outside = found.effect.sel(metric="probability", layer=layer).where(
            ~found.matters.sel(metric="probability", layer=layer)
        )
        assert float(outside.max()) < 0.05


@pytest.mark.parametrize("algorithm", ["lookup", "successor"])
@pytest.mark.parametrize("seed", range(6))
def test_untrained_models_show_nothing(algorithm, seed):
    """Their clean and corrupt runs differ by next to nothing: there is hardly ever a scale, and no place that matters."""
    spec = Construction.of(TASK, 4, algorithm).fused.spec
    found = patch(FusedTransformer(spec, spec.initial_parameters(seed)), TASK, 4, by="chain", sequences=200)
    assert not found.matters.any()
    assert float(found.effect.isnull().mean()) > 0.8
    assert not (abs(found.effect) > 0.01).any()
    assert float(abs(found.clean - found.corrupt).sel(metric="probability")) < 0.01
