"""Metrics that judges give to answered questions: grades and the similarity of the reasoning."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rewards.answers import Texts, reasoning
from rewards.evaluation.predictions import Row
from rewards.judges.judge import Judge, open_judges
from rewards.judges.judge_rewards import correctness_inquiry, explanation_inquiry, value
from rewards.judges.local import Encoder
from rewards.scoring import NEED_A_JUDGE, RewardError

# The kind of judge that each metric needs.
KINDS = {"correctness": Judge, "reasoning": Judge, "similarity": Encoder}


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
        pairs = [(reasoning(text), reference) for text, *_, reference in known]
        cosines = judges["similarity"].similarity(pairs)
        for row, (_, reference), cosine in zip(found, pairs, cosines, strict=True):
            row["similarity"] = cosine if reference else None
    return found


def open_graders(names: Texts, specs: str | None, model: str | None, cache: Path | None) -> dict:
    """Return the judge of each of `names` that needs one, opened as `open_judges` does.

    Raises RewardError if one is missing.
    """
    judged = [name for name in names if name in KINDS]
    opened = open_judges(specs, model, cache) if judged else []
    judges = {name: judge for name in judged for judge in opened if isinstance(judge, KINDS[name])}
    for name in judged:
        if name not in judges:
            raise RewardError(f"--metrics {name}: needs a judge; add {NEED_A_JUDGE[name]}")
    return judges
