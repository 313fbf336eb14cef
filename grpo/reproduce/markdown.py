"""The results of a paper's arms as a page of Markdown, the paper's own numbers beside them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from grpo.reproduce.paper_tables import Table

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
    evaluation: dict[str, Any]
    unseen: dict[str, dict[str, Any]]  # data set -> evaluation

    def cells(self, evaluation: dict[str, Any]) -> dict[str, Any]:
        """Return the figures by modality, as means over the seeds if the arm has several."""
        seeds = evaluation.get("seeds", {}).get(self.name.removeprefix("trained"))
        return seeds or evaluation["results"][self.name]

    def forced_choice(self, modality: str) -> str:
        """Return forced choice in percent, and in brackets the points that training gained."""
        from rewards.evaluation.rows import percent

        found = self.cells(self.evaluation)[modality]["forced_choice"]
        base = self.evaluation["results"][self.name.replace("trained", "base", 1)][modality]
        if found is None or self.name.startswith("base"):
            return percent(found)
        return f"{percent(found)} ({100 * (found - base['forced_choice']):+.1f})"


def page(record: dict[str, Any], table: Table) -> str:
    """Return the page: accuracies, other figures, unseen sets, what was paid, and the paper."""
    arms = record["arms"]
    done = {name: found for name, found in arms.items() if "skipped" not in found}
    models = _models(done)
    phantoms = [PHANTOMS] * (record["scale"] == "phantom")
    rules = [f"{arm}: {', '.join(f['stands_in'])}." for arm, f in done.items() if f["stands_in"]]
    skipped = [f"{arm}: {f['skipped']}." for arm, f in arms.items() if "skipped" in f]
    tables = _accuracies(models), _figures(models), _unseen(models), _paid(done, table)
    blocks = [
        f"# {table.about}",
        f"`{record['command']}`",
        SEEDS,
        *phantoms,
        *map(_markdown, tables),
        f"The paper: {table.paper}.",
        " ".join([RULES, *rules]) if rules else "",
        " ".join(skipped),
        *phantoms,
    ]
    return "\n\n".join(filter(None, blocks))


def _models(done: dict[str, Any]) -> list[Model]:
    """Return every base once, then every arm, in all ways of asking."""
    models: dict[str, Model] = {}
    for arm, found in done.items():
        for model in found["evaluation"]["results"]:
            name, *way = model.split(", ")
            row = model.replace("trained", arm, 1)
            if name == "base":
                scratch = ["scratch"] * (found["init"] == "base")
                asked = way or [found["prompt"]] * (found["prompt"] != "reason")
                row = ", ".join([name, *scratch, *asked])
            if name in ("base", "trained"):
                models.setdefault(row, Model(row, model, found["evaluation"], found["unseen"]))
    return sorted(models.values(), key=lambda model: not model.name.startswith("base"))


def _accuracies(models: Sequence[Model]) -> Iterator[list[str]]:
    """Yield the strict accuracy by modality, and forced choice, which needs no format."""
    from rewards.evaluation.rows import measured, percent

    chance = models[0].evaluation["chance"]
    yield ["strict accuracy, %", *chance, *(f"{m}, forced choice (gain)" for m in chance)]
    yield ["chance", *map(percent, chance.values()), *[""] * len(chance)]
    for model in models:
        cells = [model.cells(model.evaluation)[modality] for modality in chance]
        yield [model.row, *map(measured, cells), *map(model.forced_choice, chance)]


def _figures(models: Sequence[Model]) -> Iterator[list[str]]:
    """Yield figures on the modality trained on: form, length, findings, letter bias, metrics."""
    from rewards.evaluation.rows import percent

    asked = [figures for model in models for figures in model.evaluation["metrics"].values()]
    metrics = sorted({name for figures in asked for found in figures.values() for name in found})
    head = ["format, %", "length, tokens", "findings, %", "letter bias, %"]
    yield ["in distribution", *head, "same text when permuted, %, first seed", *metrics]
    for model in models:
        home = model.evaluation["trained_on"]
        cell = model.cells(model.evaluation)[home]
        figures = cell.get("metrics", model.evaluation["metrics"].get(model.name, {}).get(home, {}))
        permuted = model.evaluation["controls"].get(model.name, {}).get("permuted_options", {})
        values = [figures.get(name) for name in metrics]
        yield [
            model.row,
            percent(cell["format_rate"]),
            f"{cell['mean_length']:.1f}",
            percent(cell["findings"]),
            percent(cell["letter_bias"]),
            percent(permuted.get(home, {}).get("same_text")),
            *("-" if value is None else f"{value:.2f}" for value in values),
        ]


def _unseen(models: Sequence[Model]) -> Iterator[list[str]]:
    """Yield the strict accuracy on data sets never trained on; open questions apart."""
    sets = list(models[0].unseen)
    yield ["never trained on, strict, %", *sets]
    for model in models:
        yield [model.row, *("; ".join(_by_modality(model, name)) for name in sets)]


def _by_modality(model: Model, data: str) -> Iterator[str]:
    from rewards.evaluation.rows import measured, percent

    evaluation = model.unseen[data]
    cells = model.cells(evaluation)
    for modality, found in evaluation["results"][model.name].items():
        opened = found["open"]
        f1 = f", open {measured(opened)}, F1 {percent(opened['f1'])}" if opened["n"] else ""
        yield f"{modality} {measured(cells[modality])}{f1}"


def _paid(done: dict[str, Any], table: Table) -> Iterator[list[str]]:
    """Yield steps, questions, completions, time and memory of each arm, and the paper's number."""
    paid = ["steps", "questions", "completions", "seconds of training", "peak MB"]
    yield ["arm", *paid, "the paper"]
    papers = {arm.name: arm.paper for arm in table.arms}
    for arm, found in done.items():
        counts = [str(found[name]) for name in ("steps", "examples", "completions")]
        seconds = ", ".join(f"{second:.0f}" for second in found["seconds"])
        yield [arm, *counts, seconds, f"{found['peak_mb']:.0f}", papers[arm]]


def _markdown(rows: Iterator[list[str]]) -> str:
    """Return a table without the columns that hold nothing; "" if all of them do."""
    names, *columns = zip(*rows, strict=True)
    kept = [names, *(column for column in columns if set(column[1:]) - {"-", ""})]
    head, *lines = [f"| {' | '.join(cells)} |" for cells in zip(*kept, strict=True)]
    return "\n".join([head, "|" + "---|" * len(kept), *lines]) if kept[1:] else ""
