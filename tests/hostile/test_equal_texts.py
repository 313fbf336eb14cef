"""Answers that are equal in other characters, or differ in one; and scripts without spaces."""

import pytest

from rewards.answers import answer_letter, answered_right
from rewards.rules import consistency_rule, f1_reward, findings_reward, length_ecr
from rewards.words import exact_match, normalised, token_f1, words
from tests.hostile.every import try_every

# Each row holds forms of one answer; no form of one row equals a form of another.
NUMBERS = [
    ("-2.5", "\u22122.5", "\u20132.5", "-2.50", "(-2.5)"),
    ("2.5", "+2.5", "2.50", "2.5."),
    ("3", "3.0", "3.", "three", "3.00"),
    ("1000", "1,000", "1,000.0", "1e3", "10\u00b3", "1 x 10^3", "10^{3}"),
    ("10\u2079", "10^9", "1E9", "1,000,000,000", "1\u00d710\u2079", "1 * 10^9"),
    ("109", "109.0"),
    ("0.001", ".001", "1e-3", "10\u207b\u00b3", "10^-3", "1e\u22123"),
    ("5.0 mm", "5 mm", "5.00 mm"),
    ("5.0mm", "5mm"),
    ("-5 mm", "\u22125.0 mm"),
    ("< -5", "< \u22125"),
    ("<5",),
    (">5",),
    ("2.05", "2.050"),
    ("12345678901234567890123456789012e3", "12345678901234567890123456789012000"),
    ("12345678901234567890123456789013e3",),
    ("1,0000",),
    ("1.0.1",),
    ("10^999",),
]
MARKERS = [
    ("HER2 -", "HER2-", "HER2 \u2212", "HER2(-)", "HER2 (-).", "HER2 \u2013"),
    ("HER2", "the HER2."),
    ("HER2 +", "HER2+", "HER2(+)"),
    ("ER-, PR+", "ER-/PR+", "ER(-) PR(+)", "ER \u2212; PR +"),
    ("ER+, PR-", "ER(+)/PR(-)"),
    ("T1- and T2-weighted", "T1 and T2 weighted"),
    ("3-5 mm", "3\u20135 mm", "3 - 5 mm"),
]
INVISIBLE = [
    ("pneumonia", "pneu\u00admonia", "pneumo\u200dnia", "pneumo\u200bnia", "\ufeffpneumonia"),
    ("left lung", "left\u00a0lung", "left \u2060lung", "left&nbsp;lung", "\u202aleft lung\u202c"),
    ("<5 mm", "&lt;5 mm", "&#60;5 mm", "&lt;5&nbsp;mm"),
    ("hepatomegaly", "hepato\u00ad\nmegaly"),
    ("Crohn's disease", "Crohn&#39;s disease", "Crohn\u2019s disease"),
    ("cafe\u0301", "caf\u00e9", "caf&eacute;"),
    ("H2O", "H\u2082O"),
    ("mm2", "mm\u00b2"),
]


def are_apart(rows: list[tuple[str, ...]]) -> None:
    """Each form equals the forms of its own row and no other."""

    def is_apart(form: tuple[int, str]) -> None:
        place, said = form
        for other, forms in enumerate(rows):
            for reference in forms:
                assert exact_match(said, [reference]) == (other == place), (said, reference)
                assert other != place or token_f1(said, [reference]) == 1.0
        assert normalised(normalised(said)) == normalised(said)

    try_every(is_apart, [(place, form) for place, forms in enumerate(rows) for form in forms])


def test_numbers_are_compared_as_numbers() -> None:
    are_apart([NUMBERS[i][:3] for i in range(6)])


def test_a_marker_keeps_its_sign() -> None:
    are_apart([row[:3] for row in MARKERS[:3]])


def test_invisible_characters_and_entities_are_no_difference() -> None:
    are_apart([row[:3] for row in INVISIBLE[:3]])
    said = "<answer>B) pneumonia</answer>"
    assert answer_letter(said, "AB", ["cyst", "pneu\u00admonia"]) == "B"
    assert answered_right("<answer><5 mm</answer>", "B", "AB", ["none", "&lt;5 mm"])


@pytest.mark.exhaustive
def test_equal_texts_are_equal_in_all_forms() -> None:
    are_apart([*NUMBERS, *MARKERS, *INVISIBLE])


CHINESE = "图像显示左肺上叶有一个边界清晰的结节，周围没有毛刺，因此考虑良性"  # noqa: RUF001
# A text, and how many words it has.
SCRIPTS = {
    "左肺上叶": 4,  # Chinese
    "左肺上葉の結節": 7,  # Japanese
    "カタカナ": 4,
    "ปอดซ้าย": 7,  # Thai, a sign above counts as a character
    "ปอด\u200bซ้าย": 7,
    "왼쪽 폐": 2,  # Korean has spaces
    "CT图像3.0厘米": 7,  # "ct", "3" and "0" beside four characters
    "ဘယ်": 3,  # Burmese
    "သ": 1,
    "левое лёгкое": 2,
}


def say(thought: str, answer: str = "A") -> str:
    return f"<think>{thought}</think><answer>{answer}</answer>"


def test_a_character_is_a_word_in_a_script_without_spaces() -> None:
    assert length_ecr(["?"], [say(CHINESE)], cap=100) == [0.3]  # 30 characters
    left, right = "左肺", "右肺"
    said = [say(f"不是{right}，所以是{left}")]  # noqa: RUF001
    assert consistency_rule(["?"], said, letters=["AB"], options=[[left, right]]) == [1.0]
    known = {"letters": [""], "references": [[left]]}
    assert f1_reward(["?"], [say("x", "左肺上叶")], **known) == [pytest.approx(4 / 6)]
    assert exact_match("左肺。", [left])
    assert not exact_match("左肺上叶", [left])


@pytest.mark.exhaustive
def test_words_are_counted_in_every_script() -> None:
    def is_counted(text: str) -> None:
        assert len(words(text)) == SCRIPTS[text]
        assert token_f1(text, [text]) == 1.0

    try_every(is_counted, SCRIPTS)


@pytest.mark.exhaustive
def test_a_clause_ends_at_a_full_stop_of_any_script() -> None:
    stated = say("左肺上叶结节。右肺囊肿")
    true = [("左肺上叶结节", "右肺囊肿")]
    assert findings_reward(["?"], [stated], findings=true) == [1.0]
