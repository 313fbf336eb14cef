"""What tracing costs: steps of the default phantom run, every other one traced, medians of both.

    python tests/benchmarks/tracing.py --steps 12 [--trace-blind]

With --trace-blind a traced step also scores its completions with blank images. Prints milliseconds
of a plain and of a traced step, their ratio, and the share that tracing takes of a run which traces
at its default. Processor time, so that other work on the machine says less.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parents[2]))

from data.controls.altered import blank_image
from data.load import load_split
from data.showing import described
from data.training_questions import question_order
from grpo.loop import grpo
from grpo.optim import adamw
from grpo.run.trace import score_blind, write_trace
from grpo.settings.config import Config
from grpo.settings.recipes import RECIPES
from models.open_policy import open_policy
from train import open_rewards


def timed(config: Config, folder: Path) -> Iterator[tuple[bool, float]]:
    """Whether a step was traced, and its seconds of processor time, the writing included."""
    policy = open_policy(config)
    examples = load_split(config, "train", config.train_size)
    draw = question_order(examples, config.seed, config.prompts_per_step)
    _, reward = open_rewards(config)
    start = time.process_time()
    optimizer = adamw(policy.parameters(), config)
    for step in grpo(policy, optimizer, draw, reward, config):
        traced = int(step.metrics["step"]) in config.traced_steps
        if traced:
            if config.trace_blind:
                score_blind(step, policy, config, blank_image)
            write_trace(folder, step, config, described, policy.chat.pieces)
        yield traced, time.process_time() - start
        start = time.process_time()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--trace-blind", action="store_true")
    options = parser.parse_args()
    steps = options.steps
    default = Config(**RECIPES["phantom"], recipe="phantom", cache="none", device="cpu", threads=1)
    share = len(default.traced_steps) / default.steps
    every_other = ",".join(map(str, range(3, steps + 2, 2)))
    short = {**vars(default), "steps": steps + 1, "trace_steps": every_other}
    short["trace_blind"] = options.trace_blind
    with tempfile.TemporaryDirectory() as folder:
        _, *times = timed(Config(**short), Path(folder))  # the first step also warms up
        size = sum(file.stat().st_size for file in Path(folder).rglob("*.*")) / steps * 2
    plain, traced = (median(s for t, s in times if t == kind) for kind in (False, True))
    ratio = traced / plain
    print(f"plain step {1000 * plain:.0f} ms, traced {1000 * traced:.0f} ms: {ratio:.3f} of it")
    print(f"{share:.0%} of {default.steps} steps traced, the default: {share * (ratio - 1):+.2%}")
    print(f"{size / 1000:.0f} kB a traced step")


if __name__ == "__main__":
    main()
