"""Where the tokens of a pass look: prompts at themselves, completions also at their prompt.

A group is a tree, [prompt | o_1 | ... | o_G], and of the mask of its row only the blocks that are
not empty are computed:

              p p a b c d        prompt      p p    causal
          p   1
          p   1 1                o_1     p p a b    causal from its lower right corner
          a   1 1 1
          b   1 1 1 1            o_2     p p c d    the same
          c   1 1     1
          d   1 1     1 1
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


class Causal:
    """Lower-right causal attention: t queries stand at the last t of S keys. A mask is made once
    for all layers that are called with it."""

    def __init__(self) -> None:
        self._masks: dict[tuple[int, int], Tensor] = {}

    def __call__(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """(t, heads * d) of queries (t, heads, d), keys and values (S, kv_heads, d)."""
        t, heads, _ = query.shape
        if t == len(key):
            one = (of.transpose(0, 1)[None] for of in (query, key, value))
            found = F.scaled_dot_product_attention(*one, is_causal=True, enable_gqa=True)
            return found[0].transpose(0, 1).flatten(1)
        # Grouped queries: those that share a key head stand in the place of query positions.
        kv_heads = key.shape[1]
        shared = query.transpose(0, 1).reshape(1, kv_heads, -1, query.shape[-1])
        seen = self._mask(query, len(key), heads // kv_heads)
        keys, values = (of.transpose(0, 1)[None] for of in (key, value))
        found = F.scaled_dot_product_attention(shared, keys, values, attn_mask=seen)
        return found.view(heads, t, -1).transpose(0, 1).flatten(1)

    def _mask(self, query: Tensor, length: int, shared: int) -> Tensor | None:
        """(shared * t, S), 0 or -inf."""
        t = len(query)
        if t == 1:
            return None
        if (t, length) not in self._masks:
            hidden = torch.ones(t, length, dtype=torch.bool, device=query.device)
            hidden = hidden.triu(length - t + 1)
            mask = query.new_zeros(t, length).masked_fill_(hidden, -torch.inf)
            self._masks[t, length] = mask.repeat(shared, 1)
        return self._masks[t, length]


class TreeAttention:
    """Of the groups of a pass: flat tokens, [prompt | o_1 | ... | o_G] one group after another.

    `lengths` says of each group how many input tokens its prompt and each of its completions has.
    Of a prompt, all queries are there or the last alone.
    """

    def __init__(self, lengths: Sequence[Sequence[int]]) -> None:
        self.lengths = lengths
        self.causal = Causal()

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """(t, heads * d), see models/layers.py."""
        keys = [length for group in self.lengths for length in group]
        last_alone = len(query) < len(key)
        queries = [
            1 if last_alone and part == 0 else length
            for group in self.lengths
            for part, length in enumerate(group)
        ]
        parts = zip(query.split(queries), key.split(keys), value.split(keys), strict=True)
        found = []
        for group in self.lengths:
            q, prompt_key, prompt_value = next(parts)
            found.append(self.causal(q, prompt_key, prompt_value))
            for q, k, v in itertools.islice(parts, len(group) - 1):
                if len(q):
                    both = torch.cat([prompt_key, k]), torch.cat([prompt_value, v])
                    found.append(self.causal(q, *both))
        return torch.cat(found)
