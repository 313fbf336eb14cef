"""The language model of Qwen2(.5)-VL, read off its own weights: ONE forward for every pass.

Prefill, decoding and training passes differ in one thing: which tokens a token attends to. So the
caller gives the attention, tokens are flat (T, hidden), and no pad is ever computed. The rest:

    x += o(attend(rotate(q(y)), rotate(k(y)), v(y)))      y = norm(x)
    x += down(silu(gate(y)) * up(y))                      y = norm(x)

The derivatives are written out, because autograd keeps four times what they need. transformers'
forward computes the same in some 40 Python calls a layer; a test compares the two.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from models.linear import Linear, as_one, read_linear

Rope = tuple[Tensor, Tensor]  # cosines and signed sines (T, head_dim)
# (layer, queries (t, heads, d), keys and values (T, kv_heads, d)) -> (t, heads * d). t is T, except
# in the last layer of a pass, if that pass needs the hidden states of some positions only.
Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]
AttendHere = Callable[[Tensor, Tensor, Tensor], Tensor]  # the same in one layer


class Layer(NamedTuple):
    """The weights of one decoder layer, in the order in which they are used."""

    norm: nn.Module
    qkv: Linear  # queries, keys and values in one product
    o: Linear
    post_norm: nn.Module
    gate_up: Linear
    down: Linear


def joined_modules(layer: nn.Module) -> tuple[tuple[nn.Module, ...], tuple[nn.Module, ...]]:
    """The linears of a decoder layer of transformers that take the same input."""
    attention, mlp = layer.self_attn, layer.mlp
    return (attention.q_proj, attention.k_proj, attention.v_proj), (mlp.gate_proj, mlp.up_proj)


def read_layer(module: nn.Module) -> Layer:
    """The weights of a decoder layer of transformers, as the active adapter makes them."""
    qkv, gate_up = joined_modules(module)
    return Layer(
        module.input_layernorm,
        read_linear(*qkv),
        read_linear(module.self_attn.o_proj),
        module.post_attention_layernorm,
        read_linear(*gate_up),
        read_linear(module.mlp.down_proj),
    )


def lay_together(model: nn.Module) -> None:
    """Move the frozen weights of linears of one input to one place, so that `as_one` copies
    nothing. The modules keep them as views: no weight is there twice."""
    for layer in model.layers:
        for modules in joined_modules(layer):
            bases = [m.get_base_layer() if isinstance(m, LoraLayer) else m for m in modules]
            for parts in ([m.weight for m in bases], [m.bias for m in bases]):
                if parts[0] is None:
                    continue
                sizes = list(map(len, parts))
                for part, own in zip(parts, as_one(parts).detach().split(sizes), strict=True):
                    part.data = own


class Layers:
    """The decoder layers and the last norm under the adapter that is active now, for one pass or
    one rollout. Weights are the policy's own tensors. LoRA is never merged into them, because
    merging rounds.
    """

    def __init__(self, model: nn.Module, checkpointing: bool = False) -> None:
        """`model` is transformers' text model of either type, with LoRA or without."""
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
        y = layer.qkv(rms_norm(x, layer.norm)).unflatten(1, (-1, self.width))
        query_key, value = y.split([heads + kv_heads, kv_heads], dim=1)
        query, key = self._rotate(query_key, rope).split([heads, kv_heads], dim=1)
        if wanted is not None:  # every token is attended to, but only these attend
            x, query = x[wanted], query[wanted]
        # x += o(attend(rotate(q(y)), rotate(k(y)), v(y)))
        x = x + layer.o(attend(query, key, value))
        # x += down(silu(gate(y)) * up(y))
        return x + layer.down(swiglu(layer.gate_up(rms_norm(x, layer.post_norm))))

    def _rotate(self, x: Tensor, rope: Rope) -> Tensor:
        """RoPE on (T, heads, dim): the halves (a, b) become (a cos - b sin, b cos + a sin)."""
        cos, sin = rope
        return torch.addcmul(x * cos[:, None], x.roll(self.width // 2, dims=-1), sin[:, None])


class _RMSNorm(torch.autograd.Function):
    """y = w * u with u = x s and s = 1 / sqrt(mean(x^2) + eps).  Keeps x.

        dx = s (g - u mean(g * u))        g = dy * w

    In float32, and rounded before the multiplication with w, as in transformers.
    """

    @staticmethod
    def forward(ctx, x, weight, eps):
        ctx.save_for_backward(x, weight)
        ctx.eps = eps
        return F.rms_norm(x, x.shape[-1:], eps=eps).mul_(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        x, weight = ctx.saved_tensors
        wide = x.float()
        scale = torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + ctx.eps)  # (T, 1)
        unit = wide * scale
        slope = (dy * weight).float()
        along = (slope * unit).mean(dim=-1, keepdim=True)
        return slope.sub_(unit.mul_(along)).mul_(scale).to(x.dtype), None, None


class _SwiGLU(torch.autograd.Function):
    """y = silu(gate) * up.  Keeps gate and up, which are the halves of x (T, 2 I); silu(gate) is
    computed again.

    dgate = dy * up * silu'(gate)        dup = dy * silu(gate)
    """

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        gate, up = x.chunk(2, dim=-1)
        return F.silu(gate).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        (x,) = ctx.saved_tensors
        gate, up = x.chunk(2, dim=-1)
        dx = torch.empty_like(x)
        d_gate, d_up = dx.chunk(2, dim=-1)
        torch.ops.aten.silu_backward.grad_input(dy * up, gate, grad_input=d_gate)
        torch.mul(F.silu(gate), dy, out=d_up)
        return dx


def rms_norm(x: Tensor, norm: nn.Module) -> Tensor:
    """RMSNorm of x (T, hidden), in float32; rounded before the weight multiplies. With a gradient
    or without, by the same kernel: so KL starts at exactly 0."""
    if torch.is_grad_enabled():
        return _RMSNorm.apply(x, norm.weight, norm.variance_epsilon)
    return F.rms_norm(x, x.shape[-1:], eps=norm.variance_epsilon).mul_(norm.weight)


def swiglu(x: Tensor) -> Tensor:
    """silu(gate) * up of x (T, 2 I); silu is Qwen2-VL's `hidden_act`."""
    if torch.is_grad_enabled():
        return _SwiGLU.apply(x)
    gate, up = x.chunk(2, dim=-1)
    return F.silu(gate).mul_(up)
