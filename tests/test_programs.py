"""train.py and evaluate.py as a user types them: what they write and print, how they refuse."""

import dataclasses
import json
import os
import shutil
from pathlib import Path

import pytest
from peft import PeftModel
from transformers import Qwen2VLForConditionalGeneration

import data.load
import evaluate
import train
from evaluate import Scorer
from grpo.settings.config import Config
from grpo.settings.errors import exit_on_usage_error
from grpo.settings.options import Options
from models.open_policy import open_policy
from models.policy import Policy
from rewards.scoring import RewardError
from tests.programs import run

ROOT = Path(__file__).resolve().parent.parent
SHORT = [
    "--recipe",
    "phantom",
    "--kl-coef",
    "0.04",
    "--steps",
    "3",
    "--train-size",
    "24",
    "--eval-size",
    "12",
    "--prompts-per-step",
    "2",
]


def scored_by(folder: Path) -> Policy:
    """The policy that a run saved, here and on the CPU."""
    config = dataclasses.replace(Config.load(folder / "config.json"), cache="none", device="cpu")
    return open_policy(config, folder / "adapter")


def lines(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which `train.py` has run once, for 3 steps."""
    where = tmp_path_factory.mktemp("work")
    flags = [
        "--modality",
        "MRI",
        "--group-size",
        "8",
        *SHORT,
        "--eval-every",
        "2",
        "--val-size",
        "6",
    ]
    done = run("train.py", *flags, where=where)
    assert done.returncode == 0, done.stderr
    assert "python evaluate.py --ood CT,XRAY" in done.stdout.splitlines()[-1]
    return where


@pytest.fixture
def folder(trained: Path) -> Path:
    found = min((trained / "runs").iterdir())  # the first one
    return found


@pytest.mark.slow
def test_a_run_folder_holds_everything(folder):
    assert folder.name.endswith("-phantom-MRI-g8")
    config = json.loads((folder / "config.json").read_text())
    assert config["config"]["group_size"] == 8
    assert config["versions"]["torch"]
    steps = lines(folder / "metrics.jsonl")
    assert [step["step"] for step in steps] == [1, 2, 3]
    assert steps[0]["kl"] == 0.0
    assert steps[0]["ratio/max"] == 1.0
    assert {"reward", "rewards/format/mean", "time/rollout", "memory/peak_mb"} <= steps[0].keys()
    assert ["val/accuracy" in step for step in steps] == [False, True, True]
    assert {f"val/{m}{figure}" for m in ("", "CT/", "XRAY/") for figure in
            ("accuracy", "format_rate", "forced_choice")} <= steps[1].keys()  # fmt: skip
    assert (folder / "skipped.jsonl").read_text() == ""


@pytest.mark.slow
def test_the_table_has_base_and_trained_on_all_three_modalities(folder):
    summary = json.loads((folder / "summary.json").read_text())
    assert list(summary["results"]["base"]) == ["MRI", "CT", "XRAY"]
    for model in ("base", "trained"):
        for modality, cell in summary["results"][model].items():
            rows = lines(folder / "predictions" / f"{model}-{modality}-reason.jsonl")
            assert cell["n"] == len(rows) == 12
            assert cell["correct"] == sum(row["answer"] == row["gold"] for row in rows)
            low, high = cell["ci95"]
            assert low <= cell["accuracy"] <= high
    assert summary["chance"]["MRI"] == pytest.approx(0.45, abs=0.1)


@pytest.mark.slow
def test_the_saved_adapter_opens_in_plain_peft_and_is_the_policy_that_was_scored(folder):
    base = Qwen2VLForConditionalGeneration.from_pretrained(ROOT / "models" / "phantom")
    PeftModel.from_pretrained(base, folder / "adapter")
    config = Config.load(folder / "config.json")
    policy = scored_by(folder)
    examples = data.load.load("phantom", "MRI", split="test", size=12, seed=config.data_seed)
    again = Scorer(policy, config, Options(), Path()).predict(examples)
    kept = lines(folder / "predictions" / "trained-MRI-reason.jsonl")
    assert [row["completion"] for row in again] == [row["completion"] for row in kept]


@pytest.mark.slow
def test_evaluate_takes_the_newest_run_and_asks_nothing_twice(trained, folder):
    before = (folder / "predictions" / "base-MRI-reason.jsonl").read_bytes()
    done = run("evaluate.py", "--ood", "CT,XRAY", "--json", "table.json", where=trained)
    assert done.returncode == 0, done.stderr
    table = json.loads((trained / "table.json").read_text())
    summary = json.loads((folder / "summary.json").read_text())
    assert table["results"] == summary["results"]
    assert table["chance"] == summary["chance"]
    assert (folder / "predictions" / "base-MRI-reason.jsonl").read_bytes() == before
    assert "not medical data" in done.stdout


@pytest.mark.slow
def test_an_evaluation_that_was_cut_off_goes_on_where_it_stopped(trained, folder, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(folder, copy)
    file = copy / "predictions" / "trained-CT-reason.jsonl"
    whole = file.read_text()
    file.write_text(whole[: len(whole) // 2])  # also cuts a line in two
    done = run("evaluate.py", "--run", str(copy), "--json", str(tmp_path / "t.json"), where=trained)
    assert done.returncode == 0, done.stderr
    table = json.loads((tmp_path / "t.json").read_text())
    assert table["results"] == json.loads((folder / "summary.json").read_text())["results"]
    assert len(lines(file)) == 12, "the half line is gone"
    mended = file.read_bytes()
    assert run("evaluate.py", "--run", str(copy), where=trained).returncode == 0
    assert file.read_bytes() == mended
    kept = json.loads((copy / "evaluation.json").read_text())
    assert kept == json.loads((tmp_path / "t.json").read_text())


@pytest.mark.slow
def test_batch_size_changes_no_answer(folder):
    config, policy = Config.load(folder / "config.json"), scored_by(folder)
    examples = data.load.load("phantom", "XRAY", split="test", size=14, seed=0)
    together, sevens, alone = (
        [
            r
            for i in range(0, 14, n)
            for r in Scorer(policy, config, Options(), Path()).predict(examples[i : i + n])
        ]
        for n in (64, 7, 1)
    )
    for other in (sevens, alone):
        assert [r["completion"] for r in together] == [r["completion"] for r in other]
        assert [r["forced_answer"] for r in together] == [r["forced_answer"] for r in other]


@pytest.mark.slow
def test_sft_then_grpo_from_its_adapter(trained):
    done = run("train.py", "--method", "sft", *SHORT, "--out", "sft", where=trained)
    assert done.returncode == 0, done.stderr
    flags = ["--init", "sft:sft", *SHORT, "--out", "grpo"]
    done = run("train.py", *flags, where=trained)
    assert done.returncode == 0, done.stderr
    assert lines(trained / "grpo" / "metrics.jsonl")[0]["kl"] == 0.0


@pytest.mark.slow
def test_a_reward_of_ones_own(trained):
    (trained / "mine.py").write_text(
        "def brief(prompts, completions, **columns):\n"
        "    return [-len(text) / 100 for text in completions]\n"
    )
    flags = ["--reward", "accuracy,mine.py:brief=0.5", *SHORT, "--out", "own", "--eval-size", "0"]
    done = run("train.py", *flags, where=trained)
    assert done.returncode == 0, done.stderr
    (first, *_) = lines(trained / "own" / "metrics.jsonl")
    assert first["rewards/brief/mean"] < 0
    total = first["rewards/accuracy/mean"] + 0.5 * first["rewards/brief/mean"]
    assert first["reward"] == pytest.approx(total, abs=1e-5)


@pytest.mark.parametrize(
    ("program", "flags", "says"),
    [
        ("train.py", ["--group-size", "1"], "--group-size 8"),
        ("train.py", ["--modality", "PET"], "MRI, CT, XRAY"),
        ("train.py", ["--data", "omnimedvqa:/nowhere"], "/nowhere"),
        ("train.py", ["--loss", "ppo"], "dr_grpo"),
        ("train.py", ["--reward", "wisdom"], "format, accuracy"),
        ("train.py", ["--model", "/no/model"], "/no/model"),
        ("train.py", ["--init", "sft:/no/run"], "/no/run"),
        ("train.py", ["--max-completion-length", "4000"], "--max-completion-length 19"),
        ("train.py", ["--grop-size", "8"], "--group-size"),
        ("train.py", ["--ood", "CT,PET"], "MRI, CT, XRAY"),
        ("train.py", ["--out", "/proc/run"], "/proc/run"),
        ("evaluate.py", ["--run", "/no/run"], "/no/run"),
        ("evaluate.py", ["--batch-size", "0"], "--batch-size"),
        ("evaluate.py", ["--json", "/no/folder/table.json"], "/no/folder"),
        ("evaluate.py", ["--model", "phantom", "--ood", "PET"], "MRI, CT, XRAY"),
    ],
)
def test_bad_input_gets_one_line_with_the_remedy_and_exit_code_2(
    tmp_path, program, flags, says, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    main = {"train.py": train.main, "evaluate.py": evaluate.main}[program]
    with pytest.raises(SystemExit) as ended, exit_on_usage_error(program, RewardError):
        main([*flags, *(SHORT if program == "train.py" else [])])
    assert ended.value.code == 2
    complaint = capsys.readouterr().err.splitlines()[-1]
    assert says in complaint
    assert complaint.startswith(f"{program}: ")


@pytest.mark.slow
def test_a_refusal_is_no_traceback(trained):
    for program, flags in (("train.py", ["--group-size", "1"]), ("evaluate.py", ["--run", "/no"])):
        done = run(program, *flags, where=trained)
        assert done.returncode == 2
        assert done.stderr.splitlines()[-1].startswith(f"{program}: ")
        assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_modalities_go_by_one_name(trained):
    """The modality that was trained on must not come back as an unseen one."""
    flags = ["--modality", "mri", "--ood", "x-ray,MRI", *SHORT, "--out", "names"]
    done = run("train.py", *flags, where=trained)
    assert done.returncode == 0, done.stderr
    summary = json.loads((trained / "names" / "summary.json").read_text())
    assert list(summary["results"]["base"]) == ["MRI", "XRAY"]


@pytest.mark.slow
def test_an_adapter_of_another_split_is_refused(trained, folder):
    """Another seed splits real images differently: its test images may be training images here."""
    flags = ["--init", f"sft:{folder}", "--data-seed", "7", *SHORT, "--out", "leak"]
    done = run("train.py", *flags, where=trained)
    assert done.returncode == 2
    assert "--data-seed" in done.stderr.splitlines()[-1]


@pytest.mark.slow
def test_the_withheld_kind_is_a_test_set_of_its_own(trained, folder):
    flags = ["--run", str(folder), "--data", "phantom:new-kind", "--eval-size", "10"]
    done = run("evaluate.py", *flags, "--json", "new.json", where=trained)
    assert done.returncode == 0, done.stderr
    assert json.loads((trained / "new.json").read_text())["results"]["base"]["CT"]["n"] == 10


@pytest.mark.skipif("MEDVQA_DATA" not in os.environ, reason="MEDVQA_DATA names no real images")
@pytest.mark.slow
def test_real_images_go_through_the_same_programs(trained):
    place = Path(os.environ["MEDVQA_DATA"]) / "omnimedvqa"
    flags = ["--data", f"omnimedvqa:{place}", "--modality", "MRI", *SHORT, "--steps", "1"]
    done = run("train.py", *flags, "--out", "real", where=trained)
    assert done.returncode == 0, done.stderr
    done = run("evaluate.py", "--run", "real", "--ood", "CT,XRAY", where=trained)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1].split() == ["MRI", "(trained)", "CT", "XRAY", "OOD", "mean"]
    assert "constant apart" in done.stdout
    assert "not medical data" not in done.stdout


@pytest.mark.slow
def test_a_run_is_never_written_over(trained, folder):
    before = (folder / "metrics.jsonl").read_bytes()
    done = run("train.py", *SHORT, "--out", str(folder), where=trained)
    assert done.returncode == 2
    assert (folder / "metrics.jsonl").read_bytes() == before
