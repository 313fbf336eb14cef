"""What a run keeps of its steps: a line of metrics.jsonl each, and TensorBoard's files if asked."""

from __future__ import annotations

import json
import math
import os
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from grpo.distributed import rank
from grpo.settings.config import Config
from grpo.settings.errors import UsageError


def check_tensorboard(config: Config) -> None:
    """Raises UsageError where `--tensorboard` asks for a package that is not installed."""
    if config.tensorboard:
        _summary_writer()


def _summary_writer() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter  # torch leaves the package to the user
    except ImportError:
        problem = "the package tensorboard is not installed"
        raise UsageError(
            f"--tensorboard: {problem}; pip install tensorboard, or leave it out"
        ) from None
    return SummaryWriter


class Record:
    """Writes metrics.jsonl and, with `--tensorboard`, the folder tensorboard, of the same names.

    A context manager; of many processes the first one writes. A metric that is not finite is null
    in the one and missing in the other. What metrics.jsonl holds already are the steps before;
    TensorBoard forgets what it has of later.
    """

    def __init__(self, run: Path, config: Config) -> None:
        self.files = ExitStack()
        file = Path(os.devnull) if rank() else run / "metrics.jsonl"
        self.lines = self.files.enter_context(file.open("ab"))
        self.bytes = self.lines.tell()  # of whole lines
        self.board = None
        if config.tensorboard and not rank():
            step = len(history(run)) + 1
            writer = _summary_writer()(str(run / "tensorboard"), purge_step=step)
            self.board = self.files.enter_context(writer)

    def __enter__(self) -> Record:
        return self

    def __exit__(self, *_: object) -> None:
        self.files.close()

    def add(self, metrics: dict[str, float]) -> None:
        finite = {k: v if math.isfinite(v) else None for k, v in metrics.items()}
        self.lines.write(json.dumps(finite).encode() + b"\n")
        self.lines.flush()
        self.bytes = self.lines.tell()
        for name, value in finite.items():
            if self.board and value is not None and name != "step":
                self.board.add_scalar(name, value, int(metrics["step"]))


def history(run: Path) -> list[dict[str, float]]:
    """The metrics of all steps in metrics.jsonl, NaN where they were not finite; [] without one."""
    file = run / "metrics.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    steps = map(json.loads, lines)
    return [{k: math.nan if v is None else v for k, v in step.items()} for step in steps]
