"""Ablations against edited weights and plain loops, and the ways in which one could silently do nothing."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import xarray as xr

import hopinterp as hi
from hopinterp import FusedTransformer, HopInterpError
from hopinterp.evidence.patching.ablation import ablate, ablated


@pytest.fixture(scope="module")
def hooked(small_model):
    return small_model.spec.build(small_model.parameters)


def without(small_model, **zeroed):
    """The small model with some weights set to zero: another way to take a part out."""
    parameters = {name: p.clone() for name, p in small_model.parameters.items()}
    for name, index in zeroed.items():
        parameters[name.replace("__", ".")][index] = 0
    return FusedTransformer(small_model.spec, parameters)


@pytest.mark.parametrize(
    ("part", "zeroed"),
    [
        (1, {"blocks__1__attn__W_O": 1}),
        ("attn", {"blocks__1__attn__W_O": ..., "blocks__1__attn__b_O": ...}),
        ("mlp", {"blocks__1__mlp__W_out": ..., "blocks__1__mlp__b_out": ...}),
        (
            "block",
            {f"blocks__1__{name}": ... for name in ("attn__W_O", "attn__b_O", "mlp__W_out", "mlp__b_out")},
        ),
    ],
)
def test_zero_is_what_zeroed_weights_give(small_model, hooked, small_task, part, zeroed):
    tokens = small_task.sample(4, hops=2, seed=0).tokens
    expected, whole = without(small_model, **zeroed)(tokens), small_model(tokens)
    for model in (hooked, small_model):
        with torch.no_grad(), ablated(model, 1, part) as run:
            found = model(tokens)
            torch.testing.assert_close(run(tokens), found)
        torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)
        assert not torch.allclose(found, whole, atol=0.1)
        torch.testing.assert_close(model(tokens), whole, atol=2e-5, rtol=1e-5)


def test_what_is_measured_inside_shows_the_ablation(depth3):
    task = hi.HopTask(n_letters=40)
    for model in (depth3, depth3.spec.build(depth3.parameters)):
        before = hi.evaluate(model, task, 2, sequences=10).error.item()
        with ablated(model, 1, "attn"):
            inside = hi.evaluate(model, task, 2, sequences=10).error.item()
        after = hi.evaluate(model, task, 2, sequences=10).error.item()
        assert before == after < 0.01
        assert inside > 0.3


def test_mean_and_resample_by_hand(hooked, small_task):
    found = ablate(hooked, small_task, 1, sequences=6, seed=5)
    generator = torch.Generator().manual_seed(5)
    batch, other = (small_task.sample(6, hops=1, generator=generator) for _ in range(2))
    with torch.no_grad():
        _, cache = hooked.run_with_cache(other.tokens)
        for kind, value in (("mean", cache["z", 0].mean(0)), ("resample", cache["z", 0])):

            def put(z, hook, value=value):  # noqa: ARG001
                z[:, :, 1] = value[..., 1, :]
                return z

            wrong = hooked.run_with_hooks(batch.tokens, fwd_hooks=[("blocks.0.attn.hook_z", put)]).argmax(-1) != batch.labels
            error = float(wrong[batch.scored].double().mean())
            assert float(found.head_error.sel(kind=kind, layer=0, head=1)) == pytest.approx(error)
        whole = hooked(batch.tokens).argmax(-1) != batch.labels
    assert float(found.whole_error) == pytest.approx(float(whole[batch.scored].double().mean()))
    np.testing.assert_allclose(found.change, found.error - found.whole_error)
    np.testing.assert_allclose(found.head_change, found.head_error - found.whole_error)


def test_heads_that_a_checkpoint_needs(depth3):
    task = hi.HopTask(n_letters=40)
    seen = []
    found = ablate(depth3, task, 2, kinds=["resample"], sequences=25, seed=0, report=seen.append).sel(kind="resample")
    assert found.component.values.tolist() == ["attn", "mlp", "block"]
    assert found["head"].values.tolist() == [0, 1, 2, 3]
    assert found.error.dims == ("layer", "component")
    assert found.head_error.dims == ("layer", "head")
    assert float(found.whole_error) < 0.01
    assert (found.change.sel(component="attn") > 0.3).all()  # every block's attention serves two hops
    assert (found.low <= found.change).all()
    assert (found.change <= found.high).all()
    assert (found.head_low <= found.head_change).all()
    assert (found.head_change <= found.head_high).all()
    assert (found.head_change.max("head") <= found.change.sel(component="attn") + 0.15).all()
    assert [(now.what, now.done, now.total) for now in seen] == [("ablating", n, 21) for n in range(1, 22)]


def test_a_silent_part_changes_nothing_and_a_dead_hook_is_an_error(small_model, small_task):
    silent = without(small_model, blocks__0__attn__W_V=1, blocks__0__attn__b_V=1)
    found = ablate(silent, small_task, 1, sequences=5)
    assert (found.head_change.sel(layer=0, head=1) == 0).all()
    hooked = silent.spec.build(silent.parameters)
    with pytest.raises(RuntimeError, match="changed nothing"), ablated(hooked, 0, 1):
        hooked(small_task.sample(2, hops=1, seed=0).tokens)
    with pytest.raises(RuntimeError, match="never fired"), ablated(hooked, 0, 0):
        pass
    with pytest.raises(KeyError), ablated(hooked, 0, 0):
        raise KeyError
    assert not any(point.fwd_hooks for point in hooked.hook_dict.values())


def test_attention_only_models_have_no_mlp_to_ablate(small_model, small_task):
    spec = replace(small_model.spec, attn_only=True)
    bare = FusedTransformer(spec, {n: 10 * p for n, p in spec.initial_parameters(0).items()})
    found = ablate(bare, small_task, 1, kinds=["zero"], sequences=5)
    assert found.component.values.tolist() == ["attn", "block"]
    np.testing.assert_array_equal(found.error.sel(component="attn"), found.error.sel(component="block"))
    np.testing.assert_array_less(found.whole_error - 1e-9, found.error)


@pytest.mark.parametrize(
    ("layer", "part", "message"), [(2, 0, "0 to 1"), (0, 2, "head is 2"), (0, "norm", "0, 1, attn, mlp, block")]
)
def test_no_such_part(hooked, layer, part, message):
    with pytest.raises(HopInterpError, match=message), ablated(hooked, layer, part):
        pass


def test_no_such_kind(refuses, small_model, small_task):
    with refuses("zero, mean, resample"):
        ablate(small_model, small_task, 1, kinds=["knockout"])
    with refuses("0 to 4"):
        ablate(small_model, small_task, 5)


def test_results_can_be_kept(small_model, small_task, tmp_path):
    found = ablate(small_model, small_task, np.int64(1), sequences=5)
    found.to_netcdf(tmp_path / "found.nc")
    xr.testing.assert_identical(xr.load_dataset(tmp_path / "found.nc"), found)
    assert all("long_name" in variable.attrs for variable in found.variables.values())
    assert (found.attrs["hops"], found.attrs["sequences"], found.attrs["seed"]) == (1, 5, 0)
