"""Run a user's file of rewards as a plain program that cannot change the run.

The file may do what any Python program may: import the modules beside it, change the directory or
the environment, switch torch's gradients off, start processes, keep a client from call to call.
What it sets for the whole process holds while the file or one of its functions runs, and the run
has its own settings. Seeds are not among them: the run draws all random numbers from generators of
its own.
"""

import asyncio
import atexit
import copy
import importlib.util
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

# One event loop for the run: a lock or a client belongs to the loop that it was first used in.
LOOP = asyncio.Runner()
atexit.register(LOOP.close)
# What torch.get_NAME reads and torch.set_NAME sets.
TORCH = ("default_dtype", "num_threads", "deterministic_debug_mode")


Chosen = dict[Callable[[Any], Any], Any]  # what a file has set: how it is set, and its value


def run_file(path: Path) -> tuple[ModuleType, Chosen]:
    """Run a user's file once; return its module and what it has set. Raises what it raises."""
    chosen: Chosen = {}
    module = ModuleType(_free_name(path))
    sys.modules[module.__name__] = module  # pickle and dataclasses look it up there
    module.__file__ = str(path)
    block = partial(signal.pthread_sigmask, signal.SIG_BLOCK, [signal.SIGTERM])
    unblock = partial(signal.pthread_sigmask, signal.SIG_UNBLOCK, [signal.SIGTERM])
    os.register_at_fork(before=block, after_in_parent=unblock, after_in_child=_end_with_the_run)
    with _apart(chosen):
        sys.path = [str(path.parent), *sys.path]
        asyncio.set_event_loop(LOOP.get_loop())  # for what the file makes while it is run
        # Compiled and not imported: an import would write __pycache__ beside the user's file.
        exec(compile(path.read_bytes(), str(path), "exec"), module.__dict__)
    return module, chosen


def call(function: Callable[..., Any], chosen: Chosen, /, **arguments: Any) -> Any:
    """Return what a function of a file returns; it gets copies, so it may change its arguments."""
    with _apart(chosen):
        values = function(**copy.deepcopy(arguments))
        return LOOP.run(values) if asyncio.iscoroutine(values) else values


@contextmanager
def _apart(chosen: Chosen) -> Iterator[None]:
    """Run the body with the settings that the file chose, then put the run's back."""
    settings = _settings()
    ours = {put: read() for put, read in settings.items()}
    for put, value in chosen.items():
        put(value)
    try:
        yield
    finally:
        theirs = {put: read() for put, read in settings.items()}
        chosen.clear()
        # Nothing is set to what it is already: even that could change how numbers round.
        chosen |= {put: value for put, value in theirs.items() if value != ours[put]}
        for put in chosen:
            put(ours[put])


def _settings() -> dict[Callable[[Any], Any], Callable[[], Any]]:
    """Return how each setting of the process is set, and how it is read."""
    import torch

    def set_device(device: Any) -> None:
        # None is the CPU without the context of a device, which slows every call down.
        torch.set_default_device(None if device.type == "cpu" else device)

    settings = {
        os.chdir: os.getcwd,
        _set_environment: os.environ.copy,
        set_device: torch.get_default_device,
        partial(setattr, warnings, "filters"): lambda: [*warnings.filters],
        torch.set_grad_enabled: torch.is_grad_enabled,
        torch.set_anomaly_enabled: torch.is_anomaly_enabled,
    }
    for name in TORCH:
        settings[getattr(torch, f"set_{name}")] = getattr(torch, f"get_{name}")
    cudnn, cuda, mkldnn = torch.backends.cudnn, torch.backends.cuda, torch.backends.mkldnn
    attributes = [(sys, "path"), (cudnn, "benchmark"), (cudnn, "deterministic")]
    attributes += [(cuda.matmul, "fp32_precision"), (mkldnn.matmul, "fp32_precision")]
    for owner, name in attributes:
        settings[partial(setattr, owner, name)] = partial(getattr, owner, name)
    for number in (signal.SIGINT, signal.SIGTERM):
        settings[partial(signal.signal, number)] = partial(signal.getsignal, number)
    return settings


def _set_environment(values: dict[str, str]) -> None:
    """Change the environment to these variables. It is never empty: threads may read it."""
    for name in os.environ.keys() - values.keys():
        del os.environ[name]
    os.environ.update(values)


def _free_name(path: Path) -> str:
    """Return a module's name for the file: its own, by which other processes can import it, or if
    another module has that name, one with a number."""
    name = path.stem.replace(".", "_")
    there = sys.modules.get(name) or importlib.util.find_spec(name)
    place = getattr(there, "__file__", None) or getattr(there, "origin", None)
    return name if there is None or place == str(path) else f"{name}_{hash(path)}"


def _end_with_the_run() -> None:
    """In a process that was forked, undo the run's handlers: the run stops at the next step, and a
    pool then ends its processes by SIGTERM. One that came too early is waiting."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
