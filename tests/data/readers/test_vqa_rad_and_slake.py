import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from data.load import LeftOut, load, read
from data.rows import Skipped
from grpo.settings.errors import UsageError
from tests.data.sets import png, rad_row, slake_row

OSF_NAME = "VQA_RAD Dataset Public.json"


def rad_folder(root: Path, *rows: Any, images: str = "VQA_RAD Image Folder") -> str:
    (root / images).mkdir(exist_ok=True)
    for number in range(1, 10):
        (root / images / f"synpic{number}.jpg").write_bytes(png(number))
    (root / OSF_NAME).write_text(json.dumps(rows))
    return f"vqa-rad:{root}"


@pytest.mark.parametrize("images", ["VQA_RAD Image Folder", "images", ".", "osf/pictures"])
def test_the_osf_list_finds_its_images_wherever_they_were_unpacked(
    tmp_path: Path, images: str
) -> None:
    (tmp_path / "osf").mkdir()
    spec = rad_folder(tmp_path, rad_row(7, answer="No "), images=images)
    for place in (spec, f"{spec}/{OSF_NAME}"):
        (example,) = read(place).examples
        assert example.images[0].open().getpixel((0, 0)) == (7, 0, 0)
        assert (example.id, example.dataset, example.question_type) == ("7", "VQA-RAD", "PRES")
        assert (example.options, example.letter, example.modality) == (("yes", "no"), "B", "OTHER")


def test_stray_spaces_do_not_make_a_closed_question_open(tmp_path: Path) -> None:
    rows = [
        rad_row(1, answer_type="CLOSED ", answer="Yes."),
        rad_row(2, answer_type=" CLOSED", answer="axial"),  # "Is it axial or coronal?"
        rad_row(3, answer_type="OPEN ", answer="right lung", question_type="POS, SIZE "),
        rad_row(4, answer_type="OPEN", answer="yes"),
        rad_row(5, answer_type="CLOSED", answer=2),
    ]
    examples = read(rad_folder(tmp_path, *rows)).examples
    assert [e.closed for e in examples] == [True, True, False, False, True]
    assert [bool(e.options) for e in examples] == [True, False, False, False, False]
    assert [e.answer for e in examples] == ["yes", "axial", "right lung", "yes", "2"]
    assert examples[2].question_type == "POS, SIZE"


def test_the_phrase_type_names_the_test_and_shared_images_leave_training(tmp_path: Path) -> None:
    rows = [
        rad_row(1, phrase_type="test_freeform"),
        rad_row(2, phrase_type="test_para", image_name="synpic1.jpg"),
        rad_row(3, phrase_type="para", image_name="synpic1.jpg"),
        *(rad_row(i, phrase_type="freeform") for i in range(4, 10)),
    ]
    spec = rad_folder(tmp_path, *rows)
    drawn = {
        split: {e.id for e in load(spec, "OTHER", split=split, size=99, seed=0)}
        for split in ("train", "test")
    }
    assert drawn["test"] == {"1", "2"}
    assert drawn["train"] <= set("456789")
    skipped = LeftOut()
    load(spec, "OTHER", split="test", size=1, seed=0, skipped=skipped)
    shared = str(tmp_path / "VQA_RAD Image Folder" / "synpic1.jpg")
    assert skipped == {Skipped("image or patient is also held out", shared, "3")}


def test_bad_rows_of_the_osf_list_are_counted_and_twice_the_same_id_is_two(
    tmp_path: Path,
) -> None:
    rows = [
        rad_row(1), rad_row(1), rad_row(2, question=" "), rad_row(3, answer=None),
        rad_row(4, image_name="gone.jpg"), rad_row(5, image_name="../../synpic1.jpg"),
        rad_row(6, image_name=None), rad_row(7, answer={"a": 1}), "no row", rad_row(8, answer=[]),
        rad_row(9, phrase_type=None), rad_row(9, phrase_type=3),
    ]  # fmt: skip
    listing = read(rad_folder(tmp_path, *rows))
    assert [e.id for e in listing.examples] == ["1", "1#1", "9", "9#11"]
    assert listing.splits == {"1": "train", "1#1": "train", "9#11": "train"}
    assert Counter(s.reason for s in listing.skipped) == {
        "question is blank": 1, "answer is blank": 2, "image is missing": 1,
        "image path leaves the data folder": 1, "image path is blank": 1,
        "a text field is not text": 1, "row is not an object": 1,
    }  # fmt: skip


def slake_folder(root: Path, **files: Any) -> str:
    for number in range(1, 9):
        (root / f"imgs/xmlab{number}").mkdir(parents=True)
        (root / f"imgs/xmlab{number}/source.jpg").write_bytes(png(number))
    for name, rows in files.items():
        (root / f"{name}.json").write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    return f"slake:{root}"


def test_slake_is_read_in_english_with_its_splits_and_modalities(tmp_path: Path) -> None:
    spec = slake_folder(
        tmp_path,
        train=[
            slake_row(1),
            slake_row(2, modality="X-Ray", answer="Yes", answer_type="CLOSED", content_type="Size"),
            slake_row(3, question="图像中有哪些器官?", answer="肝", q_lang="zh"),
        ],
        validation=[slake_row(4, modality="CT", answer="Lung", answer_type="CLOSED")],
        test=[slake_row(5), slake_row(6, answer=" No", answer_type="CLOSED")],
    )
    listing = read(spec)
    by_id = {e.id: e for e in listing.examples}
    assert listing.splits == {"1": "train", "2": "train", "4": "val", "5": "test", "6": "test"}
    assert [by_id[i].modality for i in "1245"] == ["MRI", "XRAY", "CT", "MRI"]
    assert [by_id[i].closed for i in "12456"] == [False, True, True, False, True]
    assert (by_id["2"].letter, by_id["6"].letter, by_id["4"].options) == ("A", "B", ())
    assert (by_id["4"].references, by_id["2"].question_type) == (("Lung",), "Size")
    assert by_id["5"].images[0].open().getpixel((0, 0)) == (5, 0, 0)
    assert listing.skipped == (Skipped("question is not in English", "train.json", "2"),)
    (held,) = load(spec, "CT", split="val", size=9, seed=0)
    assert held.id == "4"
    assert len(load(spec, "MRI", split="train", size=9, seed=0)) == 1
    assert len(load(spec, "ALL", split="test", size=9, seed=0)) == 2


def test_an_image_of_slake_in_two_splits_stays_in_the_later_one(tmp_path: Path) -> None:
    spec = slake_folder(
        tmp_path,
        train=[slake_row(1), slake_row(11, img_name="xmlab2/source.jpg"), slake_row(3)],
        validation=[slake_row(2), slake_row(13, img_name="xmlab4/source.jpg")],
        test=[slake_row(4)],
    )
    (tmp_path / "imgs/xmlab3/source.jpg").write_bytes(png(4))  # under another name
    ids = {
        split: [e.id for e in load(spec, "MRI", split=split, size=9, seed=0)]
        for split in ("train", "val", "test")
    }
    assert ids == {"train": ["1"], "val": ["2"], "test": ["4"]}


def test_faults_of_slake_are_counted_and_a_missing_split_is_named(tmp_path: Path) -> None:
    rows = [
        slake_row(1), slake_row(2, answer=""), slake_row(3, img_name="xmlab99/source.jpg"),
        slake_row(4, img_name="xmlab1/../../../x.jpg"), slake_row(5, modality="unknown"),
        slake_row(6, img_name=["xmlab1/source.jpg"]), slake_row(7, question=None), None,
    ]  # fmt: skip
    spec = slake_folder(tmp_path, train=rows)
    assert [s.reason for s in read(spec).skipped] == [
        "answer is blank", "image is missing", "image path leaves the data folder",
        "modality is unknown", "image path is blank", "question is blank", "row is not an object",
    ]  # fmt: skip
    with pytest.raises(UsageError, match=r"no usable MRI image in its test split.*put its files"):
        load(spec, "MRI", split="test", size=1, seed=0)


@pytest.mark.parametrize(
    "name", ["vqa-rad", "slake", "vqa-med-2019", "path-vqa", "pmc-vqa", "silvar-med"]
)
@pytest.mark.parametrize("place", ["nowhere", "empty"])
def test_a_folder_without_the_data_is_one_line_on_what_belongs_there(
    tmp_path: Path, name: str, place: str
) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=f"{name}:.*{place}: no .* there; expected") as error:
        read(f"{name}:{tmp_path / place}")
    assert "\n" not in str(error.value)
