"""A control of training: the questions without their images. Nothing else of a run changes."""

from dataclasses import replace
from pathlib import Path

import pytest

from data.evaluation_questions import load_tests, load_validation
from data.load import LeftOut, load_split
from data.training_questions import load_questions, training_draw, with_shuffled_answers
from evaluate import report
from grpo.settings.config import Config
from grpo.settings.options import Options

SIZES = {"train_size": 60, "val_size": 12, "eval_size": 12, "eval_every": 1}
TABLE = {"rendered": {"parts": [{"title": "", "columns": [], "rows": []}], "footnotes": []}}


def test_training_asks_the_same_questions_without_images_and_says_so(
    capsys: pytest.CaptureFixture[str],
) -> None:
    plain = Config(seed=5, data_seed=7, **SIZES)
    seen = load_split(plain, "train", 60)
    config = replace(plain, blind=True, shuffle_options=True, diversity="direct,open")
    examples, validation, tests, _ = load_questions(config, lambda *_: "")

    assert "images are not shown in training" in capsys.readouterr().err
    assert all(example.images for example in seen)
    assert examples == [replace(example, images=()) for example in seen]
    draw = training_draw(examples, config)
    assert {
        draw(step, slot, a).images for step in range(9) for slot in range(4) for a in (0, 1)
    } == {()}
    assert tests == load_tests(plain)
    assert validation == load_validation(plain, LeftOut())
    load_questions(plain, lambda *_: "")
    assert "not shown" not in capsys.readouterr().err


def test_answers_can_be_permuted_as_well() -> None:
    config = Config(blind=True, shuffle_answers=True, **SIZES)
    examples, *_ = load_questions(config, lambda *_: "")
    shuffled = with_shuffled_answers(load_split(config, "train", 60), config.seed)
    assert examples == [replace(example, images=()) for example in shuffled]


def test_the_table_of_such_a_run_says_so(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for settings, how in (
        ({}, "greedy"),
        ({"blind": True}, "greedy, a control: trained without images"),
        (
            {"blind": True, "shuffle_answers": True},
            "greedy, a control: trained on permuted answers and without images",
        ),
    ):
        report(Options(), Config(**settings), tmp_path, TABLE)
        title = capsys.readouterr().out.splitlines()[0]
        assert title.endswith(f"trained on MRI, {how}")


def test_of_the_positive_control_one_question_in_seven_is_answered_without_an_image() -> None:
    """phantom:leaky: its option texts say which technique made the image, and nothing more."""
    config = Config(data="phantom:leaky", blind=True, **{**SIZES, "train_size": 280})
    examples, *_ = load_questions(config, lambda *_: "")
    known = [example for example in examples if example.question_type == "modality"]
    assert len(known) == 40
    assert {example.answer for example in known} == {"MRI"}
    for kind in {example.question_type for example in examples} - {"modality"}:
        golds = [example.answer for example in examples if example.question_type == kind]
        assert len(set(golds)) > 1
