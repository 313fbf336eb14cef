"""train.py and evaluate.py from end to end on a rehearsed card: nothing is refused on the way."""

import json
import math
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import torch
from safetensors.torch import load_file

import evaluate
import train
from tests.programs import Program
from tests.rehearsal import counts
from tests.rehearsal.card import rehearsed
from tests.rehearsal.counts import KINDS, Counts

TASK = [
    *("--recipe", "phantom", "--train-size", "24", "--prompts-per-step", "2", "--ood", "CT"),
    *("--max-completion-length", "24", "--eval-size", "0", "--cache", "none", "--threads", "1"),
    *("--device", "cuda", "--quiet"),
    *("--cuda-graphs", "on"),  # a graph that cannot be recorded ends the run: no refusal is lost
]
GRPO = [*TASK, "--group-size", "4", "--kl-coef", "0.04", "--updates-per-rollout", "2"]
# Both cards and both dtypes; MEDVQA_REHEARSE_ALL=1 tries all four pairs, two minutes more.
ALL = [("sm80", "bfloat16"), ("sm90", "float32")]
if os.environ.get("MEDVQA_REHEARSE_ALL"):
    ALL += [("sm80", "float32"), ("sm90", "bfloat16")]


def rehearse(main: Callable[[Sequence[str]], None], card: str, *flags: str | Path) -> Counts:
    """What is counted in one run of a program; raises what the program raises."""
    with rehearsed(card) as rehearsal:
        main([*map(str, flags)])
    return rehearsal.counts


def steps(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def on_an_a100(run: Path, *more: str) -> list[dict]:
    """The metrics of a run with validation that has trained, or trained on, as `more` says.

    In bfloat16, with two updates a rollout, a reference and the sampler of CUDA graphs.
    """
    flags = [*GRPO, "--dtype", "bfloat16", "--lr-schedule", "constant", "--out", run]
    flags += ["--val-size", "2", "--eval-every", "1", "--warmup-steps", "0"]
    found = rehearse(train.main, "sm80", *flags, *more)
    assert found.total(counts.REPLAYS) > 0
    assert found.total(counts.CAPTURED) > 0
    assert {name.split()[0] for name in found.names(counts.ATTENTION)} <= {"flash", "efficient"}
    for step in steps(run):
        assert step["grad_norm"] > 0 or step["step"] > 1
        assert {"val/accuracy", "kl"} <= step.keys()
        assert all(math.isfinite(value) for value in step.values())
    return steps(run)


@pytest.fixture(scope="module")
def validated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one step."""
    run = tmp_path_factory.mktemp("validated") / "run"
    on_an_a100(run, "--steps", "1")
    return run


def test_a_run_trains_and_validates_on_an_a100(validated: Path) -> None:
    assert steps(validated)[0]["step"] == 1


@pytest.mark.slow
def test_a_run_is_resumed_on_an_a100(validated: Path) -> None:
    made = on_an_a100(validated, "--steps", "2", "--resume", "auto")
    assert [step["step"] for step in made] == [1, 2]


@pytest.fixture(scope="module", params=ALL, ids="-".join)
def way(request: pytest.FixtureRequest) -> tuple[str, str]:
    """A card and a dtype."""
    return request.param


@pytest.fixture(scope="module")
def supervised(way: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of supervised training. Read only."""
    card, dtype = way
    run = tmp_path_factory.mktemp("sft") / "run"
    flags = ["--method", "sft", "--dtype", dtype, "--steps", "2", "--out", run]
    rehearse(train.main, card, *TASK, *flags)
    assert steps(run)[-1]["grad_norm"] > 0
    return run


@pytest.fixture(scope="module")
def trained(
    way: tuple[str, str], supervised: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """From the supervised run, with dynamic sampling and one traced step, and scored. Read only."""
    card, dtype = way
    run = tmp_path_factory.mktemp("grpo") / "run"
    flags = ["--init", f"sft:{supervised}", "--dynamic-sampling", "2", "--dtype", dtype]
    flags += ["--steps", "2", "--eval-size", "4", "--trace-steps", "1", "--out", run]
    found = rehearse(train.main, card, *GRPO, *flags)
    assert found.total(counts.REPLAYS) > 0
    return run


@pytest.mark.slow
def test_a_run_from_supervised_training_with_dynamic_sampling_is_scored(trained: Path) -> None:
    table = json.loads((trained / "summary.json").read_text())
    assert {"base", "trained"} <= set(table["results"])
    assert all(math.isfinite(value) for step in steps(trained) for value in step.values())


@pytest.mark.slow
def test_a_run_is_scored_with_controls_samples_and_measures(
    way: tuple[str, str], trained: Path, tmp_path: Path
) -> None:
    flags = ["--run", trained, "--controls", "full", "--samples", "2", "--device", "cuda"]
    flags += ["--metrics", "perplexity", "--json", tmp_path / "table.json"]
    rehearse(evaluate.main, way[0], *flags)
    table = json.loads((tmp_path / "table.json").read_text())
    assert {"base", "trained"} <= set(table["results"])


@pytest.mark.slow
def test_a_run_is_exported(way: tuple[str, str], trained: Path, tmp_path: Path) -> None:
    flags = ["--run", trained, "--export-merged", tmp_path / "merged", "--device", "cuda"]
    rehearse(evaluate.main, way[0], *flags)
    assert load_file(next((tmp_path / "merged").glob("*.safetensors")))


@pytest.mark.slow
def test_a_step_is_explained(way: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    rehearse(train.main, way[0], *GRPO, "--dtype", way[1], "--explain")
    assert "advantage" in capsys.readouterr().out


@pytest.mark.slow
def test_the_memory_of_a_run_is_planned(
    way: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    rehearse(train.main, way[0], *GRPO, "--dtype", way[1], "--dry-run")
    assert "--group-size" in capsys.readouterr().out


@pytest.mark.slow
def test_the_counts_of_one_step_are_printed(tmp_path: Path) -> None:
    """And an error of CUDA ends the command with 1, one of the user's with 2."""
    words = [sys.executable, "-m", "tests.rehearsal", "--card", "sm90", "--step", "2", "train.py"]
    flags = [*GRPO, "--steps", "2", "--out", str(tmp_path / "run")]
    done = Program(*words, *flags).finish()
    assert done.returncode == 0, done.stderr
    text = done.stdout.split("sm90, step 2 alone: train.py ")[1]
    totals = {kind: int(re.findall(rf"^ *(\d+)  {kind}$", text, re.MULTILINE)[0]) for kind in KINDS}
    assert totals[counts.REPLAYS] > 0
    assert totals[counts.ATTENTION] > 0
    assert f"{counts.WAITS}: {totals[counts.WAITS]}" in text
    again = Program(*words, *flags).finish()  # the folder is taken
    assert (again.returncode, "Traceback" in again.stderr) == (2, False)


def torchrun(*flags: str) -> CompletedProcess[str]:
    """train.py by two processes with a card each."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    words = ["--nproc-per-node", "2", "-m", "tests.rehearsal", "train.py", *GRPO, *flags]
    return Program(*launch, *words, settings={"OMP_NUM_THREADS": "1"}).finish()


@pytest.mark.slow
def test_two_processes_have_a_card_each_and_sum_by_nccl(tmp_path: Path) -> None:
    done = torchrun("--dtype", "float32", "--steps", "2", "--out", str(tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    assert re.search(r"\d+  grpo/distributed.py:\d+ all_reduce by nccl", done.stdout)
    assert [step["step"] for step in steps(tmp_path / "run")] == [1, 2]


@pytest.mark.slow
def test_two_processes_on_one_card_end_in_one_line(tmp_path: Path) -> None:
    """Before anything is sampled."""
    done = torchrun("--device", "cuda:0", "--steps", "2", "--out", str(tmp_path / "run"))
    assert done.returncode != 0
    assert "need a GPU each" in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_rehearsal_computes_what_the_cpu_computes(tmp_path: Path) -> None:
    """In float32: the same tokens, rewards and updates, but for rounding."""
    flags = [*GRPO, "--dtype", "float32", "--steps", "3", "--warmup-steps", "0"]
    rehearse(train.main, "sm80", *flags, "--out", tmp_path / "card")
    torch.set_num_threads(1)
    train.main([*flags, "--device", "cpu", "--cuda-graphs", "off", "--out", str(tmp_path / "cpu")])
    unlike = {}
    for one, other in zip(steps(tmp_path / "card"), steps(tmp_path / "cpu"), strict=True):
        for name, value in other.items():
            exempt = name.startswith(("time/", "memory/"))
            if not exempt and not math.isclose(one[name], value, rel_tol=1e-2, abs_tol=1e-4):
                unlike[other["step"], name] = one[name], value
    assert unlike == {}
