"""Parts 3, 7 and 9: train.py as a program, its plan of memory, and TRL's trainer."""

import importlib.util
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.benchmarks.same_work import Case, Task, draw_images
from tests.gpu import machine
from tests.gpu.machine import DEVICE, Row, Size
from tests.gpu.steps import make_model
from tests.tiny import NoiseImage

ROOT = Path(__file__).parents[2]
TIMES = ("time/rollout", "time/reference", "time/update", "time/step")
NUMBERS = ("reward", "kl", "grad_norm", "completions/mean_length", "memory/peak_mb", "memory/cuts")


def flags(**values: object) -> list[str]:
    """Words of a command line."""
    pairs = ((f"--{name.replace('_', '-')}", str(value)) for name, value in values.items())
    return [word for pair in pairs for word in pair]


def train(words: list[str], gigabytes: float | None) -> subprocess.Popen[str]:
    """train.py in a process of its own, with so much of the card."""
    program = [sys.executable, str(ROOT / "tests/gpu/measure.py"), "--train", str(gigabytes or 0)]
    given = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "cwd": ROOT}
    return subprocess.Popen([*program, *words], **given)


def finished(process: subprocess.Popen[str], limit_s: float) -> list[str]:
    """Its lines. RuntimeError if it failed or took longer; then it is gone."""
    try:
        said, _ = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        raise RuntimeError(f"train.py took more than {limit_s:.0f} s") from None
    if process.returncode:
        raise RuntimeError(f"train.py ended with {process.returncode}: {said[-1500:]}")
    return said.splitlines()


def steps_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def phantom(size: Size, gigabytes: float | None) -> Iterator[Row]:
    """Part 3: the default run on the card and on the CPU, at the same time, and how they differ."""
    words = flags(recipe="phantom", save_every=0)
    if size.small:
        words += flags(steps=2, warmup_steps=0, train_size=8, val_size=0, eval_size=0)
        words += flags(group_size=2, prompts_per_step=2, max_completion_length=4)
    with tempfile.TemporaryDirectory() as folder:
        runs = {name: Path(folder) / name for name in ("card", "cpu")}
        devices = {"card": DEVICE.type, "cpu": "cpu"}
        started = {
            name: train([*words, "--device", devices[name], "--out", str(run)], gigabytes)
            for name, run in runs.items()
        }
        end = time.monotonic() + 500
        try:
            said = {n: finished(p, end - time.monotonic()) for n, p in started.items()}
        finally:
            for process in started.values():
                process.kill()
        found = {name: steps_of(run) for name, run in runs.items()}
    for name, steps in found.items():
        last = steps[-20:]
        means = {key: sum(s[key] for s in last) / len(last) for key in ("reward", "time/step")}
        yield {"what": f"phantom on {name}", "last": said[name][-1:], "of_the_last_20": means}
    pairs = list(zip(found["card"], found["cpu"], strict=True))
    alike = sum(a["reward"] == b["reward"] for a, b in pairs)
    yield {"what": "steps with equal mean reward", "equal": alike, "of": len(pairs)}


def make_data(folder: Path, side: int) -> str:
    """A data set of four questions about images of noise."""
    rows = []
    for seed in range(4):
        NoiseImage(seed, side, side).open().save(folder / f"{seed}.png")
        row = {"question": "Which side is the lesion on?", "options": ["left", "right"]}
        row |= {"image": f"{seed}.png", "answer": "AB"[seed % 2], "split": "train"}
        rows.append(json.dumps(row | {"modality": "MRI"}))
    (folder / "data.jsonl").write_text("\n".join(rows) + "\n")
    return f"jsonl:{folder / 'data.jsonl'}"


def recipe(size: Size, folder: Path, steps: int) -> list[str]:
    """train.py's words for medvlm-r1 at this size."""
    words = flags(
        recipe="medvlm-r1",
        model=make_model(size),
        data=make_data(folder, size.side),
        modality="MRI",
        dtype="bfloat16",
        device=DEVICE.type,
        group_size=size.group_size,
        prompts_per_step=size.prompts,
        max_completion_length=size.length,
        steps=steps,
    )
    words += flags(train_size=4, val_size=0, eval_size=0)
    return words + flags(cache="none", trace_steps=0, save_every=0)


def plans(size: Size, gigabytes: float | None) -> Iterator[Row]:
    """Part 6, before the passes: what --dry-run foretells."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        lines = finished(train([*recipe(size, Path(folder), 1), "--dry-run"], gigabytes), 300)
    row = {"what": "plan", "s": time.perf_counter() - start, "figures": figures(lines)}
    yield row | {"lines": lines}


def figures(lines: list[str]) -> dict[str, list[float]]:
    """The numbers of each line of a table, by what stands before them.

    >>> figures(["in MB", "  update     9,800.5    5,000", "peak: 1,200 MB", "fits 3 MB: all"])
    {'update': [9800.5, 5000.0], 'peak': [1200.0]}
    """
    found = {}
    for line in lines:
        name, *cells = re.split(r"\s{2,}|: ", line.strip())
        numbers = [re.fullmatch(r"(\d[\d,]*(?:\.\d+)?)(?: [MG]i?B)?", cell) for cell in cells]
        if numbers and all(numbers):
            found[name] = [float(number[1].replace(",", "")) for number in numbers]
    return found


def three_steps(size: Size, gigabytes: float | None) -> Iterator[Row]:
    """Part 7: train.py at medvlm-r1."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        words = [*recipe(size, Path(folder), 3), "--out", str(run)]
        lines = finished(train(words, gigabytes), 500)
        for step in steps_of(run):
            kept = {k: v for k, v in step.items() if k.startswith(("sampling/", "ratio/"))}
            kept |= {key: step[key] for key in (*TIMES, *NUMBERS) if key in step}
            yield {"what": "step", "step": step["step"]} | kept
        yield {"what": "said", "lines": lines[-5:]}


def trl(size: Size) -> Iterator[Row]:
    """Part 9: a step of TRL's GRPOTrainer on the same work, its update in 8 passes."""
    if importlib.util.find_spec("trl") is None:
        yield {"what": "TRL", "absent": "pip install -r tests/benchmarks/requirements.txt"}
        return
    from tests.benchmarks import trl_side

    case = Case("", size.side, size.side, size.prompts, size.group_size, size.length, passes=2)
    if not size.small:
        case = Case("", size.side, size.side, size.prompts, size.group_size, size.length, passes=8)
    with tempfile.TemporaryDirectory() as images, tempfile.TemporaryDirectory() as out:
        draw_images(case, 2, Path(images))
        task = Task(case, make_model(size), images, steps=2, threads=1)
        made = trl_side.trainer(task, out, dtype="bfloat16", use_cpu=not machine.ON_GPU)
        worker = Timed(task.threads)
        made.worker = worker
        made.add_callback(trl_side.Turns(worker, made, case.mu))
        machine.forget_peak()
        made.train()
    for number, row in enumerate(worker.rows, start=1):
        yield {"what": "TRL's step", "step": number} | row
    yield {"what": "TRL's memory"} | machine.memory()


class Timed:
    """In place of same_work.Worker: the same stopwatch, in this process."""

    def __init__(self, threads: int) -> None:
        from tests.benchmarks.same_work import Stopwatch

        self.watch, self.rows = Stopwatch(), []

    def wait(self) -> None:
        machine.wait()
        self.watch.restart()

    def done(self, prompts: list[list[int]], lengths: list[int]) -> None:
        machine.wait()
        self.rows.append(self.watch.read() | {"lengths": sorted(set(lengths))})
