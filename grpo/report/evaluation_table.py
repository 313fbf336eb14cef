"""The tables of the report: an evaluation with its controls, and the settings of a run."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from grpo.settings.config import Config
from grpo.settings.flags import shown
from grpo.settings.recipes import RECIPES

Row = tuple[str, str, list[str]]  # kind (for the eye), label, a cell a column

LEFT, RIGHT = 150, 520  # of the plot of accuracies, in SVG units


@dataclasses.dataclass
class Sheet:
    """One evaluation: its table, its accuracies as a drawing, and the figures by question type."""

    name: str
    columns: list[str]
    rows: list[Row]
    by_type: list[Row]
    bars: list[dict[str, Any]]
    remarks: list[str]  # among them what evaluate.py says of accuracies without sight of the image


def evaluation(name: str, table: Mapping[str, Any]) -> Sheet:
    """An evaluation as evaluate.py and train.py write it. Raises KeyError, TypeError of others."""
    modalities, trained_on = list(table["chance"]), table["trained_on"]
    columns = [f"{m} (trained on)" if m == trained_on else m for m in modalities]
    columns += ["unseen, mean"] * bool(table["ood_mean"])
    same = [
        f"{modality}: {same} of {asked} shuffled images have the same right answer."
        for modality, (same, asked) in table["coinciding"].items()
        if same
    ]
    return Sheet(
        name,
        columns,
        list(_rows(table, modalities)),
        list(_by_type(table, modalities)),
        list(_bars(table, modalities)),
        [*same, *map(str, table.get("verdicts", []))],
    )


def _rows(table: Mapping[str, Any], modalities: list[str]) -> Iterator[Row]:
    some = next(iter(table["results"].values()))
    yield "", "questions", [str(some[m]["n"]) for m in modalities]
    yield "", "chance", [percent(table["chance"][m]) for m in modalities]
    for model, cells in table["results"].items():
        mean = [measured(table["ood_mean"][model])] if table["ood_mean"] else []
        yield "model", model, [measured(cells[m]) for m in modalities] + mean
        for gain in (table["gains"].get(model),) if table["gains"].get(model) else ():
            yield "", "minus base, points", [points(gain[m]["accuracy"]) for m in modalities]
            p = [f"{gain[m]['accuracy']['mcnemar_p']:.1g}" for m in modalities]
            yield "", "McNemar p", p
            forced = [points(gain[m]["forced_choice"]) for m in modalities]
            yield "", "forced choice minus base", forced
        for label, figure in (
            ("in the format", "format_rate"),
            ("forced choice", "forced_choice"),
            ("true findings", "findings"),
            ("letter bias", "letter_bias"),
            ("token F1", "f1"),
        ):
            if any(cells[m].get(figure) is not None for m in modalities):
                yield "", label, [percent(cells[m].get(figure)) for m in modalities]
        yield "", "tokens an answer", [f"{cells[m]['mean_length']:.0f}" for m in modalities]
        yield from _apart(cells, modalities)
        yield from _controls(table["controls"].get(model) or {}, modalities)
        for kind in ("sampled", "metrics"):
            yield from _figures(table[kind].get(model) or {}, modalities)
    for way, seeds in table.get("seeds", {}).items():
        label = f"mean of {seeds[modalities[0]]['seeds']} seeds{way}"
        yield "model", label, [measured(seeds[m]) for m in modalities]


def _apart(cells: Mapping[str, Any], modalities: list[str]) -> Iterator[Row]:
    """Questions that the accuracy above leaves out: open ones, and those of a constant answer."""
    for label, part in (("open questions", "open"), ("constant answers", "constant")):
        if any(cells[m][part]["n"] for m in modalities):
            yield "", label, [f"{measured(cells[m][part])}, n {cells[m][part]['n']}" for m in cells]


def _controls(controls: Mapping[str, Any], modalities: list[str]) -> Iterator[Row]:
    for control, of in controls.items():
        cells = [f"{measured(of[m])}, n {of[m]['n']}" if m in of else "-" for m in modalities]
        yield "control", control.replace("_", " "), cells
        apart = [of[m].get("constant") or {"n": 0} if m in of else {"n": 0} for m in modalities]
        if any(found["n"] for found in apart):
            shares = [percent(found["accuracy"]) if found["n"] else "-" for found in apart]
            yield "control", "constant answers there", shares
        if control == "permuted_options":
            same = [percent(of[m]["same_text"]) if m in of else "-" for m in modalities]
            yield "control", "same text in another order", same


def _figures(of: Mapping[str, Any], modalities: list[str]) -> Iterator[Row]:
    names = [name for name in next(iter(of.values()), {}) if name not in ("n", "samples")]
    for name in names:
        plain = name.endswith(("perplexity", " missing"))
        values = [of.get(m, {}).get(name) for m in modalities]
        yield "", name, [f"{v:.4g}" if plain and v is not None else percent(v) for v in values]


def _by_type(table: Mapping[str, Any], modalities: list[str]) -> Iterator[Row]:
    """Strict accuracy by question type of base and trained policy."""
    asked = {m: of for m, of in table["results"].items() if m in ("base", "trained")}
    found = [of[m]["by_type"] for of in asked.values() for m in modalities]
    for name in sorted({name for of in found for name in of}):
        cells = []
        for m in modalities:
            of = [cells_of[m]["by_type"].get(name) for cells_of in asked.values()]
            cells.append(" → ".join(percent(c["accuracy"]) if c else "-" for c in of))
        yield "", name, cells


def _bars(table: Mapping[str, Any], modalities: list[str]) -> Iterator[dict[str, Any]]:
    """Accuracy, interval and chance of every model on every modality, in SVG units."""

    def place(share: float) -> float:
        return round(LEFT + share * (RIGHT - LEFT), 1)

    for modality in modalities:
        for model, cells in table["results"].items():
            found = cells[modality]
            if found["accuracy"] is not None:
                low, high = found["ci95"]
                yield {
                    "modality": modality,
                    "model": model,
                    "x": place(found["accuracy"]),
                    "low": place(low),
                    "high": place(high),
                    "chance": place(table["chance"][modality]),
                    "said": measured(found),
                }


def settings(record: Mapping[str, Any]) -> list[tuple[str, str, str, bool]]:
    """(setting, value, the recipe's value, whether it differs) of config.json."""
    config, changed = record["config"], record.get("overrides") or {}
    plain = {field.name: field.default for field in dataclasses.fields(Config)}
    plain |= RECIPES.get(str(config.get("recipe")), {})
    return [
        (name, said(value), said(plain[name]) if name in plain else "-", name in changed)
        for name, value in config.items()
    ]


def said(value: Any) -> str:
    """A setting as a reader types it.

    >>> said(False), said(0), said(None)
    ('off', '0', 'none')
    """
    if isinstance(value, bool):
        return "on" if value else "off"
    return shown(value)


def percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"


def measured(found: Mapping[str, Any]) -> str:
    """An accuracy and its 95 % interval, in percent.

    >>> measured({"accuracy": 0.5, "ci95": [0.4, 0.6]})
    '50.0 [40.0, 60.0]'
    """
    if found["accuracy"] is None:
        return "-"
    low, high = found["ci95"]
    return f"{percent(found['accuracy'])} [{percent(low)}, {percent(high)}]"


def points(difference: Mapping[str, Any] | None) -> str:
    """A difference and its 95 % interval, in points."""
    if difference is None:
        return "-"
    low, high = difference["ci95"]
    return f"{100 * difference['gain']:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"
