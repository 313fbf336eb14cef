"""kill -9, again and again: does every run go on to the very bits of the unbroken one? By hand:

    python tests/campaigns/kill.py

Each attempt is a run that is killed once or twice, at a random line of metrics.jsonl or in the
midst of writing a checkpoint, is started again with the same command and `--resume auto`, and is
compared with a run that nothing has stopped: adapter, AdamW's moments, token ids and every number
of the trace, metrics, answers. Writes tests/campaigns/results/kill.json.
"""

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
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402 (the path comes first)

import train  # noqa: E402
from grpo.run.checkpoint import checkpoints  # noqa: E402
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
        with log.open("wb") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        train.main(flags)

    log.touch()
    process = fork.Process(target=go)
    process.start()
    return process


def killed(flags: list[str], run: Path, line: int, saving: bool, pause: float) -> dict[str, Any]:
    """Start a run, and kill it once it has written this line, or begun to save at it or later."""
    metrics, log = run / "metrics.jsonl", run.with_suffix(".log")
    before = metrics.stat().st_mtime_ns if metrics.exists() else 0
    process = started(flags, log)

    def now() -> bool:
        if not metrics.exists() or metrics.stat().st_mtime_ns == before:
            return False  # it has not gone on yet
        return lines(run) >= line and (not saving or any(run.glob("checkpoints/.step-*.part")))

    while process.is_alive() and not now():
        time.sleep(0.0005)
    time.sleep(pause)
    process.kill()
    process.join()
    return {
        "went on after": went_on_after(log),
        "killed at line": lines(run),
        "checkpoints there": [int(folder.name[5:]) for folder in checkpoints(run)],
        "half of one there": bool(list(run.glob("checkpoints/.step-*"))),
        "was done before": process.exitcode == 0,
    }


def went_on_after(log: Path) -> int:
    """The step after which a run went on, by what it said; 0: it began."""
    said = re.findall(r"goes on after step (\d+)", log.read_text())
    return int(said[0]) if said else 0


def attempt(kind: str, number: int, draw: random.Random) -> dict[str, Any]:
    """One run, killed once or twice and then left alone.

    Of five, two are killed while they save, and one may be before there is any checkpoint.
    """
    run = Path(f"{kind}-{number}".replace(" ", "-"))
    flags = [*FLAGS, *KINDS[kind], "--out", str(run), "--resume", "auto"]
    saving, early = number % 5 in (1, 3), number % 5 == 4
    kills = []
    for again in range(draw.choice((1, 2))):
        line = draw.randint(1 if early else EVERY + 1, STEPS - 2 if saving else STEPS)
        line = max(line, kills[-1]["killed at line"] if again else 0)
        pause = draw.uniform(0, 0.01 if saving else 0.05)
        kills.append(killed(flags, run, line, saving, pause))
    log = run.with_suffix(".log")
    process = started(flags, log)
    process.join()
    unlike = differences(run, Path(f"whole-{kind}".replace(" ", "-")))
    last = {"went on after": went_on_after(log), "exit": process.exitcode, "unlike": unlike}
    return {"kind": kind, "kills": kills, **last}


def of_kind(kind: str, attempts: int, seed: int) -> None:
    """The unbroken run of a kind, and all attempts; they are written to a file of its name."""
    whole, draw = f"whole-{kind}".replace(" ", "-"), random.Random(f"{seed} {kind}")
    started([*FLAGS, *KINDS[kind], "--out", whole], Path(f"{whole}.log")).join()
    tries = []
    for number in range(attempts):
        tries.append(attempt(kind, number, draw))
        print(json.dumps(tries[-1]), flush=True)
    Path(f"{kind}.json").write_text(json.dumps(tries))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--attempts", type=int, default=5, help="of each kind of run")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        started([*FLAGS, *KINDS["sft"], "--out", "sft"], Path("sft.log")).join()
        limits = {"attempts": options.attempts, "seed": options.seed}
        kinds = [fork.Process(target=of_kind, args=(kind,), kwargs=limits) for kind in KINDS]
        for process in kinds:
            process.start()
        for process in kinds:
            process.join()
        tries = [one for kind in KINDS for one in json.loads(Path(f"{kind}.json").read_text())]
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
