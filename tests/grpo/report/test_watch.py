"""--watch: the page follows a run that another process trains, and ends with it in any case."""

import json
import re
import sys
import threading
import time
from pathlib import Path

import pytest

from grpo.report import page as report
from grpo.run.folder import held, lock
from tests.grpo.report.runs import make_run
from tests.programs import LIMIT, Program

# Trains as far as the report can tell: holds the lock, and writes a step for each line it reads.
TRAINS = """
import fcntl, json, os, sys
run = sys.argv[1]
handle = os.open(f"{run}/train.lock", os.O_RDWR | os.O_CREAT)
fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
print("locked", flush=True)
for line in sys.stdin:
    with open(f"{run}/metrics.jsonl", "a") as file:
        file.write(line)
"""


def training(run: Path) -> Program:
    """A process that holds the run's lock; a line to its stdin is a step."""
    program = Program(sys.executable, "-c", TRAINS, str(run), stdin=-1, stdout=-1)
    assert program.stdout.readline() == b"locked\n"
    return program


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of 60 steps that has made 3, and has no summary yet."""
    run = make_run(tmp_path / "run", traced=(1,))
    lines = (run / "metrics.jsonl").read_text().splitlines()
    (run / "metrics.jsonl").write_text("\n".join(lines[:3]) + "\n")
    (run / "summary.json").unlink()
    return run


def wait_for(file: Path, text: str) -> str:
    """The page once it says `text`; it is whole whenever it is read."""
    end = time.monotonic() + LIMIT
    while time.monotonic() < end:
        page = file.read_text(encoding="utf-8") if file.exists() else ""
        assert page == "" or page.rstrip().endswith("</html>")
        if text in page:
            return page
        time.sleep(0.05)
    raise AssertionError(f"the page never said {text}")


@pytest.mark.slow
@pytest.mark.parametrize("killed", [True, False])
def test_the_page_follows_a_run_and_ends_with_it(
    run: Path, killed: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(report, "REST", 0.0)
    monkeypatch.setattr(report, "RELOAD", 1)
    program = training(run)
    watch = threading.Thread(target=report.main, args=([str(run), "--watch"],))
    watch.start()
    page = wait_for(run / "report.html", "3 of 60 steps")
    assert re.findall(r'<body data-reload="(\d)">', page) == ["1"]
    assert '<noscript><meta http-equiv="refresh" content="1"></noscript>' in page
    program.stdin.write(json.dumps({"step": 4, "kl": 0.25}).encode() + b"\n")
    program.stdin.flush()
    wait_for(run / "report.html", "4 of 60 steps")
    assert watch.is_alive()
    if killed:
        program.kill()
    else:
        (run / "summary.json").write_text("{}")
        program.stdin.close()
    program.wait(LIMIT)
    watch.join(LIMIT)

    assert not watch.is_alive()
    page = (run / "report.html").read_text()
    assert "4 of 60 steps" in page
    assert "data-reload" not in page.partition("<script>")[0]
    assert "refresh" not in page
    assert ("Not finished: 4 of 60 steps" in page) == killed
    assert capsys.readouterr().out.startswith(f"wrote {run / 'report.html'}, ")


def test_a_run_that_nobody_trains_is_written_once(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report.main([str(run), "--watch"])

    assert capsys.readouterr().out.count("wrote") == 1
    assert "refresh" not in (run / "report.html").read_text()


@pytest.mark.slow
def test_asking_for_a_lock_does_not_take_it(run: Path) -> None:
    assert not held(run, "train")
    program = training(run)
    assert held(run, "train")
    assert held(run, "train")
    program.kill()
    program.wait(LIMIT)
    assert (run / "train.lock").exists()
    assert not held(run, "train")
    assert isinstance(lock(run, "train"), int)
    assert not held(run, "train")  # its own lock is no other's
