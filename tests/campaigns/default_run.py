"""The README's first command, once, in a fresh folder: its last line, time and memory. By hand:

    python tests/campaigns/default_run.py             on 2 CPU cores some minutes
    python tests/campaigns/default_run.py --short     a few steps, to see that it works

Nothing is kept from an earlier run: the cache of image features is in the fresh folder, too. Writes
tests/campaigns/results/default_run.json (--short: default_run.json in the fresh folder): last line,
seconds of the whole program, peak memory, machine, strict accuracy and forced choice by type.
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
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from rewards.evaluation.scores import share  # noqa: E402 (the path comes first)
from tests.campaigns.seeds import MODALITIES, SHORT, by_type, read, rows  # noqa: E402

FLAGS = ["--modality", "MRI", "--group-size", "8"]


def strict_by_type(run: Path, modality: str) -> dict[str, dict[str, Any]]:
    """By question type: strict accuracy with its interval, of base and trained."""
    answers = {model: rows(run, model, modality) for model in ("base", "trained")}
    kinds = dict.fromkeys(row["question_type"] for row in answers["base"])
    return {
        kind: {
            model: share([row for row in found if row["question_type"] == kind])
            for model, found in answers.items()
        }
        for kind in kinds
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="a folder that is not there yet")
    parser.add_argument("--short", action="store_true", help="a few steps and questions")
    options = parser.parse_args()
    fresh = (options.out or Path(tempfile.mkdtemp())).resolve()
    fresh.mkdir(exist_ok=not options.out)
    words = [sys.executable, str(ROOT / "train.py"), *FLAGS, *(SHORT if options.short else [])]
    environment = {**os.environ, "XDG_CACHE_HOME": str(fresh / "cache")}
    start = time.monotonic()
    ended = subprocess.run(
        words, cwd=fresh, env=environment, check=True, stdout=subprocess.PIPE, text=True
    )
    seconds = time.monotonic() - start
    (run,) = (fresh / "runs").iterdir()
    summary = read(run / "summary.json")
    record = {
        "command": " ".join(["python train.py", *FLAGS]),
        "last_line": ended.stdout.strip().splitlines()[-1],
        "seconds": round(seconds, 1),
        "peak_mb": summary["peak_mb"],
        "machine": f"{torch.get_num_threads()} CPU threads, {platform.machine()}",
        "torch": torch.__version__,
        "forced_choice_by_type": by_type([run]),
        "strict_by_type": {m: strict_by_type(run, m) for m in MODALITIES},
        "results": summary["results"],
        "gains": summary["gains"],
        "table": summary["rendered"],
    }
    results = (fresh if options.short else ROOT / "tests/campaigns/results") / "default_run.json"
    results.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(f"{record['last_line']}\n{seconds:.0f} s, {record['peak_mb']:.0f} MB")


if __name__ == "__main__":
    main()
