"""The numbers of a run's steps on disk: metrics.jsonl, and TensorBoard's files if asked for."""

import json
import math
import os
from collections.abc import Mapping
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path

from grpo.distributed import rank
from grpo.settings.config import Config
from grpo.settings.errors import UsageError


def check_tensorboard(config: Config) -> None:
    """Raise UsageError if `--tensorboard` is given and the package is not installed."""
    if config.tensorboard and not find_spec("tensorboard"):  # torch leaves it to the user
        problem = "--tensorboard: the package tensorboard is not installed"
        raise UsageError(f"{problem}; pip install tensorboard, or leave it out")


class MetricsLog(ExitStack):
    """Appends steps to metrics.jsonl and, with `--tensorboard`, to the folder tensorboard/.

    A context manager. If there are several processes, only rank 0 writes. A metric that is not
    finite is null in metrics.jsonl and missing in TensorBoard. TensorBoard's files lose the steps
    after those that metrics.jsonl already holds.
    """

    def __init__(self, run: Path, config: Config) -> None:
        super().__init__()
        file = Path(os.devnull) if rank() else run / "metrics.jsonl"
        self.lines = self.enter_context(file.open("ab"))
        self.board = None
        if config.tensorboard and not rank():
            from torch.utils.tensorboard import SummaryWriter

            writer = SummaryWriter(str(run / "tensorboard"), purge_step=len(history(run)) + 1)
            self.board = self.enter_context(writer)

    def add(self, metrics: dict[str, float]) -> None:
        """Write the metrics of one step; they are in the file when this returns."""
        written = finite(metrics)
        self.lines.write(json.dumps(written).encode() + b"\n")
        self.lines.flush()
        for name, value in written.items():
            if self.board and value is not None and name != "step":
                self.board.add_scalar(name, value, int(metrics["step"]))


def finite(values: Mapping[str, float]) -> dict[str, float | None]:
    """Return the values with None for NaN and infinity, which JSON does not know."""
    return {k: v if math.isfinite(v) else None for k, v in values.items()}


def history(run: Path) -> list[dict[str, float]]:
    """Read the metrics of all steps from metrics.jsonl, null as NaN; [] if there is no file."""
    file = run / "metrics.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    steps = map(json.loads, lines)
    return [{k: math.nan if v is None else v for k, v in step.items()} for step in steps]
