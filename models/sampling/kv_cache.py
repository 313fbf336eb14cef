"""Keys and values of prompts and completions while completions are drawn.

Decoding reads all of them once a token. So the keys of a prompt are there once for its G rows: G
times less to hold and to read, and not slower than a copy in each row even for short prompts
(tests/benchmarks/README.md). The GPU's sampler does copy them (models/sampling/decode_step.py).
"""

import bisect
import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from models.attention import TreeAttention
from models.layers import Attend, Layers
from models.tree import Prompt

PREFILL_TOKENS = 16_384  # prompt tokens that are computed together; bounds their memory


class Compaction(NamedTuple):
    """The moves that bring all live rows to the front, so that finished rows cost nothing more.

    Rows from the end fill the holes, so few are copied; the order changes:

        a x b x c d  ->  a d b c        x finished; holes 1, 3; sources 5, 4; 4 live
    """

    holes: Tensor  # (m,) int64
    sources: Tensor  # (m,) int64
    live: int

    def apply(self, x: Tensor) -> Tensor:
        """Move rows of x (rows, ...) in place; return the live ones (live, ...), a view."""
        x[self.holes] = x[self.sources]
        return x[: self.live]


def compaction(gone: Tensor) -> Compaction:
    """The moves for rows of which `gone` (rows,) bool have finished."""
    live = int((~gone).sum())
    return Compaction(gone[:live].nonzero()[:, 0], (~gone[live:]).nonzero()[:, 0] + live, live)


def storing_attention(buffer: Tensor, rows: int, first: int, lengths: list[int]) -> Attend:
    """Causal attention of prompts among themselves, which also writes their keys and values into a
    buffer (layers, 2, rows, kv_heads, slots, head_dim).

    The prompts, flat and of these lengths, are prompt `first` and the next; each has `rows` rows.
    """
    attend = TreeAttention(list(zip(lengths, strict=True)))  # prompts alone: trees of one branch

    def attend_and_store(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        for i, flat in enumerate((key, value)):
            for prompt, part in enumerate(flat.split(lengths), start=first):
                own = buffer[layer, i, prompt * rows : (prompt + 1) * rows]
                own[:, :, : len(part)] = part.transpose(0, 1)
        return attend(layer, query, key, value)

    return attend_and_store


class KVCache:
    """The KV cache of `sample_eagerly`.

    `attend` needs queries by prompt, to multiply them with the prompt's keys in one product, and
    the result by row again. Rows end at different times, so `rows` and `place` say who is where:

        prompt of each live row                0 0 1 1 1
        rows   (B, width), rows of a prompt    0 1 0      prompt 1 has three; the last place of
                                               2 3 4      prompt 0 is unused and repeats row 0
        place  (live,), each row in `rows`     0 1 3 4 5
    """

    def __init__(
        self, layers: Layers, embeds: Sequence[Tensor], group_size: int, slots: int
    ) -> None:
        """An empty cache for G completions, of up to `slots` tokens, of each prompt; `embeds` are
        the prompts, (P_i, hidden) each."""
        lengths = torch.tensor(list(map(len, embeds)))  # (B,)
        rows, longest = len(embeds) * group_size, int(lengths.max())
        # (layers, 2, B or rows, kv_heads, slots, head_dim). Zeros: masked slots must be finite.
        before, after = (len(layers.layers), 2), (layers.heads[1],)
        self.prompts = embeds[0].new_zeros(*before, len(embeds), *after, longest, layers.width)
        self.own = embeds[0].new_zeros(*before, rows, *after, slots, layers.width)
        self.slot = 0  # of a completion, that the next decoded token fills
        pads = torch.arange(longest) >= lengths[:, None]  # (B, P)
        self.unseen = torch.zeros(pads.shape).masked_fill_(pads, -torch.inf).to(self.own.device)
        self.share(torch.arange(rows) // group_size)

    def share(self, prompt: Tensor) -> None:
        """Compute `rows` and `place` for live rows that continue these prompts (live,)."""
        self.prompt = prompt
        order = prompt.argsort(stable=True)  # rows, those of prompt 0 first
        counts = prompt.bincount(minlength=self.prompts.shape[2])  # (B,) rows of each prompt
        starts = counts.cumsum(0) - counts  # of each prompt in `order`
        among = torch.arange(len(prompt)) - starts[prompt[order]]  # 0, 1, ... in each prompt
        width = int(counts.max())
        rows = torch.zeros(len(counts), width, dtype=torch.int64)
        rows[prompt[order], among] = order
        place = torch.empty_like(prompt)
        place[order] = prompt[order] * width + among
        self.rows, self.place = rows.to(self.own.device), place.to(self.own.device)

    def drop(self, done: Tensor) -> Compaction:
        """Overwrite finished rows (live,) by live ones from the end, and likewise the prompts that
        have no live row left."""
        moves = compaction(done)
        used = self.own[..., : self.slot, :]
        moves.apply(used.transpose(0, 2))
        prompt = moves.apply(self.prompt.clone())
        idle = prompt.bincount(minlength=self.prompts.shape[2]) == 0  # (B,)
        kept = compaction(idle)
        self.prompts = kept.apply(self.prompts.transpose(0, 2)).transpose(0, 2)
        self.unseen = kept.apply(self.unseen)
        number = torch.arange(len(idle))  # the new number of each prompt
        number[kept.sources] = kept.holes
        if moves.live:
            self.share(number[prompt])
        return moves

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """(live, heads * d) of one token a row: queries (live, heads, d), keys (live, kv_heads, d).

        One softmax over scores with the prompt's keys (`far`) and with the row's own (`near`).
        Scores are float32, as in the fused kernels.
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
        """(B, kv_heads, width * many, d) -> (live, kv_heads, many, d)."""
        rows = x.unflatten(2, (-1, many)).transpose(1, 2).flatten(0, 1)
        return rows.index_select(0, self.place)


def prefill(
    layers: Layers,
    attention: Callable[[int, list[int]], Attend],
    prompts: Sequence[Prompt],
    embeds: Sequence[Tensor],
) -> tuple[Tensor, Tensor]:
    """Compute each prompt once; return the last hidden state of each (B, hidden), and the position
    that follows each (B,), on the CPU.

    `attention(first, lengths)` makes the attention of some prompts, the first of which is prompt
    `first`; it also writes their keys and values into the cache.
    """
    last, following = [], []
    for part in plan_prefill(list(map(len, embeds))):
        lengths, positions = list(map(len, embeds[part])), []
        for prompt in prompts[part]:
            positions.append(prompt.position_ids)
            following.append(prompt.next_position)
        x = torch.cat(list(embeds[part]))  # (T, hidden)
        ends = (torch.tensor(lengths).cumsum(0) - 1).to(x.device)
        rope = layers.rope(torch.cat(positions, dim=1).to(x.device), x)
        last.append(layers(x, rope, attention(part.start, lengths), ends))
    return torch.cat(last), torch.tensor(following)


def plan_prefill(lengths: Sequence[int]) -> list[slice]:
    """Prompts that are computed together, in order, up to PREFILL_TOKENS or one alone."""
    parts, start = [], 0
    while start < len(lengths):
        ends = list(itertools.accumulate(lengths[start:]))
        count = bisect.bisect_right(ends, PREFILL_TOKENS) or 1
        parts.append(slice(start, start := start + count))
    return parts
