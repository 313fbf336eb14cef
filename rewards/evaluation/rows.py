"""The evaluation table as rows of text, in percent, which screen, Markdown and page lay out."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

LABEL = 18  # columns of a label on the screen
# kind (model, control or ""), label and cells for the screen, name and full cells for the page
Row = dict[str, Any]


def rendered(table: Mapping[str, Any]) -> dict[str, Any]:
    """Return the table's parts and footnotes as text, ready for JSON.

    A part has a title ("" for the main one), the names of its columns, and its rows.
    """
    columns = [f"{m} (trained)" if m == table["trained_on"] else m for m in table["chance"]]
    columns += ["OOD mean"] * bool(table["ood_mean"])
    compared = [model for model in ("base", "trained") if model in table["results"]]
    titles = ["", f"by type: strict, forced, {'→'.join(compared)}; thought right, followed"]
    parts = zip(titles, (_figures(table), _by_type(table, compared)), strict=True)
    found = [{"title": title, "columns": columns, "rows": list(rows)} for title, rows in parts]
    return {"parts": found, "footnotes": table["verdicts"]}


def _figures(table: Mapping[str, Any]) -> Iterator[Row]:
    """Yield the main part: each model's accuracy, and its other figures below it."""
    modalities = list(table["chance"])
    some = next(iter(table["results"].values()))
    yield _row("n", [str(some[m]["n"]) for m in modalities], "questions")
    yield _row("chance", [percent(table["chance"][m]) for m in modalities])
    for model, results in table["results"].items():
        cells = [results[m] for m in modalities]
        means = [table["ood_mean"][model]] if table["ood_mean"] else []
        yield _row(model, list(map(measured, [*cells, *means])), kind="model")
        if gains := table["gains"].get(model):
            yield from _gains([gains[m] for m in modalities])
        yield from _answers(cells)
        yield from _calibration([table["calibration"].get(model, {}).get(m) for m in modalities])
        yield from _apart(cells)
        yield from _controls(table["controls"].get(model, {}), modalities)
        reliant = table["reliance"].get(model, {})
        lost = [reliant.get(m, {}).get("visual_reliance") for m in modalities]
        if any(lost):
            cells = [points(x and x | {"gain": x["value"]}) for x in lost]
            yield _row("  visual reliance", cells, kind="control")
        for part in ("sampled", "metrics"):
            yield from _asked_for(table[part].get(model, {}), modalities)
    for way, seeds in table.get("seeds", {}).items():
        label = f"mean of {seeds[modalities[0]]['seeds']} seeds{way}"
        yield _row(label, [measured(seeds[m]) for m in modalities], kind="model")


def _row(label: str, cells: list[str], name: str = "", kind: str = "", full: Any = ()) -> Row:
    """`name` and `full` are for the page, which has more room; by default label and cells."""
    name = name or label.strip()
    return {"kind": kind, "label": label, "name": name, "cells": cells, "full": full or cells}


def _gains(gains: Sequence[Mapping[str, Any]]) -> Iterator[Row]:
    strict, forced = ([gain[part] for gain in gains] for part in ("accuracy", "forced_choice"))
    yield _row("  - base", list(map(points, strict)), "minus base, points")
    yield _row("  McNemar p", [p_value(gain["mcnemar_p"]) for gain in strict])
    yield _row("  forced - base", list(map(points, forced)), "forced choice minus base")


def _answers(cells: Sequence[Mapping[str, Any]]) -> Iterator[Row]:
    """Yield the figures beside the accuracy, without the lines that hold nothing."""
    for label, figure, form, name in (
        ("format", "format_rate", percent, "in the format"),
        ("forced choice", "forced_choice", percent, ""),
        ("length", "mean_length", "{:.0f}".format, "tokens an answer"),
        ("findings", "findings", percent, "true findings"),
        ("letter bias", "letter_bias", percent, ""),
        ("token F1", "f1", percent, ""),
    ):
        values = [cell[figure] for cell in cells]
        if any(value is not None for value in values):
            yield _row(f"  {label}", list(map(form, values)), name)


def _calibration(cells: Sequence[Mapping[str, Any] | None]) -> Iterator[Row]:
    if all(cells):
        errors = [f"{percent(x['ece'])} ({percent(x['calibrated']['mean'])})" for x in cells]
        yield _row("  ECE (calibrated)", errors, "calibration error (if calibrated)")


def _apart(cells: Sequence[Mapping[str, Any]]) -> Iterator[Row]:
    """Yield the questions that the accuracy leaves out: open ones, and those of one answer."""
    opened, constant = ([cell[part] for cell in cells] for part in ("open", "constant"))
    if any(found["n"] for found in opened):
        yield _row("  open, exact match", [measured(found) for found in opened])
        yield _row("  open, token F1", [f"{percent(c['f1'])} (n {c['n']})" for c in opened])
    if any(found["n"] for found in constant):
        shares = [f"{percent(c['accuracy'])} (n {c['n']})" for c in constant]
        yield _row("  constant apart", shares, "constant answers", full=_with_n(constant))


def _controls(controls: Mapping[str, Any], modalities: Sequence[str]) -> Iterator[Row]:
    if controls:
        asked = [str(found["n"]) for found in controls["blank_image"].values()]
        yield _row("  controls, n", asked, kind="control")
    for control, by_modality in controls.items():
        label, found = f"  {control.replace('_', ' ')}", [by_modality[m] for m in modalities]
        if control.startswith("none_is"):
            found = [share["forced_choice"] for share in found]
        yield _row(label, list(map(measured, found)), kind="control", full=_with_n(found))
        constant = [share["constant"] for share in found if "constant" in share]
        if any(share["n"] for share in constant):
            shares = [percent(share["accuracy"]) for share in constant]
            yield _row("    constant", shares, "constant answers there", "control")
        if control == "permuted_options":
            same = [percent(share["same_text"]) for share in found]
            yield _row("  same text", same, "same text in another order", "control")


def _with_n(shares: Sequence[Mapping[str, Any]]) -> list[str]:
    return [f"{measured(share)}, n {share['n']}" for share in shares]


def _asked_for(figures: Mapping[str, Any], modalities: Sequence[str]) -> Iterator[Row]:
    """Yield the figures of --samples or --metrics: perplexities as they are, others in percent."""
    names = {name: figure for found in figures.values() for name, figure in found.items()}
    for name in (n for n, figure in names.items() if not isinstance(figure, int | dict)):
        values = [figures[m].get(name) for m in modalities]
        missing = [figures[m].get(f"{name} missing") for m in modalities]
        cells = [f"{v:.2f}" if v and "perplexity" in name else percent(v) for v in values]
        if "pass@" in name:
            found = [(v, figures[m]["ci95"][name]) for v, m in zip(values, modalities, strict=True)]
            cells = [measured({"accuracy": value, "ci95": ci95}) for value, ci95 in found]
        notes = [f" ({number} missing)" if number else "" for number in missing]
        yield _row(f"  {name}", [cell + note for cell, note in zip(cells, notes, strict=True)])


def _by_type(table: Mapping[str, Any], compared: Sequence[str]) -> Iterator[Row]:
    """Yield the figures by question type, of base and trained alone, to stay on one screen."""
    modalities = list(table["chance"])
    models = [table["results"][model] for model in compared]
    for name in sorted({kind for m in modalities for kind in models[0][m]["by_type"]}):
        found = [[model[m]["by_type"].get(name) for model in models] for m in modalities]
        cells, full = ([_of_type(pair, digits) for pair in found] for digits in (0, 1))
        yield _row(f"  {name[: LABEL - 3]}", cells, name, full=full)


def _of_type(shares: Sequence[Mapping[str, Any] | None], digits: int) -> str:
    """Return the figures of a question type, base and trained; the last two of trained alone."""
    if None in shares:
        return "-"
    last, forced = shares[-1], [share["forced_choice"] for share in shares]
    figures = (shares, forced, [last["says"]], [last["follows"]])
    return " ".join("→".join(percent(x["accuracy"], digits) for x in found) for found in figures)


def percent(share: float | None, digits: int = 1) -> str:
    """Return a share in percent, "-" for None."""
    return "-" if share is None else f"{100 * share:.{digits}f}"


def measured(found: Mapping[str, Any]) -> str:
    """Return an accuracy and its 95 % interval, in percent.

    >>> measured({"accuracy": 0.5, "ci95": [0.4, 0.6]})
    '50.0 [40.0, 60.0]'
    """
    if found["accuracy"] is None:
        return "-"
    low, high = map(percent, found["ci95"])
    return f"{percent(found['accuracy'])} [{low}, {high}]"


def points(difference: Mapping[str, Any] | None) -> str:
    """Return a difference of two accuracies and its 95 % interval, in points.

    >>> points({"gain": 0.1, "ci95": [-0.05, 0.25]})
    '+10.0 [-5.0, +25.0]'
    """
    if difference is None:
        return "-"
    low, high = difference["ci95"]
    return f"{100 * difference['gain']:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"


def p_value(p: float) -> str:
    """Return a p-value with one digit; one too small for a double is 0, and shown as smaller.

    >>> p_value(0.0312), p_value(0.0)
    ('0.03', '<1e-323')
    """
    return f"{p:.1g}" if p else "<1e-323"
