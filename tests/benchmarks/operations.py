"""Counts what a piece of code asks of the machine: no clock, so the same on every machine.

    counted = Operations()
    with counted, counted.phase("forward"):
        model(x)
    counted.phases["forward"].flops

FLOPs are those of matrix products and attention, 2 for a multiplication with its addition. Bytes
are those that the kernels read and write if no cache keeps anything between two of them. Launches
are the kernels that a CUDA build starts for the operation: 0 for a view, else what
tests/gpu/kernels.json says, else 1. A wait is an operation whose result the host reads; a copy
moves a tensor between host and device.
"""

import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

ROOT = Path(__file__).parents[2]
KERNELS: dict[str, int] = json.loads((ROOT / "tests/gpu/kernels.json").read_text())["kernels"]
# Operations whose result the host has to know before it can go on.
WAITS = ("_local_scalar_dense", "nonzero", "equal", "masked_select", "_unique2", "bincount")
# Of what these take first they read as many bytes as they give, not all of it.
PICKS = ("embedding", "index", "index_select", "gather", "searchsorted")
# Of what these take first they write as many bytes as they are given, and read nothing.
PUTS = (
    "index_copy_",
    "index_put_",
    "_index_put_impl_",
    "index_fill_",
    "scatter_",
    "fill_",
    "zero_",
)
WHOLE = ("_fused_rms_norm",)  # taken apart but on a GPU
ALLOCATIONS = ("empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided")


@dataclass
class Tally:
    """What one phase asked for."""

    flops: int = 0
    bytes: int = 0
    launches: int = 0
    waits: int = 0
    copies: int = 0

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(**{name: n + getattr(other, name) for name, n in vars(self).items()})


@dataclass
class Place:
    """What happened at which line, and by which operation."""

    waits: Counter[str] = field(default_factory=Counter)
    copies: Counter[str] = field(default_factory=Counter)
    launches: Counter[str] = field(default_factory=Counter)  # by operation
    unknown: Counter[str] = field(default_factory=Counter)  # operations that the table lacks


class Operations(TorchDispatchMode):
    """Counts every operation while it is active, into the phase that is named at that time."""

    def __init__(self) -> None:
        super().__init__()
        self.phases: dict[str, Tally] = {}
        self.places = Place()
        self.now = "other"

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Inside, operations count to this phase; an inner phase takes them from an outer one."""
        before, self.now = self.now, name
        try:
            yield
        finally:
            self.now = before

    def aside(self, function: Callable[[], object]) -> tuple[Tally, Place]:
        """What a call asks for, which is not added to what is counted here."""
        before = self.phases, self.places
        self.phases, self.places = {}, Place()
        try:
            function()
            return sum(self.phases.values(), Tally()), self.places
        finally:
            self.phases, self.places = before

    @property
    def tally(self) -> Tally:
        return self.phases.setdefault(self.now, Tally())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.overloadpacket.__name__ not in WHOLE:
            with self:  # without gradients an operation arrives before it is taken apart
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        result = self.compute(func, args, kwargs)
        self.count(func, args, kwargs, result)
        return result

    def compute(self, func: Any, args: Any, kwargs: Any) -> Any:
        return func(*args, **kwargs)

    def count(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        name = func.overloadpacket.__name__
        kernels = foreach_kernels(args) if name.startswith("_foreach") else KERNELS.get(name, 1)
        if name in WAITS:
            self.wait(name)
        elif by_mask(name, args):
            self.wait(f"{name} by a mask")
            kernels += KERNELS["nonzero"]
        if func.is_view or name in ALLOCATIONS or not kernels:
            return
        tally = self.tally
        tally.launches += kernels
        tally.flops += flops(func, args, kwargs, result)
        tally.bytes += moved(name, args, kwargs, result)
        self.places.launches[name] += kernels
        if name not in KERNELS and not name.startswith("_foreach"):
            self.places.unknown[name] += 1

    def wait(self, what: str) -> None:
        self.tally.waits += 1
        self.places.waits[f"{where()} {what}"] += 1

    def copy(self, what: str) -> None:
        self.tally.copies += 1
        self.places.copies[f"{where()} {what}"] += 1


def foreach_kernels(args: Any) -> int:
    """Kernels for an operation on lists of tensors: as many as its table of addresses has room for
    in a kernel's arguments, and 320 blocks of 65,536 numbers."""
    lists = [x for x in args if isinstance(x, (list, tuple)) and x and isinstance(x[0], Tensor)]
    room = {1: 110, 2: 64, 3: 48, 4: 36, 5: 30}[len(lists)]
    blocks = sum(-(-x.numel() // 65_536) for x in lists[0])
    return max(-(-len(lists[0]) // room), -(-blocks // 320))


def by_mask(name: str, args: Any) -> bool:
    """Whether an index is a mask, whose True entries the host has to count."""
    indices = args[1] if name in ("index", "index_put_", "_index_put_impl_") else ()
    return any(isinstance(index, Tensor) and index.dtype == torch.bool for index in indices)


def flops(func: Any, args: Any, kwargs: Any, result: Any) -> int:
    """Operations of a product or of attention; 0 for all else."""
    name = func.overloadpacket.__name__
    if "attention" in name and "scaled_dot_product" in name:
        return attention_flops(name, args, kwargs)
    # The registry has an operation in place under its other name.
    known = flop_registry.get(getattr(torch.ops.aten, name.rstrip("_"), None))
    return int(known(*args, **kwargs, out_val=result)) if known else 0


def attention_flops(name: str, args: Any, kwargs: Any) -> int:
    """Two products forward; backward four, and the scores once more. A causal kernel skips the
    pairs (query, key) that may not see each other; a mask skips nothing."""
    given = [x for x in args if isinstance(x, Tensor)]
    backward = "backward" in name
    query, key = given[backward], given[backward + 1]  # backward has the gradient before them
    (batch, heads, queries, width), keys = query.shape, key.shape[-2]
    causal = any(x is True for x in args) or kwargs.get("is_causal") is True
    # Efficient attention has a flag of its own before the causal one; it is not causal here.
    causal = causal and "efficient" not in name
    pairs = queries * keys - (queries * (queries - 1) // 2 if causal else 0)
    return 2 * (5 if backward else 2) * batch * heads * pairs * width


def moved(name: str, args: Any, kwargs: Any, result: Any) -> int:
    """Bytes read and written."""
    given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    made = [x for x in tree_leaves(result) if isinstance(x, Tensor)]
    if name in PICKS:
        return sum(map(nbytes, given[1:])) + 2 * sum(map(nbytes, made))
    if name in ("fill_", "zero_"):
        return nbytes(given[0])
    if name in PUTS:
        return sum(map(nbytes, given[1:])) + nbytes(given[-1])
    return sum(map(nbytes, given)) + sum(map(nbytes, made))


def nbytes(x: Tensor) -> int:
    """Bytes in memory: of an axis that repeats the same numbers, once."""
    return x.element_size() * prod(
        size for size, stride in zip(x.shape, x.stride(), strict=True) if stride
    )


def where() -> str:
    """The line of the product that is running now."""
    frame = sys._getframe(1)
    while frame:
        file = Path(frame.f_code.co_filename)
        if file.is_relative_to(ROOT) and "tests" not in file.parts:
            return f"{file.relative_to(ROOT)}:{frame.f_lineno}"
        frame = frame.f_back
    return "elsewhere"
