"""What a CUDA graph does, on a CPU: the operations of a step with their own storages, again.

Python runs once, while recording. A replay knows tensors by their memory alone: what was bound to
another tensor since, or moved to another storage, it does not see. As on a GPU, recording executes
nothing, and an operation whose result the host would have to wait for is an error.
"""

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only

WAITS = (
    "_local_scalar_dense", "item", "is_nonzero", "nonzero", "nonzero_static", "equal", "unique2",
    "_unique2", "masked_select", "bincount", "repeat_interleave.Tensor", "lift_fresh", "allclose",
)  # fmt: skip


class HostWaits(Exception):
    """A capture would have failed here."""


class Called:
    """A step without any recording: each replay calls it again."""

    def __init__(self, step: Any, device: torch.device, beside: Any) -> None:
        self.replay = step
        step()


class Recorded(TorchDispatchMode):
    """Stands in for cuda_graph.Graph. `made` lists all, in the order of recording."""

    made: list["Recorded"]

    def __init__(self, step: Any, device: torch.device, beside: "Recorded | None") -> None:
        super().__init__()
        self.made.append(self)
        self.replays = 0
        step()
        self.operations: list[tuple[Any, Any, Any, Any]] = []
        self._before: dict[int, tuple[Any, Any]] = {}  # what is written: storage, its bytes
        with self:
            step()
        for storage, content in self._before.values():
            storage.copy_(content)

    @classmethod
    def new(cls) -> type["Recorded"]:
        """The class with a list of its own."""
        return type("Recorded", (cls,), {"made": []})

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        with self:  # what an operation is made of may wait, too
            found = func.decompose(*args, **kwargs)
        if found is not NotImplemented:
            return found
        masks = any(
            isinstance(item, Tensor) and item.dtype == torch.bool
            for item in (args[1] if "index" in str(func) and isinstance(args[1], list) else [])
        )
        name = str(func).removeprefix("aten.")
        if masks or name in WAITS or name.rsplit(".", 1)[0] in WAITS:
            raise HostWaits(str(func))
        self._keep_what_is_written(func, args, kwargs)
        result = func(*args, **kwargs)
        # An alias keeps the storage of now, whatever the tensor's `data` is set to later.
        alias = tree_map_only(Tensor, lambda item: item.detach(), (args, kwargs, result))
        self.operations.append((func, *alias))
        return result

    def _keep_what_is_written(self, func: Any, args: Any, kwargs: Any) -> None:
        for i, argument in enumerate(func._schema.arguments):
            value = kwargs.get(argument.name, args[i] if i < len(args) else None)
            if argument.alias_info is not None and argument.alias_info.is_write:
                storage = value.untyped_storage()
                self._before.setdefault(storage.data_ptr(), (storage, storage.clone()))

    def replay(self) -> None:
        self.replays += 1
        for func, args, kwargs, expected in self.operations:
            pairs = zip(tensors(func(*args, **kwargs)), tensors(expected), strict=True)
            for new, old in pairs:
                if new.data_ptr() != old.data_ptr():  # neither a view nor in place
                    old.copy_(new)

    def reads(self) -> set[int]:
        """Addresses of all storages that are read and that no recorded operation made."""
        found, made = set(), set()
        for _, args, kwargs, result in self.operations:
            found |= {address(item) for item in tensors((args, kwargs))} - made
            made |= {address(item) for item in tensors(result)} - found
        return found


def tensors(item: Any) -> list[Tensor]:
    return [leaf for leaf in tree_flatten(item)[0] if isinstance(leaf, Tensor)]


def address(item: Tensor) -> int:
    return item.untyped_storage().data_ptr()
