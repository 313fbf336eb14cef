"""Seconds of each phase of a step, through a Policy's public methods; for floor.py and growth.py.

Random models of memory.py, images of noise, completions of full length (no end of sequence can be
drawn). The tower's time is that of Policy.encode: preparing images, positions and tokens is in it.
Prefill is sampling one token a row, and decoding what L tokens take more. Reference is
Policy.logprobs without gradients and without adapters, forward the same with both. Optimizer,
rewards and records are not timed.
"""

import argparse
import itertools
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch
from transformers import Qwen2VLConfig

from models.loading.load import folder_of
from models.open_policy import load_policy
from models.policy import Policy
from models.tree import Group, Prompt
from tests.benchmarks.counts import Work
from tests.benchmarks.memory import make_model
from tests.tiny import NoiseImage, Question

TEXT = "Which side is the lesion on?\nA) left\nB) right\nThink first, then answer with a letter."
SEEDS = itertools.count()  # of images


class Case(NamedTuple):
    """A measured step; `patches` are those of an image."""

    work: Work
    patches: int
    seconds: dict[str, float]  # by phase


def now(device: torch.device) -> float:
    """Seconds, once the device has done all it was asked to."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def make_questions(count: int, side: int) -> list[Question]:
    """Questions about images that no other call has had, and so no cache."""
    return [Question(TEXT, (NoiseImage(next(SEEDS), side, side),)) for _ in range(count)]


def ban_the_end(policy: Policy) -> None:
    """Completions of a known length."""
    policy.banned[sorted(policy.chat.eos)] = True


def timed_rollout(
    policy: Policy, prompts: Sequence[Prompt], size: int, length: int
) -> tuple[list[Group], float]:
    """Groups of full length, and the seconds of sampling them."""
    keys = [(0, i) for i in range(len(prompts))]
    start = now(policy.device)
    groups = policy.sample(prompts, size, keys, temperature=1.0, max_completion_length=length)
    return groups, now(policy.device) - start


def timed_reference(policy: Policy, groups: Sequence[Group]) -> float:
    start = now(policy.device)
    with policy.reference():
        for part in policy.passes(groups):
            policy.logprobs([groups[i] for i in part], 1.0)
    return now(policy.device) - start


def timed_update(policy: Policy, groups: Sequence[Group]) -> tuple[float, float]:
    """Seconds of all passes forward, and of all backward."""
    forth = back = 0.0
    for part in policy.passes(groups):
        start = now(policy.device)
        logprobs, _ = policy.logprobs([groups[i] for i in part], 1.0)
        between = now(policy.device)
        logprobs.sum().backward()
        forth, back = forth + between - start, back + now(policy.device) - between
        del logprobs
    return forth, back


def phases(
    policy: Policy, questions: Sequence[Question], size: int, length: int, beta: float
) -> tuple[list[Prompt], dict[str, float]]:
    """The prompts and the seconds of every phase of one step."""
    start = now(policy.device)
    prompts = policy.encode(questions, length)
    taken = {"vision tower": now(policy.device) - start}
    _, taken["prefill"] = timed_rollout(policy, prompts, size, 1)
    groups, whole = timed_rollout(policy, prompts, size, length)
    taken["decode"] = whole - taken["prefill"]
    if beta:
        taken["reference"] = timed_reference(policy, groups)
    taken["forward"], taken["backward"] = timed_update(policy, groups)
    return prompts, taken


def repeated(policy: Policy, side: int, work: Work, beta: float, repeats: int) -> Iterator[Case]:
    """`repeats` times the same step, after one that warms up; the prompt's length is filled in."""
    for repeat in range(repeats + 1):
        questions = make_questions(work.prompts, side)
        prompts, seconds = phases(policy, questions, work.group_size, work.completion, beta)
        prompt = prompts[0]
        patches = len(prompt.features[0]) * policy.merge**2
        if repeat:
            yield Case(work._replace(prompt=len(prompt.input_ids)), patches, seconds)


def middle(cases: Sequence[Case]) -> Case:
    """The medians of a repeated step."""
    seconds = [case.seconds for case in cases]
    return cases[0]._replace(
        seconds={name: median(s[name] for s in seconds) for name in seconds[0]}
    )


def open_random(name: str, kept: Path, flags: argparse.Namespace) -> tuple[Policy, Qwen2VLConfig]:
    """The policy of a random model, by name or folder, and its config."""
    model = make_model(name, Path(name) if Path(name).is_dir() else kept / name)
    policy = load_policy(
        model,
        dtype=flags.dtype,
        device=flags.device,
        gradient_checkpointing="on" if flags.checkpointing else "off",
    )
    ban_the_end(policy)
    return policy, Qwen2VLConfig.from_pretrained(folder_of(model))


def rank_of(policy: Policy) -> int:
    """The r of LoRA's matrices, (r, in) and (out, r)."""
    return min(policy.parameters()[0].shape)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """What growth.py has too."""
    parser.add_argument("--model", default="29M", help="phantom, 29M, 2B or a folder")
    parser.add_argument("--models", type=Path, help="folder to keep the random models in")
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dtype", default="auto", choices=("auto", "float32", "bfloat16"))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--beta", type=float, default=0.04, help="0: no reference")
