"""Three seeds of the default run, of both SFT arms beside it: the README's results. By hand:

    python tests/campaigns/seeds.py --seeds 1 2 3

Every run is `train.py` with its own flags. What is done already is not run again. Writes
tests/campaigns/results/seeds.json and prints the table as Markdown.
"""

import argparse
import json
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from rewards.evaluation.rows import points  # noqa: E402
from rewards.evaluation.scores import gain  # noqa: E402
from rewards.evaluation.statistics import students_t  # noqa: E402 (the path comes first)

ARMS = {
    "GRPO": [],
    "SFT, answers": ["--method", "sft", "--sft-target", "answer"],
    "SFT, reasoning (privileged)": ["--method", "sft", "--sft-target", "reasoning"],
}
MODALITIES = ("MRI", "CT", "XRAY")
FIGURES = ("accuracy", "format_rate", "forced_choice")


def train(arm: str, seed: int, out: Path) -> Path:
    """The run folder of one arm and seed, trained now if it is not there."""
    run = out / f"{arm.split(' (')[0].replace(', ', '-').lower()}-{seed}"
    if not (run / "summary.json").exists():
        shutil.rmtree(run, ignore_errors=True)  # what an interruption left
        flags = ["--modality", "MRI", "--group-size", "8", "--seed", str(seed), *ARMS[arm]]
        for file in out.glob("*/predictions/base-*"):  # the base is the same in every run
            (run / "predictions").mkdir(parents=True, exist_ok=True)
            shutil.copy(file, run / "predictions")
        command = [sys.executable, "train.py", *flags, "--out", str(run)]
        subprocess.run(command, cwd=ROOT, check=True)
    return run


def rows(run: Path, model: str, modality: str) -> list[dict[str, Any]]:
    file = run / "predictions" / f"{model}-{modality}-reason.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()]


def figures(runs: list[Path]) -> dict[str, Any]:
    """By modality: each figure's mean over seeds, base and trained, and gains pooled over seeds.

    Seeds answer the same questions, so pooled intervals are bootstraps over questions.
    """
    found: dict[str, Any] = {}
    for modality in MODALITIES:
        summaries = [json.loads((run / "summary.json").read_text()) for run in runs]
        cells: dict[str, Any] = {
            model: {
                name: fmean(s["results"][model][modality][name] for s in summaries)
                for name in FIGURES
            }
            for model in ("base", "trained")
        }
        pooled = [[r for run in runs for r in rows(run, m, modality)] for m in ("base", "trained")]
        cells["gain"] = {
            "accuracy": gain(*pooled, "correct"),
            "forced_choice": gain(*pooled, "forced_correct"),
        }
        if len(runs) > 1:
            gains_of = [s["gains"]["trained"][modality] for s in summaries]
            cells["gain_over_seeds"] = {
                name: students_t([gains[name]["gain"] for gains in gains_of])
                for name in ("accuracy", "forced_choice")
            }
        found[modality] = cells
    found["seconds"] = [s["seconds"] for s in summaries]
    found["peak_mb"] = [s["peak_mb"] for s in summaries]
    return found


def markdown(table: dict[str, Any]) -> str:
    """The table of the README, in percent; gains pooled over seeds with 95 % intervals."""
    lines = [
        "| arm | modality | strict | format | forced choice | gain strict | gain forced choice |",
        "|---|---|---|---|---|---|---|",
    ]
    for arm, found in table.items():
        for modality in MODALITIES:
            cells = found[modality]
            pairs = (
                f"{100 * cells['base'][f]:.1f} → {100 * cells['trained'][f]:.1f}" for f in FIGURES
            )
            gains = (points(cells["gain"][f]) for f in ("accuracy", "forced_choice"))
            lines.append(f"| {arm} | {modality} | {' | '.join(pairs)} | {' | '.join(gains)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/seeds"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    options = parser.parse_args()
    out = options.out.resolve()
    runs = {arm: [train(arm, seed, out) for seed in options.seeds] for arm in ARMS}
    table = {arm: figures(folders) for arm, folders in runs.items()}
    record = {
        "command": "python tests/campaigns/seeds.py --seeds " + " ".join(map(str, options.seeds)),
        "machine": f"{torch.get_num_threads()} CPU threads, {platform.machine()}",
        "torch": torch.__version__,
        "arms": table,
    }
    results = ROOT / "tests" / "campaigns" / "results" / "seeds.json"
    results.parent.mkdir(parents=True, exist_ok=True)
    results.write_text(json.dumps(record, indent=1) + "\n")
    print(markdown(table))


if __name__ == "__main__":
    main()
