"""What both sides of against_trl.py are given, and how they talk with it.

Nothing here imports TRL: its libraries must not be in our side's memory.
"""

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from data.example import VQAExample
from data.images import ImageFile
from tests.tiny import NoiseImage

WORDS = ("Is there a lesion in this image? " * 6)[:180]  # 212 tokens with the rest of the turn
RATE, CLIP_EPS, MAX_GRAD_NORM = 1e-5, 0.2, 1.0
MB = 1e6


@dataclass(frozen=True)
class Case:
    """A step: `prompts` questions, `completions` of each (G), of exactly `tokens` tokens, drawn
    once, and `mu` updates on them. `passes` are TRL's of an update, where memory asks for more."""

    model: str = "29M"
    width: int = 224
    height: int = 224
    prompts: int = 4
    completions: int = 8
    tokens: int = 64
    beta: float = 0.04
    mu: int = 1
    passes: int = 1


@dataclass(frozen=True)
class Task:
    """What a worker is started with. `steps` count the one that warms up."""

    case: Case
    folder: str  # of the model
    images: str
    steps: int
    threads: int

    @classmethod
    def from_json(cls, text: str) -> "Task":
        fields = json.loads(text)
        return cls(**fields | {"case": Case(**fields["case"])})

    def questions(self) -> list[VQAExample]:
        """Every step's, in order; no image is seen twice."""
        images = (ImageFile(file) for file in sorted(Path(self.images).iterdir()))
        return [
            VQAExample(image.path.stem, (image,), WORDS, ("left", "right"), 0, "MRI", "side")
            for image in images
        ]


def draw_images(case: Case, steps: int, folder: Path) -> None:
    """One a question, of noise. Both sides read these files."""
    for i in range(case.prompts * steps):
        NoiseImage(i, case.width, case.height).open().save(folder / f"{i:04}.png")


def reward(texts: list[str]) -> list[float]:
    """Depends on the text alone, and differs within a group."""
    return [float(sum(map(ord, text)) % 7) / 2 for text in texts]


class Stopwatch:
    """Seconds by phase, which do not overlap ("other" is what none of them has), and of processor
    time: of all threads, and of the system, which is mostly that of getting memory."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        self.start, self.phases, self.cpu = time.perf_counter(), {}, os.times()

    @contextmanager
    def of(self, phase: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.add(phase, time.perf_counter() - start)

    def add(self, phase: str, seconds: float) -> None:
        self.phases[phase] = self.phases.get(phase, 0.0) + seconds

    def read(self) -> dict[str, Any]:
        step, cpu = time.perf_counter() - self.start, os.times()
        other = step - sum(self.phases.values())
        used = {"user_s": cpu.user - self.cpu.user, "system_s": cpu.system - self.cpu.system}
        return {"step_s": step, **used, "phases": self.phases | {"other": other}}


class Worker:
    """This process as against_trl.py knows it: it works when told to, one step at a time."""

    def __init__(self, threads: int) -> None:
        self.answers = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)  # what a library prints is no answer
        torch.set_num_threads(threads)
        self.watch = Stopwatch()

    def ready(self, model: nn.Module) -> None:
        """Everything is loaded."""
        parameters = list(model.parameters())
        self._say(
            base_mb=memory_mb("VmRSS"),
            parameters=sum(p.numel() for p in parameters),
            trained=sum(p.numel() for p in parameters if p.requires_grad),
            dtypes=sorted({str(p.dtype) for p in parameters}),
        )

    def wait(self) -> None:
        """Until it is this side's turn; then time runs."""
        if not sys.stdin.readline():
            sys.exit(1)  # nobody is there any more
        self.watch.restart()

    def done(self, prompts: list[list[int]], lengths: list[int]) -> None:
        """A step is. `prompts` are its token ids, `lengths` those of its completions."""
        timed, threads = self.watch.read(), torch.get_num_threads()
        work = {"prompts": prompts, "lengths": lengths, "threads": threads}
        self._say(**timed, peak_mb=memory_mb("VmHWM"), work=work)

    def _say(self, **answer: Any) -> None:
        print(json.dumps(answer), file=self.answers)


def memory_mb(name: str) -> float:
    """Resident memory of this process now (VmRSS), or its highest so far (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (value,) = (line.split()[1] for line in lines if line.startswith(f"{name}:"))
    return int(value) * 1024 / MB
