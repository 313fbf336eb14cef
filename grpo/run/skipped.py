"""Steps that updated nothing, as their numbers were not finite: counted, named, and not endless."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile

from grpo.distributed import gathered
from grpo.metrics import Step
from grpo.settings.config import Config
from grpo.settings.errors import SettingsError


class SkippedSteps:
    """How many steps in a row were skipped, the last ones `before` among them."""

    def __init__(self, config: Config, before: Sequence[dict[str, float]] = ()) -> None:
        """`before` are the metrics of the steps that a resumed run has made already."""
        self.most = config.max_skipped_steps
        skipped = takewhile(lambda metrics: metrics["skipped_updates"], reversed(before))
        self.in_a_row = len(list(skipped))

    def see(self, step: Step) -> str:
        """What to say of a step, "" where it updated. UsageError for the last one that may be.

        A step of several updates is skipped where one of them is.
        """
        if not step.metrics["skipped_updates"]:
            self.in_a_row = 0
            return ""
        self.in_a_row += 1
        of_all = gathered([example.id for example in step.suspects])
        known = ", ".join(name for of in of_all for name in of)
        names = f" (question {known})" if known else ""
        number = int(step.metrics["step"])
        problem = f"step {number}: a loss, log-prob or gradient is not finite{names}"
        if self.in_a_row < self.most:
            left_out = f"{step.metrics['skipped_updates']:.0%} of its updates left out"
            return f"{problem}; {left_out}"
        raise SettingsError(
            f"{problem}, as in {self.in_a_row} steps in a row; use another --out with a smaller "
            "--learning-rate or --dtype float32, or take the row out of the data"
        )
