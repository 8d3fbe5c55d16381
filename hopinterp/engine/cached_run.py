"""The ground floor of a sweep: one sequence's run, kept whole, from blocks laid out for many calls."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hopinterp.models.fused import FusedTransformer
from hopinterp.models.spec import ModelSpec

Rows = Float[Tensor, "*batch d_model"]
Heads = Float[Tensor, "*batch head d_head"]
Linear = tuple[Tensor, Tensor]


@dataclass(frozen=True, eq=False)
class Block:
    """One block, its linear maps laid out for many calls, each as `torch.nn.functional.linear` takes it.

    Attributes:
        norm: gain and bias of the first layer norm.
        qkv: to queries, keys and values of all heads; queries come scaled as the scores are to be.
        out: from what the heads gather to the residual stream.
        read, write: into the MLP and out of it. The second layer norm's gain, bias and centring are part of `read`.
        fan: [d_model, d_model + d_mlp], from a direction of the residual stream to itself and to what it adds to the MLP's
            preactivations, but for the layer norm's division (see `resid_post`).
        head_fan: [head, d_head, d_model + d_mlp], likewise from what a head gathers.
    """

    spec: ModelSpec
    norm: tuple[Tensor | None, Tensor | None]
    qkv: Linear
    out: Linear
    read: Linear | None
    write: Linear | None
    fan: Float[Tensor, "d_model fan"]
    head_fan: Float[Tensor, "head d_head fan"]

    @classmethod
    def of(cls, model: FusedTransformer, layer: int) -> Block:
        """Lay out one block of a model."""
        spec, prefix = model.spec, f"blocks.{layer}."
        w = {name.removeprefix(prefix): p for name, p in model.parameters.items() if name.startswith(prefix)}
        assert spec.d_head is not None
        scales = {"Q": spec.d_head**-0.5 if spec.use_attn_scale else 1.0, "K": 1.0, "V": 1.0}
        weight = torch.cat([w[f"attn.W_{name}"] * scale for name, scale in scales.items()])
        bias = torch.cat([w[f"attn.b_{name}"] * scale for name, scale in scales.items()])
        qkv = weight.transpose(1, 2).flatten(0, 1).contiguous(), bias.flatten()
        out = w["attn.W_O"].flatten(0, 1).T, w["attn.b_O"]
        fan, read, write = torch.eye(spec.d_model, dtype=weight.dtype, device=weight.device), None, None
        if not spec.attn_only:
            read, write = _read(w, spec), (w["mlp.W_out"].T, w["mlp.b_out"])
            fan = torch.cat([fan, read[0].T], dim=1)
        return cls(spec, (w.get("ln1.w"), w.get("ln1.b")), qkv, out, read, write, fan, w["attn.W_O"] @ fan)

    def norm1(self, x: Rows) -> Rows:
        """What the heads read of resid_pre."""
        return _norm(self.spec, x, *self.norm)

    def heads(self, x: Rows) -> tuple[Heads, Heads, Heads]:
        """Queries, keys and values of rows of resid_pre."""
        q, k, v = F.linear(self.norm1(x), *self.qkv).unflatten(-1, (3, self.spec.n_heads, -1)).unbind(-3)
        return q, k, v

    def attn_out(self, z: Heads) -> Rows:
        """What the heads write together."""
        return F.linear(z.flatten(-2), *self.out)

    def mlp_out(self, x: Rows) -> Rows:
        """What the MLP writes, from rows of resid_mid; zero where the model has none."""
        if self.read is None:
            return torch.zeros_like(x)
        return self._write(F.linear(_norm(self.spec, x, None, None), *self.read))

    def resid_post(self, fanned: Float[Tensor, "*batch fan"]) -> Rows:
        """The block's output from resid_mid's fan."""
        x, hidden = fanned.tensor_split([self.spec.d_model], dim=-1)
        if self.read is None:
            return x
        if self.spec.normalization_type is None:
            return x + self._write(hidden + self.read[1])
        norm = torch.linalg.vector_norm(x - x.mean(-1, keepdim=True), dim=-1, keepdim=True)  # x.var() takes 13 times as long
        scale = (norm.square() / self.spec.d_model + self.spec.eps).rsqrt()
        return x + self._write(torch.addcmul(self.read[1], hidden, scale))

    def head_fans(
        self, first: Float[Tensor, "head row d_head"], second: Float[Tensor, "head row d_head"]
    ) -> Float[Tensor, "head_and_which row fan"]:
        """The fans of two things that each head gathers."""
        z = torch.cat([first, second], dim=1)
        return torch.bmm(z, self.head_fan).view(-1, first.shape[1], self.head_fan.shape[2])

    def _write(self, hidden: Float[Tensor, "*batch d_mlp"]) -> Rows:
        assert self.write is not None
        if self.spec.act_fn == "relu":
            hidden = F.relu(hidden)
        else:
            hidden = F.gelu(hidden, approximate="none" if self.spec.act_fn == "gelu" else "tanh")
        return F.linear(hidden, *self.write)


def _read(weights: dict[str, Tensor], spec: ModelSpec) -> Linear:
    """W_in and b_in with what is linear in the layer norm before them."""
    w_in, bias = weights["mlp.W_in"], weights["mlp.b_in"]
    if "ln2.w" in weights:
        w_in, bias = weights["ln2.w"][:, None] * w_in, bias + weights["ln2.b"] @ w_in
    return (w_in if spec.normalization_type is None else w_in - w_in.mean(0)).T.contiguous(), bias


def unembed(model: FusedTransformer, x: Rows) -> Float[Tensor, "*batch d_vocab"]:
    """Logits from rows of the last block's resid_post."""
    p = model.parameters
    x = _norm(model.spec, x, p.get("ln_final.w"), p.get("ln_final.b"))
    return F.linear(x, p["unembed.W_U"].T, p["unembed.b_U"])


def _norm(spec: ModelSpec, x: Rows, weight: Tensor | None, bias: Tensor | None) -> Rows:
    return x if spec.normalization_type is None else F.layer_norm(x, (spec.d_model,), weight, bias, spec.eps)


def softmax(scores: Float[Tensor, "*batch key"]) -> tuple[Float[Tensor, "*batch key"], Float[Tensor, "*batch"]]:
    """Softmax over keys and its logsumexp, which the largest entry of both gives at a fraction of torch.logsumexp's cost."""
    pattern = scores.softmax(-1)
    return pattern, scores.amax(-1) - pattern.amax(-1).log()


@dataclass(frozen=True, eq=False)
class Attention:
    """One block's attention in a run of one sequence, with what it would be without any one of its keys.

    Attributes:
        q, k, v: [head, position, d_head], queries scaled.
        z: [position, head, d_head].
        scores: [head, query, key], −inf where the key comes later; `pattern` is their softmax.
        total: [head, query], their logsumexp.
    """

    q: Float[Tensor, "head position d_head"]
    k: Float[Tensor, "head position d_head"]
    v: Float[Tensor, "head position d_head"]
    z: Float[Tensor, "position head d_head"]
    scores: Float[Tensor, "head query key"]
    pattern: Float[Tensor, "head query key"]
    total: Float[Tensor, "head query"]

    @classmethod
    def of(cls, q: Heads, k: Heads, v: Heads) -> Attention:
        """From queries, keys and values [position, head, d_head]."""
        q, k, v = (x.transpose(0, 1).contiguous() for x in (q, k, v))
        n = q.shape[1]
        scores = (q @ k.mT).masked_fill(torch.ones(n, n, dtype=torch.bool, device=q.device).triu(1), -torch.inf)
        pattern, total = softmax(scores)
        return cls(q, k, v, (pattern @ v).transpose(0, 1).contiguous(), scores, pattern, total)

    @cached_property
    def top(self) -> Int[Tensor, "head query"]:
        """The key that holds most."""
        return self.scores.argmax(-1)

    @cached_property
    def rest(self) -> tuple[Float[Tensor, "head query"], Float[Tensor, "position head d_head"]]:
        """`total` and `z` without the top key. Subtracting that one would lose all precision where it holds nearly
        everything; any other key holds at most half, and can be subtracted."""
        scores = self.scores.scatter(-1, self.top[..., None], -torch.inf)
        scores[:, 0] = 0  # the first query has one key: nothing is left, and nothing is read of it
        pattern, total = softmax(scores)
        return total, (pattern @ self.v).transpose(0, 1)

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
class Run:
    """A run of one sequence as it is without a patch.

    Attributes:
        resid: [position, d_model] for each block, its resid_pre; then the last block's resid_post.
        mid, attn_out, mlp_out: likewise, for each block.
        attention: for each block.
    """

    model: FusedTransformer
    blocks: list[Block]
    resid: list[Tensor]
    mid: list[Tensor]
    attn_out: list[Tensor]
    mlp_out: list[Tensor]
    attention: list[Attention]

    @cached_property
    def fans(self) -> list[Tensor]:
        """For each block but the last, [position, 1 + 2 head, fan]: the fans of resid_pre with b_O, of z and of `rest`'s."""
        fans = []
        for block, resid, attention in zip(self.blocks[:-1], self.resid, self.attention, strict=False):
            base = (resid + block.out[1]) @ block.fan
            heads = block.head_fans(attention.z.transpose(0, 1), attention.rest[1].transpose(0, 1))
            fans.append(torch.cat([base[None], heads]).transpose(0, 1).contiguous())
        return fans

    @classmethod
    def of(cls, model: FusedTransformer, blocks: list[Block], tokens: Int[Tensor, " position"]) -> Run:
        """Run the model on one sequence."""
        p = model.parameters
        start = F.embedding(tokens, p["embed.W_E"]) + p["pos_embed.W_pos"][: len(tokens)]
        run = cls(model, blocks, [start], [], [], [], [])
        for block in blocks:
            run.attention.append(Attention.of(*block.heads(run.resid[-1])))
            run.attn_out.append(block.attn_out(run.attention[-1].z))
            run.mid.append(run.resid[-1] + run.attn_out[-1])
            run.mlp_out.append(block.mlp_out(run.mid[-1]))
            run.resid.append(run.mid[-1] + run.mlp_out[-1])
        return run
