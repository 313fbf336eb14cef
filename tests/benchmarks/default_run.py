"""Wall time and peak memory of the README's default run, at two commits that take turns.

    python tests/benchmarks/default_run.py --before 37d3bfb          20 minutes on 2 cores

Each run is `python train.py --modality MRI --group-size 8` in a checkout of its own, with nothing
kept from another. Writes tests/benchmarks/results/default_run.json.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

ROOT = Path(__file__).parents[2]
RUN = "train.py --modality MRI --group-size 8 --cache none --quiet"


def git(*words: str) -> str:
    return subprocess.run(
        ["git", *words], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.strip()


def once(checkout: Path, out: Path, extra: list[str]) -> dict[str, float | str]:
    """Seconds of the whole program and of a step, the peak, and what it came to, in its words."""
    start = time.monotonic()
    words = [sys.executable, *RUN.split(), "--out", str(out), *extra]
    ended = subprocess.run(words, cwd=checkout, check=True, capture_output=True, text=True)
    seconds = time.monotonic() - start
    steps = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return {
        "seconds": round(seconds, 1),
        "step_s": round(median(step["time/step"] for step in steps), 3),
        "rollout_s": round(median(step["time/rollout"] for step in steps), 3),
        "update_s": round(median(step["time/update"] for step in steps), 3),
        "peak_mb": round(max(step["memory/peak_mb"] for step in steps), 1),
        "reward_at_the_end": round(steps[-1]["reward"], 3),
        "last_line": ended.stdout.strip().splitlines()[-1].partition(": ")[2].partition(" Next")[0],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--before", required=True, help="a commit")
    parser.add_argument("--after", default="HEAD")
    parser.add_argument("--rounds", type=int, default=2)
    options, extra = parser.parse_known_args()
    commits = {
        name: git("rev-parse", "--short", getattr(options, name)) for name in ("before", "after")
    }
    runs: dict[str, list[dict[str, float | str]]] = {name: [] for name in commits}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        for name, commit in commits.items():
            git("worktree", "add", "--detach", str(place / name), commit)
        try:
            for turn in range(options.rounds):
                for name in commits:
                    runs[name].append(once(place / name, place / f"{name}-{turn}", extra))
                    print(name, commits[name], runs[name][-1], flush=True)
        finally:
            for name in commits:
                git("worktree", "remove", "--force", str(place / name))
    record = {
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "flags": [*RUN.split(), *extra],
    }
    record |= {name: {"commit": commits[name], "runs": runs[name]} for name in commits}
    whole = [median(run["seconds"] for run in runs[name]) for name in ("before", "after")]
    record["ratio"] = round(whole[0] / whole[1], 3)
    print(f"before over after: {record['ratio']}")
    file = Path(__file__).parent / "results" / "default_run.json"
    file.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
