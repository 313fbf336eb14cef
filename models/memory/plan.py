"""What will fit, said before a run reads its weights: --dry-run, and checkpointing "auto".

    python train.py --dry-run
    python train.py --dry-run --recipe medvlm-r1 --device cuda --memory-limit 40GB

A plan has three fake steps at most: the largest step without checkpointing, the same with it, and
one with the largest group that fits. Between steps, memory is a line in the tokens of a pass.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from grpo.settings.config import Config, cache_folder
from models.chat import Chat, Example
from models.images.features import MEMORY_LIMIT
from models.loading.load import SHIPPED
from models.memory.fitting import Peaks, fitting, mb, table
from models.memory.flags import MemoryFlags, available, resident
from models.memory.longest_prompt import longest_prompt
from models.open_policy import Parts, planned_device, without_weights
from models.policy import Policy

LARGE = 1_000_000_000  # parameters from which checkpointing "auto" makes a plan; below, it is off
# What a GPU holds that is no tensor of torch's: the context and the kernels of CUDA (0.5 GB),
# workspaces of cuBLAS on two streams and of attention's backward pass (0.3 GB), the warm-up of a
# graph on its own stream (0.2 GB), and free blocks too small for the next tensor, 2 or 3 % of
# 40 GB. Estimated: none of it was measured on a GPU.
RESERVE = 2 << 30
# Run one step with this policy, these settings, this question, and this text as its completion
# (supervised training).
Step = Callable[[Policy, Config, Example, str], None]


@dataclass(frozen=True)
class Plan:
    """Whether to checkpoint, and what --dry-run prints."""

    checkpointing: bool
    text: str = ""

    def applied(self, config: Config) -> Config:
        """The settings to open the policy with: checkpointing "auto" has become on or off."""
        return replace(config, gradient_checkpointing="on" if self.checkpointing else "off")


def plan_memory(
    config: Config,
    adapter: Path | None,
    questions: Sequence[Example],
    target: Callable[[Any], str],
    step: Step,
    asked: MemoryFlags,
    processes: int,
) -> Plan:
    """The plan, if a flag or checkpointing "auto" needs one. Warns of a run that will not fit.

    `target` says what a supervised run imitates; each of the `processes` takes its share of a
    step's prompts. Raises UsageError as loading the model does.
    """
    given, wanted = config.gradient_checkpointing, asked.dry_run or asked.limit is not None
    if not wanted and (given != "auto" or config.model in SHIPPED):
        return Plan(given == "on")
    process, device = resident(), planned_device(config.device, asked.dry_run)
    parts = without_weights(config, device, adapter)
    large = sum(p.numel() for p in parts.model.parameters()) >= LARGE
    if not wanted and not large:
        return Plan(checkpointing=False)

    limit, share = asked.limit or available(device), -(-config.prompts_per_step // processes)
    example, *tokens = longest_prompt(Chat(parts.tokenizer), parts.processor, questions)
    text = max(map(target, questions), key=len) if config.method == "sft" else ""
    beside = {"reserve for CUDA": RESERVE}
    if device.type == "cpu":
        features = features_kept(config, parts, questions, tokens[1])
        beside = {"process": process, "image features": features}
    room = limit - sum(beside.values())

    def peaks_of(on: bool, size: int = config.group_size) -> Peaks:
        changed = {"prompts_per_step": share, "group_size": size, "updates_per_rollout": 1}
        one = replace(config, **changed, dynamic_sampling=0, out="")

        def measure() -> Peaks:
            from models.memory.fake_step import fake_step  # most runs need no plan

            return fake_step(parts, device, on, share, lambda p: step(p, one, example, text))

        model = str(parts.model.get_base_model().config)
        return kept(
            cache_folder(config.cache), (one, model, device.type, tokens, text, on), measure
        )

    peaks = {given == "on": peaks_of(given == "on")}
    first = peaks[given == "on"]
    if (given == "auto" and first.peak > room) or (asked.dry_run and large):
        peaks[given != "on"] = peaks_of(given != "on")
    on = given == "on" or (given == "auto" and first.peak > room)
    fits = f"fits {mb(limit)}: {fitting(peaks, room, peaks_of if asked.dry_run else None)}"
    if peaks[on].peak > room:
        takes = f"the largest step takes about {mb(limit - room + peaks[on].peak)}"
        print(f"train.py: {takes}, more than {mb(limit)}; what {fits}", file=sys.stderr)
    largest = f"the largest step: a prompt of {tokens[0]} tokens ({tokens[1]} of images), "
    largest += f"{first.sizes.size} x {first.sizes.length} completion tokens, {share} prompts"
    return Plan(on, "\n".join([largest, *table(peaks, beside), fits]))


def features_kept(
    config: Config, parts: Parts, questions: Sequence[Example], image_tokens: int
) -> int:
    """Bytes of the image features that a run keeps in the host's memory, if every image has so many
    tokens."""
    width = parts.model.get_base_model().get_input_embeddings().weight[0].nbytes
    images = {image.key for question in questions for image in question.images}
    many = min(config.steps * config.prompts_per_step, len(images))
    return min(MEMORY_LIMIT, many * image_tokens * width)


def kept(folder: Path | None, settings: tuple, measure: Callable[[], Peaks]) -> Peaks:
    """What `measure` gives; read from the cache if it was measured before with these settings, this
    torch and these source files."""
    digest = hashlib.sha256(repr((settings, torch.__version__)).encode())
    root = Path(__file__).parents[2]
    for source in sorted((*root.glob("models/**/*.py"), *root.glob("grpo/*.py"))):
        digest.update(source.read_bytes())
    file = (folder or Path()) / "plans" / f"{digest.hexdigest()[:32]}.json"
    with suppress(OSError, ValueError, TypeError, KeyError):  # none, or damaged
        if folder:
            return Peaks.read(file)
    peaks = measure()
    with suppress(OSError):
        if folder:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(asdict(peaks)))
    return peaks
