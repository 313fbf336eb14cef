"""The flags that ask about memory, --dry-run and --memory-limit, and how much there is."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Sequence
from pathlib import Path

import psutil  # comes with peft
import torch

from grpo.settings.errors import UsageError

UNITS = {"mb": 10**6, "mib": 2**20, "gb": 10**9, "gib": 2**30}
# Where a container says how much memory it may have ("max": no limit).
CGROUPS = [Path("/sys/fs/cgroup", name) for name in ("memory.max", "memory/memory.limit_in_bytes")]


def memory_flags(words: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """What train.py was asked about memory, which is no setting of a run, and the other words.

    >>> memory_flags(["--dry-run", "--steps", "1", "--memory-limit", "40GB"])
    (Namespace(dry_run=True, memory_limit=40000000000), ['--steps', '1'])
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--dry-run", "--dry_run", action="store_true")
    parser.add_argument("--memory-limit", "--memory_limit", nargs="?", const="")
    found, rest = parser.parse_known_args(words)
    if found.memory_limit is not None:
        found.memory_limit = read_limit(found.memory_limit)
    return found, rest


def read_limit(text: str) -> int:
    """Bytes of 40GB (10^9 bytes each), 40GiB (2^30), 24000MB or MiB. Raises UsageError.

    >>> read_limit("1.5GB"), read_limit("1 mib")
    (1500000000, 1048576)
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([MG]i?B)", text.strip(), re.ASCII | re.IGNORECASE)
    if found and (size := int(float(found[1]) * UNITS[found[2].lower()])):
        return size
    wanted = "expected an amount and its unit, such as 40GB, 40GiB or 24000MB"
    raise UsageError(f"{f'--memory-limit {text}'.rstrip()}: {wanted}")


def available(device: torch.device) -> int:
    """Bytes that this process may have of the device, those that it has already among them: of a
    CPU's memory its share, where torchrun has started several on this machine."""
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise UsageError(f"--device {device}: is not on this machine; name its --memory-limit")
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    texts = [file.read_text().strip() for file in CGROUPS if file.is_file()]
    others = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    free = psutil.virtual_memory().available // others + resident()
    return min([free, *(int(text) // others for text in texts if text.isdecimal())])


def resident() -> int:
    """Bytes of the process that are in memory."""
    return psutil.Process().memory_info().rss
