"""The language model of Qwen2-VL, read off its own weights: ONE forward for every pass.

Prefill, decoding and training passes differ in one thing: which tokens a token attends to. So the
caller gives the attention, tokens are flat (T, hidden), and no pad is ever computed. The rest:

    x += o(attend(rotate(q(y)), rotate(k(y)), v(y)))      y = norm(x)
    x += down(silu(gate(y)) * up(y))                      y = norm(x)

The derivatives are written out, because autograd keeps four times what they need. transformers'
forward computes the same in some 40 Python calls a layer; a test compares the two.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from models.matmul import linear, linear_backward

Rope = tuple[Tensor, Tensor]  # cosines and signed sines (T, head_dim)
# (layer, queries (t, heads, d), keys and values (T, kv_heads, d)) -> (t, heads * d). t is T, except
# in the last layer of a pass, if that pass needs the hidden states of some positions only.
Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]
AttendHere = Callable[[Tensor, Tensor, Tensor], Tensor]  # the same in one layer


class Layer(NamedTuple):
    """The weights of one decoder layer, in the order in which they are used."""

    norm: nn.Module
    q: Linear
    k: Linear
    v: Linear
    o: Linear
    post_norm: nn.Module
    gate: Linear
    up: Linear
    down: Linear


def read_layer(module: nn.Module) -> Layer:
    """The weights of a Qwen2VLDecoderLayer, as the active adapter makes them."""
    attention, mlp = module.self_attn, module.mlp
    projections = (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj)
    return Layer(
        module.input_layernorm,
        *map(read_linear, projections),
        module.post_attention_layernorm,
        *map(read_linear, (mlp.gate_proj, mlp.up_proj, mlp.down_proj)),
    )


class Layers:
    """The decoder layers and the last norm under the adapter that is active now, for one pass or
    one rollout. Weights are the policy's own tensors. LoRA is never merged into them, because
    merging rounds.
    """

    def __init__(self, model: nn.Module, checkpointing: bool = False) -> None:
        """`model` is transformers' Qwen2VLTextModel, with LoRA or without."""
        config = model.config
        self.heads = (config.num_attention_heads, config.num_key_value_heads)
        self.width = config.hidden_size // config.num_attention_heads
        self.checkpointing = checkpointing
        self.rotary, self.norm = model.rotary_emb, model.norm
        self.layers = list(map(read_layer, model.layers))

    def rope(self, positions: Tensor, like: Tensor) -> Rope:
        """M-RoPE's cosines and signed sines of positions (3, T), in the dtype of `like`.

        They are the same in every layer. The sign of the rotation is in the sines.
        """
        cos, sin = self.rotary(like, positions[:, None])  # (1, T, head_dim) each
        first, second = sin[0].chunk(2, dim=-1)
        return cos[0], torch.cat([-first, second], dim=-1)

    def __call__(
        self, x: Tensor, rope: Rope, attend: Attend, wanted: Tensor | None = None
    ) -> Tensor:
        """Hidden states (T, hidden) after the last norm, from embeddings x (T, hidden).

        `wanted` (W,) int64 are the positions whose hidden states are returned, (W, hidden). The
        last layer then computes only keys and values of all others.
        """
        last = len(self.layers) - 1
        for i, layer in enumerate(self.layers):
            run = partial(self._layer, layer, partial(attend, i), wanted if i == last else None)
            if self.checkpointing and torch.is_grad_enabled():
                # No layer draws random numbers, so their state need not be kept and restored.
                run = partial(checkpoint, run, use_reentrant=False, preserve_rng_state=False)
            x = run(x, rope)
        return rms_norm(x, self.norm)

    def _layer(
        self, layer: Layer, attend: AttendHere, wanted: Tensor | None, x: Tensor, rope: Rope
    ) -> Tensor:
        """One decoder layer: the two equations at the top of this file."""
        heads, kv_heads = self.heads
        y = rms_norm(x, layer.norm)
        key = self._rotate(layer.k(y).reshape(-1, kv_heads, self.width), rope)
        value = layer.v(y).reshape(-1, kv_heads, self.width)
        if wanted is not None:  # every token is attended to, but only these attend
            x, y, rope = x[wanted], y[wanted], (rope[0][wanted], rope[1][wanted])
        query = self._rotate(layer.q(y).reshape(-1, heads, self.width), rope)
        # x += o(attend(rotate(q(y)), rotate(k(y)), v(y)))
        x = x + layer.o(attend(query, key, value))
        # x += down(silu(gate(y)) * up(y))
        y = rms_norm(x, layer.post_norm)
        return x + layer.down(swiglu(layer.gate(y), layer.up(y)))

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
        """y (T, out) of x (T, in)."""
        if torch.is_grad_enabled():
            if self.a is None:
                return _Frozen.apply(x, self.weight, self.bias)
            return _WithLoRA.apply(x, *self)
        # Without a gradient, the LoRA term is added in place and nothing is kept.
        y = linear(x, self.weight, self.bias)
        return y if self.a is None else y.addmm_(F.linear(x, self.a), self.b.T, alpha=self.scale)


def read_linear(module: nn.Module) -> Linear:
    """The weights of a linear layer, with LoRA if an adapter is active."""
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
    """y = W x + bias + s B A x.  Keeps x and A x (T, r), where autograd would also keep B A x.

        dx = W^T dy + s A^T B^T dy        dA = s B^T dy x^T        dB = s dy (A x)^T

    In the code tokens are rows, x (T, in) and dy (T, out), so every product is transposed.
    """

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
    """y = W x + bias with a frozen weight: dx = W^T dy, so nothing but the weight is kept."""

    @staticmethod
    def forward(ctx, x, weight, bias):
        ctx.save_for_backward(weight)
        return linear(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        return linear_backward(dy, ctx.saved_tensors[0]), None, None


class _RMSNorm(torch.autograd.Function):
    """y = w * u with u = x s and s = 1 / sqrt(mean(x^2) + eps).  Keeps x and s, one number a token.

        dx = s (g - u mean(g * u))        g = dy * w

    In float32, and rounded before the multiplication with w, as in transformers.
    """

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
    """y = silu(gate) * up.  Keeps gate and up; silu(gate) is computed again.

    dgate = dy * up * silu'(gate)        dup = dy * silu(gate)
    """

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
    """RMSNorm of x (T, hidden), in float32; rounded before the weight multiplies."""
    if torch.is_grad_enabled():
        return _RMSNorm.apply(x, norm.weight, norm.variance_epsilon)
    unit = F.rms_norm(x.float(), x.shape[-1:], eps=norm.variance_epsilon)
    return unit.to(x.dtype).mul_(norm.weight)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up; silu is Qwen2-VL's `hidden_act`."""
    return _SwiGLU.apply(gate, up) if torch.is_grad_enabled() else F.silu(gate).mul_(up)
