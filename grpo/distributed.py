"""One step on many processes: each takes a share of the groups, and their gradients are summed.

    torchrun --nproc-per-node 2 train.py --modality MRI

Every process draws the same questions and holds the completions and rewards of the whole step, so
the loss's denominator and every metric are the step's own. A process computes alone only its share
of sampling, judging, and passes through the model. With one process nothing is summed.
"""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from grpo.settings.errors import UsageError, hushed

# How long a process waits for the others: to meet, and for the slowest one at every exchange (in
# scoring there is one after each batch of answers). One that died is noticed at once: gloo's
# connection breaks, and torchrun ends the processes that wait in NCCL.
MEETING, PATIENCE = timedelta(minutes=10), timedelta(hours=1)


@contextmanager
def processes() -> Iterator[None]:
    """Run the body on every process that torchrun started; without torchrun, on this one.

    Only rank 0 prints. The first process that fails reports its error; the others exit silently.
    """
    if world() == 1:
        yield
        return
    store = _join()
    try:
        with hushed(rank() > 0), hushed(rank() > 0, redirect_stdout):
            yield
            gathered(None)  # none leaves before all are done
    except BaseException as error:
        if not _first(store):
            raise SystemExit(getattr(error, "code", 2)) from None
        raise
    dist.destroy_process_group()


def _join() -> dist.Store:
    """Meet the other processes; each takes a GPU of its own. Raises UsageError."""
    backend, group = "gloo", {"rank": rank(), "world_size": world(), "timeout": PATIENCE}
    try:
        if torch.cuda.is_available():
            backend = "cpu:gloo,cuda:nccl"
            own = int(os.environ.get("LOCAL_RANK", rank()))
            torch.cuda.set_device(own % torch.cuda.device_count())
        store, *_ = next(dist.rendezvous("env://", timeout=MEETING))
        dist.init_process_group(backend, store=store, **group)
    except (RuntimeError, ValueError) as error:
        problem = f"{world()} processes are to meet (WORLD_SIZE), and do not: {error}"
        raise UsageError(f"{problem}; start them with torchrun, or unset WORLD_SIZE") from None
    return store


def connect(device: torch.device) -> None:
    """Connect the GPUs of a run's processes; `device` is this one's. On CPUs nothing is to do.

    Before the first step, or two processes on one GPU would be met at the first sum, after a whole
    rollout, as an error of NCCL. Raises UsageError if not each has a GPU of its own.
    """
    if world() == 1:
        return
    own = str(torch.cuda.get_device_properties(device).uuid) if device.type == "cuda" else None
    different = {*gathered(own)} - {None}
    if different and len(different) < world():
        problem = f"{world()} processes need a GPU each, and have {len(different)}"
        remedy = "use --device cuda and one process a GPU, or --device cpu"
        raise UsageError(f"--device {device}: {problem}; {remedy}")
    if different:
        summed(torch.zeros(1, device=device))


def _first(store: dist.Store) -> bool:
    """Whether no other process has asked this before; True as well if the store is gone."""
    with suppress(RuntimeError):
        store.set_timeout(timedelta(seconds=10))
        return store.add("failed", 1) == 1
    return True


def world() -> int:
    """The number of processes (torchrun's WORLD_SIZE)."""
    return int(os.environ.get("WORLD_SIZE", 1))


def rank() -> int:
    """This process's number; rank 0 writes all files and prints."""
    return int(os.environ.get("RANK", 0))


@contextmanager
def alone() -> Iterator[None]:
    """Inside, this process does all of the work of a step and exchanges nothing."""
    before = os.environ.pop("WORLD_SIZE", None), os.environ.pop("RANK", None)
    try:
        yield
    finally:
        named = zip(("WORLD_SIZE", "RANK"), before, strict=True)
        os.environ.update({name: value for name, value in named if value is not None})


def share(items: Sequence[Any]) -> list[Any]:
    """This process's part of the items: every `world()`-th, so perhaps none."""
    return list(items[rank() :: world()])


def in_order(shares: Sequence[Sequence[Any]]) -> list[Any]:
    """The inverse of `share`: the parts of all processes as one list.

    >>> in_order([["a", "c", "e"], ["b", "d"]])
    ['a', 'b', 'c', 'd', 'e']
    """
    size, n = len(shares), sum(map(len, shares))
    return [shares[i % size][i // size] for i in range(n)]


@contextmanager
def _or_end() -> Iterator[None]:
    """Turn the error of an exchange whose other processes have died into one line."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:  # gloo's and NCCL's
        said = str(error).partition("\n")[0]
        late = f" or {PATIENCE} late" if "imed out" in said else ""
        raise UsageError(f"another process of this run is gone{late} ({said})") from None


@_or_end()
def summed(values: Tensor) -> Tensor:
    """The sum over all processes of a tensor of one shape, in place and in its own precision.

    By NCCL for a tensor on a GPU, by gloo for one on a CPU: as the policy's device is everywhere.
    """
    if world() > 1:
        dist.all_reduce(values)
    return values


def sum_gradients(parameters: Sequence[Tensor]) -> None:
    """Sum the float32 gradients over all processes, in one message."""
    if world() == 1:
        return
    flat = summed(torch.cat([p.grad.flatten() for p in parameters]))
    for p, part in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        p.grad.copy_(part.view_as(p))


@_or_end()
def gathered(record: Any) -> list[Any]:
    """Every process's record, by rank, through gloo: no GPU has a part in it.

    Sent as JSON: unlike pickle, reading it runs no code.
    """
    if world() == 1:
        return [record]
    message = json.dumps(record).encode()
    longest = torch.tensor(len(message))
    dist.all_reduce(longest, dist.ReduceOp.MAX)
    padded = bytearray(message.ljust(int(longest)))  # to equal size: JSON may end in blanks
    sent = torch.frombuffer(padded, dtype=torch.uint8)
    messages = [torch.empty_like(sent) for _ in range(world())]
    dist.all_gather(messages, sent)
    return [json.loads(bytes(received.numpy())) for received in messages]


def by_all(answer: Callable[[Sequence[Any]], Sequence[Any]], *items: Sequence[Any]) -> list[Any]:
    """`answer(*items)`, each process its share; one answer, ready for JSON, an item."""
    own = [share(column) for column in items]
    return in_order(gathered(list(answer(*own)) if own[0] else []))


def total(counts: dict[str, float]) -> dict[str, float]:
    """Counts of all processes, added up by name."""
    all_counts = gathered(counts)
    return {name: sum(one[name] for one in all_counts) for name in counts}
