"""Tree attention: a completion sees its prompt and itself, never another completion.

A group is a tree, [prompt | o_1 | ... | o_G]. For a long group only the blocks of the mask that are
not empty are computed:

              p p a b c d        prompt      p p    causal
          p   1
          p   1 1                o_1     p p a b    causal from its lower right corner
          a   1 1 1
          b   1 1 1 1            o_2     p p c d    the same
          c   1 1     1
          d   1 1     1 1
"""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.bias import CausalBias, causal_lower_right

# Up to so many tokens a group is faster as one kernel with its whole mask, empty blocks included,
# than as one kernel for each block.
DENSE = 384


class TreeAttention:
    """The attention of one pass: flat tokens, [prompt | o_1 | ... | o_G] one group after another.

    `lengths` has a list for each group: the input tokens of its prompt and of each completion. The
    queries of a prompt are either all there or the last one only (the last layer of a pass).
    """

    def __init__(self, lengths: Sequence[Sequence[int]]) -> None:
        self.lengths = lengths
        self._masks: dict[tuple, Tensor] = {}

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """(t, heads * d); see `Attend` in models/layers.py."""
        found, first, start = [], 0, 0  # the group's first query, and its first key
        for group in self.lengths:
            whole = sum(group)
            queries = whole - (group[0] - 1) * (len(query) < len(key))
            part = query[first : first + queries], key[start : start + whole]
            # A prompt alone needs no mask, nor does a GPU: that is the faster kernel.
            dense = whole <= DENSE and len(group) > 1 and query.is_cpu
            attend = self._dense if dense else self._blocks
            found += attend(group, *part, value[start : start + whole])
            first, start = first + queries, start + whole
        return torch.cat(found)

    def _dense(
        self, group: Sequence[int], query: Tensor, key: Tensor, value: Tensor
    ) -> Iterator[Tensor]:
        """A whole group in one kernel. A token sees earlier tokens of the prompt and of its own
        completion."""
        name = (*group, len(query))
        if name not in self._masks:  # made in the first layer and used in all others
            # part (S,): 0 for the tokens of the prompt, i for those of o_i
            part = torch.repeat_interleave(torch.arange(len(group)), torch.tensor(group))
            sees = ((part[:, None] == part) | (part == 0)).tril()[-len(query) :]
            self._masks[name] = _additive(sees, query, key)
        yield grouped(query, key, value, self._masks[name])

    def _blocks(
        self, group: Sequence[int], query: Tensor, key: Tensor, value: Tensor
    ) -> Iterator[Tensor]:
        """The prompt alone, then each completion with the prompt before it."""
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
            if len(q):  # a completion of one token is a target only: no input, no query
                # Not detached: the gradient of the prompt is the sum over its completions.
                both = torch.cat([prompt_key, k]), torch.cat([prompt_value, v])
                yield self._causal(q, *both)

    def _causal(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Lower-right causal attention: the t queries are the last t of S tokens."""
        t, length = len(query), len(key)
        # On a GPU in half precision flash computes it without a mask, from CausalBias.
        flash = query.is_cuda and query.dtype != torch.float32
        if t == length or flash:
            q, k, v = query.transpose(0, 1), key.transpose(0, 1), value.transpose(0, 1)
            kind = {"is_causal": True} if t == length else {"attn_mask": lower_right(t, length)}
            found = F.scaled_dot_product_attention(
                q[None], k[None], v[None], enable_gqa=True, **kind
            )
            return found[0].transpose(0, 1).flatten(1)
        if t > 1 and (t, length) not in self._masks:
            # Query i is token S - t + i and sees all keys up to that one.
            sees = torch.ones(t, length, dtype=torch.bool).tril(length - t)
            self._masks[t, length] = _additive(sees, query, key)
        return grouped(query, key, value, self._masks.get((t, length)))


def lower_right(t: int, length: int) -> CausalBias:
    """What tells flash that the t queries are the last t of so many tokens; it holds no numbers."""
    with torch._C._DisableTorchDispatch():  # a dispatch mode, as of a profiler, lets none be made
        return causal_lower_right(t, length)


def grouped(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """Grouped-query attention: (t, heads * d) of queries (t, heads, d), keys and values
    (S, kv_heads, d). `mask` is `_additive`'s.

    The queries that share a key head become further query positions of that head, so keys are not
    copied once a query head.
    """
    t, _, width = query.shape
    shared = query.transpose(0, 1).reshape(1, key.shape[1], -1, width)  # (1, kv_heads, m * t, d)
    keys, values = key.transpose(0, 1)[None], value.transpose(0, 1)[None]  # (1, kv_heads, S, d)
    found = F.scaled_dot_product_attention(shared, keys, values, attn_mask=mask)
    # Kernels lay their result out differently in memory: split and reorder axes, never merge them.
    apart = found[0].unflatten(1, (-1, t))  # (kv_heads, heads / kv_heads, t, d)
    return apart.permute(2, 0, 1, 3).flatten(1)


def _additive(sees: Tensor, query: Tensor, key: Tensor) -> Tensor:
    """The mask (m * t, S) that `grouped` adds to scores, 0 or -inf, from sees (t, S) bool.

    m queries share a key head. Each of them has t positions, so the rows repeat m times.
    """
    mask = torch.zeros(sees.shape, dtype=query.dtype).masked_fill_(~sees, -torch.inf)
    return mask.repeat(query.shape[1] // key.shape[1], 1).to(query.device)
