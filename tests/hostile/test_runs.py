"""Run folders and flags from elsewhere: a page, a run, or one line and exit code 2."""

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import evaluate
import train
from grpo.report import page as report
from grpo.run.atomic import write_json
from grpo.run.checkpoint import Point
from grpo.run.folder import check_out
from grpo.run.resume import open_run
from grpo.settings.config import Config
from grpo.settings.errors import UsageError, exit_on_usage_error, one_line
from grpo.settings.options import Options
from models.open_policy import scored_policy
from models.policy import Policy
from rewards.scoring import RewardError
from tests.grpo.report.runs import make_run
from tests.hostile.every import first_by_default, try_every


def said(program: Callable[[list[str]], Any], argv: list[str], capsys: Any) -> str:
    """Assert that a program ends with code 2 and writes one line to stderr. Returns the line."""
    with (
        pytest.raises(SystemExit) as end,
        exit_on_usage_error("program", RewardError),
    ):
        program(argv)
    assert end.value.code == 2
    line = capsys.readouterr().err
    assert line.endswith("\n")
    assert line[:-1].isprintable()
    assert len(line) < 2100
    return line


CONFIGS: dict[str, Any] = {
    "a newer setting": {"config": {"quantum_sampling": True}},
    "a list": [],
    "a number": 3,
    "a config of a list": {"config": [["a", 1], ["b", 2]]},
    "a config of a text": {"config": "ab"},
    "no config": {"overrides": {}},
    "steps of true": {"config": {"steps": True}},
    "steps in words": {"config": {"steps": "many"}},
    "steps of half": {"config": {"steps": 1.5}},
    "steps without end": {"config": {"steps": 10**400}},
    "steps of infinity": {"config": {"steps": float("inf")}},
    "a temperature of NaN": {"config": {"temperature": float("nan")}},
    "a temperature without end": {"config": {"temperature": 10**400}},
    "a temperature in words": {"config": {"temperature": "hot"}},
    "a temperature of nothing": {"config": {"temperature": None}},
    "a model of a list": {"config": {"model": ["phantom"]}},
    "a model of NUL": {"config": {"model": "a\0b"}},
    "a cache of NUL": {"config": {"cache": "a\0b"}},
    "a recipe of two lines": {"config": {"recipe": "phantom\n\x1b[2Jdone"}},
    "a recipe of an object": {"config": {"recipe": {}}},
    "a loss of another version": {"config": {"loss": "gspo"}},
    "traced steps of 5,000 digits": {"config": {"trace_steps": "9" * 5000}},
    "traced steps of words": {"config": {"trace_steps": "all; rm -rf"}},
    "1 MB of ways": {"config": {"diversity": "x" * 2**20}},
    "a group of one": {"config": {"group_size": 1}},
    "a group below nothing": {"config": {"group_size": -8}},
    "an init of code": {"config": {"init": "__import__('os')"}},
}
RAW: dict[str, bytes] = {
    "no bytes": b"",
    "half": b'{"config": {"steps": 3',
    "nested deep": b'{"config":' * 100_000,
    "lists nested deep": b"[" * 100_000,
    "no UTF-8": b'{"config": {"model": "\xff"}}',
    "5,000 digits": b'{"config": {"steps": 1' + b"0" * 5000 + b"}}",
    "a pickle": b"\x80\x04cos\nsystem\n.",
    "HTML": b"<html>",
    "NULs": bytes(100),
}


def test_a_config_from_elsewhere_is_one_line(tmp_path: Path, capsys: Any) -> None:
    def is_refused(name: str) -> None:
        content = RAW[name] if name in RAW else json.dumps(CONFIGS[name]).encode()
        (tmp_path / "config.json").write_bytes(content)
        line = said(evaluate.main, ["--run", str(tmp_path)], capsys)
        assert "config.json" in line

    try_every(is_refused, [*CONFIGS, *RAW])


FLAGS = [
    ["--steps", "1" + "0" * 400],
    ["--steps", "9" * 5000],
    ["--steps", "٣.٣"],
    ["--temperature", "nan"],
    ["--temperature", "1e999"],
    ["--seed", str(2**31)],
    ["--trace-steps", "9" * 5000],
    ["--trace-steps", "²"],
    ["--recipe", "\x1b[2J"],
    ["--data", "jsonl:\udcff"],
    ["--data", "\ud800"],
    ["--data", "jsonl:~nosuchuser/x"],
    ["--modality", "\u202e"],
    ["--reward", "x.py:f"],
    ["--reward", "accuracy=nan"],
    ["--reward", ":"],
    ["--judge", "file:///etc/passwd"],
    ["--judge", "http://[::1"],
    ["--init", "sft:/nowhere"],
    ["--init", "sft:\udcff"],
    ["--ood", "none,CT"],
    ["--nothing\n", "x"],
    ["\x1b]0;x\x07"],
    ["--out", "/dev/null/x"],
    ["--out", "/proc/nowhere/x"],
]


def test_a_flag_that_nothing_can_use_is_one_line(capsys: Any) -> None:
    rest = ["--recipe", "phantom", "--eval-size", "0", "--train-size", "1", "--device", "no"]
    rest.append("--quiet")
    try_every(lambda argv: said(train.main, [*rest, *argv], capsys), FLAGS)


@pytest.mark.parametrize("kind", ["a file", "in a file", "a pipe", "a loop", "a taken folder"])
def test_a_run_is_not_put_where_something_else_lies(
    kind: str, trained: Policy, tmp_path: Path, capsys: Any
) -> None:
    out = tmp_path / "out"
    if kind in ("a file", "in a file"):
        out.write_text("mine")
    elif kind == "a pipe":
        os.mkfifo(out)
    elif kind == "a loop":
        out.symlink_to(out)
    else:
        out.mkdir()
        (out / "metrics.jsonl").write_text("{}")
    where = out / "x" if kind == "in a file" else out

    def begin(argv: list[str]) -> None:
        config = Config(out=str(where))
        check_out(config)
        open_run(config, trained, Point(), [])

    assert "--out" in said(begin, [], capsys)
    if kind == "a file":
        assert out.read_text() == "mine"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_one_line(
    trained: Policy, tmp_path: Path, capsys: Any
) -> None:
    tmp_path.chmod(0o500)
    config = Config(out=str(tmp_path / "run"))
    said(lambda _: open_run(config, trained, Point(), []), [], capsys)


def test_answers_to_other_data_lie_in_a_folder_with_a_name_that_fits(tmp_path: Path) -> None:
    """The name is the data's, as it always was, unless that is longer than a name may be."""
    config = Config(out=str(tmp_path), recipe="phantom")
    write_json(tmp_path / "config.json", config.record())
    (tmp_path / "models" / ("m" * 250)).mkdir(parents=True)
    names = {
        "phantom:new-kind": "phantom:new-kind",
        "jsonl:/a/rows.jsonl": "jsonl:_a_rows.jsonl",
        "jsonl:" + "x" * 249: "jsonl:" + "x" * 249,
        "jsonl:" + "x" * 250: None,
        "jsonl:/" + "医学影像问答数据/" * 11 + "rows.jsonl": None,
        "jsonl:/" + "derivatives/" * 400 + "rows.jsonl": None,
    }
    found = set()
    for data, name in names.items():
        place = scored_policy(Options(run=str(tmp_path), data=data))[2]
        assert place.parent == tmp_path / "other"
        assert name in (None, place.name)
        place.mkdir(parents=True)
        found.add(place)
    assert len(found) == len(names)
    place = scored_policy(Options(model=str(tmp_path / "models" / ("m" * 250))))[2]
    assert len(place.name) <= 255


def test_a_table_is_kept_before_it_is_printed(tmp_path: Path) -> None:
    """Whatever the terminal does."""
    options, unprintable = Options(json=str(tmp_path / "a.json")), {"results": {}}
    with pytest.raises(KeyError):
        evaluate.report(options, Config(), tmp_path, unprintable)
    assert json.loads((tmp_path / "a.json").read_text()) == unprintable


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of 5 steps, 2 of them traced."""
    return make_run(tmp_path_factory.mktemp("runs") / "run", steps=5, traced=(1, 5))


def shown(folder: Path) -> str:
    """Whether the report makes a page, or refuses the folder in a line: "page" or "line"."""
    try:
        made = report.page(folder, 4_000_000)
    except UsageError as error:
        assert str(folder) in one_line(str(error))  # noqa: PT017
        return "line"
    assert made.startswith("<!doctype html>")
    assert made.rstrip().endswith("</html>")
    return "page"


FILES = ["config.json", "metrics.jsonl", "summary.json", "trace/step-000001.json"]
VALUES: list[Any] = [None, 3, -1, True, "x", "\ud800", "<script>", [], {}, [[1]], {"a": None}]
VALUES += [float("nan"), float("inf"), 10**400]


def change(value: Any, rng: random.Random) -> None:
    """Replace one value at any depth of a JSON value by another."""
    if not isinstance(value, dict | list) or not value:
        return
    at = rng.choice(sorted(value)) if isinstance(value, dict) else rng.randrange(len(value))
    if rng.random() < 0.4 or not isinstance(value[at], dict | list):
        value[at] = rng.choice(VALUES)
    elif rng.random() < 0.1:
        del value[at]
    else:
        change(value[at], rng)


@pytest.mark.parametrize("name", first_by_default(FILES))
def test_a_report_of_changed_values_is_a_page_or_a_line(
    name: str, run: Path, tmp_path: Path
) -> None:
    def is_shown(seed: int) -> None:
        mine = Path(shutil.copytree(run, tmp_path / str(seed)))
        lines = (mine / name).read_text().splitlines() if name.endswith("l") else []
        values = [json.loads(line) for line in lines or [(mine / name).read_text()]]
        change(values if lines else values[0], random.Random(seed))
        (mine / name).write_text("\n".join(map(json.dumps, values)))
        shown(mine)

    try_every(is_shown, range(15))


TENSORS = "trace/step-000001.safetensors"


@pytest.mark.parametrize("name", first_by_default([TENSORS, *FILES]))
def test_a_report_of_changed_bytes_is_a_page_or_a_line(
    name: str, run: Path, tmp_path: Path
) -> None:
    def is_shown(seed: int) -> None:
        mine, rng = Path(shutil.copytree(run, tmp_path / str(seed))), random.Random(seed)
        content = bytearray((mine / name).read_bytes())
        for _ in range(3):
            content[rng.randrange(len(content))] = rng.randrange(256)
        (mine / name).write_bytes(content[: rng.randrange(len(content))] if seed % 2 else content)
        shown(mine)

    try_every(is_shown, range(6))


@pytest.mark.parametrize("name", first_by_default([*FILES, TENSORS]))
def test_a_report_of_another_file_is_a_page_or_a_line(name: str, run: Path, tmp_path: Path) -> None:
    def is_shown(content: str) -> None:
        mine = Path(shutil.copytree(run, tmp_path / content))
        (mine / name).write_bytes(RAW[content])
        assert shown(mine) == ("line" if name == "config.json" else "page")

    try_every(is_shown, RAW)


@pytest.mark.exhaustive
def test_a_report_of_a_folder_in_place_of_a_file_is_a_page_or_a_line(
    run: Path, tmp_path: Path
) -> None:
    def is_shown(name: str) -> None:
        mine = Path(shutil.copytree(run, tmp_path / name.replace("/", " ")))
        (mine / name).unlink()
        (mine / name).mkdir()
        shown(mine)

    try_every(is_shown, [*FILES, TENSORS])
