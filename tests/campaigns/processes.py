"""One, two and three processes: the gradient of recorded rollouts, and live samples, compared.

    python tests/campaigns/processes.py

Live: the phantom recipe for STEPS steps on 1, 2 and 3 processes (gloo, CPU, float32, one thread
each). A completion that differs from one process's is followed to its first other token; how near
its random number u lies there to the edge of the CDF that parts the two tokens, is the proof that
rounding alone decided. Writes tests/campaigns/results/processes.json.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
from safetensors.torch import load_file

from data.load import load_split
from data.training_questions import question_order
from grpo.distributed import processes, rank
from grpo.loop import grpo
from grpo.optim import adamw
from grpo.rollout import sample_groups
from grpo.settings.config import TRAIN_STREAM, Config
from grpo.settings.recipes import RECIPES
from models.distribution import law, uniforms
from models.open_policy import load_policy, open_policy
from models.policy import Policy
from models.tree import Group
from tests.conftest import randomise
from tests.grpo.cases import config as small
from tests.grpo.cases import draw as asked
from tests.grpo.cases import reward as paid
from tests.models.plain import after_head
from tests.tiny import make_model
from train import open_rewards

ROOT = Path(__file__).parents[2]
STEPS, PROCESSES = 20, (1, 2, 3)
OUT = Path(__file__).parent / "results" / "processes.json"
SETTINGS = {**RECIPES["phantom"], "cache": "none", "device": "cpu", "threads": 1, "kl_coef": 0.04}


def started() -> tuple[Config, Policy, Any]:
    config = Config(**SETTINGS, recipe="phantom")
    examples = load_split(config, "train", config.train_size)
    return (
        config,
        open_policy(config),
        question_order(examples, config.seed, config.prompts_per_step),
    )


def worker(out: Path) -> None:
    """Under torchrun: every step's completions, and the adapter that drew them."""
    torch.set_num_threads(1)
    config, policy, draw = started()
    _, reward = open_rewards(config)
    with processes():
        policy.save(out / "adapter-0")
        steps = grpo(policy, adamw(policy.parameters(), config), draw, reward, config)
        lines = []
        for step in range(STEPS):
            groups = next(steps).rollout.groups
            lines.append([[ids.tolist() for ids in group.completions] for group in groups])
            if rank() == 0:
                policy.save(out / f"adapter-{step + 1}")
        if rank() == 0:
            (out / "samples.json").write_text(json.dumps(lines))


def launch(n: int, *words: str) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(n), *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(command, cwd=ROOT, env=environment, check=True)


def distance(policy: Policy, config: Config, prompt: Any, key: tuple[int, ...], j: int, one, other):
    """How far u is from the edge between the first token that differs and the other's."""
    t = next(i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    u = uniforms([key], config.group_size, config.max_completion_length)[j, t]
    group = Group(prompt, [torch.tensor(one[: t + 1])], [True])
    seen = {}
    with torch.no_grad(), after_head(policy, lambda logits: seen.setdefault("logits", logits)):
        policy.logprobs([group], config.temperature)
    logits = law(seen["logits"][t : t + 1], config.temperature, policy.banned)
    cdf = logits.softmax(dim=-1, dtype=torch.float64).cumsum(dim=-1)[0]
    between = sorted((one[t], other[t]))
    edges = cdf[between[0] : between[1]] / cdf[-1]
    return (edges - u).abs().min().item()


def compared(alone: Path, many: Path) -> dict[str, Any]:
    """Completions that differ by step, and the largest distance from a tie."""
    config, policy, draw = started()
    one, other = (json.loads((run / "samples.json").read_text()) for run in (alone, many))
    differ, distances, drift = [], [], []  # one entry a step
    for step in range(STEPS):
        policy.load(alone / f"adapter-{step}")
        weights = [load_file(run / f"adapter-{step}" / "adapter_model.safetensors")
                   for run in (alone, many)]  # fmt: skip
        gap = torch.cat([(weights[0][k] - weights[1][k]).flatten() for k in weights[0]])
        drift.append(gap.abs().max().item())
        found = []
        for slot, (mine, theirs) in enumerate(zip(one[step], other[step], strict=True)):
            for j, (a, b) in enumerate(zip(mine, theirs, strict=True)):
                if a == b:
                    continue
                (prompt,) = policy.encode([draw(step, slot, 0)])
                key = (TRAIN_STREAM, config.seed, step, slot, 0)
                found.append(distance(policy, config, prompt, key, j, a, b))
        differ.append(len(found))
        distances.append(max(found, default=0.0))
    return {
        "completions": STEPS * len(one[0]) * len(one[0][0]),
        "differ": sum(differ),
        "differ_by_step": differ,
        "largest_distance_of_u_from_the_edge_by_step": distances,
        "largest_weight_difference_by_step": drift,
    }


def recorded(folder: Path) -> dict[str, Any]:
    """The relative difference of the summed gradients, by number of processes and case."""
    model = make_model(folder / "model")
    policy = randomise(load_policy(str(model), device="cpu"))
    rollout = sample_groups(policy, asked, paid, small(), 0)
    ids = {
        e.id: [o.tolist() for o in g.completions]
        for e, g in zip(rollout.examples, rollout.groups, strict=True)
    }
    (folder / "record.json").write_text(json.dumps(ids))
    found = {}
    for n in PROCESSES:
        out = folder / f"gradients-{n}"
        out.mkdir()
        launch(n, "-m", "tests.grpo.shared", str(model), str(folder / "record.json"), str(out))
        found[n] = load_file(out / "gradients.safetensors")
    return {
        str(n): {
            name: ((found[n][name] - one).norm() / one.norm()).item()
            for name, one in found[1].items()
        }
        for n in PROCESSES[1:]
    }


def main() -> None:
    if len(sys.argv) > 1:
        worker(Path(sys.argv[1]))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        record: dict[str, Any] = {"steps": STEPS, "torch": torch.__version__}
        record["gradient_of_recorded_rollouts"] = recorded(folder)
        for n in PROCESSES:
            (folder / str(n)).mkdir()
            launch(n, __file__, str(folder / str(n)))
        record["live_samples"] = {
            str(n): compared(folder / "1", folder / str(n)) for n in PROCESSES[1:]
        }
    OUT.write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record, indent=2))


if __name__ == "__main__":
    main()
