"""The figures of data/audit/audit.py as text."""

from collections.abc import Iterable
from itertools import chain
from typing import Any

Row = tuple[str, list[Any]]  # label, a cell a modality


def render(figures: dict[str, Any]) -> str:
    """The figures as one screen of text: a column a modality, accuracies in percent."""
    names = list(figures["counts"])
    width = 2 + max(9, *map(len, names))
    rows = [("", names), *count_rows(figures), ("", []), *score_rows(figures), ("", [])]
    table = [f"{label:34}" + "".join(f"{cell:>{width}}" for cell in cells) for label, cells in rows]
    leaks, copies = figures["leaks"], figures["copies"]
    lines = [
        f"{figures['data']}, seed {figures['seed']}",
        *table,
        f"Images in more than one split: {leaks['path']} by path, {leaks['hash']} by content "
        f"({copies['images']} lie under several paths, {copies['paths']} in all).",
        f"Pairs of near copies: {copies['near']}, {len(leaks['near'])} of them across splits.",
        f"Rows left out: {figures['left_out']}.",
    ]
    return "\n".join(line.rstrip() for line in lines)


def count_rows(figures: dict[str, Any]) -> list[Row]:
    """Rows with the numbers of questions and images, and the commonest letters."""
    counted = list(figures["counts"].values())
    rows: list[Row] = [(what, [one[what] for one in counted]) for what in ("questions", "images")]
    for part, words in (("splits", "{} split"), ("types", "{}"), ("options", "{} options")):
        for kind in dict.fromkeys(chain(*(one[part] for one in counted))):
            label = "no options" if (part, kind) == ("options", "0") else words.format(kind)
            rows.append(("  " + label, [one[part].get(kind, 0) for one in counted]))
    for number in dict.fromkeys(chain(*figures["letters"].values())):
        found = [one.get(number) for one in figures["letters"].values()]
        cells = [_commonest(count) if count else "-" for count in found]
        rows.append((f"  commonest letter of {number}, %", cells))
    return rows


def score_rows(figures: dict[str, Any]) -> list[Row]:
    """Rows with the accuracies that are reached without the images."""

    def percent(scores: Iterable[dict[str, Any]], what: str = "accuracy") -> list[str]:
        return ["-" if one[what] is None else f"{100 * one[what]:.1f}" for one in scores]

    constants, stops = figures["constant"].values(), figures["full_stops"].values()
    asked, learned = figures["options_prior"].values(), figures["options_prior_from"]
    others = [one["rest"] for one in constants]
    texts = {name: f"{figures['trained_on'][name]} {name}" for name in learned}
    return [
        ("test questions answered", [one["n"] for one in asked]),
        ("  by chance, %", percent(asked, "chance")),
        ("  by the majority letter", percent(figures["majority_letter"].values())),
        *((f"  by option texts of {texts[m]}", percent(learned[m].values())) for m in learned),
        ("of them with a constant answer", [one["n"] for one in constants]),
        ("the others, by chance, %", percent(others, "chance")),
        ("  by option texts of their own", percent(others)),
        ("a lone full stop marks the answer", [f"{s['right']}/{s['questions']}" for s in stops]),
    ]


def _commonest(count: dict[str, int]) -> str:
    letter = max(count, key=count.__getitem__)
    return f"{letter} {100 * count[letter] / sum(count.values()):.1f}"
