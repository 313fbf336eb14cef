"""A disk that fills up while a run writes to it: one clear line, nothing lost. By hand, as root:

    python tests/campaigns/disk_full.py

Each attempt trains on a small file system of its own (a tmpfs, which takes the right to mount one),
of which so much is taken up that it fills in the midst of the run: while a checkpoint is saved, a
trace or a line of metrics written. Then room is made, the same command goes on with `--resume
auto`, and the run is compared with one that always had room. Writes
tests/campaigns/results/disk_full.json.
"""

import argparse
import json
import os
import platform
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402 (the path comes first)

import train  # noqa: E402
from grpo.run.checkpoint import checkpoints, newest  # noqa: E402
from grpo.settings.errors import UsageError, exit_on_usage_error  # noqa: E402
from tests.campaigns.kill import FLAGS, fork  # noqa: E402
from tests.resuming import differences, lines  # noqa: E402

SIZE = 32 << 20  # bytes of the file system; a run takes 5 MB of it


def trained(flags: list[str], log: Path) -> tuple[int, str]:
    """Exit code of train.py as a user runs it, and what it said."""

    def go() -> None:
        with log.open("wb") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        with exit_on_usage_error("train.py"):
            train.main(flags)

    process = fork.Process(target=go)
    process.start()
    process.join()
    return process.exitcode, log.read_text()


def attempt(name: str, room: int) -> None:
    """A run in `room` bytes, and again once there is more; what happened is in `name`.json."""
    disk, log = Path(name), Path(f"{name}.log")
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", disk], check=True)
    try:
        found = filled(disk, room, log)
    finally:
        subprocess.run(["umount", disk], check=True)
    Path(f"{name}.json").write_text(json.dumps(found))


def filled(disk: Path, room: int, log: Path) -> dict[str, Any]:
    """The same on a file system that is there."""
    filler, run = disk / "filler", disk / "run"
    filler.write_bytes(bytes(max(0, shutil.disk_usage(disk).free - room)))
    flags = [*FLAGS, "--out", str(run), "--resume", "auto"]
    code, said = trained(flags, log)
    there = [folder.name for folder in checkpoints(run)]
    try:
        last = newest(run)
    except UsageError:
        last = None
    found = {
        "room": room,
        "exit": code,
        "said": said.splitlines()[-1:],
        "a traceback": "Traceback" in said,
        "lines": lines(run),
        "checkpoints": there,
        "whole": last is not None and last.folder.name == there[-1] if there else None,
        "half of one there": bool(list(run.glob("checkpoints/.step-*"))),
    }
    filler.unlink()
    found["exit once there is room"], _ = trained(flags, log)
    found["unlike"] = differences(run, Path("whole"))
    print(json.dumps(found), flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--attempts", type=int, default=12)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    start, draw = time.monotonic(), random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        trained([*FLAGS, "--out", "whole"], Path("whole.log"))
        files = (file for file in Path("whole").rglob("*") if file.is_file())
        taken = sum(file.stat().st_size for file in files)
        names = [f"disk-{i}" for i in range(options.attempts)]
        rooms = [int(taken * draw.uniform(0.1, 1.25)) for _ in names]
        tries = [fork.Process(target=attempt, args=pair) for pair in zip(names, rooms, strict=True)]
        for process in tries:
            process.start()
        for process in tries:
            process.join()
        tries = [json.loads(Path(f"{name}.json").read_text()) for name in names]
    full = [one for one in tries if one["exit"]]
    record = {
        "command": f"python tests/campaigns/disk_full.py --attempts {options.attempts}"
        f" --seed {options.seed}",
        "machine": f"1 CPU thread, {platform.machine()}, tmpfs",
        "torch": torch.__version__,
        "seconds": round(time.monotonic() - start),
        "runs": len(tries),
        "filled": len(full),
        "filled while saving": sum("cannot be written" in one["said"][0] for one in full),
        "ended with a traceback": sum(one["a traceback"] for one in tries),
        "last checkpoint damaged": sum(one["whole"] is False for one in tries),
        "went on to the bit": sum(
            not one["exit once there is room"] and not one["unlike"] for one in tries
        ),
        "attempts": tries,
    }
    results = ROOT / "tests" / "campaigns" / "results" / "disk_full.json"
    results.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps({k: v for k, v in record.items() if k != "attempts"}, indent=1))


if __name__ == "__main__":
    main()
