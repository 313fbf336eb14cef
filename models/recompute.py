"""Gradient checkpointing of the layers, by hand, and how to know that memory ran out."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

# What devices say, where the error has no class of its own; cuBLAS and cuDNN of their workspaces.
NO_MEMORY = re.compile("can't allocate memory|not enough memory|out of memory|ALLOC_FAILED")


def prepare(layers: Sequence[nn.Module]) -> None:
    """By hand: transformers' own switch also makes the embeddings require gradients."""
    for layer in layers:
        layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)
        layer.gradient_checkpointing = True  # takes effect in training mode, see below


@contextmanager
def recomputed(layers: Sequence[nn.Module]) -> Iterator[None]:
    """Layers recompute themselves in the backward pass only while this is open: transformers drops
    a KV cache that meets a checkpointed layer in training mode."""
    for layer in layers:
        layer.training = True  # of the layer alone, not of what is in it
    try:
        yield
    finally:
        for layer in layers:
            layer.training = False


def out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory ran out: a GPU's by its class, a CPU's by its text."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or bool(
        NO_MEMORY.search(str(error))
    )
