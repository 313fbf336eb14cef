"""The passes of a step through the model: which groups go together, what happens when memory runs
out, and which pass spoilt the gradient. However the work is divided, the gradient is the same but
for rounding."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm

from grpo.distributed import share
from grpo.interfaces import Groups, Policy
from grpo.settings.errors import SettingsError

Pass = tuple[Groups, Tensor]  # groups, and the places (n,) of their tokens in (N,)


class Passes:
    """This process's share of the groups in a step's gradient, in passes that fit into memory."""

    def __init__(self, policy: Policy, groups: Groups, in_gradient: Tensor) -> None:
        """`in_gradient` (B,) says which of the groups have a part in the gradient."""
        self.policy = policy
        self.cuts = 0  # how often memory ran out
        self.suspects: list[int] = []  # the group that made the gradient not finite
        # (N,) holds the tokens of group 0, then those of group 1, ...; each group has its places.
        lengths = torch.tensor([sum(map(len, group.completions)) for group in groups])
        self._group_of = torch.repeat_interleave(lengths)  # (N,) the group of every token
        places = torch.arange(int(lengths.sum()), device=policy.device).split(lengths.tolist())
        mine = share(in_gradient.nonzero().flatten().tolist())
        self.plan: list[Pass] = []
        for chosen in policy.passes([groups[b] for b in mine]):
            # In the order of the step, so that `at` ascends as the tokens of `logprobs` do.
            members = sorted(map(mine.__getitem__, chosen))
            at = torch.cat([places[b] for b in members])  # (n,)
            self.plan.append(([groups[b] for b in members], at))

    def run(self, body: Callable[..., None], *arguments: Any) -> None:
        """Call `body(groups, at, *arguments)` for every pass; `at` are its tokens' places in (N,).

        If memory runs out, the gradients are set back to zero and all passes run again, each cut in
        two: by groups, and a group alone into two trees of G/2 completions. The smaller passes stay
        for the rest of the step. A pass that makes the gradient not finite is found by running all
        again one group at a time; `suspects` then names its group.
        Raises SettingsError if memory runs out with one completion at a time.
        """
        while (smaller := self._attempt(body, arguments)) is not None:
            self.plan = smaller
            for gradient in self._gradients():
                gradient.zero_()
            torch.cuda.empty_cache()  # blocks of the old sizes would stay reserved

    def _attempt(self, body: Callable[..., None], arguments: tuple[Any, ...]) -> list[Pass] | None:
        """Run every pass once. None: done; else the smaller passes to start again with."""
        for groups, at in self.plan:
            if not self._fits(body, groups, at, *arguments):
                return self._halved()
            if self.suspects or not torch.is_grad_enabled():
                continue  # the group is known already, or no gradient is computed
            # Gradients add up over passes: looked at after each, the one that spoils them is known.
            if get_total_norm(self._gradients()).isfinite():
                continue
            if len(groups) > 1:  # run again to name it: this step will not update anyway
                return [part for one in self.plan for part in singles(*one)]
            self.suspects = self._group_of[at.cpu()].unique().tolist()
        return None

    def _fits(self, body: Callable[..., None], *arguments: Any) -> bool:
        """Run one pass; False if memory ran out.

        Only after the `except` block has ended is the traceback gone, and with it the tensors that
        it keeps alive: so the caller starts again, not this block.
        """
        try:
            body(*arguments)
        except (RuntimeError, MemoryError) as error:
            if not self.policy.out_of_memory(error):
                raise
            return False
        return True

    def _halved(self) -> list[Pass]:
        # All passes are cut: the others are about as large, and would run out of memory next.
        smaller = [part for one in self.plan for part in halves(*one)]
        if len(smaller) == len(self.plan):
            remedy = "another --out with a smaller --max-completion-length or --max-pixels"
            problem = "out of memory with one completion at a time"
            raise SettingsError(f"{problem}; use --gradient-checkpointing on, or {remedy}")
        self.cuts += 1
        return smaller

    def _gradients(self) -> list[Tensor]:
        return [parameter.grad for parameter in self.policy.parameters()]


def singles(groups: Groups, at: Tensor) -> list[Pass]:
    """A pass as one of each of its groups."""
    sizes = [sum(map(len, group.completions)) for group in groups]
    return [([group], part) for group, part in zip(groups, at.split(sizes), strict=True)]


def halves(groups: Groups, at: Tensor) -> list[Pass]:
    """A pass as two: of half the groups each, or of half the completions of its only group."""
    if len(groups) > 1:
        parts = groups[: len(groups) // 2], groups[len(groups) // 2 :]
    else:
        (group,) = groups
        half = len(group.completions) // 2
        if not half:
            return [(groups, at)]
        parts = [
            [replace(group, completions=group.completions[rows], truncated=group.truncated[rows])]
            for rows in (slice(half), slice(half, None))
        ]
    # Tokens lie completion by completion, so the first part has the first n places.
    n = sum(len(ids) for group in parts[0] for ids in group.completions)
    return [(list(parts[0]), at[:n]), (list(parts[1]), at[n:])]
