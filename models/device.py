"""How to know that memory ran out."""

from __future__ import annotations

import re

import torch

# What devices say, where the error has no class of its own; cuBLAS and cuDNN of their workspaces.
NO_MEMORY = re.compile("can't allocate memory|not enough memory|out of memory|ALLOC_FAILED")


def out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory ran out: a GPU's by its class, a CPU's by its text."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or bool(
        NO_MEMORY.search(str(error))
    )
