"""Tensors that compute on the CPU and claim to lie on cuda:0, and what CUDA refuses.

Everything that a program does with tensors goes through `Rehearsal`, which raises where CUDA would:
two devices in one operation, `.numpy()`, and inside the capture of a graph every wait of the host
and every copy between host and device. It counts the same by line (counts.py), and gives the
result of attention the layout in memory that the card's kernel gives it (attention.py).
"""

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import is_fake
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only

from tests.rehearsal import attention, counts
from tests.rehearsal.counts import Counts, line
from tests.rehearsal.products import widened

CUDA = torch.device("cuda", 0)  # what a process that is alone has
FROM_DATA = ("tensor", "as_tensor", "asarray", "new_tensor")  # of Python numbers or a host tensor
MOVES = ("to", "cpu", "cuda", "type_as")
INDEXING = ("__getitem__", "__setitem__", "index_put_", "index_put")
# What takes tensors of two devices: a copy, what has no result, and a Function of our own.
TWO_DEVICES = ("copy_", "__get__", "apply", "register_hook")
# One kernel of CUDA that a CPU makes of several operations.
FUSED = (F.rms_norm, torch.rms_norm)


class Refused(RuntimeError):
    """CUDA would have raised here."""


class Claimed(Tensor):
    """Lies on the CPU and says cuda:0."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if Rehearsal.active is None:
            return super().__torch_function__(func, types, args, kwargs)
        return Rehearsal.active.run(func, args, kwargs or {})


def claim(found: Any) -> Any:
    """The same with every tensor claimed."""
    return tree_map_only(Tensor, _claim, found)


def _claim(tensor: Tensor) -> Tensor:
    return tensor if isinstance(tensor, Claimed) or is_fake(tensor) else tensor.as_subclass(Claimed)


def plain(found: Any) -> Any:
    """The same with no tensor claimed."""
    return tree_map_only(Claimed, lambda tensor: tensor.as_subclass(Tensor), found)


def on_cuda(item: Any) -> bool:
    """Whether a tensor, or the name of a device, is CUDA's."""
    if isinstance(item, Tensor):
        return isinstance(item, Claimed)
    device = torch.device(item)
    if device.type == "cuda" and Rehearsal.active is not None:
        Rehearsal.active.check(device)
    return device.type == "cuda"


def in_backward() -> bool:
    return torch._C._current_graph_task_id() != -1


class Rehearsal(TorchFunctionMode):
    """While entered, operations do what they would do on a card of this compute capability."""

    active: "Rehearsal | None" = None

    def __init__(self, capability: tuple[int, int]) -> None:
        super().__init__()
        self.capability = capability
        self.cards = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        self.device = CUDA  # of all claimed tensors
        self.current = 0  # the card of a device without a number
        self.placed = False  # a module was moved to the device
        self.counts = Counts()
        self.capturing = False
        self.on_device = False  # an operation with claimed tensors is running
        self.plans: set[object] = set()  # shapes that cuDNN has made a plan for

    def __torch_function__(self, func, types, args=(), kwargs=None):
        return self.run(func, args, kwargs or {})

    def run(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Do what `func` does, as CUDA would."""
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        name = getattr(func, "__name__", str(func))
        if any(map(is_fake, tensors)):  # of a plan, which computes nothing
            return func(*args, **kwargs)
        if func is Tensor.backward:
            return self._backward(*args, **kwargs)
        if name in MOVES and isinstance(args[0], Tensor):
            return self._move(name, *args, **kwargs)
        if name == "pin_memory":  # of no use to a CPU
            return args[0]
        if kwargs.get("device") is not None:
            return self._make(func, name, args, kwargs)
        if not any(isinstance(tensor, Claimed) for tensor in tensors):
            return func(*args, **kwargs)
        with torch._C.DisableTorchFunction():
            return self._compute(func, name, tensors, args, kwargs)

    def _compute(
        self,
        func: Callable[..., Any],
        name: str,
        tensors: list[Tensor],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """An operation with claimed tensors."""
        if name == "__get__":
            return self._property(func, args[0])
        if name in ("numpy", "__array__"):
            raise TypeError(f"can't convert cuda:0 device type tensor to numpy, {line()}")
        if name in ("__format__", "__repr__", "tolist"):
            self.refuse_or_count(counts.TO_HOST, name)
            return func(plain(args[0]), *args[1:])
        if name == "tensor" and not isinstance(args[0], Tensor):  # of numbers read one by one
            for _ in filter(on_cuda, tensors):
                self.refuse_or_count(counts.WAITS, name)
            return func(plain(args[0]), **kwargs)
        if name == "new_tensor":
            self.refuse_or_count(counts.TO_DEVICE, name)
        self._check_devices(name, args, tensors)
        if func is F.scaled_dot_product_attention:
            return claim(self._attend(attention.Call(*plain(args), **plain(kwargs))))
        if kwargs.get("out_dtype") is not None:
            with self.uncounted():
                found = widened(func, *args, **kwargs)
            self.launched(name)
            return claim(found)
        return self._call(func, args, kwargs)

    def check(self, device: torch.device) -> None:
        """Raise RuntimeError for a card that is not there, Refused for one beside the model's."""
        number = self.current if device.index is None else device.index
        if number >= self.cards:
            raise RuntimeError("CUDA error: invalid device ordinal")
        if self.placed and number != self.device.index:
            raise Refused(f"cuda:{number} beside the model's {self.device}, {line()}")

    def place(self, device: torch.device) -> None:
        """Let all claimed tensors lie on this card, because a module has moved there."""
        self.placed = False
        self.check(device)
        number = self.current if device.index is None else device.index
        self.device, self.placed = torch.device("cuda", number), True

    def refuse_or_count(self, kind: str, name: str) -> None:
        """Count a wait or a copy. Raises Refused inside a capture."""
        if self.capturing:
            raise Refused(f"{name} ({kind}) while a stream is capturing, {line()}")
        self.counts.add(kind, name)

    def _backward(self, loss: Tensor, gradient: Tensor | None = None, **kwargs: Any) -> None:
        """Backward, in which written derivatives and recomputed layers are watched too."""
        with torch._C.DisableTorchFunction():
            loss, gradient = plain((loss, gradient))
        with self:
            torch.autograd.backward(loss, gradient, **kwargs)

    def _property(self, func: Callable[..., Any], tensor: Tensor) -> Any:
        owner = func.__self__.__name__
        if owner in ("device", "is_cpu", "is_cuda"):
            return {"device": self.device, "is_cpu": False, "is_cuda": True}[owner]
        found = func(tensor)
        return claim(found) if isinstance(found, Tensor) else found

    def _make(
        self, func: Callable[..., Any], name: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """A new tensor on the device that `kwargs` names."""
        there = on_cuda(kwargs["device"])
        with torch._C.DisableTorchFunction():
            if there and name in FROM_DATA:
                self.refuse_or_count(counts.TO_DEVICE, name)
            here = {**kwargs, "device": "cpu"} if there else kwargs
            found = self._call(func, plain(args), plain(here), there)
            return claim(found) if there else plain(found)

    def _call(
        self,
        func: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        on_device: bool = True,
    ) -> Any:
        """Call, while `Kernels` (kernels.py) counts what is launched. Results are claimed."""
        fused = func in FUSED
        if fused:
            self.launched(func.__name__)
        with self._on_device(on_device and not fused):
            found = func(*args, **kwargs)
        if isinstance(found, Tensor):
            return _claim(found)
        is_shape = isinstance(found, torch.Size)
        return claim(found) if isinstance(found, tuple | list) and not is_shape else found

    @contextmanager
    def _on_device(self, value: bool) -> Iterator[None]:
        before, self.on_device = self.on_device, value
        try:
            yield
        finally:
            self.on_device = before

    def uncounted(self) -> AbstractContextManager[None]:
        """Inside, operations are the rehearsal's own, and none is counted."""
        return self._on_device(False)

    def launched(self, name: str) -> None:
        """Count an operation that launches a kernel, or records one."""
        self.counts.add(counts.CAPTURED if self.capturing else counts.KERNELS, name)

    def _move(self, name: str, tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """`to` and its kin: another device, another dtype, or both."""
        words = (*args, *kwargs.values())
        places = [word for word in words if isinstance(word, str | torch.device | Tensor)]
        there, here = isinstance(tensor, Claimed), {"cpu": False, "cuda": True}.get(name)
        if here is None:
            here = on_cuda(places[0]) if places else there
        dtypes = [word for word in words if isinstance(word, torch.dtype)]
        dtypes += [place.dtype for place in places if isinstance(place, Tensor)]
        if there != here:
            self.refuse_or_count(counts.TO_DEVICE if here else counts.TO_HOST, name)
        with torch._C.DisableTorchFunction():
            found = plain(tensor)
            if dtypes and dtypes[0] != tensor.dtype:
                # A cast to the host runs on the card, before the copy.
                found = self._call(Tensor.to, (found, dtypes[0]), {}, there or here)
            elif there != here or kwargs.get("copy"):
                found = found.clone()
            else:
                return tensor
            return claim(found) if here else plain(found)

    def _check_devices(self, name: str, args: tuple[Any, ...], tensors: list[Tensor]) -> None:
        """Raise Refused if an operation mixes devices in a way that CUDA does not allow."""
        if in_backward() or name in TWO_DEVICES:
            # The engine hands gradients out as plain tensors, so in backward none is checked.
            if name == "copy_" and isinstance(args[0], Claimed) != isinstance(args[1], Claimed):
                self.refuse_or_count(
                    counts.TO_DEVICE if isinstance(args[0], Claimed) else counts.TO_HOST, name
                )
            return
        if name in INDEXING:
            self._check_index(name, *args[:3])
            return
        for tensor in tensors:
            if isinstance(tensor, Claimed):
                continue
            if tensor.dim() and not isinstance(tensor, attention.CausalBias):
                raise Refused(f"{name}: Expected all tensors to be on the same device, {line()}")
            if self.capturing:  # allowed, but the graph would keep the value of now
                raise Refused(f"{name} with a number on the CPU while capturing, {line()}")

    def _check_index(self, name: str, tensor: Tensor, index: Any, value: Any = None) -> None:
        """The rules of `x[index]` and `x[index] = value`."""
        mine = isinstance(tensor, Claimed)
        indices = [leaf for leaf in tree_leaves(index) if isinstance(leaf, Tensor)]
        for leaf in indices:
            if mine and not isinstance(leaf, Claimed):
                self.refuse_or_count(counts.TO_DEVICE, f"{name} by an index on the CPU")
            if not mine and isinstance(leaf, Claimed) and leaf.dim():
                raise Refused(f"{name}: a CPU tensor by an index on cuda:0, {line()}")
        if isinstance(value, Tensor) and isinstance(value, Claimed) != mine:
            if indices and value.dim():
                raise Refused(f"{name}: the value is on another device, {line()}")
            if value.dim() or not mine:  # one number of the host is an argument of the kernel
                self.refuse_or_count(counts.TO_DEVICE if mine else counts.TO_HOST, name)

    def _attend(self, call: attention.Call) -> Tensor:
        """Attention by the kernel that the card takes."""
        chosen = attention.kernel(call, self.capability)
        masked = " with a mask" if call.mask is not None else ""
        self.counts.add(counts.ATTENTION, chosen + masked)
        self.launched(f"attention by {chosen}")
        if chosen == "efficient" and (bytes_ := attention.padded_bytes(call)):
            self.counts.add(counts.PADDED, "bytes", bytes_)
            self.launched("pad of a mask")
        if chosen == "cudnn" and call.shapes not in self.plans:
            self.plans.add(call.shapes)
            self.counts.add(counts.PLANS, "plan")
        return attention.laid_out(attention.compute(call), call.query, chosen)
