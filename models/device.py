"""The device: which one, in which dtype, and how to know that it or its memory is lost."""

import re

import torch

from grpo.settings.errors import UsageError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

# The texts of errors that have no class of their own; ALLOC_FAILED is cuBLAS's and cuDNN's.
NO_MEMORY = re.compile("can't allocate memory|not enough memory|out of memory|ALLOC_FAILED")
# After these every later call on the GPU fails in the same way, until the process ends.
GPU_LOST = re.compile(
    "illegal memory access|illegal instruction|misaligned address|device-side assert|launch failure"
)


def pick_device(device: str, there: bool = True) -> torch.device:
    """The device; "auto" takes a GPU if there is one. Also chooses torch's kernels for GPUs, for
    the whole process. Raises UsageError if the device does not exist; one that need not be `there`
    may be missing from this machine."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if not re.fullmatch(r"cpu|cuda(:\d+)?", device, re.ASCII):  # not mps, meta, ...: untested here
        raise UsageError(f"device {device}: unknown; use --device auto, cpu, cuda or cuda:N")
    try:
        picked = torch.device(device)
        if there:
            torch.empty(0, device=picked)
    except (RuntimeError, AssertionError):
        raise UsageError(f"device {device}: is not on this machine; use --device cpu") from None
    # cuDNN's attention plans anew for every shape, some 30 ms each, and lengths never repeat.
    torch.backends.cuda.enable_cudnn_sdp(False)
    # Products of bfloat16 matrices sum in float32, also where the sum is split.
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    return picked


def pick_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """The dtype; "auto" is bfloat16 on a GPU, else float32. Raises UsageError for others."""
    if dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    if dtype not in DTYPES:
        raise UsageError(f"dtype {dtype}: unknown; use auto, {' or '.join(DTYPES)}")
    return DTYPES[dtype]


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out: a GPU's by its class, a CPU's by its text."""
    classes = (MemoryError, torch.OutOfMemoryError)
    return isinstance(error, classes) or bool(NO_MEMORY.search(str(error)))


def gpu_lost(error: BaseException) -> bool:
    """Whether an error says that this process cannot use the GPU any more."""
    return isinstance(error, RuntimeError) and bool(GPU_LOST.search(str(error)))
