"""The numbers of a run's steps: metrics.jsonl, and the trackers of --report-to.

The trackers are TensorBoard, Weights & Biases and Trackio. Trackio copies wandb, so one function
opens both. reported.json in the run folder keeps the name that a run has there and the last step
that each tracker was told of: a run that goes on is the same run there, and no step is told twice.
If that file is damaged, it is a new run there.
"""

import json
import math
import os
import secrets
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout, suppress
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from grpo.distributed import rank
from grpo.run.atomic import write_json
from grpo.settings.config import Config
from grpo.settings.errors import UsageError
from grpo.settings.flags import check_names, names_in

TRACKERS = ("tensorboard", "wandb", "trackio")
MOST_GROUPS = 2  # of a traced step that are reported
Table = tuple[list[str], list[list[Any]]]  # columns and rows


class MetricsLog(ExitStack):
    """Appends steps to metrics.jsonl. A context manager. If there are several processes, only rank
    0 writes. A metric that is not finite is null."""

    def __init__(self, run: Path) -> None:
        super().__init__()
        file = Path(os.devnull) if rank() else run / "metrics.jsonl"
        self.lines = self.enter_context(file.open("ab"))

    def add(self, metrics: dict[str, float]) -> None:
        """Write the metrics of one step; they are in the file when this returns."""
        self.lines.write(json.dumps(finite(metrics)).encode() + b"\n")
        self.lines.flush()


def finite(values: Mapping[str, float]) -> dict[str, float | None]:
    """Return the values with None for NaN and infinity, which JSON does not know."""
    return {k: v if math.isfinite(v) else None for k, v in values.items()}


def history(run: Path) -> list[dict[str, float]]:
    """Read the metrics of all steps from metrics.jsonl, null as NaN; [] if there is no file."""
    file = run / "metrics.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    steps = map(json.loads, lines)
    return [{k: math.nan if v is None else v for k, v in step.items()} for step in steps]


def check_trackers(config: Config) -> list[str]:
    """Return the trackers of --report-to, and of --tensorboard. Raises UsageError for an unknown
    one and for one that is not installed."""
    named = names_in(config.report_to, "--report-to ")
    check_names("report_to", named, TRACKERS, ", a comma list, or none")
    names = [n for n in TRACKERS if n in named or (n == "tensorboard" and config.tensorboard)]
    if missing := [name for name in names if not find_spec(name)]:
        problem = f"--report-to {missing[0]}: the package {missing[0]} is not installed"
        raise UsageError(f"{problem}; pip install {missing[0]}, or leave it out")
    return names


@dataclass
class Trackers:
    """The open trackers of a run."""

    run: Path
    record: dict[str, Any] = field(default_factory=dict)  # of reported.json
    # Name, a module like wandb, what its init() returned, and the last step that it knew then
    opened: Sequence[tuple[str, Any, Any, int]] = ()

    def step(self, metrics: Mapping[str, float]) -> None:
        """Report a step: the metrics that are finite, and of a traced step a few completions."""
        trace = self.run / "trace" / f"step-{int(metrics['step']):06d}.json"
        tables = {"completions": rollouts(trace)} if self.opened and trace.exists() else {}
        self._report(metrics, tables)

    def scores(self, table: Mapping[str, Any], step: int) -> None:
        """Report the table of an evaluation with the last step, or after it if that was reported
        before; {}: there was none."""
        if table:
            part = table["rendered"]["parts"][0]
            columns = ["figure", *part["columns"]]
            rows = [[row["name"], *row["full"], ""][: len(columns)] for row in part["rows"]]
            known = (known + 1 for *_, known in self.opened)
            self._report({"step": max([step, *known])}, {"evaluation": (columns, rows)})

    def _report(self, metrics: Mapping[str, float], tables: Mapping[str, Table]) -> None:
        step = int(metrics["step"])
        values = {k: v for k, v in metrics.items() if math.isfinite(v) and k != "step"}
        for name, module, session, known in self.opened:
            if step > known:
                made = {title: made_by(module, *table) for title, table in tables.items()}
                session.log({**values, **made}, step=step)
                self.record["steps"][name] = step
        if self.opened:
            write_json(self.run / "reported.json", self.record)


@contextmanager
def reporting(run: Path, config: Config) -> Iterator[Trackers]:
    """Open the trackers of a run; only rank 0 has any. What they print goes to stderr. Raises
    UsageError if one cannot be opened."""
    opened, record = [], {"name": f"{run.resolve().name}-{secrets.token_hex(4)}", "steps": {}}
    with suppress(FileNotFoundError, ValueError, TypeError, LookupError, AttributeError):
        known = json.loads((run / "reported.json").read_text("utf-8"))
        record |= {**known, "steps": {n: int(step) for n, step in known["steps"].items()}}
    with ExitStack() as stack:
        for name in [] if rank() else check_trackers(config):
            stack.enter_context(redirect_stdout(sys.stderr))
            opened.append(begun(name, run, record))
            stack.callback(opened[-1][2].finish)
        yield Trackers(run, record, opened)


def begun(name: str, run: Path, known: Mapping[str, Any]) -> tuple[str, Any, Any, int]:
    """Begin a session of a tracker, or go on with the run's."""
    record = json.loads((run / "config.json").read_text("utf-8"))
    settings = {"name": known["name"], "config": record.pop("config") | record, "resume": "allow"}
    if name == "wandb":
        settings |= {"id": known["name"][-8:], "dir": str(run), "allow_val_change": True}
        settings["settings"] = {"console": "off"}
    project = os.environ.get(f"{name.upper()}_PROJECT", "medvqa-grpo")
    try:
        module = TensorBoard(run) if name == "tensorboard" else import_module(name)
        step = 0 if name == "tensorboard" else known["steps"].get(name, 0)
        return name, module, module.init(project=project, **settings), step
    except Exception as error:  # of any kind: no account, no server, another version
        raise UsageError(f"--report-to {name}: {error}; mend that, or leave it out") from None


class TensorBoard:
    """TensorBoard's files behind wandb's names. A table is a text there, an image its path."""

    Image = str

    def __init__(self, run: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # The files lose the steps after those that metrics.jsonl holds.
        self.writer = SummaryWriter(str(run / "tensorboard"), purge_step=len(history(run)) + 1)
        self.finish = self.writer.close

    def init(self, config: Mapping[str, Any], **_: Any) -> "TensorBoard":
        self.writer.add_text("settings", self.Table(["setting", "value"], [*config.items()]))
        return self

    def Table(self, columns: list[str], data: list[Any]) -> str:
        lines = [columns, ["---"] * len(columns), *data]
        cells = [[str(x).replace("|", "\\|").replace("\n", " ") for x in line] for line in lines]
        return "\n".join(f"| {' | '.join(line)} |" for line in cells)

    def log(self, values: Mapping[str, float | str], step: int) -> None:
        for name, value in values.items():
            add = self.writer.add_text if isinstance(value, str) else self.writer.add_scalar
            add(name, value, step)


def made_by(module: Any, columns: list[str], rows: list[list[Any]]) -> Any:
    """Return a module's table. A cell may be the Path of an image."""
    cells = [[module.Image(str(x)) if isinstance(x, Path) else x for x in row] for row in rows]
    return module.Table(columns=columns, data=cells)


def rollouts(trace: Path) -> Table:
    """Return the first groups of a traced step, a row for each completion, TRL's columns first."""
    record, rows = json.loads(trace.read_text("utf-8")), []
    for group in record["groups"][:MOST_GROUPS]:
        image = next((trace.parent / name for name in group["images"]), None)
        for said in group["completions"]:
            row = [record["step"], group["prompt"], said["text"], *said["parts"].values()]
            rows.append([*row, said["advantage"], said["reward"], group["gold"], image])
    columns = ["step", "prompt", "completion", *said["parts"], "advantage", "reward", "gold"]
    return [*columns, "image"], rows
