"""How a run is stopped so that it can go on."""

import math
import os
import signal
import time
from pathlib import Path
from types import FrameType

from grpo.distributed import gathered, rank, world

AT_ONCE = 2.0  # seconds in which a terminal's signal and torchrun's are one


class Halted(BaseException):
    """A run was stopped early and can go on. The text is one line, `code` the exit code.

    Like KeyboardInterrupt it is no Exception: a signal may come anywhere, and no `except Exception`
    may catch it.
    """

    def __init__(self, why: str, run: Path, code: int = 2) -> None:
        super().__init__(why)
        self.run, self.code = run, code


class Stop:
    """While active, SIGINT and SIGTERM ask the run to stop after the current step.

    A second signal ends the program at once. After `now`, the first one raises Halted immediately.
    A signal that the parent process ignores stays ignored, such as SIGINT in a background job.
    """

    def __init__(self, run: Path, quiet: bool) -> None:
        self.run, self.quiet = run, quiet
        self.own = self.heard = 0  # the signal's number: of this process, of any of the run
        self.waits, self.when = True, -math.inf

    def __enter__(self) -> "Stop":
        self.before = {}
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) != signal.SIG_IGN:
                self.before[number] = signal.signal(number, self._heard)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def wanted(self) -> bool:
        """Whether this or another process of the run has had a signal. All processes must ask."""
        self.heard = max(gathered(self.own))
        return self.heard > 0

    def halt(self, where: str) -> None:
        """Raise Halted; `where` says what is done and kept."""
        name = signal.Signals(self.heard).name
        raise Halted(f"stopped by {name} {where}", self.run, 128 + self.heard)

    def now(self) -> None:
        """Everything is saved: from here on a signal stops the run at once."""
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
