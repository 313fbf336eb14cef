"""How far the plan of memory (models/memory) is off: planned first, then a real step on the CPU.

    MEDVQA_DATA=... nice -n 19 python tests/benchmarks/memory.py --models DIR    minutes, 3 GB

Two measures of a real step. `tracked`: torch's memory tracker on the real tensors, by phase; growth
is what a step holds at most above what is held before it. `resident`: the high-water mark of the
process in that step, above what was resident when it began. A CPU's allocator keeps part of what
was freed and reuses it, so neither is a bound of the other. MALLOC_MMAP_THRESHOLD_=1048576 in the
environment makes glibc give back every block of 1 MB.
Qwen2-VL-2B has its true shapes and random weights; MEDVQA_DATA holds its tokenizer
(qwen2vl_tokenizer/). Writes tests/benchmarks/results/memory.json.
"""

import argparse
import gc
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch

from grpo.run.steps import largest_step
from grpo.settings.config import Config
from models.memory.fake_step import NEVER, Watch, fake_step
from models.memory.fitting import MB, Peaks
from models.open_policy import open_policy, without_weights
from models.policy import Policy
from tests.benchmarks.same_work import memory_mb
from tests.models.hub import INDEX, make_hub_folder, random_weights, write, write_weights
from tests.tiny import NoiseImage, Question

CPU = torch.device("cpu")
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
# name -> model, side of the image in pixels, flags
SIZE = "--group-size 8 --prompts-per-step 1 --max-completion-length 64"
CASES: dict[str, tuple[str, int, str]] = {
    "phantom": ("phantom", 112, SIZE),
    "29M": ("29M", 448, SIZE),
    "29M, checkpointed": ("29M", 448, f"{SIZE} {ON}"),
    "29M in bfloat16": ("29M", 448, f"{SIZE} --dtype bfloat16"),
    "29M in bfloat16, checkpointed": ("29M", 448, f"{SIZE} --dtype bfloat16 {ON}"),
    "0.4B": ("0.4B", 448, SIZE),
    "0.4B, checkpointed": ("0.4B", 448, f"{SIZE} {ON}"),
}


def make_model(name: str, folder: Path) -> str:
    """A random model of this name; written once."""
    if name == "phantom" or folder.is_dir():
        return name if name == "phantom" else str(folder)
    place = os.environ.get("MEDVQA_DATA")
    if name == "2B" and not place:
        raise SystemExit("2B: MEDVQA_DATA has no tokenizer of its; set it, or use --only")
    make_config(name, folder, Path(place) / "qwen2vl_tokenizer" if name == "2B" else None)
    write_weights(folder, random_weights(folder, seed=0, scale=0.02))
    return str(folder)


def make_config(name: str, folder: Path, tokenizer: Path | None) -> None:
    """A folder of this model with everything but its weights."""
    sizes, tower = SHAPES[name]
    make_hub_folder(folder, tokenizer)
    for file in (*folder.glob("*.safetensors"), folder / INDEX):
        file.unlink()
    config = json.loads((folder / "config.json").read_text()) | sizes
    config["vision_config"] |= tower
    write(folder / "config.json", config)


def planned(config: Config, question: Question) -> Peaks:
    """The fake step."""
    parts, device = without_weights(config, CPU, None), CPU
    step = partial(largest_step, config=config, example=question, text="")
    return fake_step(parts, device, config, step)


def tracked(policy: Policy, config: Config, question: Question) -> tuple[int, dict[str, int]]:
    """Bytes held before a real step, and at most in each of its phases, by torch's tracker."""
    policy.__class__, policy.watch, policy.chat.eos = WatchedPolicy, Watch(), NEVER
    policy.watch.track_external(policy.model)
    with policy.watch:
        largest_step(policy, config, question, "")
        policy.watch.begin("after")
    del policy.watch.peaks["before"]
    return policy.watch.held, policy.watch.peaks


class WatchedPolicy(Policy):
    """A real policy that tells a Watch which phase begins, as FakePolicy does."""

    watch: Watch

    def encode(self, *args: Any) -> Any:
        self.watch.begin("vision tower")
        return super().encode(*args)

    def sample(self, *args: Any, **kwargs: Any) -> Any:
        self.watch.begin("sampling")
        return super().sample(*args, **kwargs)

    @contextmanager
    def reference(self) -> Iterator[None]:
        self.watch.begin("reference")
        with super().reference():
            yield

    def logprobs(self, *args: Any) -> Any:
        if torch.is_grad_enabled():
            self.watch.begin("update")
        return super().logprobs(*args)


def resident_growth(policy: Policy, config: Config, question: Question) -> int:
    """Bytes by which the process grows at most in a real step.

    A step with short completions goes before: it maps the weights and starts the libraries. What
    the allocator keeps of it, and gradients and moments, which are made anew, are in neither.
    """
    policy.chat.eos = NEVER
    short = replace(config, group_size=2, max_completion_length=2)
    largest_step(policy, short, question, "")
    gc.collect()
    before = memory_mb("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    largest_step(policy, config, question, "")
    return int((memory_mb("VmHWM") - before) * MB)


def of_case(name: str, models: Path, what: str) -> Any:
    """One figure of a case, in this process."""
    model, side, flags = CASES[name]
    words = ["--recipe", "medvlm-r1", "--kl-coef", "0.04", "--device", "cpu", "--cache", "none"]
    config = Config.from_flags(
        [*words, "--model", make_model(model, models / model), *flags.split()]
    )
    question = Question("Which side is the lesion on?", (NoiseImage(1, side, side),))
    if what == "planned":
        return asdict(planned(config, question))
    measure = tracked if what == "tracked" else resident_growth
    return measure(open_policy(config), config, question)


def compared(name: str, models: Path) -> dict[str, Any]:
    """One case; each figure comes from a process of its own."""
    start, found = time.monotonic(), {}
    for what in ("planned", "tracked", "resident"):
        program = [sys.executable, __file__, "--models", str(models), "--case", name, what]
        done = subprocess.run(program, check=True, capture_output=True, text=True)
        found[what] = json.loads(done.stdout)
    plan, (held, phases) = found["planned"], found["tracked"]
    growth = max(phases.values()) - held
    expected = max(plan["phases"].values()) - plan["held"]
    return {
        "case": name,
        "flags": CASES[name][2],
        "held_mb": mb(held),
        "planned_growth_mb": mb(expected),
        "tracked_growth_mb": mb(growth),
        "off_tracked": round(expected / growth - 1, 5),
        "off_by_phase": {
            phase: round((plan["phases"][phase] - plan["held"]) / (peak - held) - 1, 4)
            for phase, peak in phases.items()
        },
        "resident_growth_mb": mb(found["resident"]),
        "seconds": round(time.monotonic() - start, 1),
    }


def mb(size: int) -> float:
    return round(size / MB, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="*", default=list(CASES), choices=list(CASES))
    parser.add_argument("--models", type=Path, help="folder to keep the random models in")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--case", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.case:
        print(json.dumps(of_case(options.case[0], options.models, options.case[1])))
        return
    file = Path(__file__).parent / "results" / "memory.json"
    kept: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in options.only:
            found = compared(name, options.models or Path(folder))
            if threshold := os.environ.get("MALLOC_MMAP_THRESHOLD_"):
                found["case"] = f"{name}, glibc gives back from {threshold} bytes"
            kept[found["case"]] = found
            print(json.dumps(found), flush=True)
            machine = {"machine": platform.machine(), "threads": options.threads}
            record = machine | {"cases": [kept[case] for case in sorted(kept)]}
            file.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
