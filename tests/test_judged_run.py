"""train.py and evaluate.py with a judge over HTTP: what it is paid, what is told, how it ends."""

import json
import shlex
from pathlib import Path

import pytest

import evaluate
import train
from grpo.settings.errors import exit_on_usage_error
from rewards.scoring import RewardError
from tests.rewards.judges.server import Server, verdict

SHORT = ["--recipe", "phantom", "--train-size", "24", "--eval-size", "4", "--ood", "none"]
SHORT += ["--prompts-per-step", "2", "--group-size", "2", "--device", "cpu", "--threads", "1"]
SHORT += ["--cache", "none"]
REWARD = ["--reward", "format,accuracy,semantic=0.5,reasoning"]


def opinion(body: dict) -> str | None:
    """Coherent, grade 2; of every fourth text something that no one can read."""
    asked = body["messages"][-1]["content"]
    if sum(map(ord, asked)) % 4 == 0:
        return "I would rather not say."
    return verdict("yes" if "yes" in body["messages"][0]["content"] else 2)


def lines(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.mark.slow
def test_judged_rewards_train_and_judged_metrics_evaluate(server: Server, tmp_path: Path) -> None:
    server.reply = opinion
    run, judge = tmp_path / "run", ["--judge", server.url, "--judge-model", "judge-1"]
    train.main([*SHORT, *REWARD, *judge, "--steps", "2", "--out", str(run)])
    steps = lines(run / "metrics.jsonl")

    assert len(steps) == 2
    assert sum(step["judge/asked"] for step in steps) > 0
    assert sum(step["judge/unreadable"] for step in steps) > 0
    grades = [step["rewards/reasoning/mean"] for step in steps]
    assert all(grade is None or 0 <= grade <= 2 / 3 + 1e-6 for grade in grades)
    assert any(grade for grade in grades)

    table = tmp_path / "table.json"
    flags = ["--metrics", "reasoning,correctness,perplexity", "--controls", "none"]
    evaluate.main(["--run", str(run), *flags, "--json", str(table)])
    found = json.loads(table.read_text())["metrics"]["trained"]["MRI"]
    (file,) = (run / "predictions").glob("measures-trained-*")
    rows = lines(file)

    assert found["perplexity"] > 1
    missing = sum(row["reasoning"] is None for row in rows)
    assert found["reasoning missing"] == missing
    given = [row["reasoning"] for row in rows if row["reasoning"] is not None]
    assert found["reasoning"] == pytest.approx(sum(given) / len(given))
    assert {row["reasoning_reason"] for row in rows} <= {"as seen", "not readable"}


@pytest.mark.slow
def test_a_judge_that_goes_away_ends_the_run_with_all_that_was_learned(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.reply = lambda body: verdict("yes" if "yes" in body["messages"][0]["content"] else 3)
    server.faults = [None] * 12 + [401] * 50
    run, judge = tmp_path / "run", ["--judge", server.url, "--judge-model", "judge-1"]
    flags = [*SHORT, *REWARD, *judge, "--steps", "40", "--out", str(run)]
    with pytest.raises(SystemExit) as ended, exit_on_usage_error("train.py"):
        train.main(flags)
    last = capsys.readouterr().err.splitlines()[-1]

    assert ended.value.code == 2
    assert last.startswith(f"train.py: judge {server.url}: status 401; set MEDVQA_JUDGE_KEY")
    assert last.endswith(f"go on with: python train.py {shlex.join(flags)} --resume {run}")
    assert (run / "adapter" / "adapter_model.safetensors").is_file()
    assert 1 <= len(lines(run / "metrics.jsonl")) < 40
    evaluate.main(["--run", str(run), "--controls", "none"])
    assert "trained" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (["--reward", "format,accuracy,semantic"], "needs a judge; add --judge URL"),
        (["--reward", "format,similarity"], "similarity"),
        (["--judge", "ftp://here"], "unknown kind of judge"),
        (["--judge", "hf:/nowhere/at/all"], "/nowhere/at/all"),
    ],
)
def test_a_judge_that_is_not_there_is_one_line_before_any_work(
    flags: list[str], problem: str, tmp_path: Path
) -> None:
    with pytest.raises(RewardError, match=problem) as error:
        train.main([*SHORT, *flags, "--out", str(tmp_path / "run")])

    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()
