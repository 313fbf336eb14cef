"""Answers in words: which are the same, and how much two of them share, counted by hand."""

import pytest

from rewards.words import exact_match, normalised, token_f1, words


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("Left Lung", "left lung"),
        ("  left\n\tlung. ", "left lung"),
        ("the left lung", "left lung"),
        ("A cyst and an abscess", "cyst and abscess"),
        ("T2-weighted", "t2 weighted"),
        ("Yes!", "yes"),
        ("two", "2"),
        ("Ten lesions", "10 lesions"),
        ("eleven", "eleven"),
        ("\uff2d\uff32\uff29 \u2168", "mri ix"),  # full-width letters, a Roman numeral of one piece
        ("o\u0308dem", "\u00f6dem"),  # an accent of its own
        ("left\u200f \u200blung\x00", "left lung"),  # invisible characters
        ("\ud800yes", "yes"),  # half a surrogate pair
        ("1.5 cm", "1 5 cm"),
        ("<5 mm", "<5 mm"),
        ("HER2+", "her2+"),
        ("Hepatitis A", "hepatitis a"),
        ("a", "a"),
        ("\u0430 c\u0443st", "\u0430 c\u0443st"),  # Cyrillic look-alikes are other letters
        ("...", ""),
        ("", ""),
    ],
)
def test_the_normal_form_of_a_text(text, same):
    assert normalised(text) == same
    assert normalised(same) == same


@pytest.mark.parametrize(
    ("said", "references", "right"),
    [
        ("The Left lung.", ["left lung"], True),
        ("left lung", ["right lung", "Left  Lung!"], True),
        ("2", ["two"], True),
        ("no", ["No."], True),
        ("left", ["left lung"], False),
        ("left lung and right lung", ["left lung", "right lung"], False),
        ("lung left", ["left lung"], False),
        ("yes no", ["yes"], False),
        ("not yes", ["yes"], False),
        ("<5", [">5"], False),
        ("15", ["1.5"], False),
        ("hepatitis", ["hepatitis A"], False),
        ("", [""], False),
        (".", ["", "-"], False),
        (None, ["left"], False),
        ("left", [], False),
    ],
)
def test_a_right_answer_is_one_of_the_references_and_nothing_beside_it(said, references, right):
    assert exact_match(said, references) is right


@pytest.mark.parametrize(
    ("said", "references", "f1"),
    [
        ("left lung", ["left lung"], 1.0),
        ("The LEFT lung.", ["left lung"], 1.0),
        ("left", ["left lung"], 2 / 3),  # 1 shared of 1 + 2
        ("right lung", ["left lung"], 1 / 2),  # 1 of 2 + 2: what F1 knows of meaning
        ("left lung left lung", ["left lung"], 2 / 3),  # 2 of 4 + 2
        ("left " * 50, ["left lung"], 2 / 52),  # 1 of 50 + 2
        ("left right upper lower lung", ["left lung"], 4 / 7),  # 2 of 5 + 2
        ("left lung", ["heart", "left upper lung"], 4 / 5),  # the best: 2 of 2 + 3
        ("mass mass", ["mass by mass"], 4 / 5),  # 2 of 2 + 3
        ("heart", ["left lung"], 0.0),
        ("", ["left lung"], 0.0),
        ("", [""], 0.0),
        (None, ["left lung"], 0.0),
        ("left", [], 0.0),
    ],
)
def test_token_f1_counts_what_is_shared(said, references, f1):
    assert token_f1(said, references) == pytest.approx(f1)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("a\u0315\u0323" + "\u0315\u0323" * 500_000, 1),  # takes hours if normalised as one piece
        ("left " * 200_000, 200_000),
        ("." * 1_000_000, 0),
        ("\ufdfa" * 100_000, 300_001),  # one character that stands for four words
    ],
    ids=["accents", "words", "dots", "expands"],
)
def test_a_million_characters_are_read_in_passing(text, number):
    assert len(words(text)) == number
    assert 0.0 <= token_f1(text, ["left lung"]) < 0.01
