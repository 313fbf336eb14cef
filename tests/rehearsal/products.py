"""Products that a card has and a CPU has not."""

from collections.abc import Callable

import torch
from torch import Tensor

from tests.rehearsal.attention import HALF


def widened(product: Callable[..., Tensor], *factors: Tensor, out_dtype: torch.dtype) -> Tensor:
    """A product whose result is wider than its factors: exact products, summed in `out_dtype`.

    Raises TypeError if a card has no such product: it has float32 of half precision only.
    """
    if not all(factor.dtype in HALF for factor in factors) or out_dtype != torch.float32:
        raise TypeError(f"{product.__name__}: out_dtype is float32, of factors in half precision")
    return product(*(factor.to(out_dtype) for factor in factors))
