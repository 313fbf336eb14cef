"""One decoding step in buffers that never move: what a CUDA graph can record.

A CUDA graph replays kernels on fixed addresses. So every tensor of a step, counters included, is
allocated once (`Weights`, `Buffers`) and updated in place, and no Python code may read a value: no
shape, branch or error of a step may depend on one.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from models.distribution import draw, greedy, law
from models.layers import Attend, Layers
from models.linear import Head, Linear
from models.sampling.kv_cache import Compaction, compaction, storing_attention

WINDOW = 8  # steps between two looks of the host; tokens drawn after an EOS are thrown away
SLOTS = 128  # caches have a multiple of this, so that rollouts of similar length share one


class Weights(NamedTuple):
    """What a step reads and never writes."""

    layers: Layers
    embedding: Tensor  # (V, hidden)
    head: Head
    banned: Tensor  # (V,) bool

    def copy_lora(self, now: "Weights") -> None:
        """Copy the values that A and B have now: trained further, loaded, or another adapter's.

        The tensors are copied to are these weights' own: `Layers` joins A and scales B anew.
        """
        for mine, new in zip(self.layers.layers, now.layers.layers, strict=True):
            for part, other in zip(mine, new, strict=True):
                if _has_lora(part):
                    part.a.copy_(other.a)
                    part.b.copy_(other.b)

    def graph_key(self) -> list[tuple]:
        """What a graph has recorded and `copy_lora` does not update: graphs are valid while it is
        equal. That is where the frozen tensors lie, and whether and how LoRA is added to them."""
        parts = [*(part for layer in self.layers.layers for part in layer)]
        parts += [self.layers.norm, self.head]
        linears = [part for part in parts if isinstance(part, Linear)]
        frozen = [self.embedding, self.banned, *(part.weight for part in parts)]
        frozen += [linear.bias for linear in linears if linear.bias is not None]
        return [
            *((w.data_ptr(), w.shape, w.stride(), w.dtype) for w in frozen),
            *((linear.bias is None, linear.a is None) for linear in linears),
            *((lora.a.shape, lora.b.shape, lora.a.dtype) for lora in linears if _has_lora(lora)),
        ]


def _has_lora(part: object) -> bool:
    return isinstance(part, Linear) and part.a is not None


@dataclass(frozen=True)
class Buffers:
    """What steps write, for R rows. A row's keys fill S slots: first those of its prompt, then one
    a step, from the same slot on for all rows. The mask opens one more slot at each step."""

    cache: Tensor  # (layers, 2, R, kv_heads, S, head_dim) keys and values
    mask: Tensor  # (R, 1, 1, S) 0 or -inf
    hidden: Tensor  # (R, hidden) after the last norm: what the next token is drawn from
    position: Tensor  # (R,) int64 of the next token
    slot: Tensor  # (1,) int64 that the next token fills
    column: Tensor  # (1,) int64 of the window, for the next token
    uniforms: Tensor  # (R, WINDOW) float64
    drawn: Tensor  # (2, R, WINDOW) float64, `Rollout.add` reads it: tokens, and their log-probs
    cos: Tensor  # (S, head_dim) of RoPE, by position: never more positions than slots
    sin: Tensor

    @classmethod
    def make(cls, layers: Layers, rows: int, slots: int, like: Tensor) -> "Buffers":
        """In dtype and on the device of `like` (..., hidden)."""
        kv_heads, width = layers.heads[1], layers.width
        positions = torch.arange(slots, device=like.device).expand(3, -1)
        cos, sin = layers.rope(positions, like)
        return cls(
            cache=like.new_zeros(len(layers.layers), 2, rows, kv_heads, slots, width),
            mask=like.new_zeros(rows, 1, 1, slots),
            hidden=like.new_zeros(rows, like.shape[-1]),
            position=like.new_zeros(rows, dtype=torch.int64),
            slot=like.new_zeros(1, dtype=torch.int64),
            column=like.new_zeros(1, dtype=torch.int64),
            uniforms=like.new_zeros(rows, WINDOW, dtype=torch.float64),
            drawn=like.new_zeros(2, rows, WINDOW, dtype=torch.float64),
            cos=cos,
            sin=sin,
        )

    def fit(self, rows: int, slots: int) -> bool:
        """Whether there is room for so many rows and slots."""
        return rows <= self.cache.shape[2] and slots <= self.cache.shape[4]

    def first(self, rows: int) -> "Buffers":
        """Views of the first rows of the same buffers."""
        names = ("mask", "hidden", "position", "uniforms")
        parts = {name: getattr(self, name)[:rows] for name in names}
        return replace(self, cache=self.cache[:, :, :rows], drawn=self.drawn[:, :rows], **parts)

    def clear(self, longest: int) -> None:
        """Make them as new, for prompts of up to `longest` tokens.

        Masked slots must be finite, and unused rows are computed too: a NaN of an old rollout
        would stay.
        """
        for buffer in (self.cache, self.hidden, self.position):
            buffer.zero_()
        self.mask.fill_(-torch.inf)
        self.slot.fill_(longest)

    def prefill_attention(self, group_size: int, first: int, lengths: list[int]) -> Attend:
        """Attention of prompts, whose keys are also copied to every row of their groups.

        One copy a group, as on a CPU, takes less memory; one a row takes fewer kernels, and the
        cache is small against the weights.
        """
        for prompt, length in enumerate(lengths, start=first):
            self.mask[prompt * group_size : (prompt + 1) * group_size, ..., :length] = 0.0
        return storing_attention(self.cache, group_size, first, lengths)

    def drop(self, done: Tensor) -> Compaction:
        """Overwrite finished rows (live,) by live rows from the end: live rows come first."""
        moves = compaction(done)
        if len(moves.holes):
            for buffer in (self.cache.transpose(0, 2), self.mask, self.hidden, self.position):
                moves.apply(buffer)
        return moves

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """(R, heads * d) of one token a row: queries (R, heads, d), keys (R, kv_heads, d).

        Queries that share a key head take the place of query positions: then there are as many
        heads as the keys have, which the fused kernels that take a mask require.
        """
        rows, kv_heads, width = key.shape
        keys, values = self.cache[layer]  # (R, kv_heads, S, d)
        keys.index_copy_(2, self.slot, key[:, :, None])
        values.index_copy_(2, self.slot, value[:, :, None])
        shared = query.view(rows, kv_heads, -1, width)
        found = F.scaled_dot_product_attention(shared, keys, values, attn_mask=self.mask)
        return found.reshape(rows, -1)


def step(at: Buffers, weights: Weights, temperature: float) -> None:
    """Draw one token a row and run it through the layers: one turn of the loop in sampler.py."""
    logits = law(weights.head(at.hidden), temperature or 1.0, weights.banned)  # (R, V)
    if temperature == 0:
        token, logprobs = greedy(logits)
    else:
        token, logprobs = draw(logits, at.uniforms.index_select(1, at.column)[:, 0])
    at.drawn.index_copy_(2, at.column, torch.stack([token.double(), logprobs])[..., None])
    at.mask.index_fill_(-1, at.slot, 0.0)  # from now on every row sees the slot of this token
    rope = at.cos.index_select(0, at.position), at.sin.index_select(0, at.position)
    # The host refuses a -1 later: an error here would depend on a value.
    embeds = F.embedding(token.clamp(min=0), weights.embedding)
    at.hidden.copy_(weights.layers(embeds, rope, at.attend))
    # The next replay must continue where this one ended, so the counters are tensors too.
    for count in (at.column, at.slot, at.position):
        count.add_(1)
