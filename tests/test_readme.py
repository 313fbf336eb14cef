"""The commands, links, files and figures of every README.md are true.

Commands run, shortened if they are long. Those that do not run here are named in ONLY_CHECKED, each
with the reason.
"""

import importlib.util
import json
import re
import runpy
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent

import pytest
from PIL import Image

from tests.data.conftest import OmniFolder
from tests.figures import reading
from tests.rewards.judges.encoder import make_encoder
from tests.rewards.judges.server import serving
from tests.rewards.judges.test_local import make_language_model

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("grpo", "models", "rewards", "data")
MANUALS = [
    ROOT / "README.md",
    *sorted(file for package in PACKAGES for file in (ROOT / package).rglob("README.md")),
    *sorted((ROOT / "tests").glob("README.md")),
]
TEXTS = {file.relative_to(ROOT).as_posix(): file.read_text(encoding="utf-8") for file in MANUALS}
TEXT = TEXTS["README.md"]


def commands(text: str) -> list[str]:
    """The `python ...` commands of a text, in indented lines and in code, without `python`."""
    blocks = re.findall(r"^    (?:pip .* && )?(python .*)$", text, re.MULTILINE)
    inline = re.findall(r"(?<!`)`python\s([^`]+)`(?!`)", text)
    found = [shlex.join(shlex.split(line, comments=True)[1:]) for line in blocks]
    return found + [shlex.join(shlex.split(line)) for line in inline]


COMMANDS = list(dict.fromkeys(command for text in TEXTS.values() for command in commands(text)))

BY_HAND = "run by hand: it writes the results that are kept beside it"
ONLY_CHECKED = {  # how a command starts: why it is not run
    "-m grpo.reproduce": "half an hour, or 2B weights: --dry-run; test_run_table.py runs one",
    "-m models.pretrain_phantom": "makes the shipped weights, in 50 minutes",
    "-m tests.rehearsal": "test_runs.py of its folder runs it",
    "tests/gpu/": "test_measure.py of its folder runs it",
    **dict.fromkeys(("tests/campaigns/", "tests/benchmarks/", "tests/conformance/"), BY_HAND),
}
OF_OTHERS = {"--shutdown-timeout", "--signal", "--requeue", "--open-mode"}  # torchrun, SLURM
SHORT = "--steps 2 --eval-size 12 --recipe phantom --device cpu"
SHORTENED = {
    "train.py": SHORT,
    "evaluate.py --metrics": "--eval-size 12 --device cpu --controls none",
    "evaluate.py": "--eval-size 12 --device cpu",
    "": "",
}


def is_only_checked(command: str) -> bool:
    return command.startswith(tuple(ONLY_CHECKED))


def call(command: str) -> None:
    """`python COMMAND`, in this process."""
    program, *flags = shlex.split(command)
    name = flags.pop(0) if program == "-m" else str(ROOT / program)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [name, *flags])
        if program == "-m":
            runpy.run_module(name, run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(name, run_name="__main__")


def shortened(command: str) -> str:
    more = next(flags for start, flags in SHORTENED.items() if command.startswith(start))
    return f"{command} {more}"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the first command of README.md has run."""
    where = tmp_path_factory.mktemp("work")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(where)
        patch.setenv("XDG_CACHE_HOME", str(where / "cache"))
        call(shortened(COMMANDS[0]))
    return where


@pytest.fixture(scope="module")
def filled(place: Path) -> Path:
    """That folder, with all that the other commands name."""
    Image.effect_noise((64, 64), 50).save(place / "scan.png")
    made = OmniFolder(place / "FOLDER")
    made.write([made.row(i) for i in range(24)])
    make_language_model(place / "JUDGE_FOLDER")
    make_encoder(place / "ENCODER_FOLDER")
    return place


@pytest.fixture
def judge() -> Iterator[str]:
    with serving() as server:
        yield server.url


@pytest.fixture
def do(filled: Path, judge: str, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Runs a command in that folder; the judge is one of our own."""
    monkeypatch.chdir(filled)
    monkeypatch.setenv("XDG_CACHE_HOME", str(filled / "cache"))
    return lambda command: call(command.replace("http://localhost:8000/v1", judge))


def test_the_first_commands_are_those_of_ci_and_the_default_run() -> None:
    first, second = re.findall(r"^    pip install -r requirements.txt && (.*)$", TEXT, re.MULTILINE)

    assert second == "pytest"
    assert COMMANDS[0] == first.removeprefix("python ")


def test_the_first_command_trains_and_scores(place: Path) -> None:
    (summary,) = place.glob("runs/*/summary.json")

    assert {"base", "trained"} <= set(json.loads(summary.read_text(encoding="utf-8"))["results"])


@pytest.mark.slow
@pytest.mark.parametrize("command", [c for c in COMMANDS[1:] if not is_only_checked(c)])
@pytest.mark.filterwarnings("ignore:.*found in sys.modules")
def test_every_other_command_runs(
    command: str, do: Callable[[str], None], place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if "--tensorboard" in command and not importlib.util.find_spec("tensorboard"):
        command = command.replace("--tensorboard", "")  # it is optional, and says so
    if command.endswith("--help"):
        with pytest.raises(SystemExit, match="0"):
            do(command)
    else:
        do(shortened(command))

    said = capsys.readouterr().out
    expected = {
        "--help": "--group-size",
        "--pass-rates": "mixed",
        "--checklist": "6. Independence of the test data",
        "--explain": "A_1 = ",
        "--dry-run": "peak, planned",
        "--image": "Not for clinical use.",
        "--export-merged": "no logit differs by more than",
        "train.py": "Next: python evaluate.py",
        "evaluate.py": "base",
        "-m grpo.explain": "wrote group.html",
        "-m grpo.report": "wrote runs/",
        "-m data.audit": "majority letter",
    }
    assert next(words for sign, words in expected.items() if sign in command) in said
    if "--out runs/mine" in command:
        assert (place / "runs/mine/trace/step-000001.json").exists()


@pytest.mark.slow
def test_the_walk_through_is_of_what_explain_prints(
    do: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    """Numbers and completions may differ on another machine; what they are of may not."""
    do("train.py --explain --device cpu")

    def shape(line: str) -> str:
        return re.sub(r"'.*'|-?\d+(\.\d+)?(e-\d+)?", "#", " ".join(line.split()))

    printed = set(map(shape, capsys.readouterr().out.splitlines()))
    (told,) = re.findall(r"some of its lines:\n\n((?:    .*\n)+)", TEXTS["grpo/README.md"])
    assert len(told.splitlines()) > 10
    assert [line for line in told.splitlines() if shape(line) not in printed] == []


@pytest.mark.slow
@pytest.mark.parametrize("command", [c for c in COMMANDS if is_only_checked(c)])
def test_what_is_too_long_to_run_knows_its_flags(
    command: str, do: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    if command.startswith("-m grpo.reproduce"):
        do(f"{command} --dry-run")
        assert "steps" in capsys.readouterr().out
        return
    program, *words = shlex.split(command.removeprefix("-m "))
    file = ROOT / program if "/" in program else ROOT / program.replace(".", "/") / "__main__.py"
    if "ArgumentParser" not in file.read_text(encoding="utf-8"):
        assert not [word for word in words if word.startswith("--")], "it takes no flags"
        return
    with pytest.raises(SystemExit, match="0"):
        do(f"{file} --help")
    told = capsys.readouterr().out
    assert [word for word in words if word.startswith("--") and word not in told] == []


def test_every_flag_named_is_a_programs(capsys: pytest.CaptureFixture[str]) -> None:
    for program in ("train.py", "evaluate.py", "-m grpo.reproduce", "-m grpo.report"):
        with pytest.raises(SystemExit, match="0"):
            call(f"{program} --help")
    known = set(re.findall(r"--[a-z][\w-]*", capsys.readouterr().out)) | OF_OTHERS
    wrong = []
    for name, text in TEXTS.items():
        code = re.findall(r"`([^`]+)`", text) + re.findall(r"^    .*", text, re.MULTILINE)
        ours = [piece for piece in code if not re.search(r"torchrun|tests/|pip |#SBATCH", piece)]
        named = {flag for piece in ours for flag in re.findall(r"(?<![\w-])--[a-z][\w-]*", piece)}
        flags = {flag.replace("_", "-") for flag in named}  # both spellings are accepted
        wrong += [f"{name}: {flag}" for flag in sorted(flags - known)]
    assert wrong == []


def test_what_is_only_checked_is_in_a_manual() -> None:
    starts = {start for start in ONLY_CHECKED if any(c.startswith(start) for c in COMMANDS)}

    assert set(ONLY_CHECKED) - starts == set()
    assert sum(not is_only_checked(command) for command in COMMANDS) >= 11


@pytest.mark.slow
def test_the_lines_for_pandas_read_a_run(place: Path) -> None:
    pytest.importorskip("pandas", reason="metrics and trace are read by pandas where it is there")
    run = min((place / "runs").glob("*-phantom-MRI-g8"))
    manual = TEXTS["grpo/run/README.md"]
    (lines,) = re.findall(r"^    import pandas;(?:.*\n)+?(?=\n)", manual, re.MULTILINE)
    (place / "lines.py").write_text(dedent(lines).replace("runs/mine", str(run)))
    found = runpy.run_path(str(place / "lines.py"))

    assert list(found["metrics"]["step"]) == [1, 2]
    assert {"row", "weights", "old_logprobs"} <= set(found["tokens"].columns)
    assert len(found["tokens"]) == found["step"]["logprobs"].shape[1]


def test_the_reading_order_counts_lines_and_minutes() -> None:
    assert len(reading.files(TEXT)) == 10
    assert len(reading.TOTAL.findall(TEXT)) == 1
    assert reading.counted(TEXT) == TEXT, "run: python tests/figures/reading.py --write"
