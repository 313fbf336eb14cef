"""Where a run goes on, and how it is stopped so that it can."""

from __future__ import annotations

import math
import os
import shlex
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType

from grpo.distributed import gathered, rank, world
from grpo.run.checkpoint import FOLDER, Checkpoint, newest, opened
from grpo.run.folder import NO_SAY, check_out, finished
from grpo.settings.config import Config
from grpo.settings.errors import UsageError
from grpo.settings.flags import flag, shown

AT_ONCE = 2.0  # seconds in which a terminal's signal and torchrun's are one


@dataclass(frozen=True)
class Point:
    """Where a run begins: in a new folder (run None), at its start, or after a checkpoint."""

    run: Path | None = None
    checkpoint: Checkpoint | None = None
    finished: bool = False

    @property
    def step(self) -> int:
        """Steps that are done."""
        return self.checkpoint.step if self.checkpoint else 0


def starting_point(config: Config) -> Point:
    """Where `--resume` says that the run begins. Raises UsageError, before anything is touched."""
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
    point = Point(run, opened(named) if one else newest(run))
    if point.step > config.steps:
        raise UsageError(f"--steps {config.steps}: {run} has made {point.step} already; give more")
    where = f"after step {point.step}" if point.checkpoint else "at its start: it has no checkpoint"
    print(f"train.py: {run} goes on {where}", file=sys.stderr)
    return point


def check_settings(config: Config, run: Path) -> None:
    """Raise UsageError where a run was made with another setting that has a say in its result.

    More steps than before are the same run only where the learning rate does not go by them.
    """
    before, now = Config.load(run / "config.json").to_dict(), config.to_dict()
    free = {*NO_SAY, *(["steps"] if config.lr_schedule == "constant" else [])}
    for name, value in now.items():
        if name not in free and before[name] != value:
            raise UsageError(
                f"{flag(name)} {shown(value)}: the run in {run} has {shown(before[name])}; "
                "use the same, or another --out"
            )


class Halted(BaseException):
    """A run that ended before its end, and can go on. The text is one line; `code` the exit's.

    As KeyboardInterrupt it is no Exception: a signal comes anywhere, and none may swallow it.
    """

    def __init__(self, why: str, run: Path, code: int = 2) -> None:
        super().__init__(why)
        self.run, self.code = run, code


def going_on(words: Sequence[str], run: Path) -> str:
    """The command that goes on with a run which `words`, the flags, have made.

    >>> going_on(["--seed", "1"], Path("runs/a"))
    'python train.py --seed 1 --resume runs/a'
    """
    again = ["--resume", str(run)]
    words = [*words] if [*words[-2:]] == again else [*words, *again]
    workers = os.environ.get("LOCAL_WORLD_SIZE", "1")
    launch = ["python"] if workers == "1" else ["torchrun", "--nproc-per-node", workers, "--"]
    return shlex.join([*launch, "train.py", *words])


class Stop:
    """SIGINT and SIGTERM, while it is entered: a wish that is granted between two steps.

    A second one ends the program at once. From `now` on, the first one raises Halted where it is.
    A signal that the parent of this process ignores stays ignored, as SIGINT in a background job.
    """

    def __init__(self, run: Path, quiet: bool) -> None:
        self.run, self.quiet = run, quiet
        self.own = self.heard = 0  # the signal's number: of this process, of any of the run
        self.waits, self.when = True, -math.inf

    def __enter__(self) -> Stop:
        self.before = {}
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) != signal.SIG_IGN:
                self.before[number] = signal.signal(number, self._heard)
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def wanted(self) -> bool:
        """Whether a signal has come, to this process or to another of the run: all stop alike."""
        self.heard = max(gathered(self.own))
        return self.heard > 0

    def halt(self, where: str) -> None:
        """Raise Halted; `where` says what is done and kept."""
        name = signal.Signals(self.heard).name
        raise Halted(f"stopped by {name} {where}", self.run, 128 + self.heard)

    def now(self) -> None:
        """From here on nothing is lost by stopping at once."""
        self.waits = False
        self.heard = self.heard or self.own
        if self.heard:
            self.halt("before scoring")

    def _heard(self, number: int, _: FrameType | None) -> None:
        again = world() == 1 or time.monotonic() - self.when > AT_ONCE
        self.when = time.monotonic()
        if self.own and again:
            os._exit(128 + number)
        self.own = number
        if not self.waits:
            self.heard = number
            self.halt("while scoring; the answers so far are kept")
        if not self.quiet and again and not rank():  # not print: it may be what was interrupted
            os.write(2, b"\ntrain.py: finishing this step, then saving; again to stop at once\n")
