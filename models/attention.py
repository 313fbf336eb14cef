"""Where the tokens of a pass look: prompts at themselves, completions also at their prompt.

A group is a tree, [prompt | o_1 | ... | o_G]. Of a long one's mask only the blocks that are not
empty are computed:

              p p a b c d        prompt      p p    causal
          p   1
          p   1 1                o_1     p p a b    causal from its lower right corner
          a   1 1 1
          b   1 1 1 1            o_2     p p c d    the same
          c   1 1     1
          d   1 1     1 1
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

DENSE = 384  # tokens of a group up to which one kernel with its whole mask beats one a block


class TreeAttention:
    """Of the groups of a pass: flat tokens, [prompt | o_1 | ... | o_G] one group after another.

    `lengths` says of each group how many input tokens its prompt and each of its completions has.
    Of a prompt, all queries are there or the last alone. Masks are made once for all layers.
    """

    def __init__(self, lengths: Sequence[Sequence[int]]) -> None:
        self.lengths = lengths
        self._masks: dict[tuple, Tensor] = {}

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """(t, heads * d), see models/layers.py."""
        last_alone = len(query) < len(key)
        wholes = [sum(group) for group in self.lengths]
        sizes = [sum(group) - (group[0] - 1) * last_alone for group in self.lengths]
        parts = zip(query.split(sizes), key.split(wholes), value.split(wholes), strict=True)
        found = []
        for group, part in zip(self.lengths, parts, strict=True):
            dense = sum(group) <= DENSE and len(group) > 1
            found += [self._dense(group, *part)] if dense else self._blocks(group, *part)
        return torch.cat(found)

    def _dense(self, group: Sequence[int], query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """All of a group at once: whoever comes later, of the prompt or of one's own."""
        name = (*group, len(query))
        if name not in self._masks:
            part = torch.repeat_interleave(torch.arange(len(group)), torch.tensor(group))
            sees = ((part[:, None] == part) | (part == 0)).tril()[-len(query) :]
            self._masks[name] = _additive(sees, query, key)
        return grouped(query, key, value, self._masks[name])

    def _blocks(
        self, group: Sequence[int], query: Tensor, key: Tensor, value: Tensor
    ) -> Iterator[Tensor]:
        """The prompt, and each completion with the prompt before it."""
        prompt, *inputs = group
        first = len(query) - sum(inputs)
        prompt_key, prompt_value = key[:prompt], value[:prompt]
        yield self._causal(query[:first], prompt_key, prompt_value)
        parts = zip(
            query[first:].split(inputs),
            key[prompt:].split(inputs),
            value[prompt:].split(inputs),
            strict=True,
        )
        for q, k, v in parts:
            if len(q):
                both = torch.cat([prompt_key, k]), torch.cat([prompt_value, v])
                yield self._causal(q, *both)

    def _causal(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Lower-right causal attention: t queries stand at the last t of S keys."""
        t, length = len(query), len(key)
        if t == length:
            one = (of.transpose(0, 1)[None] for of in (query, key, value))
            found = F.scaled_dot_product_attention(*one, is_causal=True, enable_gqa=True)
            return found[0].transpose(0, 1).flatten(1)
        if t > 1 and (t, length) not in self._masks:
            sees = torch.ones(t, length, dtype=torch.bool).tril(length - t)
            self._masks[t, length] = _additive(sees, query, key)
        return grouped(query, key, value, self._masks.get((t, length)))


def grouped(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """(t, heads * d) of queries (t, heads, d), keys and values (S, kv_heads, d).

    Queries that share a key head stand in the place of query positions, of the mask as well.
    """
    t, _, width = query.shape
    shared = query.transpose(0, 1).reshape(1, key.shape[1], -1, width)
    keys, values = (of.transpose(0, 1)[None] for of in (key, value))
    found = F.scaled_dot_product_attention(shared, keys, values, attn_mask=mask)
    # Kernels lay their result out differently in memory: cut and reorder axes, never merge them.
    apart = found[0].unflatten(1, (-1, t))  # (kv_heads, heads / kv_heads, t, d)
    return apart.permute(2, 0, 1, 3).flatten(1)


def _additive(sees: Tensor, query: Tensor, key: Tensor) -> Tensor:
    """(shared * t, S) of sees (t, S) bool, for the queries that share a key head: 0 or -inf."""
    mask = torch.zeros(sees.shape, dtype=query.dtype).masked_fill_(~sees, -torch.inf)
    return mask.repeat(query.shape[1] // key.shape[1], 1).to(query.device)
