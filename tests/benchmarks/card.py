"""A GPU without a GPU: tensors without data (torch's `meta`) that say they lie on cuda:0.

The host's tensors are real, so Python takes the branches that it takes on a card; what the host
reads of the device is made up: True, 0, or what `Card` is told. Attention is the kernel that an
A100 (sm80) chooses. Nothing is computed, so a 2B model needs no memory and a layer a millisecond.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.bias import CausalBias
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_leaves

from tests.benchmarks.operations import Operations, where

CUDA = torch.device("cuda", 0)
aten = torch.ops.aten


def on_card(x: Any) -> bool:
    return isinstance(x, Tensor) and x.untyped_storage().device.type == "meta"


class OnCard(Operations):
    """Counts, and stands in for what a tensor without data cannot do."""

    def __init__(self, drawn: int) -> None:
        """`drawn` is how many tokens a step draws: the length of what repeats by lengths."""
        super().__init__()
        self.drawn = drawn

    def compute(self, func: Any, args: Any, kwargs: Any) -> Any:
        name = func.overloadpacket.__name__
        if name == "_local_scalar_dense" and on_card(args[0]):
            return made_up(args[0].dtype)
        if name == "nonzero" and on_card(args[0]):
            return args[0].new_empty(args[0].numel(), args[0].ndim, dtype=torch.int64)
        if name == "repeat_interleave" and on_card(args[0]):
            self.wait(name)
            return args[0].new_empty(self.drawn, dtype=torch.int64)
        if name == "equal":
            return True
        if name in ("_to_copy", "copy_"):
            return self.move(name, func, args, kwargs)
        if name in ("index", "index_put_", "_index_put_impl_") and on_card(args[0]):
            return self.indexed(name, func, args, kwargs)
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        if any(map(on_card, given)) and any(x.ndim and not on_card(x) for x in given):
            raise RuntimeError(f"{name}: tensors on the host and on the card, {where()}")
        return func(*args, **kwargs)

    def count(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        """The host's own operations cost the device nothing."""
        if any(map(on_card, tree_leaves((args, kwargs, result)))):
            super().count(func, args, kwargs, result)

    def move(self, name: str, func: Any, args: Any, kwargs: Any) -> Tensor:
        """A copy between host and device; the host waits for one from the device."""
        if name == "copy_":
            target, source = args[:2]
            there, here = on_card(target), on_card(source)
        else:
            source, target = args[0], None
            here = on_card(source)
            there = here if kwargs.get("device") is None else kwargs["device"].type == "meta"
        if there == here:
            return func(*args, **kwargs)
        self.copy("to the device" if there else "to the host")
        if there:
            return target if name == "copy_" else func(*args, **kwargs)
        if not (kwargs.get("non_blocking") or True in args[2:]):
            self.wait("copy to the host")
        dtype = kwargs.get("dtype") or source.dtype
        host = torch.full(source.shape, made_up(dtype), dtype=dtype)
        return host if target is None else target.copy_(host)

    def indexed(self, name: str, func: Any, args: Any, kwargs: Any) -> Tensor:
        """With a mask all entries are taken for True; an index of the host's is copied over."""
        indices = list(args[1])
        for i, index in enumerate(indices):
            if index is None:
                continue
            if not on_card(index):
                self.copy("an index to the device")
                index = torch.empty_like(index, device="meta")
            if index.dtype == torch.bool:
                if name != "index":
                    return args[0]
                index = torch.empty(index.numel(), dtype=torch.int64, device="meta")
            indices[i] = index
        return func(args[0], indices, *args[2:], **kwargs)


def made_up(dtype: torch.dtype) -> bool | int | float:
    """What the host reads: True, how many image tokens place_images looks for, or 0."""
    if dtype == torch.bool:
        return True
    if dtype.is_floating_point:
        return 0.0
    frame = sys._getframe(1)
    while frame and frame.f_code.co_name != "place_images":
        frame = frame.f_back
    return sum(map(len, frame.f_locals["features"])) if frame else 0


class Claims(TorchFunctionMode):
    """Inside, tensors without data say cuda:0, and "cuda" makes such tensors."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.device:
            return func(*args, **kwargs)
        if func == Tensor.device.__get__:
            return CUDA if on_card(args[0]) else func(*args)
        if func == Tensor.is_cuda.__get__:
            return on_card(args[0])
        if func is Tensor.backward:
            return self.backward(args[0])
        if func is F.scaled_dot_product_attention and on_card(args[0]):
            return attention(*args, **kwargs)
        if func in (torch.rms_norm, F.rms_norm) and on_card(args[0]):
            return rms_norm(*args, **kwargs)
        args = tuple(map(without_data, args))
        kwargs = {key: without_data(value) for key, value in kwargs.items()}
        if func in (torch.tensor, torch.as_tensor) and kwargs.get("device") is not None:
            place = kwargs.pop("device")
            return func(*args, **kwargs).to(place)
        if func is Tensor.cuda:
            return args[0].to("meta")
        return func(*args, **kwargs)

    def backward(self, loss: Tensor) -> None:
        with self:
            torch.autograd.Variable._execution_engine.run_backward(
                (loss,), (torch.ones_like(loss),), False, False, (), True, accumulate_grad=True
            )


def without_data(value: Any) -> Any:
    """The device "meta" for "cuda"; all else as it is."""
    if isinstance(value, str) and value.startswith("cuda"):
        return torch.device("meta")
    return torch.device("meta") if isinstance(value, torch.device) and value == CUDA else value


def rms_norm(
    x: Tensor, shape: Any, weight: Tensor | None = None, eps: float | None = None
) -> Tensor:
    """One kernel on a card; elsewhere torch takes it apart."""
    return aten._fused_rms_norm(x, list(shape), weight, eps)[0]


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """F.scaled_dot_product_attention as sm80 chooses: flash without a mask and in 16 bits, else the
    memory-efficient kernel, else plain products."""
    half = query.dtype in (torch.bfloat16, torch.float16)
    if isinstance(attn_mask, CausalBias):
        is_causal, attn_mask = True, None
    if half and attn_mask is None:
        flash = aten._scaled_dot_product_flash_attention
        return flash(query, key, value, dropout_p, is_causal, scale=scale)[0]
    if enable_gqa and query.shape[1] != key.shape[1]:
        return aten._scaled_dot_product_attention_math(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=True
        )[0]
    if attn_mask is not None:
        if pads := -attn_mask.shape[-1] % 8:  # the kernel reads 16 bytes at a time
            attn_mask = F.pad(attn_mask, (0, pads))[..., : attn_mask.shape[-1]]
        shape = (*query.shape[:-1], key.shape[-2])
        attn_mask = attn_mask.expand(shape)
    grad = any(x.requires_grad for x in (query, key, value))
    return aten._scaled_dot_product_efficient_attention(
        query, key, value, attn_mask, grad, dropout_p, is_causal, scale=scale
    )[0]


class Once:
    """In place of a CUDA graph: the step runs once, and a replay counts what it counted then."""

    def __init__(self, counted: OnCard, step: Callable[[], None]) -> None:
        self.counted = counted
        self.cost, self.places = counted.aside(step)
        self.replay()

    def replay(self) -> None:
        self.counted.phases[self.counted.now] = self.counted.tally + self.cost


@contextmanager
def card(counted: OnCard) -> Iterator[None]:
    """Inside, torch is as on a machine with a GPU, and what is asked of the GPU is counted."""

    def synchronize(*_: Any) -> None:
        counted.wait("synchronize")

    def new_bias(cls: type[CausalBias], *_: Any) -> CausalBias:
        with _disable_current_modes():  # a mode has made its tensor before the class can
            return Tensor.__new__(cls)

    cuda, nothing = torch.cuda, lambda *_, **__: None
    foreach = "torch.utils._foreach_utils._get_foreach_kernels_supported_devices"
    same = "torch.utils.checkpoint._CheckpointFrame.check_recomputed_tensors_match"
    with (
        patch.multiple(cuda, is_available=lambda: True, synchronize=synchronize),
        patch.multiple(cuda, empty_cache=nothing, current_device=lambda: 0),
        patch(foreach, lambda: ["cuda", "meta"]),
        patch.object(CausalBias, "__new__", new_bias),
        patch(same, nothing),  # compares what tensors say with where they lie
        Claims(),
        counted,
    ):
        yield
