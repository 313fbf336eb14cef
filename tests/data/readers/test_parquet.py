import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from data.audit.audit import shared_images
from data.controls.altered import shuffled_images
from data.load import LeftOut, load, read
from data.readers.parquet import ParquetImage
from data.rows import Skipped
from data.splits import copies
from grpo.settings.errors import UsageError

TRAIN = "train-00000-of-00001-eb8844602202be60"
TEST = "test-00000-of-00001-e5bc3d208bb4deeb"


def rad(number: int, question: str = "What is seen?", answer: Any = "a cyst") -> dict[str, Any]:
    return {"image": number, "question": question, "answer": answer}


def write(root: Path, name: str, content: bytes) -> str:
    (root / "data").mkdir(exist_ok=True)
    (root / "data" / f"{name}.parquet").write_bytes(content)
    return f"vqa-rad:{root}"


@pytest.mark.parametrize("form", ["struct", "bytes"])
def test_images_are_read_from_the_row_they_stand_in(
    tmp_path: Path, parquet: Any, form: str
) -> None:
    spec = write(tmp_path, TRAIN, parquet([rad(i) for i in range(7)], form=form, group=3))
    examples = read(spec).examples
    assert [e.images[0].open().getpixel((0, 0)) for e in examples] == [(i, 0, 0) for i in range(7)]
    assert [e.images[0].open().mode for e in reversed(examples)] == ["RGB"] * 7
    assert [e.id for e in examples] == [f"{TRAIN}#{i}" for i in range(7)]
    by_file = read(f"vqa-rad:{tmp_path / 'data' / TRAIN}.parquet").examples
    assert [e.images for e in by_file] == [e.images for e in examples]


def test_a_parquet_row_has_the_split_of_its_file_whatever_its_columns(
    tmp_path: Path, parquet: Any
) -> None:
    """Only the OSF JSON tells a row's split by its phrase type."""
    rows = [rad(i) | {"phrase_type": "freeform"} for i in range(3)]
    name = TRAIN.replace("train", "test")
    spec = write(tmp_path, name, parquet(rows))
    assert set(read(spec).splits.values()) == {"test"}


def test_the_files_may_lie_in_the_folder_itself(tmp_path: Path, parquet: Any) -> None:
    for name in (f"{TRAIN}.parquet", "._train.parquet"):
        (tmp_path / name).write_bytes(parquet([rad(3)]) if name[0] != "." else b"of a Mac")
    for name in ("vqa-rad", "path-vqa"):
        listing = read(f"{name}:{tmp_path}")
        assert (len(listing.examples), listing.skipped) == (1, ())


def test_yes_and_no_are_options_and_all_else_is_wanted_in_words(
    tmp_path: Path, parquet: Any
) -> None:
    answers = ["yes", " No. ", "a cyst", "Yes", "yes, on the left"]
    spec = write(tmp_path, TRAIN, parquet([rad(i, answer=a) for i, a in enumerate(answers)]))
    examples = read(spec).examples
    assert [e.closed for e in examples] == [True, True, False, True, False]
    assert [e.letter for e in examples] == ["A", "B", "", "A", ""]
    assert [e.answer for e in examples] == ["yes", "no", "a cyst", "yes", "yes, on the left"]
    assert examples[2].references == ("a cyst",)
    assert {e.modality for e in examples} == {"OTHER"}
    for name in ("OTHER", "all"):
        assert load(spec, name, split="train", size=9, seed=0)


def test_rows_with_equal_bytes_are_about_one_image_with_a_stable_key(
    tmp_path: Path, parquet: Any
) -> None:
    spec = write(tmp_path, TRAIN, parquet([rad(i % 2) for i in range(6)]))
    write(tmp_path, TEST, parquet([rad(5), rad(1)]))
    images = [e.images[0] for e in read(spec).examples]
    test, train = images[:2], images[2:]
    assert len({image.key for image in train}) == 2
    assert train[0].key.startswith(f"{tmp_path}/data/{TRAIN}.parquet#0-")
    assert copies(images) == [[test[1].key, train[1].key]]
    read.cache_clear()
    assert [e.images[0] for e in read(spec).examples] == images


def test_no_image_of_the_test_is_trained_on_and_what_that_costs_is_counted(
    tmp_path: Path, parquet: Any
) -> None:
    spec = write(tmp_path, TRAIN, parquet([rad(i % 60, f"Q{i}?") for i in range(120)]))
    write(tmp_path, TEST, parquet([rad(i, f"T{i}?") for i in range(0, 80, 4)]))
    skipped = LeftOut()
    drawn = {
        split: load(spec, "ALL", split=split, size=999, seed=1, skipped=skipped)
        for split in ("train", "val", "test")
    }
    reds = {
        split: {e.images[0].open().getpixel((0, 0))[0] for e in examples}
        for split, examples in drawn.items()
    }
    assert reds["test"] == set(range(0, 80, 4))
    assert reds["train"] | reds["val"] == {i for i in range(60) if i % 4}
    assert not reds["train"] & reds["val"]
    assert 0 < len(reds["val"]) < len(reds["train"])
    assert Counter(s.reason for s in skipped) == {"image or patient is also held out": 30}
    assert shared_images([drawn], compare=True)["leaks"] == {"path": 0, "hash": 0, "near": []}
    other = shuffled_images(drawn["train"], seed=0)
    assert all(e.images != o.images for e, o in zip(drawn["train"], other, strict=True))


def test_bad_rows_are_left_out_by_reason_and_bad_images_when_they_are_drawn(
    tmp_path: Path, parquet: Any
) -> None:
    rows = [rad(0), rad(1, "  "), rad(2, answer=""), rad(None), rad(4, answer=None), rad(b"junk")]
    spec = write(tmp_path, TEST, parquet(rows))
    where = f"data/{TEST}.parquet"
    assert read(spec).skipped == tuple(
        Skipped(reason, where, f"{TEST}#{row}")
        for reason, row in (
            ("question is blank", 1), ("answer is blank", 2),
            ("image path is blank", 3), ("answer is blank", 4),
        )
    )  # fmt: skip
    skipped = LeftOut()
    taken = load(spec, "OTHER", split="test", size=9, seed=0, skipped=skipped)
    assert [e.id for e in taken] == [f"{TEST}#0"]
    assert Counter(s.reason for s in skipped)["image cannot be read"] == 1


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1" + b"x" * 400 + b"PAR1"])
def test_a_file_that_is_not_parquet_is_one_line(
    tmp_path: Path, parquet: Any, content: bytes
) -> None:
    with pytest.raises(UsageError, match=r"1 left out \(1 parquet cannot be read"):
        read(write(tmp_path, TRAIN, content))


def test_a_damaged_row_group_costs_its_own_rows_and_each_is_counted(
    tmp_path: Path, parquet: Any
) -> None:
    content = bytearray(parquet([rad(i, f"Question number {i}?") for i in range(40)], group=10))
    place = content.rindex(b"Question number 25?") - 60
    content[place : place + 90] = b"\xff" * 90
    listing = read(write(tmp_path, TRAIN, bytes(content)))
    assert len(listing.examples) == 30
    assert [s.reason.split(" (")[0] for s in listing.skipped] == ["parquet cannot be read"] * 10
    assert [s.row for s in listing.skipped] == [str(i) for i in range(20, 30)]


def test_an_image_whose_file_has_changed_is_refused_by_name(tmp_path: Path, parquet: Any) -> None:
    (tmp_path / "a.parquet").write_bytes(parquet([rad(1)]))
    with pytest.raises(UsageError, match=r"image in row 0 of .*a\.parquet .*has changed"):
        ParquetImage(tmp_path / "a.parquet", 0, (0, 0), "0" * 64).open()


def test_without_pyarrow_one_line_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    spec = write(tmp_path, TRAIN, b"never opened")
    for name in (spec, spec.replace("vqa-rad", "path-vqa")):
        with pytest.raises(UsageError) as error:
            read(name)
        path = tmp_path / "data" / f"{TRAIN}.parquet"
        line = f"{path} needs pyarrow, which is not installed: pip install pyarrow"
        assert str(error.value) == line


def test_an_image_beside_the_file_is_read_by_its_path(tmp_path: Path) -> None:
    """`datasets` writes {"bytes": None, "path": ...} where images are not embedded."""
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    Image.new("RGB", (32, 32), (9, 0, 0)).save(tmp_path / "a.png")
    row = rad(0) | {"image": {"bytes": None, "path": "a.png"}}
    parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / f"{TRAIN}.parquet")
    (example,) = read(f"path-vqa:{tmp_path}").examples
    assert example.images[0].open().getpixel((0, 0)) == (9, 0, 0)
