"""Answered questions as judges see them: grades of answer and explanation, and likeness."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rewards.answers import reasoning
from rewards.evaluation.predictions import Row
from rewards.judges import judge_prompts as rubrics
from rewards.judges.judge import Inquiry, Judge, Verdict, open_judges
from rewards.judges.judge_rewards import BEST, said_answer
from rewards.judges.local import Encoder
from rewards.scoring import RewardError

# What each figure needs, and the flag that gives it.
KINDS = dict.fromkeys(
    ("correctness", "reasoning"), (Judge, "--judge URL --judge-model NAME, or hf:FOLDER")
) | {"similarity": (Encoder, "--judge embed:FOLDER")}
NOTHING = Verdict("0", "nothing was said")


def graded(
    rows: Sequence[Row],
    examples: Sequence[Any],
    names: Sequence[str],
    judges: Sequence[Judge | Encoder],
) -> list[Row]:
    """One row an answered question, with those of `names` that are a judge's or an encoder's.

    correctness, reasoning: the grades of the answer and of the explanation, 0 to 3, as shares of 3,
    with the judge's reasons under `NAME_reason`; what is empty has grade 0 and is not asked about.
    similarity: cosine of the reasoning with the reference reasoning. None is what could not be
    read, or has no reference. Raises RewardError where no judge can do it.
    """
    found: list[Row] = [{"id": row["id"], "closed": row["closed"]} for row in rows]
    for name in ("correctness", "reasoning"):
        if name in names:
            judge = judge_of(name, judges)
            inquiries = [_inquiry(name, *pair) for pair in zip(rows, examples, strict=True)]
            verdicts = iter(judge.ask([inquiry for inquiry in inquiries if inquiry]))
            for row, inquiry in zip(found, inquiries, strict=True):
                verdict = next(verdicts) if inquiry else NOTHING
                row[name] = None if verdict is None else int(verdict.choice) / BEST
                row[f"{name}_reason"] = "not readable" if verdict is None else verdict.reason
    if "similarity" in names:
        encoder = judge_of("similarity", judges)
        said = (reasoning(row["completion"]) for row in rows)
        pairs = list(zip(said, (e.reasoning for e in examples), strict=True))
        for row, (_, reference), cosine in zip(
            found, pairs, encoder.similarity(pairs), strict=True
        ):
            row["similarity"] = cosine if reference else None
    return found


def _inquiry(name: str, row: Row, example: Any) -> Inquiry | None:
    """What the judge is asked about a row; None where it says nothing of the kind."""
    text = row["completion"]
    answer, thought = said_answer(text, example.letters, example.options), reasoning(text)
    shown = (example.question, example.options, example.right_answers)
    if name == "correctness":
        return rubrics.correctness(*shown, answer) if answer else None
    if not thought:
        return None
    return rubrics.explanation(*shown, example.reasoning, thought, answer)


def open_graders(
    names: Sequence[str], specs: str | None, model: str | None, cache: Path | None
) -> list[Judge | Encoder]:
    """The judges that `names` need, opened as `open_judges` does; none where none is needed.

    Raises RewardError where one is missing.
    """
    judged = [name for name in names if name in KINDS]
    judges = open_judges(specs, model, cache) if judged else []
    for name in judged:
        judge_of(name, judges)
    return judges


def judge_of(name: str, judges: Sequence[Judge | Encoder]) -> Any:
    """The one of `judges` that measures `name`. Raises RewardError where there is none."""
    kind, remedy = KINDS[name]
    for judge in judges:
        if isinstance(judge, kind):
            return judge
    raise RewardError(f"--metrics {name}: needs a judge; add {remedy}")
