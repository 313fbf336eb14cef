"""Rewards that are another model's opinion: of the answer, of the reasoning, and of both together.

None where the question asks for no reasoning, where the verdict could not be read (the judge counts
those), or where there is nothing to compare with. What is empty earns 0.0 and the judge is not
asked: it could only be talked into more.
"""

from collections.abc import Sequence
from functools import partial

from rewards import answers as parse
from rewards.judges import judge_prompts as rubrics
from rewards.judges.judge import Inquiry, Judge, Verdict
from rewards.judges.local import Encoder
from rewards.scoring import RewardFunction

BEST = int(rubrics.GRADES[-1])
Texts = Sequence[str]


def judged_rewards(judges: Sequence[Judge | Encoder]) -> dict[str, RewardFunction]:
    """Reward functions by name, those that these judges can give.

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


def semantic(
    judge: Judge,
    prompts: Texts,
    completions: Texts,
    question: Texts,
    asked: Texts = (),
    **columns: object,
) -> list[float | None]:
    """1.0 where the judge finds the reasoning clinically coherent, else 0.0.

    The semantic alignment reward of Zhu et al. (arXiv 2505.13973), which is binary, too. The prompt
    is ours (rewards/judges/judge_prompts.py), and so is that only the reasoning is shown.
    """
    rows = zip(question, _reasoned(completions, asked), strict=True)
    choices = _choices(judge, [said and rubrics.coherence(text, said) for text, said in rows])
    return [None if choice is None else float(choice == "yes") for choice in choices]


def explanation(
    judge: Judge,
    prompts: Texts,
    completions: Texts,
    question: Texts,
    options: Sequence[Texts],
    letters: Sequence[Texts],
    references: Sequence[Texts],
    reasoning: Texts,
    asked: Texts = (),
    **columns: object,
) -> list[float | None]:
    """The judge's grade of the explanation, 0 to 3, divided by 3.

    RARL (arXiv 2506.06600) rewards the quality of the reasoning; its formula is not published. The
    scale is that of its authors' evaluation (SilVar-Med); that a reward uses it is ours.
    """
    inquiries = []
    for i, said in enumerate(_reasoned(completions, asked)):
        answer = said_answer(completions[i], letters[i], options[i])
        shown = (question[i], options[i], references[i], reasoning[i])
        inquiries.append(said and rubrics.explanation(*shown, said, answer))
    return _grades(_choices(judge, inquiries))


def correctness(
    judge: Judge,
    prompts: Texts,
    completions: Texts,
    question: Texts,
    options: Sequence[Texts],
    letters: Sequence[Texts],
    references: Sequence[Texts],
    **columns: object,
) -> list[float | None]:
    """The judge's grade of the answer, 0 to 3, divided by 3; 0.0 without one answer block.

    RARL's reward of the answer, on the scale of its authors' evaluation (SilVar-Med); that a reward
    uses it is ours. Meant for open questions, where no letters can be compared.
    """
    inquiries = []
    for i, text in enumerate(completions):
        said = said_answer(text, letters[i], options[i])
        shown = (question[i], options[i], references[i])
        inquiries.append(said and rubrics.correctness(*shown, said))
    return _grades(_choices(judge, inquiries))


def consistency(
    judge: Judge,
    prompts: Texts,
    completions: Texts,
    question: Texts,
    options: Sequence[Texts],
    letters: Sequence[Texts],
    asked: Texts = (),
    **columns: object,
) -> list[float | None]:
    """1.0 where the option that the reasoning arrives at is the letter answered, else 0.0.

    After CAPO (arXiv 2506.12849), which rewards an answer that follows from its reasoning. How is
    not published: ours shows the judge the reasoning without the answer, and compares. It says
    nothing of what is true. None for open questions.
    """
    rows = zip(completions, letters, options, strict=True)
    answers = [parse.answer_letter(*row) if row[2] else None for row in rows]
    inquiries = []
    for i, said in enumerate(_reasoned(completions, asked)):
        if not options[i]:
            said = None
        elif answers[i] is None:
            said = said and ""
        inquiries.append(said and rubrics.conclusion(question[i], options[i], said))
    choices = _choices(judge, inquiries)
    pairs = zip(choices, answers, strict=True)
    return [None if choice is None else float(choice == answer) for choice, answer in pairs]


def similarity(
    encoder: Encoder,
    prompts: Texts,
    completions: Texts,
    reasoning: Texts,
    asked: Texts = (),
    **columns: object,
) -> list[float | None]:
    """Cosine of the reasoning with the reference reasoning, 0.0 where it is negative.

    The semantic similarity that Zhu et al. (arXiv 2505.13973) report, made a reward: ours. An
    opposite can be as alike as a synonym, so it never stands alone. None without a reference.
    """
    rows = zip(_reasoned(completions, asked), reasoning, strict=True)
    pairs = [None if said is None or not text.strip() else (said, text) for said, text in rows]
    cosines = iter(encoder.similarity([pair for pair in pairs if pair]))
    return [max(0.0, next(cosines)) if pair else None for pair in pairs]


def said_answer(text: str, letters: Texts, options: Texts) -> str:
    """What the one answer block says, with the option that it names; "" if there is not just one.

    >>> said_answer("<answer>b</answer>", "AB", ["none", "cyst"])
    'B) cyst'
    >>> said_answer("<answer>a cyst</answer>", "", [])
    'a cyst'
    """
    if letter := parse.answer_letter(text, letters, options):
        return f"{letter}) {options[list(letters).index(letter)]}"
    return parse.answer_text(text) or ""


def _reasoned(completions: Texts, asked: Texts) -> list[str | None]:
    """The reasoning of each completion; None where the question asks for none."""
    ways = asked or ["reason"] * len(completions)
    rows = zip(completions, ways, strict=True)
    return [None if way == "direct" else parse.reasoning(text) for text, way in rows]


def _choices(judge: Judge, inquiries: Sequence[Inquiry | str | None]) -> list[str | None]:
    """The choice in each verdict, None if unreadable; "" and None ask nothing and stay."""
    asked = [inquiry for inquiry in inquiries if isinstance(inquiry, Inquiry)]
    verdicts = iter(judge.ask(asked))
    found = [next(verdicts) if isinstance(inquiry, Inquiry) else inquiry for inquiry in inquiries]
    return [verdict.choice if isinstance(verdict, Verdict) else verdict for verdict in found]


def _grades(choices: Sequence[str | None]) -> list[float | None]:
    """Grades as shares of the best; of what is empty, 0.0."""
    return [None if choice is None else int(choice or 0) / BEST for choice in choices]
