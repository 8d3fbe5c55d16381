"""Path patching against the three-run algorithm that freezes everything, and by hand where the model is linear."""

import numpy as np
import pytest
import torch
import xarray as xr

from hopinterp import FusedTransformer, HopInterpError, HopTask, ModelSpec
from hopinterp.evidence.patching.pairs import draw_pairs
from hopinterp.evidence.patching.path import path_patch
from hopinterp.evidence.patching.runs import PairedRuns
from hopinterp.models.subject import Subject
from hopinterp.theory.construction import Construction

SHORT = HopTask(n_letters=24)


def read(logits, pairs):
    rows = torch.arange(len(pairs))
    here = logits[rows, pairs.position]
    return here[rows, pairs.right] - here[rows, pairs.wrong]


def between(found, sender, receiver, **cell):
    """The result of one path, heads as (layer, head)."""
    heads = {
        "sender_layer": sender[0],
        "sender_head": sender[1],
        "receiver_layer": receiver[0],
        "receiver_head": receiver[1],
    }
    return found.sel(heads | cell)


def by_freezing(model, pairs, sender, receiver, into):
    """Wang et al.'s algorithm, noising: freeze every head and MLP but the sender, note the receiver's input, put it in."""
    with torch.no_grad():
        _, clean = model.run_with_cache(pairs.clean.tokens)
        _, corrupt = model.run_with_cache(pairs.corrupt.tokens)

        def frozen(x, hook):
            x = clean[hook.name].clone()
            if hook.name == f"blocks.{sender[0]}.attn.hook_z":
                x[:, :, sender[1]] = corrupt[hook.name][:, :, sender[1]]
            return x

        noted = {}

        def note(x, hook):
            noted[hook.name] = x.clone()

        name = f"blocks.{receiver[0]}.attn.hook_{into}"
        frozen_hooks = [(lambda n: n.endswith(("hook_z", "hook_mlp_out")), frozen), (name, note)]
        model.run_with_hooks(pairs.clean.tokens, fwd_hooks=frozen_hooks)

        def put(x, hook):
            x[:, :, receiver[1]] = noted[hook.name][:, :, receiver[1]]
            return x

        return read(model.run_with_hooks(pairs.clean.tokens, fwd_hooks=[(name, put)]), pairs).double().sum()


@pytest.mark.parametrize("into", ["q", "k", "v"])
def test_equals_the_algorithm_that_freezes_everything(depth3, into):
    pairs = draw_pairs(SHORT, 2, 12, seed=0)
    found = path_patch(depth3, SHORT, 2, into=into, pairs=pairs)
    hooked = depth3.spec.build(depth3.parameters)
    clean, corrupt = (read(hooked(b.tokens).detach(), pairs).double().sum() for b in (pairs.clean, pairs.corrupt))
    for sender, receiver in (((0, 1), (1, 0)), ((0, 3), (2, 2)), ((1, 2), (2, 0)), ((1, 0), (2, 3))):
        expected = (by_freezing(hooked, pairs, sender, receiver, into) - clean) / (corrupt - clean)
        cell = between(found, sender, receiver, metric="logit_difference")
        assert float(cell.effect) == pytest.approx(float(expected), abs=1e-6)
        assert float(cell.low) <= float(cell.effect) <= float(cell.high)
    assert float(abs(found.effect.sel(metric="logit_difference")).max()) > 1e-3  # far above what is asked of the agreement


def test_by_hand_without_norms(small_task):
    """Two blocks of attention alone: q of the receiver moves by (z′ − z) W_O W_Q, and its head's output follows."""
    spec = ModelSpec.for_task(small_task, 2, d_model=32, n_heads=2, attn_only=True, normalization_type=None)
    p = {n: (12 if ".attn." in n else 50) * w for n, w in spec.initial_parameters(seed=1).items()}
    pairs = draw_pairs(small_task, 2, 1, seed=4)
    found = path_patch(FusedTransformer(spec, p), small_task, 2, into="q", senders=[(0, 1)], receivers=[(1, 0)], pairs=pairs)
    model = spec.build(p)
    with torch.no_grad():
        _, clean = model.run_with_cache(pairs.clean.tokens)
        _, corrupt = model.run_with_cache(pairs.corrupt.tokens)
        i = int(pairs.position)
        news = (corrupt["z", 0] - clean["z", 0])[0, i, 1] @ p["blocks.0.attn.W_O"][1]
        q = clean["q", 1][0, i, 0] + news @ p["blocks.1.attn.W_Q"][0]
        weights = (clean["k", 1][0, : i + 1, 0] @ q / spec.d_head**0.5).softmax(-1)
        z = weights @ clean["v", 1][0, : i + 1, 0]
        moved = (z - clean["z", 1][0, i, 0]) @ p["blocks.1.attn.W_O"][0]
        direction = p["unembed.W_U"][:, pairs.right[0]] - p["unembed.W_U"][:, pairs.wrong[0]]
        gap = read(model(pairs.corrupt.tokens), pairs) - read(model(pairs.clean.tokens), pairs)
    effect = float(found.effect.sel(metric="logit_difference").squeeze())
    assert effect == pytest.approx(float(moved @ direction / gap), rel=1e-3)
    assert abs(effect) > 1e-4


def test_the_path_of_a_construction():
    """Lookup at k = 1: block 0 tells the keys of block 1 what the last letter was, and tells it nothing else."""
    made = Construction.of(SHORT, 1, "lookup")
    found = path_patch(made.fused, SHORT, 1, into="k", sequences=60).effect.sel(metric="probability")
    assert float(between(found, (0, 0), (1, 0))) > 0.5
    for into in ("q", "v"):
        other = path_patch(made.fused, SHORT, 1, into=into, sequences=60).effect.sel(metric="probability")
        assert abs(float(between(other, (0, 0), (1, 0)))) < 1e-3


def test_only_later_blocks_receive_and_settings_are_told(depth3):
    seen = []
    found = path_patch(
        depth3, SHORT, 2, into="v", senders=[(0, 0), (1, 1)], receivers=[(1, 2), (2, 0)], pairs="one-link", link=1,
        direction="denoising", sequences=6, report=seen.append,
    )  # fmt: skip
    assert found.effect.dims == ("metric", "sender_layer", "sender_head", "receiver_layer", "receiver_head")
    told = {
        (a, b): bool(between(found, a, b, metric="accuracy").effect.notnull())
        for a in ((0, 0), (0, 1), (1, 0), (1, 1))
        for b in ((1, 2), (2, 0), (1, 0), (2, 2))
    }
    asked = [((0, 0), (1, 2)), ((0, 0), (2, 0)), ((1, 1), (2, 0))]  # of the four pairs one has its receiver no later
    assert [path for path, defined in told.items() if defined] == asked
    np.testing.assert_array_equal(found.normalised, found.effect)
    assert (found.attrs["into"], found.attrs["direction"], found.attrs["link"]) == ("v", "denoising", 1)
    assert (seen[-1].what, seen[-1].done, seen[-1].total) == ("path patching", 24, 24)


def test_a_sender_with_no_news_changes_exactly_nothing(depth3):
    parameters = dict(depth3.parameters)
    parameters["blocks.0.attn.W_O"] = parameters["blocks.0.attn.W_O"].clone()
    parameters["blocks.0.attn.W_O"][2] = 0
    silent = FusedTransformer(depth3.spec, parameters)
    found = path_patch(silent, SHORT, 2, senders=[(0, 2), (0, 1)], receivers=[(1, 0), (2, 1)], sequences=20)
    for receiver in ((1, 0), (2, 1)):
        assert float(between(found.effect, (0, 2), receiver, metric="logit_difference")) == 0
        assert float(between(found.effect, (0, 1), receiver, metric="logit_difference")) != 0


def test_memory_only_splits_the_work(depth3):
    pairs = draw_pairs(SHORT, 2, 5, seed=0)
    settings = {"senders": [(0, 1)], "receivers": [(1, 0)], "pairs": pairs}
    whole, parts = (path_patch(depth3, SHORT, 2, memory=memory, **settings) for memory in (2**28, 1))
    np.testing.assert_allclose(whole.effect, parts.effect, atol=1e-6)
    assert PairedRuns(Subject.of(depth3), pairs, "noising").scale.run.shape == (3, 5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"into": "z"}, "q, k or v"),
        ({"senders": [(3, 0)]}, "layers 0 to 2"),
        ({"direction": "back"}, "noising or denoising"),
    ],
)
def test_bad_requests(refuses, depth3, settings, message):
    with refuses(message):
        path_patch(depth3, SHORT, 2, sequences=2, **settings)


def test_a_model_whose_hooks_must_show_is_refused(small_model, small_task):
    hooked = small_model.spec.build(small_model.parameters)
    hooked.add_hook("blocks.0.hook_attn_out", lambda x, hook: 0 * x)  # noqa: ARG005
    with pytest.raises(HopInterpError, match="path patching needs the model's weights"):
        path_patch(hooked, small_task, 2, sequences=2)


def test_results_can_be_kept(small_model, small_task, tmp_path):
    found = path_patch(small_model, small_task, np.int64(2), pairs="one-link", sequences=6)
    found.to_netcdf(tmp_path / "found.nc")
    xr.testing.assert_identical(xr.load_dataset(tmp_path / "found.nc"), found)
    assert all("long_name" in variable.attrs for variable in found.variables.values())
    assert dict(found.effect.sizes) == {
        "metric": 3, "sender_layer": 2, "sender_head": 2, "receiver_layer": 2, "receiver_head": 2
    }  # fmt: skip
