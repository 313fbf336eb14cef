"""Keys and values while completions are drawn: a prompt's once for its group, a token a row."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from models.attention import TreeAttention
from models.layers import Attend


class KVCache:
    """Prompts' keys and values (layers, 2, B, kv_heads, P, head_dim), and completions' (layers, 2,
    rows, kv_heads, slots, head_dim). A step writes one slot for all live rows, the first ones.

    Zeros, not garbage: masked slots must be finite.
    """

    def __init__(
        self, shape: tuple[int, int, int], lengths: Tensor, rows: int, slots: int, **like: Any
    ) -> None:
        """`shape` is (layers, kv_heads, head_dim); `lengths` (B,) are the prompts'."""
        layers, heads, width = shape
        longest = int(lengths.max())
        self.prompts = torch.zeros(layers, 2, len(lengths), heads, longest, width, **like)
        self.own = torch.zeros(layers, 2, rows, heads, slots, width, **like)
        self.slot = 0  # that the next decoded token fills
        pads = torch.arange(longest) >= lengths[:, None]  # (B, P)
        self.unseen = torch.zeros(pads.shape).masked_fill_(pads, -torch.inf).to(self.own.device)
        self.share(torch.arange(rows) // (rows // len(lengths)))

    def filling(self, first: int, lengths: list[int]) -> Attend:
        """Attention of prompts on their way in, flat, the first of which is prompt `first`."""
        attend = TreeAttention([[length] for length in lengths])

        def fill(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            for i, of in enumerate((key, value)):
                for prompt, part in enumerate(of.split(lengths), start=first):
                    self.prompts[layer, i, prompt, :, : len(part)] = part.transpose(0, 1)
            return attend(layer, query, key, value)

        return fill

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
        """Let finished rows (live,) go. Live rows from the end take their places, so that few are
        copied: (places, rows that take them, how many live on)."""
        holes, sources, live = _closed(done)
        used = self.own[..., : self.slot, :]
        used[:, :, holes] = used[:, :, sources]
        prompt = self.prompt.clone()
        prompt[holes] = prompt[sources]
        prompt = prompt[:live]
        idle = prompt.bincount(minlength=self.prompts.shape[2]) == 0  # (B,)
        to, of, count = _closed(idle)
        self.prompts[:, :, to], self.unseen[to] = self.prompts[:, :, of], self.unseen[of]
        self.prompts, self.unseen = self.prompts[:, :, :count], self.unseen[:count]
        now = torch.arange(len(idle))
        now[of] = to
        if live:
            self.share(now[prompt])
        return holes, sources, live

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """(live, heads * d) of one token a row: queries (live, heads, d), keys (live, kv_heads, d).

        A prompt's keys are read once for all of its rows: their queries stand side by side. Scores
        are float32, as in the fused kernels.
        """
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


def _closed(gone: Tensor) -> tuple[Tensor, Tensor, int]:
    """(holes, what fills each of them, how many remain), so that the rest comes first."""
    live = int((~gone).sum())
    return gone[:live].nonzero()[:, 0], (~gone[live:]).nonzero()[:, 0] + live, live
