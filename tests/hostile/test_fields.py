"""Rows that are not what the reader thinks: other names, missing fields, labels, lost lines."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest

import data.load
from data.example import columns
from data.rows import Listing
from grpo.settings.errors import UsageError
from tests.data.conftest import write_image
from tests.data.sets import pmc_row
from tests.hostile.every import try_every

GOOD = {"image": "0.png", "question": "Which side?", "options": ["left", "right"], "answer": "B"}
LACKS_IMAGE, LACKS_OPTIONS = "no image (write [] for none)", "no options (write answer_type"


def read(folder: Path, *rows: Any) -> Listing:
    """The jsonl file of these rows, or of a text; the images 0.png and 1.png lie beside it."""
    text = rows[0] if isinstance(rows[0], str) else "\n".join(map(json.dumps, rows))
    folder.mkdir(exist_ok=True)
    (folder / "own.jsonl").write_text(text, encoding="utf-8")
    for number in range(2):
        write_image(folder / f"{number}.png", number)
    data.load.read.cache_clear()
    return data.load.read(f"jsonl:{folder}/own.jsonl")


def renamed(old: str, new: str, value: Any = None) -> dict[str, Any]:
    """A good row with a field under another name, and with another value if one is given."""
    row = {key: GOOD[key] for key in GOOD if key != old}
    return row | {new: GOOD[old] if value is None else value}


def test_a_field_is_read_under_its_other_names(tmp_path: Path) -> None:
    def is_read(row: dict[str, Any]) -> None:
        (example,) = read(tmp_path, row).examples
        assert [image.key for image in example.images] == [str(tmp_path / "0.png")]
        assert (example.options, example.answer) == (("left", "right"), "right")

    images = ("images", "image_path", "image_paths", "img", "img_path", "img_name", "Image")
    rows = [renamed("image", name) for name in images]
    rows += [renamed("image", "images", ["0.png"]), {"image": None} | renamed("image", "images")]
    rows += [renamed("options", name) for name in ("choices", "candidates", "Options")]
    rows += [renamed("options", "options", {"A": "left", "B": "right"})]
    lettered = {key: value for key, value in GOOD.items() if key != "options"}
    rows += [
        lettered | {f"option_{x}": side for x, side in zip("AB", GOOD["options"], strict=True)}
    ]
    rows += [lettered | {"A": "left", "B": "right", "C": None, "x": "a column"}]
    rows += [renamed("answer", name) for name in ("gt_answer", "ground_truth", "Answer")]
    rows += [renamed("question", name) for name in ("query", "problem", "Question")]
    try_every(is_read, rows)


def test_the_own_name_of_a_field_comes_before_another(tmp_path: Path) -> None:
    (example,) = read(tmp_path, {"images": ["1.png"], **GOOD}).examples
    assert [image.key for image in example.images] == [str(tmp_path / "0.png")]
    assert example.extra == {"images": ["1.png"]}


def left_out(folder: Path, *rows: Any) -> list[str]:
    """Why rows are left out that follow a good one, which is kept."""
    listing = read(folder, GOOD, *rows)
    assert [example.id for example in listing.examples][:1] == ["own#1"]
    assert len(listing.examples) + len(listing.skipped) == 1 + len(rows)
    return [item.reason for item in listing.skipped]


def test_a_row_without_the_image_that_others_have_is_counted_with_its_keys(tmp_path: Path) -> None:
    (reason,) = left_out(tmp_path, renamed("image", "scan"))
    assert reason == f"{LACKS_IMAGE}; keys: question, options, answer, scan"


@pytest.mark.exhaustive
def test_rows_that_lack_what_others_have_are_counted(tmp_path: Path) -> None:
    without = {key: GOOD[key] for key in ("question", "options", "answer")}
    bare = {key: GOOD[key] for key in ("image", "question")}

    def is_counted(case: tuple[dict[str, Any], str]) -> None:
        row, reason = case
        (found,) = left_out(tmp_path, row) or [""]
        assert found.startswith(reason)
        assert bool(found) == bool(reason)

    cases = [(without, LACKS_IMAGE), (without | {"image": None}, LACKS_IMAGE)]
    cases += [(without | {"image": []}, ""), (without | {"image": ""}, "image path is blank")]
    cases += [(bare | {"answer": "left"}, LACKS_OPTIONS), (bare | {"answer": "B"}, LACKS_OPTIONS)]
    cases += [(bare | {"answer": "B", "opts": ["left", "right"]}, LACKS_OPTIONS)]
    cases += [(bare | {"answer": "yes"}, ""), (bare | {"answer": ["a cyst"]}, "")]
    cases += [(bare | {"answer": "a cyst", "answer_type": "OPEN"}, "")]
    try_every(is_counted, cases)


@pytest.mark.exhaustive
def test_an_image_under_a_name_that_is_not_read_is_never_asked_without_it(tmp_path: Path) -> None:
    def is_refused(value: Any) -> None:
        with pytest.raises(UsageError, match=r"no image .* keys: question, options, answer, scan"):
            read(tmp_path, renamed("image", "scan", value))

    try_every(is_refused, ["0.png", ["0.png"], "a/b.DCM", "v.nii.gz", "data:image/png;base64,AA=="])


def test_other_keys_are_said_once_and_are_columns(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    listing = read(tmp_path, GOOD | {"weight": 2, "answer_text": "right"}, GOOD)
    assert not listing.skipped
    said = "own.jsonl: keys that are no field, columns for reward functions: answer_text, weight\n"
    assert capsys.readouterr().err.endswith(said)
    found = columns(listing.examples)
    assert (found["weight"], found["answer"]) == ([2, None], ["B", "B"])


def test_a_letter_that_is_also_another_options_text_is_not_guessed(tmp_path: Path) -> None:
    blood = ["O", "A", "B", "AB"]

    def is_read(case: tuple[list[str], str, str]) -> None:
        options, answer, right = case
        listing = read(tmp_path, GOOD, renamed("options", "options", options) | {"answer": answer})
        found = [example.answer for example in listing.examples[1:]]
        assert found == ([right] if right else [])
        assert [s.reason for s in listing.skipped] == ["letter and answer disagree"] * (not right)

    cases = [(blood, "B", ""), (blood, "a", ""), (blood, "AB", "AB"), (blood, "O", "O")]
    cases += [(["A", "B"], "B", "B"), (["B. x", "A. y"], "A", ""), (["A. x", "B. y"], "B", "B. y")]
    cases += [(["A. x", "B. y"], "B. y", "B. y")]
    sides = ["left", "right"]
    labels = ("B", "b", "B)", "(B)", "B.", "B:", "option B", "Option b", "choice (B)", "B) right")
    cases += [(sides, label, "right") for label in (*labels, "B. Right.", "answer: B")]
    try_every(is_read, cases)


def pmc(folder: Path, lines: str, name: str = "test_2.csv") -> Listing:
    """PMC-VQA with a file of these lines."""
    (folder / name).write_text(lines, encoding="utf-8")
    for number in range(1, 6):
        write_image(folder / "figures" / f"PMC{number}_F1.jpg", number)
    data.load.read.cache_clear()
    return data.load.read(f"pmc-vqa:{folder}")


def written(*rows: dict[str, Any]) -> str:
    file = io.StringIO()
    writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def test_the_answer_of_pmc_vqa_version_two_is_a_letter(tmp_path: Path) -> None:
    def row(number: int, answer: str, *choices: str) -> dict[str, Any]:
        names = [f"Choice {letter}" for letter in "ABCD"]
        kept = {key: pmc_row(number)[key] for key in ("Figure_path", "Question")}
        return kept | dict(zip(names, choices, strict=True)) | {"Answer": answer}

    rows = row(1, "A", "B", "A", "C", "D"), row(2, "D", "D", "C", "B12", "K")
    listing = pmc(tmp_path, written(*rows, row(3, "B", "A: a", "B: mass", "C: c", "D: d")))
    assert [example.answer for example in listing.examples] == ["B", "K", "mass"]


def test_a_stray_quotation_mark_costs_its_own_line(tmp_path: Path) -> None:
    rows = [pmc_row(i) | {"Caption": f"cut {i}"} for i in range(1, 6)]

    def costs_one(case: tuple[str, tuple[str, str]]) -> None:
        choice, change = case
        lines = written(*(row | {"Choice C": choice} for row in rows)).splitlines()
        text = "\n".join([*lines[:2], lines[2].replace(*change), *lines[3:]])
        listing = pmc(tmp_path, text)
        asked = [example.question[-2] for example in listing.examples]
        assert asked == [*"1345"]
        assert [item.row[-1] for item in listing.skipped] == ["3"]

    changes = [("cut 2", '"cut 2'), ("What is", '"What is'), ("PMC2", '"PMC2'), (",B,", ',"B,')]
    changes += [("cut 2", "x" * 140_000)]  # longer than a cell may be
    try_every(costs_one, [(choice, change) for choice in ("in, out", "none") for change in changes])


def test_a_byte_that_is_not_utf_8_costs_its_own_line(tmp_path: Path) -> None:
    read(tmp_path, GOOD)
    good = json.dumps(GOOD).encode()
    (tmp_path / "own.jsonl").write_bytes(b"\n".join([good, good.replace(b"?", b"\xe9"), good]))
    data.load.read.cache_clear()
    listing = data.load.read(f"jsonl:{tmp_path}/own.jsonl")
    assert [example.id for example in listing.examples] == ["own#1", "own#3"]
    assert [(s.reason, s.row) for s in listing.skipped] == [("line is not UTF-8", "2")]

    file = tmp_path / "test_2.csv"
    pmc(tmp_path, written(*(pmc_row(i) | {"Caption": f"cut {i}"} for i in range(1, 6))))
    file.write_bytes(file.read_bytes().replace(b"cut 2", b"cut \xb5m"))
    data.load.read.cache_clear()
    listing = data.load.read(f"pmc-vqa:{tmp_path}")
    assert len(listing.examples) == 4
    assert [(s.reason, s.row) for s in listing.skipped] == [("line is not UTF-8", "3")]


@pytest.mark.exhaustive
def test_two_stray_marks_cost_their_lines_and_a_cell_of_two_lines_is_whole(tmp_path: Path) -> None:
    rows = [pmc_row(i) | {"Caption": f"cut {i}"} for i in range(1, 6)]
    lines = written(*rows).splitlines()
    lines[1], lines[4] = lines[1].replace("cut", '"cut'), lines[4].replace("cut", 'cut"')
    listing = pmc(tmp_path, "\n".join(lines))
    assert [example.question[-2] for example in listing.examples] == [*"2345"]
    rows[0]["Question"] = "Two\nlines, 1?"
    rows[1]["Caption"] = 'a "cut",\nof two, three, four, five, six, seven, eight, nine lines'
    assert len(pmc(tmp_path, written(*rows)).examples) == 5


@pytest.mark.parametrize("indent", [2, pytest.param(None, marks=pytest.mark.exhaustive)])
def test_a_json_list_given_as_jsonl_is_read(tmp_path: Path, indent: int | None) -> None:
    listing = read(tmp_path, json.dumps([GOOD, GOOD | {"answer": "Z"}], indent=indent))
    assert [example.answer for example in listing.examples] == ["right"]
    assert [item.reason for item in listing.skipped] == ["answer is none of the options"]


def test_two_bad_rows_of_one_id_are_two(tmp_path: Path) -> None:
    bad = GOOD | {"id": "q", "answer": "Z"}
    assert len({*read(tmp_path, GOOD, bad, bad, bad).skipped}) == 3
