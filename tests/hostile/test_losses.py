"""What is left out of the data: found before the first step, said in the same words everywhere."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import data.load
from data.audit.audit import Options, audit
from data.audit.table import render
from data.evaluation_questions import control_questions, load_tests, say_left_out
from data.load import LeftOut, learned_questions
from data.training_questions import load_questions
from grpo.settings.config import Config
from grpo.settings.errors import UsageError
from models.open_policy import refusal
from tests.data.conftest import write_image
from tests.hostile.every import try_every

ROW = {"question": "Which side?", "options": ["left", "right"], "answer": "B", "modality": "MRI"}


def write(folder: Path, change: Callable[[list[dict[str, Any]]], None] = lambda _: None) -> Config:
    """16 questions about images of their own, 10 to train and 6 to test, as `change` leaves them.
    Returns the settings of a run on them."""
    names = ["train"] * 10 + ["test"] * 6
    rows = [ROW | {"image": f"{i}.png", "id": f"q{i}", "split": s} for i, s in enumerate(names)]
    for i in range(16):
        write_image(folder / f"{i}.png", i)
    change(rows)
    (folder / "own.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data.load.read.cache_clear()
    data.load.splits_of.cache_clear()
    sizes = {"train_size": 10, "eval_size": 6}
    return Config(
        recipe="phantom", model="phantom", data=f"jsonl:{folder}/own.jsonl", ood="none", **sizes
    )


def wide(folder: Path, number: int, width: int = 4000, height: int = 10) -> None:
    Image.new("L", (width, height)).save(folder / f"{number}.png")


def test_what_the_model_cannot_take_is_left_out_before_the_first_step(tmp_path: Path) -> None:
    def change(rows: list[dict[str, Any]]) -> None:
        wide(tmp_path, 3)
        rows[5]["question"] = "Which side? " * 400
        (tmp_path / "7.png").write_bytes(b"damaged")
        wide(tmp_path, 12, 10, 4000)

    config = replace(write(tmp_path, change), max_completion_length=1500)  # of 2,048
    examples, _, tests, skipped = load_questions(config, refusal(config))
    assert sorted(e.id for e in examples) == ["q0", "q1", "q2", "q4", "q6", "q8", "q9"]
    assert sorted(e.id for e in tests["MRI"]) == ["q10", "q11", "q13", "q14", "q15"]
    strip = "image is more than 200 times as long as wide"
    assert {(item.row, item.reason) for item in skipped} == {
        ("q3", strip),
        ("q5", "question and --max-completion-length are too long"),
        ("q7", "image cannot be read"),
        ("q12", strip),
    }
    # The remedy: with the row taken out the same questions are drawn, so a run can be resumed.
    again = write(tmp_path, lambda rows: [change(rows), rows.pop(3)])
    again = replace(again, max_completion_length=1500)
    assert [e.id for e in load_questions(again, refusal(again))[0]] == [e.id for e in examples]


@pytest.mark.exhaustive
def test_every_other_refusal_of_a_question_alone_is_found_when_loading(tmp_path: Path) -> None:
    def is_found(change: Callable[[list[dict[str, Any]]], None]) -> None:
        config = write(tmp_path, change)
        examples, _, _, skipped = load_questions(config, refusal(config))
        assert len(examples) == 9
        assert [item.row for item in skipped] == ["q3"]

    def many_images(rows: list[dict[str, Any]]) -> None:
        rows[3]["image"] = ["0.png"] * 300
        rows[3]["split"] = ""

    def long_answer(rows: list[dict[str, Any]]) -> None:
        rows[3]["reasoning"] = "it is seen there " * 600

    def one_of_two(rows: list[dict[str, Any]]) -> None:
        wide(tmp_path, 99)
        rows[3]["image"] = ["3.png", "99.png"]

    try_every(is_found, [many_images, long_answer, one_of_two])
    config = replace(write(tmp_path), max_completion_length=2048)
    with pytest.raises(UsageError, match=r"10 left out \(10 question and --max-completion-length"):
        load_questions(config, refusal(config))


def test_what_is_left_out_is_said_in_the_same_words_everywhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def change(rows: list[dict[str, Any]]) -> None:
        (tmp_path / "2.png").unlink()
        (tmp_path / "11.png").unlink()
        (tmp_path / "4.png").write_bytes(b"damaged")

    config = write(tmp_path, change)
    load_questions(config, lambda *_: "")
    skipped = LeftOut()
    tests = load_tests(config, skipped)
    control_questions(tests, 240, config, config, skipped, list)
    kept = say_left_out("evaluate.py", skipped)
    words = "3 left out (2 image is missing, 1 image cannot be read)"
    said = capsys.readouterr().err
    assert kept == words
    assert f"train.py: rows left out: {words}\n" in said
    assert f"evaluate.py: rows left out: {words}\n" in said
    assert "all that there are" not in said
    assert f"Rows left out: {words}." in render(audit(config.data, Options()))


def test_the_priors_learn_from_the_data_that_is_asked_if_their_own_has_moved(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = write(tmp_path)
    gone = replace(asked, data=f"jsonl:{tmp_path}/old/own.jsonl")
    found = learned_questions(gone, asked, LeftOut())
    assert [e.id for e in found] == [e.id for e in learned_questions(asked, asked, LeftOut())]
    (line,) = capsys.readouterr().err.splitlines()
    assert "old/own.jsonl: no file or folder there" in line
    assert line.endswith("; the priors learn from --data, or are left out")


@pytest.mark.exhaustive
def test_without_any_training_question_there_are_controls_and_no_priors(tmp_path: Path) -> None:
    only = write(tmp_path, lambda rows: rows.__delitem__(slice(10)))
    skipped = LeftOut()
    tests = load_tests(only, skipped)
    controls, priors, _ = control_questions(tests, 240, only, only, skipped, list)
    assert len(controls["blank_image"]["MRI"]) == 6
    assert priors == {}
