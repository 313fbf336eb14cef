import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data.load import read
from data.rows import Skipped, fold

HUB_NAME = "medical_multimodel_evaluation_data.json"
Picture = Callable[[Path, int], Path]


def huatuo_row(**changes: Any) -> dict[str, Any]:
    return {
        "image": ["images/ankle071718.png"],
        "question": "Which part is shown?",
        "options": ["Knee", "Ankle", "Hip, left"],
        "answer": "Ankle",
        "dataset": "OmniMedVQA",
        "subset": "MR (Mag-netic Resonance Imaging)",
        **changes,
    }


@pytest.fixture
def huatuo(tmp_path: Path, picture: Picture) -> Path:
    picture(tmp_path / "images" / "ankle071718.png", 7)
    return tmp_path


def write(file: Path, value: Any) -> str:
    file.write_text(json.dumps(value), encoding="utf-8")
    return str(file)


def test_the_hub_file_is_read_by_name_or_by_its_folder(huatuo: Path) -> None:
    rows = [huatuo_row(), huatuo_row(subset="X-Ray", answer="Hip, left", dataset="PMC-VQA_test")]
    file = write(huatuo / HUB_NAME, rows)
    write(huatuo / "other.json", [huatuo_row()])
    by_file, by_folder = read(f"huatuo:{file}"), read(f"huatuo:{huatuo}")
    assert by_file.examples == by_folder.examples
    mri, xray = by_file.examples
    assert (mri.modality, mri.letter, mri.dataset) == ("MRI", "B", "OmniMedVQA")
    assert (xray.modality, xray.letter, xray.dataset) == ("XRAY", "C", "PMC-VQA_test")
    assert mri.images[0].open().getpixel((0, 0)) == (7, 0, 0)
    assert mri.images[0].key == str(huatuo / "images/ankle071718.png")


def test_the_list_of_medvlm_r1_is_read_and_its_letter_must_agree(huatuo: Path) -> None:
    rows = [
        huatuo_row(problem="Which part is shown? A) Knee ...", solution=solution)
        for solution in ("B", "A", "D")
    ]
    listing = read(f"huatuo:{write(huatuo / 'MRI_CT_XRAY_300each_dataset.json', rows)}")
    assert [e.question for e in listing.examples] == ["Which part is shown?"]
    name = "MRI_CT_XRAY_300each_dataset.json"
    assert listing.skipped == (
        Skipped("letter and answer disagree", name, "MRI_CT_XRAY_300each_dataset#1"),
        Skipped("answer is none of the options", name, "MRI_CT_XRAY_300each_dataset#2"),
    )


def test_bad_huatuo_rows_are_left_out_by_reason(huatuo: Path) -> None:
    rows = [
        huatuo_row(),
        huatuo_row(answer="Wrist"),
        huatuo_row(image=[]),
        huatuo_row(image=["images/../../ankle071718.png"]),
        huatuo_row(image=["/etc/hostname"]),
        huatuo_row(options="Knee, Ankle"),
        huatuo_row(options=None),  # never taken for an open question
    ]
    listing = read(f"huatuo:{write(huatuo / 'a.json', rows)}")
    assert [item.reason for item in listing.skipped] == [
        "answer is none of the options",
        "image path is blank",
        "image path leaves the data folder",
        "image path leaves the data folder",
        "options are not a list",
        "not 2 to 26 options",
    ]


def jsonl(folder: Path, *lines: Any) -> str:
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    (folder / "mine.jsonl").write_text("\n".join(texts), encoding="utf-8")
    return f"jsonl:{folder / 'mine.jsonl'}"


def test_a_users_row_needs_only_question_options_and_answer(tmp_path: Path) -> None:
    spec = jsonl(tmp_path, {"question": "Is 1 odd?", "options": ["yes", "no"], "answer": "yes"})
    (example,) = read(spec).examples
    assert (example.images, example.modality, example.gold) == ((), "OTHER", 0)
    assert (example.id, example.question_type, example.reasoning) == ("mine#1", "", "")


def test_a_users_row_keeps_all_it_has(tmp_path: Path, picture: Picture) -> None:
    for number in (1, 2):
        picture(tmp_path / f"scans/{number}.png", number)
    row = {
        "image": ["scans/1.png", "scans/2.png"],
        "question": "What\nchanged?",
        "options": ["more", "less", 3],
        "answer": "c",
        "modality": "ct",
        "question_type": "change",
        "reasoning": "Three now.",
        "id": "q7",
    }
    (example,) = read(jsonl(tmp_path, row)).examples
    assert [image.open().getpixel((0, 0))[0] for image in example.images] == [1, 2]
    assert example.question == "What changed?"
    assert (example.options, example.answer) == (("more", "less", "3"), "3")
    assert (example.id, example.modality) == ("q7", "CT")
    assert (example.question_type, example.reasoning) == ("change", "Three now.")


@pytest.mark.parametrize(
    ("options", "answer", "gold"),
    [
        (["left", "right"], "B", 1),
        (["left", "right"], " b", 1),
        (["left", "right"], "Right.", 1),
        (["left", "right"], "option B", 1),
        (["left", "right"], "C", None),
        (["left", "right"], "AB", None),
        (["left", "right"], "", None),
        (["left", "", "right"], "C", 1),  # a letter counts the options as the row lists them
        (["left", "", "right"], "B", None),
    ],
)
def test_an_answer_is_a_letter_or_the_text_of_an_option(
    tmp_path: Path, options: list[str], answer: str, gold: int | None
) -> None:
    good = {"question": "Q", "options": ["x", "y"], "answer": "x"}
    spec = jsonl(tmp_path, good, {"question": "Side?", "options": options, "answer": answer})
    listing = read(spec)
    assert [e.gold for e in listing.examples[1:]] == ([] if gold is None else [gold])
    assert [(s.reason, s.row) for s in listing.skipped] == (
        [("answer is none of the options", "mine#2")] if gold is None else []
    )


@pytest.mark.parametrize(
    ("row", "options", "references", "closed"),
    [
        ({"answer": " a  cyst"}, (), ("a cyst",), False),
        ({"answer": ["cyst", "a cyst", "Cyst.", ""]}, (), ("cyst", "a cyst"), False),
        ({"answer": "B"}, (), ("B",), False),
        ({"answer": 3}, (), ("3",), False),
        ({"answer": "Yes."}, ("yes", "no"), (), True),
        ({"answer": ["no"], "answer_type": "CLOSED "}, ("yes", "no"), (), True),
        ({"answer": "no", "answer_type": "open"}, (), ("no",), False),
        ({"answer": ["no", "none"]}, (), ("no", "none"), False),
        ({"answer": "axial", "answer_type": "closed"}, (), ("axial",), True),
        ({"answer": "axial", "options": None}, (), ("axial",), False),
    ],
)
def test_without_options_the_answer_is_wanted_in_words_but_for_yes_and_no(
    tmp_path: Path, row: dict[str, Any], options: Any, references: Any, closed: bool
) -> None:
    (example,) = read(jsonl(tmp_path, {"question": "Q?", **row})).examples
    assert (example.options, example.references) == (options, references)
    assert (example.closed, example.findings) == (closed, None)
    first = row["answer"][0] if isinstance(row["answer"], list) else row["answer"]
    assert fold(example.answer) == fold(str(first))


def test_a_split_named_in_a_row_is_kept_under_one_of_three_names(tmp_path: Path) -> None:
    names = ["train", "val", "validation", " Valid ", "TEST", "", None]
    rows = [{"question": f"Q{i}?", "answer": "x", "split": name} for i, name in enumerate(names)]
    listing = read(jsonl(tmp_path, *rows))
    assert [listing.splits.get(e.id) for e in listing.examples] == [
        "train", "val", "val", "val", "test", None, None,
    ]  # fmt: skip


def test_bad_open_rows_are_counted(tmp_path: Path) -> None:
    good = {
        "question": "Q?",
        "answer": "a cyst",
        "answer_type": "open",
        "findings": ["dark rim ", "dark rim", ""],
    }
    bad = [
        {"options": []}, {"options": "yes, no"}, {"options": ["yes"]}, {"answer": []},
        {"answer": [" ", "."]}, {"answer": None}, {"answer": {"text": "x"}},
        {"answer": ["x", ["y"]]}, {"split": "holdout"}, {"split": ["test"]}, {"findings": [{}]},
    ]  # fmt: skip
    listing = read(jsonl(tmp_path, good, *({**good, **row} for row in bad)))
    assert [e.findings for e in listing.examples] == [("dark rim",)]
    assert [item.reason for item in listing.skipped] == [
        "not 2 to 26 options", "options are not a list", "not 2 to 26 options",
        *3 * ["answer is blank"], "a text field is not text", "a text field is not text",
        "split is not train, val or test", "a text field is not text", "a text field is not text",
    ]  # fmt: skip


def test_blank_lines_are_nothing_and_a_broken_line_spoils_only_itself(tmp_path: Path) -> None:
    good = {"question": "Q", "options": ["x", "y"], "answer": "x"}
    spec = jsonl(tmp_path, "\ufeff" + json.dumps(good), "", '{"question": ', "[1, 2]", good, "")
    listing = read(spec)
    assert [e.id for e in listing.examples] == ["mine#1", "mine#5"]
    assert listing.skipped == (
        Skipped("broken JSON", "mine.jsonl", "3"),
        Skipped("row is not an object", "mine.jsonl", "4"),
    )


def test_text_that_cannot_be_written_again_is_mended(tmp_path: Path) -> None:
    row = '{"question": "Q \\ud800", "options": ["x", "y"], "answer": "x"}'
    (example,) = read(jsonl(tmp_path, row)).examples
    assert example.question == "Q ?"
