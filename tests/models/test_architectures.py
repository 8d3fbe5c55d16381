"""A foreign architecture costs a table of names: a module made up here is read, and every mistake in a table is named."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import hopinterp as hi
from hopinterp import HopInterpError
from hopinterp.models import architectures
from hopinterp.models.architectures import ARCHITECTURES, Architecture, Stored, register
from hopinterp.models.subject import Subject


class Layer(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.look = nn.Linear(width, 2 * width, bias=False)
        self.say = nn.Linear(width, width, bias=False)
        self.out = nn.Linear(width, width)

    def forward(self, x):
        q, k = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.look(x).chunk(2, -1))
        v = self.say(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        return x + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))


class Rustic(nn.Module):
    """Attention alone: no layer norms, no MLPs, few biases, Q and K side by side."""

    def __init__(self, tokens, positions, width, heads, depth):
        super().__init__()
        self.heads = heads
        self.words = nn.Embedding(tokens, width)
        self.places = nn.Embedding(positions, width)
        self.layers = nn.ModuleList(Layer(width, heads) for _ in range(depth))
        self.read = nn.Linear(width, tokens)

    def forward(self, tokens):
        x = self.words(tokens) + self.places.weight[: tokens.shape[1]]
        for layer in self.layers:
            x = layer(x)
        return self.read(x)


BLOCK = "blocks.{layer}.attn."
RUSTIC = Architecture(
    name="Rustic",
    modules=("Rustic",),
    names={
        "embed.W_E": "words.weight",
        "pos_embed.W_pos": "places.weight",
        BLOCK + "W_Q": Stored("layers.{layer}.look.weight", "(parts h e) d -> parts h d e", 0, parts=2),
        BLOCK + "W_K": Stored("layers.{layer}.look.weight", "(parts h e) d -> parts h d e", 1, parts=2),
        BLOCK + "W_V": Stored("layers.{layer}.say.weight", "(h e) d -> h d e"),
        BLOCK + "W_O": Stored("layers.{layer}.out.weight", "d (h e) -> h e d"),
        BLOCK + "b_O": "layers.{layer}.out.bias",
        "unembed.W_U": Stored("read.weight", "v d -> d v"),
        "unembed.b_U": "read.bias",
    },
    sizes=lambda module: {"n_heads": module.heads},
)


@pytest.fixture
def known():
    register(RUSTIC)
    yield RUSTIC
    del ARCHITECTURES["Rustic"]


@pytest.fixture
def module(small_task):
    torch.manual_seed(0)
    return Rustic(small_task.d_vocab, small_task.n_positions, 24, 3, 2)


def test_a_foreign_module_is_read_by_its_table(known, module, small_task):  # noqa: ARG001
    subject = Subject.of(module, small_task)
    tokens = small_task.sample(4, seed=0).tokens
    assert torch.allclose(subject(tokens), module(tokens), atol=1e-5)
    assert (subject.sizes.n_layers, subject.sizes.n_heads, subject.sizes.attn_only) == (2, 3, True)
    assert subject.processing.startswith("no layer norm")
    found = hi.evaluate(module, small_task, hops=1, sequences=5)
    assert float(found.error.squeeze()) > 0.2


def test_so_is_its_state_dict_under_a_prefix(known, module, small_task):  # noqa: ARG001
    state = {f"net.{name}": tensor for name, tensor in module.state_dict().items()}
    tokens = small_task.sample(4, seed=0).tokens
    assert torch.allclose(Subject.of(state, n_heads=3)(tokens), module(tokens), atol=1e-5)


def test_nothing_of_it_is_known_without_a_table(module):
    assert Subject.of(module).weights is None
    with pytest.raises(HopInterpError, match=r"no architecture that is known \(GPT-2\); its names: words.weight, places"):
        Subject.of(module.state_dict(), n_heads=3)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ({BLOCK + "W_Q": RUSTIC.names[BLOCK + "W_K"], BLOCK + "W_K": RUSTIC.names[BLOCK + "W_Q"]}, "does not compute what"),
        ({BLOCK + "b_O": "layers.{layer}.out.bais"}, "lacks Rustic's layers.0.out.bais"),
        ({BLOCK + "W_V": Stored("layers.{layer}.say.weight", "(h e x) d -> h d e x")}, "say.weight has shape"),
        ({BLOCK + "W_O": Stored("layers.{layer}.out.weight", "(h e) d -> h d e")}, "as blocks.0.attn.W_O it must give"),
        ({"unembed.W_U": "read.weight"}, r"read.weight has shape \[11, 24\]; as unembed.W_U it must give \[24, 11\]"),
    ],
)
def test_a_wrong_table_is_no_model(module, names, words):
    register(replace(RUSTIC, names={**RUSTIC.names, **names}))
    try:
        with pytest.raises(HopInterpError, match=words) as caught:
            Subject.of(module)
        assert "\n" not in str(caught.value)
    finally:
        del ARCHITECTURES["Rustic"]


def test_tensors_that_a_table_leaves_out_are_named(module):
    short = {name: entry for name, entry in RUSTIC.names.items() if name != "unembed.b_U"}
    with pytest.raises(HopInterpError, match=r"1 tensors that are not Rustic's, the first is 'read\.bias'"):
        architectures.convert(replace(RUSTIC, names=short), module.state_dict(), {"n_heads": 3})


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ({"blocks.{layer}.attn.W_QK": "x"}, "table names 'blocks.{layer}.attn.W_QK', which is none of"),
        ({"embed.W_E": "x", "pos_embed.W_pos": "y"}, "table lacks blocks.{layer}.attn.W_Q"),
    ],
)
def test_a_table_checks_itself(names, words):
    with pytest.raises(HopInterpError, match=words):
        Architecture("Bad", ("Bad",), names, sizes=lambda _: {})


def test_training_mode_is_left_as_it_was(known, module):  # noqa: ARG001
    assert module.train().training
    Subject.of(module)
    assert module.training
    assert module.layers[0].training
