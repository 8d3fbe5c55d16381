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

from bisect import bisect_left
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
_CHUNK_ROWS = 640  # what a block needs for so many rows stays near a core's second-level cache
_LARGEST = 80.0  # exp of it drowns every weight up to 1, and overflows nothing
_NEEDLESS_ROWS = 128  # what a group may compute in vain where it saves another group's calls


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


def _softmax(scores: Float[Tensor, "*batch key"]) -> tuple[Float[Tensor, "*batch key"], Float[Tensor, "*batch"]]:
    """Softmax over keys and its logsumexp, which the largest entry of both gives at a fraction of torch.logsumexp's cost."""
    pattern = scores.softmax(-1)
    return pattern, scores.amax(-1) - pattern.amax(-1).log()


@dataclass(frozen=True, eq=False)
class Attention:
    """One block's attention in a run of one sequence, with what it would be without any one of its keys.

    Attributes:
        q, k, v: [head, position, d_head], queries scaled.
        z: [position, head, d_head].
        pattern: [head, query, key].
        total: [head, query], logsumexp of the scores, which `pattern` is the softmax of.
        top: [head, query], the key that holds most.
        rest_total, rest_z: `total` and `z` without that key. Subtracting it would lose all precision where it held nearly
            everything; any other key holds at most half, and can be subtracted.
    """

    q: Float[Tensor, "head position d_head"]
    k: Float[Tensor, "head position d_head"]
    v: Float[Tensor, "head position d_head"]
    z: Float[Tensor, "position head d_head"]
    pattern: Float[Tensor, "head query key"]
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
        (pattern, total), (rest_pattern, rest_total) = _softmax(scores), _softmax(rest)
        z, rest_z = ((x @ v).transpose(0, 1).contiguous() for x in (pattern, rest_pattern))
        return cls(q, k, v, z, pattern, total, top, rest_total, rest_z)

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
        pattern, run_total = _softmax(scores)
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
        """For each block but the last, [position, 1 + 2 head, fan]: the fans of resid_pre with b_O, of z and of rest_z."""
        fans = []
        for block, resid, attention in zip(self.blocks[:-1], self.resid, self.attention, strict=False):
            base = (resid + block.out[1]) @ block.fan
            heads = block.head_fans(attention.z.transpose(0, 1), attention.rest_z.transpose(0, 1))
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
    """Patches in the block whose resid_pre they patch.

    A later query has one key exchanged. With a the old weight of the patched key and w′ the new one's, as it would be if it
    were added to the old keys, the query gathers

        z′ = (z − a v + w′ v′) / (1 − a + w′)

    or, where the patched key is the query's top one, z′ = (rest_z + w′ v′) / (1 + w′) with w′ weighed against the rest. So
    resid_mid is a weighted sum of few vectors, and W_O and W_in are applied to these (see `Block`), once for a query or once
    for a patch, never for each pair of both.

    Attributes:
        by_query: [1 + 2 head, position, patch], the weights of resid_pre and of each head's z and rest_z.
        by_patch: [2 head, position, patch], the weights of each head's v and v′.
        v_new: v′.
        own: the fan of resid_mid at the patched position, whose query is new.
    """

    run: Run
    layer: int
    position: Int[Tensor, " patch"]
    by_query: Float[Tensor, "part position patch"]
    by_patch: Float[Tensor, "part position patch"]
    v_new: Float[Tensor, "head patch d_head"]
    own: Float[Tensor, "patch fan"]

    @classmethod
    def of(cls, run: Run, layer: int, patches: Patches) -> Entries:
        """Patches that all enter one block."""
        block, attention, at = run.blocks[layer], run.attention[layer], patches.position
        q, k, v = block.heads(patches.vector)
        own = patches.vector + block.attn_out(_own_query(attention, at, q, k, v))
        is_top = attention.top[..., None] == at  # head, query, patch
        a = attention.pattern[..., at].masked_fill_(is_top, 0)
        against = torch.where(is_top, attention.rest_total[..., None], attention.total[..., None])
        w = (attention.q @ k.permute(1, 2, 0)).sub_(against).clamp_max_(_LARGEST).exp_()
        w.masked_fill_(torch.arange(w.shape[1], device=at.device)[:, None] < at, 0)  # earlier queries do not see it
        keep = (w - a).add_(1).reciprocal_()
        rest = keep * is_top
        by_query = torch.stack([keep - rest, rest], dim=1).flatten(0, 1)
        by_patch = torch.stack([a.mul_(keep).neg_(), w.mul_(keep)], dim=1).flatten(0, 1)
        by_query = torch.cat([torch.ones_like(by_query[:1]), by_query])
        return cls(run, layer, at, by_query, by_patch, v.transpose(0, 1), own @ block.fan)

    def resid_post(self, which: slice, start: int) -> Float[Tensor, "patch window d_model"]:
        """The block's output, from position `start` on, for some of the patches."""
        block, at = self.run.blocks[self.layer], self.position[which]
        v_fans = block.head_fans(self.run.attention[self.layer].v[:, at], self.v_new[:, which])
        fanned = torch.bmm(self.by_query[:, start:, which].permute(1, 2, 0), self.run.fans[self.layer][start:])
        by_patch = self.by_patch[:, start:, which].permute(2, 1, 0)
        fanned = torch.baddbmm(fanned.transpose(0, 1), by_patch, v_fans.transpose(0, 1))
        fanned[torch.arange(len(at), device=at.device), at - start] = self.own[which]
        return block.resid_post(fanned)


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
        return unembed(run.model, x + run.blocks[-1].mlp_out(x))

    @classmethod
    def entering(cls, run: Run, patches: Patches) -> Last:
        """Patches of the last block's own resid_pre: the query that is read has one key exchanged, or is itself new."""
        n = len(run.resid[-1])
        q, k, v = run.blocks[-1].heads(patches.vector)
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
        w_q, w_k, w_v = block.qkv[0].unflatten(0, (3, heads, -1))  # head, d_head, d_model
        b_q, b_k, b_v = block.qkv[1].unflatten(0, (3, heads, -1))
        q = torch.einsum("pd,hid->phi", rows[:, -1], w_q) + b_q
        folded = torch.einsum("phi,hid->phd", q, w_k)
        scores = folded @ rows.mT + torch.einsum("phi,hi->ph", q, b_k)[..., None]
        pattern, total = _softmax(scores)  # patch, head, window
        z = torch.einsum("phd,hid->phi", pattern @ rows, w_v) + b_v
        first = len(run.resid[-1]) - x.shape[1]
        seen = torch.arange(len(run.resid[-1]), device=x.device) < first
        return cls(x[:, -1].clone(), q, total, z, seen.expand(len(x), -1))


def carry(run: Run, patches: Patches, rows: int) -> Float[Tensor, "patch d_vocab"]:
    """Logits at the end of the sequence for every patch, at most `rows` residual vectors at a time (or one patch's)."""
    n_layers, n = len(run.blocks), len(run.resid[-1])
    logits = patches.vector.new_empty(len(patches), run.model.spec.d_vocab)
    past, late = patches.entry == n_layers, patches.entry == n_layers - 1
    logits[past] = unembed(run.model, patches.vector[past])
    logits[late] = Last.entering(run, patches[late]).logits(run)
    early = (patches.entry < n_layers - 1).nonzero()[:, 0]
    early = early[patches.position[early].argsort(descending=True, stable=True)]
    for part in early.split(max(1, rows * run.blocks[0].fan.shape[1] // (3 * n * run.model.spec.n_heads))):
        logits[part] = _carry_early(run, patches[part], rows)
    return logits


def _carry_early(run: Run, patches: Patches, rows: int) -> Float[Tensor, "patch d_vocab"]:
    """Likewise for patches below the last block, sorted by falling position."""
    n_layers, n = len(run.blocks), len(run.resid[-1])
    within = [(patches.entry == layer).nonzero()[:, 0] for layer in range(n_layers - 1)]
    entries = [Entries.of(run, layer, patches[which]) for layer, which in enumerate(within)]
    places = [which.tolist() for which in within]
    logits = patches.vector.new_empty(len(patches), run.model.spec.d_vocab)
    for begin, end in _groups(patches.position.tolist(), n, rows):
        start = int(patches.position[end - 1])
        some = [slice(bisect_left(place, begin), bisect_left(place, end)) for place in places]
        x = _early_blocks(entries, some, start)
        group = torch.cat([which[part] for which, part in zip(within, some, strict=True)])
        logits[group] = Last.reading(run, x).logits(run)
    return logits


def _groups(positions: list[int], n: int, rows: int) -> list[tuple[int, int]]:
    """Begin and end of runs of patches, sorted by falling position, that are carried together in one window."""
    groups, begin, needless = [], 0, 0
    for i, position in enumerate(positions):
        needless += (i - begin) * (positions[i - 1] - position) if i else 0
        if i > begin and ((i + 1 - begin) * (n - position) > rows or needless > _NEEDLESS_ROWS):
            groups.append((begin, i))
            begin, needless = i, 0
    return [*groups, (begin, len(positions))] if positions else []


def _early_blocks(entries: list[Entries], some: list[slice], start: int) -> Float[Tensor, "patch window d_model"]:
    """The last block's resid_pre from `start` on, for some of each block's patches."""
    run = entries[0].run
    counts = [which.stop - which.start for which in some]
    n, d_model = run.resid[-1].shape
    x = run.resid[-1].new_empty(sum(counts), n - start, d_model)
    inside = 0
    for layer, (block, count) in enumerate(zip(run.blocks, counts, strict=False)):
        for part in x[:inside].split(max(1, _CHUNK_ROWS // (n - start))):
            part += block.attn_out(_look_back(block, run.attention[layer], part, start))
            part += block.mlp_out(part)
        if count:
            x[inside : inside + count] = entries[layer].resid_post(some[layer], start)
            inside += count
    return x


def _look_back(
    block: Block, attention: Attention, x: Float[Tensor, "patch window d_model"], start: int
) -> Float[Tensor, "patch window head d_head"]:
    """z of patched rows, which look at the run's keys before the window and at each other."""
    q, k, v = (rows.transpose(1, 2) for rows in block.heads(x))
    patches, window = x.shape[:2]
    k = torch.cat([attention.k[:, :start].expand(patches, -1, -1, -1), k], dim=2)
    v = torch.cat([attention.v[:, :start].expand(patches, -1, -1, -1), v], dim=2)
    future = torch.full((window, start + window), -torch.inf, dtype=x.dtype, device=x.device).triu(start + 1)
    return F.scaled_dot_product_attention(q, k, v, future, scale=1.0).transpose(1, 2)
