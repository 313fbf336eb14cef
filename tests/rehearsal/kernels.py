"""What operations launch and wait for, seen below the names that Python has for them."""

from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import is_fake
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.rehearsal import counts
from tests.rehearsal.claimed import Rehearsal, in_backward

# No kernel: memory is taken, or a tensor is looked at in another way. Views are found by schema.
NO_KERNEL = {
    "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_unsafe_view",
    "lift_fresh", "set_", "resize_", "detach_", "is_same_size", "_has_compatible_shallow_copy_type",
}  # fmt: skip
READS = {  # the host waits for a value or for a shape
    "_local_scalar_dense", "nonzero", "masked_select", "_unique", "_unique2", "unique_dim",
    "unique_consecutive", "equal", "bincount",
}  # fmt: skip


class Kernels(TorchDispatchMode):
    """Counts what an operation launches and waits for, below Python's names for it.

    Also what autograd does by itself. An operation counts once, however many kernels it has.
    """

    def __init__(self, rehearsal: Rehearsal) -> None:
        super().__init__()
        self.rehearsal = rehearsal

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        on_device = self.rehearsal.on_device
        if on_device or (in_backward() and not any(map(is_fake, tree_leaves(args)))):
            name = func._schema.name.removeprefix("aten::")
            if waits(func, name, args):
                self.rehearsal.refuse_or_count(counts.WAITS, name)
            elif launches(func, name):
                self.rehearsal.launched(name)
        return func(*args, **(kwargs or {}))


def waits(func: Any, name: str, args: tuple[Any, ...]) -> bool:
    """Whether the host waits for the card in this operation."""
    if name in READS:
        return True
    if name == "repeat_interleave":
        return func._overloadname == "Tensor"
    if name not in ("index", "index_put_", "index_put", "_index_put_impl_"):
        return False
    masks = any(isinstance(at, Tensor) and at.dtype == torch.bool for at in args[1])
    one_number = name != "index" and args[2].dim() == 0  # then it is masked_fill
    return masks and not one_number


def launches(func: Any, name: str) -> bool:
    """Whether an operation launches a kernel: it is no view and does more than take memory."""
    aliases = [result.alias_info for result in func._schema.returns]
    is_view = any(alias is not None and not alias.is_write for alias in aliases)
    return not is_view and name not in NO_KERNEL
