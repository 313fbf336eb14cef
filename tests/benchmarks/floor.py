"""How far each phase of a step is from the least time that this machine could take.

    nice -n 19 python tests/benchmarks/floor.py                             3 minutes on 2 cores
    python tests/benchmarks/floor.py --model 2B --prompts 1 --dtype bfloat16 --checkpointing

The floor of a phase is the larger of its operations at the rate of the best large matrix product
and its bytes at the rate of the best copy or sum, on the same threads; what it needs at least is
counted in counts.py. Floors by bytes are none where weights stay in a cache, as those of a small
model may. A shared machine is a third faster or slower from one second to the next: rates are
medians of calls, taken anew after every repeat of the step, and then medians of these, as phases
are. At its luckiest second the machine could do a fifth more.
What a phase's seconds are of, phases.py says.
Writes tests/benchmarks/results/floor.json.
"""

import argparse
import json
import platform
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
from transformers import Qwen2VLConfig

from models.policy import Policy
from tests.benchmarks import counts
from tests.benchmarks.counts import Cost, Sizes, Work
from tests.benchmarks.phases import Case, add_flags, middle, now, open_random, rank_of, repeated

RESULTS = Path(__file__).parent / "results"
SQUARES = {"cpu": (1024, 2048), "cuda": (4096, 8192)}
LARGE = 256 << 20  # bytes to copy: far more than any cache
PHASES = ("vision tower", "prefill", "decode", "reference", "forward", "backward")


class Rates(NamedTuple):
    """What the machine can do."""

    flops: float  # a second
    bytes: float  # a second


def median_seconds(function: Callable[[], object], device: torch.device) -> float:
    """Of five calls, after one that warms up."""
    function()
    taken = []
    for _ in range(5):
        start = now(device)
        function()
        taken.append(now(device) - start)
    return median(taken)


def rates(sizes: Sizes, tokens: int, dtype: torch.dtype, device: torch.device) -> Rates:
    """The best of large products, squares and the model's own MLP with `tokens` rows. In float32
    too: a CPU without bfloat16 instructions is faster there, and may compute so what it keeps in
    bfloat16."""
    shapes = [(side, side, side) for side in SQUARES[device.type]]
    shapes += [(tokens, sizes.hidden, sizes.intermediate)]
    shapes += [(tokens, sizes.intermediate, sizes.hidden)]
    kinds = {dtype, torch.float32}
    flops = max(product_rate(shape, kind, device) for kind in kinds for shape in shapes)
    return Rates(flops, bandwidth(device))


def product_rate(shape: tuple[int, int, int], dtype: torch.dtype, device: torch.device) -> float:
    """Operations a second of (n, k) times (k, m), as a linear has it: both along k."""
    n, k, m = shape
    a, b = (torch.ones(rows, k, dtype=dtype, device=device) for rows in (n, m))
    return 2 * n * k * m / median_seconds(lambda: a @ b.T, device)


def bandwidth(device: torch.device) -> float:
    """Bytes a second of the better of a copy, which reads and writes, and a sum, which reads."""
    source = torch.ones(LARGE // 4, device=device)
    target = torch.empty_like(source)
    copy = 2 * LARGE / median_seconds(lambda: target.copy_(source), device)
    return max(copy, LARGE / median_seconds(source.sum, device))


def needed(
    config: Qwen2VLConfig, case: Case, rank: int, itemsize: int, checkpointing: bool
) -> dict[str, Cost]:
    """The fewest operations and bytes of every phase that the case has."""
    sizes, work = counts.sizes_of(config, rank, itemsize), case.work
    forth, back = counts.update(sizes, work, checkpointing)
    every = (
        counts.vision(counts.tower_of(config, itemsize), work.prompts, case.patches),
        counts.prefill(sizes, work),
        counts.decode(sizes, work),
        counts.reference(counts.sizes_of(config, 0, itemsize), work),
        forth,
        back,
    )
    return {name: cost for name, cost in zip(PHASES, every, strict=True) if name in case.seconds}


def compared(case: Case, costs: dict[str, Cost], speed: Rates) -> dict[str, dict[str, float]]:
    """A row of the table for each phase, and one for a token step of decoding."""
    steps = case.work.completion - 1
    rows = [(name, costs[name], case.seconds[name]) for name in costs if costs[name].flops]
    if steps:
        a_step = Cost(*(part // steps for part in costs["decode"]))
        rows.append(("decode, a token step", a_step, case.seconds["decode"] / steps))
    table = {}
    for name, cost, seconds in rows:
        by_flops, by_bytes = cost.flops / speed.flops, cost.bytes / speed.bytes
        table[name] = {
            "gflop": cost.flops / 1e9,
            "gb": cost.bytes / 1e9,
            "floor_s": max(by_flops, by_bytes),
            "floor_is_of_bytes": by_bytes > by_flops,
            "measured_s": seconds,
            "times_over_floor": seconds / max(by_flops, by_bytes),
        }
    return table


def lines(table: dict[str, dict[str, float]]) -> Iterator[str]:
    yield f"{'phase':22}{'GFLOP':>10}{'GB':>9}{'floor s':>11}{'measured s':>12}{'times':>8}"
    for name, row in table.items():
        by = "b" if row["floor_is_of_bytes"] else " "
        counted = f"{row['gflop']:10.2f}{row['gb']:9.3f}{row['floor_s']:10.4f}{by}"
        yield f"{name:22}{counted}{row['measured_s']:12.4f}{row['times_over_floor']:8.2f}"


def keep(file: Path, found: dict[str, Any]) -> None:
    """Add a case to a file of results, in place of one of the same name."""
    before = json.loads(file.read_text()) if file.is_file() else {"cases": []}
    cases = [case for case in before["cases"] if case["case"] != found["case"]]
    file.parent.mkdir(exist_ok=True)
    record = {**before, "cases": [*cases, found]}
    file.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def name_of(policy: Policy, side: int, work: Work, flags: argparse.Namespace) -> str:
    kind = f"{flags.model} in {str(policy.dtype).removeprefix('torch.')} on {policy.device.type}"
    step = f"{work.prompts} x {work.group_size} x {work.completion} tokens, beta {flags.beta:g}"
    return f"{kind}, images of {side}, {step}{', checkpointing' * policy.checkpointing}"


def look(policy: Policy, config: Qwen2VLConfig, side: int, flags: argparse.Namespace) -> None:
    """Measure a case, print its table and keep it."""
    work = Work(flags.prompts, 0, flags.group_size, flags.length)
    rank, item = rank_of(policy), policy.dtype.itemsize
    cases, speeds = [], []
    for case in repeated(policy, side, work, flags.beta, flags.repeats):
        cases.append(case)
        rows = work.prompts * counts.tree(case.work).tokens
        sizes = counts.sizes_of(config, rank, item)
        speeds.append(rates(sizes, rows, policy.dtype, policy.device))
    case, speed = middle(cases), Rates(*map(median, zip(*speeds, strict=True)))
    costs = needed(config, case, rank, item, policy.checkpointing)
    table = compared(case, costs, speed)
    found = {
        "case": name_of(policy, side, work, flags),
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "repeats": flags.repeats,
        "prompt_tokens": case.work.prompt,
        "gflop_s": speed.flops / 1e9,
        "gb_s": speed.bytes / 1e9,
        "phases": table,
    }
    print(f"{found['case']}: prompts of {case.work.prompt} tokens")
    print(f"{speed.flops / 1e9:.0f} GFLOP/s and {speed.bytes / 1e9:.1f} GB/s (b: floor of bytes)")
    print(*lines(table), sep="\n", flush=True)
    keep(RESULTS / "floor.json", found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add_flags(parser)
    parser.add_argument("--side", type=int, nargs="+", default=[224, 448], help="pixels of images")
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--group-size", type=int, default=8)
    parser.add_argument("--length", type=int, default=64, help="tokens of a completion")
    flags = parser.parse_args()
    torch.set_num_threads(flags.threads)
    with tempfile.TemporaryDirectory() as folder:
        policy, config = open_random(flags.model, flags.models or Path(folder), flags)
        for side in flags.side:
            look(policy, config, side, flags)


if __name__ == "__main__":
    main()
