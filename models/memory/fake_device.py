"""A device whose tensors are fake: with a shape and a dtype, without values and without memory."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode

READS = {"item", "tolist", "cpu", "__bool__", "__int__", "__float__", "__index__", "data_ptr"}


class FakeDevice(TorchFunctionMode):
    """Inside, floating-point tensors on the model's device are fake; on the host all is real.

    Tokens, positions and lengths stay real, because shapes and branches depend on them. A GPU's
    fake tensors say that they are on it and lie on the CPU: without CUDA, autograd takes no others.
    """

    def __init__(self, device: torch.device) -> None:
        self.on_gpu = device.type == "cuda"
        with FakeTensorMode(allow_non_fake_inputs=True):
            self.first = torch.zeros(())  # the others are made from this one
        self.claims = {Tensor.is_cpu.__get__: not self.on_gpu, Tensor.is_cuda.__get__: self.on_gpu}

    def __torch_function__(self, func, types, args=(), kwargs=None):
        x = args[0] if args else None
        if isinstance(x, FakeTensor) and func in self.claims:
            return self.claims[func]
        if func is Tensor.backward:
            return self._backward(x)
        with torch._C.DisableTorchFunction():
            return self._run(func, x, args, kwargs or {})

    def _run(self, func: Callable, x: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
        if isinstance(x, FakeTensor) and getattr(func, "__name__", "") in READS:
            return read(func, x)
        if func is F.scaled_dot_product_attention and self.on_gpu:
            return attention_of_gpu(*args, **kwargs)
        if func is Tensor.to:
            return self._moved(x, [*args[1:], *kwargs.values()])
        if kwargs.get("device") is not None:
            kwargs["device"], dtype = "cpu", kwargs.get("dtype", torch.float32)
            if func is torch.zeros and dtype.is_floating_point:
                return self.first.new_zeros(*args, dtype=dtype)
        return func(*args, **kwargs)

    def _moved(self, x: Tensor, to: list[Any]) -> Tensor:
        """x.to(*to): real numbers that go to the model's device become fake there."""
        there = any(isinstance(each, torch.device | str | FakeTensor) for each in to)
        if there and x.is_floating_point() and not isinstance(x, FakeTensor):
            x = self.first.new_empty(x.shape, dtype=x.dtype)
        dtypes = [getattr(each, "dtype", each) for each in to]
        return x.to(*(each for each in dtypes if isinstance(each, torch.dtype)))

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
    if attn_mask is None:
        return aten._scaled_dot_product_flash_attention(*inputs, 0.0, True)[0]
    return aten._scaled_dot_product_efficient_attention(*inputs, attn_mask, keep)[0]


def make_fake(model: nn.Module, first: Tensor) -> None:
    """Replace every parameter and buffer by a fake one; one that is there twice stays one."""
    made: dict[int, tuple[Tensor, Tensor]] = {}
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, old in [pair for pair in tensors.items() if pair[1] is not None]:
                new = first.new_empty(old.shape, dtype=old.dtype)
                if isinstance(old, nn.Parameter):
                    new = nn.Parameter(new, old.requires_grad)
                tensors[name] = made.setdefault(id(old), (new, old))[0]
