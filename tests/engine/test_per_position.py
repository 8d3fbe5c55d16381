"""Forks at every position in one pass: exact, differentiable, and the same by hooks where there are no weights to go by."""

import dataclasses

import pytest
import torch

import hopinterp as hi
from hopinterp import HopInterpError
from hopinterp.engine.cached_run import Run
from hopinterp.engine.per_position import go_on, transplanted, with_head
from hopinterp.models.hooks import resid_post
from hopinterp.models.subject import Subject

NO_NORM = {"attn_only": True, "normalization_type": None, "use_attn_scale": False}


def random_model(task, seed, n_layers=3, scale=10, **sizes):
    spec = hi.ModelSpec.for_task(task, n_layers, **{"d_model": 32, "n_heads": 2, **sizes})
    parameters = spec.initial_parameters(seed)
    return hi.FusedTransformer(spec, {name: p * (scale if "W_" in name else 1) for name, p in parameters.items()})


def by_hooks(fused):
    """A subject that runs by its hooks only."""
    hooked = fused.spec.build(fused.parameters)
    return dataclasses.replace(Subject.of(hooked), weights=None)


@pytest.fixture
def tokens(small_task):
    return [small_task.sample(3, hops=2, seed=seed).tokens for seed in (0, 1)]


@pytest.mark.parametrize("sizes", [{}, NO_NORM])
@pytest.mark.parametrize("head", [None, 1])
def test_all_positions_at_once_equal_one_at_a_time(small_task, tokens, sizes, head):
    fused = random_model(small_task, 5, scale=10 if not sizes else 16, **sizes)
    hooked = fused.spec.build(fused.parameters)
    base, source = tokens
    sites = [(layer, head) for layer in range(3)]
    for (layer, _), logits in zip(sites, transplanted(Subject.of(fused), base, source, sites), strict=True):
        name = resid_post(layer) if head is None else f"blocks.{layer}.attn.hook_z"
        theirs = hooked.run_with_cache(source)[1][name]
        for i in (0, 1, 7, 20):

            def put(value, hook, i=i, theirs=theirs):  # noqa: ARG001
                unit = (slice(None), i) if head is None else (slice(None), i, head)
                value[unit] = theirs[unit]
                return value

            slow = hooked.run_with_hooks(base, fwd_hooks=[(name, put)])[:, i]
            assert i == 0 or (slow - hooked(base)[:, i]).abs().max() > 1e-3
            torch.testing.assert_close(logits[:, i], slow, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("sizes", [{}, NO_NORM])
def test_without_weights_hooks_give_the_same(small_task, tokens, sizes):
    """At every position, of resid_post and of one head's z; and the hooks come off."""
    fused = random_model(small_task, 5, scale=10 if not sizes else 16, **sizes)
    subject, sites = by_hooks(fused), [(0, None), (1, 0), (2, 1)]
    before = subject(tokens[0])
    found = [list(transplanted(one, *tokens, sites)) for one in (Subject.of(fused), subject)]
    for fast, slow in zip(*found, strict=True):
        assert (slow - before).abs().max() > 1e-3
        torch.testing.assert_close(fast, slow, atol=1e-5, rtol=1e-5)
    assert torch.equal(subject(tokens[0]), before)


def test_hooks_that_a_user_attached_show(small_task, tokens):
    """A model with a hook of its own goes by hooks, and its own is among them."""
    fused = random_model(small_task, 5)
    hooked = fused.spec.build(fused.parameters)
    (plain,) = transplanted(Subject.of(hooked), *tokens, [(0, None)])
    hooked.add_hook("blocks.2.hook_mlp_out", lambda value, hook: value * 0)  # noqa: ARG005
    (found,) = transplanted(Subject.of(hooked), *tokens, [(0, None)])
    assert (found - plain).abs().max() > 1e-2


def test_a_near_one_hot_head_loses_no_precision(small_task):
    fused = random_model(small_task, 2, scale=40)
    base, source = (small_task.sample(8, hops=2, seed=seed).tokens for seed in (0, 1))
    peaks = fused.run_with_cache(base, ["blocks.1.attn.hook_pattern"])[1]["blocks.1.attn.hook_pattern"].amax(-1)
    assert (peaks[:, :, 1:] > 0.999).float().mean() > 0.3
    sites = [(0, None), (1, 0)]
    ways = (transplanted(subject, base, source, sites) for subject in (Subject.of(fused), by_hooks(fused)))
    for fast, slow in zip(*ways, strict=True):
        torch.testing.assert_close(fast, slow, atol=1e-4, rtol=1e-4)


def test_a_run_is_the_model_s_and_goes_on_as_it_was(small_task, tokens):
    """What is kept is what the model's hooks show; without a change, every fork answers as the run does."""
    fused = random_model(small_task, 5)
    run = Run.of(fused, tokens[0])
    _, cache = fused.run_with_cache(tokens[0])
    for layer in range(3):
        q, k, v = run.qkv[layer]
        kept = {"attn.hook_q": q.transpose(1, 2), "attn.hook_k": k.transpose(1, 2), "attn.hook_v": v.transpose(1, 2)}
        kept |= {
            "attn.hook_z": run.z[layer].transpose(1, 2),
            "hook_resid_pre": run.resid[layer],
            "hook_resid_mid": run.mid[layer],
        }
        kept |= {
            "hook_attn_out": run.attn_out(layer),
            "hook_mlp_out": run.mlp_out(layer),
            "hook_resid_post": run.resid[layer + 1],
        }
        for name, value in kept.items():
            assert torch.allclose(value, cache[f"blocks.{layer}.{name}"], atol=1e-5), name
        assert torch.allclose(go_on(run, layer, run.resid[layer + 1]), fused(tokens[0]), atol=1e-5)
        assert torch.allclose(with_head(run, layer, 1, run.z[layer][:, 1]), run.resid[layer + 1], atol=1e-5)
    assert torch.equal(run.logits, fused(tokens[0]))


def test_gradients_flow_to_the_streams(small_task, tokens):
    """Each position's answer depends on its own stream alone, to the first order that finite differences show."""
    fused = random_model(small_task, 5)
    double = hi.FusedTransformer(fused.spec, {name: p.double() for name, p in fused.parameters.items()})
    run = Run.of(double, tokens[0])
    streams = run.resid[1].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(go_on(run, 0, streams)[:, 7, 3].sum(), streams)
    assert gradient[:, 7].abs().max() > 1e-3
    assert gradient[:, :7].abs().max() == gradient[:, 8:].abs().max() == 0
    step = torch.zeros_like(run.resid[1])
    step[:, 7] = 1e-6 * torch.randn(step[:, 7].shape, generator=torch.Generator().manual_seed(0))
    moved = (go_on(run, 0, run.resid[1] + step) - go_on(run, 0, run.resid[1]))[:, 7, 3]
    assert torch.allclose(moved, (gradient * step).sum((1, 2)), rtol=1e-3, atol=1e-12)


@pytest.mark.parametrize("head", [None, 1])
def test_two_equal_runs_are_an_error(small_task, tokens, head):
    fused = random_model(small_task, 5)
    words = "block 0's resid_post is the same" if head is None else "z of head 0.1 is the same"
    for subject in (Subject.of(fused), by_hooks(fused)):
        with pytest.raises(HopInterpError, match=words):
            list(transplanted(subject, tokens[0], tokens[0], [(0, head)]))
