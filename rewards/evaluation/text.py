"""The rows of rewards/evaluation/rows.py on a screen and in Markdown, and one answer as text."""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from string import ascii_uppercase
from typing import Any

from rewards.evaluation.rows import LABEL, percent, points
from rewards.evaluation.statistics import differ

WIDTH = 21  # columns of a cell on the screen


def text(table: Mapping[str, Any]) -> str:
    """Return the table as lines of at most 102 characters for three modalities, without colour."""
    shown = table["rendered"]
    lines = [("", shown["parts"][0]["columns"])]
    for part in shown["parts"]:
        lines += [("", []), (part["title"], [])] if part["title"] else []
        lines += [(row["label"], row["cells"]) for row in part["rows"]]
    padded = (f"{x:{LABEL}}" + "".join(f"{cell:>{WIDTH}}" for cell in cells) for x, cells in lines)
    return "\n".join([*(line.rstrip() for line in padded), *shown["footnotes"]])


def markdown(table: Mapping[str, Any]) -> str:
    """Return each part as a Markdown table, the footnotes below them."""
    blocks = []
    for part in table["rendered"]["parts"]:
        columns = part["columns"]
        lines = [["", *columns], ["---"] * (len(columns) + 1)]
        lines += [[part["title"], *[""] * len(columns)]] if part["title"] else []
        for row in part["rows"]:
            missing = [""] * (len(columns) - len(row["cells"]))
            lines.append([row["label"].strip(), *row["cells"], *missing])
        blocks.append("\n".join(f"| {' | '.join(line)} |" for line in lines))
    return "\n\n".join([*blocks, "\n".join(table["rendered"]["footnotes"])]).strip() + "\n"


def one(row: Mapping[str, Any]) -> str:
    """Return the answer to one question as text, with the probability of each letter."""
    letter = row["answer"] or row["forced_answer"]
    unsure = "" if row["answer"] else " (no answer in the format; this is the likeliest)"
    named = dict(zip(ascii_uppercase, row["options"], strict=False))
    lines = [f"reasoning  {row['forced_reasoning'] or '-'}"]
    lines.append(f"answer     {letter}) {named[letter]}{unsure}")
    for (name, option), logprob in zip(named.items(), row["letter_logprobs"], strict=True):
        lines.append(f"  {100 * math.exp(logprob):5.1f} %  {name}) {option}")
    return "\n".join([*lines, "Not for clinical use."])


def signal(rows: Sequence[Mapping[str, Any]], forced: float | None, reward: str) -> str:
    """Return what GRPO would see of the questions of predictions.py: pass_rates.

    `forced` is the share that forced choice answers right, `reward` names the rewards.
    """
    n, right = rows[0]["n"], [row["correct"] for row in rows]
    always, never = right.count(n), right.count(0)
    told = [f"{len(rows)} questions, {n} samples each: always right {always}, never {never}, mixed"]
    told[0] += f" {len(rows) - always - never}; by forced choice {percent(forced)} % right"
    for size in (4, 8):
        total = percent(fmean(differ(row["totals"], size) for row in rows))
        alone = percent(fmean(differ([1] * c + [0] * (n - c), size) for c in right))
        told.append(f"groups of {size} that differ in {reward} {total} %, in correctness {alone} %")
    return "\n".join(told)


def gains(table: Mapping[str, Any]) -> str:
    """Return what training gained, in one phrase a modality."""
    return "; ".join(
        f"{modality} strict {points(gain['accuracy'])}, "
        f"forced choice {points(gain['forced_choice'])}"
        for modality, gain in table["gains"]["trained"].items()
    )
