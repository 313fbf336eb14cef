"""The record of a run, step by step: metrics, traces, checkpoints, and what the terminal shows."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from itertools import takewhile
from operator import itemgetter

from grpo.distributed import gathered, rank
from grpo.interfaces import Example
from grpo.metrics import Step
from grpo.run.checkpoint import Checkpointer, checkpoints, save_adapter
from grpo.run.diagnoses import ALERTS
from grpo.run.interrupt import Halted, Stop
from grpo.run.metrics_log import MetricsLog, Trackers
from grpo.run.progress import Progress
from grpo.run.trace import Describe, score_blind, write_trace
from grpo.settings.errors import SettingsError, UsageError, message


@dataclass
class Recorder:
    """Records the steps of a run in its folder, inside its context `recording`."""

    checkpointer: Checkpointer
    stop: Stop
    progress: Progress
    trackers: Trackers
    describe: Describe | None = None  # this and `pieces` are for write_trace; None: no traces
    pieces: Callable[..., list[str]] | None = None
    blank: Callable[[Example], Example] | None = None  # a question with blank images
    stop_requested: bool = False

    @contextmanager
    def recording(self) -> Iterator["Recorder"]:
        """Open the run's files around its steps, and write the adapter after them.

        Raises Halted if a signal asked the run to stop, or if a UsageError or OSError ended it (in
        the steps, or while files are opened or closed) and it can go on from a checkpoint.
        """
        checkpointer, run = self.checkpointer, self.checkpointer.run
        try:
            with MetricsLog(run) as self.log, closing(self.progress):
                checkpointer.note(len(self.progress.history), self.log.lines.tell())
                yield self
            if self.stop_requested:
                done = checkpointer.step
                gathered(done)  # torchrun ends all processes with the first one
                self.stop.halt(f"after step {done} of {checkpointer.config.steps}, and saved")
            save_adapter(run, checkpointer.policy)
        except Exception as error:
            if checkpointer.unmoved:
                with suppress(Exception):  # the first error is the one to report
                    checkpointer.save()
                    save_adapter(run, checkpointer.policy)
            # A SettingsError needs other settings: the same command cannot go on.
            mendable = isinstance(error, (UsageError, OSError))
            if mendable and not isinstance(error, SettingsError) and checkpoints(run):
                raise Halted(message(error, str(run)), run) from None
            raise
        self.stop.now()

    def record(self, step: Step) -> None:
        """Write a step down, show it, and save a checkpoint if one is due or a signal has come.

        Raises SettingsError for one skipped step too many in a row.
        """
        number, config = int(step.metrics["step"]), self.checkpointer.config
        if step.metrics.get("memory/cuts"):
            again = f"{ALERTS['memory/cuts']}; --dry-run says what fits at once"
            print(f"train.py: step {number}: {again}", file=sys.stderr)
        if sentence := skipped(step, self.progress.history, config.max_skipped_steps):
            print(f"train.py: {sentence}", file=sys.stderr)
        if config.trace_blind and step.rollout and number in config.traced_steps:
            score_blind(step, self.checkpointer.policy, config, self.blank)
        if self.describe and step.rollout and not rank() and number in config.traced_steps:
            write_trace(self.checkpointer.run / "trace", step, config, self.describe, self.pieces)
        self.log.add(step.metrics)
        self.trackers.step(step.metrics)
        self.progress.show(step)
        self.checkpointer.note(number, self.log.lines.tell())
        self.stop_requested = self.stop.wanted()
        if self.stop_requested or config.due(config.save_every, number):
            self.checkpointer.save()
        if self.stop_requested:  # here, so that a full disk ends the run as one that can go on
            save_adapter(self.checkpointer.run, self.checkpointer.policy)


def skipped(step: Step, before: Sequence[dict[str, float]], most: int) -> str:
    """What to say of a step that updated nothing, because a number was not finite; "" for one that
    updated. A step of several updates counts as skipped if one of them was.

    `before` holds the metrics of all steps so far. Raises SettingsError for the `most`'th skipped
    step in a row.
    """
    if not step.metrics["skipped_updates"]:
        return ""
    in_a_row = 1 + len(list(takewhile(itemgetter("skipped_updates"), reversed(before))))
    suspects = gathered([example.id for example in step.suspects])  # of every process
    known = ", ".join(name for names in suspects for name in names)
    names = f" (question {known})" if known else ""
    problem = f"step {step.metrics['step']}: a loss, log-prob or gradient is not finite{names}"
    if in_a_row < most:
        return f"{problem}; {step.metrics['skipped_updates']:.0%} of its updates left out"
    remedy = "--learning-rate or --dtype float32, or take the row out of the data"
    again = f"as in {in_a_row} steps in a row; use another --out with a smaller {remedy}"
    raise SettingsError(f"{problem}, {again}")
