"""The table of evaluate.py as text and as Markdown, in percent."""

import math
from collections.abc import Iterator
from string import ascii_uppercase
from typing import Any

Line = tuple[str, list[str]]  # label, a cell a column
WIDTH, LABEL = 21, 18


def text(table: dict[str, Any]) -> str:
    """The table as lines of at most 102 characters for three modalities, without colour."""
    columns = _columns(table)
    lines = [("", columns), *_figures(table), ("", []), *_by_type(table)]
    shown = (
        f"{label:{LABEL}}" + "".join(f"{cell:>{WIDTH}}" for cell in row) for label, row in lines
    )
    return "\n".join([*(line.rstrip() for line in shown), *_remarks(table)])


def markdown(table: dict[str, Any]) -> str:
    """The same as a Markdown table, the remarks below it."""
    columns = _columns(table)
    blocks = []
    for lines in (_figures(table), _by_type(table)):
        head = ["", *columns]
        rows = [head, ["---"] * len(head)]
        rows += [[label.strip(), *row, *[""] * (len(columns) - len(row))] for label, row in lines]
        blocks.append("\n".join(f"| {' | '.join(row)} |" for row in rows))
    return "\n\n".join([*blocks, "\n".join(_remarks(table))]).strip() + "\n"


def _columns(table: dict[str, Any]) -> list[str]:
    names = [
        f"{name} (trained)" if name == table["trained_on"] else name for name in table["chance"]
    ]
    return names + ["OOD mean"] * bool(table["ood_mean"])


def _figures(table: dict[str, Any]) -> Iterator[Line]:
    modalities = list(table["chance"])
    (some, *_) = table["results"].values()
    yield "n", [str(some[m]["n"]) for m in modalities]
    yield "chance", [percent(table["chance"][m]) for m in modalities]
    for model, cells in table["results"].items():
        means = [_measured(table["ood_mean"][model])] if table["ood_mean"] else []
        yield model, [_measured(cells[m]) for m in modalities] + means
        yield from _differences(table["gains"].get(model))
        yield "  format", [percent(cells[m]["format_rate"]) for m in modalities]
        yield from _some("forced choice", [cells[m]["forced_choice"] for m in modalities])
        yield "  length", [f"{cells[m]['mean_length']:.0f}" for m in modalities]
        yield from _some("findings", [cells[m]["findings"] for m in modalities])
        yield from _some("letter bias", [cells[m]["letter_bias"] for m in modalities])
        yield from _some("token F1", [cells[m]["f1"] for m in modalities])
        if any(cells[m]["open"]["n"] for m in modalities):
            opened = [cells[m]["open"] for m in modalities]
            yield "  open, exact match", [_measured(found) for found in opened]
            yield "  open, token F1", [f"{percent(c['f1'])} (n {c['n']})" for c in opened]
        if any(cells[m]["constant"]["n"] for m in modalities):
            apart = [cells[m]["constant"] for m in modalities]
            yield "  constant apart", [f"{percent(c['accuracy'])} (n {c['n']})" for c in apart]
        yield from _controls(table["controls"].get(model))
        yield from _sampled(table["sampled"].get(model))
        yield from _metrics(table["metrics"].get(model))
    for way, seeds in table.get("seeds", {}).items():
        label = f"mean of {seeds[modalities[0]]['seeds']} seeds{way}"
        yield label, [_measured(seeds[m]) for m in modalities]


def _differences(gains: dict[str, Any] | None) -> Iterator[Line]:
    if gains:
        yield "  - base", [points(gain["accuracy"]) for gain in gains.values()]
        yield "  McNemar p", [f"{gain['accuracy']['mcnemar_p']:.1g}" for gain in gains.values()]
        yield "  forced - base", [points(gain["forced_choice"]) for gain in gains.values()]


def _controls(controls: dict[str, Any] | None) -> Iterator[Line]:
    if not controls:
        return
    yield "  controls, n", [str(found["n"]) for found in controls["blank_image"].values()]
    for control, of in controls.items():
        yield f"  {control.replace('_', ' ')}", [_measured(found) for found in of.values()]
        constant = [found["constant"] for found in of.values() if "constant" in found]
        if any(found["n"] for found in constant):
            yield "    constant", [percent(found["accuracy"]) for found in constant]
        if control == "permuted_options":
            yield "  same text", [percent(found["same_text"]) for found in of.values()]


def _sampled(figures: dict[str, Any] | None) -> Iterator[Line]:
    if figures:
        (some, *_) = figures.values()
        for name in (name for name in some if name not in ("n", "samples")):
            yield f"  {name}", [percent(found[name]) for found in figures.values()]


def _metrics(figures: dict[str, Any] | None) -> Iterator[Line]:
    """Perplexity as it is; grades and similarities in percent of the best, what is missing last."""
    if figures:
        (some, *_) = figures.values()
        for name in (name for name in some if not name.endswith(" missing")):
            cells = []
            for found in figures.values():
                missing = found.get(f"{name} missing")
                cell = f"{found[name]:.2f}" if "perplexity" in name else percent(found[name])
                cells.append(cell + (f" ({missing} missing)" if missing else ""))
            yield f"  {name}", cells


def _some(label: str, fractions: list[float | None]) -> Iterator[Line]:
    """A line in percent, unless there is nothing in it."""
    if any(fraction is not None for fraction in fractions):
        yield f"  {label}", [percent(fraction) for fraction in fractions]


def _by_type(table: dict[str, Any]) -> Iterator[Line]:
    """Strict accuracy by question type, base and trained alone, to stay on one screen."""
    modalities = list(table["chance"])
    shown = {name: cells for name, cells in table["results"].items() if name in ("base", "trained")}
    yield f"by type, {' → '.join(shown)}", []
    for name in sorted({t for m in modalities for t in shown["base"][m]["by_type"]}):
        found = [[cells[m]["by_type"].get(name) for cells in shown.values()] for m in modalities]
        row = [" → ".join(percent(c["accuracy"]) if c else "-" for c in cells) for cells in found]
        yield f"  {name[: LABEL - 3]}", row


def _remarks(table: dict[str, Any]) -> list[str]:
    same = [
        f"{modality}: {same} of {asked} shuffled images have the same right answer."
        for modality, (same, asked) in table["coinciding"].items()
        if same
    ]
    return same + table["verdicts"]


def _measured(found: dict[str, Any]) -> str:
    if found["accuracy"] is None:
        return "-"
    low, high = (percent(bound) for bound in found["ci95"])
    return f"{percent(found['accuracy'])} [{low}, {high}]"


def percent(fraction: float | None) -> str:
    return "-" if fraction is None else f"{100 * fraction:.1f}"


def points(difference: dict[str, Any] | None) -> str:
    if difference is None:
        return "-"
    low, high = difference["ci95"]
    return f"{100 * difference['gain']:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"


def one(row: dict[str, Any]) -> str:
    """The answer to one question, with the probability of each letter."""
    letter = row["answer"] or row["forced_answer"]
    unsure = "" if row["answer"] else " (no answer in the format; this is the likeliest)"
    named = dict(zip(ascii_uppercase, row["options"], strict=False))
    lines = [f"reasoning  {row['forced_reasoning'] or '-'}"]
    lines.append(f"answer     {letter}) {named[letter]}{unsure}")
    for (name, text), logprob in zip(named.items(), row["letter_logprobs"], strict=True):
        lines.append(f"  {100 * math.exp(logprob):5.1f} %  {name}) {text}")
    return "\n".join([*lines, "Not for clinical use."])
