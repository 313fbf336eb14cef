"""What many processes do on recorded rollouts; for tests/test_distributed.py.

    torchrun --nproc-per-node N -m tests.grpo.shared MODEL RECORD OUT

RECORD (JSON) holds completions by question; each case's gradients at every update, and its metrics,
go to OUT as rank 0 sees them.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from grpo.distributed import processes, rank
from grpo.optim import adamw
from grpo.settings.config import Config
from grpo.sft import sft
from models.open_policy import load_policy
from models.policy import Policy
from tests.conftest import randomise
from tests.grpo.cases import QUESTIONS, config, draw, reward, steps
from tests.grpo.test_loop import at_each_update, gradients

TARGETS = {"one": "left", "none": "four it is", "two": "no"}
CASES: dict[str, Config] = {
    f"{loss}, beta {beta}, mu {mu}": config(
        loss=loss, kl_coef=beta, updates_per_rollout=mu, temperature=0.8, clip_eps=0.02
    )
    for loss, beta, mu in [
        ("grpo", 0.04, 3), ("grpo", 0.0, 1), ("dapo", 0.0, 3), ("dr_grpo", 0.04, 1)
    ]
} | {"sft": config(method="sft")}  # fmt: skip


def replay(policy: Policy, record: dict[str, list[list[int]]]) -> None:
    """Make the policy "sample" what is on record for a question."""

    def sample(prompts, group_size, keys, *, temperature, max_completion_length):
        groups = []
        for p in prompts:
            logprobs = [[-1.0] * len(ids) for ids in record[p.id]]
            groups.append(policy.completed(p, record[p.id], [False] * group_size, logprobs))
        return groups

    policy.sample = sample


def main() -> None:
    model, record, out = sys.argv[1], json.loads(Path(sys.argv[2]).read_text()), Path(sys.argv[3])
    torch.set_num_threads(1)
    found, metrics = {}, {}
    with processes():
        for name, c in CASES.items():
            policy, seen = randomise(load_policy(model, device="cpu")), []
            replay(policy, record)
            run = steps(policy, draw, reward, c)
            if c.method == "sft":
                optimizer = adamw(policy.parameters(), c)
                run = sft(policy, optimizer, draw, lambda q: TARGETS[q.id], c)
            with at_each_update(lambda _, p=policy, to=seen: to.append(gradients(p))):
                (step,) = run
            found |= {f"{name}, update {k}": gradient for k, gradient in enumerate(seen)}
            metrics[name] = {k: v for k, v in step.metrics.items() if not k.startswith("time/")}
        assert {question.id for question in QUESTIONS} == set(record)
        if rank() == 0:
            save_file(found, out / "gradients.safetensors")
            (out / "metrics.json").write_text(json.dumps(metrics))


if __name__ == "__main__":
    main()
