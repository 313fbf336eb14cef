"""What trackers are told of a run: TensorBoard, wandb offline and Trackio's local files."""

import json
import math
import shutil
import sqlite3
import sys
from collections import Counter
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from grpo.run.checkpoint import checkpoints
from grpo.run.metrics_log import check_trackers, history, reporting, rollouts
from grpo.settings.config import Config
from grpo.settings.errors import UsageError
from tests.grpo.report.runs import make_run
from tests.programs import Program
from tests.resuming import SHORT, alike, lines, started

STEPS = [
    {"step": 1, "reward": 0.5, "rewards/format/mean": 0.25, "rewards/f1/mean": math.nan},
    {"step": 2, "reward": 0.75, "rewards/format/mean": 0.5, "val/accuracy": 0.5},
]
BLOCK = 32768  # bytes of a block of wandb's file, which is a log of LevelDB


def test_without_the_package_it_is_refused_in_one_line(monkeypatch):
    assert check_trackers(Config()) == []
    for name in ("tensorboard", "wandb", "trackio"):
        monkeypatch.setitem(sys.modules, name, None)  # as if not installed
        with pytest.raises(UsageError, match=f"pip install {name}") as error:
            check_trackers(Config(report_to=name))
        assert str(error.value).startswith(f"--report-to {name}: ")
        assert "\n" not in str(error.value)
    with pytest.raises(UsageError, match="--report-to tensorboard"):
        check_trackers(Config(tensorboard=True))


def test_an_unknown_tracker_is_refused_with_the_known_ones():
    for text in ("wandbb", "tensorboard,mlflow"):
        with pytest.raises(UsageError, match="unknown choice; use one of tensorboard, wandb, tra"):
            check_trackers(Config(report_to=text))
    with pytest.raises(UsageError, match="none and something"):
        check_trackers(Config(report_to="none,wandb"))


def test_tensorboard_is_an_alias():
    pytest.importorskip("tensorboard", reason="the package tensorboard is not installed")
    both = Config(report_to="tensorboard", tensorboard=True)
    for config in (Config(tensorboard=True), Config(report_to="tensorboard"), both):
        assert check_trackers(config) == ["tensorboard"]


Told = dict[str, list[tuple[int, list[str]]]]  # by tracker: each step and the names of its values


@pytest.fixture
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> Told:
    """Modules in place of wandb and trackio, which are not ours, and what they are told."""
    told: Told = {"wandb": [], "trackio": []}
    for name, steps in told.items():
        module = ModuleType(name)
        module.__spec__ = ModuleSpec(name, None)
        module.Image, module.Table = str, lambda columns, data: data
        log = lambda values, step, steps=steps: steps.append((step, [*values]))  # noqa: E731
        session = SimpleNamespace(log=log, finish=lambda: None)
        module.init = lambda session=session, **_: session
        monkeypatch.setitem(sys.modules, name, module)
    return told


def told_again(run: Path, trackers: str, steps: list[dict[str, float]], last: int = 0) -> Any:
    """Report steps in a session of their own, and the evaluation after `last` steps."""
    with reporting(run, Config(report_to=trackers)) as open_ones:
        for metrics in steps:
            open_ones.step(metrics)
        open_ones.scores(json.loads((run / "summary.json").read_text()) if last else {}, last)
    return json.loads((run / "reported.json").read_text())


def test_a_damaged_record_begins_a_new_one(tmp_path, stand_ins):
    run, wrong = make_run(tmp_path / "run", traced=()), {}
    for text in (b"{", b"", b"[]", b"[1]", b"null", b"5", b'"run"', b"\xff"):
        (run / "reported.json").write_bytes(text)
        record = told_again(run, "trackio", STEPS[:1])
        if record["name"][:4] != "run-" or record["steps"] != {"trackio": 1}:
            wrong[text] = record
    assert wrong == {}
    assert stand_ins["trackio"] == [(1, ["reward", "rewards/format/mean"])] * 8


def test_the_record_keeps_a_step_for_each_tracker(tmp_path, stand_ins):
    run = make_run(tmp_path / "run", traced=())
    first = told_again(run, "trackio", STEPS)
    assert first["steps"] == {"trackio": 2}
    second = told_again(run, "wandb,trackio", [STEPS[1], {"step": 3, "reward": 1.0}])
    assert second == first | {"steps": {"trackio": 3, "wandb": 3}}
    assert [step for step, _ in stand_ins["trackio"]] == [1, 2, 3]
    assert [step for step, _ in stand_ins["wandb"]] == [2, 3]  # it knew none of them


def test_the_evaluation_comes_with_the_last_step_or_after_one_of_an_earlier_session(
    tmp_path, stand_ins
):
    for name in ("whole", "stopped"):
        run = make_run(tmp_path / name, traced=())
        told_again(run, "trackio", STEPS, last=2 * (name == "whole"))
    assert told_again(run, "trackio", [], last=2)["steps"] == {"trackio": 3}
    steps = [step for step, values in stand_ins["trackio"] if values == ["evaluation"]]
    assert steps == [2, 3]


def test_nobody_is_told_of_a_run_without_trackers(tmp_path):
    with reporting(make_run(tmp_path / "run"), Config()) as trackers:
        trackers.step(STEPS[0])
        trackers.scores({}, 2)
    assert not (tmp_path / "run" / "reported.json").exists()


def test_tensorboard_reads_the_same_names_and_numbers(tmp_path):
    pytest.importorskip("tensorboard", reason="the package tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = make_run(tmp_path / "run", traced=(2,))
    (run / "metrics.jsonl").unlink()
    with reporting(run, Config(tensorboard=True)) as trackers:
        for metrics in STEPS:
            trackers.step(metrics)
        trackers.scores(json.loads((run / "summary.json").read_text()), 3)
    events = EventAccumulator(str(run / "tensorboard")).Reload()
    read = {
        name: [(event.step, event.value) for event in events.Scalars(name)]
        for name in events.Tags()["scalars"]
    }
    assert read == {
        "reward": [(1, 0.5), (2, 0.75)],
        "rewards/format/mean": [(1, 0.25), (2, 0.5)],
        "val/accuracy": [(2, 0.5)],
    }
    said = [
        events.Tensors(f"{name}/text_summary")[0]
        for name in ("settings", "completions", "evaluation")
    ]
    assert [event.step for event in said[1:]] == [2, 3]
    settings, rows, table = (event.tensor_proto.string_val[0].decode() for event in said)
    assert "| group_size | 4 |" in settings
    assert rows.splitlines()[0] == (
        "| step | prompt | completion | format | accuracy | advantage | reward | gold | image |"
    )
    assert rows.count("\n") == 1 + 2 * 4  # two groups of four
    assert "| trained | 72.0 [66.0, 78.0] |" in table


def test_rollouts_name_what_was_asked_said_and_earned(tmp_path):
    trace = make_run(tmp_path / "run", traced=(30,)) / "trace" / "step-000030.json"
    record, (columns, rows) = json.loads(trace.read_text()), rollouts(trace)
    assert len(rows) == 2 * 4
    groups = record["groups"][:2]
    completions = [(group, said) for group in groups for said in group["completions"]]
    for row, (group, said) in zip(rows, completions, strict=True):
        told = dict(zip(columns, row, strict=True))
        image = told.pop("image")
        assert image.read_bytes()[:4] == b"\x89PNG"
        assert told == {
            "step": 30, "prompt": group["prompt"], "completion": said["text"],
            "advantage": said["advantage"], "reward": said["reward"], "gold": group["gold"],
        } | said["parts"]  # fmt: skip


def wandb_records(folder: Path) -> Iterator[Any]:
    """The records of wandb's file: pieces in blocks, each of a checksum, a length and a type."""
    from wandb.proto.wandb_internal_pb2 import Record

    (file,) = folder.glob("*.wandb")
    content, place, whole = file.read_bytes(), 7, b""
    while place + 7 <= len(content):
        if BLOCK - place % BLOCK < 7:
            place += BLOCK - place % BLOCK
            continue
        length, kind = int.from_bytes(content[place + 4 : place + 6], "little"), content[place + 6]
        whole += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last piece
            record = Record()
            record.ParseFromString(whole)
            yield record
            whole = b""


def wandb_history(folder: Path) -> list[dict[str, Any]]:
    """What one session of a run has told wandb, a step each."""
    found = []
    for record in wandb_records(folder):
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            found.append({x.key or ".".join(x.nested_key): json.loads(x.value_json) for x in items})
    return found


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run that was stopped twice, and went on, with all trackers."""
    for name in ("tensorboard", "wandb", "trackio"):
        if not find_spec(name):
            pytest.skip(f"the package {name} is not installed")
    where = tmp_path_factory.mktemp("told")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("TRACKIO_DIR", str(where / "trackio"))
        names = "tensorboard,wandb,trackio"
        flags = [*SHORT, "--report-to", names, "--save-every", "0", "--trace-steps", "1,6"]
        flags += ["--out", "run", "--resume", "auto"]
        for steps in (1, 3):
            program = started(flags, where)
            program.wait_for(lambda steps=steps: lines(where / "run") >= steps)
            program.terminate()
            ended(program, 143)
        shutil.rmtree(checkpoints(where / "run")[-1])  # its steps are made, not told, again
        ended(started(flags, where), 0)
    return where


def named(run: Path) -> str:
    """The name that a run has at its trackers."""
    return json.loads((run / "reported.json").read_text())["name"]


def ended(program: Program, code: int) -> None:
    done = program.finish()
    assert done.returncode == code, done.stderr


@pytest.mark.slow
def test_trackio_has_every_step_once_in_one_run(told):
    (file,) = (told / "trackio").glob("*.db")
    with sqlite3.connect(file) as base:
        rows = base.execute("select run_name, step, metrics from metrics order by id").fetchall()
        configs = base.execute("select config from configs").fetchall()
    assert {name for name, _, _ in rows} == {named(told / "run")}
    assert len(configs) == 1
    assert json.loads(configs[0][0])["group_size"] == 4
    *rows, (_, last, scores) = rows
    values = {step: json.loads(text) for _, step, text in rows}
    assert Counter(step for _, step, _ in rows) == Counter(range(1, 7))
    for metrics in history(told / "run"):
        known = {k: v for k, v in alike(metrics).items() if k != "step" and math.isfinite(v)}
        assert known.items() <= values[metrics["step"]].items()
    table = values[1]["completions"]["_value"]
    assert len(table) == 8
    image = table[0]["image"]
    assert image["_type"] == "trackio.image"
    (kept,) = (told / "trackio").rglob(Path(image["file_path"]).name)
    assert kept.read_bytes()[:4] == b"\x89PNG"
    assert (last, json.loads(scores).keys()) == (6, {"evaluation"})


@pytest.mark.slow
def test_wandb_has_every_step_once_in_one_run(told):
    folders = sorted((told / "run" / "wandb").glob("offline-run-*"))
    assert len(folders) == 3
    own = named(told / "run")[-8:]
    assert all(folder.name.endswith(f"-{own}") for folder in folders)
    steps = [row for folder in folders for row in wandb_history(folder)]
    assert [row["_step"] for row in steps] == [1, 2, 3, 4, 5, 6]
    for row, metrics in zip(steps, history(told / "run"), strict=False):
        assert row["reward"] == metrics["reward"]
    assert (steps[0]["completions._type"], steps[0]["completions.nrows"]) == ("table-file", 8)
    assert steps[-1]["evaluation._type"] == "table-file"
    kept = [record.artifact.manifest.contents for record in wandb_records(folders[0])]
    assert any(file.path.endswith(".png") for files in kept for file in files)
