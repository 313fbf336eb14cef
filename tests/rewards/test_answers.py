"""The extractor, by a table of what models say and what that answers."""

import itertools
import re
import time

import pytest

from rewards.answers import (
    answer_letter,
    answer_text,
    answered_right,
    is_formatted,
    medvlm_r1_format,
    medvlm_r1_letter,
    medvlm_r1_reward,
)

LETTERS = ("A", "B", "C", "D")
OPTIONS = ("Left lung", "Breast tissue", "MRI", "A cyst. Or an abscess.")

# What stands inside the answer block -> the letter it gives, with options and without.
INSIDE = [
    ("B", "B", "B"),
    ("b", "B", "B"),
    (" B ", "B", "B"),
    ("\n\tB\r\n", "B", "B"),
    ("\u00a0B\u00a0", "B", "B"),  # no-break spaces are white space
    ("B.", "B", "B"),
    ("b.", "B", "B"),
    ("B)", "B", "B"),
    ("B).", "B", "B"),
    ("(B)", "B", "B"),
    ("(b)", "B", "B"),
    ("(B).", "B", "B"),
    ("A", "A", "A"),
    ("D", "D", "D"),
    # with the option's text, which has to be that option's
    ("B) Breast tissue", "B", None),
    ("b) breast tissue", "B", None),
    ("B)Breast tissue", "B", None),
    ("B. Breast tissue", "B", None),
    ("B: Breast tissue", "B", None),
    ("(B) Breast  tissue.", "B", None),
    ("B)\nBREAST TISSUE", "B", None),
    ("C) MRI", "C", None),  # I is a letter in MedVLM-R1's counting; not in ours
    ("D) A cyst. Or an abscess.", "D", None),
    ("A) Breast tissue", None, None),
    ("B) Left lung", None, None),
    ("B) Breast", None, None),
    ("B) Breast tissue, because it is bright", None, None),
    ("B) B) Breast tissue", None, None),
    ("E) Breast tissue", None, None),
    # the text alone
    ("Breast tissue", "B", None),
    ("breast tissue.", "B", None),
    (" LEFT\nLUNG ", "A", None),
    ("mri", "C", None),
    ("A cyst. Or an abscess.", "D", None),
    ("a cyst. or an abscess", "D", None),
    ("A cyst", None, None),  # "A" is an article here, and the text is not all of D's
    ("Breast", None, None),
    ("tissue", None, None),
    ("the left lung", None, None),
    ("Left lung Breast tissue", None, None),
    ("Left lung or MRI", None, None),
    # two letters, or none
    ("A or B", None, None),
    ("A or B or C", None, None),
    ("A, B", None, None),
    ("A/B", None, None),
    ("A and B", None, None),
    ("B C", None, None),
    ("AB", None, None),
    ("BB", None, None),
    ("B B", None, None),
    ("(A)(B)", None, None),
    ("A) B)", None, None),
    ("not B", None, None),
    ("B?", None, None),
    ("B..", None, None),
    ("B))", None, None),
    ("(B", None, None),
    ("((B))", None, None),
    ("", None, None),
    ("   ", None, None),
    (".", None, None),
    ("()", None, None),
    ("1", None, None),
    ("2)", None, None),
    # a letter that is not offered, a letter in a sentence, a word that begins with one
    ("E", None, None),
    ("J", None, None),
    ("I", None, None),
    ("Answer: B", None, None),
    ("The answer is B", None, None),
    ("Option B", None, None),
    ("I think a cyst", None, None),
    ("Bad", None, None),
    ("Answer", None, None),
    # markup, and characters that only look like letters
    ("<b>B</b>", None, None),
    ("**B**", None, None),
    ("$B$", None, None),
    ("\\boxed{B}", None, None),
    ("<think>B</think>", None, None),
    ("\u0412", None, None),  # Cyrillic Ve
    ("\u0392", None, None),  # Greek Beta
    ("\uff22", None, None),  # full-width B
    ("\u24b7", None, None),  # circled B
    ("B\u200b", None, None),  # a zero-width space is no white space
    ("B\u0301", None, None),  # B with a combining accent
    ("B<|im_end|>", None, None),
]


@pytest.mark.parametrize(("said", "with_options", "without"), INSIDE)
def test_a_block_gives_the_letter_it_names_beyond_doubt(said, with_options, without):
    text = f"<think>It could be A. I doubt it: C.</think>\n<answer>{said}</answer>"
    assert answer_letter(text, LETTERS, OPTIONS) == with_options
    assert answer_letter(text, LETTERS) == without
    assert is_formatted(text, LETTERS) == (without is not None)
    assert answer_letter(text, "ABCD", list(OPTIONS)) == with_options  # any sequences do
    assert answered_right(text, "B", LETTERS, OPTIONS, ("C",)) == (with_options == "B")
    assert answer_text(text) == (said.strip() or None)
    assert is_formatted(text, ()) == (bool(said.strip()) and "<think>" not in said)  # open


# The whole completion -> its letter, and whether it is in the format.
WHOLE = [
    ("<think>x</think><answer>B</answer>", "B", True),
    ("<think></think><answer>B</answer>", "B", True),
    (" \n<think>\nx\n</think>\n\n<answer>\nB\n</answer>\n ", "B", True),
    ("<think>Is a < b? <i>no</i>, </answer?</think><answer>B</answer>", "B", True),
    ("<answer>B</answer>", "B", False),
    ("x <answer>B</answer> y", "B", False),
    ("<think>x</think> so <answer>B</answer>", "B", False),
    ("<think>x</think><answer>B</answer> C", "B", False),
    ("<think>x</think><answer>B</answer><|im_end|>", "B", False),
    ("x<think>x</think><answer>B</answer>", "B", False),
    ("<think>x<answer>B</answer>", "B", False),
    ("x</think><answer>B</answer>", "B", False),
    ("<think><think>x</think><answer>B</answer>", "B", False),
    ("<think>x</think></think><answer>B</answer>", "B", False),
    ("<think>x</think><think>y</think><answer>B</answer>", "B", False),
    ("<Think>x</Think><answer>B</answer>", "B", False),
    ("\u200b<think>x</think><answer>B</answer>", "B", False),
    ("<think>x</think>B<answer>B</answer>", "B", False),
    ("<answer>B</answer><think>x</think>", None, False),  # opened thinking after answering
    ("<think>x<answer>B</answer></think>", None, False),
    ("<think>maybe <answer>A</answer></think><answer>B</answer>", None, False),
    ("<think>x</think><answer>B</answer><answer>B</answer>", None, False),
    ("<think>x</think><answer>A</answer><answer>B</answer>", None, False),
    ("<think>x</think><answer><answer>B</answer></answer>", None, False),
    ("<think>x</think><answer><answer>B</answer>", None, False),
    ("<think>x</think><answer>B</answer></answer>", None, False),
    ("<think>x</think><answer>B", None, False),
    ("<think>x</think>B</answer>", None, False),
    ("<think>x</think></answer>B<answer>", None, False),
    ("<think>x</think><ANSWER>B</ANSWER>", None, False),
    ("<think>x</think><answer >B</answer>", None, False),
    ("<think>x</think>&lt;answer&gt;B&lt;/answer&gt;", None, False),
    ("<think>x</think><answer/>B", None, False),
    ("<think>x</think>", None, False),
    ("<think>x</think><answer></answer>", None, False),
    ("<answer></answer>", None, False),
    ("<think>The answer is B", None, False),
    ("B", None, False),
    ("", None, False),
]


@pytest.mark.parametrize(("text", "letter", "formatted"), WHOLE)
def test_a_completion_is_read_at_its_one_answer_block(text, letter, formatted):
    assert answer_letter(text, LETTERS, OPTIONS) == letter
    assert is_formatted(text, LETTERS) is is_formatted(text, ()) is formatted
    assert answer_text(text) == letter
    assert answered_right(text, "", (), (), ("b", "")) == (letter == "B")


def test_the_table_is_as_long_as_the_project_asks():
    texts = {f"<answer>{said}</answer>" for said, _, _ in INSIDE} | {text for text, _, _ in WHOLE}
    assert len(texts) >= 60


def test_only_letters_that_were_offered_count():
    assert answer_letter("<answer>C</answer>", "AB") is None
    assert answer_letter("<answer>C</answer>", "ABC") == "C"
    assert not is_formatted("<think>x</think><answer>C</answer>", "AB")


def test_an_option_whose_text_is_a_letter_leaves_a_bare_letter_a_label():
    options = ("B", "A", "T", "T")
    assert answer_letter("<answer>A</answer>", LETTERS, options) == "A"
    assert answer_letter("<answer>A) B</answer>", LETTERS, options) == "A"
    assert answer_letter("<answer>A) A</answer>", LETTERS, options) is None
    assert answer_letter("<answer>D) T</answer>", LETTERS, options) == "D"
    assert answer_letter("<answer>T</answer>", LETTERS, options) is None  # both C and D say so
    assert answer_letter("<answer>T</answer>", "ABC", options[:3]) == "C"


def test_a_text_that_can_be_read_as_two_options_is_refused():
    options = ("B) oedema", "oedema", "Oedema of the lung", "none")
    assert answer_letter("<answer>B) oedema</answer>", LETTERS, options) is None
    assert answer_letter("<answer>oedema</answer>", LETTERS, options) == "B"


@pytest.mark.parametrize("said", [".", " . ", "", "D) ."])
def test_an_empty_option_is_never_named_by_saying_nothing(said):
    options = ("left", "right", "both", "")
    assert answer_letter(f"<answer>{said}</answer>", LETTERS, options) is None
    assert answer_letter("<answer>D</answer>", LETTERS, options) == "D"


def test_every_ordering_of_the_options_gives_the_same_text():
    for options in itertools.permutations(OPTIONS):
        for letter, option in zip(LETTERS, options, strict=True):
            for said in (option, f"{letter}) {option}", f"({letter}) {option.upper()}", letter):
                assert answer_letter(f"<answer>{said}</answer>", LETTERS, options) == letter


def test_options_and_letters_of_different_number_are_an_error_of_the_caller():
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        answer_letter("<answer>cyst</answer>", "ABC", ["cyst", "none"])


HOSTILE = [
    "<answer>" * 12_500,
    "<think>" * 14_000,
    "<think>" + "</think><answer>" * 6_000,
    "<think>" + " " * 100_000 + "</think>" + " " * 100_000 + "<answer",
    "<think></think>" + "\n" * 100_000 + "<answer>" + "\n" * 100_000 + "x</answer>",
    "<think></think><answer>" + "A" * 100_000 + "</answer>",
    "<think></think><answer>" + "(" * 100_000 + "B" + ")" * 100_000 + "</answer>",
    "<think></think><answer>B) " + "a " * 50_000 + "</answer>",
    "<" * 100_000,
    ("</think> " * 5_000) + ("<answer> A" * 5_000),
]


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_a_hostile_text_of_100_000_characters_is_refused_without_backtracking(text):
    before = time.process_time()
    assert answer_letter(text, LETTERS, OPTIONS) is None
    assert not is_formatted(text, LETTERS)
    medvlm_r1_reward(text, "B"), medvlm_r1_letter(text), medvlm_r1_format(text)
    assert time.process_time() - before < 2.0  # takes 0.01 s; one quadratic pattern alone takes 10


def test_a_long_completion_in_the_format_is_read():
    text = "<think>" + "A or B? " * 12_500 + "</think><answer>C</answer>"
    assert is_formatted(text, LETTERS)
    assert answer_letter(text, LETTERS) == "C"


@pytest.mark.parametrize(
    ("said", "reward", "letter"),
    [
        ("<answer>B</answer>", 1.0, "B"),
        ("<answer> B\n</answer>", 1.0, "B"),
        ("<answer>b</answer>", 1.0, None),
        ("<ANSWER>B</ANSWER>", 1.0, None),
        ("<answer>B.</answer>", 0.5, None),
        ("<answer>(B)</answer>", 0.5, None),
        ("<answer>B) Breast tissue</answer>", 0.0, None),  # B, B, E and A are counted
        ("<answer>B) yes</answer>", 0.0, None),  # E
        ("<answer>B) MRI</answer>", 0.0, None),  # I
        ("<answer>B) lung</answer>", 0.0, None),  # G
        ("<answer>B) plot</answer>", 0.5, None),
        ("<answer>B B</answer>", 0.0, None),
        ("<answer>A</answer>", 0.0, "A"),
        ("<answer>K</answer>", 0.0, "K"),
        ("<answer></answer>", 0.0, None),
        ("<answer>B", 0.0, None),
        ("B", 0.0, None),
        ("<answer>A</answer><answer>B</answer>", 0.0, "A"),
        ("<answer>B</answer><answer>A</answer>", 1.0, "B"),
        ("<answer>B.</answer><answer>A</answer>", 0.5, "A"),
        ("<think><answer>B</answer></think><answer>A</answer>", 1.0, "B"),
    ],
)
def test_medvlm_r1_scores_as_its_published_code_does(said, reward, letter):
    assert medvlm_r1_reward(said, "B") == reward
    assert medvlm_r1_letter(said) == letter


def test_medvlm_r1_format_accepts_what_its_published_pattern_accepts():
    pattern = re.compile(r"<think>.*?</think>\s*<answer>.*?</answer>", re.DOTALL)
    pieces = ("<think>", "</think>", "<answer>", "</answer>", " \n", "x")
    accepted = 0
    for length in range(7):
        for chosen in itertools.product(pieces, repeat=length):
            text = "".join(chosen)
            expected = pattern.fullmatch(text) is not None
            assert medvlm_r1_format(text) == float(expected), text
            accepted += expected
    assert accepted > 50
