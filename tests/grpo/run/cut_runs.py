"""A run whose steps are made in this process, on a tiny model, from wherever it was cut."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from grpo.loop import grpo
from grpo.optim import adamw
from grpo.run.checkpoint import Checkpointer, cut_back, newest, restore
from grpo.run.interrupt import Stop
from grpo.run.metrics_log import Trackers, history
from grpo.run.progress import Progress
from grpo.run.recorder import Recorder
from grpo.settings.config import Config
from grpo.sft import sft
from models.policy import Policy
from tests.grpo.cases import draw, reward

STEPS = 5
LONG = {
    "steps": STEPS, "save_every": 1, "keep_checkpoints": 9, "warmup_steps": 2,
    "lr_schedule": "linear", "weight_decay": 0.1, "max_grad_norm": 1.0, "trace_steps": "0",
    "sample_every": 0,
}  # fmt: skip
KINDS = {
    "mu 1": {},
    "mu 3, reference": {"updates_per_rollout": 3, "kl_coef": 0.04, "clip_eps": 0.02},
    "redrawn": {"dynamic_sampling": 2, "prompts_per_step": 2},
    "sft": {"method": "sft", "prompts_per_step": 2},
}


def steps_of(c: Config, policy: Policy, optimizer: torch.optim.AdamW, start: int):
    if c.method == "sft":
        return sft(policy, optimizer, draw, lambda q: f"{q.id} it is", c, start)
    return grpo(policy, optimizer, draw, reward, c, start)


def go(c: Config, run: Path, policy: Policy, look: Callable = lambda step: None) -> list[list]:
    """Make a run's steps from where it is; the token ids that were drawn, by step."""
    run.mkdir(exist_ok=True)
    optimizer, found = adamw(policy.parameters(), c), newest(run)
    restore(found, policy, optimizer, "origin")
    cut_back(found, c.steps)
    drawn = []

    def seen(step) -> None:
        groups = step.rollout.groups if step.rollout else []
        drawn.append([ids.tolist() for group in groups for ids in group.completions])
        look(step)

    with recorder(run, policy, optimizer, c) as record:
        for step in steps_of(c, policy, optimizer, found.step):
            seen(step)
            record.record(step)
    return drawn


def recorder(run: Path, policy: Policy, optimizer: torch.optim.AdamW, c: Config) -> Any:
    checkpointer = Checkpointer(run, policy, optimizer, c, "origin", time.monotonic())
    progress = Progress(c, vars, before=history(run))
    stop, trackers = Stop(run, quiet=True), Trackers(run)
    return Recorder(checkpointer, stop, progress, trackers).recording()


def metrics(run: Path) -> list[dict]:
    """Without times; NaN as text, which equals itself."""
    steps = history(run)
    return [{k: str(v) for k, v in s.items() if not k.startswith("time/")} for s in steps]


def state_files(run: Path, step: int = STEPS) -> dict[str, bytes]:
    folder = run / "checkpoints" / f"step-{step:06d}"
    names = ("adapter/adapter_model.safetensors", "optimizer.safetensors")
    return {name: (folder / name).read_bytes() for name in names}
