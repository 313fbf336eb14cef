"""One card for each process of this machine, and NCCL between them, which gloo stands in for."""

import os
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from tests.rehearsal.claimed import Claimed, Refused, Rehearsal, plain
from tests.rehearsal.counts import COLLECTIVES, line


def processes(rehearsal: Rehearsal, card: SimpleNamespace) -> dict[str, Any]:
    """torch.cuda's names for the devices of this machine."""

    def number(device: Any = None) -> int:
        if isinstance(device, int):
            return device
        index = None if device is None else torch.device(device).index
        return rehearsal.current if index is None else index

    def set_device(device: Any) -> None:
        rehearsal.check(torch.device("cuda", number(device)))
        rehearsal.current = number(device)

    def properties(device: Any = None) -> SimpleNamespace:
        return SimpleNamespace(**vars(card), uuid=f"GPU-{number(device)}")

    return {
        "device_count": lambda: rehearsal.cards,
        "current_device": lambda: rehearsal.current,
        "set_device": set_device,
        "get_device_properties": properties,
    }


def collectives(rehearsal: Rehearsal) -> dict[str, Any]:
    """torch.distributed's names. A tensor on a card goes through NCCL, which takes one process a
    card: process N of this machine has card N here."""
    real, start = dist.all_reduce, dist.init_process_group

    def init_process_group(backend: str, **kwargs: Any) -> None:
        start(backend.replace("nccl", "gloo"), **kwargs)

    def all_reduce(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
        there = isinstance(tensor, Claimed)
        rehearsal.counts.add(COLLECTIVES, f"all_reduce by {'nccl' if there else 'gloo'}")
        own = int(os.environ.get("LOCAL_RANK", 0))
        if there and own != rehearsal.device.index:
            raise Refused(f"all_reduce: two processes on {rehearsal.device}, {line()}")
        with torch._C.DisableTorchFunction():
            return real(plain(tensor), *args, **kwargs)

    def all_gather(tensors: list[Tensor], tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
        if len({isinstance(each, Claimed) for each in (tensor, *tensors)}) > 1:
            raise Refused(f"all_gather: tensors on two devices, {line()}")
        there = isinstance(tensor, Claimed)
        rehearsal.counts.add(COLLECTIVES, f"all_gather by {'nccl' if there else 'gloo'}")
        with torch._C.DisableTorchFunction():
            return gather(plain(tensors), plain(tensor), *args, **kwargs)

    gather = dist.all_gather
    return {
        "all_gather": all_gather,
        "all_reduce": all_reduce,
        "init_process_group": init_process_group,
    }
