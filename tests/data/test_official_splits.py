"""Splits that a data set comes with, and what the audits say of questions without options."""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from data.audit.audit import Options, audit, main
from data.controls.altered import oracle_of, permuted_options
from data.controls.priors import Prior, by_letter, by_text
from data.evaluation_questions import constant_answers_in
from data.example import VQAExample
from data.load import ALL, load, modalities
from data.rows import modality_name
from data.splits import assign, split_of

SPLITS = ("train", "val", "test")


def test_an_official_split_holds_whatever_the_seed_and_validation_is_carved_from_training() -> None:
    groups = {f"q{i}": f"image{i // 2}" for i in range(400)}
    official = {f"q{i}": "test" if i < 100 else "train" for i in range(400)}
    for seed in (0, 1):
        splits = assign(groups, official, seed)
        assert {id for id, split in splits.items() if split == "test"} == {
            f"q{i}" for i in range(100)
        }
        assert all(splits[f"q{i}"] == splits[f"q{i + 1}"] for i in range(0, 400, 2))
        carved = Counter(splits.values())["val"] / 2
        assert abs(carved - 150 * 0.125) < 4 * (150 * 0.125 * 0.875) ** 0.5
    assert assign(groups, official, 0) != assign(groups, official, 1)
    whole = official | {"q399": "val", "q398": "val"}
    assert Counter(assign(groups, whole, 0).values()) == {"train": 298, "test": 100, "val": 2}


def test_an_image_in_two_splits_stays_in_test_or_else_in_validation() -> None:
    groups = dict(zip("abcdefgh", "11223345", strict=True))
    official = dict(zip("abcdef", ("train", "test", "val", "train", "test", "val"), strict=True))
    splits = assign(groups, official, 0)
    assert [splits[id] for id in "abcdef"] == [None, "test", "val", None, "test", None]
    assert (splits["g"], splits["h"]) == (split_of("4", 0), split_of("5", 0))
    assert assign({"a": "1", "b": "1"}, {"a": "test"}, 0) == {"a": "test", "b": "test"}
    assert assign({"a": "1"}, {}, 7) == {"a": split_of("1", 7)}


@pytest.fixture
def mixed(tmp_path: Path, picture: Callable[[Path, int], Path]) -> str:
    """Questions of three kinds about images of their own; the split is named."""
    rows: list[dict[str, Any]] = []
    for i in range(60):
        picture(tmp_path / f"{i}.png", i)
        row = {"image": f"{i}.png", "split": SPLITS[i % 3], "modality": ("CT", "MRI")[i % 2]}
        rows += [
            row | {"question": f"What is it, {i}?", "answer": ["a cyst", "cyst"]},
            row | {"question": f"Is it there, {i}?", "answer": ("yes", "no")[i % 2]},
            row | {"question": "Seen how?", "answer": "axial", "answer_type": "closed"},
        ]
    (tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return f"jsonl:{tmp_path / 'mine.jsonl'}"


def test_all_is_every_modality_together(mixed: str) -> None:
    by_name = {
        name: {e.id for e in load(mixed, name, split="test", size=999, seed=0)}
        for name in ("all", "CT", "MRI")
    }
    assert by_name["all"] == by_name["CT"] | by_name["MRI"]
    assert [len(by_name[name]) for name in ("all", "CT", "MRI")] == [60, 30, 30]
    assert modality_name("all") == ALL
    assert constant_answers_in(mixed, "ALL") == {("question", "seen how?"): "axial"}
    assert set(modalities(mixed)) == {"CT", "MRI"}


def test_the_audit_of_open_questions_says_what_it_can(
    mixed: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = audit(mixed, Options(seed=5))
    assert figures["counts"]["CT"]["splits"] == dict.fromkeys(SPLITS, 30)
    assert figures["counts"]["CT"]["options"] == {"0": 60, "2": 30}
    assert figures["letters"] == {"CT": {"2": {"A": 30, "B": 0}}, "MRI": {"2": {"A": 0, "B": 30}}}
    assert figures["options_prior"]["CT"] == {"n": 10, "accuracy": 1.0, "chance": 0.5}
    assert figures["options_prior"]["MRI"] == {"n": 10, "accuracy": 0.0, "chance": 0.5}
    assert figures["leaks"] == {"path": 0, "hash": 0, "near": []}
    main([mixed])
    screen = capsys.readouterr().out.splitlines()
    assert [line.split() for line in screen if "no options" in line] == [
        ["no", "options", "60", "60"]
    ]


def test_a_set_of_open_questions_alone_has_no_letters_and_no_prior(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"question": f"What, {i}?", "answer": "a cyst"} for i in range(40)]
    (tmp_path / "open.jsonl").write_text("\n".join(map(json.dumps, rows)))
    main([f"jsonl:{tmp_path / 'open.jsonl'}"])
    lines = {line[:34].strip(): line[34:].split() for line in capsys.readouterr().out.splitlines()}
    assert lines["by the majority letter"] == lines["by chance, %"] == ["-"]
    assert lines["questions"] == ["40"]


def question(id: str, *answers: str) -> VQAExample:
    return VQAExample(id, (), "What?", (), 0, "MRI", "", references=answers)


def test_priors_and_permutations_leave_open_questions_alone() -> None:
    closed = VQAExample("c", (), "Is it?", ("yes", "no"), 1, "MRI", "")
    for clues in (by_text, by_letter):
        prior = Prior(clues, [question("a", "no"), closed])
        assert prior.chance_right(question("b", "no")) == 0.0
        assert prior.score([question("b", "no"), closed]) == {"n": 1, "accuracy": 1, "chance": 0.5}
        assert prior.score([question("b", "no")])["accuracy"] is None
    assert permuted_options(question("a", "no")) == []


def test_any_wording_of_the_right_answer_tells_the_right_option() -> None:
    seen = question("a", "cyst", "a mass.")
    changes = oracle_of([seen])
    asked = VQAExample("b", (), "what?", ("abscess", "A mass"), 0, "MRI", "")
    assert changes(asked, seen) == 1
    assert changes(replace(asked, gold=1), seen) == 0
    assert changes(replace(asked, options=("abscess", "tumour")), seen) is None
