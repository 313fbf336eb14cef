"""What train.py says of its data before it trains, and where --strict stops it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import train
from data.load import load, read
from data.rows import Skipped
from data.training_questions import say_of_data
from grpo.settings.config import Config
from grpo.settings.errors import UsageError

ROW = {"question": "Which?", "options": ["left", "right"], "modality": "MRI"}
# Should --strict fail to stop it, the run is over in a step.
SMALL = [
    "--recipe=phantom", "--ood=none", "--train-size=9", "--eval-size=9", "--steps=1",
    "--prompts-per-step=1", "--group-size=2", "--cache=none", "--device=cpu",
]  # fmt: skip


@pytest.fixture
def spec(tmp_path: Path, picture: Callable[[Path, int], Path]) -> str:
    """40 questions, every one about an image of its own, and three bad rows among them."""
    rows = [{**ROW, "image": f"{i}.png", "answer": "AB"[i % 2]} for i in range(40)]
    for i in range(40):
        picture(tmp_path / f"{i}.png", i)
    rows[5]["answer"] = "C"
    rows[7]["options"] = ["same", "Same."]
    rows[9]["image"] = "gone.png"
    (tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return f"jsonl:{tmp_path / 'mine.jsonl'}"


def test_strict_ends_a_run_at_bad_rows_in_one_line(tmp_path: Path, spec: str) -> None:
    with pytest.raises(UsageError) as error:
        train.main(["--data", spec, "--out", str(tmp_path / "run"), "--strict", *SMALL])
    assert str(error.value) == (
        "--strict: 3 left out (1 answer is none of the options, 1 image is missing, "
        "1 two options are equal); the first is mine#10 of mine.jsonl: image is missing; "
        "mend them, or leave --strict out"
    )


@pytest.mark.parametrize("split", ["train", "test"])
def test_strict_ends_a_run_at_an_image_that_cannot_be_read(
    tmp_path: Path, spec: str, split: str
) -> None:
    lines = (tmp_path / "mine.jsonl").read_text().splitlines()
    good = [line for i, line in enumerate(lines) if i not in (5, 7, 9)]
    (tmp_path / "mine.jsonl").write_text("\n".join(good))
    read.cache_clear()
    first, *_ = load(spec, "MRI", split=split, size=9, seed=42)
    Path(first.images[0].key).write_bytes(b"damaged")
    with pytest.raises(UsageError) as error:
        train.main(["--data", spec, "--out", str(tmp_path / "run"), "--strict", *SMALL])
    assert "--strict: 1 left out (1 image cannot be read); the first is" in str(error.value)
    assert f"{first.id} of {first.images[0].key}: image cannot be read" in str(error.value)


def test_a_file_that_is_broken_as_a_whole_has_no_row_to_name() -> None:
    with pytest.raises(UsageError, match=r"the first is all of a\.json: broken JSON"):
        say_of_data(Config(strict=True), [], {}, {Skipped("broken JSON", "a.json", "")})


def test_without_strict_bad_rows_are_counted_by_reason(capsys: pytest.CaptureFixture[str]) -> None:
    rows = {Skipped("image is missing", "a.json", str(i)) for i in range(3)}
    say_of_data(Config(), [], {}, rows)
    assert capsys.readouterr().err == "train.py: rows left out: 3 left out (3 image is missing)\n"


def test_questions_with_one_answer_in_training_are_counted_in_the_tests(
    capsys: pytest.CaptureFixture[str],
) -> None:
    drawn = {
        name: load("phantom:leaky", name, split="test", size=70, seed=1) for name in ("MRI", "CT")
    }
    seen = load("phantom:leaky", "MRI", split="train", size=280, seed=1)
    say_of_data(Config(), seen, drawn, set())
    kinds = {
        name: [e.question_type for e in test].count("modality") for name, test in drawn.items()
    }
    assert min(kinds.values()) > 0
    assert capsys.readouterr().err == (
        f"train.py: test questions with one answer in training: {kinds['MRI']} of 70 MRI, "
        f"{kinds['CT']} of 70 CT\n"
    )
    say_of_data(Config(), [e for e in seen if e.question_type != "modality"], drawn, set())
    assert capsys.readouterr().err == ""
