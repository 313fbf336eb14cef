"""Errors that a user can correct: each prints one line on stderr and exits with code 2."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

LONGEST_LINE = 2005  # characters


class UsageError(ValueError):
    """A mistake that the user can correct. Its text is one line: what, where and the remedy."""


class SettingsError(UsageError):
    """A mistake that only other settings can correct: resuming with the same ones fails again."""


@contextmanager
def exit_on_usage_error(prog: str, *also: type[Exception]) -> Iterator[None]:
    """Turn a UsageError, or one of `also`, into its one line on stderr and exit code 2."""
    try:
        yield
    except BrokenPipeError:  # the program that reads our output has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:  # steps and answers are on disk as they come: nothing is lost
        remedy = "make room" if error.errno == errno.ENOSPC else "mend that, then run this again"
        problem = one_line(f"{error.filename or 'output'}: {error.strerror}")
        print(f"{prog}: {problem}; {remedy}", file=sys.stderr)
        raise SystemExit(2) from None
    except (UsageError, *also) as error:
        print(f"{prog}: {one_line(str(error))}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print(f"{prog}: interrupted; run it again to go on", file=sys.stderr)
        raise SystemExit(130) from None


def one_line(text: str) -> str:
    """Return a message as one line of printing characters, of at most LONGEST_LINE.

    >>> one_line("question a\\x1b[2J\\nb: is blank")
    'question a [2J b: is blank'
    """
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= LONGEST_LINE else f"{line[:1000]} ... {line[-1000:]}"
