"""The positive control of --blind: does training without images find what needs none? By hand:

    python tests/campaigns/blind.py

Phantom MRI questions as a file of one's own. Those about the kind of a lesion are kept only if it
is a cyst: there the right answer never changes, and it is one that the shipped model can say. As
many questions of the other types stand beside them. A run is trained on them without images. The
control works if the share of completions that are right rises above `found_nothing`, the chance of
a guess, to `found_all`, that of a guess at the others where the constant ones are all right.
Writes tests/campaigns/results/blind.json.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from data.example import VQAExample  # noqa: E402 (the path comes first)
from data.phantom.questions import load  # noqa: E402
from grpo.run.metrics_log import history  # noqa: E402

KIND, ANSWER = "kind", "cyst"  # of the questions whose answer is constant
POOL, ENDS = 9600, 20  # questions that are drawn; steps at either end of the run
FLAGS = ["--blind", "--steps", "300", "--group-size", "16", "--reward", "format=0.2,accuracy=1"]


def row(example: VQAExample, folder: Path) -> dict[str, Any]:
    """A line of the file; the image is written beside it."""
    name = f"{example.id}.png"
    example.images[0].open().save(folder / name)
    known = {"id": example.id, "image": name, "question": example.question, "split": "train"}
    known |= {"options": list(example.options), "answer": example.letter, "modality": "MRI"}
    return known | {"question_type": example.question_type}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/blind"))
    out = parser.parse_args().out.resolve()
    (out / "data").mkdir(parents=True, exist_ok=True)
    pool = load("MRI", split="train", size=POOL)
    same = [e for e in pool if e.question_type == KIND and e.answer == ANSWER]
    others = [e for e in pool if e.question_type != KIND][: len(same)]
    file = out / "data" / "questions.jsonl"
    lines = [json.dumps(row(example, out / "data")) for example in [*same, *others]]
    file.write_text("\n".join(lines) + "\n")
    words = ["train.py", "--recipe", "phantom", "--data", f"jsonl:{file}", "--modality", "MRI"]
    words += [*FLAGS, "--ood", "none", "--eval-size", "0", "--out", str(out / "run")]
    subprocess.run([sys.executable, *words], cwd=ROOT, check=True)
    right = [step["rewards/accuracy/mean"] for step in history(out / "run")]
    guesses = [fmean(1 / len(e.options) for e in part) for part in (same, others)]
    found = {
        "flags": FLAGS,
        "questions": [len(same), len(others)],
        "found_nothing": fmean(guesses),
        "found_all": fmean([1.0, guesses[1]]),
        "first steps": fmean(right[:ENDS]),
        "last steps": fmean(right[-ENDS:]),
    }
    results = ROOT / "tests" / "campaigns" / "results" / "blind.json"
    results.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
