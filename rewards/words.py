"""Compare answers in words: are two wordings the same answer, and how many words do they share?

The normalisation, exact match and token F1 are SQuAD's (Rajpurkar et al. 2016, arXiv 1606.05250)
with these changes, so that different answers stay different and equal ones equal:

* punctuation becomes a space ("T2-weighted" is "T2 weighted", "1.5" is not "15"), an invisible
  character nothing, and an HTML entity its character ("&lt;" is "<");
* mathematical signs stay ("<5" is not ">5"), and so does the minus of a number ("-2.5" is not
  "2.5", whichever dash it is) and of a marker ("HER2 -" and "ER(-)" are not "HER2" and "ER");
* equal numbers are equal in all forms ("3" is "3.0", "1000" is "1,000", "10^9" is "1e9" but not
  "109"), and number words up to ten become digits;
* an article is removed only before a word ("hepatitis A" is not "hepatitis");
* in scripts without spaces (Chinese, Japanese, Thai, Lao, Khmer, Burmese) a character is a word.

Neither measure knows synonyms, and F1 ignores meaning: "left lung" against "right lung" earns one
half. All functions take time linear in the text.
"""

import html
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from decimal import Decimal
from functools import lru_cache
from itertools import pairwise

_ARTICLES = ("a", "an", "the")
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_DIGITS = dict(zip(_NUMBERS, map(str, range(11)), strict=True))
# Characters normalised at once: Unicode's normal form takes time quadratic in a run of accents.
_PIECE = 300
# A soft hyphen with the end of line after it, and the other invisible characters.
_INVISIBLE = re.compile(
    r"\u00ad\s*|[\u034f\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufe00-\ufe0f\ufeff]"
)
_EXPONENT = re.compile(r"(?<=\d)[\u207a\u207b]?[\u00b2\u00b3\u00b9\u2070\u2074-\u2079]+")
# Thai, Lao, Burmese, Khmer, Japanese and Chinese.
_SPACELESS = re.compile(
    r"[\u0e01-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3041-\u31ff\u3400-\u9fff\uf900-\ufaff"
    r"\U00020000-\U0003ffff]"
)
_MINUS = "\u2212"  # the mathematical sign, which unlike a dash is no punctuation
_SIGN = r"[-\u2013\u2212+]"  # a hyphen, an en dash, a minus or a plus
# The sign of a marker, at the end of a word: "HER2 -", "ER-, PR+", "ER(-)".
_MARKER = re.compile(rf"(?<=\w)\s*(?:\({_SIGN}\)|{_SIGN}(?=\s*(?:[,;).]|/\w|$)))")
# "5 x 10^9" is written 5e9, and "10^9" 1e9.
_POWER = re.compile(rf"((?<=\d)\s?[x\u00d7*\u00b7]\s?|(?<![\w.,]))10\^\{{?(?={_SIGN}?\d\d?(?!\d))")
# A word, or a number with all that may belong to it.
_START = rf"(?:(?<![^\s(<>=~]){_SIGN}(?=\.?\d))?(?:(?<!\.)\.(?=\d))?"
_PART = r"[^\W_]|[.,](?=[^\W_])"
_RUN = re.compile(rf"{_START}(?:{_PART}|(?<=\de){_SIGN}(?=\d))+")
# Sign, whole part, fraction, power of ten, unit.
_WHOLE, _UNIT = r"\d+|\d{1,3}(?:,\d{3})+", r"[^\W\d_][^\W_]*"
_NUMBER = re.compile(rf"({_SIGN}?)({_WHOLE})?(\.\d+)?(?:e({_SIGN}?\d\d?))?({_UNIT})?")


def folded(text: str) -> str:
    """Return the text without case, compatibility forms (NFKC), entities and invisible characters.

    >>> folded("Pneu\\u00admonia, &lt;10\u2079")
    'pneumonia, <10^9'
    """
    text = _EXPONENT.sub(r"^\g<0>", _INVISIBLE.sub("", html.unescape(text)))
    pieces = (text[i : i + _PIECE] for i in range(0, len(text), _PIECE))
    text = "".join(unicodedata.normalize("NFKC", piece) for piece in pieces).casefold()
    return _SPACELESS.sub(r" \g<0> ", text)


def words(text: str) -> list[str]:
    """Split a text into words, without case, punctuation and compatibility forms (NFKC).

    >>> words("Left-sided MASS, \\uff12 cm.")  # a full-width 2
    ['left', 'sided', 'mass', '2', 'cm']
    """
    return _split(folded(text))


def _split(text: str) -> list[str]:
    """Split at punctuation, separators and control characters; letters, digits, signs stay."""
    gaps = {char: " " for char in set(text) if unicodedata.category(char)[0] in "PZC"}
    return text.translate(str.maketrans(gaps)).split()


@lru_cache(maxsize=1024)  # the same options are compared again and again
def normalised(text: str) -> str:
    """Return the text in the form in which answers are compared; "" if it holds no word.

    >>> normalised(" The two Lesions."), normalised("2 lesions"), normalised("Yes!")
    ('2 lesions', '2 lesions', 'yes')
    """
    text = _MARKER.sub(lambda sign: "+" if "+" in sign[0] else _MINUS, folded(text))
    text = _POWER.sub(lambda power: "e" if power[1] else "1e", text)
    pairs = pairwise([*_split(_RUN.sub(_numbers, text)), ""])
    kept = [word for word, after in pairs if not (after and word in _ARTICLES)]
    return " ".join(_DIGITS.get(word, word) for word in kept)


def _numbers(run: re.Match[str]) -> str:
    """Return a number in its plain form; what is no number is split at its points and commas."""
    parts = [run[0]] if _NUMBER.fullmatch(run[0]) else re.split("[.,]", run[0])
    return " ".join(map(_plain, parts))


def _plain(word: str) -> str:
    """Write a number without commas, power of ten and zeros at its end: 1,000.50 as 1000.5."""
    found = _NUMBER.fullmatch(word)
    if not found or not (found[2] or found[3]):
        return word
    sign, whole, fraction, power, unit = found.groups("")
    number = (whole.replace(",", "") or "0") + fraction
    if power:
        number = f"{Decimal(number + 'e' + re.sub('[^0-9+]', '-', power)):f}"
    if "." in number:
        number = number.rstrip("0").rstrip(".")
    return (_MINUS if sign.strip("+") else "") + number + unit


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
