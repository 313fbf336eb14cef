"""The run folder: a new one, the newest one, and what a run says of its machine."""

from __future__ import annotations

import dataclasses
import json
import platform
import resource
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from grpo.interfaces import Policy
from grpo.settings.config import Config
from grpo.settings.errors import UsageError
from grpo.settings.flags import flag

PACKAGES = ("torch", "transformers", "peft", "safetensors", "pillow", "numpy")
# Settings without a say in what a run learns (device, threads, checkpointing: but for rounding).
NO_SAY = ("out", "device", "threads", "cache", "trace_steps", "sample_every", "tensorboard")
NO_SAY += ("quiet", "save_every", "keep_checkpoints", "resume", "gradient_checkpointing")
NO_SAY += ("max_skipped_steps",)


def check_out(config: Config) -> None:
    """A run is never written over."""
    try:
        taken = config.out and (Path(config.out) / "metrics.jsonl").stat().st_size
    except FileNotFoundError:
        taken = False
    except OSError as error:
        raise UsageError(f"--out {config.out}: {error.strerror}; name another folder") from None
    if taken:
        problem = "a run lies there already"
        raise UsageError(f"--out {config.out}: {problem}; --resume auto, or name another folder")


def run_folder(config: Config, policy: Policy, run: Path | None = None) -> Path:
    """A run's folder (None: a new one) with its config.json: flags, and what "auto" became.

    Says so where a run goes on with other machinery than before. Raises UsageError.
    """
    name = (
        f"{time.strftime('%Y%m%d-%H%M%S')}-{config.recipe}-{config.modality}-g{config.group_size}"
    )
    new = run is None
    run = run or (Path(config.out) if config.out else Path("runs") / name)
    versions = {name: version(name) for name in PACKAGES} | {"python": platform.python_version()}
    machinery = {"resolved": resolved(policy), "versions": versions}
    try:
        if new:
            run.mkdir(parents=True, exist_ok=config.out is not None)
        else:
            before = json.loads((run / "config.json").read_text("utf-8"))
            say_of_machinery(before, machinery)
        part = run / "config.json.part"
        config.save(part, **machinery, git_commit=git_commit())
        part.replace(run / "config.json")
    except OSError as error:
        problem = f"cannot write there ({error.strerror})"
        raise UsageError(f"--out {run}: {problem}; name another folder") from None
    return run


def resolved(policy: Policy) -> dict[str, Any]:
    """What the flags left to "auto"."""
    return {
        "device": str(policy.device),
        "dtype": str(policy.dtype).removeprefix("torch."),
        "gradient_checkpointing": policy.checkpointing,
        "threads": torch.get_num_threads(),
    }


def say_of_machinery(before: dict[str, Any], now: dict[str, dict[str, Any]]) -> None:
    """Bits depend on more than the settings; which of it has changed, in one line."""
    changed = [
        f"{name} was {old}, is {now[part].get(name)}"
        for part in now
        for name, old in before.get(part, {}).items()
        if now[part].get(name) != old
    ]
    if changed:
        what = "; ".join(changed)
        print(f"train.py: {what}: the same run but for rounding", file=sys.stderr)


def finished(run: Path, steps: int) -> bool:
    """Whether a run made all these steps and was scored."""
    try:
        return json.loads((run / "summary.json").read_text("utf-8"))["steps"] >= steps
    except (OSError, ValueError, KeyError, TypeError):
        return False


def starting_adapter(config: Config) -> Path | None:
    """The adapter folder that --init sft:RUN names.

    Another seed would split real images otherwise, and the adapter have seen what is now the test.
    """
    if not config.init.startswith("sft:"):
        return None
    run = Path(config.init.removeprefix("sft:"))
    if not (run / "adapter").is_dir():
        raise UsageError(f"--init {config.init}: no folder {run}/adapter; name a finished run")
    before = Config.load(run / "config.json")
    for name in ("data", "modality", "data_seed"):
        old, new = getattr(before, name), getattr(config, name)
        if old != new:
            raise UsageError(
                f"--init {config.init}: it had {flag(name)} {old}, not {new}; use the same"
            )
    return run / "adapter"


def newest_run(root: Path = Path("runs")) -> Path:
    """The run under `root` that finished last."""
    runs = sorted(root.glob("*/summary.json"), key=lambda file: file.stat().st_mtime)
    if not runs:
        raise UsageError(
            f"no finished run under {root}/; train one: python train.py --modality MRI"
        )
    return runs[-1].parent


def git_commit() -> str | None:
    """The commit of this checkout, where there is one."""
    where = Path(__file__).parents[2]
    try:
        asked = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=where, capture_output=True, text=True
        )
    except OSError:
        return None
    return asked.stdout.strip() or None


def peak_memory(device: torch.device) -> float:
    """Most memory the run held so far, in MB: of the GPU, or of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kilobytes / (2**20 if sys.platform == "darwin" else 2**10)


def same_but_seed(config: Config, other: Config) -> bool:
    """Whether two runs differ in nothing but the seed, and what has no say in the result.

    Runs that start from other runs' adapters do if those do.
    """
    names = ["seed", *NO_SAY]
    starts = [of.init.removeprefix("sft:") for of in (config, other) if of.init[:4] == "sft:"]
    if len(set(starts)) == 2:
        before = [Config.load(Path(start) / "config.json") for start in starts]
        if not same_but_seed(*before):
            return False
        names.append("init")
    free = {name: getattr(config, name) for name in names}
    return other.seed != config.seed and dataclasses.replace(other, **free) == config


def write_json(path: Path, record: dict[str, Any]) -> None:
    """Write a record whole or not at all."""
    write_whole(path, (json.dumps(record, indent=2) + "\n").encode())


def write_whole(path: Path, content: bytes) -> None:
    """All of it or nothing: a run that is cut off leaves no half of a file under its name."""
    part = path.with_name(f"{path.name}.part")
    part.write_bytes(content)
    part.replace(path)
