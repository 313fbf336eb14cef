"""The audit of small folders whose every figure is known, and of phantoms that leak on purpose."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data.audit.audit import Options, audit, full_stops, main, questions, shared_images
from data.example import VQAExample
from data.images import ImageFile
from data.load import LeftOut, load
from grpo.settings.errors import UsageError
from tests.programs import Program

SPLITS = ("train", "val", "test")
SEED = 1  # by which every split of `folder` has questions of both modalities
CT = "CT(Computed Tomography)"


@pytest.fixture
def folder(omni: Any) -> Any:
    """80 MRI questions, each answer 40 times, and 20 CT questions with two options; faults."""
    rows = []
    for i in range(80):
        options = ("Cyst", "Abscess.", "Fracture", "Nothing")
        shown = options[i % 4 :] + options[: i % 4]
        letters = {f"option_{letter}": text for letter, text in zip("ABCD", shown, strict=True)}
        answer = options[i // 40]
        rows.append(omni.row(i, question=f"Number {i}?", gt_answer=answer, **letters))
    for i in range(80, 100):
        rows.append(
            omni.row(
                i,
                question_type="Modality Recognition",
                gt_answer="CT",
                modality_type=CT,
                option_A="CT",
                option_B="PET",
                option_C=...,
                option_D=...,
            )
        )
    rows.append(omni.row(100, gt_answer="Gout"))
    rows.append(omni.row(101, modality_type="unknown"))
    for i in range(0, 80, 8):  # the same pictures under other names
        copy = omni.root / f"Images/copies/{i}.png"
        copy.parent.mkdir(exist_ok=True)
        shutil.copy(omni.root / rows[i]["image_path"], copy)
        rows.append({**rows[i], "question_id": f"copy {i}", "image_path": f"Images/copies/{i}.png"})
    omni.write(rows)
    return omni


def test_counts_are_those_of_the_folder(folder: Any) -> None:
    figures = audit(folder.spec, Options())
    mri, ct = figures["counts"]["MRI"], figures["counts"]["CT"]
    assert list(figures["counts"]) == ["MRI", "CT"]  # the largest first
    assert (mri["questions"], mri["images"], sum(mri["splits"].values())) == (90, 90, 90)
    assert (mri["types"], mri["options"]) == ({"Disease Diagnosis": 90}, {"4": 90})
    assert (ct["questions"], ct["types"]) == (20, {"Modality Recognition": 20})
    assert figures["letters"]["MRI"] == {"4": {"A": 25, "B": 25, "C": 20, "D": 20}}
    assert figures["letters"]["CT"] == {"2": {"A": 20, "B": 0}}
    assert figures["copies"] == {"images": 10, "paths": 20, "near": 0}
    assert figures["leaks"] == {"path": 0, "hash": 0, "near": []}
    assert figures["unusable"] == {"answer is none of the options": 1, "modality is unknown": 1}


def test_what_can_be_answered_without_looking_is_found(folder: Any) -> None:
    figures = audit(folder.spec, Options())
    mri, ct = figures["counts"]["MRI"]["splits"], figures["counts"]["CT"]["splits"]
    prior = figures["options_prior"]  # learned from MRI
    assert prior == figures["options_prior_from"]["MRI"]
    assert figures["trained_on"] == {"MRI": mri["train"], "CT": ct["train"]}
    assert prior["MRI"]["n"] == mri["test"]
    assert prior["MRI"]["chance"] == 0.25
    assert prior["CT"] == {"n": ct["test"], "accuracy": 0.5, "chance": 0.5}
    assert figures["options_prior_from"]["CT"]["CT"]["accuracy"] == 1
    assert figures["majority_letter"]["CT"]["accuracy"] == 1
    constant = figures["constant"]["CT"]
    assert constant["n"] == ct["test"]
    assert constant["rest"] == {"n": 0, "accuracy": None, "chance": None}
    assert ["type", "Modality Recognition", "ct"] in constant["answers"]
    assert figures["constant"]["MRI"]["rest"] == prior["MRI"]
    few = audit(folder.spec, Options(eval_size=3))  # fewer than it takes to call one constant
    assert few["constant"]["CT"]["n"] == 3
    assert figures["full_stops"]["MRI"] == {"questions": 90, "right": 45}


def test_the_splits_are_those_that_a_run_draws_from(folder: Any) -> None:
    whole, drawn = questions(
        folder.spec, ["MRI", "CT"], Options(seed=SEED, train_size=9), LeftOut()
    )
    for name in ("MRI", "CT"):
        for split in SPLITS:
            loaded = load(folder.spec, name, split=split, size=10**6, seed=SEED)
            assert {e.id for e in whole[name][split]} == {e.id for e in loaded}
            size = {"train": 9, "val": 0, "test": 300}[split]
            assert drawn[name][split] == loaded[:size]


def test_shared_images_are_found_by_path_and_by_bytes(
    tmp_path: Path, picture: Callable[[Path, int], Path]
) -> None:
    def about(name: str) -> VQAExample:
        image = ImageFile(picture(tmp_path / f"{name}.png", int(name[0])))
        return VQAExample(name, (image,), "Which?", ("x", "y"), 0, "MRI", "")

    def parts(train: str, val: str, test: str) -> dict[str, list[VQAExample]]:
        named = zip(SPLITS, (train, val, test), strict=True)
        return {split: [about(name) for name in names.split()] for split, names in named}

    # Names that begin alike are equal in bytes. 1 is in one split; 2 in two by path; 3 and 4 by
    # copies only; 5 and 6 are single.
    whole = [parts("1 1copy 2 3", "5", "2 2copy 3copy"), parts("4", "4copy 4again", "6")]
    assert shared_images(whole, compare=False) == {
        "leaks": {"path": 1, "hash": 3, "near": []},
        "copies": {"images": 4, "paths": 9, "near": 0},
    }


def test_an_image_of_many_questions_is_compared_once(
    tmp_path: Path, picture: Callable[[Path, int], Path]
) -> None:
    opened = []

    class Watched(ImageFile):
        def open(self) -> Any:
            opened.append(self.path.name)
            return super().open()

    files = [picture(tmp_path / f"{i}.png", i) for i in range(3)]
    shown = [Watched(files[i % 3]) for i in range(30)]
    asked = [VQAExample(str(i), (x,), "?", ("x", "y"), 0, "MRI", "") for i, x in enumerate(shown)]
    shared_images([{"train": asked[:20], "test": asked[20:]}], compare=True)
    assert sorted(opened) == ["0.png", "1.png", "2.png"]


def test_a_full_stop_counts_where_it_stands_alone() -> None:
    def stops(*options: str, gold: int = 0) -> dict[str, int]:
        return full_stops([VQAExample("1", (), "Which?", options, gold, "MRI", "")])

    assert stops("x.", "y", "z") == {"questions": 1, "right": 1}
    assert stops("x.", "y", "z", gold=1) == {"questions": 1, "right": 0}
    assert stops("x.", "y.", "z") == stops("x", "y") == {"questions": 0, "right": 0}


def test_a_modality_without_questions_in_a_split_is_audited_all_the_same(
    folder: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    folder.write([folder.row(200, modality_type="Dermoscopy")], name="few.json")
    figures = audit(folder.spec, Options())
    counts = figures["counts"]["DERMOSCOPY"]["splits"]
    assert sorted(counts.values()) == [0, 0, 1]
    assert figures["trained_on"]["DERMOSCOPY"] == counts["train"]
    assert figures["options_prior"]["DERMOSCOPY"]["n"] == counts["test"]
    main([folder.spec])
    assert "DERMOSCOPY" in capsys.readouterr().out


def test_images_that_cannot_be_read_are_among_the_unusable(folder: Any) -> None:
    (folder.root / "Images/Set (a) & b/0001 (1)%.png").write_bytes(b"no picture")
    assert audit(folder.spec, Options())["unusable"]["image cannot be read"] == 1


@pytest.mark.slow
def test_leaky_phantoms_are_told_from_sound_ones() -> None:
    options = Options(train_size=280, eval_size=280, modality="CT, MRI")
    sound, leaky = audit("phantom", options), audit("phantom:leaky", options)
    assert list(leaky["options_prior"]) == ["CT", "MRI"]  # learned from CT, asked for first
    assert sound["constant"]["CT"]["n"] == 0
    assert leaky["constant"]["CT"]["n"] == 40
    assert leaky["options_prior"]["CT"]["accuracy"] == pytest.approx((240 * 0.45 + 40) / 280)
    assert leaky["options_prior"]["MRI"]["accuracy"] == pytest.approx(240 * 0.45 / 280)
    assert leaky["constant"]["CT"]["rest"]["accuracy"] == pytest.approx(0.45)
    assert leaky["leaks"] == sound["leaks"] == {"path": 0, "hash": 0, "near": []}


@pytest.mark.slow
def test_the_screen_and_the_file_show_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "audit.json"
    flags = ["--train_size", "280", "--eval-size=280", "--json", str(file)]
    main(["phantom:leaky", *flags])
    lines = capsys.readouterr().out.splitlines()
    figures = json.loads(file.read_text(encoding="utf-8"))
    assert figures == audit("phantom:leaky", Options(train_size=280, eval_size=280))
    cells = {line[:34].strip(): line[34:].split() for line in lines}
    for name, scores in figures["options_prior_from"].items():
        shown = [f"{100 * score['accuracy']:.1f}" for score in scores.values()]
        assert cells[f"by option texts of 280 {name}"] == shown
    assert cells["of them with a constant answer"] == ["40", "40", "40"]
    assert cells["modality"] == ["120", "120", "120"]
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 100


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ([], "no data set; name it first"),
        (["--modality", "MRI"], "no data set"),
        (["nope"], "no data set 'nope'"),
        (
            ["omnimedvqa:/not/here"],
            "no file or folder there; expected the folder that holds Images/",
        ),
        (["phantom:typo"], "no phantom set 'typo'"),
        (["phantom", "--modality", "PET"], "--modality PET: phantom has MRI, CT, XRAY"),
        (["phantom", "--modality", ","], "--modality ,: phantom has MRI, CT, XRAY"),
        (["phantom", "--train-size", "0"], "--train-size 0: must be at least 1"),
        (["phantom", "--tain-size", "1"], "did you mean --train-size"),
        (["phantom", "--json", "/not/here/x.json"], "--json /not/here/x.json: no such folder"),
    ],
)
def test_bad_input_gets_one_line(words: list[str], line: str) -> None:
    with pytest.raises(UsageError) as error:
        main(words)
    assert line in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("words", [["phantom", "--seed", "x"], ["phantom", "--json", "."]])
@pytest.mark.slow
def test_bad_input_exits_with_2_and_without_a_traceback(words: list[str]) -> None:
    flags = ["--train-size", "1", "--eval-size", "1"]
    command = [sys.executable, "-m", "data.audit", *words, *flags]
    done = Program(*command, settings={"OMP_NUM_THREADS": "1"}).finish()
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("python -m data.audit: ")


@pytest.mark.slow
def test_the_withheld_kind_has_the_plain_phantoms_for_training(tmp_path: Path) -> None:
    flags = ["phantom:new-kind", "--train-size", "240", "--eval-size", "200"]
    main([*flags, "--json", str(tmp_path / "a.json")])
    found = json.loads((tmp_path / "a.json").read_text())
    assert found["options_prior"]["MRI"]["n"] == 200
