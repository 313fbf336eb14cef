"""The record of a run, step by step: metrics, traces, checkpoints, and what the terminal shows."""

import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from itertools import takewhile
from typing import Any

from grpo.distributed import gathered, rank
from grpo.metrics import Step
from grpo.run.checkpoint import Checkpointer, checkpoints, save_adapter
from grpo.run.interrupt import Halted, Stop
from grpo.run.metrics_log import MetricsLog, history
from grpo.run.progress import Progress
from grpo.run.trace import Describe, write_trace
from grpo.settings.config import Config
from grpo.settings.errors import SettingsError, UsageError


class Recorder:
    """Records the steps of a run in its folder; a context manager around them.

    Leaving it writes the adapter. It raises Halted if a signal asked the run to stop, or if a
    UsageError or OSError ended the steps and the run can go on from a checkpoint.
    """

    def __init__(
        self,
        checkpointer: Checkpointer,
        stop: Stop,
        progress: Progress,
        describe: Describe | None = None,
        pieces: Callable[..., list[str]] | None = None,
    ) -> None:
        """`describe` and `pieces` put questions and tokens into words for the traces, see
        write_trace; None writes no trace."""
        self.checkpointer, self.stop, self.progress = checkpointer, stop, progress
        self.run, self.config = checkpointer.run, checkpointer.config
        self.describe, self.pieces = describe, pieces
        self.stop_requested = False

    def __enter__(self) -> "Recorder":
        before = history(self.run)
        self.skipped = SkippedSteps(self.config, before)
        self.files = ExitStack()
        self.log = self.files.enter_context(MetricsLog(self.run, self.config))
        self.files.enter_context(self.progress)
        self.checkpointer.note(len(before), self.log.bytes)
        return self

    def record(self, step: Step) -> None:
        """Write a step down, show it, and save a checkpoint if one is due or a signal has come.

        Raises SettingsError for one skipped step too many in a row.
        """
        number = int(step.metrics["step"])
        if step.metrics.get("memory/cuts"):
            again = "out of memory, and done again in halves; --dry-run says what fits at once"
            print(f"train.py: step {number}: {again}", file=sys.stderr)
        if sentence := self.skipped.see(step):
            print(f"train.py: {sentence}", file=sys.stderr)
        if self.describe and step.rollout and not rank() and number in self.config.traced_steps:
            write_trace(self.run / "trace", step, self.config, self.describe, self.pieces)
        self.log.add(step.metrics)
        self.progress.show(step)
        self.checkpointer.note(number, self.log.bytes)
        self.stop_requested = self.stop.wanted()
        if self.stop_requested or self.config.due(self.config.save_every, number):
            self.checkpointer.save()
        if self.stop_requested:  # here, so that a full disk ends the run as one that can go on
            save_adapter(self.run, self.checkpointer.policy)

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        self.files.close()
        if error is None:
            if self.stop_requested:
                done = self.checkpointer.step
                gathered(done)  # torchrun ends all processes with the first one
                self.stop.halt(f"after step {done} of {self.config.steps}, and saved")
            save_adapter(self.run, self.checkpointer.policy)
            self.stop.now()
            return
        if isinstance(error, Exception) and self.checkpointer.unmoved:
            with suppress(Exception):  # the first error is the one to report
                self.checkpointer.save()
                save_adapter(self.run, self.checkpointer.policy)
        # A SettingsError needs other settings: the same command cannot go on.
        mendable = isinstance(error, (UsageError, OSError)) and not isinstance(error, SettingsError)
        if mendable and checkpoints(self.run):
            why = str(error)
            if isinstance(error, OSError):
                why = f"{error.filename or self.run}: {error.strerror}"
            raise Halted(why, self.run) from None


class SkippedSteps:
    """Steps that updated nothing, because a number was not finite: counted, named, and bounded."""

    def __init__(self, config: Config, before: Sequence[dict[str, float]] = ()) -> None:
        """`before` are the metrics of the steps that a resumed run has made already."""
        self.most = config.max_skipped_steps
        skipped = takewhile(lambda metrics: metrics["skipped_updates"], reversed(before))
        self.in_a_row = len(list(skipped))

    def see(self, step: Step) -> str:
        """What to say of a step that was skipped; "" for one that updated. A step of several
        updates counts as skipped if one of them was.

        Raises SettingsError for the --max-skipped-steps'th in a row.
        """
        if not step.metrics["skipped_updates"]:
            self.in_a_row = 0
            return ""
        self.in_a_row += 1
        suspects = gathered([example.id for example in step.suspects])  # of every process
        known = ", ".join(name for names in suspects for name in names)
        names = f" (question {known})" if known else ""
        problem = f"step {step.metrics['step']}: a loss, log-prob or gradient is not finite{names}"
        if self.in_a_row < self.most:
            return f"{problem}; {step.metrics['skipped_updates']:.0%} of its updates left out"
        raise SettingsError(
            f"{problem}, as in {self.in_a_row} steps in a row; use another --out with a smaller "
            "--learning-rate or --dtype float32, or take the row out of the data"
        )
