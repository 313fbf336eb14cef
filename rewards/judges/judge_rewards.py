"""Rewards and metrics that another model decides: about the answer, the reasoning, or both.

A reward is None if the question asks for no reasoning, if the verdict is unreadable (the judge
counts those), or if there is nothing to compare with. An empty text earns 0.0 and the judge is not
asked: it could only be talked into giving more.
"""

import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rewards import answers
from rewards.answers import Texts, Values, rows
from rewards.evaluation.predictions import Row
from rewards.judges import judge_prompts
from rewards.judges.interface import Inquiry, JudgeError, Verdict
from rewards.judges.judge import Judge, Judges, open_judges
from rewards.judges.local import Encoder
from rewards.scoring import NEED_A_JUDGE, Reward, RewardFunction, built_in, parse_rewards

# The value of each verdict. Grades are divided by the best one.
VALUES = {"no": 0.0, "yes": 1.0} | {grade: int(grade) / 3 for grade in judge_prompts.GRADES}


def judged_rewards(judges: Judges) -> dict[str, RewardFunction]:
    """Return the reward functions that these judges can give, by name.

    A Judge gives semantic, reasoning, correctness and consistency; an Encoder gives similarity.
    """
    return {each.__name__: partial(each, judge) for judge in judges for each in _given(judge)}


def _given(judge: Judge | Encoder) -> list[RewardFunction]:
    """Return the functions below that ask this kind of judge."""
    by_verdict = [semantic, reasoning, correctness, consistency]
    return by_verdict if isinstance(judge, Judge) else [similarity]


def semantic(judge: Judge, prompts: Texts, completions: Texts, **columns: Sequence) -> Values:
    """1.0 if the judge finds the reasoning clinically coherent, else 0.0.

    The semantic alignment reward of Zhu et al. (arXiv 2505.13973), which is binary, too. The prompt
    is ours (judge_prompts.py), and so is showing the reasoning alone. Reads the columns question
    and asked.
    """
    inquiries = [
        None if way == "direct" else judge_prompts.coherence(question, answers.reasoning(text))
        for text, question, way in rows(completions, columns, "question", "asked")
    ]
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
        letter = answers.answer_letter(text, letters, options)
        thought = answers.reasoning(text) if letter else ""
        asked = judge_prompts.conclusion(question, options, thought)
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
    """Ask how good the completion's reasoning is, from 0 to 3.

    `reference` is the reference reasoning, which may be "".
    """
    thought, said = answers.reasoning(text), said_answer(text, letters, options)
    return judge_prompts.explanation(question, options, references, reference, thought, said)


def correctness_inquiry(
    text: str, letters: Texts, question: str, options: Texts, references: Texts, reference: str = ""
) -> Inquiry | Verdict:
    """Ask how right the completion's answer is, from 0 to 3; without one answer block it is empty.

    `reference`, the reference reasoning, is not shown to the judge.
    """
    said = said_answer(text, letters, options)
    return judge_prompts.correctness(question, options, references, said)


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


def reward_terms(config: Any, judges: Judges) -> list[Reward]:
    """Return the rewards of a run's --reward, those of judges among them.

    Prints a line if a rule stands in for a judge. Raises RewardError.
    """
    lengths = config.length_cap, config.max_completion_length, config.overlong_cache
    judged = judged_rewards(judges)
    terms = parse_rewards(config.reward, built_in(*lengths) | judged)
    if "consistency" in {term.name for term in terms} - judged.keys():
        print("train.py: consistency is judged by a rule; --judge for a model", file=sys.stderr)
    return terms


def graded(rows: Sequence[Row], examples: Sequence[Any], judges: Mapping[str, Any]) -> list[Row]:
    """Return a row for each answered question, with the metrics of `open_graders`.

    correctness, reasoning: the grades of the answer and of the explanation, 0 to 3, divided by 3,
    with the judge's reasons under `NAME_reason`. An empty text has grade 0 and is not asked about.
    similarity: cosine between the reasoning and the reference reasoning, -1 to 1. A value is None
    if the verdict is unreadable or there is no reference.
    """
    found: list[Row] = [{"id": row["id"], "closed": row["closed"]} for row in rows]
    known = [
        (row["completion"], e.letters, e.question, e.options, e.right_answers, e.reasoning)
        for row, e in zip(rows, examples, strict=True)
    ]
    for name, inquire in (("correctness", correctness_inquiry), ("reasoning", explanation_inquiry)):
        if name in judges:
            verdicts = judges[name].ask([inquire(*texts) for texts in known])
            for row, verdict in zip(found, verdicts, strict=True):
                row[name] = value(verdict)
                row[f"{name}_reason"] = verdict.reason if verdict else "not readable"
    if "similarity" in judges:
        pairs = [(answers.reasoning(text), reference) for text, *_, reference in known]
        cosines = judges["similarity"].similarity(pairs)
        for row, (_, reference), cosine in zip(found, pairs, cosines, strict=True):
            row["similarity"] = cosine if reference else None
    return found


def open_graders(names: Texts, specs: str | None, model: str | None, cache: Path | None) -> dict:
    """Return the judge of each of `names` that needs one, opened as `open_judges` does.

    Raises JudgeError if one is missing.
    """
    judged = [name for name in names if name in NEED_A_JUDGE]
    opened = open_judges(specs, model, cache) if judged else []
    judges = {each.__name__: judge for judge in opened for each in _given(judge)}
    for name in judged:
        if name not in judges:
            raise JudgeError(f"--metrics {name}: needs a judge; add {NEED_A_JUDGE[name]}")
    return {name: judges[name] for name in judged}
