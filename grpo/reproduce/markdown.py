"""The results of a paper's arms as a page of Markdown, the paper's own numbers beside them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
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
RULES = "No expert model was at hand; a rule stands in for it."


@dataclass(frozen=True)
class Model:
    """One row of the page: a model of an arm, and the evaluations of the arm's runs."""

    row: str
    name: str  # of the model in the evaluations
    arm: dict[str, Any]

    @property
    def evaluation(self) -> dict[str, Any]:
        return self.arm["evaluation"]

    def runs(self) -> list[str]:
        """Return the models of all seeds that were asked like this one; a base has one."""
        name, comma, way = self.name.partition(", ")
        if name == "base" or "seeds" not in self.evaluation:
            return [self.name]
        split = [model.partition(", ") for model in self.evaluation["results"]]
        return [
            "".join(model) for model in split if model[0] != "base" and model[1:] == (comma, way)
        ]

    def mean(self, modality: str, figure: str) -> float | None:
        """Return a figure as the mean over the runs of all seeds, None if a run lacks it."""
        values = [self.evaluation["results"][run][modality][figure] for run in self.runs()]
        return None if None in values else fmean(values)

    def metric(self, modality: str, name: str) -> str:
        """Return one of --metrics as the mean over the runs that have it."""
        runs = [self.evaluation["metrics"].get(run, {}) for run in self.runs()]
        values = [run.get(modality, {}).get(name) for run in runs]
        known = [value for value in values if value is not None]
        return f"{fmean(known):.2f}" if known else "-"

    def accuracy(self, evaluation: dict[str, Any], modality: str) -> str:
        """Return the strict accuracy in an evaluation, over all seeds if there are several."""
        seeds = evaluation.get("seeds", {}).get(self.name.removeprefix("trained"))
        return measured((seeds or evaluation["results"][self.name])[modality])


def page(record: dict[str, Any], table: Table, arms: Sequence[Arm]) -> str:
    """Return the page: accuracies, other figures, unseen sets, what was paid, and the paper."""
    records = {arm.name: record["arms"][arm.name] for arm in arms}
    done = {name: found for name, found in records.items() if "skipped" not in found}
    models = list(_models(done))
    phantoms = [PHANTOMS] * (record["scale"] == "phantom")
    rules = [f"{arm}: {', '.join(f['stands_in'])}." for arm, f in done.items() if f["stands_in"]]
    skipped = [f"{arm}: {f['skipped']}." for arm, f in records.items() if "skipped" in f]
    blocks = [
        f"# {table.about}",
        f"`{record['command']}`",
        SEEDS,
        *phantoms,
        _markdown(_accuracies(models)),
        _markdown(_figures(models)),
        _markdown(_unseen(models)),
        _markdown(_paid(done, arms)),
        f"The paper: {table.paper}.",
        " ".join([RULES, *rules]) if rules else "",
        " ".join([*skipped, table.out_of_scope]).strip(),
        *phantoms,
    ]
    return "\n\n".join(filter(None, blocks))


def _models(done: dict[str, Any]) -> Iterator[Model]:
    """Yield every base once, then every arm, in all ways of asking."""
    bases: dict[str, Model] = {}
    trained = []
    for arm, found in done.items():
        for model in found["evaluation"]["results"]:
            name, *way = model.split(", ")
            if name == "trained":
                trained.append(Model(model.replace("trained", arm, 1), model, found))
            elif name == "base":
                asked = way or [found["prompt"]] * (found["prompt"] != "reason")
                scratch = ["scratch"] * (found["init"] == "base")
                row = ", ".join([name, *scratch, *asked])
                bases.setdefault(row, Model(row, model, found))
    yield from [*bases.values(), *trained]


def _accuracies(models: Sequence[Model]) -> Iterator[list[str]]:
    """Yield the strict accuracy by modality, and forced choice, which needs no format."""
    chance = models[0].evaluation["chance"]
    yield ["strict accuracy, %", *chance, *(f"{modality}, forced choice" for modality in chance)]
    yield ["chance", *map(percent, chance.values()), *[""] * len(chance)]
    for model in models:
        strict = [model.accuracy(model.evaluation, modality) for modality in chance]
        forced = [percent(model.mean(modality, "forced_choice")) for modality in chance]
        yield [model.row, *strict, *forced]


def _figures(models: Sequence[Model]) -> Iterator[list[str]]:
    """Yield figures on the modality trained on: form, length, findings, letter bias, metrics."""
    asked = [figures for model in models for figures in model.evaluation["metrics"].values()]
    metrics = sorted({name for figures in asked for found in figures.values() for name in found})
    head = ["format, %", "length, tokens", "findings, %", "letter bias, %"]
    yield ["in distribution", *head, "same text when permuted, %, first seed", *metrics]
    for model in models:
        home = model.evaluation["trained_on"]
        permuted = model.evaluation["controls"].get(model.name, {}).get("permuted_options", {})
        yield [
            model.row,
            percent(model.mean(home, "format_rate")),
            f"{model.mean(home, 'mean_length'):.1f}",
            percent(model.mean(home, "findings")),
            percent(model.mean(home, "letter_bias")),
            percent(permuted.get(home, {}).get("same_text")),
            *(model.metric(home, name) for name in metrics),
        ]


def _unseen(models: Sequence[Model]) -> Iterator[list[str]]:
    """Yield the strict accuracy on data sets never trained on; open questions apart."""
    sets = list(models[0].arm["unseen"])
    if not sets:
        return
    yield ["never trained on, strict, %", *sets]
    for model in models:
        cells = []
        for evaluation in map(model.arm["unseen"].get, sets):
            results = evaluation["results"][model.name]
            opened = {m: found["open"] for m, found in results.items()}
            f1 = {m: f", open {measured(o)}, F1 {percent(o['f1'])}" for m, o in opened.items()}
            cells.append(
                "; ".join(
                    f"{m} {model.accuracy(evaluation, m)}{f1[m] if opened[m]['n'] else ''}"
                    for m in results
                )
            )
        yield [model.row, *cells]


def _paid(done: dict[str, Any], arms: Sequence[Arm]) -> Iterator[list[str]]:
    """Yield steps, questions, completions, time and memory of each arm, and the paper's number."""
    paid = ["steps", "questions", "completions", "seconds of training", "peak MB"]
    yield ["arm", *paid, "the paper"]
    papers = {arm.name: arm.paper for arm in arms}
    for arm, found in done.items():
        counts = [str(found[name]) for name in ("steps", "examples", "completions")]
        seconds = ", ".join(f"{second:.0f}" for second in found["seconds"])
        yield [arm, *counts, seconds, f"{found['peak_mb']:.0f}", papers[arm]]


def _markdown(rows: Iterator[list[str]]) -> str:
    """Return a table without the columns that hold nothing."""
    names, *columns = list(zip(*rows, strict=True)) or [()]
    kept = [names, *(column for column in columns if set(column[1:]) - {"-", ""})]
    lines = [f"| {' | '.join(cells)} |" for cells in zip(*kept, strict=True)]
    if lines:
        lines.insert(1, "|" + "---|" * len(kept))
    return "\n".join(lines)
