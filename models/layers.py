"""The language model of Qwen2-VL, read off its own weights: ONE forward for every pass.

Prompts on their way into the cache, one token a row while decoding, and the trees of a training
pass differ in nothing but where a token looks. So attention is given by the caller, tokens are
flat (T, hidden) and no pad is ever computed; the rest is here, once:

    x += o(attend(rotate(q(y)), rotate(k(y)), v(y)))      y = norm(x)
    x += down(silu(gate(y)) * up(y))                      y = norm(x)

The derivatives are written out, because autograd keeps four times what they need. transformers'
forward says the same through some 40 Python calls a layer, and the tests hold the two equal.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from models.matmul import linear, linear_backward

Rope = tuple[Tensor, Tensor]  # cosines and signed sines (T, head_dim)
# (layer, queries (t, heads, d), keys and values (T, kv_heads, d)) -> (t, heads * d); t is T, but
# for the last layer of a pass that wants some positions only.
Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]


class Layers:
    """The decoder layers and the last norm, under the adapter that is active now: made for one
    pass or one rollout. Weights are the policy's own tensors; LoRA is never merged into them,
    because merging rounds."""

    def __init__(self, model: nn.Module, checkpointing: bool = False) -> None:
        """`model` is transformers' Qwen2VLTextModel, with LoRA or without."""
        config = model.config
        self.heads = (config.num_attention_heads, config.num_key_value_heads)
        self.width = config.hidden_size // config.num_attention_heads
        self.checkpointing = checkpointing
        self.rotary, self.norm = model.rotary_emb, model.norm
        attention, mlp = ("q_proj", "k_proj", "v_proj", "o_proj"), ("gate_proj", "up_proj")
        self.layers = [
            (
                layer.input_layernorm,
                *(read_linear(getattr(layer.self_attn, name)) for name in attention),
                layer.post_attention_layernorm,
                *(read_linear(getattr(layer.mlp, name)) for name in (*mlp, "down_proj")),
            )
            for layer in model.layers
        ]

    def rope(self, positions: Tensor, like: Tensor) -> Rope:
        """Of positions (3, T): M-RoPE, the same in every layer; in the dtype of `like`."""
        cos, sin = (of[0] for of in self.rotary(like, positions[:, None]))  # (T, head_dim)
        half = self.width // 2
        return cos, torch.cat([-sin[:, :half], sin[:, half:]], dim=-1)

    def __call__(self, x: Tensor, rope: Rope, attend: Attend, wanted: Any = None) -> Tensor:
        """Hidden states (T, hidden), after the last norm, of embeddings x (T, hidden).

        `wanted` indexes the positions whose hidden states are wanted: the last layer computes no
        more than keys and values of the others.
        """
        last = len(self.layers) - 1
        for i, layer in enumerate(self.layers):
            run = partial(self._layer, layer, partial(attend, i), wanted if i == last else None)
            if self.checkpointing and torch.is_grad_enabled():
                # Nothing is random, so no random state need be kept and set back.
                run = partial(checkpoint, run, use_reentrant=False, preserve_rng_state=False)
            x = run(x, rope)
        return rms_norm(x, self.norm)

    def _layer(self, layer: Any, attend: Any, wanted: Any, x: Tensor, rope: Rope) -> Tensor:
        norm, q, k, v, o, post_norm, gate, up, down = layer
        heads, kv_heads = self.heads
        y = rms_norm(x, norm)
        key = self._rotate(k(y).reshape(-1, kv_heads, self.width), rope)
        value = v(y).reshape(-1, kv_heads, self.width)
        if wanted is not None:
            x, y, rope = x[wanted], y[wanted], (rope[0][wanted], rope[1][wanted])
        query = self._rotate(q(y).reshape(-1, heads, self.width), rope)
        x = x + o(attend(query, key, value))
        y = rms_norm(x, post_norm)
        return x + down(swiglu(gate(y), up(y)))

    def _rotate(self, x: Tensor, rope: Rope) -> Tensor:
        """RoPE on (T, heads, dim): the halves (a, b) become (a cos - b sin, b cos + a sin)."""
        cos, sin = rope
        return torch.addcmul(x * cos[:, None], x.roll(self.width // 2, dims=-1), sin[:, None])


class Linear(NamedTuple):
    """y = W x + bias + scale B A x, with A and B in the dtype that W computes in."""

    weight: Tensor  # (out, in), frozen
    bias: Tensor | None
    a: Tensor | None  # (r, in)
    b: Tensor | None  # (out, r)
    scale: float

    def __call__(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            if self.a is None:
                return _Frozen.apply(x, self.weight, self.bias)
            return _WithLoRA.apply(x, *self)
        y = linear(x, self.weight, self.bias)
        return y if self.a is None else y.addmm_(F.linear(x, self.a), self.b.T, alpha=self.scale)


def read_linear(module: nn.Module) -> Linear:
    """The weights of a linear with or without LoRA, as the active adapter makes it."""
    if not isinstance(module, LoraLayer):
        return Linear(module.weight, module.bias, None, None, 0.0)
    base = module.get_base_layer()
    if module.disable_adapters:
        return Linear(base.weight, base.bias, None, None, 0.0)
    (name,) = module.active_adapters
    a, b = module.lora_A[name].weight, module.lora_B[name].weight
    dtype = base.weight.dtype
    return Linear(base.weight, base.bias, a.to(dtype), b.to(dtype), module.scaling[name])


class _WithLoRA(torch.autograd.Function):
    """Keeps x and A x (T, r); the two products of W and B A are added in place."""

    @staticmethod
    def forward(ctx, x, weight, bias, a, b, scale):
        inner = F.linear(x, a)  # (T, r)
        ctx.save_for_backward(x, weight, a, b, inner)
        ctx.scale = scale
        return linear(x, weight, bias).addmm_(inner, b.T, alpha=scale)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        x, weight, a, b, inner = ctx.saved_tensors
        d_inner = (dy @ b).mul_(ctx.scale)  # (T, r)
        dx = linear_backward(dy, weight).addmm_(d_inner, a) if ctx.needs_input_grad[0] else None
        return dx, None, None, d_inner.T @ x, (dy.T @ inner).mul_(ctx.scale), None


class _Frozen(torch.autograd.Function):
    """W x + bias, where only x has a gradient: nothing but the weight is kept."""

    @staticmethod
    def forward(ctx, x, weight, bias):
        ctx.save_for_backward(weight)
        return linear(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        return linear_backward(dy, ctx.saved_tensors[0]), None, None


class _RMSNorm(torch.autograd.Function):
    """Keeps x itself, and one number a token."""

    @staticmethod
    def forward(ctx, x, weight, eps):
        wide = x.float()
        scale = torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + eps)  # (T, 1)
        ctx.save_for_backward(x, weight, scale)
        return weight * (wide * scale).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        x, weight, scale = ctx.saved_tensors
        unit = x.float() * scale
        slope = (dy * weight).float()
        along = (slope * unit).mean(dim=-1, keepdim=True)
        return slope.sub_(unit.mul_(along)).mul_(scale).to(x.dtype), None, None


class _SwiGLU(torch.autograd.Function):
    """Keeps gate and up; the SiLU between them is computed again."""

    @staticmethod
    def forward(ctx, gate, up):
        ctx.save_for_backward(gate, up)
        return F.silu(gate).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        gate, up = ctx.saved_tensors
        return torch.ops.aten.silu_backward(dy * up, gate), F.silu(gate).mul_(dy)


def rms_norm(x: Tensor, norm: nn.Module) -> Tensor:
    """In float32, as transformers has it; the weight multiplies after the rounding."""
    if torch.is_grad_enabled():
        return _RMSNorm.apply(x, norm.weight, norm.variance_epsilon)
    unit = F.rms_norm(x.float(), x.shape[-1:], eps=norm.variance_epsilon)
    return unit.to(x.dtype).mul_(norm.weight)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up, which is what Qwen2-VL's `hidden_act` says."""
    return _SwiGLU.apply(gate, up) if torch.is_grad_enabled() else F.silu(gate).mul_(up)
