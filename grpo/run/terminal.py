"""Where a run speaks: two lines at the bottom of a terminal, or plain lines in a file."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from datetime import timedelta
from typing import Protocol

SELDOM = 30.0  # seconds between two lines on the steps where stderr is no terminal
WIDE = 100  # columns, where no terminal has a say


@contextmanager
def hushed(quiet: bool) -> Iterator[None]:
    """If `quiet`, all that is said on stderr inside goes nowhere. Errors are raised through it."""
    if not quiet:
        yield
        return
    with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stderr(nowhere):
        yield


def columns() -> int:
    """Columns of the terminal that stderr is; 0 where it is none, or one that tells no size."""
    try:
        size = os.get_terminal_size(sys.stderr.fileno())
    except OSError:
        return 0
    return size.columns if size.lines else 0


class Screen(Protocol):
    """Told of every step: how many are done, its numbers as words, the seconds of its phases."""

    def step(self, done: int, words: Sequence[str], phases: str) -> None: ...
    def say(self, text: str) -> None: ...
    def close(self) -> None: ...
    def width(self) -> int: ...


class Bar:
    """A bar with the time left, and below it as many numbers as fit."""

    def __init__(self, title: str, steps: int, done: int = 0) -> None:
        from tqdm import tqdm

        counts = "{n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"
        line = f"{{desc}} {{percentage:3.0f}}%|{{bar}}| {counts}"
        law = {"file": sys.stderr, "dynamic_ncols": True, "leave": True}
        self.bar = tqdm(total=steps, initial=done, desc=title, bar_format=line, position=0, **law)
        self.below = tqdm(bar_format="{desc}", position=1, **law)

    def step(self, done: int, words: Sequence[str], phases: str) -> None:
        self.below.set_description_str(fitted(words, self.width()), refresh=False)
        self.bar.set_postfix_str(phases, refresh=False)
        if self.bar.update():
            self.below.refresh()

    def say(self, text: str) -> None:
        self.bar.write(text, file=sys.stderr)

    def close(self) -> None:
        self.bar.close()
        self.below.close()

    def width(self) -> int:
        """Columns but the last, behind which some terminals begin a new line."""
        return max(columns() - 1, 1)


class Lines:
    """Whole lines; on the steps no more than one in SELDOM seconds."""

    def __init__(self, title: str, steps: int, clock: Callable[[], float], done: int = 0) -> None:
        self.title, self.steps, self.clock, self.before = title, steps, clock, done
        self.start, self.last = clock(), -math.inf

    def step(self, done: int, words: Sequence[str], phases: str) -> None:
        now = self.clock()
        if now - self.last < SELDOM:
            return
        self.last, elapsed = now, now - self.start
        left = elapsed / (done - self.before) * (self.steps - done)
        clocked = f"[{_clocked(elapsed)}<{_clocked(left)}, {phases}]"
        self.say(f"{self.title} {done}/{self.steps} {clocked} {' '.join(words)}")

    def say(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Nothing to take away."""

    def width(self) -> int:
        return WIDE


def _clocked(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


def fitted(words: Sequence[str], width: int) -> str:
    """As many of the words, the first ones, as fit into one line.

    >>> fitted(["reward 1.50", "signal 75%", "cut 0%"], 25)
    'reward 1.50 signal 75%'
    """
    while len(" ".join(words)) > width and len(words) > 1:
        words = words[:-1]
    return " ".join(words)[:width]


def visible(text: str) -> str:
    r"""Text with every character that does not print (controls, bidi marks) as its escape.

    >>> print(visible("a\nb \x1b[2J"))
    a\nb \x1b[2J
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
