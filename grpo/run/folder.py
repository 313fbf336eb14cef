"""The run folder: who may write there, whether it is finished, and which runs are alike."""

import dataclasses
import fcntl
import json
import os
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from grpo.distributed import rank
from grpo.report.model_card import write_card
from grpo.run.atomic import write_json
from grpo.settings.config import Config
from grpo.settings.errors import UsageError, writing

# Settings that do not change what is learned; device, threads, gradient_checkpointing and
# cuda_graphs change it by rounding only.
NO_SAY = ("out", "device", "threads", "cache", "trace_steps", "sample_every", "tensorboard")
NO_SAY += ("quiet", "save_every", "keep_checkpoints", "resume", "gradient_checkpointing")
NO_SAY += ("max_skipped_steps", "cuda_graphs", "trace_blind", "report_to")


def check_out(config: Config) -> None:
    """Raise UsageError if --out names a folder with a run: no run is written over another."""
    if not config.out:
        return
    out = f"--out {config.out}"
    with writing(out, "name another folder"), suppress(FileNotFoundError):
        if Path(config.out, "metrics.jsonl").stat().st_size:
            raise UsageError(f"{out}: a run lies there already; --resume auto, or another folder")


def lock(folder: Path, name: str) -> int | None:
    """Keep other processes from `folder` until this one ends, or closes the file that is returned.

    `name` is "train", "evaluate" for predictions/ and evaluation.json, or "reproduce". The lock
    ends with its owner, however that ends; the file's text says who that is. Raises UsageError if
    another process has it. Prints a line if the file system has no locks. Only the first process of
    a run locks.
    """
    if rank():
        return None
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}.lock"
    handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # of all, NFS knows this kind best
    except (BlockingIOError, PermissionError):
        owner = os.read(handle, 200).decode(errors="replace").strip() or "another process"
        remedy = f"wait for its end (if its machine is gone, delete {file})"
        raise UsageError(f"{folder}: {owner} is writing there; {remedy}") from None
    except OSError as error:
        problem = f"cannot be locked ({error.strerror}); start nothing else that writes there"
        print(f"{name}.py: {file} {problem}", file=sys.stderr)
    owner = f"{name}.py, process {os.getpid()} on {os.uname().nodename},"
    os.write(handle, owner.ljust(200).encode())
    return handle


def held(folder: Path, name: str) -> bool:
    """Whether another process holds this lock; asking does not take it.

    False where the file system has no locks.
    """
    with suppress(OSError), (folder / f"{name}.lock").open("rb") as file:
        try:
            os.lockf(file.fileno(), os.F_TEST, 0)
        except (BlockingIOError, PermissionError):
            return True
    return False


def write_summary(run: Path, config: Config, table: dict[str, Any], started: float) -> None:
    """Write summary.json, which says that the run is finished: `table` (its scores, data, memory)
    and time. `started` is the time.monotonic() of the run's start."""
    privileged = config.method == "sft" and config.sft_target == "reasoning"
    table = table | {"privileged": privileged, "steps": config.steps}
    if not rank():
        seconds = round(time.monotonic() - started, 1)
        write_table(run, run / "summary.json", table | {"seconds": seconds})


def write_table(run: Path, file: Path, table: dict[str, Any]) -> None:
    """Write a table as JSON, then the adapter's model card again, which quotes the run's tables."""
    write_json(file, table)
    write_card(run)


def finished(run: Path, steps: int) -> bool:
    """Whether a run made all these steps and was scored."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        return json.loads((run / "summary.json").read_text("utf-8"))["steps"] >= steps
    return False


def newest_run(root: Path = Path("runs")) -> Path:
    """The run under `root` that finished last. Raises UsageError if none has."""
    runs = sorted(root.glob("*/summary.json"), key=lambda file: file.stat().st_mtime)
    if not runs:
        raise UsageError(f"no finished run under {root}/; first: python train.py --modality MRI")
    return runs[-1].parent


def row_name(name: str, taken: Any, config: Config, other: Config, differ: list[str]) -> str:
    """The name of the row of --compare that the run `name`, of settings `other`, gets beside a run
    of settings `config`.

    Raises UsageError if it is among the `taken` ones, or if the two cannot be compared. `differ`
    are the modalities whose test questions differ.
    """
    label, problem = Path(name).resolve().name, ""
    if label in taken:
        problem = "a row of this name is there already; rename its folder"
    elif any(getattr(other, n) != getattr(config, n) for n in ("model", "prompt", "slices")):
        problem = "another base, way of asking or --slices; score it alone, or with the same"
    elif differ:
        problem = f"other test questions of {', '.join(differ)}; give both the same --data, "
        problem += f"--ood and --eval-size, and train with --data-seed {config.data_seed}"
    if problem:
        raise UsageError(f"--compare {name}: {problem}")
    return label


def same_but_seed(config: Config, other: Config) -> bool:
    """Whether two runs differ in the seed and otherwise only in settings of NO_SAY.

    Two runs that start from adapters (--init sft:RUN) are alike only if the runs that made the
    adapters are.
    """
    names = ["seed", *NO_SAY]
    starts = [c.init.removeprefix("sft:") for c in (config, other) if c.init.startswith("sft:")]
    if len(set(starts)) == 2:
        before = [Config.load(Path(start) / "config.json") for start in starts]
        if not same_but_seed(*before):
            return False
        names.append("init")
    free = {name: getattr(config, name) for name in names}
    return other.seed != config.seed and dataclasses.replace(other, **free) == config
