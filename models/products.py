"""Products with the frozen weights, and how a CPU takes them best.

Of few float32 tokens W x^T is a fifth faster than x W^T: BLAS then holds the tokens still and has
the weights pass by once. What comes out is laid out features first.

A CPU without bfloat16 instructions multiplies bfloat16 matrices one number at a time, eight times
slower than float32 ones. There, products of many tokens are taken of float32 copies of one weight
at a time and rounded once at the end, which is what the instructions do: exact products, summed in
float32. Weights stay in bfloat16, so a model needs half of the memory.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

FEW, LARGE = 64, 1 << 17  # tokens up to which, and numbers of a weight from which, that is so
FEW_BFLOAT16 = 24  # tokens up to which reading a bfloat16 weight, not arithmetic, is its cost


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """W x + bias for tokens x (..., in) and a weight (out, in); (T, in) where T is small."""
    if len(x) <= FEW and weight.numel() >= LARGE and x.is_cpu and x.dtype == torch.float32:
        y = (weight @ x.T).T
        return y if bias is None else y.add_(bias)
    if not _widened(x):
        return F.linear(x, weight, bias)
    wide = F.linear(x.float(), weight.float(), None if bias is None else bias.float())
    return wide.to(x.dtype)


def linear_backward(dy: Tensor, weight: Tensor) -> Tensor:
    """The gradient (..., in) of what `linear` took, from that of what it gave, dy (..., out)."""
    if not _widened(dy):
        return dy @ weight
    return (dy.float() @ weight.float()).to(dy.dtype)


class Widening(TorchFunctionMode):
    """Inside, a module's own linears are the one above; without gradients."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        with torch._C.DisableTorchFunction():
            return (linear if func is F.linear else func)(*args, **(kwargs or {}))


def _widened(x: Tensor) -> bool:
    few = x.numel() <= FEW_BFLOAT16 * x.shape[-1]
    return x.dtype == torch.bfloat16 and not few and x.is_cpu and not has_bfloat16()


@functools.cache
def has_bfloat16() -> bool:
    """Whether this CPU has instructions for products of bfloat16 matrices."""
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
