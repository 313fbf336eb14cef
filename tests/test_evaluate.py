"""evaluate.py in all its ways, on one short run: controls, ways of asking, samples, one picture."""

import json
import math
import shutil
import signal
import sys
from pathlib import Path

import pytest
import torch
from transformers import Qwen2VLForConditionalGeneration

import data.load
import evaluate
import train
from grpo.settings.errors import UsageError
from rewards.answers import is_formatted
from tests.programs import ROOT, Program

SHORT = ["--recipe", "phantom", "--steps", "2", "--train-size", "24", "--prompts-per-step", "2"]
CONTROLS = ["blank_image", "shuffled_image", "permuted_options", "no_image", "nearest_image"]
CONTROLS += ["none_is_right", "none_is_wrong", "options_prior", "majority_letter"]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("work")


@pytest.fixture(scope="module")
def run(work: Path) -> Path:
    flags = ["--out", str(work / "run"), "--cache", "none", "--eval-size", "12"]
    train.main([*SHORT, *flags])
    return work / "run"


@pytest.fixture
def here(work: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(work)
    return work


def table(run: Path, *flags: str) -> dict:
    evaluate.main(["--run", str(run), "--json", "t.json", *flags])
    return json.loads(Path("t.json").read_text())


def lines(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.mark.slow
def test_controls_stand_under_both_models(here, run, capsys):
    found = table(run, "--controls", "full", "--markdown", "t.md")
    for model in ("base", "trained"):
        assert list(found["controls"][model]) == CONTROLS
        for control in CONTROLS:
            assert list(found["controls"][model][control]) == ["MRI", "CT", "XRAY"]
            assert {"n", "correct", "accuracy", "ci95"} <= set(
                found["controls"][model][control]["CT"]
            )
    shown = capsys.readouterr().out
    assert "permuted options" in shown
    assert 'Their model has never read "None of the above".' in shown
    assert "permuted options" in Path("t.md").read_text()
    blank = lines(run / "predictions" / "trained-MRI-reason-blank_image.jsonl")
    assert {key for row in blank for key in row["image"]} == {"blank/112x112"}
    asked = {row["id"]: row for row in lines(run / "predictions" / "trained-MRI-reason.jsonl")}
    shuffled = lines(run / "predictions" / "trained-MRI-reason-shuffled_image.jsonl")
    assert all(row["image"] != asked[row["id"]]["image"] for row in shuffled)
    assert {tuple(row["image"]) for row in shuffled} == {tuple(r["image"]) for r in asked.values()}
    turned = lines(run / "predictions" / "trained-MRI-reason-permuted_options.jsonl")
    assert len(turned) == sum(len(row["options"]) for row in asked.values())
    for row in turned:
        question, _, order = row["id"].rpartition("~")
        if order == "0":
            assert row["completion"] == asked[question]["completion"]


@pytest.mark.slow
def test_reliance_is_counted_from_the_answers_kept(here, run):
    found = table(run, "--controls", "full", "--metrics", "faithfulness", "--ood", "none")
    kept = {
        arm: {
            row["id"]: row for row in lines(run / "predictions" / f"trained-MRI-reason{arm}.jsonl")
        }
        for arm in ("", "-blank_image", "-shuffled_image", "-nearest_image", "-no_image")
    }
    figures = found["reliance"]["trained"]["MRI"]
    own = kept[""]
    assert all(row["image"] == [] for row in kept["-no_image"].values())
    for name in ("blank", "shuffled", "nearest"):
        other = kept[f"-{name}_image"]
        changed = [other[i]["forced_answer"] != own[i]["forced_answer"] for i in other]
        parts = [figures[x] for x in figures if x.startswith(f"sensitivity_{name}")]
        assert sum(x["n"] for x in parts) == len(changed) == 12
        total = sum(x["value"] * x["n"] for x in parts)
        assert total == pytest.approx(sum(changed))
        assert sum(changed), "the shipped model sees"
    swapped = kept["-shuffled_image"]
    lost = [own[i]["forced_correct"] - swapped[i]["forced_correct"] for i in swapped]
    assert figures["visual_reliance"]["value"] == pytest.approx(sum(lost) / 12)
    measures = lines(run / "predictions" / "measures-trained-reason-MRI.jsonl")
    stays = found["metrics"]["trained"]["MRI"]
    for name in ("same_after_none", "same_after_half", "same_after_other"):
        known = [row[name] for row in measures if row[name] is not None]
        assert stays[name] == pytest.approx(sum(known) / len(known))
        assert stays[f"{name} missing"] == 12 - len(known)


@pytest.mark.slow
def test_both_ways_of_asking_and_samples_side_by_side(here, run):
    flags = ["--prompt", "reason,direct", "--samples", "3", "--controls", "none", "--ood", "none"]
    found = table(run, *flags)
    assert list(found["results"]) == ["base", "base, direct", "trained", "trained, direct"]
    assert list(found["results"]["base"]) == ["MRI"], "--ood none"
    assert found["sampled"]["trained"]["MRI"]["samples"] == 3
    rows = lines(run / "predictions" / "trained-MRI-reason-3-at-1.0.jsonl")
    assert {len(row["completions"]) for row in rows} == {3}
    assert any(len(set(row["completions"])) > 1 for row in rows)
    again = run.parent / "again"
    shutil.copytree(run, again)
    (again / "predictions" / "trained-MRI-reason-3-at-1.0.jsonl").unlink()
    table(again, *flags, "--batch-size", "5")
    others = lines(again / "predictions" / "trained-MRI-reason-3-at-1.0.jsonl")
    assert [row["answers"] for row in others] == [row["answers"] for row in rows]


@pytest.mark.slow
def test_the_published_scorer_changes_figures_and_no_prediction(here, run, work):
    copy = work / "scored"
    shutil.copytree(run, copy)
    file = copy / "predictions" / "base-MRI-reason.jsonl"
    (first, *rest) = lines(file)
    said = f"<answer>{first['gold']}</answer> or <answer>E</answer>"  # ours refuses two answers
    changed = {**first, "completion": said, "answer": None, "correct": False}
    file.write_text("".join(json.dumps(row) + "\n" for row in (changed, *rest)))
    before = file.read_bytes()
    flags = ["--controls", "none", "--ood", "none"]
    ours, theirs = (table(copy, *flags, "--scorer", name) for name in ("ours", "medvlm-r1"))
    assert file.read_bytes() == before
    counts = [found["results"]["base"]["MRI"]["correct"] for found in (ours, theirs)]
    assert counts[1] == counts[0] + 1
    assert theirs["scorer"] == "medvlm-r1"


@pytest.mark.slow
def test_a_leaking_question_type_is_set_apart_and_its_prior_shown(here, run):
    flags = ["--data", "phantom:leaky", "--eval-size", "14", "--ood", "none", "--controls", "none"]
    cell = table(run, *flags)["results"]["base"]["MRI"]
    assert (cell["n"], cell["constant"]["n"]) == (12, 2)
    assert "modality" not in cell["by_type"]


@pytest.mark.slow
def test_the_prior_of_a_leaking_set_answers_all_that_leaks(here, work):
    flags = ["--data", "phantom:leaky", "--out", str(work / "leaky"), "--cache", "none"]
    train.main([*SHORT, *flags, "--train-size", "280", "--eval-size", "0", "--steps", "1"])
    found = table(work / "leaky", "--eval-size", "14", "--ood", "CT")
    prior = found["controls"]["trained"]["options_prior"]
    assert prior["MRI"]["constant"]["accuracy"] == 1.0
    assert prior["CT"]["constant"]["accuracy"] == 0.0


@pytest.mark.slow
def test_runs_side_by_side(here, run, work):
    other = work / "seed7"
    train.main([*SHORT, "--seed", "7", "--out", str(other), "--cache", "none", "--eval-size", "12"])
    found = table(run, "--compare", "seed7", "--controls", "none")
    assert list(found["results"]) == ["base", "trained", "seed7"]
    assert found["seeds"][""]["MRI"]["seeds"] == 2
    config = json.loads((other / "config.json").read_text())
    for change, says in (
        ({"data": "phantom:leaky"}, "other test questions of MRI, CT, XRAY"),
        ({"prompt": "direct"}, "another base, way of asking or --slices"),
        ({"model": "/other"}, "another base, way of asking or --slices"),
    ):
        changed = {**config, "config": {**config["config"], **change}}
        (other / "config.json").write_text(json.dumps(changed))
        with pytest.raises(UsageError, match=f"--compare seed7: {says}"):
            table(run, "--compare", "seed7", "--controls", "none")
    with pytest.raises(UsageError, match="--compare run: a row of this name"):
        table(run, "--compare", "run", "--controls", "none")


@pytest.mark.slow
def test_a_model_without_a_run(here, run):
    flags = ["--model", "phantom", "--eval-size", "12", "--ood", "none", "--controls", "none"]
    flags += ["--cache", "none"]
    evaluate.main([*flags, "--json", "m.json"])
    results = json.loads(Path("m.json").read_text())["results"]
    assert list(results) == ["base"]
    evaluate.main([*flags, "--adapter", str(run / "adapter"), "--json", "m.json"])
    again = json.loads(Path("m.json").read_text())["results"]
    assert list(again) == ["base", "trained"]
    kept = json.loads((run / "summary.json").read_text())["results"]
    assert again["trained"]["MRI"] == kept["trained"]["MRI"]


@pytest.mark.slow
def test_one_question_about_one_picture(here, run, capsys):
    (example,) = data.load.load("phantom", "MRI", split="test", size=1, seed=0)
    example.images[0].open().save("one scan.png")
    evaluate.main(
        [
            *("--run", str(run), "--image", "one scan.png"),
            *("--question", example.question, "--options", ";".join(example.options)),
        ]
    )
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("reasoning")
    assert said[1].startswith("answer")
    chances = [float(line.split("%")[0]) for line in said[2:-1]]
    assert len(chances) == len(example.options)
    assert math.isclose(sum(chances), 100, abs_tol=0.2)
    assert said[-1] == "Not for clinical use."


@pytest.mark.slow
def test_an_export_is_the_policy_as_one_model(here, run, capsys):
    evaluate.main(["--run", str(run), "--export-merged", "merged"])
    assert float(capsys.readouterr().out.split()[-1]) < 1e-4
    model = Qwen2VLForConditionalGeneration.from_pretrained("merged", dtype=torch.float32)
    assert not any("lora" in name for name, _ in model.named_parameters())


@pytest.mark.slow
def test_the_no_think_arm_trains(here, work):
    flags = ["--prompt", "direct", "--out", str(work / "direct"), "--cache", "none"]
    train.main([*SHORT, *flags, "--eval-size", "12"])
    rows = lines(work / "direct" / "predictions" / "trained-MRI-direct.jsonl")
    assert [row["forced_reasoning"] for row in rows] == [None] * 12
    for row in rows:
        letters = "ABCD"[: len(row["options"])]
        assert row["formatted"] == is_formatted(row["completion"], letters, reasons=False)
    found = table(work / "direct", "--controls", "none", "--prompt", "direct,reason")
    assert list(found["results"]) == ["base", "base, reason", "trained", "trained, reason"]


@pytest.mark.slow
def test_killed_half_way_and_run_again_gives_the_same_table(here, run, work):
    """Asked one at a time, because in another batch a tie may fall the other way."""
    flags = ["--ood", "CT", "--batch-size", "1", "--threads", "1", "--controls", "none"]
    whole, killed = work / "whole", work / "killed"
    for copy in (whole, killed):
        shutil.copytree(run, copy, ignore=shutil.ignore_patterns("predictions"))
    expected = table(whole, *flags)
    command = [sys.executable, str(ROOT / "evaluate.py"), "--run", str(killed), *flags]
    program = Program(*command, where=work)
    file = killed / "predictions" / "base-CT-reason.jsonl"
    program.wait_for(lambda: file.exists() and len(file.read_text().splitlines()) > 3)
    program.kill()
    assert program.finish().returncode == -signal.SIGKILL
    assert not (killed / "predictions" / "trained-MRI-reason.jsonl").exists()
    assert table(killed, *flags) == expected
