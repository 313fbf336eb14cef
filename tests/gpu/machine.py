"""The card that measure.py runs on, and how its parts take time and memory."""

import platform
import time
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from statistics import median
from typing import Any, NamedTuple

import torch

Row = dict[str, Any]
PACKAGES = ("torch", "transformers", "peft", "numpy", "triton", "trl")
ON_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if ON_GPU else "cpu")


class Size(NamedTuple):
    """How large the work is."""

    prompts: int
    group_size: int
    length: int  # new tokens
    prompt: int  # tokens of a prompt, where it is made up
    side: int  # pixels of an image
    slots: int  # of a row's cache
    vocabulary: int
    repeats: int
    small: bool


FULL = Size(4, 8, 512, 600, 616, 1152, 151_936, repeats=15, small=False)
SMALL = Size(2, 3, 12, 60, 84, 128, 2048, repeats=2, small=True)


def wait() -> None:
    """Until the card has done all it was asked to."""
    if ON_GPU:
        torch.cuda.synchronize()


def milliseconds(function: Callable[[], object], repeats: int) -> float:
    """The median of `repeats` calls, after one that warms up."""
    function()
    taken = []
    for _ in range(repeats):
        wait()
        start = time.perf_counter()
        function()
        wait()
        taken.append(1e3 * (time.perf_counter() - start))
    return median(taken)


def memory() -> Row:
    """The most that was allocated since `forget_peak`, and what torch holds, in GB."""
    if not ON_GPU:
        return {}
    most, held = torch.cuda.max_memory_allocated(), torch.cuda.memory_reserved()
    return {"peak_gb": most / 1e9, "reserved_gb": held / 1e9}


def forget_peak() -> None:
    if ON_GPU:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def cap(gigabytes: float) -> None:
    """Let this process have so much of the card and no more."""
    if ON_GPU:
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, gigabytes * 1e9 / total))


def facts() -> Row:
    """The card and the versions."""
    found: Row = {"python": platform.python_version(), "cuda": torch.version.cuda}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    found["card"] = torch.cuda.get_device_name() if ON_GPU else "none"
    if ON_GPU:
        card = torch.cuda.get_device_properties(0)
        found["capability"] = list(torch.cuda.get_device_capability())
        found["multiprocessors"] = card.multi_processor_count
        found["memory_gb"] = card.total_memory / 1e9
        found["cudnn"] = torch.backends.cudnn.version()
    return found


def profiled(function: Callable[[], object]) -> torch.profiler.profile:
    """A profile of one call: of the host, and of the card where there is one."""
    kinds = [torch.profiler.ProfilerActivity.CPU]
    kinds += [torch.profiler.ProfilerActivity.CUDA] * ON_GPU
    with torch.profiler.profile(activities=kinds) as seen:
        function()
        wait()
    return seen


def kernel_table(function: Callable[[], object], rows: int = 25) -> Iterator[Row]:
    """The kernels that take the most time in one call (on a CPU: the operations)."""
    averages = profiled(function).key_averages()
    spent = "self_device_time_total" if ON_GPU else "self_cpu_time_total"
    for one in sorted(averages, key=lambda event: -getattr(event, spent))[:rows]:
        yield {"kernel": one.key[:90], "count": one.count, "ms": getattr(one, spent) / 1e3}
