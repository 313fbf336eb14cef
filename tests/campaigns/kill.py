"""kill -9, again and again: does every run go on to the very bits of the unbroken one? By hand:

    python tests/campaigns/kill.py

Each attempt is a run that is killed once or twice, at a random line of metrics.jsonl or in the
midst of writing a checkpoint, is started again with the same command and `--resume auto`, and is
compared with a run that nothing has stopped: adapter, AdamW's moments, token ids and every number
of the trace, metrics, answers. Writes tests/campaigns/results/kill.json.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import random
import re
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402 (the path comes first)

import train  # noqa: E402
from grpo.checkpoint import checkpoints  # noqa: E402
from tests.resuming import SHORT, differences, lines  # noqa: E402

STEPS, EVERY = 12, 3
FLAGS = [*SHORT, "--steps", str(STEPS), "--save-every", str(EVERY), "--eval-every", "5"]
FLAGS += ["--val-size", "4"]
KINDS = {
    "mu 1": [],
    "mu 3": ["--updates-per-rollout", "3"],
    "dynamic sampling": ["--dynamic-sampling", "2", "--kl-coef", "0"],
    "sft": ["--method", "sft"],
    "from an adapter": ["--init", "sft:sft"],
}
fork = multiprocessing.get_context("fork")  # a process of its own, with all imports made already


def started(flags: list[str], log: Path) -> Any:
    """train.py with these flags, in a process of its own; what it says goes to `log`."""

    def go() -> None:
        with log.open("ab") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        train.main(flags)

    process = fork.Process(target=go)
    process.start()
    return process


def killed(flags: list[str], run: Path, when: Callable[[], bool], pause: float) -> dict[str, Any]:
    """Start a run, kill it `pause` seconds after `when` is true; how far it had come."""
    log = run.with_suffix(".log")
    said = log.stat().st_size if log.exists() else 0
    process = started(flags, log)
    while process.is_alive() and not when():
        time.sleep(0.0002)
    time.sleep(pause)
    process.kill()
    process.join()
    begun = re.search(r"goes on after step (\\d+)", log.read_text()[said:])
    return {
        "went on after": int(begun[1]) if begun else 0,
        "killed at line": lines(run),
        "checkpoints there": [int(folder.name[5:]) for folder in checkpoints(run)],
        "half of one there": bool(list(run.glob("checkpoints/.step-*"))),
        "was done before": process.exitcode == 0,
    }


def attempt(kind: str, number: int, draw: random.Random) -> dict[str, Any]:
    """One run, killed once or twice and then left alone; every third in the midst of saving."""
    run = Path(f"{kind}-{number}".replace(" ", "-"))
    flags = [*FLAGS, *KINDS[kind], "--out", str(run), "--resume", "auto"]
    kills = []
    for _ in range(draw.choice((1, 2))):
        saving = number % 3 == 2
        # nine of ten after the first checkpoint
        line = draw.randint(EVERY + 1, STEPS) if draw.random() < 0.9 else draw.randint(1, EVERY)
        line = max(line, lines(run))

        def when(line=line, saving=saving) -> bool:
            half = any(run.glob("checkpoints/.step-*.part"))
            return lines(run) >= line - EVERY and half if saving else lines(run) >= line

        kills.append(killed(flags, run, when, draw.uniform(0, 0.004 if saving else 0.05)))
    process = started(flags, run.with_suffix(".log"))
    process.join()
    unlike = differences(run, Path(f"whole-{kind}".replace(" ", "-")))
    found = {"kind": kind, "kills": kills, "exit": process.exitcode, "unlike": unlike}
    print(json.dumps(found), flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--attempts", type=int, default=6, help="of each kind of run")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    start, draw, tries = time.monotonic(), random.Random(options.seed), []
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        sft = started([*FLAGS, *KINDS["sft"], "--out", "sft"], Path("sft.log"))
        sft.join()
        for kind, flags in KINDS.items():
            whole = f"whole-{kind}".replace(" ", "-")
            started([*FLAGS, *flags, "--out", whole], Path(f"{whole}.log")).join()
            tries += [attempt(kind, number, draw) for number in range(options.attempts)]
    kills = [kill for one in tries for kill in one["kills"]]
    record = {
        "command": f"python tests/campaigns/kill.py --attempts {options.attempts}"
        f" --seed {options.seed}",
        "machine": f"1 CPU thread, {platform.machine()}",
        "torch": torch.__version__,
        "seconds": round(time.monotonic() - start),
        "runs": len(tries),
        "kills": sum(not kill["was done before"] for kill in kills),
        "kills after a checkpoint": sum(
            bool(kill["checkpoints there"]) and not kill["was done before"] for kill in kills
        ),
        "kills while saving": sum(kill["half of one there"] for kill in kills),
        "went on to the bit": sum(not one["exit"] and not one["unlike"] for one in tries),
        "lost": sum(bool(one["exit"] or one["unlike"]) for one in tries),
        "attempts": tries,
    }
    results = ROOT / "tests" / "campaigns" / "results" / "kill.json"
    results.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps({k: v for k, v in record.items() if k != "attempts"}, indent=1))


if __name__ == "__main__":
    main()
