"""Fake tensors: with a shape and a dtype, without values and without memory."""

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from peft import PeftModel
from torch import Tensor
from torch._subclasses import FakeTensor, FakeTensorMode
from torch.nn.attention.bias import CausalBias
from torch.overrides import TorchFunctionMode

FAKE = FakeTensorMode(allow_non_fake_inputs=True)
READS = {"item", "tolist", "cpu", "__bool__", "__int__", "__float__", "__index__", "data_ptr"}


class FakeDevice(TorchFunctionMode):
    """Inside, a model of fake tensors computes as if it were on this device.

    What a fake tensor is added to or multiplied with becomes fake. Tokens, positions and lengths
    stay real, because shapes and branches depend on them. A GPU's fake tensors say that they are on
    it and lie on the CPU: without CUDA, autograd takes no others.
    """

    def __init__(self, device: torch.device) -> None:
        self.on_gpu = device.type == "cuda"
        self.claims = {Tensor.is_cpu.__get__: not self.on_gpu, Tensor.is_cuda.__get__: self.on_gpu}

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if args and isinstance(args[0], FakeTensor):
            if func in self.claims:
                return self.claims[func]
            if func is Tensor.backward:
                return self._backward(args[0])
            if func.__name__ in READS:
                return read(func, args[0])
            if func is F.scaled_dot_product_attention and self.on_gpu:
                return attention_of_gpu(*args, **kwargs)
        return func(*args, **(kwargs or {}))

    def _backward(self, loss: Tensor) -> None:
        with self:  # torch.autograd.backward would run without this mode
            run = torch.autograd.Variable._execution_engine.run_backward
            run((loss,), (torch.ones_like(loss),), False, False, (), True, accumulate_grad=True)


def read(func: Callable, x: Tensor) -> Any:
    """What the host reads of a fake tensor: True or 1.0, and token 0. Every read of a step ends
    here: the tokens drawn, their probabilities, whether the gradient is finite, its norm."""
    counts = not x.is_floating_point() and x.dtype != torch.bool
    made = torch.zeros if counts else torch.ones
    return func(made(x.shape, dtype=x.dtype))


def attention_of_gpu(*inputs: Tensor, attn_mask: Any = None, **other: Any) -> Tensor:
    """Attention by the kernels of a GPU: flash, or the memory-efficient one if there is a mask."""
    aten, keep = torch.ops.aten, inputs[0].requires_grad
    if attn_mask is None or isinstance(attn_mask, CausalBias):
        return aten._scaled_dot_product_flash_attention(*inputs, 0.0, True)[0]
    return aten._scaled_dot_product_efficient_attention(*inputs, attn_mask, keep)[0]


def fake_copy(model: PeftModel) -> PeftModel:
    """The model with fake tensors for all parameters and buffers, which may be on any device."""
    made = copy.deepcopy(model)
    with FAKE:
        made.to_empty(device="cpu")
    made.get_base_model().tie_weights()  # embedding and head may be one tensor
    return made
