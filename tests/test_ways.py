"""Starting points and ways of asking, through train.py and evaluate.py."""

import json
from pathlib import Path

import pytest

import evaluate
import train
from grpo.settings.config import Config
from tests.test_judged_run import SHORT

WAYS = ("", ", direct", ", open")
VARIED = ["--diversity", "explain,direct,open", "--shuffle-options"]


def last_step(run: Path) -> dict:
    return json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])


@pytest.mark.parametrize(
    "method",
    [
        ["--method", "sft", "--sft-target", "reasoning"],
        ["--reward", "format,findings", "--group-size", "6"],
    ],
)
@pytest.mark.slow
def test_a_run_from_the_base_in_many_ways_trains_and_is_scored(
    method: list[str], tmp_path: Path
) -> None:
    run, table = tmp_path / "run", tmp_path / "table.json"
    train.main([*SHORT, *VARIED, *method, "--init", "base", "--steps", "2", "--out", str(run)])
    ways = ["--prompt", "reason,direct,open", "--controls", "none"]
    evaluate.main(["--run", str(run), *ways, "--json", str(table)])
    results = json.loads(table.read_text())["results"]

    assert Config.load(run / "config.json").model == "phantom-base"
    assert last_step(run)["grad_norm"] > 0
    assert set(results) == {f"{m}{way}" for m in ("base", "trained") for way in WAYS}
    assert results["trained, open"]["MRI"]["forced_choice"] is None
    assert results["trained, direct"]["MRI"]["forced_choice"] is not None


@pytest.mark.slow
def test_a_run_that_is_asked_in_the_open_is_scored_in_words(tmp_path: Path) -> None:
    run = tmp_path / "run"
    train.main([*SHORT, "--prompt", "open", "--steps", "1", "--out", str(run)])
    (file,) = (run / "predictions").glob("trained-MRI-*.jsonl")
    row = json.loads(file.read_text().splitlines()[0])

    assert row["options"] == []
    assert row["references"]
    assert last_step(run)["reward"] >= 0


@pytest.mark.slow
def test_an_sft_run_of_one_base_is_no_start_for_another(tmp_path: Path) -> None:
    run = tmp_path / "run"
    sft = ["--method", "sft", "--init", "base", "--steps", "1", "--out", str(run)]
    train.main([*SHORT, *sft])
    more = ["--init", f"sft:{run}", "--steps", "1", "--out", str(tmp_path / "next")]
    with pytest.raises(ValueError, match="was trained on another base"):
        train.main([*SHORT, *more])
    train.main([*SHORT, *more, "--model", "phantom-base", "--kl-coef", "0.1"])

    assert last_step(tmp_path / "next")["kl"] == 0.0
