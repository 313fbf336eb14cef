"""One token for every live row: the language model's decode step, read off its own weights.

transformers' forward does the same through some 40 Python calls a layer, which for a small model
cost more than the arithmetic. The tests hold the two equal. The weights are the policy's own
tensors, LoRA as a second product beside the frozen one and never merged into it: merging rounds.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn


class KVCache:
    """Keys and values of all rows in one buffer (layers, 2, rows, heads, slots, head_dim).

    Prompts fill the slots from 0 on and completions those from `start` (the longest prompt) on, so
    that a step writes one slot for all rows. Zeros, not garbage: masked slots must be finite.
    While prompts are computed the language model calls `update`, as of transformers' own caches.
    """

    def __init__(self, shape: tuple[int, ...], group_size: int, start: int, **like) -> None:
        self.buffer = torch.zeros(shape, **like)
        self.group_size = group_size
        self.slot = start  # that the next decoded token fills
        self.live = shape[2]  # rows still decoding: the first ones of the buffer
        self.rows = slice(0, 0)  # of the prompts that are being computed

    def update(
        self, key: Tensor, value: Tensor, layer: int, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Keep a prompt's keys and values (n, heads, P, head_dim) for each of its G rows."""
        both = torch.stack([key, value]).repeat_interleave(self.group_size, dim=1)
        self.buffer[layer, :, self.rows, :, : key.shape[2]] = both
        return key, value

    def get_seq_length(self, layer: int = 0) -> int:
        return 0

    def append(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Write one token's (live, heads, head_dim); all that its row has (live, heads, S, dim)."""
        keys, values = self.buffer[layer, :, : self.live, :, : self.slot + 1]
        keys[:, :, self.slot], values[:, :, self.slot] = key, value
        return keys, values

    def move(self, sources: Tensor, holes: Tensor) -> None:
        """Copy rows `sources` into the places of finished rows `holes`."""
        used = self.buffer[..., : self.slot, :]
        used[:, :, holes] = used[:, :, sources]


class Linear(NamedTuple):
    """y = W x + b + scale B A x, with A and B in the dtype that W computes in."""

    weight: Tensor  # (out, in)
    bias: Tensor | None
    a: Tensor | None  # (r, in)
    b: Tensor | None  # (r, out)
    scale: float

    def __call__(self, x: Tensor) -> Tensor:
        y = F.linear(x, self.weight, self.bias)
        return y if self.a is None else y.addmm_(F.linear(x, self.a), self.b, alpha=self.scale)


def read_linear(module: nn.Module) -> Linear:
    """The weights of a linear with or without LoRA, as the active adapter makes it."""
    if not isinstance(module, LoraLayer):
        return Linear(module.weight, module.bias, None, None, 0.0)
    base = module.get_base_layer()
    if module.disable_adapters:
        return Linear(base.weight, base.bias, None, None, 0.0)
    (name,) = module.active_adapters
    a, b = module.lora_A[name].weight, module.lora_B[name].weight.T
    dtype = base.weight.dtype
    return Linear(base.weight, base.bias, a.to(dtype), b.to(dtype), module.scaling[name])


class Decoder:
    """The language model for one token a row. Made for one rollout, under the adapter active then.

    `positions` is how many positions any row may reach.
    """

    def __init__(self, model: nn.Module, positions: int) -> None:
        config, weight = model.config, model.embed_tokens.weight
        self.embedding = weight
        self.heads = (config.num_attention_heads, config.num_key_value_heads)
        self.width = config.hidden_size // config.num_attention_heads
        self.norm = model.norm
        attention = ("q_proj", "k_proj", "v_proj", "o_proj")
        self.layers = [
            (
                layer.input_layernorm,
                *(read_linear(getattr(layer.self_attn, name)) for name in attention),
                layer.post_attention_layernorm,
                *(read_linear(getattr(layer.mlp, name)) for name in ("gate_proj", "up_proj")),
                read_linear(layer.mlp.down_proj),
                layer.mlp.act_fn,
            )
            for layer in model.layers
        ]
        # Text has the same position on all three axes, so a table by position says it all.
        index = torch.arange(positions, device=weight.device)
        cos, sin = model.rotary_emb(weight[:1, None], index.expand(3, 1, -1))  # (1, positions, dim)
        half = self.width // 2
        self.cos = cos[0]
        self.sin = torch.cat([-sin[0, :, :half], sin[0, :, half:]], dim=-1)  # signed, see _rotate

    def step(self, tokens: Tensor, position: Tensor, cache: KVCache, mask: Tensor) -> Tensor:
        """Hidden states (n, hidden) after tokens (n,) at position (n,). Fills the cache's slot.

        `mask` (n, slots) is 0 where a row may look and -inf at pads; beyond the slot it is unread.
        """
        n, (heads, kv_heads) = len(tokens), self.heads
        x = F.embedding(tokens, self.embedding)
        cos, sin = self.cos[position][:, None], self.sin[position][:, None]  # (n, 1, dim)
        seen = mask[:, None, None, : cache.slot + 1]
        for i, (norm, q, k, v, o, post_norm, gate, up, down, act) in enumerate(self.layers):
            y = _rms_norm(x, norm)
            query = self._rotate(q(y).view(n, heads, -1), cos, sin)
            key = self._rotate(k(y).view(n, kv_heads, -1), cos, sin)
            keys, values = cache.append(i, key, v(y).view(n, kv_heads, -1))
            # Grouped queries: those that share a key head stand in the place of query positions.
            query = query.view(n, kv_heads, heads // kv_heads, -1)
            attended = F.scaled_dot_product_attention(query, keys, values, attn_mask=seen)
            x = x + o(attended.reshape(n, -1))
            y = _rms_norm(x, post_norm)
            x = x + down(act(gate(y)).mul_(up(y)))
        cache.slot += 1
        return _rms_norm(x, self.norm)

    def _rotate(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """RoPE on (n, heads, dim): the halves (a, b) become (a cos - b sin, b cos + a sin)."""
        return torch.addcmul(x * cos, x.roll(self.width // 2, dims=-1), sin)


def _rms_norm(x: Tensor, norm: nn.Module) -> Tensor:
    """In float32, as transformers has it; the weight multiplies after the rounding."""
    eps = norm.variance_epsilon
    if x.dtype == torch.float32:
        return F.rms_norm(x, x.shape[-1:], norm.weight, eps)
    return norm.weight * F.rms_norm(x.float(), x.shape[-1:], eps=eps).to(x.dtype)
