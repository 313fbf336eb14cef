"""The linears: products with frozen weights, how a CPU takes them best, and LoRA.

Of few tokens W x^T is a fifth faster than x W^T: BLAS then holds the tokens still and has the
weights pass by once. What comes out is laid out features first.

A CPU without bfloat16 instructions multiplies bfloat16 matrices one number at a time, eight times
slower than float32 ones. There, products are taken of float32 copies of a weight, a block of it at
a time, and rounded once at the end, which is what the instructions do: exact products, summed in
float32. Weights stay in bfloat16, so a model needs half of the memory.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode

FEW, LARGE = 64, 1 << 17  # tokens up to which, and numbers of a weight from which, W x^T is faster
BLOCK_OF_FEW, BLOCK = 1 << 20, 1 << 22  # float32 numbers that a cache holds; that malloc keeps


class Linear(NamedTuple):
    """y = W x + bias + B A x, with A and B in the dtype that W computes in."""

    weight: Tensor  # (out, in), frozen
    bias: Tensor | None
    a: Tensor | None  # (r, in)
    b: Tensor | None  # (out, r), LoRA's scale in it

    def __call__(self, x: Tensor) -> Tensor:
        """y (T, out) of x (T, in)."""
        if torch.is_grad_enabled():
            if self.a is None:
                return _Frozen.apply(x, self.weight, self.bias, False)
            return _WithLoRA.apply(x, *self)
        # Without a gradient, the LoRA term is added in place and nothing is kept.
        y = linear(x, self.weight, self.bias)
        return y if self.a is None else y.addmm_(F.linear(x, self.a), self.b.T)


class Head(NamedTuple):
    """Logits (n, V) of hidden states (n, hidden), in float32: those of bfloat16 would lie 0.125
    apart above 16."""

    weight: Tensor  # (V, hidden), frozen

    def __call__(self, hidden: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            return _Frozen.apply(hidden, self.weight, None, True)
        return linear(hidden, self.weight, float32=True)


def read_linear(*modules: nn.Module) -> Linear:
    """The weights of linears of one input, as one: with LoRA if an adapter is active.

    Their rows lie one below the other, A's too; B has a block for each, and zeros beside it. An
    adapter is on all seven linears of a layer, and scaled alike: models/lora.py refuses others.
    """
    weights, biases, a, b = [], [], [], []
    for module in modules:
        linear = module.get_base_layer() if isinstance(module, LoraLayer) else module
        weights.append(linear.weight)
        biases.append(linear.bias)
        if isinstance(module, LoraLayer) and not module.disable_adapters:
            (name,) = module.active_adapters
            scale = module.scaling[name]
            a.append(module.lora_A[name].weight)
            b.append(module.lora_B[name].weight)
    weight, bias = as_one(weights), None if biases[0] is None else as_one(biases)
    if not a:
        return Linear(weight, bias, None, None)
    scaled = torch.block_diag(*b).mul(scale)
    return Linear(weight, bias, torch.cat(a).to(weight.dtype), scaled.to(weight.dtype))


def as_one(parts: Sequence[Tensor]) -> Tensor:
    """Tensors one below the other: a view where they lie so in memory (`lay_together`)."""
    first, end = parts[0], parts[0].storage_offset()
    for part in parts:
        same = part.untyped_storage()._cdata == first.untyped_storage()._cdata
        if not same or part.storage_offset() != end or not part.is_contiguous():
            return torch.cat(list(parts))
        end += part.numel()
    rows = (end - first.storage_offset()) // first[0].numel()
    return first.as_strided((rows, *first.shape[1:]), first.stride())


class _WithLoRA(torch.autograd.Function):
    """y = W x + bias + B A x.  Keeps x and A x (T, r), where autograd would also keep B A x.

        dx = W^T dy + A^T B^T dy        dA = B^T dy x^T        dB = dy (A x)^T

    In the code tokens are rows, x (T, in) and dy (T, out), so every product is transposed.
    """

    @staticmethod
    def forward(ctx, x, weight, bias, a, b):
        inner = F.linear(x, a)  # (T, r)
        ctx.save_for_backward(x, weight, a, b, inner)
        return linear(x, weight, bias).addmm_(inner, b.T)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        x, weight, a, b, inner = ctx.saved_tensors
        d_inner = dy @ b  # (T, r)
        dx = linear_backward(dy, weight).addmm_(d_inner, a) if ctx.needs_input_grad[0] else None
        return dx, None, None, d_inner.T @ x, dy.T @ inner


class _Frozen(torch.autograd.Function):
    """y = W x + bias with a frozen weight: dx = W^T dy, so nothing but the weight is kept."""

    @staticmethod
    def forward(ctx, x, weight, bias, float32):
        ctx.save_for_backward(weight)
        return linear(x, weight, bias, float32)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        (weight,) = ctx.saved_tensors
        return linear_backward(dy.to(weight.dtype), weight), None, None, None


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, float32: bool = False) -> Tensor:
    """W x + bias for tokens x (..., in) and a weight (out, in); `float32`: not rounded to x's dtype
    (but by a CPU's bfloat16 instructions)."""
    few = x.ndim == 2 and len(x) <= FEW and weight.numel() >= LARGE and x.is_cpu
    if _widened(x):
        wide, blocks = x.float(), _blocks(weight, BLOCK_OF_FEW if few else BLOCK)
        if few:
            y = torch.cat([block.float() @ wide.T for block in blocks]).T
        else:
            y = torch.cat([F.linear(wide, block.float()) for block in blocks], dim=-1)
        y = y if bias is None else y.add_(bias)
        return y if float32 else y.to(x.dtype)
    if float32 and x.is_cuda and x.dtype != torch.float32:
        return torch.mm(x, weight.T, out_dtype=torch.float32)
    if few and x.dtype == torch.float32:
        y = (weight @ x.T).T
        return y if bias is None else y.add_(bias)
    y = F.linear(x, weight, bias)
    return y.float() if float32 else y


def linear_backward(dy: Tensor, weight: Tensor) -> Tensor:
    """The gradient (T, in) of what `linear` took, from that of what it gave, dy (T, out)."""
    if not _widened(dy):
        return dy @ weight
    blocks = _blocks(weight, BLOCK)
    parts = dy.split(len(blocks[0]), dim=1)
    dx = dy.new_zeros(len(dy), weight.shape[1], dtype=torch.float32)
    for part, block in zip(parts, blocks, strict=True):
        dx.addmm_(part.float(), block.float())
    return dx.to(dy.dtype)


class Widening(TorchFunctionMode):
    """Inside, the linears of any module are the one above; without gradients."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        with torch._C.DisableTorchFunction():
            return (linear if func is F.linear else func)(*args, **(kwargs or {}))


def _blocks(weight: Tensor, size: int) -> tuple[Tensor, ...]:
    """Rows of a weight (out, in), about `size` numbers at a time."""
    return weight.split(max(1, size // weight.shape[1]))


def _widened(x: Tensor) -> bool:
    return x.dtype == torch.bfloat16 and x.is_cpu and not has_bfloat16()


@functools.cache
def has_bfloat16() -> bool:
    """Whether this CPU has instructions for products of bfloat16 matrices."""
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
