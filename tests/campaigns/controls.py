"""Whether a run's accuracy is seeing, on all phantom test questions and their controls. By hand:

    python tests/campaigns/controls.py --run runs/NAME

Writes tests/campaigns/results/controls.json, with what must hold: no control above chance
(one-sided exact test, Holm, 0.01), the majority letter at chance exactly, and the trained policy's
strict accuracy above the upper bound of every control.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from rewards.evaluation.statistics import holm  # noqa: E402 (the path comes first)
from rewards.evaluation.table import ALPHA, BLIND, above_chance  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", required=True)
    run = parser.parse_args().run
    results = ROOT / "tests" / "campaigns" / "results" / "controls.json"
    flags = ["--ood", "CT,XRAY", "--controls", "full", "--json", str(results)]
    subprocess.run([sys.executable, "evaluate.py", "--run", run, *flags], cwd=ROOT, check=True)
    table = json.loads(results.read_text())
    blind = [
        found[modality]
        for controls in table["controls"].values()
        for arm, found in controls.items()
        for modality in found
        if arm in BLIND
    ]
    accuracies = table["results"]["trained"]
    trained = table["controls"]["trained"]
    held = {
        "no control above chance": min(holm([above_chance(found) for found in blind])) >= ALPHA,
        "majority letter at chance": all(
            abs(found["accuracy"] - table["chance"][modality]) < 1e-9
            for modality, found in trained["majority_letter"].items()
        ),
        "trained above every blind control": all(
            accuracies[modality]["accuracy"] > found[modality]["ci95"][1]
            for arm, found in trained.items()
            for modality in found
            if arm in BLIND
        ),
    }
    config = json.loads((Path(run) / "config.json").read_text())["config"]
    how = {
        "command": "controls.py --run RUN",
        **{n: config[n] for n in ("recipe", "seed", "steps")},
    }
    results.write_text(json.dumps({"of": how, "held": held, **table}, indent=1) + "\n")
    print(json.dumps(held, indent=1))


if __name__ == "__main__":
    main()
