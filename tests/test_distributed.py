"""Two and three real processes under torchrun (gloo, on the CPU) do what one does."""

import json
import os
import re
import shlex
import signal
import sys
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
from tests.programs import ROOT, Program, children

LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
QUICK = "--steps 4 --train-size 40 --prompts-per-step 3 --group-size 4 --kl-coef 0.04 --threads 1"
QUICK += " --max-completion-length 12 --ood none --val-size 0 --device cpu --cache none"


def torchrun(processes: int, *words: str, every: str = "0.1") -> Program:
    """A program on so many processes, one thread each; torchrun looks at them `every` seconds."""
    flags = ["--monitor-interval", every, "--nproc-per-node", str(processes)]
    return Program(*LAUNCH, *flags, *words, settings={"OMP_NUM_THREADS": "1"})


def signal_second_worker(program: Program, metrics: Path, number: signal.Signals) -> None:
    """Send a signal to one of torchrun's processes, after the run's second step."""
    program.wait_for(lambda: metrics.exists() and metrics.read_text().count("\n") > 1)
    os.kill(children(program.pid)[1], number)


@pytest.fixture(scope="module")
def record(tiny_folder, tmp_path_factory) -> Path:
    """Completions of the three questions, as one process drew them."""
    policy = randomise(load_policy(str(tiny_folder), device="cpu"))
    rollout = sample_groups(policy, draw, reward, config(), 0)
    ids = {
        example.id: [ids.tolist() for ids in group.completions]
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
    words = ["-m", "tests.grpo.shared", str(model), str(record), str(out)]
    done = torchrun(processes, *words).finish()
    assert done.returncode == 0, done.stderr[-3000:]
    return out


@pytest.mark.parametrize("processes", [2, 3])
@pytest.mark.slow
def test_the_gradients_of_recorded_rollouts_sum_to_those_of_one_process(
    alone, record, tiny_folder, processes
):
    """Three groups, one of them without signal: on two processes the shares are uneven, and on
    three without a KL term one process has no pass at all."""
    out = shared(processes, record, tiny_folder)
    expected, found = (load_file(folder / "gradients.safetensors") for folder in (alone, out))
    assert expected.keys() == found.keys()
    for name, gradient in expected.items():
        later = not name.endswith("update 0")  # Adam has divided rounding by the gradient's size
        assert gradient.norm() > 1e-4
        difference = (found[name] - gradient).norm() / gradient.norm()
        assert difference < (1e-4 if later else 1e-5), name
    one, many = (json.loads((folder / "metrics.json").read_text()) for folder in (alone, out))
    for case, metrics in one.items():
        assert many[case] == pytest.approx(metrics, rel=1e-4, abs=1e-6), case


def test_a_share_and_its_inverse():
    shares = [list(range(10))[rank::3] for rank in range(3)]
    assert in_order(shares) == list(range(10))
    assert in_order([["a"], []]) == ["a"]


def rows(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.mark.slow
def test_a_process_that_dies_ends_all_with_one_line_and_another_number_goes_on(tmp_path):
    """Killed after a checkpoint on two processes, finished on three, scored on two: the run and
    the answers are one process's, written once."""
    folder = tmp_path / "run"
    flags = [*QUICK.split(), "--eval-size", "10", "--save-every", "1", "--out", str(folder)]
    # torchrun ends the other process when it looks: not before that one has noticed by itself.
    constant = ["--steps", "400", "--lr-schedule", "constant"]
    program = torchrun(2, "train.py", *flags, *constant, every="10")
    metrics = folder / "metrics.jsonl"
    signal_second_worker(program, metrics, signal.SIGKILL)
    done = program.finish()
    assert done.returncode != 0
    said = re.findall(r"^train\.py: .*is gone.*$", done.stderr, re.MULTILINE)
    assert len(said) == 1, done.stderr
    assert f"--resume {folder}" in said[0]
    assert 'train.py", line' not in done.stderr, "torchrun has a traceback, we have none"

    again = ["train.py", *flags, "--lr-schedule", "constant", "--resume", "auto"]
    made = len(rows(metrics))
    again += ["--steps", str(made + 3)]
    done = torchrun(3, *again).finish()
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count(f"{folder}: ") == 1, "one process speaks for all"
    assert [row["step"] for row in rows(metrics)] == list(range(1, made + 4))

    plain = tmp_path / "plain"
    whole = [str(plain) if word == str(folder) else word for word in again if word != "--resume"]
    whole.remove("auto")
    done = Program(sys.executable, *whole).finish()
    assert done.returncode == 0, done.stderr[-3000:]
    for mine, one in zip(rows(metrics), rows(plain / "metrics.jsonl"), strict=True):
        drop = ("time/", "memory/")
        one = {k: v for k, v in one.items() if not k.startswith(drop)}
        assert {k: mine[k] for k in one} == pytest.approx(one, rel=1e-2, abs=1e-4, nan_ok=True)
    for file in (plain / "predictions").glob("*.jsonl"):
        mine = rows(folder / "predictions" / file.name)
        assert [row["id"] for row in mine] == [row["id"] for row in rows(file)]
        assert [row["completion"] for row in mine] == [row["completion"] for row in rows(file)]


@pytest.mark.slow
def test_processes_without_a_gpu_each_are_refused_in_one_line():
    problems = {
        "one,one": "--device cuda:1: 2 processes need a GPU each, and have 1; use --device cuda",
        "cpu,one": ": 2 processes need a GPU each, and have 1; use --device cuda",
        "late": "another process of this run is gone or 0:00:02 late (",
    }
    for words, problem in problems.items():
        done = torchrun(2, "-m", "tests.grpo.starting", words).finish()
        assert done.returncode != 0, words
        said = re.findall("^starting: .*$", done.stderr, re.MULTILINE)
        assert len(said) == 1, done.stderr
        assert problem in said[0]
    done = torchrun(2, "-m", "tests.grpo.starting", "cpu,cpu").finish()
    assert (done.returncode, done.stdout) == (0, "connected\n"), done.stderr


@pytest.mark.slow
def test_a_signal_to_one_process_stops_all_after_the_same_step(tmp_path):
    folder = tmp_path / "run"
    flags = [*QUICK.split(), "--eval-size", "0", "--steps", "400", "--out", str(folder)]
    program = torchrun(2, "train.py", *flags, "--save-every", "0")
    metrics = folder / "metrics.jsonl"
    signal_second_worker(program, metrics, signal.SIGTERM)
    done = program.finish()
    assert done.returncode != 0
    stopped = r"^train\.py: stopped by SIGTERM after step (\d+) .*$"
    said = re.findall(stopped, done.stderr, re.MULTILINE)
    assert said == [str(len(rows(metrics)))], done.stderr
    (checkpoint,) = (folder / "checkpoints").iterdir()
    assert checkpoint.name == f"step-{int(said[0]):06d}"


@pytest.mark.slow
def test_a_bad_flag_is_said_once(tmp_path):
    done = torchrun(2, "train.py", "--modality", "TEA", "--device", "cpu").finish()
    assert done.returncode != 0
    assert len(re.findall(r"^train\.py: .*TEA", done.stderr, re.MULTILINE)) == 1, done.stderr


def test_the_lines_of_the_manual_are_launched_by_torchrun_and_have_flags_that_exist():
    manual = (ROOT / "grpo" / "run" / "README.md").read_text("utf-8")
    lines = re.findall(r"^    (torchrun .*)$", manual, re.MULTILINE)
    assert len(lines) == 3
    for line in lines:
        launched = run.get_args_parser().parse_args(shlex.split(line)[1:])
        flags = launched.training_script_args
        if launched.training_script == "train.py":
            Config.from_flags([*flags, "--quiet"])
        else:
            assert launched.training_script == "evaluate.py"
            parse_flags(Options, flags, "evaluate.py", "")
