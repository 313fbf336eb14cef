"""Keys and values while completions are drawn: of a prompt once for its group, or once a row.

Both caches draw the same. Where prompts are long the first pays, because memory is what a step
reads; where they are short the second, because then kernels are what it counts.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from models.attention import TreeAttention
from models.layers import Attend

COPIES = 4 << 20  # bytes of prompts' keys and values, in a layer, up to which each row has a copy


def kv_cache(
    shape: tuple[int, int, int], lengths: Tensor, rows: int, slots: int, **like: Any
) -> SharedCache | RowCache:
    """The cache that pays. `shape` is (layers, kv_heads, head_dim), `lengths` (B,) the prompts',
    `slots` the most tokens of a completion."""
    prompt = 2 * int(lengths.max()) * shape[1] * shape[2] * like["dtype"].itemsize
    kind = SharedCache if shares(len(lengths), rows, prompt) else RowCache
    return kind(shape, lengths, rows, slots, **like)


def shares(prompts: int, rows: int, prompt: int) -> bool:
    """Whether `rows` completions look at one copy of their prompt, of so many bytes in a layer."""
    return prompts < rows and rows * prompt > COPIES


class RowCache:
    """(layers, 2, rows, kv_heads, slots, head_dim): first a copy of the row's prompt, with pads up
    to the longest, then its completion. Zeros, not garbage: masked slots must be finite."""

    def __init__(
        self, shape: tuple[int, int, int], lengths: Tensor, rows: int, slots: int, **like: Any
    ) -> None:
        layers, heads, width = shape
        self.slot = longest = int(lengths.max())  # that the next decoded token fills
        self.group_size = rows // len(lengths)
        self.own = torch.zeros(layers, 2, rows, heads, longest + slots, width, **like)
        of_row = lengths.repeat_interleave(self.group_size)[:, None]
        slot = torch.arange(longest + slots)
        pads = (slot >= of_row) & (slot < longest)  # (rows, slots)
        mask = torch.zeros(pads.shape, dtype=self.own.dtype).masked_fill_(pads, -torch.inf)
        self.mask = mask.to(self.own.device)[:, None, None]

    def filling(self, first: int, lengths: list[int]) -> Attend:
        """Attention of prompts on their way in, flat, the first of which is prompt `first`."""
        return kept_in(self.own, self.group_size, first, lengths)

    def drop(self, done: Tensor) -> tuple[Tensor, Tensor, int]:
        """Let finished rows (live,) go. Live rows from the end take their places, so that few are
        copied: (places, rows that take them, how many live on)."""
        holes, sources, live = closed(done)
        used = self.own[..., : self.slot, :]
        used[:, :, holes] = used[:, :, sources]
        self.mask[holes] = self.mask[sources]
        self.mask = self.mask[:live]
        return holes, sources, live

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """(live, heads * d) of one token a row: queries (live, heads, d), keys (live, kv_heads, d).

        Grouped queries: those that share a key head stand in the place of query positions.
        """
        n, kv_heads, width = key.shape
        keys, values = self.own[layer, :, :n, :, : self.slot + 1]
        keys[:, :, self.slot], values[:, :, self.slot] = key, value
        seen = self.mask[..., : self.slot + 1]
        found = F.scaled_dot_product_attention(
            query.view(n, kv_heads, -1, width), keys, values, attn_mask=seen
        )
        return found.reshape(n, -1)


class SharedCache:
    """Prompts' keys and values (layers, 2, B, kv_heads, P, head_dim), and completions' (layers, 2,
    rows, kv_heads, slots, head_dim). A step writes one slot for all live rows, the first ones.

    Zeros, not garbage: masked slots must be finite.
    """

    def __init__(
        self, shape: tuple[int, int, int], lengths: Tensor, rows: int, slots: int, **like: Any
    ) -> None:
        layers, heads, width = shape
        longest = int(lengths.max())
        self.prompts = torch.zeros(layers, 2, len(lengths), heads, longest, width, **like)
        self.own = torch.zeros(layers, 2, rows, heads, slots, width, **like)
        self.slot = 0  # that the next decoded token fills
        pads = torch.arange(longest) >= lengths[:, None]  # (B, P)
        self.unseen = torch.zeros(pads.shape).masked_fill_(pads, -torch.inf).to(self.own.device)
        self.share(torch.arange(rows) // (rows // len(lengths)))

    def filling(self, first: int, lengths: list[int]) -> Attend:
        """As above."""
        return kept_in(self.prompts, 1, first, lengths)

    def share(self, prompt: Tensor) -> None:
        """Say which prompt (live,) each live row continues."""
        self.prompt = prompt
        order = prompt.argsort(stable=True)
        counts = prompt.bincount(minlength=self.prompts.shape[2])  # (B,)
        among = torch.arange(len(prompt)) - (counts.cumsum(0) - counts)[prompt[order]]
        width = int(counts.max())
        rows = torch.zeros(len(counts), width, dtype=torch.int64)
        rows[prompt[order], among] = order
        place = torch.empty_like(prompt)
        place[order] = prompt[order] * width + among
        device = self.own.device
        self.rows = rows.to(device)  # (B, width): the rows of a prompt, some more where fewer live
        self.place = place.to(device)  # (live,): where in them a row stands

    def drop(self, done: Tensor) -> tuple[Tensor, Tensor, int]:
        """As above. A prompt whose rows are all gone goes too."""
        holes, sources, live = closed(done)
        used = self.own[..., : self.slot, :]
        used[:, :, holes] = used[:, :, sources]
        prompt = self.prompt.clone()
        prompt[holes] = prompt[sources]
        prompt = prompt[:live]
        idle = prompt.bincount(minlength=self.prompts.shape[2]) == 0  # (B,)
        to, of, count = closed(idle)
        self.prompts[:, :, to], self.unseen[to] = self.prompts[:, :, of], self.unseen[of]
        self.prompts, self.unseen = self.prompts[:, :, :count], self.unseen[:count]
        now = torch.arange(len(idle))
        now[of] = to
        if live:
            self.share(now[prompt])
        return holes, sources, live

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """As above. A prompt's keys are read once for all of its rows: their queries stand side by
        side. Scores are float32, as in the fused kernels."""
        n, heads, width = query.shape
        kv_heads, many = key.shape[1], heads // key.shape[1]  # queries that share a key head
        own_keys, own_values = self.own[layer, :, :n, :, : self.slot + 1]
        own_keys[:, :, self.slot], own_values[:, :, self.slot] = key, value
        keys, values = self.prompts[layer].float()  # (B, kv_heads, P, d)
        q = query.view(n, kv_heads, many, width).float() * width**-0.5
        far = self._by_prompt(q) @ keys.transpose(-1, -2) + self.unseen[:, None, None]
        near = q @ own_keys.float().transpose(-1, -2)  # (live, kv_heads, many, slots)
        scores = torch.cat([self._by_row(far, many), near], dim=-1)
        far, near = scores.softmax(dim=-1).split([far.shape[-1], near.shape[-1]], dim=-1)
        found = self._by_row(self._by_prompt(far) @ values, many) + near @ own_values.float()
        return found.flatten(1).to(query.dtype)

    def _by_prompt(self, x: Tensor) -> Tensor:
        """(live, kv_heads, many, d) -> (B, kv_heads, width * many, d)."""
        placed = x.index_select(0, self.rows.flatten()).unflatten(0, self.rows.shape)
        return placed.transpose(1, 2).flatten(2, 3)

    def _by_row(self, x: Tensor, many: int) -> Tensor:
        """The way back."""
        rows = x.unflatten(2, (-1, many)).transpose(1, 2).flatten(0, 1)
        return rows.index_select(0, self.place)


def kept_in(buffer: Tensor, size: int, first: int, lengths: list[int]) -> Attend:
    """Attention of prompts among themselves, which keeps keys and values in a buffer (layers, 2,
    rows, kv_heads, slots, head_dim): those of prompt `first` and the next, `size` rows a prompt."""
    attend = TreeAttention([[length] for length in lengths])

    def keep(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        for i, of in enumerate((key, value)):
            for prompt, part in enumerate(of.split(lengths), start=first):
                rows = buffer[layer, i, prompt * size : (prompt + 1) * size]
                rows[:, :, : len(part)] = part.transpose(0, 1)
        return attend(layer, query, key, value)

    return keep


def closed(gone: Tensor) -> tuple[Tensor, Tensor, int]:
    """(holes, what fills each of them, how many remain), so that the rest comes first."""
    live = int((~gone).sum())
    return gone[:live].nonzero()[:, 0], (~gone[live:]).nonzero()[:, 0] + live, live
