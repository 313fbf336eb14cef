"""The contents of a run folder for the report, without its trace. No file is trusted."""

import json
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from operator import itemgetter
from pathlib import Path
from typing import Any

from grpo.report import evaluation_table as sheets
from grpo.report.token_table import DAMAGED
from grpo.run.diagnoses import ALERTS, newly_true
from grpo.settings.config import Config
from grpo.settings.errors import UsageError


def contents(run: Path) -> dict[str, Any]:
    """Return what the page shows of a run besides its trace. Raises UsageError if it is no run."""
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
        remarks.insert(0, f"Not finished: {last} of {config.get('steps')} steps, no summary.json.")
    return {
        "folder": run,
        "name": run.resolve().name,
        "config": config,
        "record": record,
        "settings": rows,
        "phantom": str(config.get("data")).partition(":")[0] == "phantom",
        "last_step": last,
        "metrics": metrics,
        "results": summary.get("results") or {},
        "alerts": alerts(run, metrics, remarks),
        "evaluations": evaluations,
        "remarks": remarks,
    }


def alerts(run: Path, metrics: Sequence[Mapping[str, Any]], remarks: list[str]) -> list[Any]:
    """Return (step, sentence) of all that was wrong, as the run's terminal said it.

    Settings and metrics of another version add a remark.
    """
    said, history, last_true = [], [], {}
    try:
        config = Config.load(run / "config.json")
        for found in metrics:
            history.append({k: math.nan if v is None else v for k, v in found.items()})
            texts = [text for name, text in ALERTS.items() if found.get(name)]
            texts += newly_true(history, config, last_true)
            said += [(found["step"], text) for text in texts]
    except DAMAGED:
        remarks.append("Settings or metrics are not those of this version: not all is diagnosed.")
    return said


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
