"""Training and evaluation on real images (OmniMedVQA's layout), with their controls. By hand:

    python tests/campaigns/real.py --data omnimedvqa:FOLDER

The shipped tiny model, pretrained on phantoms, trained on the MRI questions: by GRPO, with its
controls (without images, on permuted answers, for the format alone); by supervised training, and by
GRPO from that; and a random small model in the hub's own form, for the path alone. All controls of
evaluation are asked. What is done already is not run again. Writes
tests/campaigns/results/real.json. A tiny model need not be good at this; the table must be right
about how good it is.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from rewards.evaluation import text as render  # noqa: E402 (the path comes first)
from tests.campaigns.controls import without_curves  # noqa: E402
from tests.models.hub import make_hub_folder  # noqa: E402


def arms(out: Path, tokenizer: Path | None) -> dict[str, list[str]]:
    hub = out / "hub-form"
    if not hub.exists():
        make_hub_folder(hub, tokenizer)
    short = ["--steps", "20", "--max-completion-length", "16", "--prompts-per-step", "4"]
    return {
        "grpo": [],
        "grpo-blind": ["--blind"],
        "grpo-shuffled-answers": ["--shuffle-answers"],
        "grpo-format-only": ["--reward", "format"],
        "sft": ["--method", "sft"],
        "sft-then-grpo": ["--init", f"sft:{out / 'sft'}"],
        "random-hub-form": ["--model", str(hub), *short, "--eval-size", "40"],
    }


def run(command: list[str]) -> float:
    start = time.monotonic()
    subprocess.run([sys.executable, *command], cwd=ROOT, check=True)
    return round(time.monotonic() - start, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--tokenizer", type=Path, help="folder of Qwen2-VL's own vocabulary")
    parser.add_argument("--out", type=Path, default=Path("runs/real"))
    options = parser.parse_args()
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    results = ROOT / "tests" / "campaigns" / "results" / "real.json"
    found: dict[str, Any] = json.loads(results.read_text()) if results.exists() else {}
    for name, flags in arms(out, options.tokenizer).items():
        place, file = out / name, out / f"{name}.json"
        what = ["--data", options.data, "--modality", "MRI", "--group-size", "8"]
        if not (place / "summary.json").exists():
            run(["train.py", "--recipe", "phantom", *what, *flags, "--out", str(place)])
        asked = ["--run", str(place), "--ood", "CT,XRAY", "--controls", "full"]
        is_new = not file.exists()  # else its answers are kept, and its seconds say nothing
        seconds = run(["evaluate.py", *asked, "--json", str(file)])
        table = json.loads(file.read_text())
        trained = json.loads((place / "summary.json").read_text())
        found[name] = {
            "flags": [flag.replace(str(out), "runs/real") for flag in flags],
            "train_seconds": trained["seconds"],
            "peak_mb": trained["peak_mb"],
            "evaluate_seconds": seconds if is_new else found.get(name, {}).get("evaluate_seconds"),
            "table": without_curves(table),
        }
        results.write_text(json.dumps(found, indent=1) + "\n")
        print(f"\n{name}\n{render.text(table)}", flush=True)


if __name__ == "__main__":
    main()
