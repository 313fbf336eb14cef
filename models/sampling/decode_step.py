"""One decoding step in storages that never move: what a CUDA graph can record.

A graph is a list of kernels with the addresses they read and write, and replaying it launches all
of them at once, without Python: it can run again what changed in place, and nothing else. So of a
step everything has one place for good (`Storages`, `Weights`), everything is changed in place,
also what counts the steps, and nothing looks at a value on the host: no shape, no branch and no
error may depend on one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from models.distribution import invert_cdf, law
from models.layers import Attend, Layers, Linear
from models.sampling.kv_cache import closed, kept_in

WINDOW = 8  # steps between two looks of the host: what is drawn after an EOS is thrown away
SLOTS = 128  # a cache has a multiple of this, so that few lengths need one of their own


class Weights(NamedTuple):
    """What a step reads and never writes."""

    layers: Layers
    embedding: Tensor  # (V, hidden)
    head: Linear
    banned: Tensor  # (V,) bool

    def owning_lora(self) -> Weights:
        """The same with A and B in storages of its own. `Layers` casts them to the dtype that
        W computes in, new ones every time; a graph would go on with those it was made with."""
        self.layers.layers[:] = [
            tuple(
                of._replace(a=of.a.clone(), b=of.b.clone()) if _has_lora(of) else of for of in layer
            )
            for layer in self.layers.layers
        ]
        return self

    def refresh(self, now: Weights) -> None:
        """Take over A and B as they are now: trained further, loaded, or of another adapter."""
        for mine, new in zip(self.layers.layers, now.layers.layers, strict=True):
            for of, other in zip(mine, new, strict=True):
                if _has_lora(of):
                    of.a.copy_(other.a)
                    of.b.copy_(other.b)

    def baked(self) -> list[tuple]:
        """All that a graph has baked in and `refresh` does not bring up to date: where the frozen
        tensors lie, and whether and how LoRA is added to them. Graphs are valid while it is equal.
        """
        read = [of for layer in self.layers.layers for of in layer] + [self.layers.norm, self.head]
        frozen = [self.embedding, self.banned, *(of.weight for of in read)]
        linears = [of for of in read if isinstance(of, Linear)]
        frozen += [of.bias for of in linears if of.bias is not None]
        return [
            *((of.data_ptr(), of.shape, of.stride(), of.dtype) for of in frozen),
            *((of.bias is None, of.a is None, of.scale) for of in linears),
            *((of.a.shape, of.b.shape, of.a.dtype) for of in linears if _has_lora(of)),
        ]


def _has_lora(of: object) -> bool:
    return isinstance(of, Linear) and of.a is not None


@dataclass(frozen=True)
class Storages:
    """What steps write, for R rows. A row's keys stand in S slots: its prompt's first, then, from
    the same slot on for all rows, a token's a step; the mask opens one more slot each time."""

    cache: Tensor  # (layers, 2, R, kv_heads, S, head_dim) keys and values
    mask: Tensor  # (R, 1, 1, S) 0 or -inf
    hidden: Tensor  # (R, hidden) after the last norm: what the next token is drawn from
    position: Tensor  # (R,) int64 of the next token
    slot: Tensor  # (1,) int64 that the next token fills
    column: Tensor  # (1,) int64 of the window, for the next token
    uniforms: Tensor  # (R, WINDOW) float64
    tokens: Tensor  # (R, WINDOW) int64
    probable: Tensor  # (R, WINDOW) bool: the token had a probability
    logprobs: Tensor  # (R, WINDOW) float32
    cos: Tensor  # (S, head_dim) of RoPE, by position: never more positions than slots
    sin: Tensor

    @classmethod
    def make(cls, layers: Layers, rows: int, slots: int, like: Tensor) -> Storages:
        """In dtype and on the device of `like` (..., hidden)."""
        kv_heads, width = layers.heads[1], layers.width
        positions = torch.arange(slots, device=like.device).expand(3, -1)
        cos, sin = layers.rope(positions, like)
        int64 = {"dtype": torch.int64, "device": like.device}
        return cls(
            cache=like.new_zeros(len(layers.layers), 2, rows, kv_heads, slots, width),
            mask=like.new_zeros(rows, 1, 1, slots),
            hidden=like.new_zeros(rows, like.shape[-1]),
            position=torch.zeros(rows, **int64),
            slot=torch.zeros(1, **int64),
            column=torch.zeros(1, **int64),
            uniforms=like.new_zeros(rows, WINDOW, dtype=torch.float64),
            tokens=torch.zeros(rows, WINDOW, **int64),
            probable=like.new_zeros(rows, WINDOW, dtype=torch.bool),
            logprobs=like.new_zeros(rows, WINDOW, dtype=torch.float32),
            cos=cos,
            sin=sin,
        )

    def fit(self, rows: int, slots: int) -> bool:
        return rows <= self.cache.shape[2] and slots <= self.cache.shape[4]

    def first(self, rows: int) -> Storages:
        """The first rows of the same storages."""
        names = ("mask", "hidden", "position", "uniforms", "tokens", "probable", "logprobs")
        parts = {name: getattr(self, name)[:rows] for name in names}
        return replace(self, cache=self.cache[:, :, :rows], **parts)

    def clear(self, longest: int) -> None:
        """As new, for prompts of up to `longest` tokens. Masked slots must be finite, and rows
        that nobody uses compute too, whatever they hold: a NaN of an old rollout would stay."""
        for of in (self.cache, self.hidden, self.position):
            of.zero_()
        self.mask.fill_(-torch.inf)
        self.probable.fill_(True)
        self.slot.fill_(longest)

    def filling(self, group_size: int) -> Callable[[int, list[int]], Attend]:
        """Attention of prompts on their way in, whose keys are copied to each row of the group.

        A prompt read once for its group, as on a CPU, is less memory; a kernel for both parts of a
        row's keys is fewer launches, and the cache is small against the weights.
        """

        def filling(first: int, lengths: list[int]) -> Attend:
            for prompt, length in enumerate(lengths, start=first):
                self.mask[prompt * group_size : (prompt + 1) * group_size, ..., :length] = 0.0
            return kept_in(self.cache, group_size, first, lengths)

        return filling

    def drop(self, done: Tensor) -> tuple[Tensor, Tensor, int]:
        """Let finished rows (live,) go. Live rows from the end take their places, so that few are
        copied: (places, rows that take them, how many live on)."""
        holes, sources, live = closed(done)
        if len(holes):
            for of in (self.cache.transpose(0, 2), self.mask, self.hidden, self.position):
                of[holes] = of[sources]
        return holes, sources, live

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """(R, heads * d) of one token a row: queries (R, heads, d), keys (R, kv_heads, d).

        Queries that share a key head stand in the place of query positions: with as many heads as
        the keys have, the fused kernels that take a mask take this.
        """
        rows, kv_heads, width = key.shape
        keys, values = self.cache[layer]  # (R, kv_heads, S, d)
        keys.index_copy_(2, self.slot, key[:, :, None])
        values.index_copy_(2, self.slot, value[:, :, None])
        shared = query.view(rows, kv_heads, -1, width)
        found = F.scaled_dot_product_attention(shared, keys, values, attn_mask=self.mask)
        return found.reshape(rows, -1)


def step(at: Storages, weights: Weights, temperature: float, keep_logprobs: bool) -> None:
    """Draw a token a row and run it: one turn of the loop in models/sampling/sampler.py."""
    logits = law(weights.head(at.hidden), temperature or 1.0, weights.banned)  # (R, V)
    if temperature == 0:
        token = logits.argmax(dim=-1)
    else:
        u = at.uniforms.index_select(1, at.column)[:, 0]
        token, probable = invert_cdf(logits, u)
        at.probable.index_copy_(1, at.column, probable[:, None])
    at.tokens.index_copy_(1, at.column, token[:, None])
    if keep_logprobs:
        picked = logits.log_softmax(dim=-1).gather(1, token[:, None])
        at.logprobs.index_copy_(1, at.column, picked)
    at.mask.index_fill_(-1, at.slot, 0.0)
    rope = at.cos.index_select(0, at.position), at.sin.index_select(0, at.position)
    at.hidden.copy_(weights.layers(F.embedding(token, weights.embedding), rope, at.attend))
    for count in (at.column, at.slot, at.position):
        count.add_(1)
