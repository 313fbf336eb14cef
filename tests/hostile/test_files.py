"""Whole files of questions that are damaged, and image paths that lead where no image should be."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

import data.load
from data.load import LeftOut
from data.splits import in_two_splits, same_content
from grpo.settings.errors import UsageError, one_line
from tests.data.conftest import write_image
from tests.hostile.every import first_by_default, try_every
from tests.hostile.families import FAMILIES, JSON, PARQUET, TEXT

BOM = b"\xef\xbb\xbf"
Spoil = Callable[[bytes], bytes]
# A change of a good file, and whether its three rows are read afterwards (None: some may be).
SPOILT: dict[str, tuple[Spoil, bool | None]] = {
    "no bytes": (lambda _: b"", False),
    "white space": (lambda _: b" \n\n\t\n", False),
    "a byte order mark": (lambda content: BOM + content, True),
    "a byte order mark alone": (lambda _: BOM, False),
    "half of it": (lambda content: content[: len(content) // 2], None),
    "its last byte gone": (lambda content: content[:-1], None),
    "UTF-16": (lambda content: content.decode().encode("utf-16"), False),
    "Latin-1": (lambda content: content.replace(b"?", b"\xe9", 1), None),
    "NULs": (lambda _: bytes(1000), False),
    "HTML": (lambda _: b"<!doctype html><title>404</title>", False),
    "nested without end": (lambda _: b"[" * 200_000, False),
    "objects without end": (lambda _: b'{"a":' * 200_000, False),
    "a number of a million digits": (lambda _: b"[" + b"9" * 10**6 + b"]", False),
    "one line of 5 MB": (lambda _: b'"' + b"x" * 5_000_000 + b'"', False),
    "a pickle": (lambda _: b"\x80\x04c__builtin__\neval\n.", False),
    "git-lfs": (lambda _: b"version https://git-lfs.github.com/spec/v1\n", False),
    "JSON null": (lambda _: b"null", False),
    "JSON of NaN": (lambda _: b"[NaN, Infinity]", False),
    "it twice": (lambda content: content + b"\n" + content, None),
    "carriage returns": (lambda content: content.replace(b"\n", b"\r\n"), True),
}


def refused(spec: str, says: str = "") -> str:
    """Assert that a data set is refused in one line that holds `says`. Returns the line."""
    data.load.read.cache_clear()
    with pytest.raises(UsageError) as error:
        data.load.read(spec)
    text = str(error.value)
    assert says in text
    assert text == one_line(text)
    return text


def questions(spec: str) -> int:
    """The number of questions that are read."""
    data.load.read.cache_clear()
    return len(data.load.read(spec).examples)


@pytest.mark.parametrize("name", first_by_default([*JSON, *TEXT]))
def test_a_damaged_file_is_one_line_or_read_as_far_as_it_is_whole(
    name: str, tmp_path: Path
) -> None:
    family = FAMILIES[name]
    good = family.dump([family.row(i) for i in range(3)])

    def refused_or_read(spoil: str) -> None:
        change, whole = SPOILT[spoil]
        spec = family.write_bytes(tmp_path / spoil, change(good))
        if whole:
            assert questions(spec) == 3
        elif whole is False:
            refused(spec, "has no usable question")
        else:  # every line is read by itself; a JSON list is read whole or not at all
            try:
                assert 1 <= questions(spec) <= 6
            except UsageError:
                refused(spec, "has no usable question")

    try_every(refused_or_read, SPOILT)


@pytest.mark.parametrize("name", first_by_default(PARQUET))
def test_a_part_of_a_parquet_file_is_one_line(name: str, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="parquet files need pyarrow")
    family = FAMILIES[name]
    content = family.dump([family.row(i) for i in range(3)])

    def is_refused(percent: int) -> None:
        part = content[: len(content) * percent // 100]
        refused(family.write_bytes(tmp_path / str(percent), part), "has no usable question")

    try_every(is_refused, [0, 1, 4, 8, 50, 90, 99])


def test_a_parquet_file_of_changed_bytes_is_one_line_or_read(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="parquet files need pyarrow")
    family = FAMILIES["path-vqa"]
    good = family.dump([family.row(i) for i in range(3)])

    def refused_or_read(percent: int) -> None:
        content, place = bytearray(good), len(good) * percent // 100
        content[place : place + 3] = b"\xff\x00\xff"
        folder = tmp_path / str(percent)
        try:
            assert questions(family.write_bytes(folder, bytes(content))) <= 3
        except UsageError:
            refused(f"path-vqa:{folder}")

    try_every(refused_or_read, range(0, 100, 4))


@pytest.mark.parametrize("kind", ["nothing", "a folder", "a pipe", "a dangling link"])
def test_what_is_no_file_of_questions_is_not_waited_on(kind: str, tmp_path: Path) -> None:
    def is_refused(name: str) -> None:
        folder = tmp_path / name
        file = folder / FAMILIES[name].file
        file.parent.mkdir(parents=True, exist_ok=True)
        if kind == "a folder":
            file.mkdir()
        elif kind == "a pipe":
            os.mkfifo(file)
        elif kind == "a dangling link":
            file.symlink_to(tmp_path / "gone")
        refused(FAMILIES[name].spec.format(folder))

    try_every(is_refused, FAMILIES)


def outside(tmp_path: Path) -> Path:
    """The data folder, beside an image that no row should reach."""
    root = tmp_path / "set"
    root.mkdir()
    write_image(tmp_path / "secret.png", 9)
    write_image(root / "scans/0.png", 0)
    return root


PATHS = {
    "up": "../secret.png",
    "up from below": "scans/../../secret.png",
    "up and down again": "../set/scans/../../secret.png",
    "absolute": "{}/secret.png",
    "absolute, doubled": "//{}/secret.png",
    "a URL": "file://{}/secret.png",
    "the network": "http://example.org/secret.png",
    "home": "~/secret.png",
    "the folder": ".",
    "above the folder": "..",
    "a folder": "scans",
    "backslashes": "..\\secret.png",
    "a NUL": "scans/0.png\0.txt",
    "a surrogate": "scans/\ud800.png",
    "of 100,000 letters": "x" * 100_000,
    "of 10,000 folders": "a/" * 10_000,
    "a link to a file": "link.png",
    "a link to a folder": "folder/secret.png",
    "a link to a link": "twice.png",
    "a link to a device": "zero.png",
}


def assert_left_out(name: str, tmp_path: Path) -> None:
    """Assert that a row whose image has that path is left out."""
    root = outside(tmp_path)
    (root / "link.png").symlink_to(tmp_path / "secret.png")
    (root / "folder").symlink_to(tmp_path)
    (root / "twice.png").symlink_to(root / "link.png")
    (root / "zero.png").symlink_to("/dev/zero")
    row = FAMILIES["jsonl"].row(0) | {"split": None}
    rows = [row, row | {"image": PATHS[name].format(tmp_path), "id": "bad"}]
    (root / "own.jsonl").write_text("\n".join(map(json.dumps, rows)))
    spec = f"jsonl:{root}/own.jsonl"
    data.load.read.cache_clear()
    listing = data.load.read(spec)
    if name == "a folder":  # it exists: that it is no image is found when it is drawn
        assert [example.id for example in listing.examples] == ["q0", "bad"]
    else:
        assert [example.id for example in listing.examples] == ["q0"]
    skipped = LeftOut()
    for split in ("train", "val", "test"):
        try:
            asked = data.load.load(spec, "MRI", split=split, size=9, seed=0, skipped=skipped)
        except UsageError as error:
            assert "no usable MRI image" in str(error)  # noqa: PT017
            continue
        assert {example.id for example in asked} <= {"q0"}
    assert {item.row for item in skipped} == {"bad"}


def test_no_path_leads_out_of_the_data_folder(tmp_path: Path) -> None:
    def is_left_out(name: str) -> None:
        folder = tmp_path / name
        folder.mkdir()
        assert_left_out(name, folder)

    try_every(is_left_out, PATHS)


def test_links_inside_the_data_folder_are_followed(tmp_path: Path) -> None:
    root = outside(tmp_path)
    (root / "again").symlink_to(root / "scans")
    (root / "same.png").symlink_to("scans/0.png")
    rows = [FAMILIES["jsonl"].row(i) for i in range(2)]
    rows[0]["image"], rows[1]["image"] = "again/0.png", "same.png"
    (root / "own.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "elsewhere").symlink_to(root)  # and so is a link to the data folder itself
    assert questions(f"jsonl:{tmp_path}/elsewhere/own.jsonl") == 2


def test_pipes_among_the_images_are_not_read_when_copies_are_looked_for(tmp_path: Path) -> None:
    for name in ("a", "b"):
        os.mkfifo(tmp_path / name)
    write_image(tmp_path / "c.png", 1)
    write_image(tmp_path / "d.png", 1)
    found = same_content([str(tmp_path / name) for name in ("a", "b", "c.png", "d.png")])
    assert found == [[str(tmp_path / "c.png"), str(tmp_path / "d.png")]]


def test_a_folder_whose_name_is_no_text_is_read(tmp_path: Path) -> None:
    root = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe"))
    rows = [{k: v for k, v in FAMILIES["jsonl"].row(i).items() if k != "id"} for i in range(3)]
    spec = FAMILIES["jsonl"].write(root, rows)
    os.rename(root / "own.jsonl", root / "\udcff.jsonl")
    spec = f"jsonl:{root}/\udcff.jsonl"
    data.load.read.cache_clear()
    splits = data.load.splits_of(spec, seed=1)
    assert len(splits) == 3
    assert in_two_splits(data.load.read(spec).examples, splits) == []
    assert json.dumps(sorted(splits)).isascii()
    asked = data.load.load(spec, "MRI", split="train", size=3, seed=1)
    assert all(example.id.encode() for example in asked)


SPECS = ["", ":", "jsonl", "jsonl:", "nothing:x", "jsonl:\0", "jsonl:" + "x" * 5000, "../x:y"]
SPECS += ["jsonl:/dev/null", "jsonl:/dev/zero", "slake:/proc/self/mem", "huatuo:\udcff"]
SPECS += ["jsonl:~nosuchuser/x"]


def test_a_name_of_no_data_set_is_one_line() -> None:
    def is_refused(spec: str) -> None:
        data.load.read.cache_clear()
        with pytest.raises((UsageError, OSError)):  # the programs print one line for both
            data.load.read(spec)

    try_every(is_refused, SPECS)
