"""The steps of a run as they come: recorded, shown, and kept so that it can go on from them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress

from grpo.distributed import gathered
from grpo.run.checkpoint import Keeper, checkpoints, save_adapter
from grpo.run.metrics_log import MetricsLog, history
from grpo.run.progress import Progress
from grpo.run.resume import Halted, Stop
from grpo.settings.config import Config
from grpo.settings.errors import SettingsError, UsageError
from grpo.step import Step


def follow(
    steps: Iterator[Step],
    config: Config,
    keeper: Keeper,
    stop: Stop,
    look: Callable[[Step], None],
    progress: Progress,
    *also: type[Exception],
) -> None:
    """Take all steps; `look` is told of each before it is recorded, and may add metrics.

    Raises Halted where a signal, a UsageError, an OSError or one of `also` ends them early and the
    run can go on.
    """
    run, before = keeper.run, history(keeper.run)
    try:
        with MetricsLog(run, config) as log, progress:
            keeper.note(len(before), log.bytes)
            for this in steps:
                look(this)
                log.add(this.metrics)
                progress.show(this)
                keeper.note(int(this.metrics["step"]), log.bytes)
                wanted = stop.wanted()
                if wanted or keeper.due:
                    keeper.save()
                if wanted:
                    save_adapter(run, keeper.policy)
                    gathered(keeper.step)  # torchrun ends all processes with the first one
                    stop.halt(f"after step {keeper.step} of {config.steps}, and saved")
    except (Exception, Halted) as error:
        if keeper.unmoved:  # the policy is still that of the last step recorded
            with suppress(Exception):  # the first error is the one to tell of
                keeper.save()
                save_adapter(run, keeper.policy)
        can_go_on = checkpoints(run) and not isinstance(error, SettingsError)
        if not can_go_on or not isinstance(error, (UsageError, OSError, *also)):
            raise
        why = (
            f"{error.filename or run}: {error.strerror}"
            if isinstance(error, OSError)
            else str(error)
        )
        raise Halted(why, run) from None
