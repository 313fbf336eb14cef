"""Rewards that a rule can give: no other model is asked, and equal texts earn equal numbers.

The papers that these ideas come from give no formula that we found; each docstring says whose the
formula is and what the rule cannot see. All are 0.0 to 1.0, and None ("does not apply") where the
question asks for no reasoning to judge (`asked` "direct"), or has not what the rule compares with.
In a sum None earns as little as 0.0.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import product

from rewards.answers import answer_letter, answer_text, answered_right, medvlm_r1_reward, reasoning
from rewards.words import normalised, token_f1, words

Texts = Sequence[str]
Values = list[float | None]

MATCHED = 64  # stated findings at most that are compared; a thousand are no report anyway
# A full stop ends a clause only before white space: "1.5 cm" is one.
_CLAUSE_END = re.compile(r"[;\n]|\.(?!\S)")
_DENIAL = re.compile(r"(?:there (?:is|are) )?(?:no|none|not|without)\b")
# That nothing is to be found: more than a doubt ("not sure", "no idea").
_NOTHING = re.compile(
    r"(?:there (?:is|are) )?(?:no|without)(?: \w+)? "
    r"(?:lesions?|findings?|abnormalit(?:y|ies)|mass(?:es)?|disease|pathology)\b|none\b"
)


def accuracy_medvlm_r1(
    prompts: Texts, completions: Texts, answer: Texts, letters: Sequence[Texts], **columns: object
) -> Values:
    """MedVLM-R1's accuracy reward as published: 1.0, 0.5 or 0.0; None for open questions.

    >>> said = ["<answer>B</answer>", "<answer>(B)</answer>"]
    >>> accuracy_medvlm_r1(["Which?"] * 2, said, answer="BB", letters=["AB", "AB"])
    [1.0, 0.5]
    """
    rows = zip(completions, answer, letters, strict=True)
    return [medvlm_r1_reward(text, gold) if offered else None for text, gold, offered in rows]


def length_ecr(
    prompts: Texts, completions: Texts, asked: Texts = (), *, cap: int = 100, **columns: object
) -> Values:
    """The longer the reasoning, the better, up to `cap` words: min(1, length / cap).

    The Extended Chain Reward of Zhu et al. (arXiv 2505.13973); its formula and its cap were not
    found, these are ours. The length leaves out what is repeated, and sees no sense in the rest.

    >>> length_ecr(["Which?"] * 2, ["a bright spot", "spot spot spot spot"], cap=6)
    [0.5, 0.5]
    """
    rows = zip(completions, _reasoned(completions, asked), strict=True)
    return [min(1.0, _length(text) / cap) if reasoned else None for text, reasoned in rows]


def length_cwr(
    prompts: Texts,
    completions: Texts,
    answer: Texts,
    letters: Sequence[Texts],
    options: Sequence[Texts],
    references: Sequence[Texts] = (),
    asked: Texts = (),
    *,
    cap: int = 100,
    **columns: object,
) -> Values:
    """`length_ecr` where the answer is right, else 0.0.

    The Correctness-Weighted Length Reward of Zhu et al. (arXiv 2505.13973); the formula is ours.

    >>> said = ["a bright spot<answer>B</answer>", "a bright spot<answer>A</answer>"]
    >>> known = {"answer": "BB", "letters": ["AB"] * 2, "options": [["none", "cyst"]] * 2}
    >>> length_cwr(["Which?"] * 2, said, **known, cap=6)
    [0.5, 0.0]
    """
    lengths = length_ecr(prompts, completions, asked, cap=cap)
    references = references or [()] * len(completions)
    rows = zip(lengths, completions, answer, letters, options, references, strict=True)
    return [
        None if length is None else length * answered_right(text, *question)
        for length, text, *question in rows
    ]


def consistency_rule(
    prompts: Texts,
    completions: Texts,
    letters: Sequence[Texts],
    options: Sequence[Texts],
    asked: Texts = (),
    **columns: object,
) -> Values:
    """1.0 where the option that the reasoning mentions last is the one answered, else 0.0.

    None where it mentions none, and for open questions. That the answer must follow from the
    reasoning is rewarded in CAPO (arXiv 2506.12849), whose formula was not found; the rule is ours.
    Texts of options are looked for as whole words, normalised; in "upper left" no "left" is seen.
    The last one decides, as in "not left, so right". The rule understands nothing: it misreads
    "right, not left" and the "no" of "no oedema, so yes", and cannot see what is said in synonyms.

    >>> said = ["Not left: right.<answer>B</answer>", "Right.<answer>A</answer>", "<answer>A"]
    >>> options = [["left", "right"]] * 3
    >>> consistency_rule(["Which side?"] * 3, said, letters=["AB"] * 3, options=options)
    [1.0, 0.0, None]
    """
    values: Values = []
    rows = zip(completions, letters, options, _reasoned(completions, asked), strict=True)
    for text, offered, texts, reasoned in rows:
        texts_by_letter = dict(zip(offered, map(normalised, texts), strict=True))
        last = _last_mentioned(reasoning(text), texts_by_letter.values()) if reasoned else None
        letter = answer_letter(text, offered, texts)
        values.append(None if last is None else float(texts_by_letter.get(letter) == last))
    return values


def findings_reward(
    prompts: Texts,
    completions: Texts,
    findings: Sequence[Texts | None],
    asked: Texts = (),
    **columns: object,
) -> Values:
    """How true the findings are that the reasoning states, and how complete.

    It is 2 * (sum of match scores) / (clauses stated + true findings), an F1 of findings. A clause
    ends at ";", at a full stop or with its line, and what stands before a colon is left out of it
    ("Two lesions:"). Each true finding is matched with one clause at most, the best pairs first; a
    match scores the words they share over those of the longer. A denial ("no ...") is a clause,
    too, and matches only denials. Where nothing is to be found, saying so ("no lesion", "none")
    beside nothing but denials earns 1.0, all else 0.0. None where the findings are not known.

    A rule, ours, and no judge: "left" for "right" costs one word, and a synonym as much. A clause
    of every word that a phantom's lesion may have earns 4/11, no more than a blind guess.

    >>> true = [("small cyst, upper left", "large abscess, lower left"), ()]
    >>> findings_reward(["?"] * 2, ["One lesion: small cyst, upper left.", "No lesion."], true)
    [0.6666666666666666, 1.0]
    """
    rows = zip(completions, findings, _reasoned(completions, asked), strict=True)
    return [
        _faithful(reasoning(text), true) if reasoned and true is not None else None
        for text, true, reasoned in rows
    ]


def f1_reward(
    prompts: Texts,
    completions: Texts,
    letters: Sequence[Texts],
    references: Sequence[Texts] = (),
    **columns: object,
) -> Values:
    """Token F1 of an open question's answer and the reference it suits best; None with options.

    It pays for naming two answers ("left right") as for a guess, so it never stands alone.

    >>> known = {"letters": [""], "references": [["left lung", "left"]]}
    >>> f1_reward(["Where?"], ["<answer>the left side</answer>"], **known)  # 1 shared of 2 + 1
    [0.6666666666666666]
    """
    rows = zip(completions, letters, references or [()] * len(completions), strict=True)
    return [
        None if offered else token_f1(answer_text(text), right) for text, offered, right in rows
    ]


def _reasoned(completions: Texts, asked: Texts) -> list[bool]:
    """Where reasoning was asked for; where nothing is known of it, everywhere."""
    return [way != "direct" for way in asked] if asked else [True] * len(completions)


def _length(text: str) -> int:
    """Words of the reasoning, those in a row of three that was there before left out."""
    said = words(reasoning(text))
    return min(len(said), 2) + len(set(zip(said, said[1:], said[2:], strict=False)))


def _last_mentioned(said: str, options: Sequence[str]) -> str | None:
    """The one of the normalised `options` that is in the text last; None if none of them is."""
    longest_first = sorted({option for option in options if option}, key=len, reverse=True)
    if not longest_first:
        return None
    choice = "|".join(map(re.escape, longest_first))
    mentioned = re.findall(rf"(?<!\S)(?:{choice})(?!\S)", normalised(said))
    return mentioned[-1] if mentioned else None


def _faithful(said: str, findings: Texts) -> float:
    """The score of `findings_reward`."""
    clauses, true = list(_clauses(said)), [normalised(finding) for finding in findings]
    if not true:
        return float(all(map(_DENIAL.match, clauses)) and any(map(_NOTHING.match, clauses)))
    pairs = product(enumerate(map(_bag, clauses[:MATCHED])), enumerate(map(_bag, true)))
    scores = [
        ((stated & finding).total() / max(stated.total(), finding.total()), i, j)
        for (i, (denies, stated)), (j, (denied, finding)) in pairs
        if denies == denied
    ]
    total, used = 0.0, set()
    for score, i, j in sorted(scores, key=lambda pair: -pair[0]):  # equal scores: in order of text
        if not used & {("stated", i), ("true", j)}:
            used |= {("stated", i), ("true", j)}
            total += score
    return 2 * total / (len(clauses) + len(true))


def _clauses(said: str) -> Iterator[str]:
    """What the reasoning states, normalised, clause by clause."""
    for clause in _CLAUSE_END.split(said):
        if stated := normalised(clause.rpartition(":")[2]):
            yield stated


def _bag(stated: str) -> tuple[bool, Counter[str]]:
    """Whether a normalised clause is a denial, and its words."""
    return _DENIAL.match(stated) is not None, Counter(stated.split())
