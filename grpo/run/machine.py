"""What a run says of the machine it runs on: versions, what "auto" became, memory."""

import platform
import resource
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from grpo.distributed import gathered
from grpo.interfaces import Policy

PACKAGES = ("torch", "transformers", "peft", "safetensors", "pillow", "numpy")


def machinery(policy: Policy) -> dict[str, dict[str, Any]]:
    """What the bits of a run depend on beside its settings: `resolved` (what the flags left to
    "auto") and `versions`."""
    resolved = {"device": str(policy.device), "dtype": str(policy.dtype).removeprefix("torch.")}
    resolved |= {"gradient_checkpointing": policy.checkpointing, "threads": torch.get_num_threads()}
    versions = {name: version(name) for name in PACKAGES}
    return {"resolved": resolved, "versions": versions | {"python": platform.python_version()}}


def warn_of_changes(before: dict[str, Any], now: dict[str, dict[str, Any]]) -> None:
    """Print in one line which of the `machinery` differs from that in the run's config.json."""
    changed = [
        f"{name} was {old}, is {now[part].get(name)}"
        for part in now
        for name, old in before.get(part, {}).items()
        if now[part].get(name) != old
    ]
    if changed:
        print(f"train.py: {'; '.join(changed)}: the same run but for rounding", file=sys.stderr)


def git_commit() -> str | None:
    """The commit of this checkout; None without one, or without git."""
    command, folder = ["git", "rev-parse", "HEAD"], Path(__file__).parent
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() or None


def peak_memory(device: torch.device) -> float:
    """The most memory that the run has held so far, in MB of 2^20 bytes: of the GPU, or of the
    process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kilobytes / (2**20 if sys.platform == "darwin" else 2**10)


def memory_metrics(device: torch.device, cuts: int) -> dict[str, float]:
    """The largest peak of all processes, and how often memory ran out in the step's passes."""
    peak, total = max(gathered(peak_memory(device))), sum(gathered(cuts))
    return {"memory/peak_mb": peak, "memory/cuts": total}
