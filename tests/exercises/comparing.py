"""How an answer is compared with what is expected of it. What differs is the message of Wrong."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


class Wrong(AssertionError):
    """What differs from the oracle."""


def same(what: str, found: Any, expected: Tensor | Sequence, tolerance: float = 1e-5) -> None:
    """Raise Wrong unless two tensors agree to `tolerance`, absolute or relative."""
    want = torch.as_tensor(expected).detach().double()
    if not isinstance(found, Tensor):
        raise Wrong(f"{what}: {type(found).__name__} in place of a tensor {tuple(want.shape)}")
    if found.shape != want.shape:
        raise Wrong(f"{what}: shape {tuple(found.shape)} in place of {tuple(want.shape)}")
    have = found.detach().double()
    gap = torch.where(have == want, 0.0, (have - want).abs().nan_to_num(nan=math.inf))
    wrong = gap > tolerance * want.abs().clamp(min=1)
    if not wrong.any():
        return
    at = tuple(map(int, torch.unravel_index(gap.argmax(), gap.shape)))
    place = f" at {at if len(at) > 1 else at[0]}" if at else ""
    count = f"{int(wrong.sum())} of {wrong.numel()} differ, most" if at else "differs"
    raise Wrong(f"{what}: {count}{place}: yours {have[at]:.6g}, expected {want[at]:.6g}")


def slope(what: str, output: Tensor, given: Tensor) -> Tensor:
    """The gradient of the sum of `output` with respect to `given`."""
    if not output.requires_grad:
        raise Wrong(f"{what}: no gradient reaches what it is computed from")
    return torch.autograd.grad(output.sum(), given)[0]


def close(what: str, found: Tensor, expected: Tensor, tolerance: float = 1e-4) -> None:
    """Raise Wrong unless two gradients differ by less than `tolerance` of their length."""
    off = float((found.double() - expected.double()).norm() / expected.double().norm())
    if not off <= tolerance:
        raise Wrong(f"{what}: off by {off:.2g} times its length, at most {tolerance:g} is rounding")


def finite(what: str, answer: Callable, other: Tensor) -> None:
    """However far two log-probs are apart."""
    for gap in (1e4, -1e4):
        given = (other + gap).requires_grad_()
        found = answer(given, other)
        for name, values in ((what, found), (f"gradient of {what}", slope(what, found, given))):
            if not values.isfinite().all():
                raise Wrong(f"{name} where log-probs are {gap:g} apart: {values.detach()[0]:g}")


def same_list(what: str, found: Any, expected: Any) -> None:
    if found != expected:
        raise Wrong(f"{what}: {found} in place of {expected}")
