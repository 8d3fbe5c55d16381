"""Activation patching against TransformerLens's own, what must and what cannot matter, and patches that fail."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import transformer_lens.patching as theirs
import xarray as xr

import hopinterp as hi
from hopinterp import FusedTransformer, HopInterpError, HopTask, ModelSpec
from hopinterp.evidence.patching.activation import patch
from hopinterp.evidence.patching.effects import measure
from hopinterp.evidence.patching.pairs import Pairs, draw_pairs
from hopinterp.evidence.patching.runs import PairedRuns
from hopinterp.models.hooks import SITES, Overwrite
from hopinterp.models.subject import Subject

THEIRS = {
    "resid_pre": theirs.get_act_patch_resid_pre,
    "resid_mid": theirs.get_act_patch_resid_mid,
    "attn_out": theirs.get_act_patch_attn_out,
    "mlp_out": theirs.get_act_patch_mlp_out,
    "z": theirs.get_act_patch_attn_head_out_by_pos,
    "q": theirs.get_act_patch_attn_head_q_by_pos,
    "k": theirs.get_act_patch_attn_head_k_by_pos,
    "v": theirs.get_act_patch_attn_head_v_by_pos,
    "pattern": theirs.get_act_patch_attn_head_pattern_by_pos,
}


def normalised_by_theirs(model, pairs, site):
    """TransformerLens's sweep of the same pairs, as [layer, head, position] or [layer, position]; 0 corrupt, 1 clean."""
    rows = torch.arange(len(pairs))

    def metric(logits):
        read = logits[rows, pairs.position]
        return (read[rows, pairs.right] - read[rows, pairs.wrong]).double().mean()

    with torch.no_grad():
        clean, cache = model.run_with_cache(pairs.clean.tokens)
        floor = metric(model(pairs.corrupt.tokens))
        found = THEIRS[site](model, pairs.corrupt.tokens, cache, metric)
    found = (found.double() - floor) / (metric(clean) - floor)
    return (found.transpose(1, 2) if site in ("z", "q", "k", "v") else found).numpy()


@pytest.fixture(scope="module")
def small_hooked(small_model):
    return small_model.spec.build(small_model.parameters)


@pytest.fixture(scope="module")
def small_pairs(small_task):
    return draw_pairs(small_task, 2, 5, seed=0)


@pytest.fixture(scope="module")
def short_task():
    """The paper's letters in short sequences, which its models read as well."""
    return HopTask(n_letters=24)


@pytest.fixture(scope="module")
def short_pairs(short_task):
    return draw_pairs(short_task, 2, 6, kind="one-link", seed=0)


@pytest.mark.parametrize("site", THEIRS)
def test_equals_transformer_lens_on_a_small_model(small_hooked, small_task, small_pairs, site):
    runs = PairedRuns(Subject.of(small_hooked), small_pairs, "denoising")
    n = small_task.n_positions
    logits = runs.patched(SITES[site], torch.arange(n).expand(len(small_pairs), n))
    values = measure(logits, small_pairs.right, small_pairs.wrong)[0].mean(-1)
    corrupt, clean = runs.scale.run[0].mean(), runs.scale.source[0].mean()
    ours = ((values - corrupt) / (clean - corrupt)).numpy()
    expected = normalised_by_theirs(small_hooked, small_pairs, site)
    np.testing.assert_allclose(ours if ours.shape[1] > 1 else ours[:, 0], expected, atol=1e-5)
    assert np.abs(expected).max() > 0.1


@pytest.mark.parametrize("by_hooks", [False, True])
@pytest.mark.parametrize("site", ["resid_pre", "attn_out", "z"])
def test_equals_transformer_lens_on_a_checkpoint(depth3, short_task, short_pairs, site, by_hooks):
    found = patch(depth3, short_task, 2, site=site, pairs=short_pairs, by_hooks=by_hooks)
    expected = normalised_by_theirs(depth3.spec.build(depth3.parameters), short_pairs, site)
    np.testing.assert_allclose(found.normalised.sel(metric="logit_difference"), expected, atol=1e-5)
    assert np.abs(expected).max() > 0.1


@pytest.mark.parametrize("site", ["resid_post", "z"])
@pytest.mark.parametrize("direction", ["noising", "denoising"])
def test_chain_places_are_places_of_the_position_picture(depth3, short_task, site, direction):
    """One pair, so that the chain picture must be columns of the position picture, for the simple path and the sweeps."""
    pairs = draw_pairs(short_task, 2, 1, seed=3)
    settings = {"site": site, "pairs": pairs, "direction": direction}
    everywhere = patch(depth3, short_task, 2, by="position", **settings)
    for by_hooks in (False, True):
        chain = patch(depth3, short_task, 2, by="chain", by_hooks=by_hooks, **settings)
        for j in range(3):
            for where, place in (("at", pairs.chain[0, j]), ("before", pairs.chain[0, j] - 1)):
                cell = chain.sel(hop=j, where=where)
                if int(cell.pairs):
                    there = everywhere.effect.sel(position=int(place))
                    np.testing.assert_allclose(cell.effect, there, atol=1e-5)


@pytest.mark.parametrize("by_hooks", [False, True])
@pytest.mark.parametrize("site", ["resid_pre", "z", "k"])
def test_what_cannot_matter_is_exactly_nothing(depth3, short_task, short_pairs, site, by_hooks):
    found = patch(depth3, short_task, 2, site=site, pairs=short_pairs, by_hooks=by_hooks).effect
    places = short_pairs.chain[torch.arange(len(short_pairs)), short_pairs.link]
    before, behind = int(places.min()), int(short_pairs.position.max())
    assert before > 1
    assert (found.isel(position=slice(0, before)) == 0).all()  # one-link: no token before the edit differs
    assert (found.isel(position=slice(behind + 1, None)) == 0).all()  # no answer looks ahead
    assert np.isfinite(found).all()
    assert float(abs(found).max()) > 0.01


def test_everything_patched_is_exactly_the_other_run(depth3, short_task, short_pairs):
    for direction in ("noising", "denoising"):
        found = patch(depth3, short_task, 2, site="resid_pre", by="all", pairs=short_pairs, direction=direction)
        assert found.effect.dims == ("metric", "layer")
        np.testing.assert_allclose(found.effect, 1, atol=1e-6)
        np.testing.assert_allclose(found.normalised, 0 if direction == "noising" else 1, atol=1e-6)
    heads = patch(depth3, short_task, 2, site="z", by="all", pairs=short_pairs)
    assert heads.effect.dims == ("metric", "layer", "head")
    assert 0.05 < float(abs(heads.effect).max()) != 1


def test_the_chain_picture_names_its_control_and_counts_its_pairs(depth3, short_task):
    found = patch(depth3, short_task, 2, by="chain", sequences=30, seed=1)
    assert found.attrs == {
        "model": "", "n_letters": 24, "alphabet_size": 4, "max_hops": 16, "version": found.attrs["version"], "seed": 1,
        "hops": 2, "site": "resid_post", "by": "chain", "direction": "noising", "pairs": "resample", "sequences": 30,
        "redrawn": found.attrs["redrawn"], "level": 0.95, "bar": 0.375,
        "weights": "layer norm with its weights; W_U not centred; writing weights not centred; b_V not zero",
        "model_digest": Subject.of(depth3).weights_for("its digest").digest(),
    }  # fmt: skip
    assert found.effect.dims == ("metric", "layer", "hop", "where")
    assert int(found.pairs.sel(hop=0, where="at")) == 30
    assert int(found.pairs.sel(hop=1, where="at")) == int(found.pairs.sel(hop=0, where="before")) < 30
    seen = found.sel(metric="probability")
    # the last block's output at i is the answer, and nothing else is; it needed the chain in block 0
    assert float(seen.effect.sel(layer=2, hop=0, where="at")) == pytest.approx(1, abs=1e-3)
    assert (seen.effect.sel(layer=2, hop=[1, 2]) == 0).all()
    assert (seen.effect.sel(layer=0, where="at") > 0.4).all()
    assert (seen.off_chain < 0.25).all()
    assert seen.matters.sel(layer=0, where="at").all()
    assert not seen.matters.sel(layer=[1, 2], where="before").any()
    assert seen.matters.sel(layer=2).sum() == 1
    assert (found.low <= found.effect + 1e-9).all()
    assert (found.high >= found.effect - 1e-9).all()
    assert float(found.clean.sel(metric="accuracy")) == 1


def test_pairs_line_up_by_position(small_model, small_task):
    """By position all drawn pairs are watched at the last letter: the last block's output there is the answer."""
    found = patch(small_model, small_task, 2, sequences=1).effect.sel(layer=1, metric="logit_difference")
    np.testing.assert_allclose(found, np.arange(21) == 20, atol=1e-5)


def test_the_bar_is_half_of_what_a_broken_answer_shows(depth3, short_task):
    cases = (("resample", "noising", 0.375), ("resample", "denoising", 0.5), ("one-link", "noising", 0.5))
    for kind, direction, bar in cases:
        found = patch(depth3, short_task, 2, by="chain", pairs=kind, direction=direction, sequences=4)
        assert found.attrs["bar"] == bar


def test_denoising_one_link_follows_the_news(depth3, short_task):
    """The letter at find²(i) changed: only there is it known at first, and at the end only at i."""
    found = patch(
        depth3, short_task, 2, site="resid_pre", by="chain", pairs="one-link", link=2, direction="denoising", sequences=40
    ).effect.sel(metric="logit_difference", where="at")
    np.testing.assert_allclose(found.sel(layer=0), [0, 0, 1], atol=1e-5)
    final = patch(
        depth3, short_task, 2, by="chain", pairs="one-link", link=2, direction="denoising", sequences=40
    ).effect.sel(metric="logit_difference", where="at")
    np.testing.assert_allclose(final.sel(layer=2), [1, 0, 0], atol=1e-5)


def test_an_untrained_model_has_no_scale_to_measure_on(short_task):
    spec = ModelSpec.for_task(short_task, 2, d_model=32, n_heads=2)
    found = patch(FusedTransformer(spec, spec.initial_parameters(0)), short_task, 2, by="chain", sequences=60)
    assert np.isnan(found.effect.sel(metric="accuracy")).all()
    assert float(abs(found.clean - found.corrupt).sel(metric="probability")) < 0.01


def test_the_models_own_hooks_are_respected_and_ours_come_off(small_hooked, small_task, small_pairs):
    before = patch(small_hooked, small_task, 2, site="v", by="all", pairs=small_pairs)
    small_hooked.add_hook("blocks.0.hook_attn_out", lambda x, hook: 0 * x)  # noqa: ARG005
    try:
        after = patch(small_hooked, small_task, 2, site="v", by="all", pairs=small_pairs)
        fast = patch(small_hooked, small_task, 2, site="resid_post", pairs=small_pairs)
        assert len(small_hooked.hook_dict["blocks.0.hook_attn_out"].fwd_hooks) == 1
    finally:
        small_hooked.reset_hooks()
    assert not np.allclose(before.clean, after.clean)
    np.testing.assert_array_equal(after.clean, fast.clean)
    assert not any(point.fwd_hooks for point in small_hooked.hook_dict.values())


def test_a_model_and_its_weights_are_patched_in_one_pass(depth3, short_task, short_pairs):
    hooked = depth3.spec.build(depth3.parameters)
    ours, theirs = (patch(m, short_task, 2, site="v", by="chain", pairs=short_pairs) for m in (depth3, hooked))
    np.testing.assert_array_equal(ours.effect, theirs.effect)
    assert float(abs(ours.effect).max()) > 0.1


def test_a_patch_that_does_nothing_is_an_error_and_hooks_come_off(small_hooked, small_pairs):
    tokens = small_pairs.clean.tokens
    _, cache = small_hooked.run_with_cache(tokens, names_filter="blocks.1.hook_resid_pre")
    index = (torch.arange(5), torch.full((5,), 7))
    same = Overwrite(index, cache["blocks.1.hook_resid_pre"][index])
    with (
        pytest.raises(RuntimeError, match=r"5 of 5 places at blocks\.1\.hook_resid_pre changed nothing"),
        Subject.of(small_hooked).hooks([("blocks.1.hook_resid_pre", same)]) as run,
    ):
        run(tokens)
    assert not any(point.fwd_hooks for point in small_hooked.hook_dict.values())
    with (
        pytest.raises(RuntimeError, match=r"blocks\.0\.hook_q_input never fired"),
        Subject.of(small_hooked).hooks([("blocks.0.hook_q_input", same)]) as run,
    ):
        run(tokens)
    assert not any(point.fwd_hooks for point in small_hooked.hook_dict.values())


def test_memory_and_report(small_hooked, small_task, small_pairs):
    seen = []
    settings = {"site": "q", "pairs": small_pairs}
    whole = patch(small_hooked, small_task, 2, **settings)
    parts = patch(small_hooked, small_task, 2, memory=1, report=seen.append, **settings)
    np.testing.assert_allclose(whole.effect, parts.effect, atol=1e-6)
    *runs, _, _, last = seen
    done = [now.done for now in runs]
    assert (runs[-1].done, runs[-1].total) == (2 * 2 * 21 * 5,) * 2
    assert len(runs) > 100  # a run at a time
    assert done == sorted(done)
    assert (last.what, last.done, last.total) == ("intervals", 3, 3)
    swept = []
    patch(small_hooked, small_task, 2, pairs=small_pairs, report=swept.append)
    assert (swept[4].what, swept[4].done, swept[4].total) == ("patching", 5, 5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"site": "mlp_in"}, "it is one of resid_pre"),
        ({"by": "layer"}, "position, chain or all"),
        ({"direction": "up"}, "noising or denoising"),
        ({"hops": 3}, "the given pairs ask for 2"),
        ({"hops": 2.0}, "hops is 2.0; it is one whole number"),
        ({"hops": True}, "hops is True"),
    ],
)
def test_bad_requests(refuses, small_model, small_task, small_pairs, settings, message):
    with refuses(message):
        patch(small_model, small_task, **{"hops": 2, "pairs": small_pairs} | settings)


@pytest.mark.parametrize("site", ["resid_mid", "mlp_out"])
def test_blocks_without_mlp_lack_two_sites(small_model, small_task, small_pairs, site):
    spec = replace(small_model.spec, attn_only=True)
    bare = FusedTransformer(spec, spec.initial_parameters(0))
    for model in (bare, spec.build(bare.parameters)):
        with pytest.raises(HopInterpError, match="no MLP"):
            patch(model, small_task, 2, site=site, pairs=small_pairs)


@pytest.mark.parametrize("settings", [{"by": "chain"}, {"site": "z"}, {"site": "pattern", "by": "all"}])
def test_results_can_be_kept(small_model, small_task, tmp_path, settings):
    found = patch(small_model, small_task, np.int64(2), pairs="one-link", sequences=20, **settings)
    found.to_netcdf(tmp_path / "found.nc")
    xr.testing.assert_identical(xr.load_dataset(tmp_path / "found.nc"), found)
    assert all("long_name" in variable.attrs for variable in found.variables.values())
    assert found.attrs["link"] == "drawn"


def test_an_unknown_setting_is_no_setting(small_model, small_task):
    with pytest.raises(TypeError, match="lnk"):
        patch(small_model, small_task, 2, lnk=1)


def test_public_names():
    assert hi.patch is patch
    assert hi.Pairs is Pairs
    assert hi.draw_pairs is draw_pairs
