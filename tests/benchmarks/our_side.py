"""Our side of against_trl.py: the loop as train.py runs it."""

import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from grpo.loop import grpo
from grpo.metrics import Step
from grpo.optim import adamw
from grpo.settings.config import Config
from models.open_policy import load_policy
from models.policy import Policy
from tests.benchmarks.same_work import CLIP_EPS, MAX_GRAD_NORM, RATE, Stopwatch, Task, Worker
from tests.benchmarks.same_work import reward as scores


def watched(policy: Policy, watch: Stopwatch) -> Policy:
    """Its encoding, which has the vision tower, and its sampling: what TRL's generation does."""
    encode, sample = policy.encode, policy.sample

    def timed_encode(*args, **kwargs):
        with watch.of("generation"):
            return encode(*args, **kwargs)

    def timed_sample(*args, **kwargs):
        with watch.of("generation"):
            return sample(*args, **kwargs)

    policy.encode, policy.sample = timed_encode, timed_sample
    return policy


def loaded(task: Task) -> Policy:
    """The policy of a task; its completions have one length."""
    policy = load_policy(task.folder, device="cpu", dtype="float32")
    policy.banned[sorted(policy.chat.eos)] = True
    return policy


def training(task: Task, policy: Policy | None = None) -> Iterator[Step]:
    """The steps of a task, each when it is asked for."""
    case, questions = task.case, task.questions()
    config = Config(
        loss="grpo",
        kl_coef=case.beta,
        updates_per_rollout=case.mu,
        temperature=1.0,
        clip_eps=CLIP_EPS,
        group_size=case.completions,
        prompts_per_step=case.prompts,
        max_completion_length=case.tokens,
        steps=task.steps,
        learning_rate=RATE,
        lr_schedule="constant",
        max_grad_norm=MAX_GRAD_NORM,
        trace_steps="0",
    )
    policy = policy or loaded(task)

    def draw(step, slot, attempt):
        return questions[step * case.prompts + slot]

    def reward(examples, texts, ids=()):
        values = scores(texts)
        return values, {"sum": values}

    return grpo(policy, adamw(policy.parameters(), config), draw, reward, config)


def main() -> None:
    task = Task.from_json(sys.argv[1])
    worker = Worker(task.threads)
    policy = watched(loaded(task), worker.watch)
    steps = training(task, policy)
    worker.ready(policy.model)
    for _ in range(task.steps):
        worker.wait()
        step = next(steps)
        for phase in ("reference", "update"):
            worker.watch.add(phase, step.metrics[f"time/{phase}"])
        groups = step.rollout.groups
        prompts = [group.prompt.input_ids.tolist() for group in groups for _ in group.completions]
        worker.done(prompts, [len(ids) for group in groups for ids in group.completions])


if __name__ == "__main__":
    main()
