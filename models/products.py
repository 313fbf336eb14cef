"""Products with the frozen weights, and how they are taken where bfloat16 is slow.

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

FEW = 24  # tokens up to which reading a weight, not arithmetic, is what its product costs


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """W x + bias for tokens x (..., in) and a weight (out, in)."""
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
    """Inside, the linears of any module are the one above; without gradients."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        with torch._C.DisableTorchFunction():
            return (linear if func is F.linear else func)(*args, **(kwargs or {}))


def _widened(x: Tensor) -> bool:
    few = x.numel() <= FEW * x.shape[-1]
    return x.dtype == torch.bfloat16 and not few and x.is_cpu and not has_bfloat16()


@functools.cache
def has_bfloat16() -> bool:
    """Whether this CPU has instructions for products of bfloat16 matrices."""
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
