"""The README's commands and figures about the code are true."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from grpo import reproduce
from grpo.config import Config
from grpo.flags import parse_flags
from grpo.options import Options

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [
    shlex.split(line, comments=True)
    for line in re.findall(r"^    .*?(python (?:-m )?\S+.*)$", TEXT, re.MULTILINE)
    if "Next:" not in line
]


@pytest.mark.parametrize("words", [w for w in COMMANDS if "train.py" in w], ids=" ".join)
def test_every_train_command_is_understood(words: list[str]) -> None:
    flags = [word for word in words[words.index("train.py") + 1 :] if word != "--explain"]
    assert Config.from_flags(["--recipe", "phantom", *flags])


@pytest.mark.parametrize("words", [w for w in COMMANDS if "evaluate.py" in w], ids=" ".join)
def test_every_evaluate_command_is_understood(words: list[str]) -> None:
    flags = words[words.index("evaluate.py") + 1 :]
    assert Options(**parse_flags(Options, flags, "evaluate.py", ""))


@pytest.mark.parametrize("words", [w for w in COMMANDS if "grpo.reproduce" in w], ids=" ".join)
def test_every_table_is_there(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    reproduce.main([*words[words.index("grpo.reproduce") + 1 :], "--dry-run"])

    assert "steps" in capsys.readouterr().out


def test_each_kind_of_command_is_in_the_readme() -> None:
    programs = {word for words in COMMANDS for word in words[1:3] if word != "-m"}
    assert programs >= {"train.py", "evaluate.py", "grpo.report", "grpo.reproduce", "data.audit"}


def test_files_that_are_named_are_there_and_as_long_as_it_says() -> None:
    for file, lines in re.findall(r"^\| `([\w/]+\.py)` \| (\d+) \|", TEXT, re.MULTILINE):
        assert (ROOT / file).read_text(encoding="utf-8").count("\n") == int(lines), file
    named = re.findall(r"`((?:\w+/)+\w+\.py): (?:\w+\.)?(\w+)`", TEXT)
    assert len(named) >= 8
    for file, name in named:
        assert f"def {name}(" in (ROOT / file).read_text(encoding="utf-8"), (file, name)
