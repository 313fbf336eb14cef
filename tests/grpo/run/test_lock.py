"""One writer a run folder: a second one is refused, and a dead one holds nothing."""

import errno
import fcntl
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from data.evaluation_questions import Tests
from evaluate import Scorer
from grpo.run.atomic import write_json
from grpo.run.checkpoint import Point
from grpo.run.folder import lock
from grpo.run.resume import open_run, starting_point
from grpo.settings.config import Config
from grpo.settings.errors import UsageError
from grpo.settings.options import Options
from models.policy import Policy
from tests.programs import ROOT, Program
from tests.resuming import SHORT, lines, started

# Another program that locks the same file as ours does, with a child that outlives it.
OWNER = """
import fcntl, os, sys, time
handle = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
fcntl.lockf(handle, fcntl.LOCK_EX)
os.write(handle, b"train.py, process 7 on elsewhere,")
if os.fork():
    print("locked", flush=True)
time.sleep(300)
"""
Locked = Callable[[Path, str], Program]


@pytest.fixture
def locked() -> Iterator[Locked]:
    """Locks a folder in another process, which is returned."""
    owners = []

    def locked(folder: Path, name: str) -> Program:
        owners.append(Program(sys.executable, "-ISc", OWNER, str(folder / f"{name}.lock")))
        owners[-1].wait_for(lambda: "locked" in owners[-1].out)
        return owners[-1]

    yield locked
    for owner in owners:
        owner.end()


def files(folder: Path) -> dict[Path, tuple[int, bytes]]:
    found = [path for path in folder.rglob("*") if path.is_file()]
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in found}


def test_a_folder_has_one_writer_until_that_has_died(tmp_path: Path, locked: Locked) -> None:
    owner = locked(tmp_path, "train")
    before = files(tmp_path)
    with pytest.raises(UsageError) as error:
        lock(tmp_path, "train")
    assert str(error.value) == (
        f"{tmp_path}: train.py, process 7 on elsewhere, is writing there; wait for its end "
        f"(if its machine is gone, delete {tmp_path}/train.lock)"
    )
    assert files(tmp_path) == before
    os.close(lock(tmp_path, "evaluate"))  # may write beside it
    os.kill(owner.pid, signal.SIGKILL)  # its child lives on
    owner.wait(60)
    os.close(lock(tmp_path, "train"))
    assert f"process {os.getpid()} on " in (tmp_path / "train.lock").read_text()


def test_a_file_that_its_reader_deletes_is_no_lock(tmp_path: Path, locked: Locked) -> None:
    """The remedy of the message, where the server of a file system believes in a dead owner."""
    locked(tmp_path, "train")
    (tmp_path / "train.lock").unlink()
    os.close(lock(tmp_path, "train"))


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def fails(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "lockf", fails)
    os.close(lock(tmp_path, "train"))
    said = capsys.readouterr().err
    assert said == (
        f"train.py: {tmp_path}/train.lock cannot be locked ({os.strerror(number)}); "
        "start nothing else that writes there\n"
    )


def test_of_several_processes_the_first_one_locks(
    tmp_path: Path, locked: Locked, monkeypatch: pytest.MonkeyPatch
) -> None:
    locked(tmp_path, "train")
    monkeypatch.setenv("RANK", "1")
    assert lock(tmp_path, "train") is None


def test_a_run_that_is_being_written_is_not_resumed(tmp_path: Path, locked: Locked) -> None:
    config = Config(out=str(tmp_path), recipe="phantom")
    write_json(tmp_path / "config.json", config.record())
    locked(tmp_path, "train")
    before = files(tmp_path)
    for how in ({"resume": "auto"}, {"resume": str(tmp_path), "out": None}):
        with pytest.raises(UsageError, match="process 7 on elsewhere, is writing there"):
            starting_point(Config(**vars(config) | how))
    assert files(tmp_path) == before


def test_two_runs_that_begin_together_do_not_share_a_folder(
    tmp_path: Path, trained: Policy, locked: Locked
) -> None:
    config = Config(out=str(tmp_path), recipe="phantom")
    owner = locked(tmp_path, "train")
    with pytest.raises(UsageError, match="is writing there"):
        open_run(config, trained, Point(), [])
    owner.kill()
    owner.wait(60)
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    with pytest.raises(UsageError, match="a run lies there already"):
        open_run(config, trained, Point(), [])
    assert not (tmp_path / "config.json").exists()


def test_what_evaluate_writes_has_a_lock_of_its_own(
    tmp_path: Path, trained: Policy, locked: Locked
) -> None:
    config = Config(out=str(tmp_path), recipe="phantom")
    open_run(config, trained, Point(), [])
    locked(tmp_path, "evaluate")
    before = files(tmp_path)
    none: Tests = {}
    with pytest.raises(UsageError, match="is writing there"):
        Scorer(trained, config, Options(), tmp_path).ask(none)
    assert files(tmp_path) == before
    (tmp_path / "evaluation.json").write_text("{}")  # which going on would delete
    with pytest.raises(UsageError, match="is writing there"):
        open_run(config, trained, Point(tmp_path), [])
    assert (tmp_path / "evaluation.json").exists()


@pytest.mark.slow
def test_a_scheduler_that_starts_a_running_run_again_harms_nothing(tmp_path: Path) -> None:
    flags = [*SHORT, "--steps", "400", "--lr-schedule", "constant", "--save-every", "1"]
    flags += ["--out", "run", "--resume", "auto"]
    first = started(flags, tmp_path)
    first.wait_for(lambda: lines(tmp_path / "run") >= 2)
    second = started(flags, tmp_path).finish()
    assert second.returncode == 2
    assert second.stderr.splitlines()[-1].startswith("train.py: run: train.py, process ")
    evaluation = ["--run", "run", "--data", "phantom", "--controls", "none", "--ood", "none"]
    beside = Program(sys.executable, str(ROOT / "evaluate.py"), *evaluation, where=tmp_path)
    assert "adapter" in beside.finish().stderr  # there is none yet; not the lock
    first.terminate()
    assert first.finish().returncode == 143
    assert lines(tmp_path / "run") < 400


def test_a_kill_while_the_settings_are_written_leaves_those_before(
    tmp_path: Path, trained: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = Config(out=str(tmp_path), recipe="phantom")
    open_run(config, trained, Point(), [])
    before = (tmp_path / "config.json").read_bytes()

    def half(path: Path, content: bytes) -> None:
        with path.open("wb") as file:
            file.write(content[:1])
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.raises(KeyboardInterrupt):
        open_run(config, trained, Point(tmp_path), [])
    assert (tmp_path / "config.json").read_bytes() == before
