"""evaluate.py before and beside training: pass rates, the blind control, the checklist."""

import json
import re
from pathlib import Path

import pytest

import evaluate
import train
from grpo.settings.errors import UsageError

SHORT = ["--recipe", "phantom", "--steps", "2", "--train-size", "24", "--prompts-per-step", "2"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("work") / "run"
    train.main([*SHORT, "--out", str(out), "--cache", "none", "--eval-size", "12"])
    return out


@pytest.fixture
def here(run: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(run.parent)
    return run.parent


def lines(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.mark.slow
def test_pass_rates_of_the_training_questions_and_training_on_those_between(here, run, capsys):
    flags = ["--run", str(run), "--samples", "8", "--pass-rates", "rates.jsonl"]
    evaluate.main([*flags, "--reward", "accuracy"])
    said = capsys.readouterr().out.splitlines()
    rows = lines(Path("rates.jsonl"))
    assert said[0].startswith("rates.jsonl: 24 questions, 8 samples each: always right ")
    assert said[2].startswith("groups of 8 that differ in accuracy ")
    (total, correct) = re.findall(r"([\d.]+) %", said[2])
    assert total == correct, "a group of all samples differs where right and wrong are mixed"
    mixed = [row["id"] for row in rows if 0 < row["correct"] < 8]
    assert f"mixed {len(mixed)};" in said[0]
    assert total == f"{100 * len(mixed) / 24:.1f}"
    for row in rows:
        assert row["n"] == len(row["totals"]) == 8
        assert row["correct"] == sum(row["totals"])
    kept = lines(run / "predictions" / "base-MRI-train-reason-8-at-1.0.jsonl")
    assert [row["id"] for row in kept] == [row["id"] for row in rows]

    short = ["--steps", "3", "--out", "mixed", "--cache", "none", "--eval-size", "0"]
    keep = ["--pass-rates", "rates.jsonl", "--keep", "0.01,0.99", "--trace-steps", "1,2,3"]
    train.main([*SHORT, *short, *keep])
    assert f"--keep 0.01,0.99: {len(mixed)} of 24 questions" in capsys.readouterr().err
    traced = [json.loads(file.read_text()) for file in Path("mixed/trace").glob("*.json")]
    assert {group["id"] for step in traced for group in step["groups"]} <= set(mixed)
    evaluate.main([*flags[:4], "--pass-rates", "val.jsonl", "--split", "val", "--eval-size", "4"])
    assert ["-val-" in row["id"] for row in lines(Path("val.jsonl"))] == [True] * 4


def test_pass_rates_with_a_reward_that_counts_tokens_are_refused_before_a_question_is_asked(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    flags = ["--model", "phantom", "--device", "cpu", "--eval-size", "2", "--samples", "8"]
    with pytest.raises(UsageError, match="--reward accuracy,overlong: overlong needs token counts"):
        evaluate.main([*flags, "--pass-rates", "p.jsonl", "--reward", "accuracy,overlong"])
    assert [*tmp_path.iterdir()] == []


@pytest.mark.slow
def test_a_blind_run_trains_without_images_and_is_scored_with_them(here, run, capsys):
    flags = ["--blind", "--out", "blind", "--cache", "none", "--eval-size", "12"]
    train.main([*SHORT, *flags, "--trace-steps", "1,2"])
    traced = [json.loads(file.read_text()) for file in Path("blind/trace").glob("*.json")]
    assert [group["images"] for step in traced for group in step["groups"]] == [[]] * 4
    seen = lines(run / "predictions" / "base-MRI-reason.jsonl")
    assert lines(Path("blind/predictions/base-MRI-reason.jsonl")) == seen
    assert all(row["image"] for row in lines(Path("blind/predictions/trained-CT-reason.jsonl")))
    capsys.readouterr()
    evaluate.main(["--run", "blind", "--controls", "none", "--ood", "none"])
    assert "greedy, a control: trained without images" in capsys.readouterr().out


@pytest.mark.slow
def test_the_checklist_asks_the_model_nothing(here, run, capsys, monkeypatch):
    monkeypatch.setattr(evaluate, "open_policy", None)
    evaluate.main(["--run", str(run), "--checklist"])
    said = capsys.readouterr().out
    assert "   model: phantom, started as: instruct" in said
    assert "   scored questions: MRI 12, CT 12, XRAY 12" in said
    assert said.count("\n\n") == 5
