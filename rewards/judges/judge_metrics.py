"""Metrics that judges give to answered questions: grades and the similarity of the reasoning."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rewards.answers import Texts, reasoning
from rewards.evaluation.predictions import Row
from rewards.judges.judge import Judge, Judges, open_judges
from rewards.judges.judge_rewards import correctness_inquiry, explanation_inquiry, value
from rewards.judges.local import Encoder
from rewards.scoring import NEED_A_JUDGE, RewardError

# The kind of judge that each metric needs.
KINDS = {"correctness": Judge, "reasoning": Judge, "similarity": Encoder}


def graded(rows: Sequence[Row], examples: Sequence[Any], names: Texts, judges: Judges) -> list[Row]:
    """Return a row for each answered question, with those of `names` that a judge measures.

    correctness, reasoning: the grades of the answer and of the explanation, 0 to 3, divided by 3,
    with the judge's reasons under `NAME_reason`. An empty text has grade 0 and is not asked about.
    similarity: cosine between the reasoning and the reference reasoning, -1 to 1. A value is None
    if the verdict is unreadable or there is no reference. Raises RewardError if no judge of `names`
    is there.
    """
    found: list[Row] = [{"id": row["id"], "closed": row["closed"]} for row in rows]
    known = [
        (row["completion"], e.letters, e.question, e.options, e.right_answers, e.reasoning)
        for row, e in zip(rows, examples, strict=True)
    ]
    for name, inquire in (("correctness", correctness_inquiry), ("reasoning", explanation_inquiry)):
        if name in names:
            verdicts = judge_of(name, judges).ask([inquire(*texts) for texts in known])
            for row, verdict in zip(found, verdicts, strict=True):
                row[name] = value(verdict)
                row[f"{name}_reason"] = verdict.reason if verdict else "not readable"
    if "similarity" in names:
        pairs = [(reasoning(text), reference) for text, *_, reference in known]
        cosines = judge_of("similarity", judges).similarity(pairs)
        for row, (_, reference), cosine in zip(found, pairs, cosines, strict=True):
            row["similarity"] = cosine if reference else None
    return found


def open_graders(names: Texts, specs: str | None, model: str | None, cache: Path | None) -> Judges:
    """Open the judges that `names` need, as `open_judges` does; none if none is needed.

    Raises RewardError if one is missing.
    """
    judged = [name for name in names if name in KINDS]
    judges = open_judges(specs, model, cache) if judged else []
    for name in judged:
        judge_of(name, judges)
    return judges


def judge_of(name: str, judges: Judges) -> Any:
    """Return the judge that measures `name`. Raises RewardError if there is none."""
    for judge in judges:
        if isinstance(judge, KINDS[name]):
            return judge
    raise RewardError(f"--metrics {name}: needs a judge; add {NEED_A_JUDGE[name]}")
