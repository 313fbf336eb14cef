"""A machine with one card, as far as torch.cuda and nn.Module say, for as long as it is entered."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed
import torch.utils.checkpoint
from torch import Tensor, nn
from torch.nn.attention.bias import CausalBias
from torch.utils._python_dispatch import _disable_current_modes

import models.linear
from tests.rehearsal.claimed import Claimed, Rehearsal
from tests.rehearsal.counts import SYNCHRONISED
from tests.rehearsal.graphs import graph_classes
from tests.rehearsal.kernels import Kernels
from tests.rehearsal.processes import collectives, processes

GB = 10**9
CARDS = {
    "sm80": SimpleNamespace(
        name="NVIDIA A100-PCIE-40GB", major=8, minor=0, total_memory=40 * GB,
        multi_processor_count=108,
    ),
    "sm90": SimpleNamespace(
        name="NVIDIA H100 80GB HBM3", major=9, minor=0, total_memory=80 * GB,
        multi_processor_count=132,
    ),
}  # fmt: skip


@contextmanager
def rehearsed(card: str) -> Iterator[Rehearsal]:
    """Inside, torch has one CUDA device for each process of this machine, a card of CARDS;
    afterwards all is as before.

    Tensors made inside must not be used afterwards.
    """
    properties = CARDS[card]
    rehearsal = Rehearsal((properties.major, properties.minor))
    switches = torch.backends.cuda.cudnn_sdp_enabled()
    reduced = torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction
    with pytest.MonkeyPatch.context() as patch:
        _patch_torch(patch, rehearsal, properties)
        patch.setattr(Rehearsal, "active", rehearsal)
        try:
            with Kernels(rehearsal), rehearsal:
                yield rehearsal
        finally:
            torch.backends.cuda.enable_cudnn_sdp(switches)
            torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = reduced


def _patch_torch(patch: pytest.MonkeyPatch, rehearsal: Rehearsal, card: SimpleNamespace) -> None:
    names = _memory(card) | graph_classes(rehearsal) | processes(rehearsal, card)
    names |= {
        "is_available": lambda: True,
        "get_device_capability": lambda device=None: rehearsal.capability,
        "get_device_name": lambda device=None: card.name,
        "is_bf16_supported": lambda *_: True,
        "synchronize": lambda device=None: rehearsal.refuse_or_count(SYNCHRONISED, "synchronize"),
    }
    for name, value in names.items():
        patch.setattr(torch.cuda, name, value)
    for name, value in collectives(rehearsal).items():
        patch.setattr(torch.distributed, name, value)
    patch.setattr(nn.Module, "to", _moving(nn.Module.to, rehearsal))
    _patch_lists_of_tensors(patch, rehearsal)
    # A CUDA build of torch would ask the driver, which is not there.
    health_check = "_accelerator_graph_capture_health_check"
    patch.setattr(torch.optim.Optimizer, health_check, lambda self: None)
    # Recomputed tensors are compared by device too: what autograd kept need not be claimed.
    frame = torch.utils.checkpoint._CheckpointFrame
    patch.setattr(frame, "check_recomputed_tensors_match", lambda *_: None)
    # No tensor of a class of its own can be made while `Kernels` watches how it is made.
    patch.setattr(CausalBias, "__new__", _new_bias)
    # Its own way of calling would hide the operations inside; on a GPU it changes nothing.
    patch.setattr(models.linear.Widening, "__torch_function__", _straight)
    # Gradients in a backward pass are plain tensors. A GPU needs no float32 copies for them.
    patch.setattr(models.linear, "has_bfloat16", lambda: True)


def _patch_lists_of_tensors(patch: pytest.MonkeyPatch, rehearsal: Rehearsal) -> None:
    """CUDA has kernels for many small tensors at once, which torch takes by class and device."""
    for name in ("torch.utils._foreach_utils", "torch.optim.optimizer"):
        module = import_module(name)
        types = [*module._foreach_supported_types, Claimed]
        patch.setattr(module, "_foreach_supported_types", types)
    for name in ("torch.optim.optimizer", "torch.nn.utils.clip_grad"):
        module = import_module(name)
        grouped = partial(_grouped, rehearsal, module._group_tensors_by_device_and_dtype)
        patch.setattr(module, "_group_tensors_by_device_and_dtype", grouped)


def _grouped(
    rehearsal: Rehearsal, real: Any, lists: Any, *more: Any
) -> dict[tuple[torch.device, torch.dtype], Any]:
    """Tensors by device and dtype, with the device that they claim."""
    return {
        (rehearsal.device if isinstance(found[0][0][0], Claimed) else device, dtype): found
        for (device, dtype), found in real(lists, *more).items()
    }


def _memory(card: SimpleNamespace) -> dict[str, Any]:
    """torch.cuda's figures of memory: all is free, always."""
    total = card.total_memory
    return {
        "empty_cache": lambda: None,
        "reset_peak_memory_stats": lambda device=None: None,
        "mem_get_info": lambda device=None: (total, total),
        "memory_reserved": lambda device=None: 0,
        "memory_allocated": lambda device=None: 0,
        "max_memory_allocated": lambda device=None: 1,
        "max_memory_reserved": lambda device=None: 1,
    }


def _new_bias(cls: type[CausalBias], *_: Any) -> CausalBias:
    with _disable_current_modes():
        return Tensor.__new__(cls)


def _straight(self: Any, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
    return func(*args, **(kwargs or {}))


def _moving(real: Any, rehearsal: Rehearsal) -> Any:
    """nn.Module.to whose parameters and buffers claim to lie on a card. A tied parameter stays
    one; those that share memory in another way no longer do, as where a GPU gets a copy of each."""

    def to(module: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
        words = (*args, *kwargs.values())
        places = [word for word in words if isinstance(word, str | torch.device)]
        if not places or torch.device(places[0]).type != "cuda":
            return real(module, *args, **kwargs)
        rehearsal.place(torch.device(places[0]))
        made: dict[int, tuple[Tensor, Tensor]] = {}  # the old one too, so that its id stays taken
        for part in module.modules():
            for name, old in part._parameters.items():
                if old is not None and id(old) not in made:
                    new = nn.Parameter(old.data.clone().as_subclass(Claimed), old.requires_grad)
                    made[id(old)] = new, old
                if old is not None:
                    part._parameters[name] = made[id(old)][0]
            for name, old in part._buffers.items():
                if old is not None:
                    part._buffers[name] = old.clone().as_subclass(Claimed)
        return module

    return to
