"""How long the main thread waits for images, with and without threads that prepare them.

    MEDVQA_DATA=... nice -n 19 python tests/benchmarks/input.py --model FOLDER

Real images at their full resolution, four a step. Before each step the main thread is away for as
long as the step's images took (as in sampling and updating, which take longer), in which threads
may prepare the next ones. Seconds an image that `encode` takes then, the tower's among them; cold,
with an empty folder, and warm, in a second run. The tower alone is what cannot be saved.
Writes tests/benchmarks/results/input.json.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch

from data.images import ImageFile
from models.open_policy import load_policy
from tests.tiny import Question

STEP = 4  # images


def seconds(model: str, cache: Path, steps: list[list[Question]], ahead: bool) -> dict[str, float]:
    """Medians over the steps but the first: seconds an image in `encode`, and in the tower."""
    policy = load_policy(model, device="cpu", cache=cache)
    took, tower, inner = [], [0.0], policy.vision.model.get_image_features

    def timed(*inputs):
        begun = time.perf_counter()
        found = inner(*inputs)
        tower[-1] += time.perf_counter() - begun
        return found

    policy.vision.model.get_image_features = timed
    for i, questions in enumerate(steps):
        if ahead:
            policy.prefetch(questions + (steps[i + 1] if i + 1 < len(steps) else []))
        begun = time.perf_counter()
        policy.encode(questions)
        took.append(time.perf_counter() - begun)
        tower.append(0.0)
        time.sleep(took[0])
    return {
        "first step": took[0] / STEP,
        "encode": median(took[1:]) / STEP,
        "tower": median(tower[1:-1]) / STEP,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Time of images in the main thread.")
    parser.add_argument("--model", required=True, help="a folder; benchmarks/memory.py makes 29M")
    parser.add_argument("--images", type=int, default=24)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    place = Path(os.environ["MEDVQA_DATA"]) / "omnimedvqa" / "Images"
    files = sorted(f for f in place.rglob("*") if f.suffix.lower() in (".png", ".jpg"))
    chosen = files[:: len(files) // asked.images][: asked.images]
    questions = [Question("What is this?", (ImageFile(file),)) for file in chosen]
    steps = [questions[i : i + STEP] for i in range(0, len(questions), STEP)]
    found = {"images": len(chosen), "model": Path(asked.model).name, "cores": os.cpu_count()}
    with tempfile.TemporaryDirectory() as folder:
        for ahead in (False, True):
            cache = Path(folder) / str(ahead)
            for state in ("cold", "warm"):
                times = seconds(asked.model, cache, steps, ahead)
                name = f"{state}, {'ahead' if ahead else 'not ahead'}"
                found[name] = {key: round(value, 4) for key, value in times.items()}
                print(name, found[name])
    text = json.dumps(found, indent=2) + "\n"
    (Path(__file__).parent / "results" / "input.json").write_text(text)


if __name__ == "__main__":
    main()
