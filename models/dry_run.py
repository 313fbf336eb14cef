"""--dry-run: what will fit, said before the first step; and the warning where it will not.

python train.py --dry-run
python train.py --dry-run --memory-limit 40GB
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch.distributed as dist

from grpo.settings.config import Config
from grpo.settings.errors import UsageError
from models.chat import Example
from models.memory import MB, Plan, Sizes, Work, activations, largest_pass, sizes_of
from models.memory import plan as planned
from models.policy import Policy
from models.probe import (
    available,
    loading_bytes,
    longest_possible,
    longest_prompt,
    probe,
    process_bytes,
)

MOST = 4096  # the largest G or B that is looked for
UNITS = {"mb": 10**6, "mib": 2**20, "gb": 10**9, "gib": 2**30}


class MemoryFlags(NamedTuple):
    """What train.py was asked about memory, which is no setting of a run."""

    dry_run: bool = False
    limit: int | None = None  # bytes


NOT_ASKED = MemoryFlags()


def memory_flags(words: Sequence[str]) -> tuple[list[str], MemoryFlags]:
    """The words of a command line without --dry-run and --memory-limit, and these.

    >>> memory_flags(["--dry-run", "--steps", "1", "--memory-limit", "40GB"])
    (['--steps', '1'], MemoryFlags(dry_run=True, limit=40000000000))
    """
    rest, dry_run, limit, left = [], False, None, iter(words)
    for word in left:
        name, equals, value = word.partition("=")
        if name.replace("_", "-") == "--memory-limit":
            limit = read_limit(value if equals else next(left, ""))
        elif word.replace("_", "-") == "--dry-run":
            dry_run = True
        else:
            rest.append(word)
    return rest, MemoryFlags(dry_run, limit)


def read_limit(text: str) -> int:
    """Bytes of 40GB (10^9 bytes each), 40GiB (2^30), 24000MB or MiB. Raises UsageError.

    >>> read_limit("1.5GB"), read_limit("1 mib")
    (1500000000, 1048576)
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([MG]i?B)", text.strip(), re.ASCII | re.IGNORECASE)
    size = int(float(found[1]) * UNITS[found[2].lower()]) if found else 0
    if not size:
        given = f" {text}" if text else ""
        wanted = "expected an amount and its unit, such as 40GB, 40GiB or 24000MB"
        raise UsageError(f"--memory-limit{given}: {wanted}")
    return size


def before_the_first_step(
    policy: Policy,
    questions: Sequence[Example],
    target: Callable[[Any], str],
    config: Config,
    asked: MemoryFlags,
) -> str:
    """The plan as a text if `asked` for, else "". Warns on stderr of a run that will not fit.

    `target` says what a supervised run imitates. On a GPU the largest step is always tried out.
    """
    there = available(policy.device)
    limit = asked.limit or there
    sizes = sizes_of(policy, process_bytes(policy), loading_bytes(policy))
    bound = largest_step(policy, questions, target, config, *longest_possible(policy, questions))
    if not asked.dry_run and sizes.on_cpu and planned(sizes, bound).peak <= limit:
        return ""  # without a look at every question
    example, *tokens = longest_prompt(policy, questions)
    work = largest_step(policy, questions, target, config, *tokens)
    plan = planned(sizes, work)
    if plan.peak > limit:
        takes = f"the largest step takes about {mb(plan.peak)}, more than {mb(limit)}"
        print(f"train.py: {takes}; what fits: {fitting(sizes, work, limit)}", file=sys.stderr)
    if not asked.dry_run and sizes.on_cpu:
        return ""
    peaks: dict[str, float] = {}
    if plan.peak <= there or not sizes.on_cpu:  # a CPU's system would kill something
        try:
            peaks = probe(policy, example, work, config.temperature, config.kl_coef > 0)
        except (RuntimeError, MemoryError) as error:
            if not policy.out_of_memory(error):
                raise
            ran_out = "the largest step, tried out, ran out of memory"
            print(f"train.py: {ran_out}; what fits: {fitting(sizes, work, limit)}", file=sys.stderr)
    if not asked.dry_run:
        return ""
    fits = f"fits {mb(limit)}: {fitting(sizes, work, limit)}"
    return "\n".join([*table(sizes, work, plan), *measured(plan, peaks), fits])


def largest_step(
    policy: Policy,
    questions: Sequence[Example],
    target: Callable[[Any], str],
    config: Config,
    tokens: int,
    image_tokens: int,
) -> Work:
    """What a step is made of when all its prompts are as long as the longest."""
    samples, trained = config.method == "grpo", config.steps * config.prompts_per_step
    images = {image.key for question in questions for image in question.images}
    size, length = config.group_size, config.max_completion_length
    if not samples:
        longest = max(map(target, questions), key=len)
        size, length = 1, len(policy.completion_ids(longest))
    share, kept = -(-config.prompts_per_step // world()), min(trained, len(images))
    return Work(tokens, image_tokens, length, size, share, samples, kept)


def world() -> int:
    """How many there are; each has its share of a step's prompts, and its own memory."""
    return dist.get_world_size() if dist.is_initialized() else 1


def table(sizes: Sizes, work: Work, plan: Plan) -> list[str]:
    """What is held when, in MB."""
    most = largest_pass(sizes, work)
    other = activations(sizes, most, not sizes.checkpointing)
    switched = "without" if sizes.checkpointing else "with"
    images = f"{work.image_tokens} of images"
    return [
        f"the largest step: a prompt of {work.prompt} tokens ({images}), "
        f"{work.group_size} x {work.completion} completion tokens, {work.prompts_per_step} prompts",
        "held all along, in MB of 2^20 bytes",
        *lines(plan.standing),
        "and while sampling; of prompts and logits, the larger",
        *lines(plan.sampling),
        f"or while updating, {most.tokens} tokens in a pass; of the last two, the larger",
        *lines(plan.update),
        f"{'':22}{other / MB:10,.1f}  activations {switched} checkpointing",
        *([f"{'peak of loading':22}{plan.loading / MB:10,.1f}"] if plan.loading else []),
        f"{'peak, predicted':22}{plan.step / MB:10,.1f}",
    ]


def lines(parts: dict[str, int]) -> list[str]:
    return [f"  {name:20}{size / MB:10,.1f}" for name, size in parts.items()]


def measured(plan: Plan, peaks: dict[str, float]) -> list[str]:
    """The peaks of the phases as they were, and how far the prediction is off."""
    if not peaks:
        return ["not measured: it does not fit this machine"]
    most = max(peaks.values())
    off = plan.step / MB / most - 1
    return [
        "measured, each phase's own peak",
        *(f"  {name:20}{size:10,.1f}" for name, size in peaks.items()),
        f"{'peak, measured':22}{most:10,.1f}  (predicted: {off:+.1%})",
    ]


def fitting(sizes: Sizes, work: Work, limit: int) -> str:
    """The largest G and B that fit, as flags, without and with checkpointing."""
    ways = [("", sizes)]
    if not sizes.checkpointing:
        on = replace(sizes, checkpointing=True, token_budget=sizes.token_budget_checkpointed)
        ways.append((" with --gradient-checkpointing on", on))
    names = ["group_size", "prompts_per_step"] if work.samples else ["prompts_per_step"]
    found = []
    for words, chosen in ways:
        most = {name: largest(chosen, work, name, limit) for name in names}
        most["prompts_per_step"] *= world()
        least = {"group_size": 2, "prompts_per_step": 1}
        flags = [
            f"--{n.replace('_', '-')} {size}" + " or more" * (size >= MOST)
            for n, size in most.items()
            if size >= least[n]
        ]
        if flags:
            found.append(" or ".join(flags) + words)
    if found:
        return "; ".join(found)
    return "nothing of this; use a smaller --max-completion-length, --max-pixels or --model"


def mb(size: int) -> str:
    return f"{size / MB:,.0f} MB"


def largest(sizes: Sizes, work: Work, name: str, limit: int) -> int:
    """The largest `group_size` or `prompts_per_step` that fits `limit` bytes; 0: not even one."""

    def fits(value: int) -> bool:
        return planned(sizes, replace(work, **{name: value})).peak <= limit

    low, high = 0, MOST + 1  # what fits and what does not: memory only grows with either
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
