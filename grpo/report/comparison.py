"""Several runs on one page: curves over each other, evaluations side by side, what differs.

Differences are paired: they are taken over the questions that both runs answered in `predictions/`.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any

from grpo.report.contents import read_run
from grpo.report.curves import overlaid
from grpo.report.token_table import DAMAGED
from grpo.settings.errors import UsageError
from grpo.settings.flags import shown

FIGURES = {"correct": "strict", "forced_correct": "forced choice"}  # key of an answer -> name
UNSEEN = "mean of unseen modalities"
Cells = dict[tuple[str, str], str]  # (model, name of the row) -> what a table says there


def comparison(runs: Sequence[Path]) -> dict[str, Any]:
    """Return what the page shows of several runs. Raises UsageError if one is no run, or if two
    have the same name."""
    told = {}
    for run in runs:
        one = read_run(run)
        if one["name"] in told:
            problem = "two runs have this name; rename a folder, or name each run once"
            raise UsageError(f"{run}: {problem}")
        told[one["name"]] = one | {"folder": run}
    remarks = [f"{name}: {text}" for name, one in told.items() for text in one["remarks"]]
    remarks += [
        f"{name}: metrics.jsonl holds no step." for name in told if not told[name]["metrics"]
    ]
    steps = {n: (one["metrics"], str(one["config"].get("modality"))) for n, one in told.items()}
    return {
        "runs": told,
        "charts": list(overlaid(steps)),
        "tables": tables(told, remarks),
        "settings": differing(list(told.values())),
        "remarks": remarks,
    }


def tables(told: Mapping[str, Any], remarks: list[str]) -> dict[str, list[tuple[Any, ...]]]:
    """Return by modality rows of (name, whether it names a model, a cell for each run)."""
    sheets = {name: cells(one["evaluations"]) for name, one in told.items()}
    found = {}
    for modality in dict.fromkeys(chain.from_iterable(sheets.values())):
        columns = [sheet.get(modality, {}) for sheet in sheets.values()]
        keys = dict.fromkeys(chain.from_iterable(columns))
        models = list(dict.fromkeys(model for model, _ in keys))
        ordered = sorted(keys, key=lambda key: models.index(key[0]))
        found[modality] = [
            (key[1], key[0] == key[1], [column.get(key, "-") for column in columns])
            for key in ordered
        ]
        if modality != UNSEEN:
            found[modality] += differences(told, modality, remarks)
    return found


def cells(evaluations: Sequence[Mapping[str, Any]]) -> dict[str, Cells]:
    """Return the main table of a run's first evaluation by modality; {} without one."""
    found: dict[str, Cells] = {}
    for sheet in evaluations[:1]:
        for part in sheet["parts"][:1]:
            model = ""
            for row in part["rows"]:
                model = row["name"] if row["kind"] == "model" else model
                columns = [*sheet["table"]["chance"], UNSEEN]
                for modality, cell in zip(columns, row["full"], strict=False):
                    found.setdefault(modality, {})[model, row["name"]] = cell
    return found


def differences(
    told: Mapping[str, Any], modality: str, remarks: list[str]
) -> Iterator[tuple[Any, ...]]:
    """Yield rows of each run's trained policy minus the first run's on one modality.

    Runs that share no answered question add a remark.
    """
    from rewards.evaluation.rows import points
    from rewards.evaluation.scores import gain

    (first, own), *others = ((name, answers(one, modality)) for name, one in told.items())
    gains: list[Mapping[str, Any]] = [{}]
    for name, theirs in others:
        shared = [key for key in own if key in theirs]
        pairs = [own[key] for key in shared], [theirs[key] for key in shared]
        gains.append({key: gain(*pairs, key) for key in FIGURES if shared} | {"n": len(shared)})
        if not shared:
            text = (
                f"{modality}: {first} and {name} share no answered question, so nothing is paired"
            )
            remarks.append(f"{text}. Both need the same --data, --data-seed and --eval-size.")
    yield f"trained minus {first}, paired", True, [""] * len(gains)
    yield "questions of both", False, ["-", *(str(found["n"]) for found in gains[1:])]
    for key, name in FIGURES.items():
        yield name, False, [points(found.get(key)) for found in gains]
        ps = [(found.get(key) or {}).get("mcnemar_p") for found in gains]
        yield f"{name}: McNemar p", False, ["-" if p is None else f"{p:.1g}" for p in ps]


def answers(one: Mapping[str, Any], modality: str) -> dict[str, Any]:
    """Return the trained policy's rows of `predictions/` by what was asked; those that can be
    read."""
    found = {}
    with suppress(*DAMAGED):
        name = f"trained-{modality}-{one['config'].get('prompt')}.jsonl"
        for line in (one["folder"] / "predictions" / name).read_text("utf-8").splitlines():
            row = json.loads(line)
            asked = [row["id"], row["question"], row["options"], row["gold"]]
            found[json.dumps([*asked, row.get("image_sha256", row["image"])])] = row
    return found


def differing(told: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
    """Return settings, versions and facts of the machine that differ: a value for each run."""
    flat = []
    for one in told:
        record = one["record"]
        parts = (one["config"], record.get("resolved") or {}, record.get("versions") or {})
        flat.append({k: shown(v) for part in parts for k, v in part.items()})
        flat[-1] |= {"commit": shown(record.get("git_commit")), "out": "-"}
    names = dict.fromkeys(chain.from_iterable(flat))
    rows = [(name, [values.get(name, "-") for values in flat]) for name in names]
    return [row for row in rows if len(set(row[1])) > 1]
