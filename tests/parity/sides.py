"""The two sides: our loop, and TRL's trainer, through the same updates."""

import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
from paid import WEIGHTS, paying, reward, two_rewards
from peft import LoraConfig
from torch import Tensor, nn
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)
from trl import GRPOConfig, GRPOTrainer

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from grpo.metrics import Step
from grpo.settings.config import Config
from models import lora
from models.open_policy import load_policy
from models.policy import Policy
from tests.conftest import randomise
from tests.grpo import cases

RATE, NO_CLIPPING = 0.003, 1e9  # Adam's rate, which moves ratios past the clip; gradient's norm
COMPLETIONS = 4
Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class World:
    """A model, what it is asked, and how far its LoRA is from zero."""

    name: str
    folder: Path
    questions: list[Any]
    length: int  # longest completion
    scale: float


@dataclass(frozen=True)
class Case:
    """What both sides are told. `passes` are TRL's of a step, by gradient accumulation."""

    loss: str
    beta: float
    mu: int
    temperature: float
    scale_rewards: str = "group"
    clip_eps: float = 0.02
    clip_eps_high: float | None = None
    passes: int = 1
    kl_times_ratio: bool = False  # TRL's default is True
    ratio: str = "token"
    surrogate: str = "clip"
    clip_delta: float | None = None
    combine_rewards: str = "sum"
    mask_truncated: bool = False


@dataclass
class Updates:
    """Of every update: its loss, and by the names on disk its gradients and the weights after."""

    losses: list[float] = field(default_factory=list)
    gradients: list[Tensors] = field(default_factory=list)
    weights: list[Tensors] = field(default_factory=list)

    @contextmanager
    def watching(self, weights: Tensors, then: list[Tensors] | None = None) -> Iterator[None]:
        """Inside, the next optimizer steps of anybody are these updates; all but the losses.

        `then` are weights to go on from after each of them, in place of its own.
        """

        def before(*_: Any) -> None:
            self.gradients.append({name: w.grad.clone() for name, w in weights.items()})

        def after(*_: Any) -> None:
            self.weights.append(copied(weights))
            if then:
                put(weights, then[len(self.weights) - 1])

        hooks = register_optimizer_step_pre_hook(before), register_optimizer_step_post_hook(after)
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


def copied(weights: Tensors) -> Tensors:
    return {name: weight.detach().clone() for name, weight in weights.items()}


@torch.no_grad()
def put(weights: Tensors, values: Tensors) -> None:
    for name, weight in weights.items():
        weight.copy_(values[name])


def ragged(policy: Policy) -> None:
    """Have the random model end its completions at all lengths, which by itself it hardly does, and
    the last one of each group at a length without an end, as if it was cut there."""
    sample = policy.sample

    def cut(*args: Any, **kwargs: Any) -> list[Any]:
        groups = sample(*args, **kwargs)
        for i, group in enumerate(groups):
            for j, ids in enumerate(group.completions):
                length = 1 + (7 * i + 5 * j) % len(ids)
                group.sampling_logprobs[j] = group.sampling_logprobs[j][:length]
                group.truncated[j] = j == COMPLETIONS - 1
                if group.truncated[j]:
                    group.completions[j] = ids[:length]
                elif length < len(ids):
                    end = torch.tensor([policy.chat.end])
                    group.completions[j] = torch.cat([ids[: length - 1], end])
        return groups

    policy.sample = cut


def ours(world: World, case: Case) -> tuple[Policy, Tensors, Step, Updates]:
    """One step of our loop: mu updates of a policy whose adapter is random, B included. Returns
    also the weights at its start."""
    config = Config(
        loss=case.loss,
        kl_coef=case.beta,
        updates_per_rollout=case.mu,
        temperature=case.temperature,
        scale_rewards=case.scale_rewards,
        clip_eps=case.clip_eps,
        clip_eps_high=case.clip_eps_high,
        clip_delta=case.clip_delta,
        ratio=case.ratio,
        surrogate=case.surrogate,
        kl="k3-corrected" if case.kl_times_ratio else "k3",
        combine_rewards=case.combine_rewards,
        mask_truncated=case.mask_truncated,
        reward=",".join(f"{name}={weight}" for name, weight in WEIGHTS.items()),
        group_size=COMPLETIONS,
        prompts_per_step=len(world.questions),
        max_completion_length=world.length,
        steps=1,
        learning_rate=RATE,
        lr_schedule="constant",
        max_grad_norm=NO_CLIPPING,
    )
    policy = randomise(load_policy(str(world.folder), device="cpu"), scale=world.scale)
    if world.name == "random":
        ragged(policy)
    seen, weights = Updates(), lora.weights(policy.model)
    start = copied(weights)
    pays = two_rewards if case.combine_rewards == "normalized" else reward
    with seen.watching(weights):
        (step,) = cases.steps(policy, lambda _, slot, __: world.questions[slot], pays, config)
    seen.losses = [update.loss.nansum().item() for update in step.updates]
    return policy, start, step, seen


class Trainer(GRPOTrainer):
    """TRL's, keeping what its own `compute_loss` returns; `losses` holds those of one update."""

    losses: tuple[float, ...] = ()

    def compute_loss(self, *args: Any, **kwargs: Any) -> Tensor:
        loss = super().compute_loss(*args, **kwargs)
        self.losses = (*self.losses, loss.item())
        return loss


def recorded(world: World, step: Step) -> Callable[..., dict[str, list[Any]]]:
    """TRL's `rollout_func`: our completions for TRL's prompts, which must be ours to the token."""
    rollout, remaining = step.rollout, {}
    paid = torch.stack([*rollout.parts.values()], dim=-1).tolist()  # (B, G, rewards)
    for question, group, rewards in zip(world.questions, rollout.groups, paid, strict=True):
        ids = group.prompt.input_ids.tolist()
        completions = [o.tolist() for o in group.completions]
        remaining[question.prompt] = [
            (ids, *pair) for pair in zip(completions, rewards, strict=True)
        ]

    def rollout_func(prompts: list[Any], trainer: GRPOTrainer) -> dict[str, Any]:
        encoded = trainer.processing_class.apply_chat_template(
            prompts, add_generation_prompt=True, tokenize=True, return_dict=True
        )["input_ids"]
        texts = [prompt[-1]["content"][-1]["text"] for prompt in prompts]
        ids, completions, rewards = zip(*(remaining[text].pop(0) for text in texts), strict=True)
        assert encoded == list(ids), "TRL's prompts are not ours"
        rest = {"logprobs": None, "recorded": list(zip(completions, rewards, strict=True))}
        return {"prompt_ids": encoded, "completion_ids": list(completions), **rest}

    return rollout_func


def trainer(world: World, case: Case, step: Step, out: str) -> Trainer:
    """TRL's trainer with a model and a processor that it loads itself."""
    rows = [
        {
            "prompt": [{"role": "user", "content": question.prompt}],
            "images": [image.open() for image in question.images],
        }
        for question in world.questions
    ]
    cispo, high = case.surrogate == "cispo", case.clip_eps_high  # cispo's bound is of the ratio
    settings = GRPOConfig(
        output_dir=out,
        model_init_kwargs={"dtype": "float32", "attn_implementation": "sdpa"},
        loss_type="cispo" if cispo else case.loss,
        beta=case.beta,
        num_iterations=case.mu,
        temperature=case.temperature,
        scale_rewards=case.scale_rewards,
        epsilon=case.clip_eps,
        epsilon_high=1 + high if cispo else high,
        delta=case.clip_delta,
        importance_sampling_level=case.ratio,
        multi_objective_aggregation={
            "sum": "sum_then_normalize",
            "normalized": "normalize_then_sum",
        }[case.combine_rewards],
        reward_weights=[WEIGHTS[name] for name in step.rollout.parts],
        mask_truncated_completions=case.mask_truncated,
        num_generations=COMPLETIONS,
        max_completion_length=world.length,
        per_device_train_batch_size=len(rows) * COMPLETIONS // case.passes,
        gradient_accumulation_steps=case.passes,
        max_steps=case.mu,
        learning_rate=RATE,
        lr_scheduler_type="constant",
        max_grad_norm=NO_CLIPPING,
        optim="adamw_torch",
        bf16=False,
        use_cpu=True,
        use_bias_correction_kl=case.kl_times_ratio,
        gradient_checkpointing=False,
        shuffle_dataset=False,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )
    made = Trainer(
        model=str(world.folder),
        args=settings,
        reward_funcs=[paying(k) for k in range(len(step.rollout.parts))],
        rollout_func=recorded(world, step),
        train_dataset=datasets.Dataset.from_list(rows),
        peft_config=LoraConfig(r=lora.R, lora_alpha=lora.ALPHA, target_modules=lora.TARGETS),
    )
    made.remove_callback(transformers.PrinterCallback)
    return made


def theirs(
    world: World, case: Case, step: Step, start: Tensors, then: list[Tensors], bias: Tensor
) -> Updates:
    """The same updates by TRL and its optimizer, on the same rollout, from the same weights: the
    adapter `start`, and after each update our weights.

    TRL knows nothing of tokens that cannot be drawn: `bias` (V,) is what its head adds to logits.
    """
    seen = Updates()
    with tempfile.TemporaryDirectory() as out:
        made = trainer(world, case, step, out)
        made.model.get_base_model().lm_head.bias = nn.Parameter(bias, requires_grad=False)
        weights = lora.weights(made.model)
        put(weights, start)
        with seen.watching(weights, then):
            made.train()
    passes = len(made.losses) // case.mu
    seen.losses = [sum(parts) for parts in zip(*[iter(made.losses)] * passes, strict=True)]
    return seen
