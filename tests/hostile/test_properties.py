"""Inputs that hypothesis makes up: loaders, parser and extractors hold their promises on all."""

import json
import string
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("hypothesis", reason="makes the inputs up: pip install hypothesis")

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.configuration import set_hypothesis_home_dir

from data.images import ImageFile, UnusableImage
from data.readers.common import split_named
from data.rows import fold, modality_name
from grpo.settings.config import Config
from grpo.settings.errors import UsageError, one_line
from rewards import answers as parse
from rewards import words
from rewards.judges.endpoint import read_verdict
from tests.hostile.every import first_by_default
from tests.hostile.families import FAMILIES, JSON
from tests.hostile.pictures import FORMS
from tests.hostile.test_rows import check, read

# The same examples each time, no database, and no clock: a busy machine fails nothing.
checked = settings(
    max_examples=60,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)

anything = st.text(st.characters(), max_size=30)  # surrogates and controls among them
scalars = st.none() | st.booleans() | st.integers() | st.floats() | anything
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(anything, inner),
    max_leaves=5,
)
TAGGED = [*parse.TAGS, "A", "b.", "(B)", "left", "right", " ", "\n", "x", "</", "<|im_end|>", "\0"]
tagged = st.lists(st.sampled_from(TAGGED) | anything, max_size=12).map("".join)
LETTERS, OPTIONS = ("A", "B"), ("left", "right")


@pytest.fixture(autouse=True, scope="module")
def nothing_left_behind(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Its tables of Unicode are kept with the tests' own files, and go with them."""
    set_hypothesis_home_dir(tmp_path_factory.mktemp("hypothesis"))


@pytest.mark.parametrize("name", first_by_default(JSON))
def test_rows_of_any_values_are_counted_or_used(name: str, tmp_path: Path) -> None:
    family = FAMILIES[name]
    fields = sorted(family.row(0))

    @checked
    @given(st.dictionaries(st.sampled_from(fields) | anything, values, max_size=4))
    def holds(changes: dict[str, Any]) -> None:
        listing = read(
            family.write(tmp_path, [family.row(0), family.row(1) | changes, family.row(2)])
        )
        found = len(listing.examples) + len(listing.skipped)
        check(listing, max(3, found) if name == "silvar-med" else 3)  # it has lists of questions

    holds()


@pytest.mark.parametrize("name", first_by_default([*JSON, "pmc-vqa", "vqa-med-2019"]))
def test_files_of_any_bytes_are_one_line_or_read(name: str, tmp_path: Path) -> None:
    family = FAMILIES[name]
    good = family.dump([family.row(i) for i in range(3)])

    @checked
    @given(st.integers(0, len(good)), st.integers(0, 20), st.binary(max_size=10))
    def holds(at: int, gone: int, put: bytes) -> None:
        spec = family.write_bytes(tmp_path, good[:at] + put + good[at + gone :])
        try:
            listing = read(spec)
        except UsageError as error:
            assert str(error) == one_line(str(error))  # noqa: PT017
        else:
            check(listing, len(listing.examples) + len(listing.skipped))

    holds()


@pytest.mark.parametrize("form", first_by_default(FORMS))
def test_images_of_any_bytes_are_one_line_or_shown(form: str, tmp_path: Path) -> None:
    good, file = FORMS[form], tmp_path / "image"

    @pytest.mark.filterwarnings("ignore")
    @checked
    @given(st.integers(0, len(good)), st.integers(0, 20), st.binary(max_size=10))
    def holds(at: int, gone: int, put: bytes) -> None:
        file.write_bytes(good[:at] + put + good[at + gone :])
        try:
            assert ImageFile(file).open().mode == "RGB"
        except UnusableImage as error:
            assert str(file) in str(error)  # noqa: PT017

    holds()


@checked
@given(tagged)
def test_a_letter_is_read_of_one_closed_block_alone(text: str) -> None:
    letter = parse.answer_letter(text, LETTERS, OPTIONS)
    if letter is not None:
        assert letter in LETTERS
        assert text.count("<answer>") == text.count("</answer>") == 1
        assert parse.answered_right(text, letter, LETTERS, OPTIONS)
    if parse.is_formatted(text, LETTERS):
        assert letter is not None
        assert all(text.count(tag) == 1 for tag in parse.TAGS)
    assert (parse.answer_text(text) or "x").strip()
    assert parse.reasoning(text) in text


@checked
@given(anything, st.sampled_from(LETTERS))
def test_a_sound_completion_is_read_whatever_is_thought(thought: str, letter: str) -> None:
    if not any(tag in thought for tag in parse.TAGS):
        text = f"<think>{thought}</think><answer>{letter}</answer>"
        assert parse.is_formatted(text, LETTERS)
        assert parse.answer_letter(text, LETTERS, OPTIONS) == letter
        assert parse.reasoning(text) == thought.strip()


@checked
@given(tagged, st.sampled_from(string.ascii_uppercase))
def test_medvlm_r1s_own_scoring_is_in_its_range(text: str, gold: str) -> None:
    assert parse.medvlm_r1_reward(text, gold) in (0.0, 0.5, 1.0)
    assert parse.medvlm_r1_format(text) in (0.0, 1.0)
    letter = parse.medvlm_r1_letter(text)
    assert letter is None or letter in string.ascii_uppercase


@checked
@given(anything, st.lists(anything, max_size=3))
def test_words_are_compared_in_a_range_and_alike_both_ways(said: str, known: list[str]) -> None:
    assert 0.0 <= words.token_f1(said, known) <= 1.0
    assert words.normalised(words.normalised(said)) == words.normalised(said) or not said.isascii()
    if words.exact_match(said, known):
        assert words.token_f1(said, known) == 1.0
    assert fold(fold(said)) == fold(said) or not said.isascii()


@checked
@given(anything | values.map(lambda value: json.dumps({"verdict": value})))
def test_a_verdict_is_one_of_the_choices(reply: str) -> None:
    found = read_verdict(reply, ("yes", "no", "3"))
    assert found is None or found.choice in ("yes", "no", "3")


@checked
@given(anything)
def test_a_name_of_a_modality_is_fit_for_a_file(text: str) -> None:
    assert set(modality_name(text)) <= set(string.ascii_uppercase + string.digits + "_")
    assert split_named(text) in ("train", "val", "test", "")


@checked
@given(st.dictionaries(st.sampled_from(sorted(vars(Config()))) | anything, values, max_size=3))
def test_settings_are_taken_or_refused_in_words(
    tmp_path_factory: pytest.TempPathFactory, changes: dict[str, Any]
) -> None:
    file = tmp_path_factory.getbasetemp() / "config.json"
    file.write_text(json.dumps({"config": changes}))
    try:
        Config.load(file)
    except UsageError as error:
        assert one_line(str(error)).isprintable()  # noqa: PT017


@checked
@given(st.text(st.characters()))
def test_a_line_is_one_line(text: str) -> None:
    assert one_line(text).isprintable()
    assert len(one_line(text)) <= 2005
