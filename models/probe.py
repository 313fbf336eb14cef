"""Measure what models/memory.py predicts: the longest prompt at full completion length, run once.

Longest first: a run that will not fit fails here, in its first minute, and not hours later when
such a question comes up. Nothing of the run changes: the adapter is put back bit for bit, no random
number is drawn, and the optimizer is the probe's own.
"""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from torch import Tensor

from models.chat import Example
from models.memory import MB, Work, largest_pass, sizes_of
from models.policy import Policy
from models.sampling.sampler import Task, sample_in_parts
from models.tree import Group, Prompt

NEVER = frozenset({-1})  # an end of sequence that no token is: every completion is of full length
PROCESS = Path("/proc/self")
# Where a container says how much memory it may have ("max": no limit).
CGROUPS = [Path("/sys/fs/cgroup", name) for name in ("memory.max", "memory/memory.limit_in_bytes")]


def longest_prompt(policy: Policy, examples: Sequence[Example]) -> tuple[Example, int, int]:
    """The example with the most prompt tokens, their number, and how many are of images.

    The tower is not run: an image's size says how many tokens it takes. Images are opened from the
    longest text on, until no other can be longer even if its images were as large as they may be.
    """
    chat, most = policy.chat, most_image_tokens(policy)
    texts = {example.prompt: len(example.images) for example in examples}
    words = {text: len(chat.encode(text, [0] * images)[0]) for text, images in texts.items()}
    kept: dict[str, int] = {}  # image -> tokens

    def image_tokens(example: Example) -> int:
        for image in example.images:
            if image.key not in kept:
                kept[image.key] = tokens_of(policy, *image.open().size)
        return sum(kept[image.key] for image in example.images)

    def bound(example: Example) -> int:
        return words[example.prompt] + most * len(example.images)

    best = (examples[0], 0, 0)
    for example in sorted(examples, key=bound, reverse=True):
        if bound(example) <= best[1]:
            break
        images = image_tokens(example)
        if words[example.prompt] + images > best[1]:
            best = (example, words[example.prompt] + images, images)
    return best


def longest_possible(policy: Policy, examples: Sequence[Example]) -> tuple[int, int]:
    """What `longest_prompt` cannot exceed, at a glance: a byte is a token, images are of full size.

    (tokens, those of images)
    """
    most = most_image_tokens(policy)
    images = max(len(example.images) for example in examples)
    frame = len(policy.chat.encode("", [most] * images)[0])
    return frame + max(len(example.prompt.encode()) for example in examples), most * images


def most_image_tokens(policy: Policy) -> int:
    """Tokens of an image as large as --max-pixels allows."""
    processor = policy.vision.processor
    return processor.size["longest_edge"] // (processor.patch_size * processor.merge_size) ** 2


def tokens_of(policy: Policy, width: int, height: int) -> int:
    """Tokens of an image of this size; 0 for one that the processor refuses (200 to 1)."""
    processor = policy.vision.processor
    try:
        patches = processor.get_number_of_image_patches(height, width)
    except ValueError:
        return 0
    return patches // processor.merge_size**2


def available(device: torch.device) -> int:
    """Bytes that this process may have of the device, those that it has already among them: of a
    CPU's memory its share, where torchrun has started several on this machine."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device)
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    free = next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable"))
    texts = [file.read_text().strip() for file in CGROUPS if file.is_file()]
    limits = [int(text) for text in texts if text.isdecimal()]
    others = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return min([free // others + resident(), *(limit // others for limit in limits)])


def resident() -> int:
    """Bytes of the process that are in memory, pages of files that it has mapped among them."""
    return _status("VmRSS")


def _status(name: str) -> int:
    """A line of the process's status, in bytes; where there is none, the peak of all its life."""
    try:
        lines = (PROCESS / "status").read_text().splitlines()
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak << 10
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(name + ":"))


def loading_bytes(policy: Policy) -> int:
    """The peak so far, which on a CPU is that of reading the weights, if asked right after it."""
    return _status("VmHWM") if policy.device.type == "cpu" else 0


def process_bytes(policy: Policy) -> int:
    """What the process holds without the model. Weights read from safetensors are mapped, and come
    into memory only when a pass first uses them; converted to another dtype they are there."""
    if policy.device.type != "cpu":
        return 0
    weights = sum(parameter.nbytes for parameter in policy.model.parameters())
    adapters = sum(parameter.nbytes for parameter in policy.parameters())
    mapped, found, here = 0, False, False
    with suppress(OSError):
        for line in (PROCESS / "smaps").read_text().splitlines():
            if "-" in line.split()[0]:  # addresses: the next mapping
                here = line.endswith(".safetensors")
                found |= here
            elif here and line.startswith("Rss:"):
                mapped += int(line.split()[1]) << 10
    return max(0, resident() - (mapped + adapters if found else weights))


@contextmanager
def peak_of(device: torch.device, peaks: dict[str, float], name: str) -> Iterator[None]:
    """Note the peak inside, in MB: allocated on a GPU, else resident.

    Where the high-water mark of a process cannot be set back, it is the highest so far.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with suppress(OSError):
            (PROCESS / "clear_refs").write_text("5")
    try:
        yield
    finally:
        gpu = device.type == "cuda"
        peaks[name] = (torch.cuda.max_memory_allocated(device) if gpu else _status("VmHWM")) / MB


def probe(
    policy: Policy, example: Example, work: Work, temperature: float, reference: bool
) -> dict[str, float]:
    """Peaks in MB of sampling, reference pass, update and optimizer step of the largest step.

    Raises what the device raises when its memory is at an end.
    """
    parameters, peaks = policy.parameters(), {}
    before = [(p.detach().cpu().clone(), p.grad) for p in parameters]
    device = policy.device
    try:
        with peak_of(device, peaks, "vision tower"):
            (prompt,) = policy.encode([example], work.completion)
        completions = torch.full((work.group_size, work.completion), policy.chat.end)
        if work.samples:
            with peak_of(device, peaks, "sampling"):
                completions = _sample(policy, prompt, work, temperature)
        groups = _largest_pass(policy, prompt, completions, work)
        if reference:
            with peak_of(device, peaks, "reference"), torch.no_grad(), policy.reference():
                policy.logprobs(groups, temperature)
        optimizer = torch.optim.AdamW(parameters)
        with peak_of(device, peaks, "update"):
            for parameter in parameters:
                parameter.grad = torch.zeros_like(parameter)
            policy.logprobs(groups, temperature)[0].sum().backward()
        with peak_of(device, peaks, "optimizer step"):
            optimizer.step()
    finally:
        with torch.no_grad():
            for parameter, (values, gradient) in zip(parameters, before, strict=True):
                parameter.copy_(values)
                parameter.grad = gradient
    return peaks


def _sample(policy: Policy, prompt: Prompt, work: Work, temperature: float) -> Tensor:
    """(G, L) completions that do not end: those of the first of B equal groups."""
    prompts = [prompt] * work.prompts_per_step
    rows = len(prompts) * work.group_size
    with torch.no_grad():
        task = Task(
            language_model=policy.language_model,
            head=policy.head,
            banned=policy.banned,
            eos=NEVER,
            prompts=prompts,
            embeds=[policy.embed(p.input_ids.to(policy.device), p.features) for p in prompts],
            group_size=work.group_size,
            uniforms=torch.full((rows, work.completion), 0.5, dtype=torch.float64),
            temperature=temperature,
            max_length=work.completion,
        )
        drawn = sample_in_parts(policy.sampler, task)
    return drawn.tokens[: work.group_size].clone()


def _largest_pass(policy: Policy, prompt: Prompt, completions: Tensor, work: Work) -> list[Group]:
    """The groups of the largest pass, their completions cut where several have to share it."""
    largest = largest_pass(sizes_of(policy), work)
    given = [ids[: largest.inputs + 1] for ids in completions]
    return [Group(prompt, given, [True] * len(given))] * largest.groups
