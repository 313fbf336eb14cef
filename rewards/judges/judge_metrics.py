"""Metrics that judges give to answered questions: grades and the similarity of the reasoning."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rewards.answers import reasoning
from rewards.evaluation.predictions import Row
from rewards.judges.interface import Inquiry, Verdict
from rewards.judges.judge import Judge, open_judges
from rewards.judges.judge_rewards import BEST, correctness_inquiry, explanation_inquiry
from rewards.judges.local import Encoder
from rewards.scoring import RewardError

# The kind of judge that each metric needs, and the flag that names one.
A_JUDGE = (Judge, "--judge URL --judge-model NAME, or hf:FOLDER")
KINDS = {
    "correctness": A_JUDGE,
    "reasoning": A_JUDGE,
    "similarity": (Encoder, "--judge embed:FOLDER"),
}
NOTHING = Verdict("0", "nothing was said")


def graded(
    rows: Sequence[Row],
    examples: Sequence[Any],
    names: Sequence[str],
    judges: Sequence[Judge | Encoder],
) -> list[Row]:
    """Return a row for each answered question, with those of `names` that a judge measures.

    correctness, reasoning: the grades of the answer and of the explanation, 0 to 3, divided by 3,
    with the judge's reasons under `NAME_reason`. An empty text has grade 0 and is not asked about.
    similarity: cosine between the reasoning and the reference reasoning, -1 to 1. A value is None
    if the verdict is unreadable or there is no reference. Raises RewardError if no judge of `names`
    is there.
    """
    found: list[Row] = [{"id": row["id"], "closed": row["closed"]} for row in rows]
    for name in ("correctness", "reasoning"):
        if name in names:
            inquiries = [_inquiry(name, *pair) for pair in zip(rows, examples, strict=True)]
            verdicts = iter(judge_of(name, judges).ask([each for each in inquiries if each]))
            for row, inquiry in zip(found, inquiries, strict=True):
                verdict = next(verdicts) if inquiry else NOTHING
                row[name] = None if verdict is None else int(verdict.choice) / BEST
                row[f"{name}_reason"] = "not readable" if verdict is None else verdict.reason
    if "similarity" in names:
        said = [reasoning(row["completion"]) for row in rows]
        references = [example.reasoning for example in examples]
        pairs = list(zip(said, references, strict=True))
        cosines = judge_of("similarity", judges).similarity(pairs)
        for row, reference, cosine in zip(found, references, cosines, strict=True):
            row["similarity"] = cosine if reference else None
    return found


def _inquiry(name: str, row: Row, example: Any) -> Inquiry | None:
    """Return the question to the judge about a row; None if the row's text is empty."""
    shown = (example.letters, example.question, example.options, example.right_answers)
    if name == "correctness":
        return correctness_inquiry(row["completion"], *shown)
    return explanation_inquiry(row["completion"], *shown, example.reasoning)


def open_graders(
    names: Sequence[str], specs: str | None, model: str | None, cache: Path | None
) -> list[Judge | Encoder]:
    """Open the judges that `names` need, as `open_judges` does; none if none is needed.

    Raises RewardError if one is missing.
    """
    judged = [name for name in names if name in KINDS]
    judges = open_judges(specs, model, cache) if judged else []
    for name in judged:
        judge_of(name, judges)
    return judges


def judge_of(name: str, judges: Sequence[Judge | Encoder]) -> Any:
    """Return the judge that measures `name`. Raises RewardError if there is none."""
    kind, remedy = KINDS[name]
    for judge in judges:
        if isinstance(judge, kind):
            return judge
    raise RewardError(f"--metrics {name}: needs a judge; add {remedy}")
