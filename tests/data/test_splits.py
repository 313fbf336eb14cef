import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data.example import VQAExample
from data.images import ImageFile
from data.load import load, modalities, read, splits_of
from data.splits import (
    balanced_order,
    constant_answers,
    has_constant_answer,
    image_groups,
    same_content,
    split_of,
)
from grpo.settings.errors import UsageError

SPLITS = ("train", "val", "test")


def ids(
    spec: str, split: Any, modality: str = "MRI", size: int = 10**6, seed: int = 0
) -> list[str]:
    examples = load(spec, modality, split=split, size=size, seed=seed)
    return [example.id for example in examples]


def test_every_question_is_in_exactly_one_split_and_images_are_never_shared(omni: Any) -> None:
    # 120 images with two questions each, in two modalities; every third lies in two folders.
    rows = []
    for i in range(120):
        modality = ("X-Ray", "CT(Computed Tomography)")[i % 2]
        rows += [omni.row(i, modality_type=modality), omni.row(i, question_id=f"again {i}")]
        if i % 3 == 0:
            copy = omni.root / f"Images/copies/{i}.png"
            copy.parent.mkdir(exist_ok=True)
            shutil.copy(omni.root / rows[-1]["image_path"], copy)
            rows.append(omni.row(i, question_id=f"copy {i}", image_path=f"Images/copies/{i}.png"))
    omni.write(rows)
    bytes_of: dict[str, set[bytes]] = {}
    found: Counter[str] = Counter()
    for split in SPLITS:
        for modality in ("XRAY", "CT", "MRI"):
            for example in load(omni.spec, modality, split=split, size=10**6, seed=3):
                found[example.id] += 1
                content = Path(example.images[0].key).read_bytes()
                bytes_of.setdefault(split, set()).add(content)
    assert found == Counter(row["question_id"] for row in rows)
    assert sum(len(contents) for contents in bytes_of.values()) == 120  # none counted twice


def test_images_that_stand_together_in_one_question_go_together(
    tmp_path: Path, picture: Callable[[Path, int], Path]
) -> None:
    paths = [ImageFile(picture(tmp_path / f"{i}.png", i)) for i in range(4)]

    def about(name: str, *images: ImageFile) -> VQAExample:
        return VQAExample(name, images, "Q " + name, ("x", "y"), 0, "MRI", "")

    groups = image_groups(
        [
            about("a", paths[3], paths[2]),
            about("b", paths[2], paths[1]),
            about("c", paths[0]),
            about("d"),
            about("e"),
        ],
        tmp_path,
    )
    assert groups == {
        "a": "1.png",
        "b": "1.png",
        "c": "0.png",
        "d": "question: q d",
        "e": "question: q e",
    }


def patients(folder: Path, picture: Callable[[Path, int], Path], **official: str) -> str:
    """60 questions about 60 images of 12 patients, whose numbers are texts and numbers."""
    rows = []
    for i in range(60):
        picture(folder / f"{i}.png", i)
        patient = i // 5 if i % 2 else f" {i // 5} "
        row = {"image": f"{i}.png", "question": "Which?", "options": ["x", "y"], "answer": "x"}
        rows.append(row | {"id": f"{i}", "patient_id" if i % 5 == 4 else "Patient": patient})
        rows[-1] |= {"split": official[f"of_{i}"]} if f"of_{i}" in official else {}
    (folder / "own.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return f"jsonl:{folder}/own.jsonl"


def test_all_images_of_a_patient_are_in_one_split(
    tmp_path: Path, picture: Callable[[Path, int], Path]
) -> None:
    spec = patients(tmp_path, picture)
    splits = splits_of(spec, 0)
    for patient in range(12):
        assert len({splits[f"{i}"] for i in range(5 * patient, 5 * patient + 5)}) == 1
    assert {"train", "test"} <= set(splits.values())
    assert {e.patient for e in read(spec).examples} == {f"{i}" for i in range(12)}
    # The split is that of the patient's name: another image of the patient moves nothing.
    assert splits["7"] == split_of(" 1", 0)


def test_training_questions_of_a_patient_in_the_test_are_left_out(
    tmp_path: Path, picture: Callable[[Path, int], Path]
) -> None:
    official = {f"of_{i}": "test" if i == 7 else "train" for i in range(60)}
    splits = splits_of(patients(tmp_path, picture, **official), 0)
    assert [splits[f"{i}"] for i in range(5, 10)] == [None, None, "test", None, None]
    assert None not in [splits[f"{i}"] for i in (*range(5), *range(10, 60))]


def test_a_question_without_an_image_goes_with_its_patient(
    tmp_path: Path, picture: Callable[[Path, int], Path]
) -> None:
    def about(name: str, patient: str, *images: ImageFile) -> VQAExample:
        return VQAExample(name, images, "Which?", ("x", "y"), 0, "MRI", "", patient=patient)

    image = ImageFile(picture(tmp_path / "0.png", 0))
    asked = [about("a", "p"), about("b", "p", image), about("c", "q", image), about("d", "")]
    groups = image_groups(asked, tmp_path)
    assert groups == {"a": " p", "b": " p", "c": " p", "d": "question: which?"}


def test_only_files_with_equal_bytes_are_the_same(tmp_path: Path) -> None:
    tail = b"t" * 5000
    contents = {
        "a": b"1" + tail,
        "b": b"2" + tail,
        "c": b"1" + tail,
        "d": b"1",
        "e": b"2",
        "f": b"",
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    paths = [str(tmp_path / name) for name in [*contents, "missing"]]
    assert same_content(paths) == [[str(tmp_path / "a"), str(tmp_path / "c")]]


def test_a_split_does_not_depend_on_the_other_rows_their_order_or_the_place(
    tmp_path: Path, omni: Any
) -> None:
    rows = [omni.row(i) for i in range(40)]
    omni.write(rows)
    before = {name: split for split in SPLITS for name in ids(omni.spec, split)}
    moved = tmp_path / "moved"
    shutil.copytree(omni.root, moved)
    more = [omni.row(i) for i in range(40, 60)]
    for row in more:
        shutil.copy(omni.root / row["image_path"], moved / row["image_path"])
    omni.root = moved
    omni.write([*more, *reversed(rows)])
    after = {name: split for split in SPLITS for name in ids(f"omnimedvqa:{moved}", split)}
    assert len(after) == 60
    assert before.items() <= after.items()


def test_the_seed_decides_the_split_and_nothing_else_does(omni: Any) -> None:
    omni.write([omni.row(i) for i in range(60)])
    first = {split: ids(omni.spec, split) for split in SPLITS}
    read.cache_clear()
    assert {split: ids(omni.spec, split) for split in SPLITS} == first
    assert set(ids(omni.spec, "test", seed=1)) != set(first["test"])
    assert split_of("Images/a.png", 0) == "train"  # pinned: a run's split must hold for good
    assert split_of("Images/a.png", 1) == "test"


def test_splits_have_their_shares_of_the_images() -> None:
    shares = Counter(split_of(f"Images/{i}.png", 0) for i in range(20_000))
    for split, share in {"test": 0.4, "val": 0.6 * 0.125, "train": 0.6 * 0.875}.items():
        sigma = (share * (1 - share) / 20_000) ** 0.5
        assert abs(shares[split] / 20_000 - share) < 4 * sigma


def of_type(name: str, count: int) -> list[VQAExample]:
    return [
        VQAExample(f"{name}{i}", (), f"{name}{i}?", ("x", "y"), i % 2, "MRI", name)
        for i in range(count)
    ]


def test_a_draw_takes_question_types_in_turn_until_one_runs_out() -> None:
    order = balanced_order(of_type("a", 50) + of_type("b", 10) + of_type("c", 30), seed=0)
    assert Counter(e.question_type for e in order[:24]) == {"a": 8, "b": 8, "c": 8}
    assert Counter(e.question_type for e in order[:60]) == {"a": 25, "b": 10, "c": 25}
    assert len({e.id for e in order}) == len(order) == 90


def test_a_draw_is_shuffled_by_seed_and_does_not_depend_on_the_order_of_rows() -> None:
    examples = of_type("a", 30)
    order = balanced_order(examples, seed=0)
    assert order == balanced_order(examples[::-1], seed=0)
    assert order != examples
    assert order != balanced_order(examples, seed=1)


def test_a_size_takes_that_many_and_too_large_a_size_takes_all(omni: Any) -> None:
    omni.write([omni.row(i) for i in range(60)])
    whole = ids(omni.spec, "train")
    assert ids(omni.spec, "train", size=5) == whole[:5]
    assert ids(omni.spec, "train", size=0) == []
    assert 5 < len(whole) < 60


def test_an_empty_split_is_a_usage_error(omni: Any) -> None:
    omni.write([omni.row(1)])
    empty = [split for split in SPLITS if split != split_of("Images/Set (a) & b/0001 (1)%.png", 0)]
    for split in empty:
        with pytest.raises(UsageError, match=f"no usable MRI image in its {split} split"):
            load(omni.spec, "MRI", split=split, size=1, seed=0)


def asked(question: str, answer: str, question_type: str, times: int) -> list[VQAExample]:
    options = (answer, "something else")
    return [
        VQAExample(f"{question}{answer}{i}", (), question, options, 0, "MRI", question_type)
        for i in range(times)
    ]


def test_answers_constant_within_a_type_or_a_question_are_found() -> None:
    training = [
        *asked("Which modality?", "MRI", "modality", 5),
        *asked("How was it taken", "mri.", "modality", 5),  # constant but for case and stop
        *asked("What is it?", "tumour", "diagnosis", 5),
        *asked("what is it? ", "cyst", "diagnosis", 1),
        *asked("Is it normal?", "no", "diagnosis", 5),
        *asked("Is it large?", "no", "size", 4),  # too few to say
    ]
    constant = constant_answers(training)
    assert constant == {
        ("type", "modality"): "mri",
        ("question", "which modality?"): "mri",
        ("question", "how was it taken"): "mri",
        ("question", "is it normal?"): "no",
    }
    test = [
        *asked("By what means?", "CT", "modality", 1),  # a new wording of a constant type
        *asked("Is it normal?", "yes", "other", 1),
        *asked("What is it?", "cyst", "diagnosis", 1),
        *asked("Is it large?", "no", "size", 1),
    ]
    assert [has_constant_answer(e, constant) for e in test] == [True, True, False, False]


def test_questions_without_a_type_make_no_constant_type() -> None:
    assert constant_answers(asked("A?", "x", "", 3) + asked("B?", "x", "", 3)) == {}


def test_phantoms_are_loaded_by_the_same_call() -> None:
    assert set(modalities("phantom")) == {"MRI", "CT", "XRAY"}
    examples = load("phantom", "x-ray", split="test", size=2, seed=0)
    assert [e.modality for e in examples] == ["XRAY", "XRAY"]
