"""A block's arithmetic by itself: activations by name, and attention's fast ways against the plain one."""

import pytest
import torch
from transformer_lens.utilities.activation_functions import gelu_new

from hopinterp import HopInterpError
from hopinterp.models import blocks


def test_an_unknown_activation_is_an_error():
    with pytest.raises(HopInterpError, match="act_fn is 'silu'; it must be one of gelu, gelu_new, relu"):
        blocks.activation("silu")
    with pytest.raises(HopInterpError, match="act_fn is 'gelu_fast'"):
        blocks.mlp_out(torch.ones(2, 3), "gelu_fast", torch.ones(3, 4), torch.ones(4))


def test_activations_are_what_their_names_say():
    x = torch.linspace(-4, 4, 101)
    assert torch.allclose(blocks.activation("gelu")(x), x * torch.special.ndtr(x), atol=1e-6)
    assert torch.allclose(blocks.activation("gelu_new")(x), gelu_new(x), atol=1e-6)
    assert not torch.allclose(blocks.activation("gelu_new")(x), blocks.activation("gelu")(x), atol=1e-4)
    assert torch.equal(blocks.activation("relu")(x), x.clamp_min(0))


def test_the_mask_lets_the_last_queries_see_the_keys_up_to_their_own():
    mask = blocks.causal_mask(2, 4, torch.ones(1))
    assert (mask == 0).tolist() == [[True, True, True, False], [True] * 4]
    assert (mask[mask != 0] == -torch.inf).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_fast_ways_of_attention_equal_the_plain_one(dtype):
    q, k, v = torch.randn(3, 2, 4, 9, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    q = 3 * q
    expected = (blocks.scores(q.double(), k.double(), 0.5).softmax(-1) @ v.double()).to(dtype)
    got = blocks.attend(q, k, v, 0.5)
    assert got.dtype == dtype
    assert torch.allclose(got, expected, atol={torch.float32: 1e-6, torch.float64: 1e-12, torch.bfloat16: 0.05}[dtype])
    # each position's answer comes from itself and what stands before it
    cut = blocks.attend(*(x[..., :5, :].contiguous() for x in (q, k, v)), 0.5)
    assert torch.allclose(got[..., :5, :], cut, atol=0.05 if dtype == torch.bfloat16 else 1e-6)


def test_a_layer_norm_watched_is_the_layer_norm_unwatched():
    x = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0)) * 3 + 1
    weight, bias, seen = torch.linspace(-1, 2, 16), torch.linspace(0, 1, 16), {}
    taps = blocks.Taps({name: [lambda x, hook: seen.update({hook.name: x})] for name in ("hook_scale", "hook_normalized")})
    got = blocks.layer_norm(x, weight, bias, 1e-5, taps)
    assert torch.allclose(got, blocks.layer_norm(x, weight, bias, 1e-5), atol=1e-5)
    assert torch.allclose(seen["hook_scale"], (x.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt(), atol=1e-5)
    assert torch.allclose(seen["hook_normalized"] * weight + bias, got)
