"""The batch file of grpo/run/README.md, its own lines, with the test as the scheduler."""

import os
import re
import signal
import sys
from pathlib import Path
from textwrap import dedent

import pytest

from tests.programs import ROOT, SETTINGS, Program
from tests.resuming import SHORT, differences, lines, started

JOB = "7"
FLAGS = [*SHORT, "--steps", "12", "--save-every", "5"]
# What SLURM would start: srun runs a step, whose process the scheduler signals.
SRUN = '#!/bin/sh\necho $$ > step.pid\nexec "$@"\n'
SCONTROL = '#!/bin/sh\necho "$@" >> scontrol.txt\n'


def batch_file() -> str:
    """The lines of the README, as a file."""
    text = (ROOT / "grpo" / "run" / "README.md").read_text("utf-8")
    (block,) = re.findall(r"^    #!/bin/bash\n(?:    .*\n)+", text, re.M)
    return dedent(block)


def test_the_file_asks_for_what_a_run_needs_to_go_on() -> None:
    text = batch_file()
    assert "#SBATCH --requeue\n" in text
    assert "#SBATCH --open-mode=append\n" in text
    assert text.count("--resume auto\n") == 1
    assert re.search(r"^#SBATCH --signal=TERM@\d+$", text, re.M)


@pytest.fixture
def cluster(tmp_path: Path) -> Path:
    """A folder to submit from, with srun and scontrol."""
    (tmp_path / "bin").mkdir()
    python = f'#!/bin/sh\nexec "{sys.executable}" "$@"\n'
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL), ("python", python)):
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    (tmp_path / "train.py").symlink_to(ROOT / "train.py")
    (tmp_path / "job.sh").write_text(batch_file())
    return tmp_path


def begun(cluster: Path) -> Program:
    """The batch file, as the scheduler starts it each time."""
    path = f"{cluster / 'bin'}:{os.environ['PATH']}"
    settings = SETTINGS | {"PATH": path, "SLURM_JOB_ID": JOB, "XDG_CACHE_HOME": str(cluster)}
    return Program("bash", "job.sh", *FLAGS, where=cluster, settings=settings)


def requeued(cluster: Path) -> list[str]:
    file = cluster / "scontrol.txt"
    return file.read_text().splitlines() if file.exists() else []


@pytest.mark.slow
def test_a_job_that_is_stopped_three_times_equals_an_uninterrupted_run(cluster: Path) -> None:
    asked = re.search(r"--signal=(\w+)@", batch_file())[1]
    run = cluster / "runs" / f"slurm-{JOB}"
    for times in (1, 2, 3):
        program, done = begun(cluster), lines(run)
        program.wait_for(lambda done=done: lines(run) > done)
        os.kill(int((cluster / "step.pid").read_text()), signal.Signals[f"SIG{asked}"])
        ended = program.finish()
        assert ended.returncode == 143, ended.stderr
        assert requeued(cluster) == [f"requeue {JOB}"] * times
        assert done < lines(run) < 12
    for _ in range(2):  # to its end, and once more, which finds it finished
        ended = begun(cluster).finish()
        assert ended.returncode == 0, ended.stderr
    assert "is finished" in ended.stdout
    assert len(requeued(cluster)) == 3
    whole = started([*FLAGS, "--out", "whole"], cluster).finish()
    assert whole.returncode == 0, whole.stderr
    assert differences(run, cluster / "whole") == []


@pytest.mark.slow
def test_a_job_with_a_mistake_is_not_started_again(cluster: Path) -> None:
    (cluster / "job.sh").write_text(batch_file().replace("--resume auto", "--group-size 1"))
    ended = begun(cluster).finish()
    assert ended.returncode == 2, ended.stderr
    assert requeued(cluster) == []
