"""Whether steps stay as fast and as small as the first ones, and grow as their operations do.

    nice -n 19 python tests/benchmarks/growth.py                       20 minutes on 2 cores
    nice -n 19 python tests/benchmarks/growth.py --only flat --steps 60

flat: the default phantom run in one process, its first 20 steps after 5 of warm-up against its last
20, in seconds and in resident memory. So that all steps do equal work no end of sequence can be
drawn, every group has rewards that differ, and all images have gone through the tower before.
growth: the phases of a step of a random model, with G, the images' side and the completions' length
turned one at a time; each as a multiple of the first of its row, beside the multiple that the
operations of counts.py foretell. A phase below it has costs that do not grow, such as the reading
of the weights; one above it has some that grow faster.
Writes tests/benchmarks/results/growth.json.
"""

import argparse
import json
import platform
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import mean, median
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch

from data.load import load_split
from data.training_questions import question_order
from grpo.loop import grpo
from grpo.optim import adamw
from grpo.settings.config import Config
from grpo.settings.recipes import RECIPES
from models.memory.plan import resident
from models.open_policy import open_policy
from tests.benchmarks.counts import Work
from tests.benchmarks.floor import RESULTS, needed
from tests.benchmarks.phases import (
    Case,
    add_flags,
    ban_the_end,
    middle,
    open_random,
    rank_of,
    repeated,
)

MB = 2**20
WARM_UP, ENDS = 5, 20
SIDE, STEP = 224, Work(prompts=2, prompt=0, group_size=8, completion=64)
TURNED = {
    "group_size": (4, 8, 16, 32),
    "side": (112, 224, 336, 448),
    "completion": (16, 32, 64, 128, 256),
}


def timed_steps(steps: int, threads: int) -> Iterator[tuple[float, float]]:
    """Seconds of a step and MB of resident memory after it."""
    plain = {"recipe": "phantom", "cache": "none", "device": "cpu", "threads": threads}
    plain |= {"steps": steps, "trace_steps": "0"}
    config = Config(**RECIPES["phantom"] | plain)
    policy = open_policy(config)
    ban_the_end(policy)
    examples = load_split(config, "train", config.train_size)
    policy.encode(examples)
    draw = question_order(examples, config.seed, config.prompts_per_step)
    start = time.perf_counter()
    for _ in grpo(policy, adamw(policy.parameters(), config), draw, every_other, config):
        yield time.perf_counter() - start, resident() / MB
        start = time.perf_counter()


def every_other(
    examples: list[Any], texts: list[str], ids: Any
) -> tuple[list[float], dict[str, Any]]:
    """Rewards that differ within every group."""
    return [float(i % 2) for i in range(len(texts))], {}


def flat(steps: int, threads: int) -> dict[str, float]:
    """The ends of a run of this many steps."""
    seconds, memory = zip(*list(timed_steps(steps, threads))[WARM_UP:], strict=True)
    ends = {"first": slice(ENDS), "last": slice(-ENDS, None)}
    found: dict[str, float] = {"steps": steps, "threads": threads}
    for name, end in ends.items():
        found[f"{name}_step_s"] = median(seconds[end])
        found[f"{name}_resident_mb"] = mean(memory[end])
    found["slower"] = found["last_step_s"] / found["first_step_s"] - 1
    found["larger"] = found["last_resident_mb"] / found["first_resident_mb"] - 1
    return found


def growth(flags: argparse.Namespace, kept: Path) -> dict[str, list[dict[str, Any]]]:
    """Every row of TURNED, measured and foretold."""
    policy, config = open_random(flags.model, kept, flags)
    rank, item = rank_of(policy), policy.dtype.itemsize
    found = {}
    for name, values in TURNED.items():
        runs = [repeated(policy, *turned(name, v), flags.beta, flags.repeats) for v in values]
        # In turns, so that all have the same share of the machine's slow minutes.
        turns = zip(*runs, strict=True)
        cases = []
        for value, repeats in zip(values, zip(*turns, strict=True), strict=True):
            case = middle(repeats)
            costs = needed(config, case, rank, item, policy.checkpointing)
            cases.append((value, case, {phase: cost.flops for phase, cost in costs.items()}))
        found[name] = multiples(cases)
        print(*lines(name, found[name]), sep="\n", flush=True)
    return found


def turned(name: str, value: int) -> tuple[int, Work]:
    """An image's side and a step, which differ in one thing from SIDE and STEP."""
    return (value, STEP) if name == "side" else (SIDE, STEP._replace(**{name: value}))


def multiples(cases: list[tuple[int, Case, dict[str, int]]]) -> list[dict[str, Any]]:
    """Seconds and operations of the phases of every case, over those of the first."""
    _, first, first_flops = cases[0]
    return [
        {
            "value": value,
            "prompt_tokens": case.work.prompt,
            "phases": {
                phase: {
                    "seconds": seconds,
                    "gflop": flops[phase] / 1e9,
                    "measured": seconds / first.seconds[phase],
                    "foretold": flops[phase] / first_flops[phase],
                }
                for phase, seconds in case.seconds.items()
            },
        }
        for value, case, flops in cases
    ]


def lines(name: str, cases: list[dict[str, Any]]) -> Iterator[str]:
    """Measured multiple / foretold multiple, a phase a line."""
    yield f"{name:14}" + "".join(f"{case['value']:>16}" for case in cases)
    for phase in cases[0]["phases"]:
        each = [case["phases"][phase] for case in cases]
        pairs = [f"{found['measured']:.2f} / {found['foretold']:.2f}" for found in each]
        yield f"{phase:14}" + "".join(f"{pair:>16}" for pair in pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add_flags(parser)
    parser.add_argument("--only", choices=("flat", "growth"))
    parser.add_argument("--steps", type=int, default=300, help="of the flat run")
    flags = parser.parse_args()
    if flags.steps < WARM_UP + 2 * ENDS:
        parser.error(f"--steps {flags.steps}: the two ends take {WARM_UP + 2 * ENDS}")
    torch.set_num_threads(flags.threads)
    file = RESULTS / "growth.json"
    record = json.loads(file.read_text()) if file.is_file() else {}
    if flags.only != "growth":
        record["flat"] = flat(flags.steps, flags.threads)
        print(json.dumps(record["flat"], indent=1), flush=True)
    if flags.only != "flat":
        with tempfile.TemporaryDirectory() as folder:
            record["growth"] = {
                "model": flags.model,
                "threads": flags.threads,
                **growth(flags, flags.models or Path(folder)),
            }
    record["machine"] = platform.machine()
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
