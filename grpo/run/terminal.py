"""Where a run shows its progress: two lines at the bottom of a terminal, else plain lines; and how
far an evaluation is."""

import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from time import monotonic
from typing import Any

from grpo.distributed import by_all, share, world

SECONDS_BETWEEN_LINES = 30.0  # if stderr is not a terminal
PLAIN_WIDTH = 100  # characters of a line, if stderr is not a terminal


def terminal_width() -> int:
    """Return the columns of the terminal on stderr; 0 if it is no terminal or has no size."""
    try:
        size = os.get_terminal_size(sys.stderr.fileno())
    except OSError:
        return 0
    return size.columns if size.lines else 0


class Screen:
    """Shows how far a run is, and messages between the steps.

    On a terminal: a tqdm bar with the time left, and below it as many numbers as fit. Elsewhere
    both tqdm lines are disabled, and a plain line appears at most every SECONDS_BETWEEN_LINES.
    """

    def __init__(self, title: str, steps: int, done: int) -> None:
        """`done` of the `steps` were made before."""
        from tqdm import tqdm

        self.title, self.steps, self.before = title, steps, done
        self.start, self.last_line = monotonic(), -math.inf
        self.plain = not terminal_width()
        fmt = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"
        both = {"file": sys.stderr, "dynamic_ncols": True, "leave": True, "disable": self.plain}
        self.bar = tqdm(total=steps, initial=done, desc=title, bar_format=fmt, position=0, **both)
        self.numbers = tqdm(bar_format="{desc}", position=1, **both)

    def step(self, done: int, words: Sequence[str], phases: str) -> None:
        """Show that `done` steps are made, the last one's numbers and the seconds by phase."""
        self.numbers.set_description_str(fitted(words, self.width()), refresh=False)
        self.bar.set_postfix_str(phases, refresh=False)
        if self.bar.update():
            self.numbers.refresh()
        now = monotonic()
        if not self.plain or now - self.last_line < SECONDS_BETWEEN_LINES:
            return
        self.last_line, elapsed = now, now - self.start
        left = elapsed / (done - self.before) * (self.steps - done)
        taken, left = (timedelta(seconds=round(seconds)) for seconds in (elapsed, left))
        place = f"{self.title} {done}/{self.steps} [{taken}<{left}, {phases}]"
        self.say(f"{place} {' '.join(words)}")

    def say(self, text: str) -> None:
        """Show a message above the bar."""
        self.bar.write(text, file=sys.stderr)

    def close(self) -> None:
        """Leave the bar as it is and end its lines."""
        self.bar.close()
        self.numbers.close()

    def width(self) -> int:
        """Return the characters that fit into a line."""
        wide = terminal_width() - 1  # some terminals wrap after the last column
        return PLAIN_WIDTH if self.plain else max(wide, 1)


def fitted(words: Sequence[str], width: int) -> str:
    """Return the first words, as many as fit into one line.

    >>> fitted(["reward 1.50", "signal 75%", "cut 0%"], 25)
    'reward 1.50 signal 75%'
    """
    while len(" ".join(words)) > width and len(words) > 1:
        words = words[:-1]
    return " ".join(words)[:width]


def in_batches(respond: Callable, examples: Any, size: int, prefetch: Callable) -> Iterator[Any]:
    """Yield what `respond` makes of each example as soon as its batch is done: `size` a process.

    `prefetch` is told which examples this process gets next. The bar is on a terminal only, and
    gone when it ends.
    """
    from tqdm import tqdm

    n, size = len(examples), size * world()
    with tqdm(total=n, desc="scoring", leave=False, disable=not n or None) as bar:
        for i in range(0, n, size):
            prefetch(share(examples[i : i + 2 * size]))  # this batch and the next
            yield from by_all(respond, examples[i : i + size])
            bar.update(min(size, n - i))


def visible(text: str) -> str:
    r"""Return text with every character that does not print (controls, bidi marks) escaped.

    >>> print(visible("a\nb \x1b[2J"))
    a\nb \x1b[2J
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
