"""Compare answers in words: are two wordings the same answer, and how many words do they share?

The normalisation, exact match and token F1 are SQuAD's (Rajpurkar et al. 2016, arXiv 1606.05250)
with four changes, so that different answers stay different and equal ones equal: punctuation
becomes a space ("T2-weighted" is "T2 weighted", "1.5" is not "15"); mathematical signs stay ("<5"
is not ">5"); an article is removed only before a word ("hepatitis A" is not "hepatitis"); number
words up to ten become digits. Neither measure knows synonyms, and F1 ignores meaning: "left lung"
against "right lung" earns one half. All functions take time linear in the text.
"""

import unicodedata
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

_ARTICLES = ("a", "an", "the")
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_DIGITS = dict(zip(_NUMBERS, map(str, range(11)), strict=True))
# Characters normalised at once: Unicode's normal form takes time quadratic in a run of accents.
_PIECE = 300


def words(text: str) -> list[str]:
    """Split a text into words, without case, punctuation and compatibility forms (NFKC).

    >>> words("Left-sided MASS, \\uff12 cm.")  # a full-width 2
    ['left', 'sided', 'mass', '2', 'cm']
    """
    pieces = (text[i : i + _PIECE] for i in range(0, len(text), _PIECE))
    folded = "".join(unicodedata.normalize("NFKC", piece) for piece in pieces).casefold()
    # Punctuation, separators and invisible characters; letters, accents, digits and signs stay.
    gaps = {char: " " for char in set(folded) if unicodedata.category(char)[0] in "PZC"}
    return folded.translate(str.maketrans(gaps)).split()


def normalised(text: str) -> str:
    """Return the text in the form in which answers are compared; "" if it holds no word.

    >>> normalised(" The two Lesions."), normalised("2 lesions"), normalised("Yes!")
    ('2 lesions', '2 lesions', 'yes')
    """
    pairs = pairwise([*words(text), ""])
    kept = [word for word, after in pairs if not (after and word in _ARTICLES)]
    return " ".join(_DIGITS.get(word, word) for word in kept)


def exact_match(said: str | None, references: Sequence[str]) -> bool:
    """Is the answer one of the right ones, both normalised? An empty answer never is.

    >>> exact_match("the Left lung.", ["left lung", "left"]), exact_match("", [""])
    (True, False)
    """
    answer = normalised(said or "")
    return bool(answer) and answer in map(normalised, references)


def token_f1(said: str | None, references: Sequence[str]) -> float:
    """Return the best F1 between the words said and those of a reference, 0.0 to 1.0.

    A word counts as often as it occurs in both texts, so repeating it earns nothing.

    >>> token_f1("left lung lung", ["left lung"])  # 2 shared; 2 * 2 / (3 + 2)
    0.8
    """
    answer = counted(said or "")
    return max((shared(answer, counted(text)) for text in references), default=0.0)


def counted(text: str) -> Counter[str]:
    """Count the words of the normalised text."""
    return Counter(normalised(text).split())


def shared(said: Counter[str], reference: Counter[str]) -> float:
    """Return the F1 of two bags of words: 2 * (shared words) / (words of both); 0.0 if empty."""
    total = said.total() + reference.total()
    return 2 * (said & reference).total() / total if total else 0.0
