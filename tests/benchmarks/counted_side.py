"""One side of step_cost.py's comparison with TRL: a step on the CPU in which every operation is
counted, not timed. Prints its phases as JSON.

    python tests/benchmarks/counted_side.py ours TASK
    trl/bin/python tests/benchmarks/counted_side.py trl TASK

TASK is that of same_work.py. Phases: prefill (with the vision tower), decode, reference, update,
optimizer, other. TRL computes the tower in its reference and update too, and these have it.
"""

import json
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from tests.benchmarks.operations import Operations
from tests.benchmarks.same_work import Task


def ours(task: Task, counted: Operations) -> None:
    from tests.benchmarks.our_phases import phases
    from tests.benchmarks.our_side import training

    steps = training(task)
    with phases(counted), counted:
        next(steps)


def trl(task: Task, counted: Operations) -> None:
    from transformers import TrainerCallback
    from trl import GRPOTrainer

    from tests.benchmarks import trl_side

    def within(name: str, inner: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            with counted.phase(name):
                return inner(*args, **kwargs)

        return run

    class Phases(TrainerCallback):
        def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
            counted.now = "optimizer"

        def on_optimizer_step(self, *_: Any, **__: Any) -> None:
            counted.now = "other"

    with tempfile.TemporaryDirectory() as out:
        made = trl_side.trainer(task, out)
        # Nothing is timed here, so TRL's own methods take the place of the timed ones.
        generated = partial(GRPOTrainer._generate_single_turn, made)
        scored = partial(GRPOTrainer._get_per_token_logps_and_entropies, made)

        def score(*args: Any, **kwargs: Any) -> Any:
            if torch.is_grad_enabled():
                return scored(*args, **kwargs)
            return within("reference", scored)(*args, **kwargs)

        made._generate_single_turn = within("decode", generated)
        made._get_per_token_logps_and_entropies = score
        made.training_step = within("update", made.training_step)
        made._prepare_inputs = within("other", made._prepare_inputs)
        made.accelerator.clip_grad_norm_ = within("optimizer", made.accelerator.clip_grad_norm_)
        made.add_callback(Phases())
        first_forward_is_prefill(made.model.get_base_model(), counted)
        with counted:
            made.train()


def first_forward_is_prefill(model: torch.nn.Module, counted: Operations) -> None:
    """Of the forward passes of generation the first computes the prompts."""
    done = []

    def before(*_: Any) -> None:
        if counted.now == "decode" and not done:
            counted.now = "prefill"
            done.append(True)

    def after(*_: Any) -> None:
        if counted.now == "prefill":
            counted.now = "decode"

    model.register_forward_pre_hook(before)
    model.register_forward_hook(after)


def main() -> None:
    side, task = sys.argv[1], Task.from_json(sys.argv[2])
    torch.set_num_threads(task.threads)
    counted = Operations()
    {"ours": ours, "trl": trl}[side](task, counted)
    print(json.dumps({name: vars(tally) for name, tally in counted.phases.items()}))


if __name__ == "__main__":
    main()
