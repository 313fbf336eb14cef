"""A training step without numbers, at its true shapes: what does it hold at its peak?

The model's tensors are fake: they have a shape and a dtype, and neither values nor memory. Every
operation on them gives fake tensors again, and torch's memory tracker adds up those that are alive.
So what is measured is the step itself, not a formula for it.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.distributed._tools.mem_tracker import MemTracker

from grpo.settings.config import Config
from models.memory.fake_device import FakeDevice, fake_copy
from models.memory.fitting import Peaks, Sizes
from models.open_policy import Parts
from models.policy import Policy
from models.sampling.cuda_graph import GraphSampler
from models.tree import Group, Prompt

NEVER = frozenset({-1})  # an end of sequence that no token is: every completion is of full length


class Watch(MemTracker):
    """torch's memory tracker, with a peak for each phase of a step."""

    def __init__(self) -> None:
        super().__init__()
        self.phase, self.peaks, self.held = "before", {}, 0

    def begin(self, phase: str) -> None:
        """Begin a phase, or go on with it."""
        self.__exit__(None, None, None)
        self.peaks[self.phase] = max(self.peaks.get(self.phase, 0), self.bytes("peak"))
        self.held = self.held or self.bytes("current")  # before the first phase
        self.phase = phase
        self.__enter__()  # from here on the peak is counted anew

    def bytes(self, kind: str) -> int:
        """Held now ("current"), or at most since the phase began ("peak")."""
        return sum(each["Total"] for each in self.get_tracker_snapshot(kind).values())

    def _nothing(self, *args: Any) -> None:
        """In place of the figures by module, at which frozen weights make the tracker fail."""

    _pre_fw_hook = _post_fw_hook = _pre_bw_hook = _post_bw_hook = _nothing


class FakePolicy(Policy):
    """A policy of fake tensors, whose step is short: of completions the last two tokens are drawn
    only, and of all passes the largest that the step can have is run."""

    def __init__(self, watch: Watch, config: Config, parts: Parts) -> None:
        on, graphs = config.gradient_checkpointing == "on", config.cuda_graphs
        super().__init__(*parts, checkpointing=on, cache=None, graphs=graphs)
        self.watch, self.prompts, self.chat.eos = watch, config.prompts_per_step, NEVER
        sampler = self.sampler
        if isinstance(sampler, GraphSampler):
            sampler.record = partial(FakeGraph, watch)
        # Storages for all tokens, the prompts, and the last decoding step.
        self.sampler = lambda task: sampler(replace(task, first=max(0, task.max_length - 2)))

    def encode(self, examples: Any, max_completion_length: int = 0) -> list[Prompt]:
        self.watch.begin("vision tower")
        return super().encode(examples, max_completion_length)

    def sample(self, *args: Any, **kwargs: Any) -> list[Group]:
        self.watch.begin("sampling")
        return list(map(self._of_largest_pass, super().sample(*args, **kwargs)))

    def group(self, *args: Any) -> Group:
        return self._of_largest_pass(super().group(*args))

    def _of_largest_pass(self, group: Group) -> Group:
        prompt, completions = len(group.prompt.input_ids), group.completions
        lengths, room = (len(completions), len(completions[0])), self.max_length - prompt
        self.sizes = Sizes(prompt, *lengths, self.prompts, self.token_budget, room)
        _, length = self.sizes.largest_pass()
        drawn = group.sampling_logprobs and [each[:length] for each in group.sampling_logprobs]
        shortened = [ids[:length] for ids in completions]
        return replace(group, completions=shortened, sampling_logprobs=drawn)

    def passes(self, groups: Any) -> list[list[int]]:
        return super().passes(groups)[:1]

    def logprobs(self, groups: Any, temperature: float) -> tuple[Tensor, Tensor]:
        self.watch.begin("update" if torch.is_grad_enabled() else "reference")
        self.updated = groups
        return super().logprobs(groups, temperature)


class FakeGraph:
    """In place of a CUDA graph: runs the step once, and holds as much as the graph's pool."""

    def __init__(self, watch: Watch, step: Callable, device: Any, beside: Any) -> None:
        watch.begin(watch.phase)
        before = watch.bytes("current")
        step()
        size = watch.bytes("peak") - before
        self.pool = None if beside else step.args[0].hidden.new_empty(size, dtype=torch.uint8)

    def replay(self) -> None:
        """A replay allocates nothing."""


def fake_step(
    parts: Parts, device: torch.device, config: Config, step: Callable[[Policy], None]
) -> Peaks:
    """What `step` holds, given a policy made of `parts` as these settings say.

    The prompts of a step are all equal. After it, half of its largest pass is run too.
    """
    watch = Watch()
    parts = parts._replace(model=fake_copy(parts.model))
    watch.track_external(parts.model)
    with FakeDevice(device), watch:
        policy = FakePolicy(watch, config, parts)
        step(policy)
        watch.begin("fewer")
        groups = policy.updated
        size = -(-len(groups[0].completions) // 2)
        half = [replace(group, completions=group.completions[:size]) for group in groups]
        Policy.logprobs(policy, half, 1.0)[0].sum().backward()
        watch.begin("after")
    peaks = watch.peaks
    del peaks["before"]
    frozen = sum(p.nbytes for p in parts.model.parameters() if not p.requires_grad)
    fewer = policy.sizes.largest_pass()[0] - sum(group.row_length for group in half)
    slope = (peaks["update"] - peaks.pop("fewer")) / max(1, fewer)
    return Peaks(**vars(policy.sizes), weights=frozen, held=watch.held, phases=peaks, slope=slope)
