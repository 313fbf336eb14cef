"""Errors that a user can correct: each prints one line on stderr and exits with code 2."""

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from typing import Any, TextIO

LONGEST_LINE = 2005  # characters


class UsageError(ValueError):
    """A mistake that the user can correct. Its text is one line: what, where and the remedy."""


class SettingsError(UsageError):
    """A mistake that only other settings can correct: resuming with the same ones fails again."""


@dataclass
class Output:
    """stdout or stderr, which ends no program: a character that its encoding lacks becomes "?", and
    once nobody reads it any more (`| head`, a terminal that is gone) the rest is dropped."""

    stream: TextIO

    def write(self, text: str) -> None:
        encoding = self.stream.encoding or "utf-8"
        try:
            self.stream.write(text.encode(encoding, "replace").decode(encoding))
            self.stream.flush()
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.EIO):
                raise
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def nowhere() -> TextIO:
    """Return a file that drops what is written to it."""
    return open(os.devnull, "w", encoding="utf-8")


@contextmanager
def hushed(quiet: bool, redirect: Any = redirect_stderr) -> Iterator[None]:
    """If `quiet`, discard everything that the body prints on stderr. Errors still propagate.

    `redirect` is contextlib's function for another stream.
    """
    with nowhere() as stream, redirect(stream) if quiet else nullcontext():
        yield


@contextmanager
def exit_on_usage_error(prog: str, *also: type[Exception]) -> Iterator[None]:
    """Turn a UsageError, or one of `also`, into its one line on stderr and exit code 2.

    Inside, what is printed goes through `Output`.
    """
    with ExitStack() as stack:
        dropped = stack.enter_context(nowhere())
        # A stream that was closed before the program began is None.
        stack.enter_context(redirect_stdout(Output(sys.stdout or dropped)))
        stack.enter_context(redirect_stderr(Output(sys.stderr or dropped)))
        try:
            yield
        except (OSError, UsageError, *also) as error:  # steps and answers are on disk
            print(f"{prog}: {one_line(message(error))}", file=sys.stderr)
            raise SystemExit(2) from None
        except KeyboardInterrupt:
            print(f"{prog}: interrupted; run it again to go on", file=sys.stderr)
            raise SystemExit(130) from None


def message(error: Exception, place: str = "output") -> str:
    """Return an error's text; of an OSError the file (else `place`), the cause and the remedy."""
    if not isinstance(error, OSError):
        return str(error)
    remedy = "make room" if error.errno == errno.ENOSPC else "mend that, then run this again"
    return f"{error.filename or place}: {error.strerror}; {remedy}"


@contextmanager
def writing(what: str, remedy: str) -> Iterator[None]:
    """Turn an OSError inside into a UsageError: `what` cannot be written, and the remedy."""
    try:
        yield
    except OSError as error:
        raise UsageError(f"{what}: cannot be written ({error.strerror}); {remedy}") from None


def one_line(text: str) -> str:
    """Return a message as one line of printing characters, of at most LONGEST_LINE.

    >>> one_line("question a\\x1b[2J\\nb: is blank")
    'question a [2J b: is blank'
    """
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= LONGEST_LINE else f"{line[:1000]} ... {line[-1000:]}"
