"""Errors that a user can correct: one line on stderr, and the exit code."""

from __future__ import annotations

import errno

import pytest

from grpo.settings.errors import LONGEST_LINE, SettingsError, exit_on_usage_error, one_line


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
