"""What a run folder holds, but for its trace, as the report shows it. Nothing in it is trusted."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from grpo.report import curves as charts
from grpo.report import evaluation_table as sheets
from grpo.report.token_table import DAMAGED
from grpo.settings.errors import UsageError


def contents(run: Path) -> dict[str, Any]:
    """What the page says of a run, but for its trace."""
    try:
        record = json.loads((run / "config.json").read_text(encoding="utf-8"))
        config = dict(record["config"])
        rows = sheets.settings(record)
    except OSError:
        raise UsageError(f"{run}: has no config.json; name the folder of a run") from None
    except DAMAGED:
        raise UsageError(f"{run}/config.json: not that of a run; name another run") from None
    metrics, remarks = read_metrics(run)
    summary, evaluations = read_evaluations(run, remarks)
    last = int(metrics[-1]["step"]) if metrics else 0
    if not (run / "summary.json").exists():
        done = f"{last} of {config.get('steps')} steps"
        remarks.insert(0, f"Cut off, or not finished: {done}, and no summary.json.")
    if not any((run / "trace").glob("step-*.json")):
        remarks.append("This run has no trace, so no step can be opened; train.py writes one.")
    by_modality = charts.accuracies(metrics, summary, str(config.get("modality")))
    return {
        "name": run.resolve().name,
        "config": config,
        "record": record,
        "settings": rows,
        "changed": [row for row in rows if row[3]],
        "phantom": str(config.get("data")).partition(":")[0] == "phantom",
        "last_step": last,
        "tiles": tiles(metrics, summary),
        "charts": [*by_modality, *charts.curves(metrics)],
        "evaluations": evaluations,
        "remarks": remarks,
    }


def read_metrics(run: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """The steps of metrics.jsonl that can be read, in order, and remarks on the others."""
    file = run / "metrics.jsonl"
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines() if file.exists() else []
    found, broken = [], []
    for i, line in enumerate(lines):
        try:
            step = dict(json.loads(line))
            found.append(step | {"step": int(step["step"])})
        except DAMAGED:
            broken.append(i)
    remarks = [] if found else ["metrics.jsonl holds no step, so there are no curves."]
    if broken == [len(lines) - 1]:
        remarks.append("The last line of metrics.jsonl was cut off while it was written.")
    elif broken:
        remarks.append(f"{len(broken)} lines of metrics.jsonl cannot be read and are left out.")
    return sorted(found, key=lambda of: of["step"]), remarks


def read_evaluations(run: Path, remarks: list[str]) -> tuple[dict[str, Any], list[sheets.Sheet]]:
    """summary.json, and the sheets of it and of every evaluation in the folder."""
    summary, found = {}, []
    first = ("evaluation.json", "summary.json")  # the one with controls before the one without
    for file in sorted(run.glob("*.json"), key=lambda file: (file.name not in first, file)):
        try:
            table = json.loads(file.read_text(encoding="utf-8"))
            if not isinstance(table, dict) or not {"results", "chance"} <= table.keys():
                continue
            found.append(sheets.evaluation(file.name, table))
            summary = table if file.name == "summary.json" else summary
        except DAMAGED:
            remarks.append(f"{file.name} cannot be read and is left out.")
    return summary, found


def tiles(
    metrics: Sequence[Mapping[str, Any]], summary: Mapping[str, Any]
) -> list[tuple[str, str, str]]:
    """(name, number, what it is) of the few numbers that say how a run went."""
    found = []
    for name, label in (("reward", "Reward"), ("signal", "Groups with signal"), ("kl", "KL")):
        values = [value for _, value in charts.series(metrics, name)]
        if values:
            n = max(1, len(values) // 10)
            ends = (sum(part) / n for part in (values[:n], values[-n:]))
            over = f"mean of the first and the last {n} steps" if n > 1 else "first and last step"
            found.append((label, " → ".join(f"{end:.2g}" for end in ends), over))
    results = summary.get("results") or {}
    for modality, of in (results.get("trained") or {}).items():
        base = sheets.percent(results["base"][modality]["accuracy"])
        accuracy = f"{base} → {sheets.percent(of['accuracy'])} %"
        low, high = map(sheets.percent, of["ci95"])
        found.append((f"{modality} accuracy", accuracy, f"base → trained, 95 %: {low} to {high}"))
    return found
