"""Which kernel CUDA takes for an attention call, and how that kernel's result lies in memory.

`F.scaled_dot_product_attention` chooses among four kernels by compute capability, dtype, mask and
heads. Each lays its result (B, H, M, K) out in its own order; `.view` on it works with one order
and raises with another. A CPU has one kernel, so this is what a CPU alone cannot show.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.bias import CausalBias, CausalVariant

HALF = (torch.bfloat16, torch.float16)
ALIGNED = 8  # elements: what flash pads heads to, and the efficient kernel the rows of masks


@dataclass(frozen=True)
class Call:
    """The arguments of one call of F.scaled_dot_product_attention, with plain tensors."""

    query: Tensor  # (B, H, M, K)
    key: Tensor  # (B, H or H_kv, S, K)
    value: Tensor
    attn_mask: Tensor | CausalBias | None = None
    dropout_p: float = 0.0
    is_causal: bool = False
    scale: float | None = None
    enable_gqa: bool = False

    @property
    def lower_right(self) -> bool:
        """Whether the mask is a causal bias that `is_causal` does not express."""
        bias = self.attn_mask
        if not isinstance(bias, CausalBias) or bias.seq_len_q == bias.seq_len_kv:
            return False
        return bias.variant == CausalVariant.LOWER_RIGHT

    @property
    def mask(self) -> Tensor | None:
        """The mask in memory, if there is one: a causal bias has none."""
        return None if isinstance(self.attn_mask, CausalBias) else self.attn_mask

    @property
    def causal(self) -> bool:
        """Causal from the upper left corner."""
        return self.is_causal or (isinstance(self.attn_mask, CausalBias) and not self.lower_right)

    @property
    def shapes(self) -> tuple[object, ...]:
        """What cuDNN makes a plan for: one plan for each of these."""
        mask = None if self.mask is None else self.mask.shape
        shapes = self.query.shape, self.key.shape, mask, self.causal
        return *shapes, self.query.dtype, torch.is_grad_enabled()


def kernel(call: Call, capability: tuple[int, int]) -> str:
    """The kernel that CUDA takes: "cudnn", "flash", "efficient" or "math".

    As in torch's aten/src/ATen/native/transformers/cuda/sdp_utils.cpp: compute capability 9 and
    later try cuDNN first, and a kernel that is switched off (torch.backends.cuda.enable_*_sdp) or
    cannot do the call is passed over. torch.nn.attention.bias sends a lower-right causal bias to
    flash, or else to the efficient kernel, and never to cuDNN.
    """
    cudnn = capability >= (9, 0) and torch.backends.cuda.cudnn_sdp_enabled()
    half, width = call.query.dtype in HALF, call.query.shape[-1]
    square = call.query.shape[-2] == call.key.shape[-2]
    same_heads = call.query.shape[1] == call.key.shape[1]
    if cudnn and not call.lower_right and half and width % 8 == 0 and width <= 256:
        return "cudnn"
    flash = torch.backends.cuda.flash_sdp_enabled() and half and width <= 256
    # The bias's own path asks for lower-right causal; the usual one has upper-left, square only.
    if flash and call.mask is None and (square or not call.causal):
        return "flash"
    efficient = torch.backends.cuda.mem_efficient_sdp_enabled() and same_heads
    if efficient and width % (8 if half else 4) == 0:
        return "efficient"
    return "math"


def padded_bytes(call: Call) -> int:
    """Bytes of the mask's copy with aligned rows that the efficient kernel makes, 0 without."""
    mask = call.mask
    aligned = mask is None or all(stride % ALIGNED == 0 for stride in mask.stride()[:-1])
    return 0 if aligned and (mask is None or mask.stride(-1) == 1) else mask.nbytes


def laid_out(found: Tensor, query: Tensor, chosen: str) -> Tensor:
    """The result (B, H, M, K) as the chosen kernel lays it out; differentiable."""
    strides = layout(query, chosen)
    if found.stride() == strides:
        return found
    return torch.empty_strided(found.shape, strides, dtype=found.dtype).copy_(found)


def layout(query: Tensor, chosen: str) -> tuple[int, ...]:
    """The strides of the result for a query (B, H, M, K).

    Flash and cuDNN allocate it like the query, which flash pads to aligned heads; the efficient
    kernel writes (B, M, H, K); matrix products give (B, H, M, K).
    """
    batch, heads, length, width = query.shape
    if chosen == "efficient":
        return (length * heads * width, width, heads * width, 1)
    if chosen == "flash" and width % ALIGNED:
        padded = width + ALIGNED - width % ALIGNED
        return (heads * length * padded, length * padded, padded, 1)
    if chosen in ("flash", "cudnn"):
        return torch.empty_like(query, device="meta").stride()
    return query.new_empty(batch, heads, length, width, device="meta").stride()


def compute(call: Call) -> Tensor:
    """The result by the CPU's own kernel. A lower-right bias becomes a mask in memory."""
    mask = call.attn_mask._materialize() if call.lower_right else call.mask
    return F.scaled_dot_product_attention(
        call.query,
        call.key,
        call.value,
        mask,
        call.dropout_p,
        call.causal,
        scale=call.scale,
        enable_gqa=call.enable_gqa,
    )
