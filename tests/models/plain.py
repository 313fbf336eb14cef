"""The oracle of this folder: one sequence at a time through transformers' own forward.

No tree, no cache, no kept features, no positions of ours: pixel values go in, and transformers
finds the positions and the mask.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from models.policy import Policy
from models.sampling.sampler import Rollout, Task, joined
from models.tree import Group, Prompt
from tests.tiny import NoiseImage, Question

QUESTIONS = [
    Question("Which side is the lesion on?\nA) left\nB) right", (NoiseImage(1, 84, 56),), "one"),
    Question("What is 2 + 2?", (), "none"),
    Question("Compare these.", (NoiseImage(2, 56, 112), NoiseImage(3, 84, 84)), "two"),
]
KEYS = [(0, 42, 1, i, 0) for i in range(3)]


def rollout(policy: Policy, questions=QUESTIONS, length: int = 12) -> list[Group]:
    """Four sampled completions of each question."""
    prompts = policy.encode(questions)
    keys = KEYS[: len(prompts)]
    return policy.sample(prompts, 4, keys, temperature=1.0, max_completion_length=length)


@contextmanager
def after_head(policy: Policy, seen: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Inside, logits are what `seen` makes of them."""
    head = policy.head
    policy.head = lambda hidden: seen(head(hidden))
    try:
        yield
    finally:
        policy.head = head


def rollout_with_logprobs(policy, prompts, size, keys, temperature, length) -> Rollout:
    """What Policy.sample draws, with the log-probs of decode time."""
    sampler, parts = policy.sampler, []

    def keeping(task: Task) -> Rollout:
        parts.append(sampler(task))
        return parts[-1]

    policy.sampler = keeping
    try:
        policy.sample(prompts, size, keys, temperature=temperature, max_completion_length=length)
    finally:
        policy.sampler = sampler
    rows = sum(map(len, (part.tokens for part in parts)))
    return joined(replace(parts[0].task, group_size=rows, prompts=prompts[:1]), parts)


def completions(groups: list[Group]) -> list[list[int]]:
    return [o.tolist() for group in groups for o in group.completions]


def inputs(policy: Policy, question: Question, prompt: Prompt) -> dict[str, Tensor]:
    """What transformers' forward wants for the prompt alone, batch of one."""
    ids = prompt.input_ids[None]
    batch = {"input_ids": ids, "mm_token_type_ids": (ids == policy.chat.image_pad).int()}
    if question.images:
        images = [image.open() for image in question.images]
        batch |= policy.vision.processor(images=images, return_tensors="pt")
    return batch


def logits(policy: Policy, question: Question, prompt: Prompt, completion: Tensor) -> Tensor:
    """(|o|, V) float32: the raw logits that predict each token of the completion."""
    batch = inputs(policy, question, prompt)
    ids = torch.cat([batch["input_ids"], completion[None]], dim=1)
    types = torch.cat([batch["mm_token_type_ids"], torch.zeros_like(completion)[None].int()], dim=1)
    batch |= {"input_ids": ids, "mm_token_type_ids": types}
    model = policy.model.get_base_model()  # transformers' class; LoRA sits inside its linears
    out = model(**batch, attention_mask=torch.ones_like(ids), use_cache=False)
    model.model.rope_deltas = None  # its state, not ours
    return out.logits[0, len(prompt.input_ids) - 1 : -1].float()


def logprobs(
    policy: Policy, question: Question, prompt: Prompt, completion: Tensor, temperature: float
) -> Tensor:
    """(|o|,) by the textbook: softmax over everything but the banned."""
    scaled = logits(policy, question, prompt, completion) / temperature
    scaled[:, policy.banned] = -torch.inf
    return torch.log_softmax(scaled, dim=-1).gather(1, completion[:, None])[:, 0]
