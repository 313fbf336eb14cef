"""What is asked next, said ahead: the policy prepares its images while a step runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from grpo.distributed import share
from grpo.interfaces import Example
from grpo.settings.config import Config

Draw = Callable[[int, int, int], Example]


def announced(draw: Draw, ahead: Callable[[Sequence[Example]], None], config: Config) -> Draw:
    """`draw`, which tells `ahead` of a step's questions and the next one's as the step begins.

    As `draw` is a function of its arguments alone, to ask it early changes nothing. Of a slot that
    is filled again, the rewards decide: nothing is known ahead.
    """

    def questions(step: int) -> list[Example]:
        """All of a step, this process's share first: the others' are wanted after sampling."""
        whole = [draw(step, slot, 0) for slot in range(config.prompts_per_step)]
        return share(whole) + whole

    def asked(step: int, slot: int, attempt: int = 0) -> Example:
        if not slot and not attempt:
            known = range(step, min(step + 2, config.steps))
            ahead([example for of in known for example in questions(of)])
        return draw(step, slot, attempt)

    return asked
