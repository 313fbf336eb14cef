"""The passes of a step through the model: which groups go together, what happens when memory runs
out, and which pass spoilt the gradient. However the work is cut, the gradient is the same but for
rounding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm

from grpo.distributed import share
from grpo.settings.errors import SettingsError

if TYPE_CHECKING:
    from grpo.loop import Policy
    from grpo.rollout import Group

Pass = tuple[list["Group"], Tensor]  # groups, and the places of their tokens in (N,)


class Passes:
    """This process's share of a step's live groups, in passes; smaller ones once memory runs out.

    for groups, tokens in passes:
        with passes.fitted():
            policy.logprobs(groups, ...)  # of the tokens at places `tokens` of (N,)

    Where memory runs out inside, the gradients are set back to zero and the iteration starts again,
    with every pass cut in two: by groups, and a group alone into two trees of G/2 completions. A
    pass that makes the gradient not finite is gone through again one group at a time, to name it.
    """

    def __init__(self, policy: Policy, groups: Sequence[Group], live: Tensor) -> None:
        """`live` (B,) says which of the groups have a part in the gradient."""
        self.policy = policy
        self.cuts = 0  # how often memory ran out
        self.suspects: list[int] = []  # the group that made the gradient not finite
        self._failed, self._now = False, 0
        lengths = torch.tensor([sum(map(len, group.completions)) for group in groups])
        self._group_of = torch.repeat_interleave(lengths)  # (N,)
        places = torch.arange(int(lengths.sum()), device=policy.device).split(lengths.tolist())
        mine = share(live.nonzero().flatten().tolist())
        self.plan: list[Pass] = []
        for chosen in policy.passes([groups[b] for b in mine]):
            members = sorted(mine[i] for i in chosen)
            tokens = torch.cat([places[b] for b in members])  # (n,)
            self.plan.append(([groups[b] for b in members], tokens))

    def __iter__(self) -> Iterator[Pass]:
        self._now = 0
        while self._now < len(self.plan):
            yield self.plan[self._now]
            self._now += 1
            if self._failed:
                self._failed, self._now = False, 0
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()

    @contextmanager
    def fitted(self) -> Iterator[None]:
        """Raises SettingsError where memory runs out with one completion at a time."""
        groups, tokens = self.plan[self._now]
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            if not self.policy.out_of_memory(error):
                raise
            cut = [part for one in self.plan for part in halves(*one)]
            if len(cut) == len(self.plan):
                raise SettingsError(
                    "out of memory with one completion at a time; use --gradient-checkpointing on, "
                    "or another --out with a smaller --max-completion-length or --max-pixels"
                ) from None
            self._restart(cut)
            self.cuts += 1
            return
        if self.suspects or get_total_norm(self._gradients()).isfinite():
            return
        if len(groups) == 1:
            self.suspects = self._group_of[tokens.cpu()].unique().tolist()
        else:  # which of them was it? The step updates nothing anyway
            self._restart([part for one in self.plan for part in singles(*one)])

    def _restart(self, plan: list[Pass]) -> None:
        self.plan, self._failed = plan, True
        for gradient in self._gradients():
            gradient.zero_()

    def _gradients(self) -> list[Tensor]:
        return [parameter.grad for parameter in self.policy.parameters()]


def singles(groups: Sequence[Group], tokens: Tensor) -> list[Pass]:
    """A pass as one of each of its groups."""
    sizes = [sum(map(len, group.completions)) for group in groups]
    return [([group], part) for group, part in zip(groups, tokens.split(sizes), strict=True)]


def halves(groups: list[Group], tokens: Tensor) -> list[Pass]:
    """A pass as two: of half the groups each, or of half the completions of its only group."""
    if len(groups) > 1:
        parts = groups[: len(groups) // 2], groups[len(groups) // 2 :]
    else:
        (group,) = groups
        half = len(group.completions) // 2
        if not half:
            return [(groups, tokens)]
        parts = [
            [replace(group, completions=group.completions[of], truncated=group.truncated[of])]
            for of in (slice(half), slice(half, None))
        ]
    n = sum(len(ids) for group in parts[0] for ids in group.completions)
    return [(list(parts[0]), tokens[:n]), (list(parts[1]), tokens[n:])]
