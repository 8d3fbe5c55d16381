"""A forward pass of which everything is kept, and what sweeps over patches of one sequence derive from it."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hopinterp.models import blocks
from hopinterp.models.blocks import Linear, Rows
from hopinterp.models.fused import FusedTransformer, Logits

RowHeads = Float[Tensor, "*row head d_head"]


@dataclass(frozen=True, eq=False)
class Run:
    """A forward pass of which every block's streams and heads are kept.

    Attributes:
        resid: [batch, position, d_model]: resid_pre of each block; then the last block's resid_post.
        mid: likewise, resid_mid of each block.
        qkv: [3, batch, head, position, d_head], of each block.
        z: [batch, head, position, d_head], of each block.
    """

    model: FusedTransformer
    resid: list[Tensor] = field(default_factory=list)
    mid: list[Tensor] = field(default_factory=list)
    qkv: list[Tensor] = field(default_factory=list)
    z: list[Tensor] = field(default_factory=list)

    @classmethod
    def of(cls, model: FusedTransformer, tokens: Int[Tensor, "batch position"]) -> Run:
        """Run the model on tokens and keep what other runs may need of it."""
        run = cls(model, [model.embed(tokens)])
        for layer in range(model.spec.n_layers):
            run.qkv.append(model.qkv(model.norm(run.resid[layer], f"blocks.{layer}.ln1"), layer))
            q, k, v = run.qkv[layer]
            run.z.append(blocks.attend(q, k, v, model.scale))
            run.mid.append(run.resid[layer] + run.attn_out(layer))
            run.resid.append(run.mid[layer] + run.mlp_out(layer))
        return run

    def attn_out(self, layer: int) -> Float[Tensor, "batch position d_model"]:
        """What a block's heads write together."""
        return self.model.attn_out(self.z[layer], layer)

    def mlp_out(self, layer: int) -> Float[Tensor, "batch position d_model"]:
        """What a block's MLP writes."""
        return mlp_out(self.model, layer, self.mid[layer])

    @property
    def logits(self) -> Logits:
        """What the run answers."""
        return self.model.unembed(self.resid[-1])


def mlp_out(model: FusedTransformer, layer: int, mid: Rows) -> Rows:
    """What a block's MLP writes, from rows of resid_mid; zero where the model has none."""
    if model.spec.attn_only:
        return torch.zeros_like(mid)
    return model.mlp(model.norm(mid, f"blocks.{layer}.ln2"), layer)


@dataclass(frozen=True, eq=False)
class Layout:
    """One block's linear maps, laid out for many calls and for sums of few vectors that many rows share.

    Attributes:
        qkv: to queries, keys and values of all heads; queries come scaled as the scores are to be.
        read: into the MLP, with the gain, bias and centring of the layer norm before it; None where there is no MLP.
        fan: [d_model, d_model + d_mlp], from a direction of the residual stream to itself and to what it adds to the MLP's
            preactivations, but for the layer norm's division (see `resid_post`).
        head_fan: [head, d_head, d_model + d_mlp], likewise from what a head gathers.
    """

    model: FusedTransformer
    layer: int
    qkv: Linear
    read: Linear | None
    fan: Float[Tensor, "d_model fan"]
    head_fan: Float[Tensor, "head d_head fan"]

    @classmethod
    def of(cls, model: FusedTransformer, layer: int) -> Layout:
        """Lay out one block of a model."""
        spec, p, name = model.spec, model.parameters, f"blocks.{layer}."
        queries = {f"{name}attn.{one}": p[f"{name}attn.{one}"] * model.scale for one in ("W_Q", "b_Q")}
        weight, bias = blocks.pack_qkv({**p, **queries}, name + "attn.")
        fan, read = torch.eye(spec.d_model, dtype=weight.dtype, device=weight.device), None
        if not spec.attn_only:
            read = _read(model, layer)
            fan = torch.cat([fan, read[0].T], dim=1)
        return cls(model, layer, (weight.contiguous(), bias), read, fan, p[name + "attn.W_O"] @ fan)

    def norm1(self, x: Rows) -> Rows:
        """What the heads read of resid_pre."""
        return self.model.norm(x, f"blocks.{self.layer}.ln1")

    def heads(self, x: Rows) -> tuple[RowHeads, RowHeads, RowHeads]:
        """Queries, keys and values of rows of resid_pre."""
        q, k, v = blocks.qkv(self.norm1(x), self.qkv, self.model.spec.n_heads).unbind(-3)
        return q, k, v

    def attn_out(self, z: RowHeads) -> Rows:
        """What the heads write together."""
        p, name = self.model.parameters, f"blocks.{self.layer}.attn."
        return blocks.attn_out(z, p[name + "W_O"], p[name + "b_O"])

    def mlp_out(self, x: Rows) -> Rows:
        """What the MLP writes, from rows of resid_mid."""
        return mlp_out(self.model, self.layer, x)

    def resid_post(self, fanned: Float[Tensor, "*batch fan"]) -> Rows:
        """The block's output from resid_mid's fan."""
        spec, p, name = self.model.spec, self.model.parameters, f"blocks.{self.layer}.mlp."
        x, hidden = fanned.tensor_split([spec.d_model], dim=-1)
        if self.read is None:
            return x
        if spec.normalization_type is None:
            hidden = hidden + self.read[1]
        else:
            scale = blocks.inverse_scale(x - x.mean(-1, keepdim=True), spec.eps)
            hidden = torch.addcmul(self.read[1], hidden, scale)
        return x + blocks.mlp_out(hidden, spec.act_fn, p[name + "W_out"], p[name + "b_out"])

    def head_fans(
        self, first: Float[Tensor, "head row d_head"], second: Float[Tensor, "head row d_head"]
    ) -> Float[Tensor, "head_and_which row fan"]:
        """The fans of two things that each head gathers."""
        z = torch.cat([first, second], dim=1)
        return torch.bmm(z, self.head_fan).view(-1, first.shape[1], self.head_fan.shape[2])


def _read(model: FusedTransformer, layer: int) -> Linear:
    """W_in and b_in with what is linear in the layer norm before them."""
    p, name = model.parameters, f"blocks.{layer}."
    w_in, bias = p[name + "mlp.W_in"], p[name + "mlp.b_in"]
    if name + "ln2.w" in p:
        w_in, bias = p[name + "ln2.w"][:, None] * w_in, bias + p[name + "ln2.b"] @ w_in
    return (w_in if model.spec.normalization_type is None else w_in - w_in.mean(0)).T.contiguous(), bias


def softmax(scores: Float[Tensor, "*batch key"]) -> tuple[Float[Tensor, "*batch key"], Float[Tensor, "*batch"]]:
    """Softmax over keys and its logsumexp, which the largest entry of both gives at a fraction of torch.logsumexp's cost."""
    pattern = scores.softmax(-1)
    return pattern, scores.amax(-1) - pattern.amax(-1).log()


@dataclass(frozen=True, eq=False)
class Attention:
    """One block's attention in a run of one sequence, with what it would be without any one of its keys.

    Attributes:
        q, k, v: queries come scaled.
        z: what the heads gather.
        scores: −inf where the key comes later; `pattern` is their softmax, `total` their logsumexp.
    """

    q: Float[Tensor, "head position d_head"]
    k: Float[Tensor, "head position d_head"]
    v: Float[Tensor, "head position d_head"]
    z: Float[Tensor, "head position d_head"]
    scores: Float[Tensor, "head query key"]
    pattern: Float[Tensor, "head query key"]
    total: Float[Tensor, "head query"]

    @classmethod
    def of(cls, run: Run, layer: int) -> Attention:
        """Of the first sequence of a run."""
        q, k, v = run.qkv[layer][:, 0]
        q = q * run.model.scale
        scores = blocks.scores(q, k, 1.0)
        return cls(q, k, v, run.z[layer][0], scores, *softmax(scores))

    @cached_property
    def top(self) -> Int[Tensor, "head query"]:
        """The key that holds most."""
        return self.scores.argmax(-1)

    @cached_property
    def rest(self) -> tuple[Float[Tensor, "head query"], Float[Tensor, "head query d_head"]]:
        """`total` and `z` without the top key. Subtracting that one would lose all precision where it holds nearly
        everything; any other key holds at most half, and can be subtracted."""
        scores = self.scores.scatter(-1, self.top[..., None], -torch.inf)
        scores[:, 0] = 0  # the first query has one key: nothing is left, and nothing is read of it
        pattern, total = softmax(scores)
        return total, pattern @ self.v

    def merge(
        self,
        seen: Bool[Tensor, "patch position"],
        q: Float[Tensor, "patch head d_head"],
        total: Float[Tensor, "patch head"],
        z: Float[Tensor, "patch head d_head"],
    ) -> Float[Tensor, "patch head d_head"]:
        """z of new queries that look at the run's keys where `seen`, and at new keys, from which they gathered `z` with a
        logsumexp of `total`."""
        scores = (q.transpose(0, 1) @ self.k.mT).masked_fill(~seen, torch.finfo(q.dtype).min)  # head, patch, position
        pattern, run_total = softmax(scores)
        return (pattern @ self.v).transpose(0, 1).lerp(z, (total - run_total.T).sigmoid()[..., None])


@dataclass(frozen=True, eq=False)
class Base:
    """The run of one sequence that patched runs are made from.

    Attributes:
        layouts: of the model's blocks.
        resid: [position, d_model] for each block, its resid_pre; then the last block's resid_post.
        attention: for each block.
    """

    run: Run
    layouts: list[Layout]
    resid: list[Tensor]
    attention: list[Attention]

    @classmethod
    def of(cls, run: Run, layouts: list[Layout]) -> Base:
        """Of the first sequence of a run."""
        return cls(run, layouts, [x[0] for x in run.resid], [Attention.of(run, layout.layer) for layout in layouts])

    @property
    def model(self) -> FusedTransformer:
        """Whose run it is."""
        return self.run.model

    @cached_property
    def fans(self) -> list[Tensor]:
        """For each block but the last, [position, 1 + 2 head, fan]: the fans of resid_pre with b_O, of z and of `rest`'s."""
        fans = []
        for layout, resid, attention in zip(self.layouts[:-1], self.resid, self.attention, strict=False):
            base = (resid + self.model.parameters[f"blocks.{layout.layer}.attn.b_O"]) @ layout.fan
            heads = layout.head_fans(attention.z, attention.rest[1])
            fans.append(torch.cat([base[None], heads]).transpose(0, 1).contiguous())
        return fans
