"""VQA-Med-2019, PathVQA, PMC-VQA and SilVar-Med, each in its own format."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from data.load import load, read
from data.rows import Skipped
from tests.data.sets import pmc_row, png, slake_row

MED_TEST = "VQAMed2019Test/VQAMed2019_Test_Questions_w_Ref_Answers.txt"
MED_TRAIN = "ImageClef-2019-VQA-Med-Training"
MED_VAL = "ImageClef-2019-VQA-Med-Validation"


def put(root: Path, name: str, content: str | bytes) -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.fixture
def med(tmp_path: Path) -> Path:
    for i, folder in enumerate(
        (f"{MED_TRAIN}/Train_images", f"{MED_VAL}/Val_images", "VQAMed2019Test/Test_images")
    ):
        for number in range(3):
            red = 10 * i + number
            put(tmp_path, f"{folder}/synpic{red}.jpg", png(red))
    lines = "synpic0|what type of imaging modality is shown?|xr - plain film\r\nsynpic1|q|cta#ct\n"
    put(tmp_path, f"{MED_TRAIN}/QAPairsByCategory/C1_Modality_train.txt", lines)
    lines = (
        "synpic2|is this image normal?|no\n\nsynpic2|two fields\nsynpic9|is it?|yes\nsynpic2|q|\n"
    )
    put(tmp_path, f"{MED_TRAIN}/QAPairsByCategory/C4_Abnormality_train.txt", lines)
    put(tmp_path, f"{MED_TRAIN}/All_QA_Pairs_train.txt", "synpic0|read twice?|no\n")
    put(tmp_path, f"{MED_TRAIN}/train_ImageIDs.txt", "synpic0\nsynpic1\n")
    put(tmp_path, f"{MED_VAL}/All_QA_Pairs_val.txt", "synpic10|which plane?|axial\n")
    put(tmp_path, MED_TEST, "synpic20|organ|what part of the body?|lung, | mediastinum#chest\n")
    put(tmp_path, "VQAMed2019Test/VQAMed2019_Test_Questions.txt", "synpic20|what part?\n")
    return tmp_path


def test_vqa_med_is_read_from_the_folders_of_its_archives(med: Path) -> None:
    listing = read(f"vqa-med-2019:{med}")
    train, several, yes_no, val, test = sorted(
        listing.examples, key=lambda e: e.images[0].open().getpixel((0, 0))
    )
    assert train.question == "what type of imaging modality is shown?"
    assert (train.references, train.question_type) == (("xr - plain film",), "modality")
    assert several.right_answers == ("cta", "ct")
    assert (yes_no.letter, yes_no.question_type) == ("B", "abnormality")
    assert (val.answer, val.question_type) == ("axial", "")
    assert test.references == ("lung, | mediastinum", "chest")
    assert (test.question_type, test.modality) == ("organ", "OTHER")
    assert [listing.splits[e.id] for e in (train, several, yes_no, val, test)] == [
        "train", "train", "train", "val", "test",
    ]  # fmt: skip


def test_faults_of_vqa_med_are_counted_with_file_and_line(med: Path) -> None:
    file = f"{MED_TRAIN}/QAPairsByCategory/C4_Abnormality_train.txt"
    name = "C4_Abnormality_train#"
    assert read(f"vqa-med-2019:{med}").skipped == (
        Skipped("line is not of the form image|question|answer", file, "3"),
        Skipped("image is missing", file, f"{name}4"),
        Skipped("answer is blank", file, f"{name}5"),
    )


def test_pathvqa_has_three_splits_in_several_files(tmp_path: Path, parquet: Any) -> None:
    for name, numbers in {
        "train-00000-of-00002-aa": (0, 1), "train-00001-of-00002-bb": (2, 3),
        "validation-00000-of-00001-cc": (4,), "test-00000-of-00001-dd": (5, 6),
    }.items():  # fmt: skip
        rows = [{"image": i, "question": f"Q{i}?", "answer": "yes"} for i in numbers]
        put(tmp_path, f"data/{name}.parquet", parquet(rows))
    sizes = {}
    for split in ("train", "val", "test"):
        examples = load(f"path-vqa:{tmp_path}", "pathology", split=split, size=9, seed=0)
        sizes[split] = sorted(e.images[0].open().getpixel((0, 0))[0] for e in examples)
    assert sizes == {"train": [0, 1, 2, 3], "val": [4], "test": [5, 6]}


def pmc(root: Path, name: str, *rows: dict[str, Any], images: str = "images") -> str:
    with (root / name).open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [c for c, value in rows[0].items() if value is not None])
        writer.writeheader()
        kept = [{c: v for c, v in row.items() if v is not None} for row in rows]
        writer.writerows(kept)
    for row in rows:
        number = int(row["Figure_path"].removeprefix("PMC").split("_")[0])
        if number < 100:
            put(root, f"{images}/{row['Figure_path']}", png(number))
    return f"pmc-vqa:{root}"


def test_pmc_choices_lose_their_letters_and_keep_their_commas(tmp_path: Path) -> None:
    (example,) = read(pmc(tmp_path, "train.csv", pmc_row(3))).examples
    assert example.options == (
        "Diffuse uptake pattern", "Focal uptake pattern", "No uptake, at all", "Cannot be told",
    )  # fmt: skip
    assert (example.letter, example.answer) == ("B", "Focal uptake pattern")
    assert (example.dataset, example.modality) == ("PMC-VQA", "OTHER")
    assert example.images[0].open().getpixel((0, 0)) == (3, 0, 0)


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({}, "B"),
        ({"Anwser": None, "Answer": "Focal uptake pattern"}, "B"),
        ({"Answer_label": "C"}, "letter and answer disagree"),
        ({"Answer_label": "E"}, "answer is none of the options"),
        ({"Answer_label": "BC"}, "answer is none of the options"),
        ({"Answer_label": "B", "Choice B": " B: "}, "answer is none of the options"),
        ({"Answer_label": " b", "Anwser": "focal  uptake pattern."}, "B"),
        ({"Answer_label": "D", "Anwser": "in other words"}, "D"),
        ({"Answer_label": ""}, "B"),
        ({"Answer_label": None, "Anwser": None, "Answer": " C"}, "C"),  # as in version 2
        ({"Answer_label": "", "Anwser": ""}, "answer is none of the options"),
        ({"Choice D": "D: Focal uptake pattern"}, "two options are equal"),
        ({"Question": " "}, "question is blank"),
        ({"Figure_path": "PMC404_F1.jpg"}, "image is missing"),
        ({"Figure_path": "PMC404_F1/../../x.jpg"}, "image path leaves the data folder"),
    ],
)
def test_pmc_answers_go_by_the_letter_which_must_agree_with_the_text(
    tmp_path: Path, changes: dict[str, Any], found: str
) -> None:
    row = {**pmc_row(2), **changes}
    pmc(tmp_path, "train.csv", row)
    spec = pmc(tmp_path, "test.csv", pmc_row(1))
    listing = read(spec)
    (train,) = [e.letter for e in listing.examples if listing.splits[e.id] == "train"] or [""]
    assert [train or s.reason for s in listing.skipped] + [train] * bool(train) == [found]


def test_a_csv_line_with_too_many_or_too_few_cells_harms_no_other(tmp_path: Path) -> None:
    spec = pmc(tmp_path, "train.csv", pmc_row(1), pmc_row(2), pmc_row(3))
    lines = (tmp_path / "train.csv").read_text().splitlines()
    lines[1], lines[2] = lines[1] + ",more,cells", "PMC2_F1.jpg,What?"
    (tmp_path / "train.csv").write_text("\ufeff" + "\n".join(lines), encoding="utf-8")
    listing = read(spec)
    assert [e.id for e in listing.examples] == ["train#2", "train#4"]
    assert [s.reason for s in listing.skipped] == ["not 2 to 26 options"]


def test_version_two_and_the_checked_test_come_first(tmp_path: Path) -> None:
    def ids() -> list[str]:
        read.cache_clear()
        return [e.id for e in read(f"pmc-vqa:{tmp_path}").examples]

    pmc(tmp_path, "test.csv", pmc_row(1), pmc_row(2))
    assert ids() == ["test#2", "test#3"]
    pmc(tmp_path, "train.csv", pmc_row(3, Question="Two\nlines, and a comma?"))
    assert ids() == ["train#3", "test#2", "test#3"]
    pmc(tmp_path, "test_clean.csv", pmc_row(1))
    assert ids() == ["train#3", "test_clean#2"]
    pmc(tmp_path, "test_2.csv", pmc_row(5, Caption="C"), images="figures")
    assert ids() == ["train#3", "test_clean#2"]
    pmc(tmp_path, "train_2.csv", pmc_row(4, Caption="C"), images="images_2/figures")
    assert ids() == ["train_2#2", "test_2#2"]
    one = read(f"pmc-vqa:{tmp_path / 'test.csv'}")
    assert set(one.splits.values()) == {"test"}


def test_silvar_pairs_are_examples_and_their_images_are_those_of_slake(tmp_path: Path) -> None:
    for number in (1, 2):
        put(tmp_path, f"Slake/imgs/xmlab{number}/source.jpg", png(number))
    long = "The left lung shows a dense area. So the answer is: atelectasis."
    rows = [
        {"img_name": "xmlab1/source.jpg", "question": ["What is wrong?", "Where?"],
         "answer": [long, "On the left."]},
        {"img_name": "xmlab1/source.jpg", "question": "Why?", "answer": "Because it is dense."},
        {"img_name": "xmlab1/source.jpg", "question": ["A?", "B?"], "answer": ["a"]},
        {"img_name": "xmlab1/source.jpg", "question": ["C?", ""], "answer": ["c", "d"]},
        {"img_name": "xmlab7/source.jpg", "question": "D?", "answer": "d"},
        7,
    ]  # fmt: skip
    place = "Slake/Abnormal_Ours/{}/dataset_unique_abnormal.json"
    put(tmp_path, place.format("train"), json.dumps(rows))
    test = [slake_row(2, question="What is it?", answer="A cyst.")]
    put(tmp_path, place.format("test"), json.dumps(test))
    for folder in ("", "Slake", "Slake/Abnormal_Ours"):
        listing = read(f"silvar-med:{tmp_path / folder}")
        first, second = (
            {e.question: e for e in listing.examples}[q] for q in ("What is wrong?", "Where?")
        )
        assert (first.references, first.reasoning, first.options) == ((long,), long, ())
        assert (first.id, second.id, second.answer) == ("train#0.0", "train#0.1", "On the left.")
        assert second.images[0].open().getpixel((0, 0)) == (1, 0, 0)
        assert listing.splits == {
            "test#0": "test", "train#0.0": "train", "train#0.1": "train", "train#1": "train",
            "train#3.0": "train",
        }  # fmt: skip
        assert [s.reason for s in listing.skipped] == [
            "questions and answers differ in number", "question is blank", "image is missing",
            "row is not an object",
        ]  # fmt: skip
