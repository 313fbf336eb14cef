"""Answers of a policy: greedy, by forced choice, and sampled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from grpo.settings.config import EVALUATION_STREAM, key_word
from models.policy import Policy
from models.tree import Group, Prompt

OPENING = "<think"  # without ">", which a tokenizer may merge with what follows


class Answer(NamedTuple):
    """What a policy says to a question, greedily, and which letter it finds likeliest."""

    text: str
    length: int  # tokens, with the end of sequence
    truncated: bool
    thought: str | None  # the reasoning before the forced choice; None: asked directly
    letter_logprobs: list[float]  # an option each, normalised over the options; [] without any


def answer(
    policy: Policy,
    examples: Sequence[Any],
    max_completion_length: int,
    reasoning: Callable[[str], str],
) -> list[Answer]:
    """Answer each question twice.

    Freely. And by forced choice: made to begin with a think block, then the likeliest letter after
    what it says there (`reasoning` of the text); this asks no format of the policy. A question that
    is asked directly is answered at once in both.
    """
    prompts = policy.encode(examples)
    groups = _greedy(policy, prompts, max_completion_length)
    texts = [policy.decode(group.completions[0]) for group in groups]
    thinks = [example.asked != "direct" for example in examples]
    said = list(texts)
    astray = [i for i, text in enumerate(texts) if thinks[i] and not text.startswith(OPENING)]
    begun = [policy.begin(prompts[i], OPENING) for i in astray]
    for i, group in zip(astray, _greedy(policy, begun, max_completion_length), strict=True):
        said[i] = OPENING + policy.decode(group.completions[0])
    thoughts = [
        reasoning(text) if think else None for text, think in zip(said, thinks, strict=True)
    ]
    choices = [  # an open question has none
        policy.group(prompt, [example.completion(thought, letter) for letter in example.letters])
        for prompt, example, thought in zip(prompts, examples, thoughts, strict=True)
    ]
    return [
        Answer(text, len(group.completions[0]), group.truncated[0], thought, logprobs)
        for text, group, thought, logprobs in zip(
            texts, groups, thoughts, _forced_choice(policy, choices), strict=True
        )
    ]


def _greedy(policy: Policy, prompts: Sequence[Prompt], max_completion_length: int) -> list[Group]:
    return policy.sample(
        prompts, 1, None, temperature=0.0, max_completion_length=max_completion_length
    )


@torch.no_grad()
def _log_likelihoods(policy: Policy, groups: Sequence[Group]) -> list[Tensor]:
    """log p(o_i | prompt) of every completion of each group, (G,) each: its tokens' sum."""
    found: list[Tensor] = [torch.empty(0) for _ in groups]
    for places in policy.passes(groups):
        chosen = [groups[i] for i in places]
        logprobs, _ = policy.logprobs(chosen, temperature=1.0)  # (n,)
        lengths = [len(ids) for group in chosen for ids in group.completions]
        sums = iter([part.sum() for part in logprobs.split(lengths)])
        for i in places:
            found[i] = torch.stack([next(sums) for _ in groups[i].completions])
    return found


def _forced_choice(policy: Policy, groups: Sequence[Group]) -> list[list[float]]:
    """Log-probability of each whole completion of a group, normalised over the group; [] if the
    group has none."""
    found = iter(_log_likelihoods(policy, [group for group in groups if group.completions]))
    return [
        next(found).log_softmax(dim=0).tolist() if group.completions else [] for group in groups
    ]


def reference_nll(
    policy: Policy, examples: Sequence[Any], batch_size: int
) -> list[dict[str, float]]:
    """`reference_nll`, -log p of a question's reference answer in nats, and `reference_tokens`.

    The reference answer is the right one in the format, with the reference reasoning before it if
    the data has one, and with its end of sequence.
    """
    found = []
    for start in range(0, len(examples), batch_size):
        batch = examples[start : start + batch_size]
        groups = []
        for prompt, example in zip(policy.encode(batch), batch, strict=True):
            thought = None if example.asked == "direct" else example.reasoning
            groups.append(policy.group(prompt, [example.completion(thought)]))
        for group, likelihood in zip(groups, _log_likelihoods(policy, groups), strict=True):
            tokens = len(group.completions[0])
            found.append({"reference_nll": -likelihood.item(), "reference_tokens": tokens})
    return found


def samples(
    policy: Policy,
    examples: Sequence[Any],
    max_completion_length: int,
    *,
    k: int,
    temperature: float,
    seed: int,
) -> list[list[str]]:
    """k completions of each question, a function of (seed, question id) and not of the batch."""
    keys = [(EVALUATION_STREAM, seed, 0, key_word(example.id), 0) for example in examples]
    groups = policy.sample(
        policy.encode(examples),
        k,
        keys,
        temperature=temperature,
        max_completion_length=max_completion_length,
    )
    return [[policy.decode(completion) for completion in group.completions] for group in groups]
