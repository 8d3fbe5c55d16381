"""Direct logit attribution against TransformerLens's own, and attribution patching against finite differences."""

import numpy as np
import pytest
import torch
import xarray as xr

from hopinterp import FusedTransformer, HopInterpError, HopTask, ModelSpec
from hopinterp.evidence.patching.attribution import attribution_patch, direct_logit_attribution
from hopinterp.evidence.patching.pairs import draw_pairs
from hopinterp.models.subject import Subject


@pytest.fixture(scope="module")
def hooked(small_model):
    return small_model.spec.build(small_model.parameters)


@pytest.fixture(scope="module")
def pairs(small_task):
    return draw_pairs(small_task, 2, 40, seed=0)


@pytest.fixture(scope="module")
def linear(small_task):
    """A model whose last block adds to the logits linearly: no norms, no MLPs."""
    spec = ModelSpec.for_task(small_task, 2, d_model=32, n_heads=2, attn_only=True, normalization_type=None)
    return FusedTransformer(spec, {n: (12 if "W_" in n else 1) * p for n, p in spec.initial_parameters(seed=1).items()})


def read(logits, pairs):
    rows = torch.arange(len(pairs))
    here = logits[rows, pairs.position]
    return here[rows, pairs.right] - here[rows, pairs.wrong]


def shares(found, end=""):
    """All contributions in one row: heads, MLPs, the rest."""
    names = [name + end for name in ("heads", "mlp", "other") if name in found]
    return np.concatenate([found[name].values.ravel() for name in names])


def test_contributions_sum_to_the_logit_difference(small_model, linear, depth3, small_task, pairs):
    for model, task, given in (
        (small_model, small_task, pairs),
        (linear, small_task, pairs),
        (depth3, HopTask(n_letters=24), draw_pairs(HopTask(n_letters=24), 2, 40, seed=0)),
    ):
        found = direct_logit_attribution(model, task, 2, pairs=given)
        direct = read(model(given.clean.tokens), given).mean()
        assert float(found.logit_difference) == pytest.approx(float(direct), abs=1e-5)
        assert float(shares(found).sum()) == pytest.approx(float(direct), abs=2e-5)
        assert (shares(found, "_low") <= shares(found)).all()
        assert (shares(found) <= shares(found, "_high")).all()
        assert float(abs(shares(found)).max()) > 0.05
        assert ("mlp" in found) != model.spec.attn_only


def test_contributions_are_transformer_lenss_on_folded_weights(small_model, small_task, pairs):
    hooked = small_model.spec.build(small_model.parameters)
    with torch.no_grad():
        for block in hooked.blocks:
            block.ln1.w.uniform_(0.5, 2, generator=torch.Generator().manual_seed(0))
        hooked.ln_final.w.uniform_(0.5, 2, generator=torch.Generator().manual_seed(1))
        hooked.ln_final.b.uniform_(-1, 1, generator=torch.Generator().manual_seed(2))
    ours = direct_logit_attribution(hooked, small_task, 2, pairs=pairs)
    hooked.process_weights_(fold_ln=True, center_writing_weights=False, center_unembed=False)
    _, cache = hooked.run_with_cache(pairs.clean.tokens)
    stack, labels = cache.get_full_resid_decomposition(expand_neurons=False, apply_ln=False, return_labels=True)
    theirs = cache.logit_attrs(stack, tokens=pairs.right[:, None], incorrect_tokens=pairs.wrong[:, None])
    expected = theirs[:, torch.arange(40), pairs.position].mean(1).detach()
    theirs = dict(zip(labels, expected.tolist(), strict=True))
    for layer in range(2):
        assert float(ours.mlp.sel(layer=layer)) == pytest.approx(theirs.pop(f"{layer}_mlp_out"), abs=1e-5)
        for head in range(2):
            assert float(ours.heads.sel(layer=layer, head=head)) == pytest.approx(theirs.pop(f"L{layer}H{head}"), abs=1e-5)
    assert set(theirs) | {"unembed"} == set(ours.component.values)
    for name, share in theirs.items():
        assert float(ours.other.sel(component=name)) == pytest.approx(share, abs=1e-5)
    again = direct_logit_attribution(hooked, small_task, 2, pairs=pairs)
    np.testing.assert_allclose(shares(again), shares(ours), atol=1e-5)


def test_what_was_done_to_the_weights_is_recorded(small_model):
    hooked = small_model.spec.build(small_model.parameters)
    assert Subject.of(hooked).processing == Subject.of(small_model).processing
    assert Subject.of(hooked).processing.startswith(
        "layer norm with its weights; W_U not centred; writing weights not centred; b_V"
    )
    with torch.no_grad():
        hooked.blocks[0].attn.b_V.fill_(1.0)
    assert Subject.of(hooked).processing.endswith("b_V not zero")
    hooked.process_weights_()
    expected = "layer norm weights folded in; W_U centred; writing weights centred; b_V zero (folded into b_O, or none)"
    assert Subject.of(hooked).processing == expected


@pytest.mark.parametrize("site", ["resid_pre", "z", "q", "k", "v", "pattern", "mlp_out"])
def test_estimates_are_derivatives(hooked, small_task, site):
    """One cell, moved a little towards the other run and a little away from it."""
    pairs = draw_pairs(small_task, 2, 1, position=20, seed=0)  # many would leave no scale: the model is untrained
    per_head = site in ("z", "q", "k", "v", "pattern")
    name = f"blocks.0.attn.hook_{site}" if per_head else f"blocks.0.hook_{site}"
    index = (slice(None), 1, 19) if site == "pattern" else (slice(None), 19, 1) if per_head else (slice(None), 19)
    with torch.no_grad():
        clean, cache = hooked.run_with_cache(pairs.clean.tokens)

        def metric(share):
            def move(x, hook):  # noqa: ARG001
                x[index] += share * (cache[name][index] - x[index])
                return x

            return read(hooked.run_with_hooks(pairs.corrupt.tokens, fwd_hooks=[(name, move)]), pairs).double().mean()

        slope = (metric(0.02) - metric(-0.02)) / 0.04
        gap = read(clean, pairs).double().mean() - metric(0)
    found = attribution_patch(hooked, small_task, 2, site=site, pairs=pairs, exact=False)
    cell = found.estimate.sel(metric="logit_difference", layer=0, position=19)
    assert float(cell.sel(head=1) if per_head else cell) == pytest.approx(float(slope / gap), rel=0.02, abs=1e-4)
    assert "effect" not in found


def test_estimates_are_exact_where_the_model_is_linear(linear, small_task):
    pairs = draw_pairs(small_task, 2, 1, position=20, seed=0)  # one pair has a scale whatever the model
    found = attribution_patch(linear, small_task, 2, site="z", pairs=pairs)
    last = found.sel(layer=1, metric="logit_difference")
    np.testing.assert_allclose(last.estimate, last.effect, atol=1e-5)
    np.testing.assert_allclose(last.estimate_low, last.low, atol=1e-5)
    assert float(abs(last.effect).max()) > 0.01
    assert float(found.correlation.sel(metric="logit_difference")) > 0.5


def test_correlation_is_pearsons_over_all_cells(depth3):
    task = HopTask(n_letters=24)
    found = attribution_patch(depth3, task, 2, site="z", by="chain", sequences=30)
    assert found.estimate.dims == found.effect.dims == ("metric", "layer", "head", "hop", "where")
    for metric in ("logit_difference", "probability"):
        one = found.sel(metric=metric)
        expected = np.corrcoef(one.estimate.values.ravel(), one.effect.values.ravel())[0, 1]
        assert float(one.correlation) == pytest.approx(expected)
    whole = attribution_patch(depth3, task, 2, site="resid_post", by="all", sequences=10)
    assert whole.estimate.dims == ("metric", "layer")


def test_frozen_parameters_do_not_matter(small_model, small_task, pairs):
    hooked = small_model.spec.build(small_model.parameters)
    before = attribution_patch(hooked, small_task, 2, pairs=pairs, exact=False)
    hooked.requires_grad_(False)
    after = attribution_patch(hooked, small_task, 2, pairs=pairs, exact=False)
    np.testing.assert_array_equal(before.estimate, after.estimate)
    assert all(p.grad is None for p in hooked.parameters())
    assert not any(point.fwd_hooks for point in hooked.hook_dict.values())


def test_models_without_weights_are_named(small_model, small_task, pairs):
    hooked = small_model.spec.build(small_model.parameters)
    hooked.add_hook("blocks.0.hook_attn_out", lambda x, hook: 0 * x)  # noqa: ARG005
    with pytest.raises(HopInterpError, match="direct logit attribution needs the model's weights"):
        direct_logit_attribution(hooked, small_task, 2, pairs=pairs)


def test_a_norm_that_cannot_be_frozen_is_refused(refuses, small_model, small_task, pairs):
    hooked = small_model.spec.build(small_model.parameters)
    hooked.cfg.normalization_type = "RMS"
    with refuses("direct logit attribution needs the model's weights"):
        direct_logit_attribution(hooked, small_task, 2, pairs=pairs)


def test_progress_reaches_its_end(small_model, small_task, pairs):
    seen = []
    attribution_patch(small_model, small_task, 2, pairs=pairs, report=seen.append)
    ends = {now.what: (now.done, now.total) for now in seen}
    assert ends == {"gradients": (40, 40), "patching": (40, 40), "intervals": (3, 3)}


@pytest.mark.parametrize("settings", [{"by": "chain"}, {"exact": False, "site": "resid_mid"}])
def test_results_can_be_kept(small_model, small_task, pairs, tmp_path, settings):
    estimates = attribution_patch(small_model, small_task, 2, pairs=pairs, **settings)
    direct = direct_logit_attribution(small_model, small_task, 2, pairs="one-link", link=2, sequences=5)
    for found in (estimates, direct):
        found.to_netcdf(tmp_path / "found.nc")
        xr.testing.assert_identical(xr.load_dataset(tmp_path / "found.nc"), found)
        assert all("long_name" in variable.attrs for variable in found.variables.values())
        assert found.attrs["weights"] == Subject.of(small_model).processing
        (tmp_path / "found.nc").unlink()
