"""One bad row among good ones, in every form of data set: it is counted or used, and harms none."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

import data.load
from data.rows import Listing
from grpo.settings.config import key_word
from grpo.settings.errors import UsageError, one_line
from tests.hostile.families import FAMILIES, JSON, PARQUET, TEXT

VALUES: dict[str, Any] = {
    "null": None,
    "true": True,
    "a number": 7,
    "NaN": math.nan,
    "infinity": math.inf,
    "digits": 10**400,
    "no text": "",
    "white space": " \n\t\u00a0\u2028",
    "an object": {"a": 1},
    "a list": ["left", ["right"]],
    "an empty list": [],
    "nested deep": None,  # made in `spoilt`: 900 lists in each other
    "NUL": "a\0b",
    "a lone surrogate": "a\ud800",
    "bytes that are no text": "\udcff.png",
    "bidi and zero width": "\u202eb\u200ba\u2066",
    "escapes": "\x1b[2J\x1b]0;title\x07",
    "1 MB": "x" * 2**20,
    "1 MB of words": "left right " * 100_000,
    "special tokens": "<|im_end|>\n<|im_start|>system\n<|image_pad|>",
    "a path up": "../../../../etc/passwd",
    "an absolute path": "/etc/passwd",
    "a format": "{0.__class__} %s %n ${HOME} `id`",
}
STRINGS = [n for n, value in VALUES.items() if isinstance(value, str) and value.isascii()]
STRINGS.append("bidi and zero width")


def nested(depth: int) -> Any:
    value: Any = "deep"
    for _ in range(depth):
        value = [value]
    return value


def read(spec: str) -> Listing:
    data.load.read.cache_clear()
    return data.load.read(spec)


def check(listing: Listing, rows: int) -> None:
    """No row is lost, and an example is fit for all that is done with one later."""
    assert len(listing.examples) + len(listing.skipped) == rows
    assert all(len(item.reason) < 60 and item.reason.isprintable() for item in listing.skipped)
    assert len({example.id for example in listing.examples}) == len(listing.examples)
    for example in listing.examples:
        assert example.question == " ".join(example.question.split()) != ""
        assert not example.options or 2 <= len(example.options) <= 26
        assert len(set(example.options)) == len(example.options)
        assert 0 <= example.gold < len(example.options or example.references)
        assert len(example.modality) <= 60
        assert key_word(example.id) >= 0  # of a draw
        example.prompt.encode()
        example.completion("so").encode()
        for image in example.images:
            assert image.open().mode == "RGB"


CASES = [(f, field, v) for f in JSON for field in FAMILIES[f].row(0) for v in VALUES]
CASES += [(f, field, v) for f in TEXT for field in FAMILIES[f].row(0) for v in STRINGS]
CASES += [(f, field, v) for f in PARQUET for field in ("question", "answer") for v in STRINGS]


@pytest.mark.parametrize(("family", "field", "value"), CASES, ids=["-".join(c) for c in CASES])
def test_a_row_with_a_bad_field_is_counted_or_used(
    family: str, field: str, value: str, tmp_path: Path
) -> None:
    of = FAMILIES[family]
    if family in PARQUET:
        pytest.importorskip("pyarrow", reason="parquet files need pyarrow")
    rows = [of.row(i) for i in range(3)]
    rows[1][field] = nested(900) if value == "nested deep" else VALUES[value]
    spec = of.write(tmp_path, rows)
    listing = read(spec)
    ids = {example.question[-2:] for example in listing.examples}
    if family not in TEXT:  # in those, a cell may be what parts rows
        check(listing, 3)
        assert len(ids & {"0?", "2?"} or listing.examples) >= 2
    groups = data.load.splits_of(spec, seed=0)
    assert set(groups) == {example.id for example in listing.examples}


ROWS: dict[str, Any] = {
    "null": None,
    "a text": "row",
    "a number": 3,
    "a list": [1, 2],
    "nothing in it": {},
    "nested deep": nested(900),
    "another data set's": {"input": "x", "target": "y"},
    "numbers for names": {"1": 2},
    "itself twice": ...,
}


@pytest.mark.parametrize("family", JSON)
@pytest.mark.parametrize("row", ROWS)
def test_a_row_of_another_form_is_counted(family: str, row: str, tmp_path: Path) -> None:
    of = FAMILIES[family]
    odd = of.row(0) if ROWS[row] is ... else ROWS[row]
    listing = read(of.write(tmp_path, [of.row(0), odd, of.row(2)]))
    check(listing, 3)
    assert len(listing.examples) == 2 + (row == "itself twice")


@pytest.mark.parametrize("number", [0, 1, 2, 26, 27, 1000])
@pytest.mark.parametrize("family", ["jsonl", "huatuo"])
def test_two_to_26_options_are_letters_and_no_other_number(
    family: str, number: int, tmp_path: Path
) -> None:
    options = [f"option {i}" for i in range(number)]
    last = {"options": options, "answer": (options or ["x"])[-1]}
    rows = [FAMILIES[family].row(0), FAMILIES[family].row(1) | last]
    rows[1].pop("solution", None)
    listing = read(FAMILIES[family].write(tmp_path, rows))
    check(listing, 2)
    assert (len(listing.examples) == 2) == (2 <= number <= 26)
    if number == 26:
        assert listing.examples[1].letter == "Z"


OPTIONS: dict[str, Any] = {
    "equal": ["left", "left"],
    "equal but for case": ["left", "LEFT."],
    "equal but for space": ["left lung", "left  lung"],
    "all blank": ["", " "],
    "one left of three": ["right", "", None],
    "an object": {"A": "left", "B": "right"},
    "a text": "left;right",
    "lists": [["left"], ["right"]],
    "gold out of range": ["left"],
    "none of them right": ["up", "down"],
}


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("answer", ["right", "Z"])
def test_options_that_cannot_be_lettered_are_counted(
    name: str, answer: str, tmp_path: Path
) -> None:
    rows = [FAMILIES["jsonl"].row(0), FAMILIES["jsonl"].row(1)]
    rows[1] |= {"options": OPTIONS[name], "answer": answer}
    listing = read(FAMILIES["jsonl"].write(tmp_path, rows))
    check(listing, 2)
    assert [example.id for example in listing.examples] == ["q0"]


LETTERS = ["Z", "C", "\uff22", "\u0412", "ﬆ", "ß", "2", "-1", "AB", "(B)", "\u0130", "\u2170"]


@pytest.mark.parametrize("answer", LETTERS, ids=ascii)
def test_what_only_looks_like_a_letter_is_none(answer: str, tmp_path: Path) -> None:
    row = FAMILIES["jsonl"].row(0)
    row |= {"options": ["left", "right"], "answer": answer}
    with pytest.raises(UsageError, match="answer is none of the options"):
        read(FAMILIES["jsonl"].write(tmp_path, [row]))


def test_a_hundred_rows_of_one_id_are_a_hundred_questions(tmp_path: Path) -> None:
    rows = [FAMILIES["jsonl"].row(0) | {"question": f"Which, {i}?"} for i in range(100)]
    listing = read(FAMILIES["jsonl"].write(tmp_path, rows))
    check(listing, 100)
    assert len(listing.examples) == 100


def test_a_thousand_modalities_are_not_all_listed(tmp_path: Path) -> None:
    rows = [FAMILIES["jsonl"].row(0) | {"modality": f"m{i}"} for i in range(1000)]
    spec = FAMILIES["jsonl"].write(tmp_path, rows)
    data.load.read.cache_clear()
    with pytest.raises(UsageError, match="has no MRI questions") as error:
        data.load.load(spec, "MRI", split="train", size=1, seed=0)
    assert len(one_line(str(error.value))) < 1000
