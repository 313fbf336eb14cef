"""Questions, a reward and a small configuration that the tests of the loop share."""

from collections.abc import Iterator

from grpo.loop import grpo
from grpo.metrics import Step
from grpo.optim import adamw
from grpo.settings.config import Config
from models.policy import Policy
from tests.tiny import NoiseImage, Question

QUESTIONS = [
    Question("Which side?\nA) left\nB) right", (NoiseImage(1, 84, 56),), "one"),
    Question("What is 2 + 2?", (), "none"),
    Question("Compare these.", (NoiseImage(2, 56, 112), NoiseImage(3, 84, 84)), "two"),
]
SMALL = {
    "steps": 1,
    "group_size": 4,
    "prompts_per_step": 3,
    "max_completion_length": 7,
    "learning_rate": 0.02,
    "max_grad_norm": 1e9,
    "lr_schedule": "constant",
}


def config(**changes) -> Config:
    return Config(**{**SMALL, **changes})


def draw(step: int, slot: int, attempt: int) -> Question:
    return QUESTIONS[(step + slot + attempt) % 3]


def reward(examples, texts, ids=()):
    """Depends on the text; the second question's groups never have any signal."""
    values = [
        0.5 if e.id == "none" else float(sum(map(ord, t)) % 5)
        for e, t in zip(examples, texts, strict=True)
    ]
    return values, {"sum": values}


def steps(policy: Policy, draw, reward, config: Config) -> Iterator[Step]:
    """The loop from its first step, with a new optimizer."""
    return grpo(policy, adamw(policy.parameters(), config), draw, reward, config)
