"""How far models/memory.py is off: predicted before, and the peak of one real step of train.py.

    MEDVQA_DATA=... nice -n 19 python tests/benchmarks/memory.py             minutes, 12 GB
    MEDVQA_DATA=... nice -n 19 python tests/benchmarks/memory.py --only phantom 29M

Qwen2-VL-2B has its true shapes, its true 151,936 rows and random weights; MEDVQA_DATA holds its
tokenizer (qwen2vl_tokenizer/). Both numbers are of resident memory: interpreter, libraries, and
pages of the weights' files, which are mapped, among them. What is measured is `memory/peak_mb` of
the run's own metrics, the high-water mark of the process from its start to the end of the step;
`step` is without the loading of the weights, which are mapped and, in another dtype, there twice.
glibc keeps part of what was freed (blocks below 32 MB), which no arithmetic on shapes can know: a
model of middle size is the worst case. MALLOC_MMAP_THRESHOLD_=1048576 in the environment makes it
give that back.
Writes tests/benchmarks/results/memory.json.
"""

from __future__ import annotations

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

sys.path.insert(0, str(Path(__file__).parents[2]))

from models.dry_run import largest_step
from models.probe import loading_bytes, longest_prompt, probe, process_bytes

from data.load import load_split
from data.training_questions import in_all_ways
from grpo.settings.config import Config
from models.memory import MB, plan, sizes_of
from models.open_policy import open_policy
from tests.models.hub import make_hub_folder, random_weights, write, write_weights
from tests.tiny import NoiseImage

ROOT = Path(__file__).parents[2]
ON = "--gradient-checkpointing on"
QWEN2_VL_2B = {
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "num_hidden_layers": 28,
    "max_window_layers": 28,
    "num_attention_heads": 12,
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
}
TOWER_2B = {"depth": 32, "embed_dim": 1280, "num_heads": 16, "hidden_size": 1536}
SMALL = {
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "vocab_size": 1024,
    "rope_scaling": {"type": "mrope", "mrope_section": [8, 12, 12]},
}
TOWER_SMALL = {"depth": 4, "embed_dim": 256, "num_heads": 4, "hidden_size": 512}
MIDDLE = {
    "hidden_size": 1024,
    "intermediate_size": 5632,
    "num_hidden_layers": 16,
    "max_window_layers": 16,
    "num_attention_heads": 8,
    "vocab_size": 1024,
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
}
TOWER_MIDDLE = {"depth": 12, "embed_dim": 640, "num_heads": 8, "hidden_size": 1024}
SHAPES = {
    "29M": (SMALL, TOWER_SMALL),
    "0.4B": (MIDDLE, TOWER_MIDDLE),
    "2B": (QWEN2_VL_2B, TOWER_2B),
}
# name -> model, side of the images in pixels, flags
CASES: dict[str, tuple[str, int, str]] = {
    "phantom": ("phantom", 112, "--group-size 8 --prompts-per-step 4 --max-completion-length 64"),
    "29M": ("29M", 448, "--group-size 8 --prompts-per-step 2 --max-completion-length 64"),
    "29M, checkpointed": (
        "29M",
        448,
        f"--group-size 8 --prompts-per-step 2 --max-completion-length 64 {ON}",
    ),
    "2B in float32": ("2B", 224, "--group-size 4 --prompts-per-step 1 --max-completion-length 16"),
    "2B in float32, checkpointed": (
        "2B",
        448,
        f"--group-size 8 --prompts-per-step 1 --max-completion-length 32 {ON}",
    ),
    "2B in bfloat16": (
        "2B",
        140,
        "--group-size 4 --prompts-per-step 1 --max-completion-length 6 --dtype bfloat16",
    ),
}
PHASES = ("standing", "sampling", "update")


def make_model(name: str, folder: Path) -> str:
    """A random model of this name; written once."""
    if name == "phantom" or folder.is_dir():
        return name if name == "phantom" else str(folder)
    place = os.environ.get("MEDVQA_DATA")
    if name == "2B" and not place:
        raise SystemExit("2B: MEDVQA_DATA has no tokenizer of its; set it, or use --only")
    sizes, tower = SHAPES[name]
    make_hub_folder(folder, Path(place) / "qwen2vl_tokenizer" if name == "2B" else None)
    config = json.loads((folder / "config.json").read_text()) | sizes
    config["vision_config"] |= tower
    write(folder / "config.json", config)
    write_weights(folder, random_weights(folder, seed=0, scale=0.02))
    return str(folder)


def make_data(file: Path, side: int) -> str:
    """Four questions about images of noise."""
    rows = []
    for seed in range(4):
        NoiseImage(seed, side, side).open().save(file.parent / f"{seed}.png")
        question = {"question": "Which side is the lesion on?", "options": ["left", "right"]}
        given = {"image": f"{seed}.png", "answer": "AB"[seed % 2], "split": "train"}
        rows.append(json.dumps(question | given | {"modality": "MRI"}))
    file.write_text("\n".join(rows) + "\n")
    return f"jsonl:{file}"


def predicted(words: list[str]) -> dict[str, Any]:
    """The plan of a run with these flags, in MB, made before a step of that size is tried out."""
    config = Config.from_flags(words)
    policy = open_policy(config)
    questions = in_all_ways(load_split(config, "train", config.train_size, set()), config.ways)
    example, *tokens = longest_prompt(policy, questions)
    work = largest_step(policy, questions, lambda example: "", config, *tokens)
    found = plan(sizes_of(policy, process_bytes(policy), loading_bytes(policy)), work)
    parts = found._asdict()
    phases = {name: {k: v / MB for k, v in parts[name].items()} for name in PHASES}
    totals = {"loading": found.loading / MB, "step": found.step / MB, "peak": found.peak / MB}
    tried = max(probe(policy, example, work, config.temperature, config.kl_coef > 0).values())
    return {"tokens": tokens, **phases, **totals, "tried": tried}


def measured(words: list[str], run: Path) -> float:
    """MB at the peak of one real step."""
    program = [sys.executable, str(ROOT / "train.py"), *words, "--out", str(run), "--quiet"]
    subprocess.run(program, check=True, stdout=subprocess.DEVNULL)
    (line,) = (run / "metrics.jsonl").read_text().splitlines()
    return json.loads(line)["memory/peak_mb"]


def compared(name: str, models: Path, threads: int) -> dict[str, Any]:
    """One case: predicted in a process of its own, then measured in another."""
    model, side, flags = CASES[name]
    with tempfile.TemporaryDirectory() as folder:
        words = ["--model", make_model(model, models / model), *flags.split()]
        words += ["--data", make_data(Path(folder) / "data.jsonl", side), "--modality", "MRI"]
        words += ["--steps", "1", "--train-size", "4", "--val-size", "0", "--eval-size", "0"]
        words += ["--device", "cpu", "--recipe", "medvlm-r1", "--kl-coef", "0.04"]
        words += ["--threads", str(threads), "--cache", "none", "--trace-steps", "0"]
        program = [sys.executable, __file__, "--predict", *words]
        before = json.loads(subprocess.run(program, check=True, capture_output=True).stdout)
        start = time.monotonic()
        peak = measured(words, Path(folder) / "run")
    parts = {phase: {k: round(v, 1) for k, v in before[phase].items()} for phase in PHASES}
    weights = sum(before["standing"][part] for part in ("language model", "head", "vision tower"))
    fixed = weights + before["standing"]["process"]
    return {
        "case": name,
        "flags": flags,
        "prompt_tokens, of images": before["tokens"],
        "predicted_mb": round(before["peak"], 1),
        "measured_mb": round(peak, 1),
        "off": round(before["peak"] / peak - 1, 4),
        "predicted_step_mb": round(before["step"], 1),
        "measured_step_mb": round(before["tried"], 1),
        "off_step": round(before["step"] / before["tried"] - 1, 4),
        # Weights and process are most of it, and easily known: the error on what is left.
        "off_step_without_weights_and_process": round(
            (before["step"] - fixed) / (before["tried"] - fixed) - 1, 4
        ),
        "seconds": round(time.monotonic() - start, 1),
        **parts,
    }


def main() -> None:
    if sys.argv[1:2] == ["--predict"]:
        print(json.dumps(predicted(sys.argv[2:])))
        return
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="*", default=list(CASES), choices=list(CASES))
    parser.add_argument("--models", type=Path, help="folder to keep the random models in")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    file = Path(__file__).parent / "results" / "memory.json"
    kept = (
        {found["case"]: found for found in json.loads(file.read_text())["cases"]}
        if file.is_file()
        else {}
    )
    with tempfile.TemporaryDirectory() as folder:
        for name in options.only:
            found = compared(name, options.models or Path(folder), options.threads)
            if threshold := os.environ.get("MALLOC_MMAP_THRESHOLD_"):
                found["case"] = f"{name}, glibc gives back from {threshold} bytes"
            kept[found["case"]] = found
            shown = {k: v for k, v in found.items() if k not in PHASES}
            print(json.dumps(shown), flush=True)
            machine = {"machine": platform.machine(), "threads": options.threads}
            record = machine | {"cases": [kept[case] for case in sorted(kept)]}
            file.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
