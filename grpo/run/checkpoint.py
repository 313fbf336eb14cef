"""What a run can go on from, bit for bit on a CPU: the adapter and AdamW's moments after a step.

    checkpoints/step-000010/adapter/                 a plain peft folder
    checkpoints/step-000010/optimizer.safetensors    exp_avg.NAME, exp_avg_sq.NAME, step.NAME
    checkpoints/step-000010/state.json               the step, and how far metrics.jsonl goes
    checkpoints/step-000010/SHA256SUMS               of all these, as sha256sum -c reads it

No state of a random generator is among them: every random number is a function of (seed, step,
slot, attempt, row), and the learning rate one of the step. A checkpoint is there whole or not at
all: it is written under another name, synced to the disk, and then renamed.
"""

import hashlib
import json
import os
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from safetensors.torch import save as serialized

from grpo.distributed import rank
from grpo.interfaces import Policy
from grpo.report.model_card import write_card
from grpo.run.atomic import check_folder, remove_folder, sweep, sync, write_folder
from grpo.settings.config import Config
from grpo.settings.errors import UsageError, writing

FOLDER, FORMAT = "checkpoints", 1
MOMENTS = ("exp_avg", "exp_avg_sq", "step")  # AdamW's state of a parameter, all float32


@dataclass(frozen=True)
class Point:
    """Where a run begins: in a new folder (run None), at its start, or after a checkpoint."""

    run: Path | None = None
    folder: Path | None = None  # the checkpoint's; None: at the start
    finished: bool = False
    step: int = 0  # steps that are done; this and all below are as in state.json
    metrics_bytes: int = 0
    seconds: float = 0.0
    origin: str = ""


@dataclass
class Checkpointer:
    """Saves a run's checkpoints; `note` tells it of every step once that is recorded."""

    run: Path
    policy: Policy
    optimizer: torch.optim.AdamW
    config: Config
    origin: str  # a hash of what the run began with
    started: float  # the time.monotonic() of its start
    step: int = 0  # the last one that is recorded

    def note(self, step: int, metrics_bytes: int) -> None:
        """`step` steps are done, and recorded in so many bytes of metrics.jsonl."""
        self.step, self.metrics_bytes = step, metrics_bytes
        self.updates = updates(self.optimizer)

    @property
    def unmoved(self) -> bool:
        """Whether a step was recorded, and policy and optimizer are still as it left them."""
        return self.step > 0 and updates(self.optimizer) == self.updates

    def save(self) -> None:
        """Write the checkpoint of the step, then delete all but the last --keep-checkpoints.

        Raises UsageError if it cannot be written; older checkpoints then stay as they are.
        """
        place = self.run / FOLDER / f"step-{self.step:06d}"
        if place.exists() or rank() > 0:
            return
        with writing(f"{place}", "make room there"):
            sync(self.run / "metrics.jsonl")  # not to be behind the checkpoint
            write_folder(place, self._write)
            sync(self.run)
            for old in checkpoints(self.run)[: -self.config.keep_checkpoints]:
                remove_folder(old)

    def _write(self, folder: Path) -> None:
        state = {"format": FORMAT, "step": self.step, "metrics_bytes": self.metrics_bytes}
        state |= {"origin": self.origin, "seconds": time.monotonic() - self.started}
        self.policy.save(folder / "adapter")
        moments = serialized(_moments(self.policy, self.optimizer))
        (folder / "optimizer.safetensors").write_bytes(moments)
        (folder / "state.json").write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")


def save_adapter(run: Path, policy: Policy) -> None:
    """Write the run's adapter folder, which evaluation reads, with a model card. Raises
    UsageError."""
    if not rank():
        with writing(f"{run}/adapter", "make room there"):
            policy.save(run / "adapter")
            write_card(run)


def checkpoints(run: Path) -> list[Path]:
    """The folders of a run's checkpoints by their steps, whole or damaged."""
    return sorted(filter(_step, (run / FOLDER).glob("step-*")), key=_step)


def newest(run: Path) -> Point:
    """The last whole checkpoint of a run; its start if it has none at all.

    Prints a line for each damaged one on the way. Raises UsageError if all are damaged.
    """
    found = checkpoints(run)
    for folder in reversed(found):
        try:
            return opened(folder)
        except UsageError as error:
            print(f"train.py: {error}; trying the one before", file=sys.stderr)
    if found:
        problem = f"all {len(found)} checkpoints are damaged"
        raise UsageError(f"{run}: {problem}; start again with another --out")
    return Point(run)


def opened(folder: Path) -> Point:
    """The checkpoint in a folder, every byte of it checked. Raises UsageError."""
    run = folder.parent.parent
    try:
        check_folder(folder)
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        if state["format"] != FORMAT:
            raise ValueError("another version of the program wrote it")
        kept = {name: state[name] for name in ("step", "metrics_bytes", "seconds", "origin")}
        lines = (run / "metrics.jsonl").read_bytes()[: state["metrics_bytes"]]
        whole = [line for line in lines.splitlines() if line[:1] + line[-1:] == b"{}"]
        if len([*map(json.loads, whole)]) != state["step"] or not lines.endswith(b"\n"):
            raise ValueError("metrics.jsonl has lost lines that it counts on")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"checkpoint {folder}: damaged: {error}") from None
    return Point(run, folder, **kept)


def origin(questions: str, adapter: Path | None) -> str:
    """A hash of the two things that settings name but do not contain: the training questions (as
    the hash `questions`) and the adapter to start from."""
    files = sorted(adapter.glob("*.safetensors")) if adapter else []
    return hashlib.sha256(b"".join([questions.encode(), *map(Path.read_bytes, files)])).hexdigest()


def restore(point: Point, policy: Policy, optimizer: torch.optim.AdamW, origin: str) -> None:
    """Read a checkpoint's adapter and moments back, in place; at the start there are none.

    The policy's reference stays what it was. Raises UsageError if the run began with another
    `origin`, or if the adapter does not fit the policy.
    """
    if not point.folder:
        return
    if point.origin != origin:
        problem = "the training questions, or the adapter of --init, are others now"
        raise UsageError(f"checkpoint {point.folder}: {problem}; put them back")
    policy.load(point.folder / "adapter")
    tensors, state = load_file(point.folder / "optimizer.safetensors"), {}
    for i, name in enumerate(policy.names if tensors else ()):  # none: no update was made so far
        state[i] = {moment: tensors[f"{moment}.{name}"].clone() for moment in MOMENTS}
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def updates(optimizer: torch.optim.AdamW) -> int:
    """Updates made so far; one skipped for a gradient that is not finite does not count."""
    return max((int(state["step"]) for state in optimizer.state.values()), default=0)


def cut_back(point: Point, steps: int) -> None:
    """Delete everything the run wrote after `point`. `steps` is the run's total number of steps.

    Later checkpoints go first: if this is killed half-way, the next call finishes it.
    """
    run, step = point.run, point.step
    sweep(run / FOLDER)
    for folder in reversed(checkpoints(run)):
        if _step(folder) > step:
            remove_folder(folder)
    if step < steps:  # these describe a policy that further steps will change
        (run / "summary.json").unlink(missing_ok=True)
        shutil.rmtree(run / "adapter", ignore_errors=True)
        for stale in (*run.glob("**/evaluation.json"), *run.glob("**/predictions/*trained-*")):
            stale.unlink()
    for record in run.glob("trace/step-*"):
        if _step(record) > step or record.suffix == ".part":
            record.unlink()
    metrics = run / "metrics.jsonl"
    if metrics.exists():
        os.truncate(metrics, point.metrics_bytes)


def _moments(policy: Policy, optimizer: torch.optim.AdamW) -> dict[str, torch.Tensor]:
    """AdamW's state under the names of the parameters on disk."""
    return {
        f"{moment}.{policy.names[i]}": value.detach().cpu().contiguous()
        for i, moments in optimizer.state_dict()["state"].items()
        for moment, value in moments.items()
    }


def _step(path: Path) -> int:
    """10 for a file or folder named step-000010; 0 for any other name."""
    number = path.name.removeprefix("step-").partition(".")[0]
    return int(number) if number.isdecimal() else 0
