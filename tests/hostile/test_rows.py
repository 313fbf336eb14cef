"""One bad row among good ones, in every form of data set: it is counted or used."""

import math
from pathlib import Path
from typing import Any

import pytest

import data.load
from data.rows import Listing
from grpo.settings.config import key_word
from grpo.settings.errors import UsageError, one_line
from tests.hostile.every import first_by_default, try_every
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
STRINGS = [name for name, value in VALUES.items() if isinstance(value, str) and value.isascii()]
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
    """Assert that every row is an example or counted, and that every example can be used."""
    assert len(listing.examples) + len(listing.skipped) == rows
    assert all(len(item.reason) <= 150 and item.reason.isprintable() for item in listing.skipped)
    assert len({example.id for example in listing.examples}) == len(listing.examples)
    for example in listing.examples:
        assert example.question == " ".join(example.question.split()) != ""
        assert not example.options or 2 <= len(example.options) <= 26
        assert len(set(example.options)) == len(example.options)
        assert 0 <= example.gold < len(example.options or example.references)
        assert len(example.modality) <= 60
        assert key_word(example.id) >= 0  # the key of a draw
        example.prompt.encode()
        example.completion("so").encode()
        for image in example.images:
            assert image.open().mode == "RGB"


def values_of(family: str) -> list[str]:
    """The names of the values that a field of that family can hold."""
    return list(VALUES) if family in JSON else STRINGS


CASES = [(name, field) for name in (*JSON, *TEXT) for field in FAMILIES[name].row(0)]
CASES += [(name, field) for name in PARQUET for field in ("question", "answer")]
CASES.sort(key=lambda case: case != ("jsonl", "question"))  # the one of the default run


@pytest.mark.parametrize(("name", "field"), first_by_default(CASES))
def test_a_row_with_a_bad_field_is_counted_or_used(name: str, field: str, tmp_path: Path) -> None:
    family = FAMILIES[name]
    if name in PARQUET:
        pytest.importorskip("pyarrow", reason="parquet files need pyarrow")

    def counted_or_used(value: str) -> None:
        rows = [family.row(i) for i in range(3)]
        rows[1][field] = nested(900) if value == "nested deep" else VALUES[value]
        spec = family.write(tmp_path / value, rows)
        listing = read(spec)
        ids = {example.question[-2:] for example in listing.examples}
        if name not in TEXT:  # in those, a cell may hold what separates rows
            check(listing, 3)
            assert len(ids & {"0?", "2?"} or listing.examples) >= 2
        groups = data.load.splits_of(spec, seed=0)
        assert set(groups) == {example.id for example in listing.examples}

    try_every(counted_or_used, values_of(name))


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


@pytest.mark.parametrize("name", first_by_default(JSON))
def test_a_row_of_another_form_is_counted(name: str, tmp_path: Path) -> None:
    family = FAMILIES[name]

    def counted(row: str) -> None:
        odd = family.row(0) if ROWS[row] is ... else ROWS[row]
        listing = read(family.write(tmp_path / row, [family.row(0), odd, family.row(2)]))
        check(listing, 3)
        assert len(listing.examples) == 2 + (row == "itself twice")

    try_every(counted, ROWS)


@pytest.mark.parametrize("name", ["jsonl", "huatuo"])
def test_two_to_26_options_are_letters_and_no_other_number(name: str, tmp_path: Path) -> None:
    family = FAMILIES[name]

    def lettered_or_counted(number: int) -> None:
        options = [f"option {i}" for i in range(number)]
        last = {"options": options, "answer": (options or ["x"])[-1]}
        rows = [family.row(0), family.row(1) | last]
        rows[1].pop("solution", None)
        listing = read(family.write(tmp_path / str(number), rows))
        check(listing, 2)
        assert (len(listing.examples) == 2) == (2 <= number <= 26)
        if number == 26:
            assert listing.examples[1].letter == "Z"

    try_every(lettered_or_counted, [0, 1, 2, 26, 27, 1000])


OPTIONS: dict[str, Any] = {
    "equal": ["left", "left"],
    "equal but for case": ["left", "LEFT."],
    "equal but for space": ["left lung", "left  lung"],
    "all blank": ["", " "],
    "one left of three": ["right", "", None],
    "an object": {"1": "left", "2": "right"},
    "a text": "left;right",
    "lists": [["left"], ["right"]],
    "gold out of range": ["left"],
    "none of them right": ["up", "down"],
}


@pytest.mark.parametrize("answer", ["right", "Z"])
def test_options_that_cannot_be_lettered_are_counted(answer: str, tmp_path: Path) -> None:
    def counted(name: str) -> None:
        rows = [FAMILIES["jsonl"].row(0), FAMILIES["jsonl"].row(1)]
        rows[1] |= {"options": OPTIONS[name], "answer": answer}
        listing = read(FAMILIES["jsonl"].write(tmp_path / name, rows))
        check(listing, 2)
        assert [example.id for example in listing.examples] == ["q0"]

    try_every(counted, OPTIONS)


LETTERS = ["Z", "C", "\uff22", "\u0412", "ﬆ", "ß", "2", "-1", "AB", "B C", "(", "\u0130", "\u2170"]


def test_what_only_looks_like_a_letter_is_none(tmp_path: Path) -> None:
    def refused(answer: str) -> None:
        row = FAMILIES["jsonl"].row(0)
        row |= {"options": ["left", "right"], "answer": answer}
        folder = tmp_path / str(LETTERS.index(answer))
        with pytest.raises(UsageError, match="answer is none of the options"):
            read(FAMILIES["jsonl"].write(folder, [row]))

    try_every(refused, LETTERS)


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
