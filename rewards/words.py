"""Answers in words: whether two wordings are the same answer, and how much they share.

The normalisation, exact match and token F1 are SQuAD's (Rajpurkar et al. 2016, arXiv 1606.05250)
with four changes, all meant to keep unlike answers apart or like ones together: punctuation gives
way to a space ("T2-weighted" is "T2 weighted", "1.5" is not "15"), mathematical signs stay ("<5" is
not ">5"), an article goes only where a word follows ("hepatitis A" is not "hepatitis"), and number
words up to ten are digits. Neither knows a synonym, and F1 knows no meaning: "left lung" against
"right lung" earns one half. All functions take time linear in the text, whatever the text.
"""

import unicodedata
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

_ARTICLES = ("a", "an", "the")
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_DIGITS = {word: str(number) for number, word in enumerate(_NUMBERS)}
# Unicode's normal form takes time quadratic in a run of accents: no piece is longer than this.
_PIECE = 300


def words(text: str) -> list[str]:
    """The words of a text without regard to case, punctuation and compatibility forms (NFKC).

    >>> words("Left-sided MASS, \\uff12 cm.")  # a full-width 2
    ['left', 'sided', 'mass', '2', 'cm']
    """
    pieces = (text[i : i + _PIECE] for i in range(0, len(text), _PIECE))
    folded = "".join(unicodedata.normalize("NFKC", piece) for piece in pieces).casefold()
    # Punctuation, separators, and all that is invisible; letters, accents, digits and signs stay.
    gaps = {char: " " for char in set(folded) if unicodedata.category(char)[0] in "PZC"}
    return folded.translate(str.maketrans(gaps)).split()


def normalised(text: str) -> str:
    """The text as answers are compared; "" where it holds no word.

    >>> normalised(" The two Lesions."), normalised("2 lesions"), normalised("Yes!")
    ('2 lesions', '2 lesions', 'yes')
    """
    pairs = pairwise([*words(text), ""])
    kept = [word for word, after in pairs if not (after and word in _ARTICLES)]
    return " ".join(_DIGITS.get(word, word) for word in kept)


def exact_match(said: str | None, references: Sequence[str]) -> bool:
    """Is what was said one of the right answers, both normalised? Nothing said never is.

    >>> exact_match("the Left lung.", ["left lung", "left"]), exact_match("", [""])
    (True, False)
    """
    answer = normalised(said or "")
    return bool(answer) and answer in map(normalised, references)


def token_f1(said: str | None, references: Sequence[str]) -> float:
    """F1 of the words said and those of the reference that they suit best, 0.0 to 1.0.

    Words are counted as often as they occur in both, so repeating one earns nothing.

    >>> token_f1("left lung lung", ["left lung"])  # 2 shared; 2 * 2 / (3 + 2)
    0.8
    """
    answer = counted(said or "")
    return max((shared(answer, counted(text)) for text in references), default=0.0)


def counted(text: str) -> Counter[str]:
    """How often each word of the normalised text occurs in it."""
    return Counter(normalised(text).split())


def shared(said: Counter[str], reference: Counter[str]) -> float:
    """F1 of two bags of words: 2 * (shared words) / (all words of both); 0.0 without any."""
    total = said.total() + reference.total()
    return 2 * (said & reference).total() / total if total else 0.0
