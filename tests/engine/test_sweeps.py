"""The sweeps against TransformerLens's own patching functions, and against a plain loop in float64."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from transformer_lens import patching

from hopinterp import FusedTransformer, HopInterpError, HopTask, ModelSpec
from hopinterp.engine.sweeps import RESID_SITES, head_sweep, resid_sweep
from hopinterp.theory.construction import Construction

SPECS = [
    ModelSpec(3, d_model=32, n_heads=4, n_ctx=22, d_vocab=11),
    ModelSpec(2, d_model=32, n_heads=4, n_ctx=22, d_vocab=30, act_fn="gelu_new", unembed="identity"),
    ModelSpec(4, d_model=32, n_heads=2, n_ctx=22, d_vocab=11, act_fn="relu", normalization_type="LNPre"),
    ModelSpec(1, d_model=32, n_heads=2, n_ctx=22, d_vocab=11),
    ModelSpec(
        3,
        d_model=32,
        n_heads=2,
        d_head=7,
        n_ctx=22,
        d_vocab=11,
        attn_only=True,
        normalization_type=None,
        use_attn_scale=False,
    ),
]
THEIRS = {
    "resid_pre": patching.get_act_patch_resid_pre,
    "resid_mid": patching.get_act_patch_resid_mid,
    "attn_out": patching.get_act_patch_attn_out,
    "mlp_out": patching.get_act_patch_mlp_out,
    "resid_post": partial(
        patching.generic_activation_patch,
        patch_setter=patching.layer_pos_patch_setter,
        activation_name="resid_post",
        index_axis_names=("layer", "pos"),
    ),
    "z": patching.get_act_patch_attn_head_out_by_pos,
}


@pytest.fixture(autouse=True)
def _no_bars(monkeypatch):
    monkeypatch.setattr(patching, "tqdm", lambda rows: rows)


@pytest.fixture(scope="module")
def pair(small_task):
    return small_task.sample(3, hops=2, seed=1).tokens, small_task.sample(3, hops=2, seed=2).tokens


def hooked(spec):
    """A model whose every parameter matters: one that is forgotten, a bias say, shows."""
    generator = torch.Generator().manual_seed(0)
    parameters = {}
    for name, p in spec.initial_parameters(0).items():
        leaf = name.rsplit(".", 1)[-1]
        noise = torch.randn(p.shape, generator=generator)
        if spec.is_trained(name):
            width = 1.5 * p.shape[-2] ** -0.5 if leaf[:3] in ("W_Q", "W_K", "W_V", "W_O", "W_i", "W_o", "W_U") else 0.5
            p = (leaf == "w") + width * noise
        parameters[name] = p
    return spec.build(parameters)


def theirs(model, site, run, source, read, sequence):
    """TransformerLens's sweep of one sequence, its metric the projection of the logits on a fixed direction."""
    direction = torch.linspace(-1, 1, model.cfg.d_vocab)
    _, cache = model.run_with_cache(source[sequence : sequence + 1])
    with torch.no_grad():
        return THEIRS[site](model, run[sequence : sequence + 1], cache, lambda logits: logits[0, read] @ direction)


def ours(model, site, run, source, **settings):
    """Our sweep of it, dims in TransformerLens's order."""
    if site == "z":
        return head_sweep(model, run, source, **settings).transpose(1, 2)
    return resid_sweep(model, run, source, site=site, **settings)


@pytest.mark.parametrize("read", [-1, 11])
@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("site", ["resid_pre", "z"])
def test_equals_transformer_lens(spec, site, read, pair):
    run, source = pair
    model = hooked(spec)
    read %= run.shape[1]
    fused = FusedTransformer.of(model)
    got = ours(fused, site, run, source, read=read) @ torch.linspace(-1, 1, spec.d_vocab)
    for sequence in range(2):
        expected = theirs(model, site, run, source, read, sequence)
        assert expected.std() > 0.01
        assert torch.allclose(got[..., sequence], expected, atol=1e-5 * max(2, float(expected.abs().max())), rtol=0)


@pytest.mark.parametrize("site", RESID_SITES)
def test_every_residual_site_equals_transformer_lens(site, pair):
    run, source = pair
    model = hooked(SPECS[0])
    got = ours(FusedTransformer.of(model), site, run, source) @ torch.linspace(-1, 1, SPECS[0].d_vocab)
    expected = theirs(model, site, run, source, 20, 2)
    assert expected.std() > 0.01
    assert torch.allclose(got[..., 2], expected, atol=2e-5, rtol=1e-5)


def plain_run(model, tokens, site=None, patch=None):
    """Logits and activations of one sequence by the book, in the parameters' precision. A patch: (layer, index, value)."""
    p, spec, found = model.parameters, model.spec, {"resid_pre": [], "scores": [], "z": []}
    future = torch.ones(len(tokens), len(tokens), dtype=torch.bool).triu(1)

    def visit(name, layer, x):
        if site == name and patch[0] == layer:
            x = x.clone()
            x[patch[1]] = patch[2]
        found[name].append(x)
        return x

    def norm(x, name):
        if spec.normalization_type is None:
            return x
        x = x - x.mean(-1, keepdim=True)
        x = x / (x.square().mean(-1, keepdim=True) + spec.eps).sqrt()
        return x * p[f"{name}.w"] + p[f"{name}.b"] if spec.normalization_type == "LN" else x

    x = p["embed.W_E"][tokens] + p["pos_embed.W_pos"][: len(tokens)]
    for layer in range(spec.n_layers):
        w = {name.removeprefix(f"blocks.{layer}."): value for name, value in p.items()}
        x = visit("resid_pre", layer, x)
        normed = norm(x, f"blocks.{layer}.ln1")
        q, k, v = (torch.einsum("pd,hdi->hpi", normed, w[f"attn.W_{n}"]) + w[f"attn.b_{n}"][:, None] for n in "QKV")
        scores = q @ k.mT * (spec.d_head**-0.5 if spec.use_attn_scale else 1)
        found["scores"].append(scores.masked_fill_(future, -torch.inf))
        z = visit("z", layer, (scores.softmax(-1) @ v).transpose(0, 1))
        x = x + torch.einsum("phi,hid->pd", z, w["attn.W_O"]) + w["attn.b_O"]
        if not spec.attn_only:
            hidden = F.gelu(norm(x, f"blocks.{layer}.ln2") @ w["mlp.W_in"] + w["mlp.b_in"])
            x = x + hidden @ w["mlp.W_out"] + w["mlp.b_out"]
    return norm(x, "ln_final") @ p["unembed.W_U"] + p["unembed.b_U"], found


def plain_sweep(model, site, run, source):
    """One patched run after the other, logits at the end: [layer, (position or position, head), d_vocab]."""
    _, donor = plain_run(model, source)
    n, heads = len(run), model.spec.n_heads
    places = list(range(n)) if site == "resid_pre" else [(p, h) for p in range(n) for h in range(heads)]
    return torch.stack(
        [
            torch.stack([plain_run(model, run, site, (layer, at, x[at]))[0][-1] for at in places])
            for layer, x in enumerate(donor[site])
        ]
    )


def doubled(model):
    return FusedTransformer(model.spec, {name: p.double() for name, p in model.parameters.items()})


def sharp_model(spec):
    """Heads that put all but e^−40 of their attention on one key, in most queries."""
    model = FusedTransformer.of(hooked(spec))
    gain = {"W_Q": 12.0, "W_K": 12.0}
    return FusedTransformer(spec, {name: (p * gain.get(name[-3:], 1)).detach() for name, p in model.parameters.items()})


@pytest.mark.parametrize("site", ["resid_pre", "z"])
def test_near_one_hot_heads_lose_no_precision(site, pair):
    """Where the patched key held nearly everything, what the others hold cannot be had by subtraction."""
    run, source = (tokens[0] for tokens in pair)
    model = sharp_model(SPECS[0])
    scores = torch.stack(plain_run(doubled(model), run)[1]["scores"])[:, :, 1:]
    first, second = scores.topk(2).values.unbind(-1)
    assert (first - second > 40).double().mean() > 0.5
    expected = plain_sweep(doubled(model), site, run, source)
    assert expected.std() > 0.1
    exact = ours(doubled(model), site, run[None], source[None]).flatten(1, -2)
    assert torch.allclose(exact, expected.flatten(1, -2), atol=1e-10, rtol=0)
    # a sharp head makes float32 itself coarse: a score of hundreds is rounded to 1e-5
    plain = plain_sweep(model, site, run, source).flatten(1, -2)
    single = ours(model, site, run[None], source[None]).flatten(1, -2)
    assert (single - exact).abs().max() < 3 * (plain - exact).abs().max()


@pytest.mark.parametrize("algorithm", ["lookup", "successor"])
@pytest.mark.parametrize("site", ["resid_pre", "z"])
def test_constructed_models(site, algorithm):
    """Every head of a constructed model is near one-hot."""
    task = HopTask(n_letters=12, max_hops=2)
    model = Construction.of(task, 2, algorithm).fused
    run, source = (task.sample(1, hops=2, seed=seed).tokens[0] for seed in (0, 1))
    expected = plain_sweep(doubled(model), site, run, source)
    assert expected.std() > 0.1
    got = ours(model, site, run[None], source[None]).flatten(1, -2)
    assert torch.allclose(got.double(), expected.flatten(1, -2), atol=1e-4 * float(expected.abs().max()), rtol=0)


@pytest.mark.parametrize("site", ["resid_pre", "resid_post", "z"])
def test_chains_and_single_reads_are_cut_from_the_full_sweep(site, pair):
    """Positions and a read position of its own for each sequence, repeated ones too, against whole sweeps of each."""
    run, source = pair
    model = FusedTransformer.of(hooked(SPECS[0]))
    read = torch.tensor([20, 7, 13])
    positions = torch.tensor([[20, 3, 0, 3], [7, 8, 6, 2], [5, 13, 12, 0]])
    got = ours(model, site, run, source, read=read, positions=positions)
    for b in range(3):
        full = ours(model, site, run, source, read=int(read[b]))[..., b, :]
        assert torch.allclose(got[..., b, :], full[:, positions[b]], atol=1e-5, rtol=0)


@pytest.mark.parametrize("site", ["resid_pre", "z"])
def test_little_memory_gives_the_same(site, pair):
    run, source = pair
    model = FusedTransformer.of(hooked(SPECS[0]))
    seen = []
    few = ours(model, site, run, source, memory=1, report=seen.append)
    assert [(now.done, now.total) for now in seen] == [(1, 3), (2, 3), (3, 3)]
    assert torch.allclose(few, ours(model, site, run, source), atol=1e-5, rtol=0)


@pytest.mark.parametrize("site", ["resid_pre", "z"])
def test_what_changes_nothing_changes_nothing(site, pair):
    """Bit for bit: a patch with the run's own activations, and one to the right of what is read."""
    run, source = pair
    model = FusedTransformer.of(hooked(SPECS[0]))
    same = ours(model, site, run, run)
    assert torch.equal(same, same[:1, :1].expand_as(same) if site != "z" else same[:1, :1, :1].expand_as(same))
    assert torch.allclose(same[0, 0] if site != "z" else same[0, 0, 0], model(run)[:, -1], atol=1e-5)
    late = ours(model, site, run, source, read=11)
    assert torch.equal(late[:, 12:], same.new_tensor(0) + ours(model, site, run, run, read=11)[:, 12:])
    assert not torch.equal(late[:, :12], ours(model, site, run, run, read=11)[:, :12])


def test_patching_all_there_is_gives_the_source(pair):
    """The last block's resid_post at the position that is read is all that the logits see."""
    run, source = pair
    model = FusedTransformer.of(hooked(SPECS[0]))
    assert torch.allclose(resid_sweep(model, run, source, site="resid_post")[-1, -1], model(source)[:, -1], atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"site": "hook_q"}, "site is 'hook_q'; it must be one of resid_pre"),
        ({"read": 21}, "read has 21 to 21; the sequences have 0 to 20"),
        ({"positions": torch.tensor([[0], [1], [-1]])}, "positions has -1 to 1"),
        ({"positions": torch.tensor([0, 1, 2])}, r"positions are \[batch, chain\]; got \[\] and \[3\]"),
        ({"read": torch.tensor([1, 2])}, r"got \[2\] and \[1, 21\]"),
    ],
)
def test_bad_calls_are_named(settings, words, pair, small_model):
    with pytest.raises(HopInterpError, match=words):
        resid_sweep(small_model, *pair, **settings)


def test_bad_tokens_are_named(pair, small_model):
    run, source = pair
    with pytest.raises(HopInterpError, match=r"of one shape; got \[3, 21\] and \[3, 20\]"):
        head_sweep(small_model, run, source[:, 1:])
    with pytest.raises(HopInterpError, match="42 tokens were given; the model has 22 positions"):
        head_sweep(small_model, run.repeat(1, 2), source.repeat(1, 2))
