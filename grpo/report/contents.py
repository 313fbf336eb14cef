"""The contents of a run folder for the report, without its trace. No file is trusted."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from operator import itemgetter
from pathlib import Path
from statistics import fmean
from typing import Any

from grpo.report import curves as charts
from grpo.report import evaluation_table as sheets
from grpo.report.checklist import checklist
from grpo.report.token_table import DAMAGED
from grpo.settings.errors import UsageError


def contents(run: Path) -> dict[str, Any]:
    """Return what the page shows of a run besides its trace. Raises UsageError if it is no run."""
    told = read_run(run)
    metrics, results = told["metrics"], told["summary"].get("results") or {}
    return {
        **told,
        "settings": sheets.settings(told["record"]),
        "tiles": [*training_tiles(metrics), *accuracy_tiles(results)],
        "charts": list(charts.curves(metrics, str(told["config"].get("modality")))),
        "checklist": checklist(run),
    }


def read_run(run: Path) -> dict[str, Any]:
    """Return the files of a run folder besides its trace. Raises UsageError if it is no run."""
    try:
        record = json.loads((run / "config.json").read_text(encoding="utf-8"))
        config = dict(record["config"])
        sheets.settings(record)
    except OSError:
        raise UsageError(f"{run}: has no config.json; name the folder of a run") from None
    except DAMAGED:
        raise UsageError(f"{run}/config.json: not that of a run; name another run") from None
    metrics, remarks = read_metrics(run)
    summary, evaluations = read_evaluations(run, remarks)
    last = int(metrics[-1]["step"]) if metrics else 0
    if not (run / "summary.json").exists():
        done = f"{last} of {config.get('steps')} steps"
        remarks.insert(0, f"Interrupted, or not finished: {done}, and no summary.json.")
    return {
        "name": run.resolve().name,
        "config": config,
        "record": record,
        "phantom": str(config.get("data")).partition(":")[0] == "phantom",
        "last_step": last,
        "metrics": metrics,
        "summary": summary,
        "evaluations": evaluations,
        "remarks": remarks,
    }


def read_metrics(run: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the steps of metrics.jsonl that can be read, in order, and remarks on the others."""
    file = run / "metrics.jsonl"
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines() if file.exists() else []
    found = []
    for line in lines:
        with suppress(*DAMAGED):
            step = dict(json.loads(line))
            found.append(step | {"step": int(step["step"])})
    lost = len(lines) - len(found)
    cause = "A run that is killed may leave its last line incomplete."
    remarks = [f"Lines of metrics.jsonl that cannot be read: {lost}. {cause}"] if lost else []
    return sorted(found, key=itemgetter("step")), remarks


def read_evaluations(run: Path, remarks: list[str]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return summary.json, and the sheets of it and of every evaluation in the folder.

    A file that cannot be read adds a remark.
    """
    summary, found = {}, []
    for file in sorted(run.glob("*.json")):  # evaluation.json, with controls, before summary.json
        try:
            table = json.loads(file.read_text(encoding="utf-8"))
            if isinstance(table, dict) and {"results", "chance"} <= table.keys():
                found.append(sheets.evaluation(file.name, table))
                summary = table if file.name == "summary.json" else summary
        except DAMAGED:
            remarks.append(f"{file.name} cannot be read and is left out.")
    return summary, found


def training_tiles(metrics: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str, str]]:
    """Yield name, means over the first and the last tenth of the steps, and which steps they are,
    of a few metrics."""
    for name, label in (
        ("reward", "Reward"),
        (charts.NO_SIGNAL, "Groups with signal"),
        ("kl", "KL"),
    ):
        values = [value for _, value in charts.series(metrics, name)]
        if values:
            n = max(1, len(values) // 10)
            steps = f"mean of the first and the last {n} steps" if n > 1 else "first and last step"
            yield label, f"{fmean(values[:n]):.2g} → {fmean(values[-n:]):.2g}", steps


def accuracy_tiles(results: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yield name, test accuracy before and after training, and its interval, of each modality."""
    for modality, found in results.get("trained", {}).items():
        shares = [sheets.percent(results[m][modality]["accuracy"]) for m in ("base", "trained")]
        low, high = map(sheets.percent, found["ci95"])
        interval = f"base → trained, 95 %: {low} to {high}"
        yield f"{modality} accuracy", f"{' → '.join(shares)} %", interval
