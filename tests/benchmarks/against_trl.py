"""Seconds and memory of a GRPO step, ours and TRL's `GRPOTrainer`, on the same work. By hand, in an
environment of its own:

    python -m venv trl && trl/bin/pip install -r tests/benchmarks/requirements.txt
    trl/bin/python tests/benchmarks/against_trl.py --models models-for-benchmarks
    trl/bin/python tests/benchmarks/against_trl.py --table

Every case has a process a side, with the same checkpoint, questions, LoRA and settings, on the CPU
in float32. They take turns, ours first, one step at a time, and only one of them works; the first
step of each warms up. A step is a rollout and its mu updates. No completion may end early, so that
all have as many tokens; that prompts, completions and trained parameters are the same is asserted.
Writes tests/benchmarks/results/trl-cpu.json after every case. Needs 24 GB.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.benchmarks.memory import make_model
from tests.benchmarks.same_work import Case, Task, draw_images

FILE = Path(__file__).parent / "results" / "trl-cpu.json"
PACKAGES = ("trl", "transformers", "peft", "accelerate", "torch", "torchvision")
PROGRAMS = {"ours": "our_side.py", "trl": "trl_side.py"}
PHASES = ("generation", "reference", "update", "other")
TOKEN = 28 * 28  # pixels of an image token
# One thing at a time is another than in the first.
CASES = {
    "224px": Case(),
    "448px": Case(width=448, height=448),
    "448px-4-passes": Case(width=448, height=448, passes=4),  # of TRL's update; ours plans its own
    "448x896px": Case(width=448, height=896),
    "G4": Case(completions=4),
    "G16": Case(completions=16),
    "256-tokens": Case(tokens=256),
    "no-KL": Case(beta=0.0),
    "mu4": Case(mu=4),
    "1-prompt": Case(prompts=1),
    "0.4B": Case(model="0.4B", prompts=1),
}


class Side:
    """A worker process, that does a step when told to."""

    def __init__(self, program: str, task: Task) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).parent / program), json.dumps(asdict(task))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": str(task.threads)},
        )
        self.ready = self._answer()

    def step(self) -> dict[str, Any]:
        print("go", file=self.process.stdin, flush=True)
        return self._answer()

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()

    def _answer(self) -> dict[str, Any]:
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.process.args[1]} ended with {self.process.wait()}")
        return json.loads(line)


def measured(case: Case, folder: str, repeats: int, threads: int) -> dict[str, Any]:
    """Both sides of a case, turn by turn."""
    with tempfile.TemporaryDirectory() as images:
        task = Task(case, folder, images, repeats + 1, threads)
        draw_images(case, task.steps, Path(images))
        sides = {name: Side(program, task) for name, program in PROGRAMS.items()}
        try:
            turns = [{n: side.step() for n, side in sides.items()} for _ in range(task.steps)]
        finally:
            for side in sides.values():
                side.close()
    ready = {name: side.ready for name, side in sides.items()}
    known = same_work(task, ready, turns)
    ours, trl = (
        summary(ready[name]["base_mb"], [turn[name] for turn in turns[1:]]) for name in PROGRAMS
    )
    return {
        **asdict(case),
        **known,
        "ours": ours,
        "trl": trl,
        "ratio": round(trl["step_s"] / ours["step_s"], 2),
        "peak_ratio": round(trl["peak_mb"] / ours["peak_mb"], 2),
    }


def same_work(task: Task, ready: dict[str, Any], turns: list[dict[str, Any]]) -> dict[str, int]:
    """What both sides had, in numbers. AssertionError where they did not have the same."""
    case, (ours, trl) = task.case, ready.values()
    for what in ("parameters", "trained", "dtypes"):
        assert ours[what] == trl[what], f"{what}: {ours[what]} and {trl[what]}"
    assert ours["dtypes"] == ["torch.float32"]
    for turn in turns:
        ours, trl = (side["work"] for side in turn.values())
        assert ours == trl, "other prompts, completions or threads"
        assert ours["lengths"] == [case.tokens] * (case.prompts * case.completions)
        assert ours["threads"] == task.threads
        asked = {len(prompt) for prompt in ours["prompts"]}
    (prompt_tokens,) = asked
    sizes = {name: ready["ours"][name] for name in ("parameters", "trained")}
    pad = json.loads((Path(task.folder) / "config.json").read_text())["image_token_id"]
    image_tokens = ours["prompts"][0].count(pad)
    assert image_tokens == case.width * case.height // TOKEN, f"{image_tokens} image tokens"
    return sizes | {"prompt_tokens": prompt_tokens, "image_tokens": image_tokens}


def summary(base_mb: float, steps: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians of the measured steps; the peak is that of the process, from its start."""
    return {
        **{
            name: round(median(step[name] for step in steps), 3)
            for name in ("step_s", "user_s", "system_s")
        },
        "peak_mb": round(steps[-1]["peak_mb"], 1),
        "base_mb": round(base_mb, 1),
        "phases": {
            phase: round(median(step["phases"].get(phase, 0.0) for step in steps), 3)
            for phase in PHASES
        },
        "steps": [round(step["step_s"], 3) for step in steps],
    }


def keep(found: dict[str, Any], threads: int, file: Path) -> None:
    """Write a case into the file, in place of what it held of it."""
    kept = json.loads(file.read_text())["cases"] if file.is_file() else []
    kept = {case["name"]: case for case in [*kept, found]}
    result = {
        "versions": {"python": platform.python_version()} | {p: version(p) for p in PACKAGES},
        "hardware": hardware(),
        "threads": threads,
        "cases": [kept[name] for name in CASES if name in kept],
    }
    file.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def hardware() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return f"{models[0] if models else platform.machine()}, {os.cpu_count()} cores"


def markdown(cases: list[dict[str, Any]]) -> str:
    """Steps and peaks, then where the time goes, as two tables."""
    heads = ["case", "prompts x G", "prompt + new tokens", "ours", "TRL", "ratio"]
    heads += ["ours, peak", "TRL, peak", "ratio"]
    lines = [f"| {' | '.join(heads)} |", "|" + " --- |" * len(heads)]
    for case in cases:
        ours, trl = case["ours"], case["trl"]
        passes = f", TRL in {case['passes']} passes" * (case["passes"] > 1)
        cells = [case["name"] + passes, f"{case['prompts']} x {case['completions']}"]
        cells += [f"{case['prompt_tokens']} + {case['tokens']}"]
        cells += [f"{ours['step_s']:.1f} s", f"{trl['step_s']:.1f} s", f"**{case['ratio']:.1f}**"]
        cells += [f"{side['peak_mb'] / 1000:.1f} GB" for side in (ours, trl)]
        lines.append(f"| {' | '.join([*cells, format(case['peak_ratio'], '.1f')])} |")
    heads = ["seconds, ours / TRL", *PHASES]
    lines += ["", f"| {' | '.join(heads)} |", "|" + " --- |" * len(heads)]
    for case in cases:
        ours, trl = case["ours"]["phases"], case["trl"]["phases"]
        cells = [f"{ours[phase]:.1f} / {trl[phase]:.1f}" for phase in PHASES]
        lines.append(f"| {' | '.join([case['name'], *cells])} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="*", default=list(CASES), choices=list(CASES))
    parser.add_argument("--models", type=Path, help="folder to keep the random models in")
    parser.add_argument("--repeats", type=int, default=3, help="steps measured of each side")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--table", action="store_true", help="print the results and stop")
    parser.add_argument("--out", type=Path, default=FILE)
    options = parser.parse_args()
    if options.table:
        print(markdown(json.loads(options.out.read_text())["cases"]))
        return
    with tempfile.TemporaryDirectory() as folder:
        for name in options.only:
            case = CASES[name]
            model = make_model(case.model, (options.models or Path(folder)) / case.model)
            found = {"name": name} | measured(case, model, options.repeats, options.threads)
            keep(found, options.threads, options.out)
            print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
