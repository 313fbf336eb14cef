"""Answers to questions: kept in a file, made into the figures of a table, and into text."""

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from rewards.metrics import paired_interval, wilson

Row = dict[str, Any]  # one question and how it was answered, as evaluate.py writes it
MODELS = ("base", "trained")


def kept_rows(
    file: Path, examples: Sequence[Any], predict: Callable[[list[Any]], Iterable[Row]]
) -> list[Row]:
    """The row of each example, in order: from `file`, or predicted now and added to it at once.

    What was cut off goes on where it stopped. Raises OSError where the file cannot be written.
    """
    rows = _read_rows(file)
    missing = [example for example in examples if example.id not in rows]
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") as out:
        for row in predict(missing):
            rows[row["id"]] = row
            print(json.dumps(row), file=out, flush=True)
    return [rows[example.id] for example in examples]


def _read_rows(file: Path) -> dict[str, Row]:
    """The rows of a file by question. A line cut off while it was written is taken out of it."""
    rows, whole = {}, True
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else ():
        try:
            row = json.loads(line)
            rows[row["id"]] = row
        except ValueError:
            whole = False
    if not whole:
        mended = file.with_suffix(".tmp")
        mended.write_text("".join(f"{json.dumps(row)}\n" for row in rows.values()))
        mended.replace(file)
    return rows


def cell(rows: Sequence[Row]) -> dict[str, Any]:
    """The figures of one model on one modality."""
    n, correct = len(rows), sum(row["correct"] for row in rows)
    parsed = [row["correct"] for row in rows if row["answer"] is not None]
    return {
        "n": n,
        "correct": correct,
        "accuracy": correct / n,
        "ci95": list(wilson(correct, n)),
        "format_rate": sum(row["formatted"] for row in rows) / n,
        "accuracy_parsed": sum(parsed) / len(parsed) if parsed else None,
        "forced_choice": sum(row["forced_correct"] for row in rows) / n,
        "mean_length": sum(row["length"] for row in rows) / n,
    }


def gain(before: Sequence[Row], after: Sequence[Row], name: str) -> dict[str, Any]:
    """Difference of two paired accuracies, 95 % interval; `name`: correct or forced_correct."""
    old, new = ([int(row[name]) for row in rows] for rows in (before, after))
    return {"gain": (sum(new) - sum(old)) / len(old), "ci95": list(paired_interval(old, new))}


def render(table: dict[str, Any]) -> str:
    """The table as text, in percent."""
    columns = ("", "", "n", "strict", "95 % interval", "format", "parsed", "forced")
    lines = [_line(*columns)]
    for modality, chance in table["chance"].items():
        for model in MODELS:
            c = table["results"][model][modality]
            low, high = (_percent(bound) for bound in c["ci95"])
            shown = (c["format_rate"], c["accuracy_parsed"], c["forced_choice"])
            strict = (_percent(c["accuracy"]), f"[{low}, {high}]")
            lines.append(_line(modality, model, c["n"], *strict, *map(_percent, shown)))
        strict, forced = (
            points(table["gains"][modality][k]) for k in ("accuracy", "forced_choice")
        )
        lines.append(
            f"{'':8} gain     strict {strict}, forced choice {forced}; chance {_percent(chance)}"
        )
    return "\n".join(lines)


def _line(modality: str, model: str, n: object, *figures: str) -> str:
    widths = (7, 15, 7, 7, 7)
    cells = " ".join(f"{figure:>{width}}" for figure, width in zip(figures, widths, strict=True))
    return f"{modality:8} {model:8} {n:>5} {cells}"


def _percent(fraction: float | None) -> str:
    return "-" if fraction is None else f"{100 * fraction:.1f}"


def points(difference: dict[str, Any]) -> str:
    low, high = difference["ci95"]
    return f"{100 * difference['gain']:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"
