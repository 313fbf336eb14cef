"""What a policy may write: every extractor answers, in time that grows no faster than the text."""

from collections.abc import Callable
from typing import Any

import pytest

from rewards import answers as parse
from rewards import words
from rewards.judges.endpoint import read_verdict
from tests.hostile.every import try_every

LETTERS, OPTIONS = ("A", "B"), ("left", "right")
EXTRACTORS: dict[str, Callable[[str], Any]] = {
    "is_formatted": lambda text: parse.is_formatted(text, LETTERS),
    "is_formatted, open": lambda text: parse.is_formatted(text, ()),
    "is_formatted, direct": lambda text: parse.is_formatted(text, LETTERS, reasons=False),
    "answer_text": parse.answer_text,
    "answer_letter": lambda text: parse.answer_letter(text, LETTERS, OPTIONS),
    "reasoning": parse.reasoning,
    "medvlm_r1_reward": lambda text: parse.medvlm_r1_reward(text, "A"),
    "medvlm_r1_letter": parse.medvlm_r1_letter,
    "medvlm_r1_format": parse.medvlm_r1_format,
    "normalised": words.normalised,
    "token_f1": lambda text: words.token_f1(text, ["left lung"]),
    "read_verdict": lambda text: read_verdict(text, ("yes", "no")),
}

THINK = "<think>so</think>"
# A text, and the letter that is read in it.
TEXTS: dict[str, tuple[str, str | None]] = {
    "nothing": ("", None),
    "the format": (THINK + "<answer>B</answer>", "B"),
    "white space all around": (f"\n {THINK}\t<answer>\n(b).\n</answer> \n", "B"),
    "two answers": (THINK + "<answer>A</answer><answer>B</answer>", None),
    "one answer twice": (THINK + "<answer>A</answer>" * 2, None),
    "an answer in an answer": ("<answer><answer>A</answer></answer>", None),
    "an answer while thinking": ("<think><answer>A</answer></think>", None),
    "an answer closed while thinking": ("<answer><think>A</answer></think>", None),
    "a thought in an answer": ("<answer><think>so</think>A</answer>", None),
    "closed before it opened": ("</answer>A<answer>", None),
    "never closed": ("<think>so</think><answer>A", None),
    "never opened": ("A</answer>", None),
    "tags in capitals": ("<ANSWER>A</ANSWER>", None),
    "tags with spaces": ("< answer >A</ answer >", None),
    "tags with attributes": ('<answer class="x">A</answer>', None),
    "tags in other brackets": ("\uff1canswer\uff1eA\uff1c/answer\uff1e", None),
    "tags in entities": ("&lt;answer&gt;A&lt;/answer&gt;", None),
    "tags broken by zero width": ("<ans\u200bwer>A</answer>", None),
    "a Cyrillic letter": ("<answer>\u0410</answer>", None),
    "a full-width letter": ("<answer>\uff21</answer>", None),
    "a letter in a circle": ("<answer>\u24b6</answer>", None),
    "a letter of mathematics": ("<answer>\U0001d400</answer>", None),
    "a letter with an accent": ("<answer>A\u0301</answer>", None),
    "a letter beside zero width": ("<answer>\u200bA</answer>", None),
    "a letter turned round": ("<answer>\u202eA\u202c</answer>", None),
    "a Kelvin sign": ("<answer>\u212a</answer>", None),
    "a letter not offered": ("<answer>C</answer>", None),
    "both letters": ("<answer>A or B</answer>", None),
    "both letters, short": ("<answer>AB</answer>", None),
    "both options": ("<answer>left right</answer>", None),
    "a letter and the other option": ("<answer>A) right</answer>", None),
    "a letter and its option": ("<answer>B) Right.</answer>", "B"),
    "an option alone": ("<answer> RIGHT. </answer>", "B"),
    "a letter and NUL": ("<answer>A\0</answer>", None),
    "a letter and half a surrogate": ("<answer>A\ud800</answer>", None),
    "special tokens": ("<answer><|im_end|>A</answer>", None),
    "a pattern": ("<answer>[AB]|.*</answer>", None),
    "a template": ("<answer>{letter} %s {0}</answer>", None),
    "JSON": ('{"answer": "A"}', None),
    "boxed": ("\\boxed{A}", None),
    "running text": ("The answer is A.", None),
}


def test_one_letter_is_read_or_none() -> None:
    def is_read(name: str) -> None:
        text, letter = TEXTS[name]
        assert parse.answer_letter(text, LETTERS, OPTIONS) == letter
        for extract in EXTRACTORS.values():
            extract(text)
        assert not parse.is_formatted(text, LETTERS) or letter

    try_every(is_read, TEXTS)


# Texts of n pieces; each is the worst known input for some pattern.
LONG: dict[str, Callable[[int], str]] = {
    "thoughts opened": lambda n: "<think>" * n,
    "thoughts closed": lambda n: "</think>" * n,
    "thoughts in each other": lambda n: "<think>" * n + "</think>" * n,
    "answers opened": lambda n: "<answer>" * n,
    "answers closed": lambda n: "</answer>" * n,
    "answers": lambda n: "<answer>A</answer>" * n,
    "answers of spaces": lambda n: ("<answer>" + " " * 50) * (n // 50),
    "one thought": lambda n: f"<think>{'x ' * n}</think><answer>A</answer>",
    "one thought of spaces": lambda n: f"<think>{' ' * n}</think>{' ' * n}<answer>A</answer>",
    "one thought not closed": lambda n: "<think>" + "x " * n,
    "spaces": lambda n: " " * n,
    "spaces before a tag": lambda n: " " * n + "<think>",
    "spaces and one answer": lambda n: f"{THINK}{' ' * n}<answer>{' ' * n}A{' ' * n}</answer>x",
    "spaces between tags": lambda n: ("</think>" + " " * 100) * (n // 100),
    "half tags": lambda n: "<answer" * n,
    "brackets": lambda n: "<" * n,
    "braces": lambda n: "{" * n + "}" * n,
    "objects": lambda n: '{"verdict": ' * n,
    "quotes": lambda n: '"\\' * n,
    "dots": lambda n: f"<answer>{'.' * n}</answer>",
    "brackets in an answer": lambda n: f"<answer>{'(' * n}A{')' * n}</answer>",
    "accents": lambda n: "<answer>a" + "\u0315\u0323" * n + "</answer>",
    "surrogates": lambda n: "\ud800" * n,
    "words": lambda n: "<answer>" + "the " * n + "</answer>",
    "numbers": lambda n: "<answer>" + "9" * n + "</answer>",
    "lines": lambda n: "\n" * n,
}


def read_by_all(name: str, pieces: int) -> None:
    text = LONG[name](pieces)
    for extract in EXTRACTORS.values():
        extract(text)


def test_a_text_of_any_kind_is_read_by_all() -> None:
    try_every(lambda name: read_by_all(name, 2_000), LONG)


@pytest.mark.exhaustive
def test_a_long_text_of_any_kind_is_read_by_all() -> None:
    """Linear work takes a second; quadratic work takes hours, and exceeds the time limit."""
    try_every(lambda name: read_by_all(name, 100_000), LONG)
