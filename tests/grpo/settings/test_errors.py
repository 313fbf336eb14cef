"""Errors that a user can correct: one line on stderr, and the exit code."""

import contextlib
import errno
import io
import os
import sys

import pytest

from grpo.settings.errors import (
    LONGEST_LINE,
    SettingsError,
    exit_on_usage_error,
    one_line,
)


def test_each_error_is_one_line_and_its_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    said = {
        SettingsError("--lr: too\nlarge\x1b[2J"): ("p: --lr: too large [2J\n", 2),
        OSError(errno.ENOSPC, "No space", "a.json"): ("p: a.json: No space; make room\n", 2),
        OSError(errno.EACCES, "Denied"): ("p: output: Denied; mend that, then run this again\n", 2),
        KeyError("reward"): ("p: 'reward'\n", 2),
        KeyboardInterrupt(): ("p: interrupted; run it again to go on\n", 130),
    }
    for error, expected in said.items():
        with pytest.raises(SystemExit) as exit_, exit_on_usage_error("p", KeyError):
            raise error
        assert (capsys.readouterr().err, exit_.value.code) == expected


def test_other_errors_keep_their_traceback() -> None:
    with pytest.raises(ZeroDivisionError), exit_on_usage_error("p", KeyError):
        raise ZeroDivisionError


def test_a_message_is_one_line_of_bounded_length() -> None:
    assert one_line("a\r\n\tb  c\u2028d") == "a b c d"
    assert len(one_line("x" * 10_000)) == LONGEST_LINE


def test_a_character_that_the_terminal_lacks_is_a_question_mark(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said = "base \u2192 trained, 日本, \udcff"
    shown = {"ascii": "base ? trained, ??, ?", "latin-1": "base ? trained, ??, ?"}
    shown |= {"utf-8": "base \u2192 trained, 日本, ?", "gbk": "base \u2192 trained, 日本, ?"}
    for encoding, expected in shown.items():
        raw = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding))
        with exit_on_usage_error("p"):
            print(said)
        assert raw.getvalue().decode(encoding) == expected + "\n", encoding


def unread(kind: str) -> int:
    """A pipe that nobody reads, or a terminal that is gone, to be written to."""
    read, write = os.pipe() if kind == "a pipe" else os.openpty()
    os.close(read)
    return write


@pytest.mark.parametrize("name", ["stdout", "stderr"])
@pytest.mark.parametrize("kind", ["a pipe", "a terminal"])
def test_a_program_outlives_the_reader_of_its_output(
    kind: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with os.fdopen(unread(kind), "w", encoding="utf-8") as stream:
        monkeypatch.setattr(sys, name, stream)
        with exit_on_usage_error("p"):
            print("more than fits " * 100_000, file=getattr(sys, name))
            print("more", file=getattr(sys, name), flush=True)


def test_output_to_a_full_disk_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    full = open("/dev/full", "w", encoding="utf-8")  # noqa: SIM115
    monkeypatch.setattr(sys, "stdout", full)
    with pytest.raises(SystemExit) as end, exit_on_usage_error("p"):
        print("the table")
    assert end.value.code == 2
    with contextlib.suppress(OSError):
        full.close()


def test_a_program_without_streams_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a daemon does whose parent has closed them."""
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
    with exit_on_usage_error("p"):
        print("a line")
        print("a line", file=sys.stderr)
        assert sys.stderr.fileno() > 0
