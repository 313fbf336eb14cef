"""Several runs on one page: curves over each other, evaluations side by side, what differs.

Differences are paired: they are taken over the questions that both runs answered in `predictions/`.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any

from grpo.report.contents import contents
from grpo.report.curves import logged, overlaid
from grpo.report.token_table import DAMAGED
from grpo.settings.errors import UsageError

FIGURES = {"correct": "strict", "forced_correct": "forced choice"}  # key of an answer -> name
UNSEEN = "mean of unseen modalities"
Run = dict[str, Any]  # as `contents` returns it
Row = tuple[str, bool, list[str]]  # name, whether that is a model's, a cell for each run


def comparison(folders: Sequence[Path]) -> dict[str, Any]:
    """Return what the page shows of several runs. Raises UsageError if one is no run, or if two
    have the same name."""
    runs = [contents(folder) for folder in folders]
    names = [run["name"] for run in runs]
    if twice := [run["folder"] for run in runs if names.count(run["name"]) > 1]:
        raise UsageError(f"{twice[-1]}: another run has this name; rename one, or name it once")
    remarks = [f"{run['name']}: {text}" for run in runs for text in run["remarks"]]
    steps = (logged(run["metrics"], str(run["config"].get("modality"))) for run in runs)
    values = [{name: value for name, value, *_ in run["settings"]} for run in runs]
    settings = dict.fromkeys(chain.from_iterable(values))
    rows = ((name, [one.get(name, "-") for one in values]) for name in settings if name != "out")
    return {
        "runs": runs,
        "charts": list(overlaid(dict(zip(names, steps, strict=True)))),
        "tables": tables(runs, remarks),
        "settings": [(name, row) for name, row in rows if len(set(row)) > 1],
        "remarks": remarks,
    }


def tables(runs: Sequence[Run], remarks: list[str]) -> dict[str, list[Row]]:
    """Return the rows of all evaluations by modality, and below them the paired differences."""
    columns = [dict(cells(run)) for run in runs]
    keys = list(dict.fromkeys(chain.from_iterable(columns)))
    models = [model for _, model, _ in keys]
    found: dict[str, list[Row]] = {}
    for key in sorted(keys, key=lambda key: models.index(key[1])):
        row = key[2], key[1] == key[2], [column.get(key, "-") for column in columns]
        found.setdefault(key[0], []).append(row)
    for modality in (modality for modality in found if modality != UNSEEN):
        found[modality] += differences(runs, modality, remarks)
    return found


def cells(run: Run) -> Iterator[tuple[tuple[str, str, str], str]]:
    """Yield (modality, model, name of the row) and cell of a run's first evaluation."""
    model = ""
    for sheet in run["evaluations"][:1]:
        named = [*sheet["table"]["chance"], UNSEEN]  # the last only if there is such a mean
        for row in chain.from_iterable(part["rows"] for part in sheet["parts"][:1]):
            model = row["name"] if row["kind"] == "model" else model
            for modality, cell in zip(named, row["full"], strict=False):
                yield (modality, model, row["name"]), cell


def differences(runs: Sequence[Run], modality: str, remarks: list[str]) -> Iterator[Row]:
    """Yield a row a figure: each run's trained policy minus the first run's on one modality.

    Of two that were scored and share no answered question, a remark is added.
    """
    from rewards.evaluation.rows import p_value, points
    from rewards.evaluation.scores import gain, headline

    scored = {run["name"] for run in runs if run["evaluations"]}
    (first, own), *others = ((run["name"], answers(run, modality)) for run in runs)
    found = {name: ["-"] for name in FIGURES}
    for name, theirs in others:
        shared = [key for key in own if key in theirs]
        pairs = [own[key] for key in shared], [theirs[key] for key in shared]
        for figure in FIGURES:
            x = gain(*pairs, figure) if shared else None
            n = len(headline(pairs[0]))
            said = f"{points(x)}, p {p_value(x['mcnemar_p'])}, n {n}" if x else "-"
            found[figure].append(said)
        if not shared and {first, name} <= scored:
            problem = f"{first} and {name} share no answered question, so nothing is paired"
            remarks.append(f"{modality}: {problem}: use one --data, --data-seed, --eval-size.")
    yield from ((f"trained minus {first}, {FIGURES[k]}", False, row) for k, row in found.items())


def answers(run: Run, modality: str) -> dict[str, Any]:
    """Return the trained policy's answers in `predictions/` that can be read, by what was asked.

    They are those of the evaluation that is shown: of its first way of asking, and by its scorer.
    """
    from rewards.evaluation.predictions import scored_by

    shown, found = run["config"] | next((sheet["table"] for sheet in run["evaluations"]), {}), {}
    file = run["folder"] / f"predictions/trained-{modality}-{shown.get('prompt')}.jsonl"
    for line in file.read_text("utf-8", "replace").splitlines() if file.is_file() else ():
        with suppress(*DAMAGED):
            row = scored_by(json.loads(line), shown.get("scorer", "ours"))
            asked = [row[name] for name in ("id", "question", "options", "gold")]
            found[json.dumps([*asked, row.get("image_sha256", row["image"])])] = row
    return found
