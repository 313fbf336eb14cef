"""The results of a paper's arms as a page of Markdown, the paper's own numbers beside them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from statistics import fmean
from typing import Any

from grpo.report.evaluation_table import measured, percent
from grpo.reproduce.paper_tables import Arm, Table

PHANTOMS = (
    "**These are phantoms: drawn images and a 2 million parameter model, not medical data.** The "
    "paper's numbers stand beside ours for their order, not for their size."
)
SEEDS = (
    "Accuracies with 95 % intervals: over questions (Wilson) for one seed, over seeds (Student) "
    "for several, as means of the runs."
)


def page(record: dict[str, Any], table: Table, arms: Sequence[Arm]) -> str:
    """The whole page: accuracies, other figures, unseen sets, what was paid, and the paper."""
    done = {arm.name: found for arm in arms if "skipped" not in (found := record["arms"][arm.name])}
    phantom = record["scale"] == "phantom"
    blocks = [f"# {table.about}", f"`{record['command']}`", SEEDS]
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
        seeds = evaluation.get("seeds", {}).get(model.removeprefix("trained"))
        cells = evaluation["results"][model]
        of = partial(_over_runs, evaluation, model)
        strict = [measured(seeds[m] if seeds else cells[m]) for m in modalities]
        yield [row, *strict, *[percent(of(m, "forced_choice")) for m in modalities]]


def _runs(evaluation: dict[str, Any], model: str) -> list[str]:
    """The names that an arm's runs of all seeds have, asked like this one; a base has one."""
    name, comma, way = model.partition(", ")
    if name == "base" or "seeds" not in evaluation:
        return [model]
    split = [m.partition(", ") for m in evaluation["results"]]
    return ["".join(m) for m in split if m[0] != "base" and m[1:] == (comma, way)]


def _over_runs(evaluation: dict[str, Any], model: str, modality: str, name: str) -> float | None:
    """A figure, as the mean over the runs of all seeds."""
    runs = _runs(evaluation, model)
    values = [evaluation["results"][run][modality][name] for run in runs]
    return None if None in values else fmean(values)


def _figures(done: dict[str, Any]) -> Iterator[list[str]]:
    """Figures on the modality trained on: form, length, findings, position bias, metrics."""
    metrics = sorted({
        name
        for found in done.values()
        for of in found["evaluation"]["metrics"].values()
        for modality in of.values()
        for name in modality
    })  # fmt: skip
    head = ["format, %", "length, tokens", "findings, %", "letter bias, %"]
    yield ["in distribution", *head, "same text when permuted, %, first seed", *metrics]
    for row, found, model in _models(done):
        evaluation = found["evaluation"]
        home = evaluation["trained_on"]
        of = partial(_over_runs, evaluation, model, home)
        permuted = evaluation["controls"].get(model, {}).get("permuted_options", {}).get(home, {})
        yield [
            row,
            percent(of("format_rate")),
            f"{of('mean_length'):.1f}",
            percent(of("findings")),
            percent(of("letter_bias")),
            percent(permuted.get("same_text")),
            *(_metric(evaluation, model, home, name) for name in metrics),
        ]


def _metric(evaluation: dict[str, Any], model: str, modality: str, name: str) -> str:
    """One of --metrics, as the mean over the runs of all seeds."""
    of = (evaluation["metrics"].get(run, {}) for run in _runs(evaluation, model))
    values = [found[modality].get(name) for found in of if modality in found]
    known = [value for value in values if value is not None]
    return f"{fmean(known):.2f}" if known else "-"


def _unseen(done: dict[str, Any]) -> Iterator[list[str]]:
    """Strict accuracy on data sets never trained on, by modality; open questions apart."""
    sets = list(next(iter(done.values()))["unseen"])
    if not sets:
        return
    yield ["never trained on, strict, %", *sets]
    for row, found, model in _models(done):
        yield [row, *("; ".join(_by_modality(found["unseen"][name], model)) for name in sets)]


def _by_modality(evaluation: dict[str, Any], model: str) -> Iterator[str]:
    seeds = evaluation.get("seeds", {}).get(model.removeprefix("trained"))
    for modality, cell in evaluation["results"][model].items():
        opened = cell["open"]
        f1 = f", open {measured(opened)}, F1 {percent(opened['f1'])}" if opened["n"] else ""
        yield f"{modality} {measured(seeds[modality] if seeds else cell)}{f1}"


def _paid(done: dict[str, Any], arms: Sequence[Arm]) -> Iterator[list[str]]:
    """Steps, questions, completions, time and memory of each arm, and the paper's number."""
    yield [
        "arm",
        "steps",
        "questions",
        "completions",
        "seconds of training",
        "peak MB",
        "the paper",
    ]
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
