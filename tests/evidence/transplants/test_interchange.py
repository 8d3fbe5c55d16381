"""Transplants: the predictions are the definition's, and controls give nothing."""

import dataclasses

import numpy as np
import pytest
import torch
import xarray as xr

import hopinterp as hi
from hopinterp import HopInterpError
from hopinterp.evidence.transplants.pairs import MATCHES, MatchedPairs


def random_model(task, seed, n_layers=3, scale=10, **sizes):
    spec = hi.ModelSpec.for_task(task, n_layers, **{"d_model": 32, "n_heads": 2, **sizes})
    parameters = spec.initial_parameters(seed)
    return hi.FusedTransformer(spec, {name: p * (scale if "W_" in name else 1) for name, p in parameters.items()})


def occurrences(batch):
    return torch.nn.functional.one_hot(batch.hop_letters[:, 0, 1:], batch.task.alphabet_size).cumsum(1)


@pytest.mark.parametrize("match", MATCHES)
def test_pairs_agree_where_they_say(task, match):
    pairs = MatchedPairs.draw(task, 4, 40, match, seed=0)
    agree = pairs.base.tokens == pairs.source.tokens
    assert (pairs.source.tokens[:, 1:-1] != pairs.source.tokens[:, 2:]).all()
    assert 0.2 < agree[:, 1:].float().mean() < 0.6
    assert pairs.counted.sum() > 100
    if match != "nothing":
        assert agree[pairs.matched].all()
    if match in ("neighbour", "occurrence"):
        assert agree[:, :-1][pairs.matched[:, 1:]].all()
    if match == "occurrence":
        assert (occurrences(pairs.base) == occurrences(pairs.source)).all(-1)[pairs.matched[:, 1:]].all()
        assert (pairs.base.find1 != pairs.source.find1)[pairs.matched].float().mean() > 0.5


def test_the_depth_4_checkpoint(depth4, task):
    found = hi.transplant(depth4, task, hops=4, sequences=60)
    assert found.best_family.values.tolist() == ["content"] * 4
    assert found.best.values.tolist() == [0, 0, 2, 4]
    content = found.iia.sel(family="content")
    assert float(content.sel(layer=0, hop=0)) > 0.99
    assert float(content.sel(layer=1, hop=0)) == pytest.approx(0.80, abs=0.03)
    assert float(content.sel(layer=2, hop=2)) == pytest.approx(0.59, abs=0.03)
    assert float(content.sel(layer=3, hop=4)) > 0.99
    assert float(found.iia.sel(layer=3, family="pointer", hop=0)) < 0.01
    assert ((found.low <= found.iia) & (found.iia <= found.high)).all()
    assert (found.untrained < 0.35).all()


def test_matching_its_own_letter_leaves_block_0_nothing(depth4, task):
    found = hi.transplant(depth4, task, hops=4, layers=[0, 3], match="occurrence", sequences=100)
    assert found.best.values.tolist() == [-1, 4]
    assert found.best_family.values.tolist() == ["none", "content"]
    assert float(found.iia.sel(layer=0, family="pointer", hop=0)) > 0.98  # no effect


@pytest.mark.parametrize("seed", range(1, 5))
@pytest.mark.parametrize("scale", [1, 10])
def test_untrained_models_stand_for_nothing(small_task, seed, scale):
    match = MATCHES[seed % 4]
    found = hi.transplant(random_model(small_task, seed, scale=scale), small_task, 1 + seed % 3, match=match)
    assert (found.best == -1).all()
    assert (found.best_family == "none").all()
    assert float(found.share_low.max()) < 0


def test_own_causal_models(depth3, task):
    known = {"nothing": lambda layer, base, source: torch.full_like(base.labels, -1)}  # noqa: ARG005
    known |= {"base": lambda layer, base, source: base.labels, "source": lambda layer, base, source: source.labels}  # noqa: ARG005
    found = hi.transplant(depth3, task, hops=2, sequences=20, predictions=known)
    assert found.prediction.values.tolist() == ["nothing", "base", "source"]
    assert found.model_iia.sel(prediction="nothing").isnull().all()
    found = found.sel(prediction=["base", "source"])
    source = found.model_iia.sel(prediction="source")
    np.testing.assert_allclose(source, found.iia.sel(family="content", hop=2))
    np.testing.assert_allclose(found.model_iia.sel(prediction="base"), found.iia.sel(family="pointer", hop=0))
    assert float(source.sel(layer=2)) > 0.99
    assert float(source.sel(layer=0)) < 0.5
    assert ((found.model_low <= found.model_iia) & (found.model_iia <= found.model_high)).all()


def test_heads_one_by_one(depth3, task):
    found = hi.transplant(depth3, task, hops=2, layers=[1], heads=True, sequences=20)
    assert dict(found.iia.sizes) == {"layer": 1, "head": 4, "family": 3, "hop": 3}
    assert found.best.dims == ("layer", "head")
    assert (found.iia.sel(family="pointer", hop=0) > found.iia.sel(family="content", hop=2)).all()


def test_a_hooked_transformer_gives_the_same(small_task):
    fused = random_model(small_task, 1, scale=20)
    hooked = fused.spec.build(fused.parameters)
    hooked.add_hook("blocks.2.hook_mlp_out", lambda value, hook: value)  # noqa: ARG005
    plain, seen = (hi.transplant(m, small_task, hops=2, sequences=20) for m in (fused, hooked))
    np.testing.assert_allclose(plain.iia, seen.iia)
    assert len(hooked.hook_points()) == len(fused.spec.build(fused.parameters).hook_points())
    assert sum(len(point.fwd_hooks) for point in hooked.hook_points()) == 1


def test_what_would_change_nothing_is_an_error(small_task):
    blind = random_model(small_task, 0)
    parameters = dict(blind.parameters) | {"embed.W_E": torch.zeros_like(blind.parameters["embed.W_E"])}
    for model in (dataclasses.replace(blind, parameters=parameters), blind.spec.build(parameters)):
        with pytest.raises(HopInterpError, match="block 0's resid_post is the same in base and source"):
            hi.transplant(model, small_task, hops=1, sequences=4)


def test_bad_questions_are_named(small_model, small_task):
    with pytest.raises(HopInterpError, match="hops is 9"):
        hi.transplant(small_model, small_task, hops=9)
    with pytest.raises(HopInterpError, match="layer is 2; this model has 0 to 1"):
        hi.transplant(small_model, small_task, hops=1, layers=[2])
    with pytest.raises(HopInterpError, match="match is 'all'"):
        hi.transplant(small_model, small_task, hops=1, match="all")
    short = dataclasses.replace(small_task, n_letters=4)
    with pytest.raises(HopInterpError, match="no position counts"):
        hi.transplant(small_model, short, hops=4)


def test_one_layer_may_be_a_number_and_progress_reaches_its_end(small_model, small_task):
    seen = []
    found = hi.transplant(small_model, small_task, np.int64(2), 1, heads=True, sequences=60, report=seen.append)
    assert dict(found.iia.sizes) == {"layer": 1, "head": 2, "family": 3, "hop": 3}
    assert {now.what for now in seen} == {"transplanting"}
    assert [now.done for now in seen] == [50, 100, 110, 120, 170, 220, 230, 240]  # heads, in the model and the untrained one
    assert seen[-1].total == 240


@pytest.mark.parametrize("heads", [False, True])
def test_results_go_to_netcdf(small_model, small_task, tmp_path, heads):
    own = {"base": lambda layer, base, source: base.labels}  # noqa: ARG005
    found = hi.transplant(small_model, small_task, hops=2, sequences=10, heads=heads, predictions=own)
    found.to_netcdf(tmp_path / "t.nc")
    xr.testing.assert_identical(xr.load_dataset(tmp_path / "t.nc"), found)
    assert all("long_name" in variable.attrs for variable in found.variables.values())
    assert found.attrs["margin"] == 0.1
    assert found.attrs["weights"].startswith("layer norm")
