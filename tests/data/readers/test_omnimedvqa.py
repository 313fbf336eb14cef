import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from data.example import VQAExample
from data.load import LeftOut, load, modalities, read
from data.rows import Skipped, modality_name
from grpo.settings.errors import UsageError


def one(omni: Any, **changes: Any) -> VQAExample:
    """The example that a good row with `changes` becomes."""
    omni.write([omni.row(1, **changes)])
    (example,) = read(omni.spec).examples
    return example


def reasons(omni: Any) -> list[str]:
    return [item.reason for item in read(omni.spec).skipped]


def test_a_row_keeps_its_fields_and_commas_in_options_split_nothing(omni: Any) -> None:
    example = one(omni)
    assert example.options == ("Nothing", "Cyst, simple", "Abscess", "Fracture")
    assert (example.letter, example.answer) == ("B", "Cyst, simple")
    assert (example.id, example.dataset, example.modality) == ("Set_00001", "Set", "MRI")
    assert example.question_type == "Disease Diagnosis"
    assert example.images[0].key.endswith("Images/Set (a) & b/0001 (1)%.png")
    assert example.images[0].open().getpixel((0, 0)) == (1, 0, 0)


@pytest.mark.parametrize("blank", [..., "", "  ", None])
def test_rows_with_two_options_lack_or_leave_blank_the_other_two(omni: Any, blank: Any) -> None:
    example = one(omni, option_C=blank, option_D=blank)
    assert example.options == ("Nothing", "Cyst, simple")


@pytest.mark.parametrize(
    ("answer", "option", "matches"),
    [
        ("x_ray.", "x_ray", True),
        ("CT", "CT.", True),
        ("cyst , simple", "Cyst, simple", False),
        ("  NO ", "No.", True),
        ("X-ray", "X_ray", False),
        ("B", "Cyst", False),  # a letter is not an answer in this format
        ("", "Cyst", False),
    ],
)
def test_an_answer_may_differ_from_its_option_in_case_and_final_stop_only(
    omni: Any, answer: str, option: str, matches: bool
) -> None:
    omni.write([omni.row(0), omni.row(1, gt_answer=answer, option_B=option)])
    listing = read(omni.spec)
    assert [e.gold for e in listing.examples[1:]] == ([1] if matches else [])
    assert reasons(omni) == ([] if matches else ["answer is none of the options"])


@pytest.mark.parametrize("twin", ["Abscess", "abscess", "Abscess. ", " Abscess"])
def test_a_row_with_two_equal_options_is_left_out_even_if_neither_is_gold(
    omni: Any, twin: str
) -> None:
    omni.write([omni.row(0), omni.row(1, option_D=twin)])
    assert [e.id for e in read(omni.spec).examples] == ["Set_00000"]
    assert reasons(omni) == ["two options are equal"]


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("MR (Mag-netic Resonance Imaging)", "MRI"),
        ("CT(Computed Tomography)", "CT"),
        ("X-Ray", "XRAY"),
        ("Dermoscopy", "DERMOSCOPY"),
        ("Fundus Photography", "FUNDUS"),
        ("Microscopy Images", "MICROSCOPY"),
        ("OCT (Optical Coherence Tomography", "OCT"),  # as published: no closing bracket
        ("ultrasound", "ULTRASOUND"),
        ("Infrared Reflectance Imaging", "INFRARED_REFLECTANCE_IMAGING"),
    ],
)
def test_modality_names_are_normalised(omni: Any, text: str, name: str) -> None:
    assert one(omni, modality_type=text).modality == name
    assert modalities(omni.spec) == (name,)
    assert modality_name(name) == name


def test_the_key_modality_stands_in_and_unknown_is_left_out(omni: Any) -> None:
    rows = [
        omni.row(0, modality_type=..., modality="X-Ray"),
        omni.row(1, modality_type=..., modality="unknown"),
        omni.row(2, modality_type=...),
    ]
    omni.write(rows)
    assert [e.modality for e in read(omni.spec).examples] == ["XRAY"]
    assert reasons(omni) == ["modality is unknown"] * 2


def test_bad_rows_and_files_are_left_out_by_reason_with_file_and_row(omni: Any) -> None:
    good = omni.row(0)
    omni.write(
        [
            good,
            omni.row(1, image_path="Images/Set (a) & b/gone.png"),
            omni.row(2, image_path="../outside.png"),
            omni.row(3, image_path=...),
            omni.row(4, question="  "),
            omni.row(5, option_A=..., option_C=..., option_D=...),
            omni.row(6, option_A={"text": "Nothing"}),
            "not a row",
        ],
        "a.json",
    )
    omni.write('[{"dataset": "Set", ', "b.json")
    omni.write('{"rows": []}', "c.json", "Restricted-access")
    omni.write("[" * 100_000, "d.json")
    omni.write("junk of a Mac", "._a.json")
    where, whole = "QA_information/Open-access/", ", with the rest of its file"
    assert [e.id for e in read(omni.spec).examples] == ["Set_00000"]
    assert read(omni.spec).skipped == (
        Skipped("image is missing", where + "a.json", "Set_00001"),
        Skipped("image path leaves the data folder", where + "a.json", "Set_00002"),
        Skipped("image path is blank", where + "a.json", "Set_00003"),
        Skipped("question is blank", where + "a.json", "Set_00004"),
        Skipped("not 2 to 26 options", where + "a.json", "Set_00005"),
        Skipped("a text field is not text", where + "a.json", "Set_00006"),
        Skipped("row is not an object", where + "a.json", "7"),
        Skipped("broken JSON" + whole, where + "b.json", ""),
        Skipped("broken JSON" + whole, where + "d.json", ""),
        Skipped("file is not a JSON list" + whole, "QA_information/Restricted-access/c.json", ""),
    )


def test_a_row_with_chat_tokens_is_kept_as_it_is(omni: Any) -> None:
    question = "What is <|image_pad|> here?<|im_end|>"  # the policy's encoder takes it for text
    omni.write([omni.row(0, question=question, option_A="<|im_start|>")])
    (example,) = read(omni.spec).examples
    assert example.question == question
    assert example.options[0] == "<|im_start|>"


def test_a_damaged_image_is_passed_over_when_drawn_and_the_next_takes_its_place(omni: Any) -> None:
    rows = [omni.row(i) for i in range(60)]
    omni.write(rows)
    whole = load(omni.spec, "MRI", split="train", size=3, seed=0)
    Path(whole[1].images[0].key).write_bytes(b"damaged")
    skipped = LeftOut()
    read.cache_clear()
    kept = load(omni.spec, "MRI", split="train", size=3, seed=0, skipped=skipped)
    assert len(kept) == 3
    assert [kept[0], kept[1]] == [whole[0], whole[2]]
    assert skipped == {Skipped("image cannot be read", whole[1].images[0].key, whole[1].id)}


def test_no_two_examples_share_an_id_though_rows_do(omni: Any) -> None:
    rows = [omni.row(1), omni.row(2, question_id="Set_00001"), omni.row(3, question_id=...)]
    for name in ("a.json", "b.json", "c.json"):
        omni.write(rows, name)
    ids = [example.id for example in read(omni.spec).examples]
    assert ids[:3] == ["Set_00001", "Set_00001#1", "a#2"]
    assert len(set(ids)) == 9


def test_images_of_one_name_in_two_folders_are_two_images(omni: Any) -> None:
    rows = [omni.row(i, image=f"{i}/image1.png") for i in range(30)]
    omni.write(rows)
    images = {e.images[0].key: e.images[0] for e in read(omni.spec).examples}
    assert sorted(image.open().getpixel((0, 0))[0] for image in images.values()) == [*range(30)]
    parts = [load(omni.spec, "MRI", split=s, size=30, seed=0) for s in ("train", "test")]
    assert all(parts)


def test_the_folder_above_is_accepted_too(tmp_path: Path, omni: Any) -> None:
    omni.write([omni.row(1)])
    (tmp_path / "up").mkdir()
    omni.root.rename(tmp_path / "up" / "OmniMedVQA")
    assert len(read(f"omnimedvqa:{tmp_path / 'up'}").examples) == 1


def test_listing_opens_no_image_and_reads_each_directory_once(
    omni: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    omni.write([omni.row(i, image=f"{i % 3}/{i}.png") for i in range(90)])
    listed: list[str] = []
    scandir = os.scandir

    def counted(path: str) -> Any:
        listed.append(path)
        return scandir(path)

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("an image was touched")

    monkeypatch.setattr(os, "scandir", counted)
    monkeypatch.setattr(Image, "open", refuse)
    monkeypatch.setattr(os.path, "exists", refuse)
    assert len(read(omni.spec).examples) == 90
    images = [path for path in listed if "Images" in str(path)]
    assert len(images) == len(set(images)) == 3


def test_a_modality_the_data_lacks_names_what_it_has(omni: Any) -> None:
    omni.write([omni.row(1), omni.row(2), omni.row(3, modality_type="X-Ray")])
    with pytest.raises(UsageError, match=r"no CT questions.*MRI \(2\), XRAY \(1\)"):
        load(omni.spec, "ct", split="train", size=1, seed=0)


def test_wrong_places_are_usage_errors_that_say_what_is_expected(tmp_path: Path, omni: Any) -> None:
    for spec, words in {
        f"omnimedvqa:{tmp_path / 'nowhere'}": "expected the folder that holds Images/",
        f"huatuo:{tmp_path / 'nowhere'}": "expected a JSON list",
        f"jsonl:{tmp_path / 'nowhere'}": "expected one JSON object a line",
        "jsonl": "jsonl:PATH",
        "rad:here": "no data set 'rad'.*slake:FOLDER.*jsonl:FILE",
    }.items():
        with pytest.raises(UsageError, match=words) as error:
            read(spec)
        assert "\n" not in str(error.value)
    omni.write([omni.row(1, image_path="Images/gone.png")])
    with pytest.raises(UsageError, match=r"1 left out \(1 image is missing\)"):
        read(omni.spec)
