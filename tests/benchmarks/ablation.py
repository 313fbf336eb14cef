"""What each optimisation brings: every phase of a step with all of them, and without each.

    python tests/benchmarks/ablation.py                      4 minutes on 2 cores
    python tests/benchmarks/ablation.py --model phantom --sides 112

All variants take turns in one process on the same prompts and completions, and each figure is a
median over the rounds. `one row a completion` is the plain way: the prompt again for each of its G
completions. Writes tests/benchmarks/results/ablation.json.
"""

import argparse
import json
import platform
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
import torch.nn.functional as F

from models import attention, layers
from models import linear as products
from models.policy import Policy
from models.tree import Prompt
from tests.benchmarks.phases import (
    add_flags,
    make_questions,
    open_random,
    timed_reference,
    timed_rollout,
    timed_update,
)

FILE = Path(__file__).parent / "results" / "ablation.json"
PHASES = ("rollout", "reference", "forward", "backward")
NEVER = 1 << 60


@contextmanager
def by_autograd() -> Iterator[None]:
    """The same formulas without their derivatives."""

    def with_lora(x, weight, bias, a, b):
        return F.linear(x, weight, bias) + F.linear(F.linear(x, a), b)

    def rms_norm(x, weight, eps):
        return F.rms_norm(x, x.shape[-1:], weight, eps)

    def swiglu(x):
        gate, up = x.chunk(2, dim=-1)
        return F.silu(gate) * up

    ways = {"_RMSNorm": SimpleNamespace(apply=rms_norm), "_SwiGLU": SimpleNamespace(apply=swiglu)}
    lora = patch.object(products, "_WithLoRA", SimpleNamespace(apply=with_lora))
    with patch.multiple(layers, **ways), lora:
        yield


@contextmanager
def all_positions() -> Iterator[None]:
    """The last layer in full, of every token."""
    run = layers.Layers.__call__

    def whole(self, x, rope, attend, wanted=None):
        hidden = run(self, x, rope, attend)
        return hidden if wanted is None else hidden[wanted]

    with patch.object(layers.Layers, "__call__", whole):
        yield


def variants(policy: Policy) -> dict[str, Callable[[], AbstractContextManager]]:
    return {
        "all": nullcontext,
        "dense mask": lambda: patch.object(attention, "DENSE", NEVER),
        "tokens first in decoding": lambda: patch.object(products, "FEW", 0),
        "all positions in the last layer": all_positions,
        "derivatives by autograd": by_autograd,
        "one pass for all groups": lambda: patch.object(policy, "token_budget", NEVER),
        "one row a completion": nullcontext,
    }


def timed(policy: Policy, prompts: list[Prompt], size: int, length: int, name: str) -> list[float]:
    """Seconds of PHASES."""
    if name == "one row a completion":
        repeated = [prompt for prompt in prompts for _ in range(size)]
        groups, rollout = timed_rollout(policy, repeated, 1, length)
    else:
        groups, rollout = timed_rollout(policy, prompts, size, length)
    return [rollout, timed_reference(policy, groups), *timed_update(policy, groups)]


def compared(policy: Policy, side: int, flags: argparse.Namespace) -> dict:
    prompts = policy.encode(make_questions(flags.prompts, side))
    taken: dict[str, list[list[float]]] = {name: [] for name in variants(policy)}
    for _ in range(flags.repeats + 1):
        for name, variant in variants(policy).items():
            with variant():
                taken[name].append(timed(policy, prompts, flags.group_size, flags.length, name))
    rows = {}
    for name, rounds in taken.items():
        phases = dict(zip(PHASES, map(median, zip(*rounds[1:], strict=True)), strict=True))
        rows[name] = phases | {"step": sum(phases.values())}
    print(f"\n{flags.model}, images of {side} x {side}, {len(prompts[0].input_ids)} prompt tokens")
    print(f"{'without':34}" + "".join(f"{name:>11}" for name in (*PHASES, "step", "times")))
    for name, row in rows.items():
        times = row["step"] / rows["all"]["step"]
        figures = "".join(f"{seconds:11.2f}" for seconds in row.values())
        print(f"{'(nothing)' if name == 'all' else name:34}{figures}{times:11.2f}", flush=True)
    rounded = {n: {p: round(s, 3) for p, s in row.items()} for n, row in rows.items()}
    settings = {"model": flags.model, "side": side, "prompt_tokens": len(prompts[0].input_ids)}
    settings |= {"prompts": flags.prompts, "group_size": flags.group_size, "length": flags.length}
    return settings | {"seconds": rounded}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add_flags(parser)
    parser.add_argument("--sides", type=int, nargs="+", default=[224, 448])
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--group-size", type=int, default=8)
    parser.add_argument("--length", type=int, default=64)
    flags = parser.parse_args()
    torch.set_num_threads(flags.threads)
    with tempfile.TemporaryDirectory() as folder:
        policy, _ = open_random(flags.model, flags.models or Path(folder), flags)
        cases = [compared(policy, side, flags) for side in flags.sides]
    machine = {"torch": torch.__version__, "machine": platform.machine(), "threads": flags.threads}
    FILE.write_text(json.dumps(machine | {"cases": cases}, indent=2) + "\n")


if __name__ == "__main__":
    main()
