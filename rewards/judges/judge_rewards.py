"""Rewards that another model decides: about the answer, the reasoning, or how the two agree.

A value is None if the question asks for no reasoning, if the verdict is unreadable (the judge
counts those), or if there is nothing to compare with. An empty text earns 0.0 and the judge is not
asked: it could only be talked into giving more.
"""

import sys
from collections.abc import Sequence
from functools import partial

from rewards import answers
from rewards.answers import Texts, Values, rows
from rewards.judges import judge_prompts
from rewards.judges.interface import Inquiry, Verdict
from rewards.judges.judge import Judge, Judges
from rewards.judges.local import Encoder
from rewards.scoring import Reward, RewardFunction, built_in, parse_rewards

# The value of each verdict. Grades are divided by the best one.
VALUES = {"no": 0.0, "yes": 1.0} | {grade: int(grade) / 3 for grade in judge_prompts.GRADES}
NOTHING = Verdict("0", "nothing was said")  # the verdict about an empty text, without a judge


def judged_rewards(judges: Judges) -> dict[str, RewardFunction]:
    """Return the reward functions that these judges can give, by name.

    A Judge gives semantic, reasoning, correctness and consistency; an Encoder gives similarity.
    """
    found: dict[str, RewardFunction] = {}
    for judge in judges:
        given = [semantic, reasoning, correctness, consistency]
        for function in given if isinstance(judge, Judge) else [similarity]:
            found[function.__name__] = partial(function, judge)
    return found


def semantic(judge: Judge, prompts: Texts, completions: Texts, **columns: Sequence) -> Values:
    """1.0 if the judge finds the reasoning clinically coherent, else 0.0.

    The semantic alignment reward of Zhu et al. (arXiv 2505.13973), which is binary, too. The prompt
    is ours (judge_prompts.py), and so is showing the reasoning alone. Reads the columns question
    and asked.
    """
    inquiries: list[Inquiry | Verdict | None] = []
    for text, question, way in rows(completions, columns, "question", "asked"):
        thought = answers.reasoning(text)
        asked = judge_prompts.coherence(question, thought) if thought else NOTHING
        inquiries.append(None if way == "direct" else asked)
    return [value(verdict) for verdict in judge.ask(inquiries)]


def reasoning(judge: Judge, prompts: Texts, completions: Texts, **columns: Sequence) -> Values:
    """The judge's grade of the explanation, 0 to 3, divided by 3.

    RARL (arXiv 2506.06600) rewards the quality of the reasoning; its formula is not published. The
    scale is that of its authors' evaluation (SilVar-Med); using it as a reward is ours. Reads the
    columns question, options, letters, references, reasoning and asked.
    """
    names = ("letters", "question", "options", "references", "reasoning", "asked")
    inquiries = [
        None if way == "direct" else explanation_inquiry(*question)
        for *question, way in rows(completions, columns, *names)
    ]
    return [value(verdict) for verdict in judge.ask(inquiries)]


def correctness(judge: Judge, prompts: Texts, completions: Texts, **columns: Sequence) -> Values:
    """The judge's grade of the answer, 0 to 3, divided by 3; 0.0 without exactly one answer block.

    RARL's reward of the answer, on the scale of its authors' evaluation (SilVar-Med); using it as a
    reward is ours. Meant for open questions, which have no letters to compare. Reads the columns
    question, options, letters and references.
    """
    questions = rows(completions, columns, "letters", "question", "options", "references")
    verdicts = judge.ask([correctness_inquiry(*question) for question in questions])
    return [value(verdict) for verdict in verdicts]


def consistency(judge: Judge, prompts: Texts, completions: Texts, **columns: Sequence) -> Values:
    """1.0 if the option that the reasoning arrives at is the letter answered, else 0.0.

    After CAPO (arXiv 2506.12849), which rewards an answer that follows from its reasoning; its
    method is not published. Ours shows the judge the reasoning without the answer, and compares.
    Whether the answer is right does not matter. None for open questions. Reads the columns
    question, options, letters and asked.
    """
    inquiries, answered = [], []
    names = ("letters", "options", "question", "asked")
    for text, letters, options, question, way in rows(completions, columns, *names):
        thought = answers.reasoning(text)
        letter = answers.answer_letter(text, letters, options) if thought else None
        asked = judge_prompts.conclusion(question, options, thought) if letter else NOTHING
        inquiries.append(None if way == "direct" or not options else asked)
        answered.append(letter)
    verdicts = zip(judge.ask(inquiries), answered, strict=True)
    return [None if said is None else float(said.choice == letter) for said, letter in verdicts]


def similarity(encoder: Encoder, prompts: Texts, completions: Texts, **columns: Sequence) -> Values:
    """Cosine between the reasoning and the reference reasoning; 0.0 if it is negative.

    The semantic similarity that Zhu et al. (arXiv 2505.13973) report, made a reward: ours. An
    opposite can be as similar as a synonym, so this reward never stands alone. None without a
    reference. Reads the columns reasoning and asked.
    """
    pairs = []
    for text, reference, way in rows(completions, columns, "reasoning", "asked"):
        applies = way != "direct" and reference.strip()
        pairs.append((answers.reasoning(text), reference) if applies else ("", ""))
    cosines = zip(pairs, encoder.similarity(pairs), strict=True)
    return [max(0.0, cosine) if reference else None for (_, reference), cosine in cosines]


def explanation_inquiry(
    text: str, letters: Texts, question: str, options: Texts, references: Texts, reference: str
) -> Inquiry | Verdict:
    """Ask how good the completion's reasoning is, from 0 to 3; NOTHING if it has no reasoning.

    `reference` is the reference reasoning, which may be "".
    """
    thought, said = answers.reasoning(text), said_answer(text, letters, options)
    if not thought:
        return NOTHING
    return judge_prompts.explanation(question, options, references, reference, thought, said)


def correctness_inquiry(
    text: str, letters: Texts, question: str, options: Texts, references: Texts, reference: str = ""
) -> Inquiry | Verdict:
    """Ask how right the completion's answer is, from 0 to 3; NOTHING without one answer block.

    `reference`, the reference reasoning, is not shown to the judge.
    """
    said = said_answer(text, letters, options)
    return judge_prompts.correctness(question, options, references, said) if said else NOTHING


def said_answer(text: str, letters: Texts, options: Texts) -> str:
    """Return the text of the one answer block, with the option that it names; "" without one.

    >>> said_answer("<answer>b</answer>", "AB", ["none", "cyst"])
    'B) cyst'
    >>> said_answer("<answer>a cyst</answer>", "", [])
    'a cyst'
    """
    if letter := answers.answer_letter(text, letters, options):
        return f"{letter}) {options[list(letters).index(letter)]}"
    return answers.answer_text(text) or ""


def value(verdict: Verdict | None) -> float | None:
    """Return what a verdict is worth, 0.0 to 1.0; None if it is unreadable or does not apply."""
    return None if verdict is None else VALUES[verdict.choice]


def reward_terms(spec: str, length_cap: int, judges: Judges) -> list[Reward]:
    """Return the rewards of --reward, those of judges among them.

    Prints a line if a rule stands in for a judge. Raises RewardError.
    """
    judged = judged_rewards(judges)
    terms = parse_rewards(spec, built_in(length_cap) | judged)
    if "consistency" in {term.name for term in terms} - judged.keys():
        print("train.py: consistency is judged by a rule; --judge for a model", file=sys.stderr)
    return terms
