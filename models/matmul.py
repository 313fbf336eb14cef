"""Products with the frozen weights, and how a CPU takes them best.

Of few tokens W x^T is a fifth faster than x W^T: BLAS then holds the tokens still and has the
weights pass by once. What comes out is laid out features first.

A CPU without bfloat16 instructions multiplies bfloat16 matrices one number at a time, eight times
slower than float32 ones. There, products are taken of float32 copies of a weight, a block of it at
a time, and rounded once at the end, which is what the instructions do: exact products, summed in
float32. Weights stay in bfloat16, so a model needs half of the memory.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

FEW, LARGE = 64, 1 << 17  # tokens up to which, and numbers of a weight from which, W x^T is faster
BLOCK_OF_FEW, BLOCK = 1 << 20, 1 << 22  # float32 numbers that a cache holds; that malloc keeps


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """W x + bias for tokens x (..., in) and a weight (out, in)."""
    few = x.ndim == 2 and len(x) <= FEW and weight.numel() >= LARGE and x.is_cpu
    if _widened(x):
        wide, blocks = x.float(), _blocks(weight, BLOCK_OF_FEW if few else BLOCK)
        if few:
            y = torch.cat([block.float() @ wide.T for block in blocks]).T
        else:
            y = torch.cat([F.linear(wide, block.float()) for block in blocks], dim=-1)
        return (y if bias is None else y.add_(bias)).to(x.dtype)
    if few and x.dtype == torch.float32:
        y = (weight @ x.T).T
        return y if bias is None else y.add_(bias)
    return F.linear(x, weight, bias)


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
