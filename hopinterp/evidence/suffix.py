"""The express lift: takes a patched residual vector to the position that is read, past everything it cannot change.

A vector patched into one position of a run changes nothing below its block and nothing to its left. Carried here, for one
sequence and the position read at its end (what stands to the right of that is cut off beforehand), are only

- in the block that it enters: the key and value of the patched position. Every later query has one key exchanged, which is
  a merge of two parts of an attention, the run's other keys and the new one (`Entries`);
- in the blocks above: the rows from the patched position on, their queries looking back at the run's own keys;
- in the last block: the one query that is read. W_K is folded into it, and W_V into what it gathers, so that no row needs
  a key or a value.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hopinterp.models.fused import FusedTransformer

Rows = Float[Tensor, "*batch d_model"]
Heads = Float[Tensor, "*batch head d_head"]
_MLP_ROWS = 192  # with a hidden width of 512, a chunk and the weights stay in a core's second-level cache
_NEEDLESS_ROWS = 128  # what a group may compute in vain where it saves another group's calls


@dataclass(frozen=True, eq=False)
class Block:
    """One block, its weights laid out for many calls. Queries are scaled as the scores are to be."""

    model: FusedTransformer
    layer: int
    qkv_weight: Float[Tensor, "qkv_head_d_head d_model"]
    qkv_bias: Float[Tensor, " qkv_head_d_head"]

    @classmethod
    def of(cls, model: FusedTransformer, layer: int) -> Block:
        """Lay out one block of a model."""
        spec = model.spec
        assert spec.d_head is not None
        scales = (spec.d_head**-0.5 if spec.use_attn_scale else 1.0, 1.0, 1.0)
        weights = [
            model.parameters[f"blocks.{layer}.attn.W_{name}"] * scale for name, scale in zip("QKV", scales, strict=True)
        ]
        biases = [
            model.parameters[f"blocks.{layer}.attn.b_{name}"] * scale for name, scale in zip("QKV", scales, strict=True)
        ]
        return cls(model, layer, torch.cat(weights).transpose(1, 2).flatten(0, 1).contiguous(), torch.cat(biases).flatten())

    def norm1(self, x: Rows) -> Rows:
        """What the heads read of resid_pre."""
        return _norm(self.model, x, f"blocks.{self.layer}.ln1")

    def qkv(self, x: Rows) -> tuple[Heads, Heads, Heads]:
        """Queries, keys and values of rows of resid_pre."""
        spec = self.model.spec
        q, k, v = F.linear(self.norm1(x), self.qkv_weight, self.qkv_bias).unflatten(-1, (3, spec.n_heads, -1)).unbind(-3)
        return q, k, v

    def attn_out(self, z: Heads) -> Rows:
        """What the heads write together."""
        return F.linear(z.flatten(-2), self.own("attn.W_O").flatten(0, 1).T, self.own("attn.b_O"))

    def mlp_out(self, x: Rows) -> Rows:
        """What the MLP writes, from rows of resid_mid; zero where the model has none."""
        spec = self.model.spec
        if spec.attn_only:
            return torch.zeros_like(x)
        hidden = F.linear(_norm(self.model, x, f"blocks.{self.layer}.ln2"), self.own("mlp.W_in").T, self.own("mlp.b_in"))
        if spec.act_fn == "relu":
            hidden = F.relu(hidden)
        else:
            hidden = F.gelu(hidden, approximate="none" if spec.act_fn == "gelu" else "tanh")
        return F.linear(hidden, self.own("mlp.W_out").T, self.own("mlp.b_out"))

    def add_mlp_(self, x: Rows) -> None:
        """From resid_mid to resid_post in place, a cacheful of rows at a time."""
        if not self.model.spec.attn_only:
            for rows in x.view(-1, x.shape[-1]).split(_MLP_ROWS):
                rows += self.mlp_out(rows)

    def own(self, name: str) -> Tensor:
        """A parameter of this block."""
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
class Attention:
    """One block's attention in a run of one sequence, with what it would be without any one of its keys.

    Attributes:
        q, k, v: [head, position, d_head], queries scaled.
        z: [position, head, d_head].
        scores: [head, query, key], −inf where the key comes later.
        total: [head, query], logsumexp of the scores.
        top: [head, query], the key that holds most.
        rest_total, rest_z: `total` and `z` without that key. Subtracting it would lose all precision where it held nearly
            everything; any other key holds at most half, and can be subtracted.
    """

    q: Float[Tensor, "head position d_head"]
    k: Float[Tensor, "head position d_head"]
    v: Float[Tensor, "head position d_head"]
    z: Float[Tensor, "position head d_head"]
    scores: Float[Tensor, "head query key"]
    total: Float[Tensor, "head query"]
    top: Int[Tensor, "head query"]
    rest_total: Float[Tensor, "head query"]
    rest_z: Float[Tensor, "position head d_head"]

    @classmethod
    def of(cls, q: Heads, k: Heads, v: Heads) -> Attention:
        """From queries, keys and values [position, head, d_head]."""
        q, k, v = (x.transpose(0, 1).contiguous() for x in (q, k, v))
        n = q.shape[1]
        scores = (q @ k.mT).masked_fill(torch.ones(n, n, dtype=torch.bool, device=q.device).triu(1), -torch.inf)
        top = scores.argmax(-1)
        rest = scores.scatter(-1, top[..., None], -torch.inf)
        rest[:, 0] = 0  # the first query has one key: nothing is left, and nothing is read of it
        z, rest_z = ((x.softmax(-1) @ v).transpose(0, 1).contiguous() for x in (scores, rest))
        return cls(q, k, v, z, scores, scores.logsumexp(-1), top, rest.logsumexp(-1), rest_z)

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
        run_z = (scores.softmax(-1) @ self.v).transpose(0, 1)
        return run_z.lerp(z, (total - scores.logsumexp(-1).T).sigmoid()[..., None])


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

    @classmethod
    def of(cls, model: FusedTransformer, blocks: list[Block], tokens: Int[Tensor, " position"]) -> Run:
        """Run the model on one sequence."""
        p = model.parameters
        start = F.embedding(tokens, p["embed.W_E"]) + p["pos_embed.W_pos"][: len(tokens)]
        run = cls(model, blocks, [start], [], [], [], [])
        for block in blocks:
            run.attention.append(Attention.of(*block.qkv(run.resid[-1])))
            run.attn_out.append(block.attn_out(run.attention[-1].z))
            run.mid.append(run.resid[-1] + run.attn_out[-1])
            run.mlp_out.append(block.mlp_out(run.mid[-1]))
            run.resid.append(run.mid[-1] + run.mlp_out[-1])
        return run


@dataclass(frozen=True, eq=False)
class Patches:
    """Residual vectors put in the place of one sequence's own.

    Attributes:
        entry: the block whose resid_pre is patched; n_layers stands for the last block's resid_post.
        position: where.
        vector: what is put there.
    """

    entry: Int[Tensor, " patch"]
    position: Int[Tensor, " patch"]
    vector: Float[Tensor, "patch d_model"]

    def __getitem__(self, which: Tensor | slice) -> Patches:
        return Patches(self.entry[which], self.position[which], self.vector[which])

    def __len__(self) -> int:
        return len(self.entry)


@dataclass(frozen=True, eq=False)
class Entries:
    """Patches in the block that they enter. Each later query is a weighted sum of three vectors: what it gathers in the
    run (or without its top key, where that is the patched one), the patched key's old value, and its new value.

    Attributes:
        is_top, keep, old, new: [patch, position, head], whether the patched key is the query's top one, and the weights.
        v_old, v_new: [patch, head, d_head].
        mid: [patch, d_model], resid_mid at the patched position.
    """

    run: Run
    layer: int
    position: Int[Tensor, " patch"]
    is_top: Bool[Tensor, "patch position head"]
    keep: Float[Tensor, "patch position head"]
    old: Float[Tensor, "patch position head"]
    new: Float[Tensor, "patch position head"]
    v_old: Float[Tensor, "patch head d_head"]
    v_new: Float[Tensor, "patch head d_head"]
    mid: Rows

    @classmethod
    def of(cls, run: Run, layer: int, patches: Patches) -> Entries:
        """Patches that all enter one block. With a the old weight of the patched key and a′ the new one, which is a
        sigmoid of the new score against the logsumexp of the other keys:

            z′ = (1 − a′) · (z − a v) / (1 − a) + a′ v′
        """
        attention, at = run.attention[layer], patches.position
        q, k, v_new = run.blocks[layer].qkv(patches.vector)
        own_z = _own_query(attention, at, q, k, v_new)
        mid = patches.vector + run.blocks[layer].attn_out(own_z)
        is_top = attention.top[..., None] == at  # head, query, patch
        a = (attention.scores[..., at] - attention.total[..., None]).exp().masked_fill(is_top, 0)
        others = torch.where(is_top, attention.rest_total[..., None], attention.total[..., None] + torch.log1p(-a))
        earlier = torch.arange(a.shape[1], device=at.device)[:, None] < at
        margin = (attention.q @ k.permute(1, 2, 0) - others).masked_fill(earlier, -torch.inf)
        keep = (-margin).sigmoid() / (1 - a)
        is_top, keep, old, new = (x.permute(2, 1, 0).contiguous() for x in (is_top, keep, -a * keep, margin.sigmoid()))
        return cls(run, layer, at, is_top, keep, old, new, attention.v[:, at].transpose(0, 1), v_new, mid)

    def mids(self, which: slice, start: int) -> Float[Tensor, "patch window d_model"]:
        """resid_mid from `start` on of some of the patches."""
        attention = self.run.attention[self.layer]
        is_top, keep, old, new = (x[which, start:, :, None] for x in (self.is_top, self.keep, self.old, self.new))
        z = torch.where(is_top, attention.rest_z[start:], attention.z[start:]).mul_(keep)
        z.addcmul_(self.v_old[which, None], old).addcmul_(self.v_new[which, None], new)
        x = self.run.blocks[self.layer].attn_out(z) + self.run.resid[self.layer][start:]
        x[torch.arange(len(x), device=x.device), self.position[which] - start] = self.mid[which]
        return x


def _own_query(attention: Attention, at: Int[Tensor, " patch"], q: Heads, k: Heads, v: Heads) -> Heads:
    """z of patched positions, each seeing the run's keys before it and its own new one."""
    before = torch.arange(attention.k.shape[1], device=at.device) < at[:, None]
    return attention.merge(before, q, (q * k).sum(-1), v)


@dataclass(frozen=True, eq=False)
class Last:
    """Patched runs at the last block, where one position is read.

    Attributes:
        x: [patch, d_model], resid_pre there.
        q: its query; total, z: what that has of keys that are not the run's, see `Attention.merge`.
        seen: the run's keys that it sees.
    """

    x: Rows
    q: Float[Tensor, "patch head d_head"]
    total: Float[Tensor, "patch head"]
    z: Float[Tensor, "patch head d_head"]
    seen: Bool[Tensor, "patch position"]

    def logits(self, run: Run) -> Float[Tensor, "patch d_vocab"]:
        """The rest of the way."""
        x = self.x + run.blocks[-1].attn_out(run.attention[-1].merge(self.seen, self.q, self.total, self.z))
        run.blocks[-1].add_mlp_(x)
        return unembed(run.model, x)

    @classmethod
    def entering(cls, run: Run, patches: Patches) -> Last:
        """Patches of the last block's own resid_pre: the query that is read has one key exchanged, or is itself new."""
        n = len(run.resid[-1])
        q, k, v = run.blocks[-1].qkv(patches.vector)
        own = patches.position == n - 1
        q = torch.where(own[:, None, None], q, run.attention[-1].q[:, -1])
        x = torch.where(own[:, None], patches.vector, run.resid[-2][-1])
        seen = torch.arange(n, device=own.device) != patches.position[:, None]
        return cls(x, q, (q * k).sum(-1), v, seen)

    @classmethod
    def reading(cls, run: Run, x: Float[Tensor, "patch window d_model"]) -> Last:
        """Patched runs whose last positions changed."""
        block, heads = run.blocks[-1], run.model.spec.n_heads
        rows = block.norm1(x)
        w_q, w_k, w_v = block.qkv_weight.unflatten(0, (3, heads, -1))  # head, d_head, d_model
        b_q, b_k, b_v = block.qkv_bias.unflatten(0, (3, heads, -1))
        q = torch.einsum("pd,hid->phi", rows[:, -1], w_q) + b_q
        folded = torch.einsum("phi,hid->pdh", q, w_k)
        scores = rows @ folded + torch.einsum("phi,hi->ph", q, b_k)[:, None]  # patch, window, head
        mean = scores.softmax(1).mT @ rows
        z = torch.einsum("phd,hid->phi", mean, w_v) + b_v
        first = len(run.resid[-1]) - x.shape[1]
        seen = torch.arange(len(run.resid[-1]), device=x.device) < first
        return cls(x[:, -1].clone(), q, scores.logsumexp(1), z, seen.expand(len(x), -1))

    @classmethod
    def cat(cls, parts: list[Last]) -> Last:
        """All of them."""
        return cls(*(torch.cat([getattr(part, name) for part in parts]) for name in ("x", "q", "total", "z", "seen")))


def carry(run: Run, patches: Patches, rows: int) -> Float[Tensor, "patch d_vocab"]:
    """Logits at the end of the sequence for every patch, at most `rows` residual vectors at a time (or one patch's)."""
    n_layers, n = len(run.blocks), len(run.resid[-1])
    logits = patches.vector.new_empty(len(patches), run.model.spec.d_vocab)
    past, late, early = patches.entry == n_layers, patches.entry == n_layers - 1, patches.entry < n_layers - 1
    logits[past] = unembed(run.model, patches.vector[past])
    logits[late] = Last.entering(run, patches[late]).logits(run)
    if early.any():
        which = early.nonzero()[:, 0]
        which = which[patches.position[which].argsort(descending=True, stable=True)]
        groups = [which[a:b] for a, b in _groups(patches.position[which].tolist(), n, rows)]
        groups = [group[patches.entry[group].argsort(stable=True)] for group in groups]
        order = torch.cat(groups)
        entries = [Entries.of(run, layer, patches[order[patches.entry[order] == layer]]) for layer in range(n_layers - 1)]
        used = [0] * len(entries)
        parts = []
        for group in groups:
            counts = patches.entry[group].bincount(minlength=len(entries)).tolist()
            start = int(patches.position[group].min())
            x = _early_blocks(run, [(e, slice(u, u + c)) for e, u, c in zip(entries, used, counts, strict=True)], start)
            parts.append(Last.reading(run, x))
            used = [u + c for u, c in zip(used, counts, strict=True)]
        logits[order] = Last.cat(parts).logits(run)
    return logits


def _groups(positions: list[int], n: int, rows: int) -> list[tuple[int, int]]:
    """Begin and end of runs of patches, sorted by falling position, that are carried together in one window."""
    groups, begin, needless = [], 0, 0
    for i, position in enumerate(positions):
        needless += (i - begin) * (positions[i - 1] - position) if i else 0
        if i > begin and ((i + 1 - begin) * (n - position) > rows or needless > _NEEDLESS_ROWS):
            groups.append((begin, i))
            begin, needless = i, 0
    return [*groups, (begin, len(positions))]


def _early_blocks(run: Run, entering: list[tuple[Entries, slice]], start: int) -> Float[Tensor, "patch window d_model"]:
    """resid_pre of the last block from `start` on, for patches in the order of their entry."""
    total = sum(which.stop - which.start for _, which in entering)
    n = len(run.resid[-1])
    x = run.resid[-1].new_empty(total, n - start, run.model.spec.d_model)
    inside = 0
    for (entries, which), block, attention in zip(entering, run.blocks, run.attention, strict=False):
        now = inside + which.stop - which.start
        if inside:
            x[:inside] += block.attn_out(_look_back(block, attention, x[:inside], start))
        if now > inside:
            x[inside:now] = entries.mids(which, start)
        block.add_mlp_(x[:now])
        inside = now
    return x


def _look_back(
    block: Block, attention: Attention, x: Float[Tensor, "patch window d_model"], start: int
) -> Float[Tensor, "patch window head d_head"]:
    """z of patched rows, which look at the run's keys before the window and at each other."""
    q, k, v = (rows.transpose(1, 2) for rows in block.qkv(x))
    patches, heads, window, d_head = q.shape
    k = torch.cat([attention.k[:, :start].expand(patches, -1, -1, -1), k], dim=2).flatten(0, 1)
    v = torch.cat([attention.v[:, :start].expand(patches, -1, -1, -1), v], dim=2).flatten(0, 1)
    future = torch.full((window, start + window), -torch.inf, dtype=x.dtype, device=x.device).triu(start + 1)
    pattern = torch.baddbmm(future, q.reshape(-1, window, d_head), k.mT).softmax(-1)
    return torch.bmm(pattern, v).view(patches, heads, window, d_head).transpose(1, 2)
