"""Rewards computed by rules: no model is asked, and equal texts earn equal numbers.

We found no formulas in the papers that these ideas come from; each docstring says whose formula it
is and what the rule cannot detect. All values lie in 0.0 to 1.0, those of `overlong` in -1.0 to
0.0. A value is None ("does not apply") if the question asks for no reasoning (`asked` is "direct")
or lacks what the rule compares with. In the weighted sum, None adds as little as 0.0.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import product

from rewards import answers
from rewards.answers import Texts, Values, rows
from rewards.words import normalised, token_f1, words

MATCHED = 64  # most stated findings that are compared; a thousand would be no report
# A full stop ends a clause only before white space: "1.5 cm" is one clause.
_CLAUSE_END = re.compile(r"[;\n\uff1b\u3002]|\.(?!\S)")  # and those of Chinese
_DENIAL = re.compile(r"(?:there (?:is|are) )?(?:no|none|not|without)\b")
# The statement that there is nothing to find; a doubt ("not sure", "no idea") is none.
_NOTHING = re.compile(
    r"(?:there (?:is|are) )?(?:no|without)(?: \w+)? "
    r"(?:lesions?|findings?|abnormalit(?:y|ies)|mass(?:es)?|disease|pathology)\b|none\b"
)


def accuracy_medvlm_r1(prompts: Texts, completions: Texts, **columns: Sequence) -> Values:
    """MedVLM-R1's accuracy reward as published: 1.0, 0.5 or 0.0; None for open questions.

    Reads the columns answer and letters.

    >>> said = ["<answer>B</answer>", "<answer>(B)</answer>"]
    >>> accuracy_medvlm_r1(["Which?"] * 2, said, answer="BB", letters=["AB", "AB"])
    [1.0, 0.5]
    """
    known = rows(completions, columns, "answer", "letters")
    return [
        answers.medvlm_r1_reward(text, gold) if closed else None for text, gold, closed in known
    ]


def length_ecr(prompts: Texts, completions: Texts, cap: int, **columns: Sequence) -> Values:
    """min(1, length of the reasoning / cap), both in words.

    The Extended Chain Reward of Zhu et al. (arXiv 2505.13973); its formula and its cap were not
    found, these are ours. Repetition does not count (`_length`); whether the words make sense is
    not checked. Reads the column asked.

    >>> length_ecr(["Which?"] * 2, ["a bright spot", "spot spot spot spot"], cap=6)
    [0.5, 0.5]
    """
    asked = rows(completions, columns, "asked")
    return [None if way == "direct" else min(1.0, _length(text) / cap) for text, way in asked]


def length_cwr(prompts: Texts, completions: Texts, cap: int, **columns: Sequence) -> Values:
    """`length_ecr` if the answer is right, else 0.0.

    The Correctness-Weighted Length Reward of Zhu et al. (arXiv 2505.13973); the formula is ours.
    Reads the columns answer, letters, options, references and asked.

    >>> said = ["a bright spot<answer>B</answer>", "a bright spot<answer>A</answer>"]
    >>> known = {"answer": "BB", "letters": ["AB"] * 2, "options": [["none", "cyst"]] * 2}
    >>> length_cwr(["Which?"] * 2, said, **known, cap=6)
    [0.5, 0.0]
    """
    lengths = length_ecr(prompts, completions, cap, **columns)
    questions = rows(completions, columns, "answer", "letters", "options", "references")
    return [
        None if length is None else length * answers.answered_right(*question)
        for length, question in zip(lengths, questions, strict=True)
    ]


def overlong(
    prompts: Texts, completions: Texts, longest: int, cache: int | None, **columns: Sequence
) -> Values:
    """0.0 up to `longest` - `cache` tokens, from there linear down to -1.0 at `longest`.

    DAPO's soft overlong punishment (arXiv 2503.14476, equation 13). `cache` None is a fifth of
    `longest`, DAPO's share. Reads the column completion_ids.

    >>> ids = [range(80), range(90)]
    >>> overlong(["?"] * 2, ["", ""], completion_ids=ids, longest=100, cache=20)
    [0.0, -0.5]
    """
    cache = cache or max(1, longest // 5)
    over = [(longest - cache - len(ids)) / cache for ids in columns["completion_ids"]]
    return [max(-1.0, min(0.0, value)) for value in over]


def consistency_rule(prompts: Texts, completions: Texts, **columns: Sequence) -> Values:
    """1.0 if the option that the reasoning mentions last is the one answered, else 0.0.

    None if the reasoning mentions no option, and for open questions. CAPO (arXiv 2506.12849)
    rewards an answer that follows from its reasoning; its formula was not found, the rule is ours.
    Options are looked for as whole words, normalised; "upper left" does not mention "left" if both
    are options. The last mention decides, as in "not left, so right". The rule understands nothing:
    it misreads "right, not left" and the "no" of "no oedema, so yes", and misses synonyms. Reads
    the columns letters, options and asked.

    >>> said = ["Not left: right.<answer>B</answer>", "Right.<answer>A</answer>", "<answer>A"]
    >>> options = [["left", "right"]] * 3
    >>> consistency_rule(["Which side?"] * 3, said, letters=["AB"] * 3, options=options)
    [1.0, 0.0, None]
    """
    values: Values = []
    for text, letters, options, way in rows(completions, columns, "letters", "options", "asked"):
        texts = dict(zip(letters, map(normalised, options), strict=True))
        named = [] if way == "direct" else mentioned(answers.reasoning(text), texts.values())
        answered = texts.get(answers.answer_letter(text, letters, options))
        values.append(float(answered == named[-1]) if named else None)
    return values


def findings_reward(prompts: Texts, completions: Texts, **columns: Sequence) -> Values:
    """How true and how complete the findings are that the reasoning states.

    The value is 2 * (sum of match scores) / (clauses stated + true findings), an F1 of findings. A
    clause ends at ";", at a full stop or at the end of a line; the text before its colon is left
    out ("Two lesions:"). Each true finding is matched with at most one clause, the best pairs
    first; a match scores the words shared over the words of the longer one. A denial ("no ...") is
    a clause, too, and matches denials only. If there is nothing to find, saying so ("no lesion",
    "none") beside nothing but denials earns 1.0, anything else 0.0. None if the findings are
    unknown.

    This is our rule, and no judge: "left" for "right" costs one word, and so does a synonym. A
    clause of every word that a phantom's lesion may have earns 4/11, no more than a blind guess.
    Reads the columns findings and asked.

    >>> true = [("small cyst, upper left", "large abscess, lower left"), ()]
    >>> said = ["One lesion: small cyst, upper left.", "No lesion."]
    >>> findings_reward(["?"] * 2, said, findings=true)
    [0.6666666666666666, 1.0]
    """
    return [
        None if true is None or way == "direct" else _faithful(answers.reasoning(text), true)
        for text, true, way in rows(completions, columns, "findings", "asked")
    ]


def f1_reward(prompts: Texts, completions: Texts, **columns: Sequence) -> Values:
    """Token F1 between an open question's answer and its best reference; None with options.

    Naming two answers ("left right") earns as much as a guess, so this reward never stands alone.
    Reads the columns letters and references.

    >>> known = {"letters": [""], "references": [["left lung", "left"]]}
    >>> f1_reward(["Where?"], ["<answer>the left side</answer>"], **known)  # 1 shared of 2 + 1
    [0.6666666666666666]
    """
    known = rows(completions, columns, "letters", "references")
    return [
        None if closed else token_f1(answers.answer_text(text), right)
        for text, closed, right in known
    ]


def _length(text: str) -> int:
    """Count the words of the reasoning, without repetition: two, plus one per different trigram."""
    said = words(answers.reasoning(text))
    return min(len(said), 2) + len(set(zip(said, said[1:], said[2:], strict=False)))


def mentioned(said: str, options: Iterable[str]) -> list[str]:
    """Return the normalised `options` that the text mentions, in the order of the text.

    >>> mentioned("Upper left, not right.", ["left", "right", "upper left"])
    ['upper left', 'right']
    """
    # The longest first; and (?=\S): an option without words is never mentioned.
    choice = "|".join(map(re.escape, sorted(set(options), key=len, reverse=True)))
    return re.findall(rf"(?<!\S)(?=\S)(?:{choice})(?!\S)", normalised(said))


def _faithful(said: str, findings: Texts) -> float:
    """Score the reasoning `said` against the true `findings`, as `findings_reward` describes."""
    parts = (normalised(part.rpartition(":")[2]) for part in _CLAUSE_END.split(said))
    clauses, true = [part for part in parts if part], [normalised(text) for text in findings]
    if not true:
        return float(all(map(_DENIAL.match, clauses)) and any(map(_NOTHING.match, clauses)))
    pairs = product(enumerate(map(_bag, clauses[:MATCHED])), enumerate(map(_bag, true)))
    scores = [
        ((stated & finding).total() / max(stated.total(), finding.total()), i, j)
        for (i, (denies, stated)), (j, (denied, finding)) in pairs
        if denies == denied
    ]
    total, used = 0.0, set()
    for score, i, j in sorted(scores, key=lambda pair: -pair[0]):  # equal scores stay in text order
        if not used & {("stated", i), ("true", j)}:
            used |= {("stated", i), ("true", j)}
            total += score
    return 2 * total / (len(clauses) + len(true))


def _bag(stated: str) -> tuple[bool, Counter[str]]:
    """Return whether a normalised clause is a denial, and its words."""
    return _DENIAL.match(stated) is not None, Counter(stated.split())
