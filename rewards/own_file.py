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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from types import ModuleType
from typing import Any

# One event loop for the run: a lock or a client belongs to the loop that it was first used in.
LOOP = asyncio.Runner()
atexit.register(LOOP.close)
# What torch.get_NAME reads and torch.set_NAME sets.
TORCH = ("default_dtype", "num_threads", "float32_matmul_precision", "deterministic_debug_mode")


class OwnFile:
    """A user's file, run once, as a module. Raises whatever the file raises."""

    def __init__(self, path: Path, source: bytes) -> None:
        self._chosen: dict[Callable, Any] = {}  # the settings that the file has changed
        self.module = ModuleType(_free_name(path))
        sys.modules[self.module.__name__] = self.module  # pickle and dataclasses look it up there
        self.module.__file__ = str(path)
        os.register_at_fork(
            before=partial(signal.pthread_sigmask, signal.SIG_BLOCK, [signal.SIGTERM]),
            after_in_parent=partial(signal.pthread_sigmask, signal.SIG_UNBLOCK, [signal.SIGTERM]),
            after_in_child=_end_with_the_run,
        )
        with self._apart():
            sys.path = [str(path.parent), *sys.path]
            asyncio.set_event_loop(LOOP.get_loop())  # for what the file makes while it is run
            # Compiled and not imported: an import would write __pycache__ beside the user's file.
            exec(compile(source, str(path), "exec"), self.module.__dict__)

    def call(self, function: Callable[..., Any], /, **arguments: Any) -> Any:
        """Return what a function of the file returns; it gets copies, so it may change them."""
        with self._apart():
            return finished(function(**copy.deepcopy(arguments)))

    @contextmanager
    def _apart(self) -> Iterator[None]:
        """Run the body with the settings that the file chose, then put the run's back."""
        settings = _settings()
        ours = {put: read() for put, read in settings.items()}
        for put, value in self._chosen.items():
            put(value)
        try:
            yield
        finally:
            theirs = {put: read() for put, read in settings.items()}
            # Nothing is set to what it is already: even that could change how numbers round.
            self._chosen = {put: value for put, value in theirs.items() if value != ours[put]}
            for put in self._chosen:
                put(ours[put])


@cache
def own_file(path: Path, source: bytes) -> OwnFile:
    """Return the file as a module that is run once, however many of its functions are rewards."""
    return OwnFile(path, source)


def finished(values: Any) -> Any:
    """Return the values that a reward function returned; a coroutine is run to its end."""
    return LOOP.run(values) if asyncio.iscoroutine(values) else values


def _settings() -> dict[Callable[[Any], Any], Callable[[], Any]]:
    """Return how each setting of the process is set, and how it is read."""
    import torch

    def set_device(device: Any) -> None:
        # None is the CPU without the context of a device, which slows every call down.
        torch.set_default_device(None if device.type == "cpu" else device)

    cudnn = torch.backends.cudnn
    settings = {
        os.chdir: os.getcwd,
        _set_environment: os.environ.copy,
        set_device: torch.get_default_device,
        torch.set_grad_enabled: torch.is_grad_enabled,
        torch.set_anomaly_enabled: torch.is_anomaly_enabled,
    }
    for name in TORCH:
        settings[getattr(torch, f"set_{name}")] = getattr(torch, f"get_{name}")
    for owner, name in ((sys, "path"), (cudnn, "benchmark"), (cudnn, "deterministic")):
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
