"""What will fit, said before a run reads its weights: --dry-run, and checkpointing "auto".

    python train.py --dry-run
    python train.py --dry-run --recipe medvlm-r1 --device cuda --memory-limit 40GB

A plan has three fake steps at most: the largest step without checkpointing, the same with it, and
one with the largest group that fits. Between steps, memory is a line in the tokens of a pass.
"""

import hashlib
import json
import os
import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cache, partial
from operator import itemgetter
from pathlib import Path
from typing import Any

import psutil  # comes with peft
import torch

from grpo.settings.config import Config, cache_folder
from grpo.settings.errors import UsageError
from models.chat import Chat, Example
from models.device import pick_device
from models.images.features import MEMORY_LIMIT, image_tokens
from models.loading.load import SHIPPED
from models.memory.fitting import Peaks, fitting, mb, table
from models.open_policy import without_weights
from models.policy import Policy

LARGE = 1_000_000_000  # parameters from which checkpointing "auto" makes a plan; below, it is off
# What a GPU holds that is no tensor of torch's: the context and the kernels of CUDA (0.5 GB),
# workspaces of cuBLAS on two streams and of attention's backward pass (0.3 GB), the warm-up of a
# graph on its own stream (0.2 GB), and free blocks too small for the next tensor, 2 or 3 % of
# 40 GB. Estimated: none of it was measured on a GPU.
RESERVE = 2 << 30
# Where a container says how much memory it may have ("max": no limit).
CGROUPS = [Path("/sys/fs/cgroup", name) for name in ("memory.max", "memory/memory.limit_in_bytes")]


def plan_memory(
    config: Config,
    adapter: Path | None,
    questions: Sequence[Example],
    target: Callable[[Any], str],
    step: Callable[[Policy, Config, Example, str], None],
    asked: Namespace,
    processes: int,
) -> tuple[Config, str]:
    """The settings to open the policy with, and what --dry-run prints.

    There is a plan if a flag of `asked` or checkpointing "auto" needs one: "auto" then
    becomes on or off. Warns of a run that will not fit. `step` runs one step with a policy,
    settings, a question, and a text as its completion. `target` says what a supervised run
    imitates; each of the `processes` takes its share of a step's prompts. Raises UsageError as
    loading the model does.
    """
    given, wanted = config.gradient_checkpointing, asked.dry_run or asked.memory_limit is not None
    if not wanted and (given != "auto" or config.model in SHIPPED):
        return config, ""
    process, device = resident(), pick_device(config.device, there=not asked.dry_run)
    parts = without_weights(config, device, adapter)
    large = sum(p.numel() for p in parts.model.parameters()) >= LARGE
    if not wanted and not large:
        return config, ""
    from models.memory.fake_step import fake_step  # most runs need no plan

    limit, share = asked.memory_limit or available(device), -(-config.prompts_per_step // processes)
    example, *tokens = longest_prompt(Chat(parts.tokenizer), parts.processor, questions)
    text = max(map(target, questions), key=len) if config.method == "sft" else ""
    beside, model = {"reserve for CUDA": RESERVE}, parts.model.get_base_model()
    if device.type == "cpu":  # all images as large as those of the longest prompt
        images = {image.key for question in questions for image in question.images}
        features = tokens[1] * model.get_input_embeddings().weight[0].nbytes
        features *= min(config.steps * config.prompts_per_step, len(images))
        beside = {"process": process, "image features": min(MEMORY_LIMIT, features)}
    room = limit - sum(beside.values())
    one = replace(config, prompts_per_step=share, updates_per_rollout=1, dynamic_sampling=0, out="")

    def peaks_of(on: bool, size: int = config.group_size) -> Peaks:
        switch = "on" if on else "off"
        changed = replace(one, gradient_checkpointing=switch, group_size=size)
        settings = (changed, str(model.config), device.type, tokens, text)
        run = partial(step, config=changed, example=example, text=text)
        folder = cache_folder(config.cache)
        return kept(folder, settings, lambda: fake_step(parts, device, changed, run))

    on = given == "on"
    peaks = {on: peaks_of(on)}
    if (given == "auto" and peaks[on].peak > room) or (asked.dry_run and large):
        peaks[not on] = peaks_of(not on)
        on = on or (given == "auto" and peaks[on].peak > room)
    fits = f"fits {mb(limit)}: {fitting(peaks, room, peaks_of if asked.dry_run else None)}"
    if peaks[on].peak > room:
        takes = f"the largest step takes about {mb(limit - room + peaks[on].peak)}"
        print(f"train.py: {takes}, more than {mb(limit)}; what {fits}", file=sys.stderr)
    largest = f"the largest step: a prompt of {tokens[0]} tokens ({tokens[1]} of images), "
    largest += f"{peaks[on].size} x {peaks[on].length} completion tokens, {share} prompts"
    planned = replace(config, gradient_checkpointing="on" if on else "off")
    return planned, "\n".join([largest, *table(peaks, beside), fits])


def kept(folder: Path | None, settings: tuple, measure: Callable[[], Peaks]) -> Peaks:
    """What `measure` gives; read from the cache if it was measured before with these settings, this
    torch and these source files."""
    root = Path(__file__).parents[2]
    sources = sorted((*root.glob("models/**/*.py"), *root.glob("grpo/*.py")))
    known = (settings, torch.__version__, [source.read_bytes() for source in sources])
    name = hashlib.sha256(repr(known).encode()).hexdigest()[:32]
    file = Path(folder or os.devnull) / "plans" / f"{name}.json"  # without a cache: OSError
    with suppress(OSError, ValueError, TypeError):  # none, or damaged
        return Peaks(**json.loads(file.read_text()))
    peaks = measure()
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(vars(peaks)))
    return peaks


def longest_prompt(
    chat: Chat, processor: Any, examples: Sequence[Example]
) -> tuple[Example, int, int]:
    """The example with the most prompt tokens, their number, and how many are of images.

    An image's size says how many tokens it takes.
    """
    size_of = cache(lambda image: image.open().size)  # several questions share an image

    def measured(example: Example) -> tuple[Example, int, int]:
        images = [image_tokens(processor, size_of(image)) for image in example.images]
        return example, len(chat.encode(example.prompt, images)[0]), sum(images)

    return max(map(measured, examples), key=itemgetter(1))


def available(device: torch.device) -> int:
    """Bytes that this process may have of the device, those that it has already among them: of a
    CPU's memory its share, where torchrun has started several on this machine."""
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise UsageError(f"--device {device}: is not on this machine; name its --memory-limit")
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    texts = [file.read_text().strip() for file in CGROUPS if file.is_file()]
    others = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    free = psutil.virtual_memory().available // others + resident()
    return min([free, *(int(text) // others for text in texts if text.isdecimal())])


def resident() -> int:
    """Bytes of the process that are in memory."""
    return psutil.Process().memory_info().rss
