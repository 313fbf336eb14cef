"""Rewards that another model decides: about the answer, the reasoning, or how the two agree.

A value is None if the question asks for no reasoning, if the verdict is unreadable (the judge
counts those), or if there is nothing to compare with. An empty text earns 0.0 and the judge is not
asked: it could only be talked into giving more.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import partial

from rewards import answers
from rewards.columns import rows
from rewards.judges import judge_prompts
from rewards.judges.interface import Inquiry
from rewards.judges.judge import Judge
from rewards.judges.local import Encoder
from rewards.scoring import Reward, RewardFunction, built_in, parse_rewards

BEST = int(judge_prompts.GRADES[-1])
Texts = Sequence[str]
Values = list[float | None]


def judged_rewards(judges: Sequence[Judge | Encoder]) -> dict[str, RewardFunction]:
    """Return the reward functions that these judges can give, by name.

    A Judge gives semantic, reasoning, correctness and consistency; an Encoder gives similarity.
    """
    found: dict[str, RewardFunction] = {}
    for judge in judges:
        given = {"similarity": similarity}
        if isinstance(judge, Judge):
            given = {"semantic": semantic, "reasoning": explanation}
            given |= {"correctness": correctness, "consistency": consistency}
        found |= {name: partial(function, judge) for name, function in given.items()}
    return found


def semantic(judge: Judge, prompts: Texts, completions: Texts, **columns: Sequence) -> Values:
    """1.0 if the judge finds the reasoning clinically coherent, else 0.0.

    The semantic alignment reward of Zhu et al. (arXiv 2505.13973), which is binary, too. The prompt
    is ours (judge_prompts.py), and so is showing the reasoning alone. Reads the columns question
    and asked.
    """
    values, inquiries = _zeros(completions, columns), {}
    for i, (text, question) in enumerate(rows(completions, columns, "question")):
        thought = answers.reasoning(text)
        if thought and values[i] is not None:
            inquiries[i] = judge_prompts.coherence(question, thought)
    for i, choice in _choices(judge, inquiries):
        values[i] = None if choice is None else float(choice == "yes")
    return values


def explanation(judge: Judge, prompts: Texts, completions: Texts, **columns: Sequence) -> Values:
    """The judge's grade of the explanation, 0 to 3, divided by 3.

    RARL (arXiv 2506.06600) rewards the quality of the reasoning; its formula is not published. The
    scale is that of its authors' evaluation (SilVar-Med); using it as a reward is ours. Reads the
    columns question, options, letters, references, reasoning and asked.
    """
    names = ("letters", "question", "options", "references", "reasoning")
    values, inquiries = _zeros(completions, columns), {}
    for i, question in enumerate(rows(completions, columns, *names)):
        inquiry = explanation_inquiry(*question)
        if inquiry and values[i] is not None:
            inquiries[i] = inquiry
    for i, choice in _choices(judge, inquiries):
        values[i] = None if choice is None else int(choice) / BEST
    return values


def correctness(judge: Judge, prompts: Texts, completions: Texts, **columns: Sequence) -> Values:
    """The judge's grade of the answer, 0 to 3, divided by 3; 0.0 without exactly one answer block.

    RARL's reward of the answer, on the scale of its authors' evaluation (SilVar-Med); using it as a
    reward is ours. Meant for open questions, which have no letters to compare. Reads the columns
    question, options, letters and references.
    """
    values: Values = [0.0] * len(completions)
    inquiries = {}
    names = ("letters", "question", "options", "references")
    for i, question in enumerate(rows(completions, columns, *names)):
        if inquiry := correctness_inquiry(*question):
            inquiries[i] = inquiry
    for i, choice in _choices(judge, inquiries):
        values[i] = None if choice is None else int(choice) / BEST
    return values


def consistency(judge: Judge, prompts: Texts, completions: Texts, **columns: Sequence) -> Values:
    """1.0 if the option that the reasoning arrives at is the letter answered, else 0.0.

    After CAPO (arXiv 2506.12849), which rewards an answer that follows from its reasoning; its
    method is not published. Ours shows the judge the reasoning without the answer, and compares.
    Whether the answer is right does not matter. None for open questions. Reads the columns
    question, options, letters and asked.
    """
    values, inquiries, answered = _zeros(completions, columns), {}, {}
    for i, row in enumerate(rows(completions, columns, "letters", "options", "question")):
        text, letters, options, question = row
        thought = answers.reasoning(text)
        if not options:
            values[i] = None
        if not thought or values[i] is None:
            continue
        answered[i] = answers.answer_letter(text, letters, options)
        if answered[i] is not None:
            inquiries[i] = judge_prompts.conclusion(question, options, thought)
    for i, choice in _choices(judge, inquiries):
        values[i] = None if choice is None else float(choice == answered[i])
    return values


def similarity(encoder: Encoder, prompts: Texts, completions: Texts, **columns: Sequence) -> Values:
    """Cosine between the reasoning and the reference reasoning; 0.0 if it is negative.

    The semantic similarity that Zhu et al. (arXiv 2505.13973) report, made a reward: ours. An
    opposite can be as similar as a synonym, so this reward never stands alone. None without a
    reference. Reads the columns reasoning and asked.
    """
    values = _zeros(completions, columns)
    pairs = {}
    for i, (text, reference) in enumerate(rows(completions, columns, "reasoning")):
        if not reference.strip():
            values[i] = None
        elif values[i] is not None:
            pairs[i] = (answers.reasoning(text), reference)
    for i, cosine in zip(pairs, encoder.similarity(list(pairs.values())), strict=True):
        values[i] = max(0.0, cosine)
    return values


def explanation_inquiry(
    text: str, letters: Texts, question: str, options: Texts, references: Texts, reference: str
) -> Inquiry | None:
    """Ask how good the completion's reasoning is, from 0 to 3; None if it has no reasoning.

    `reference` is the reference reasoning, which may be "".
    """
    thought, said = answers.reasoning(text), said_answer(text, letters, options)
    if not thought:
        return None
    return judge_prompts.explanation(question, options, references, reference, thought, said)


def correctness_inquiry(
    text: str, letters: Texts, question: str, options: Texts, references: Texts
) -> Inquiry | None:
    """Ask how right the completion's answer is, from 0 to 3; None without one answer block."""
    said = said_answer(text, letters, options)
    return judge_prompts.correctness(question, options, references, said) if said else None


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


def _zeros(completions: Texts, columns: Mapping[str, Sequence]) -> Values:
    """Return 0.0 for each completion, but None where the question asks for no reasoning."""
    return [None if way == "direct" else 0.0 for _, way in rows(completions, columns, "asked")]


def _choices(judge: Judge, inquiries: Mapping[int, Inquiry]) -> Iterator[tuple[int, str | None]]:
    """Yield each inquiry's key and the choice of its verdict; None if it is unreadable."""
    verdicts = judge.ask(list(inquiries.values()))
    for i, verdict in zip(inquiries, verdicts, strict=True):
        yield i, verdict and verdict.choice


def reward_terms(spec: str, length_cap: int, judges: Sequence[Judge | Encoder]) -> list[Reward]:
    """Return the rewards of --reward, those of judges among them.

    Prints a line if a rule stands in for a judge. Raises RewardError.
    """
    judged = judged_rewards(judges)
    terms = parse_rewards(spec, built_in(length_cap) | judged)
    if "consistency" in {term.name for term in terms} - judged.keys():
        print("train.py: consistency is judged by a rule; --judge for a model", file=sys.stderr)
    return terms
