"""Where a run goes on, and the command that makes it go on."""

import json
import os
import shlex
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from grpo.distributed import gathered, rank
from grpo.interfaces import Policy
from grpo.run.atomic import write_json, write_whole
from grpo.run.checkpoint import FOLDER, Point, cut_back, newest, opened
from grpo.run.folder import NO_SAY, check_out, finished, lock
from grpo.run.machine import git_commit, machinery, warn_of_changes
from grpo.run.metrics_log import check_trackers
from grpo.settings.config import Config
from grpo.settings.errors import UsageError, writing
from grpo.settings.flags import flag, shown


def starting_point(config: Config) -> Point:
    """Where --resume says that the run begins. Raises UsageError before any file is touched."""
    check_trackers(config)
    if not config.resume:
        check_out(config)
        return Point()
    if config.resume == "auto" and not config.out:
        raise UsageError("--resume auto: of which run? name its folder with --out")
    named = Path(config.out if config.resume == "auto" else config.resume)
    one = named.parent.name == FOLDER  # a checkpoint, not a run
    run = named.parent.parent if one else named
    if not (run / "config.json").exists():
        if config.resume != "auto":
            raise UsageError(f"--resume {named}: no run there; name a run's folder or a checkpoint")
        check_out(config)
        return Point()
    if config.out and Path(config.out).resolve() != run.resolve():
        raise UsageError(f"--out {config.out}: --resume goes on in {run}; leave --out out")
    check_settings(config, run)
    if not one and finished(run, config.steps):
        return Point(run, finished=True)
    lock(run, "train")
    point = opened(named) if one else newest(run)
    if point.step > config.steps:
        raise UsageError(f"--steps {config.steps}: {run} has made {point.step} already; give more")
    where = f"after step {point.step}" if point.folder else "at its start: it has no checkpoint"
    print(f"train.py: {run} goes on {where}", file=sys.stderr)
    return point


def open_run(
    config: Config, policy: Policy, point: Point, skipped: Iterable[dict[str, Any]]
) -> Path:
    """The run's folder as its first step finds it: new, or without the steps after
    `point`. The first process makes it, with config.json (the settings, and what the machine made
    of "auto") and skipped.jsonl (the rows of the data that were left out).

    A new folder is --out or runs/<date>-<recipe>-<modality>-g<G>. Of a run that goes on, prints in
    one line what of the machine has changed since. Raises UsageError.
    """
    label = f"{config.recipe}-{config.modality}-g{config.group_size}"
    dated = f"runs/{time.strftime('%Y%m%d-%H%M%S')}-{label}"
    run, now = point.run or Path(config.out or dated), machinery(policy)
    with writing(f"--out {run}", "name another folder"):
        if not rank():
            if point.run:
                warn_of_changes(json.loads((run / "config.json").read_text("utf-8")), now)
                # What evaluate.py would write from here on is of a policy that is gone.
                os.close(lock(run, "evaluate"))
                cut_back(point, config.steps)
            else:
                run.mkdir(parents=True, exist_ok=config.out is not None)
                lock(run, "train")
                check_out(config)  # again: another run may have come and gone meanwhile
            write_json(run / "config.json", config.record() | now | {"git_commit": git_commit()})
            lines = "".join(json.dumps(row) + "\n" for row in skipped)
            write_whole(run / "skipped.jsonl", lines.encode())
    return Path(gathered(str(run))[0])


def check_settings(config: Config, run: Path) -> None:
    """Raise UsageError if the run in `run` was made with other settings that change its result.

    More steps than before are the same run only if the learning rate does not depend on them.
    """
    before, now = vars(Config.load(run / "config.json")), vars(config)
    free = {*NO_SAY, *(["steps"] if config.lr_schedule == "constant" else [])}
    for name, value in now.items():
        if name not in free and before[name] != value:
            problem = f"the run in {run} has {shown(before[name])}; use the same, or another --out"
            raise UsageError(f"{flag(name)} {shown(value)}: {problem}")


def going_on(words: Sequence[str], run: Path) -> str:
    """The command that resumes the run which the flags `words` began.

    >>> going_on(["--seed", "1"], Path("runs/a"))
    'python train.py --seed 1 --resume runs/a'
    """
    again = ["--resume", str(run)]
    words = [*words] if [*words[-2:]] == again else [*words, *again]
    workers = os.environ.get("LOCAL_WORLD_SIZE", "1")
    launch = ["python"] if workers == "1" else ["torchrun", "--nproc-per-node", workers, "--"]
    return shlex.join([*launch, "train.py", *words])
