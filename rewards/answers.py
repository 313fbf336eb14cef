"""Read the answer of a completion: the one extractor, used in training and in evaluation; and the
columns of a reward function, what is known about each completion's question, by name.

A completion in our format is `<think>...</think><answer>B</answer>`. Answers are read from the one
answer block alone. Running text is never searched for a letter: there, "A" is an article and "I" a
pronoun. An ambiguous answer is refused, because rewarding "A or B" teaches a policy to say "A or
B". Tags count in lower case only. All functions take time linear in the text.
"""

import re
from collections.abc import Iterator, Mapping, Sequence

from rewards.words import exact_match, folded

Texts = Sequence[str]
Values = list[float | None]

# The value of a column that the caller leaves out or passes empty. All other columns are required.
DEFAULTS = {"references": (), "asked": "reason"}

TAGS = ["<think>", "</think>", "<answer>", "</answer>"]
_TAG = re.compile("|".join(TAGS))

# Tried only if each tag occurs once, so `.*` can end in one place and hardly backtracks.
_FORMAT = re.compile(r"\s*<think>.*</think>\s*<answer>.*</answer>\s*", re.DOTALL)
# ASCII classes, because IGNORECASE or \w would accept the Kelvin sign and Cyrillic look-alikes.
_LETTER = re.compile(r"(?:\(([A-Za-z])\)|([A-Za-z])\)?)\.?")  # B  b  B.  B)  (B)
_LABELLED = re.compile(r"(?:\(([A-Za-z])\)|([A-Za-z])[).:])(.+)", re.DOTALL)  # (B) cyst  B. cyst


def is_formatted(text: str, letters: Texts, reasons: bool = True) -> bool:
    """Is the text exactly a think block and then an answer block with one of `letters`?

    An open question has no `letters`: its answer block holds any text that is not empty. White
    space around and between the blocks is allowed; other text, an extra tag or a missing tag is
    not. The format asks for a letter, so the text of an option, which `answer_letter` accepts, is
    not enough here. An empty think block passes, because this function checks the form only. If the
    question asks for no reasons (`reasons` False), the answer block stands alone.

    >>> is_formatted("<think>bright rim</think>\\n<answer>B</answer>\\n", "ABCD")
    True
    >>> is_formatted("So: <think>bright rim</think><answer>B</answer>", "ABCD")
    False
    >>> is_formatted("<answer>B</answer>", "ABCD", reasons=False)
    True
    """
    text = text if reasons else f"<think></think>{text}"
    if _TAG.findall(text) != TAGS or not _FORMAT.fullmatch(text):
        return False
    return (answer_letter(text, letters) if letters else answer_text(text)) is not None


def answered_right(
    text: str, answer: str, letters: Texts, options: Texts, references: Texts = ()
) -> bool:
    """Is the completion right? Rewards and metrics share this definition.

    With `letters`: the letter given is `answer`. For an open question: the normalised text of the
    answer block is one of `references`.

    >>> answered_right("<answer>cyst</answer>", "B", "AB", ["none", "cyst"])
    True
    >>> answered_right("<answer>The left lung.</answer>", "", "", (), ["left lung", "left"])
    True
    """
    if letters:
        return answer_letter(text, letters, options) == answer
    return exact_match(answer_text(text), references)


def answer_text(text: str) -> str | None:
    """Return the stripped text of the single answer block; None if there is none or it is empty.

    Refused: no block, two blocks, an unclosed block, a block inside the think block.

    >>> answer_text("<think>Which lobe?</think><answer> Left upper lobe. </answer>")
    'Left upper lobe.'
    """
    if text.count("<answer>") != 1 or text.count("</answer>") != 1:
        return None
    said, closed, after = text.partition("<answer>")[2].partition("</answer>")
    if not closed or "</think>" in after:  # closed before it opened, or opened while still thinking
        return None
    return said.strip() or None


def answer_letter(text: str, letters: Texts, options: Texts = ()) -> str | None:
    """Return the one of `letters` that the single answer block names; None if in any doubt.

    Accepted inside the block: the letter alone (`B`, `b`, `B.`, `B)`, `(B)`); and with `options`,
    in the order of `letters`, the letter with that option's text (`B) cyst`) or the text alone
    (`cyst`). Texts are compared without case, runs of white space and a trailing full stop. A
    letter alone is always a label, even if the text of an option is a letter.
    Refused: all that `answer_text` refuses; a letter that is not offered, two letters, a letter
    with another option's text, a text that two options share.

    >>> answer_letter("<think>Is it A? No.</think><answer>(b)</answer>", "ABCD")
    'B'
    >>> answer_letter("<answer>C) a cyst.</answer>", "ABC", ["none", "tumour", "A cyst"])
    'C'
    >>> answer_letter("<answer>A or B</answer>", "AB") is None
    True
    """
    said = answer_text(text) or ""
    if alone := _LETTER.fullmatch(said):
        letter = (alone[1] or alone[2]).upper()
        if letter in letters:
            return letter

    labelled, readings = _LABELLED.fullmatch(said), []
    for letter, option in zip(letters, options, strict=bool(options)):
        named = labelled and (labelled[1] or labelled[2]).upper() == letter
        wordings = [_normal(said), _normal(labelled[3])] if named else [_normal(said)]
        if _normal(option) and _normal(option) in wordings:
            readings.append(letter)
    return readings[0] if len(readings) == 1 else None


def reasoning(text: str) -> str:
    """Return the text before the answer: the think block, or all up to the answer block.

    >>> reasoning("<think>bright rim</think><answer>B</answer>"), reasoning("A bright rim. So B.")
    ('bright rim', 'A bright rim. So B.')
    """
    said = text.partition("<think>")[2] if "<think>" in text else text
    return re.split("</think>|<answer>", said, maxsplit=1)[0].strip()


def _normal(text: str) -> str:
    """Return the text folded, without runs of white space and one trailing full stop.

    >>> _normal("  Left   Lung. ")
    'left lung'
    """
    text = text.casefold() if text.isascii() and "&" not in text else folded(text)
    return " ".join(text.split()).removesuffix(".").rstrip()


# --- MedVLM-R1's own scoring, for comparisons with its figures; our main figures do not use it
# (github.com/JZPeterPan/MedVLM-R1 at 2eee421: grpo.py and test_qwen2vl_med.py)


def medvlm_r1_reward(text: str, gold: str) -> float:
    """MedVLM-R1's accuracy reward: 1.0, 0.5 or 0.0.

    It takes the first answer block, tags in any case, and finds the letters A to J in it, even
    inside words. If there is exactly one and it is `gold`, it earns 1.0 alone and 0.5 beside other
    text; anything else earns 0.0.

    >>> said = ("B", "(B)", "B) lung")  # the g of lung is a letter, too
    >>> [medvlm_r1_reward(f"<answer>{answer}</answer>", "B") for answer in said]
    [1.0, 0.5, 0.0]
    """
    # No pattern `<answer>(.*?)</answer>`: its time is quadratic in many unclosed tags.
    said, closed, _ = text.upper().partition("<ANSWER>")[2].partition("</ANSWER>")
    if not closed or re.findall("[A-J]", said) != [gold]:
        return 0.0
    return 1.0 if said.strip() == gold else 0.5


def medvlm_r1_letter(text: str) -> str | None:
    """Return the letter that MedVLM-R1's evaluation reads; None counts as wrong.

    It reads the first answer block that holds one capital letter and white space, nothing else. It
    is stricter about the letter than the reward, and accepts more around the block than
    `answer_letter`.

    >>> medvlm_r1_letter("<answer>A</answer> or rather <answer> B </answer>")
    'A'
    >>> medvlm_r1_letter("<answer>B.</answer>") is None
    True
    """
    match = re.search(r"<answer>\s*([A-Z])\s*</answer>", text)
    return match and match[1]


def medvlm_r1_format(text: str) -> float:
    """MedVLM-R1's format reward, 1.0 or 0.0: the two blocks, nothing around them, repeats allowed.

    Accepts the same texts as its pattern `<think>.*?</think>\\s*<answer>.*?</answer>`, in linear
    time.

    >>> medvlm_r1_format("<think></think> <answer></answer>")
    1.0
    >>> medvlm_r1_format("<think></think><answer></answer>\\n")
    0.0
    """
    edges = text.startswith("<think>") and text.endswith("</answer>")
    return float(edges and re.search(r"</think>\s*<answer>", text) is not None)


def rows(completions: Texts, columns: Mapping[str, Sequence], *names: str) -> Iterator[tuple]:
    """Yield, for each completion, its text and its entry in each named column.

    Raises TypeError if a required column is missing, ValueError if a column has another length.

    >>> list(rows(["<answer>B</answer>"], {"letters": ["AB"]}, "letters", "asked"))
    [('<answer>B</answer>', 'AB', 'reason')]
    """
    found = []
    for name in names:
        if name in DEFAULTS and not columns.get(name):
            found.append([DEFAULTS[name]] * len(completions))
        elif name in columns:
            found.append(columns[name])
        else:
            raise TypeError(f"missing column {name!r}")
    return zip(completions, *found, strict=True)
