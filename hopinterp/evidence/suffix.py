"""The express lift: takes a patched residual vector to the position that is read, past everything it cannot change."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hopinterp.models.fused import FusedTransformer

Rows = Float[Tensor, "*batch d_model"]


@dataclass(frozen=True, eq=False)
class Block:
    """One block with its weights side by side, ready for many small calls."""

    model: FusedTransformer
    layer: int

    def norm(self, x: Rows, name: str) -> Rows:
        """A layer norm of the block ("ln1", "ln2")."""
        return _norm(self.model, x, f"blocks.{self.layer}.{name}")

    def qkv(self, x: Rows) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values [*batch, head, d_head] of rows of resid_pre."""
        spec = self.model.spec
        weight, bias = self._qkv
        q, k, v = F.linear(self.norm(x, "ln1"), weight, bias).unflatten(-1, (3, spec.n_heads, spec.d_head)).unbind(-3)
        return q, k, v

    def attend(
        self,
        q: Float[Tensor, "batch query head d_head"],
        k: Float[Tensor, "batch key head d_head"],
        v: Float[Tensor, "batch key head d_head"],
        past: Bool[Tensor, "query key"],
    ) -> Float[Tensor, "batch query head d_head"]:
        """What each head gathers from the keys that a query may see."""
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v, past, scale=self.scale).transpose(1, 2)

    def attn_out(self, z: Float[Tensor, "*batch head d_head"]) -> Rows:
        """What the heads write together."""
        return F.linear(z.flatten(-2), self._own("attn.W_O").flatten(0, 1).T, self._own("attn.b_O"))

    def mlp_out(self, x: Rows) -> Rows:
        """What the MLP writes, from rows of resid_mid; zero where the model has none."""
        spec = self.model.spec
        if spec.attn_only:
            return torch.zeros_like(x)
        hidden = F.linear(self.norm(x, "ln2"), self._own("mlp.W_in").T, self._own("mlp.b_in"))
        if spec.act_fn == "relu":
            hidden = hidden.relu_()
        else:
            hidden = F.gelu(hidden, approximate="none" if spec.act_fn == "gelu" else "tanh")
        return F.linear(hidden, self._own("mlp.W_out").T, self._own("mlp.b_out"))

    @property
    def scale(self) -> float:
        """What scores are multiplied by."""
        d_head = self.model.spec.d_head
        assert d_head is not None
        return d_head**-0.5 if self.model.spec.use_attn_scale else 1.0

    @cached_property
    def _qkv(self) -> tuple[Tensor, Tensor]:
        weight = torch.cat([self._own(f"attn.W_{name}") for name in "QKV"]).transpose(1, 2).flatten(0, 1)
        return weight, torch.cat([self._own(f"attn.b_{name}") for name in "QKV"]).flatten()

    def _own(self, name: str) -> Tensor:
        return self.model.parameters[f"blocks.{self.layer}.{name}"]


def unembed(model: FusedTransformer, x: Rows) -> Float[Tensor, "*batch d_vocab"]:
    """Logits from rows of the last block's resid_post."""
    p = model.parameters
    return F.linear(_norm(model, x, "ln_final"), p["unembed.W_U"].T, p["unembed.b_U"])


def _norm(model: FusedTransformer, x: Rows, name: str) -> Rows:
    if model.spec.normalization_type is None:
        return x
    weight, bias = model.parameters.get(f"{name}.w"), model.parameters.get(f"{name}.b")
    return F.layer_norm(x, (model.spec.d_model,), weight, bias, model.spec.eps)


@dataclass(frozen=True, eq=False)
class Run:
    """A run as it is without a patch, with all that patched runs take over from it.

    Attributes:
        resid: [batch, position, d_model] for each block, its resid_pre; then the last block's resid_post.
        mid, attn_out, mlp_out: likewise, for each block.
        q, k, v, z: [batch, position, head, d_head] for each block.
    """

    resid: list[Tensor]
    mid: list[Tensor]
    attn_out: list[Tensor]
    mlp_out: list[Tensor]
    q: list[Tensor]
    k: list[Tensor]
    v: list[Tensor]
    z: list[Tensor]

    @classmethod
    def of(cls, model: FusedTransformer, tokens: Int[Tensor, "batch position"]) -> Run:
        """Run the model on some sequences."""
        p = model.parameters
        run = cls([F.embedding(tokens, p["embed.W_E"]) + p["pos_embed.W_pos"][: tokens.shape[1]]], *([] for _ in range(7)))
        for layer in range(model.spec.n_layers):
            block = Block(model, layer)
            q, k, v = block.qkv(run.resid[-1])
            run.z.append(block.attend(q, k, v, torch.ones(2 * tokens.shape[1:], dtype=torch.bool).tril()))
            run.attn_out.append(block.attn_out(run.z[-1]))
            run.mid.append(run.resid[-1] + run.attn_out[-1])
            run.mlp_out.append(block.mlp_out(run.mid[-1]))
            run.resid.append(run.mid[-1] + run.mlp_out[-1])
            for x, found in zip((run.q, run.k, run.v), (q, k, v), strict=True):
                x.append(found)
        return run


@dataclass(frozen=True, eq=False)
class Patches:
    """Residual vectors put in the place of a run's own.

    Attributes:
        entry: the block whose resid_pre is patched; n_layers stands for the last block's resid_post.
        sequence, position: where.
        read: the position whose logits are wanted.
        vector: what is put there.
    """

    entry: Int[Tensor, " patch"]
    sequence: Int[Tensor, " patch"]
    position: Int[Tensor, " patch"]
    read: Int[Tensor, " patch"]
    vector: Float[Tensor, "patch d_model"]

    def __getitem__(self, which: Tensor | slice) -> Patches:
        return Patches(*(x[which] for x in (self.entry, self.sequence, self.position, self.read, self.vector)))

    def __len__(self) -> int:
        return len(self.entry)


def carry(model: FusedTransformer, run: Run, patches: Patches) -> Float[Tensor, "patch d_vocab"]:
    """Logits at each patch's read position, for patches sorted by entry.

    All of them share one window of positions, from the first that is patched to the last that is read. Positions before
    the window give their cached keys and values; a block is computed for the patches that have entered.
    """
    start, end = int(patches.position.min()), int(patches.read.max()) + 1
    n_layers = model.spec.n_layers
    entered = torch.searchsorted(patches.entry, torch.arange(n_layers + 1), right=True).tolist()
    x = patches.vector.new_empty(len(patches), end - start, model.spec.d_model)
    before = 0
    for layer in range(n_layers + 1):
        now = entered[layer]
        x[before:now] = run.resid[layer][patches.sequence[before:now], start:end]
        x[torch.arange(before, now), patches.position[before:now] - start] = patches.vector[before:now]
        before = now
        if now and layer < n_layers:
            x[:now] = _block(Block(model, layer), x[:now], run, patches.sequence[:now], start)
    return unembed(model, x[torch.arange(len(patches)), patches.read - start])


def _block(
    block: Block, x: Float[Tensor, "patch window d_model"], run: Run, sequence: Int[Tensor, " patch"], start: int
) -> Float[Tensor, "patch window d_model"]:
    q, k, v = block.qkv(x)
    window = x.shape[1]
    k = torch.cat([run.k[block.layer][sequence, :start], k], dim=1)
    v = torch.cat([run.v[block.layer][sequence, :start], v], dim=1)
    past = torch.ones(window, start + window, dtype=torch.bool).tril(start)
    x = x + block.attn_out(block.attend(q, k, v, past))
    return x + block.mlp_out(x)
