"""Patched residual vectors taken to the position that is read, past everything that they cannot change.

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

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hopinterp.engine.cached_run import Attention, Base, Layout, RowHeads, softmax
from hopinterp.models.blocks import Rows, causal_mask

_CHUNK_ROWS = 640  # rows that a block takes at once: their hidden layer, keys and values stay near the caches
_LARGEST = 80.0  # exp of it drowns every weight up to 1, and overflows nothing
_NEEDLESS_ROWS = 64  # what a group may compute in vain where it saves another group's calls


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

    or, where the patched key is the query's top one, z′ = (r + w′ v′) / (1 + w′), with r the z of the other keys and w′
    weighed against these (`Attention.rest`). So resid_mid is a weighted sum of few vectors, and W_O and W_in are applied to
    these (see `Layout`), once for a query or once for a patch, never for each pair of both.

    Attributes:
        by_query: [1 + 2 head, position, patch], the weights of resid_pre and of each head's z and `rest`'s.
        by_patch: [2 head, position, patch], the weights of each head's v and v′.
        v_new: v′.
        own: the fan of resid_mid at the patched position, whose query is new.
    """

    base: Base
    layer: int
    position: Int[Tensor, " patch"]
    by_query: Float[Tensor, "query_part position patch"]
    by_patch: Float[Tensor, "patch_part position patch"]
    v_new: Float[Tensor, "head patch d_head"]
    own: Float[Tensor, "patch fan"]

    @classmethod
    def of(cls, base: Base, layer: int, patches: Patches) -> Entries:
        """Patches that all enter one block."""
        layout, attention, at = base.layouts[layer], base.attention[layer], patches.position
        q, k, v = layout.heads(patches.vector)
        own = patches.vector + layout.attn_out(_own_query(attention, at, q, k, v))
        is_top = attention.top[..., None] == at  # head, query, patch
        a = attention.pattern[..., at].masked_fill_(is_top, 0)
        against = torch.where(is_top, attention.rest[0][..., None], attention.total[..., None])
        w = (attention.q @ k.permute(1, 2, 0)).sub_(against).clamp_max_(_LARGEST).exp_()
        w.masked_fill_(torch.arange(w.shape[1], device=at.device)[:, None] < at, 0)  # earlier queries do not see it
        keep = (w - a).add_(1).reciprocal_()
        rest = keep * is_top
        by_query = torch.stack([keep - rest, rest], dim=1).flatten(0, 1)
        by_patch = torch.stack([a.mul_(keep).neg_(), w.mul_(keep)], dim=1).flatten(0, 1)
        by_query = torch.cat([torch.ones_like(by_query[:1]), by_query])
        return cls(base, layer, at, by_query, by_patch, v.transpose(0, 1), own @ layout.fan)

    def resid_post(self, which: slice, start: int) -> Float[Tensor, "patch window d_model"]:
        """The block's output, from position `start` on, for some of the patches."""
        layout, at = self.base.layouts[self.layer], self.position[which]
        v_fans = layout.head_fans(self.base.attention[self.layer].v[:, at], self.v_new[:, which])
        fanned = torch.bmm(self.by_query[:, start:, which].permute(1, 2, 0), self.base.fans[self.layer][start:])
        by_patch = self.by_patch[:, start:, which].permute(2, 1, 0)
        fanned = torch.baddbmm(fanned.transpose(0, 1), by_patch, v_fans.transpose(0, 1))
        fanned[torch.arange(len(at), device=at.device), at - start] = self.own[which]
        return layout.resid_post(fanned)


def _own_query(attention: Attention, at: Int[Tensor, " patch"], q: RowHeads, k: RowHeads, v: RowHeads) -> RowHeads:
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

    def logits(self, base: Base) -> Float[Tensor, "patch d_vocab"]:
        """The rest of the way."""
        x = self.x + base.layouts[-1].attn_out(base.attention[-1].merge(self.seen, self.q, self.total, self.z))
        return base.model.unembed(x + base.layouts[-1].mlp_out(x))

    @classmethod
    def entering(cls, base: Base, patches: Patches) -> Last:
        """Patches of the last block's own resid_pre: the query that is read has one key exchanged, or is itself new."""
        n = len(base.resid[-1])
        q, k, v = base.layouts[-1].heads(patches.vector)
        own = patches.position == n - 1
        q = torch.where(own[:, None, None], q, base.attention[-1].q[:, -1])
        x = torch.where(own[:, None], patches.vector, base.resid[-2][-1])
        seen = torch.arange(n, device=own.device) != patches.position[:, None]
        return cls(x, q, (q * k).sum(-1), v, seen)

    @classmethod
    def reading(cls, base: Base, x: Float[Tensor, "patch window d_model"]) -> Last:
        """Patched runs whose last positions changed."""
        layout, heads = base.layouts[-1], base.model.spec.n_heads
        rows = layout.norm1(x)
        w_q, w_k, w_v = layout.qkv[0].unflatten(0, (3, heads, -1))  # head, d_head, d_model
        b_q, b_k, b_v = layout.qkv[1].unflatten(0, (3, heads, -1))
        q = torch.einsum("pd,hid->phi", rows[:, -1], w_q) + b_q
        folded = torch.einsum("phi,hid->phd", q, w_k)
        scores = folded @ rows.mT + torch.einsum("phi,hi->ph", q, b_k)[..., None]
        pattern, total = softmax(scores)  # patch, head, window
        z = torch.einsum("phd,hid->phi", pattern @ rows, w_v) + b_v
        first = len(base.resid[-1]) - x.shape[1]
        seen = torch.arange(len(base.resid[-1]), device=x.device) < first
        return cls(x[:, -1].clone(), q, total, z, seen.expand(len(x), -1))


def carry(base: Base, patches: Patches, rows: int) -> Float[Tensor, "patch d_vocab"]:
    """Logits at the end of the sequence for every patch, at most `rows` residual vectors at a time (or one patch's)."""
    n_layers, n = len(base.layouts), len(base.resid[-1])
    logits = patches.vector.new_empty(len(patches), base.model.spec.d_vocab)
    past, late = patches.entry == n_layers, patches.entry == n_layers - 1
    logits[past] = base.model.unembed(patches.vector[past])
    logits[late] = Last.entering(base, patches[late]).logits(base)
    early = (patches.entry < n_layers - 1).nonzero()[:, 0]
    early = early[patches.position[early].argsort(descending=True, stable=True)]
    for part in early.split(max(1, rows * base.layouts[0].fan.shape[1] // (3 * n * base.model.spec.n_heads))):
        logits[part] = _carry_early(base, patches[part], rows)
    return logits


def _carry_early(base: Base, patches: Patches, rows: int) -> Float[Tensor, "patch d_vocab"]:
    """Likewise for patches below the last block, sorted by falling position."""
    n_layers, n = len(base.layouts), len(base.resid[-1])
    within = [(patches.entry == layer).nonzero()[:, 0] for layer in range(n_layers - 1)]
    entries = [Entries.of(base, layer, patches[which]) for layer, which in enumerate(within)]
    places = [which.tolist() for which in within]
    logits = patches.vector.new_empty(len(patches), base.model.spec.d_vocab)
    for begin, end in _groups(patches.position.tolist(), n, rows):
        start = int(patches.position[end - 1])
        some = [slice(bisect_left(place, begin), bisect_left(place, end)) for place in places]
        x = _early_blocks(entries, some, start)
        group = torch.cat([which[part] for which, part in zip(within, some, strict=True)])
        logits[group] = Last.reading(base, x).logits(base)
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
    base = entries[0].base
    counts = [which.stop - which.start for which in some]
    n, d_model = base.resid[-1].shape
    x = base.resid[-1].new_empty(sum(counts), n - start, d_model)
    inside = 0
    for layer, (layout, count) in enumerate(zip(base.layouts, counts, strict=False)):
        for part in x[:inside].split(max(1, _CHUNK_ROWS // (n - start))):
            part += layout.attn_out(_look_back(layout, base.attention[layer], part, start))
            part += layout.mlp_out(part)
        if count:
            x[inside : inside + count] = entries[layer].resid_post(some[layer], start)
            inside += count
    return x


def _look_back(
    layout: Layout, attention: Attention, x: Float[Tensor, "patch window d_model"], start: int
) -> Float[Tensor, "patch window head d_head"]:
    """z of patched rows, which look at the run's keys before the window and at each other."""
    q, k, v = (rows.transpose(1, 2) for rows in layout.heads(x))
    patches, window = x.shape[:2]
    k = torch.cat([attention.k[:, :start].expand(patches, -1, -1, -1), k], dim=2)
    v = torch.cat([attention.v[:, :start].expand(patches, -1, -1, -1), v], dim=2)
    mask = causal_mask(window, start + window, q)
    return F.scaled_dot_product_attention(q, k, v, mask, scale=1.0).transpose(1, 2)
