"""Two and three real processes under torchrun (gloo, on the CPU) do what one does."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch.distributed import run

from grpo.distributed import in_order
from grpo.rollout import sample_groups
from grpo.settings.config import Config
from grpo.settings.flags import parse_flags
from grpo.settings.options import Options
from models.open_policy import load_policy
from tests.conftest import randomise
from tests.grpo.cases import config, draw, reward

ROOT = Path(__file__).parents[1]
LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
QUICK = "--steps 4 --train-size 40 --prompts-per-step 3 --group-size 4 --kl-coef 0.04 --threads 1"
QUICK += " --max-completion-length 12 --ood none --val-size 0 --device cpu --cache none"


def torchrun(processes: int, *words: str) -> subprocess.Popen[str]:
    """A program on so many processes, one thread each."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    words = [*LAUNCH, str(processes), *words]
    return subprocess.Popen(words, cwd=ROOT, env=environment, start_new_session=True, **pipes)


def finish(program: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Its exit code, and what it said."""
    try:
        out, err = program.communicate(timeout=300)
    finally:
        if program.poll() is None:
            os.killpg(program.pid, signal.SIGKILL)
    return program.returncode, out, err


@pytest.fixture(scope="module")
def record(tiny_folder, tmp_path_factory) -> Path:
    """Completions of the three questions, as one process drew them."""
    policy = randomise(load_policy(str(tiny_folder), device="cpu"))
    rollout = sample_groups(policy, draw, reward, config(), 0)
    ids = {
        example.id: [of.tolist() for of in group.completions]
        for example, group in zip(rollout.examples, rollout.groups, strict=True)
    }
    file = tmp_path_factory.mktemp("record") / "record.json"
    file.write_text(json.dumps(ids))
    return file


@pytest.fixture(scope="module")
def alone(record, tiny_folder) -> Path:
    return shared(1, record, tiny_folder)


def shared(processes: int, record: Path, model: Path) -> Path:
    out = record.parent / str(processes)
    out.mkdir()
    code, _, err = finish(
        torchrun(processes, "-m", "tests.grpo.shared", str(model), str(record), str(out))
    )
    assert code == 0, err[-3000:]
    return out


@pytest.mark.parametrize("processes", [2, 3])
def test_the_gradients_of_recorded_rollouts_sum_to_those_of_one_process(
    alone, record, tiny_folder, processes
):
    """Three groups, one of them without signal: on two processes the shares are uneven, and on
    three without a KL term one process has no pass at all."""
    out = shared(processes, record, tiny_folder)
    expected, found = (load_file(of / "gradients.safetensors") for of in (alone, out))
    assert expected.keys() == found.keys()
    for name, gradient in expected.items():
        later = not name.endswith("update 0")  # Adam has divided rounding by the gradient's size
        assert gradient.norm() > 1e-4
        difference = (found[name] - gradient).norm() / gradient.norm()
        assert difference < (1e-4 if later else 1e-5), name
    one, many = (json.loads((of / "metrics.json").read_text()) for of in (alone, out))
    for case, metrics in one.items():
        assert many[case] == pytest.approx(metrics, rel=1e-4, abs=1e-6), case


def test_a_share_and_its_inverse():
    shares = [list(range(10))[rank::3] for rank in range(3)]
    assert in_order(shares) == list(range(10))
    assert in_order([["a"], []]) == ["a"]


def rows(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_a_process_that_dies_ends_all_with_one_line_and_another_number_goes_on(tmp_path):
    """Killed after a checkpoint on two processes, finished on three, scored on two: the run and
    the answers are one process's, written once."""
    folder = tmp_path / "run"
    flags = [*QUICK.split(), "--eval-size", "10", "--save-every", "1", "--out", str(folder)]
    program = torchrun(2, "train.py", *flags, "--steps", "400", "--lr-schedule", "constant")
    metrics = folder / "metrics.jsonl"
    while program.poll() is None and not (metrics.exists() and metrics.read_text().count("\n") > 1):
        time.sleep(0.05)
    workers = subprocess.run(
        ["pgrep", "-P", str(program.pid)], capture_output=True, text=True
    ).stdout.split()
    os.kill(int(workers[1]), signal.SIGKILL)
    code, out, err = finish(program)
    assert code != 0
    said = re.findall(r"^train\.py: .*is gone.*$", err, re.MULTILINE)
    assert len(said) == 1, err
    assert f"--resume {folder}" in said[0]
    assert 'train.py", line' not in err, "torchrun has a traceback, we have none"

    again = ["train.py", *flags, "--lr-schedule", "constant", "--resume", "auto"]
    made = len(rows(metrics))
    again += ["--steps", str(made + 3)]
    code, out, err = finish(torchrun(3, *again))
    assert code == 0, err[-3000:]
    assert out.count(f"{folder}: ") == 1, "one process speaks for all"
    assert [row["step"] for row in rows(metrics)] == list(range(1, made + 4))

    plain = tmp_path / "plain"
    whole = [str(plain) if word == str(folder) else word for word in again if word != "--resume"]
    whole.remove("auto")
    done = subprocess.run([sys.executable, *whole], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    for mine, one in zip(rows(metrics), rows(plain / "metrics.jsonl"), strict=True):
        drop = ("time/", "memory/")
        one = {k: v for k, v in one.items() if not k.startswith(drop)}
        assert {k: mine[k] for k in one} == pytest.approx(one, rel=1e-2, abs=1e-4, nan_ok=True)
    for file in (plain / "predictions").glob("*.jsonl"):
        mine = rows(folder / "predictions" / file.name)
        assert [row["id"] for row in mine] == [row["id"] for row in rows(file)]
        assert [row["completion"] for row in mine] == [row["completion"] for row in rows(file)]


def test_a_signal_to_one_process_stops_all_after_the_same_step(tmp_path):
    folder = tmp_path / "run"
    flags = [*QUICK.split(), "--eval-size", "0", "--steps", "400", "--out", str(folder)]
    program = torchrun(2, "train.py", *flags, "--save-every", "0")
    metrics = folder / "metrics.jsonl"
    while program.poll() is None and not (metrics.exists() and metrics.read_text().count("\n") > 1):
        time.sleep(0.05)
    workers = subprocess.run(
        ["pgrep", "-P", str(program.pid)], capture_output=True, text=True
    ).stdout.split()
    os.kill(int(workers[1]), signal.SIGTERM)
    code, _, err = finish(program)
    assert code != 0
    said = re.findall(r"^train\.py: stopped by SIGTERM after step (\d+) .*$", err, re.MULTILINE)
    assert said == [str(len(rows(metrics)))], err
    (checkpoint,) = (folder / "checkpoints").iterdir()
    assert checkpoint.name == f"step-{int(said[0]):06d}"


def test_a_bad_flag_is_said_once(tmp_path):
    code, _, err = finish(torchrun(2, "train.py", "--modality", "TEA", "--device", "cpu"))
    assert code != 0
    assert len(re.findall(r"^train\.py: .*TEA", err, re.MULTILINE)) == 1, err


def test_the_lines_of_the_readme_are_launched_by_torchrun_and_have_flags_that_exist():
    lines = re.findall(
        r"^    (torchrun .*)$", (ROOT / "README.md").read_text("utf-8"), re.MULTILINE
    )
    assert len(lines) == 3
    for line in lines:
        launched = run.get_args_parser().parse_args(shlex.split(line)[1:])
        flags = launched.training_script_args
        if launched.training_script == "train.py":
            Config.from_flags([*flags, "--quiet"])
        else:
            assert launched.training_script == "evaluate.py"
            parse_flags(Options, flags, "evaluate.py", "")
