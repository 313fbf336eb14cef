"""The results of a paper's arms as a page of Markdown, the paper's own numbers beside them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from statistics import fmean
from typing import Any

from .papers import Arm, Table

PHANTOMS = (
    "**These are phantoms: drawn images and a 2 million parameter model, not medical data.** The "
    "paper's numbers stand beside ours for their order, not for their size."
)


def page(record: dict[str, Any], table: Table, arms: Sequence[Arm]) -> str:
    """The whole page: accuracies, other figures, unseen sets, what was paid, and the paper."""
    done = {arm.name: found for arm in arms if "skipped" not in (found := record["arms"][arm.name])}
    phantom = record["scale"] == "phantom"
    blocks = [f"# {table.about}", f"`{record['command']}`"]
    blocks += [PHANTOMS] if phantom else []
    blocks += [_markdown(rows) for rows in (_accuracies(done), _figures(done), _unseen(done))]
    blocks += [_markdown(_paid(done, arms)), f"The paper: {table.paper}."]
    notes = [f"{arm}: {', '.join(f['stands_in'])}." for arm, f in done.items() if f["stands_in"]]
    if notes:
        blocks.append("No expert model was at hand; a rule stands in for it. " + " ".join(notes))
    skipped = [
        f"{arm.name}: {f['skipped']}."
        for arm in arms
        if "skipped" in (f := record["arms"][arm.name])
    ]
    blocks += [" ".join([*skipped, table.out_of_scope]).strip()]
    blocks += [PHANTOMS] if phantom else []
    return "\n\n".join(block for block in blocks if block)


def _models(done: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any], str]]:
    """(row, arm's record, model in it): every base once, then every arm, in all ways of asking."""
    bases: dict[str, tuple[dict[str, Any], str]] = {}
    for found in done.values():
        for model in found["evaluation"]["results"]:
            name, *way = model.split(", ")
            if name == "base":
                asked = way or [found["prompt"]] * (found["prompt"] != "reason")
                scratch = ["scratch"] * (found["init"] == "base")
                bases.setdefault(", ".join([name, *scratch, *asked]), (found, model))
    yield from ((row, *of) for row, of in bases.items())
    for arm, found in done.items():
        for model in found["evaluation"]["results"]:
            if model.partition(",")[0] == "trained":
                yield model.replace("trained", arm, 1), found, model


def _accuracies(done: dict[str, Any]) -> Iterator[list[str]]:
    """Strict accuracy by modality, and forced choice, which needs no format."""
    first = next(iter(done.values()))["evaluation"]
    modalities = list(first["chance"])
    yield ["strict accuracy, %", *modalities, *(f"{m}, forced choice" for m in modalities)]
    yield ["chance", *[percent(first["chance"][m]) for m in modalities], *[""] * len(modalities)]
    for row, found, model in _models(done):
        evaluation = found["evaluation"]
        seeds = evaluation.get("seeds") if model == "trained" else None
        cells = evaluation["results"][model]
        of = partial(_over_runs, evaluation, model)
        strict = [interval(seeds[m] if seeds else cells[m]) for m in modalities]
        yield [row, *strict, *[percent(of(m, "forced_choice")) for m in modalities]]


def _over_runs(evaluation: dict[str, Any], model: str, modality: str, name: str) -> float | None:
    """A figure, as the mean over the runs of all seeds."""
    runs = [model]
    if "seeds" in evaluation and model == "trained":
        runs += [m for m in evaluation["results"] if m.partition(",")[0] not in ("base", "trained")]
    values = [evaluation["results"][run][modality][name] for run in runs]
    return None if None in values else fmean(values)


def _figures(done: dict[str, Any]) -> Iterator[list[str]]:
    """Figures on the modality trained on: form, length, findings, perplexity, position bias."""
    yield [
        "in distribution", "format, %", "length, tokens", "findings, %", "perplexity",
        "letter bias, %", "same text when permuted, %",
    ]  # fmt: skip
    for row, found, model in _models(done):
        evaluation = found["evaluation"]
        home = evaluation["trained_on"]
        of = partial(_over_runs, evaluation, model, home)
        perplexity = evaluation["metrics"].get(model, {}).get(home, {}).get("perplexity")
        permuted = evaluation["controls"].get(model, {}).get("permuted_options", {}).get(home, {})
        yield [
            row,
            percent(of("format_rate")),
            f"{of('mean_length'):.1f}",
            percent(of("findings")),
            "-" if perplexity is None else f"{perplexity:.2f}",
            percent(of("letter_bias")),
            percent(permuted.get("same_text")),
        ]


def _unseen(done: dict[str, Any]) -> Iterator[list[str]]:
    """Strict accuracy and token F1 on data sets never trained on, all their modalities."""
    sets = list(next(iter(done.values()))["unseen"])
    if not sets:
        return
    yield ["never trained on, strict, %", *sets]
    for row, found, model in _models(done):
        cells = []
        for name in sets:
            of = found["unseen"][name]["results"][model]
            cells.append("; ".join(f"{m} {interval(cell)}" for m, cell in of.items()))
        yield [row, *cells]


def _paid(done: dict[str, Any], arms: Sequence[Arm]) -> Iterator[list[str]]:
    """Steps, questions, completions, time and memory of each arm, and the paper's number."""
    yield ["arm", "steps", "questions", "completions", "seconds a run", "peak MB", "the paper"]
    papers = {arm.name: arm.paper for arm in arms}
    for arm, found in done.items():
        seconds = ", ".join(f"{second:.0f}" for second in found["seconds"])
        paid = [str(found[name]) for name in ("steps", "examples", "completions")]
        yield [arm, *paid, seconds, f"{found['peak_mb']:.0f}", papers[arm]]


def _markdown(rows: Iterator[list[str]]) -> str:
    """A table without the columns that hold nothing."""
    (head, *body) = list(zip(*rows, strict=True)) or [()]
    kept = [head, *(column for column in body if set(column[1:]) - {"-", ""})]
    lines = [f"| {' | '.join(cells)} |" for cells in zip(*kept, strict=True)]
    if lines:
        lines.insert(1, "|" + "---|" * (lines[0].count("|") - 1))
    return "\n".join(lines)


def interval(found: dict[str, Any]) -> str:
    """An accuracy with its 95 % interval, in percent.

    >>> interval({"accuracy": 0.5, "ci95": [0.4, 0.6]})
    '50.0 [40.0, 60.0]'
    """
    low, high = (percent(bound) for bound in found["ci95"])
    return f"{percent(found['accuracy'])} [{low}, {high}]"


def percent(fraction: float | None) -> str:
    return "-" if fraction is None else f"{100 * fraction:.1f}"
