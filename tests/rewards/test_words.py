"""Answers in words: which are the same, and how much two of them share, counted by hand."""

import pytest

from rewards.words import exact_match, normalised, token_f1, words

NORMAL_FORMS = [
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
]


def test_the_normal_form_of_a_text():
    failed = [(text, normalised(text)) for text, same in NORMAL_FORMS if normalised(text) != same]
    failed += [same for _, same in NORMAL_FORMS if normalised(same) != same]
    assert failed == []


RIGHT = [
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
]


def test_a_right_answer_is_one_of_the_references_and_nothing_beside_it():
    failed = [row for row in RIGHT if exact_match(row[0], row[1]) is not row[2]]
    assert failed == []


SHARED = [
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
]


def test_token_f1_counts_what_is_shared():
    failed = [row for row in SHARED if token_f1(row[0], row[1]) != pytest.approx(row[2])]
    assert failed == []


def misread(size):
    """The kinds of texts of `size` characters that do not have the number of words they should."""
    texts = {
        "accents": ("a" + "\u0315\u0323" * (size // 2), 1),  # hours if normalised as one piece
        "words": ("left " * (size // 5), size // 5),
        "dots": ("." * size, 0),
        "expands": ("\ufdfa" * (size // 10), 3 * (size // 10) + 1),  # a character of four words
    }
    return [
        name
        for name, (text, number) in texts.items()
        if len(words(text)) != number or not 0.0 <= token_f1(text, ["left lung"]) < 0.01
    ]


def test_a_long_text_is_read_in_passing():
    assert misread(20_000) == []


@pytest.mark.exhaustive
def test_a_million_characters_are_read_in_passing():
    assert misread(1_000_000) == []
