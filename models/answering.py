"""Answers of a policy: greedy, by forced choice, and sampled."""

from collections.abc import Callable, Sequence
from itertools import takewhile
from typing import Any, NamedTuple

import torch
from torch import Tensor

from grpo.settings.config import EVALUATION_STREAM, key_word
from models.policy import Policy
from models.tree import Group, Prompt

Thoughts = Sequence[str | None]  # the reasoning before a forced choice; None: asked directly
OPENING = "<think"  # without ">", which a tokenizer may merge with what follows


class Answer(NamedTuple):
    """What a policy says to a question, greedily, and which letter it finds likeliest."""

    text: str
    length: int  # tokens, with the end of sequence
    truncated: bool
    thought: str | None  # the reasoning before the forced choice; None: asked directly
    letter_logprobs: list[float]  # an option each, normalised over the options; [] without any


def answer(
    policy: Policy, examples: Sequence[Any], longest: int, reasoning: Callable[[str], str]
) -> list[Answer]:
    """Answer each question twice, in `longest` tokens at most.

    Freely. And by forced choice: made to begin with a think block, then the likeliest letter after
    what it says there (`reasoning` of the text); this asks no format of the policy. A question that
    is asked directly is answered at once in both.
    """
    greedy = {"group_size": 1, "keys": None, "temperature": 0.0, "max_completion_length": longest}
    prompts = policy.encode(examples)
    groups = policy.sample(prompts, **greedy)
    texts = [policy.decode(group.completions[0]) for group in groups]
    said = {i: text for i, text in enumerate(texts) if examples[i].asked != "direct"}
    astray = [i for i, text in said.items() if not text.startswith(OPENING)]
    begun = [policy.begin(prompts[i], OPENING) for i in astray]
    for i, group in zip(astray, policy.sample(begun, **greedy), strict=True):
        said[i] = OPENING + policy.decode(group.completions[0])
    thoughts = [reasoning(said[i]) if i in said else None for i in range(len(texts))]
    choices = forced_choice(policy, prompts, examples, thoughts)
    return [
        Answer(text, len(group.completions[0]), group.truncated[0], thought, choice)
        for text, group, thought, choice in zip(texts, groups, thoughts, choices, strict=True)
    ]


def forced_choice(
    policy: Policy, prompts: Sequence[Prompt], examples: Sequence[Any], thoughts: Thoughts
) -> list[list[float]]:
    """log p of each option's letter after a given thought, normalised over the options of the
    question; [] for an open question."""
    groups = [
        _choice(policy, prompt, [example.completion(thought, letter) for letter in example.letters])
        for prompt, example, thought in zip(prompts, examples, thoughts, strict=True)
    ]
    return [found.log_softmax(dim=0).tolist() for found in _log_likelihoods(policy, groups)]


def choices_after(
    policy: Policy, examples: Sequence[Any], thoughts: Thoughts, batch_size: int
) -> list[list[float]]:
    """The forced choice of each question after a given thought, see `forced_choice`."""
    found = []
    for start in range(0, len(examples), batch_size):
        part = slice(start, start + batch_size)
        prompts = policy.encode(examples[part])
        found += forced_choice(policy, prompts, examples[part], thoughts[part])
    return found


def _choice(policy: Policy, prompt: Prompt, texts: Sequence[str]) -> Group:
    """Given texts as completions, but for what all begin with, which is a part of the prompt: it is
    computed once, and makes no option likelier than another."""
    ids = policy.group(prompt, texts).completions
    columns = zip(*(option.tolist() for option in ids), strict=False)
    alike = takewhile(lambda tokens: len(set(tokens)) == 1, columns)
    start = torch.tensor([tokens[0] for tokens in alike], dtype=torch.int64)
    begun = prompt.followed_by(start, policy.decode(start))
    return Group(begun, [option[len(start) :] for option in ids], [False] * len(ids))


@torch.no_grad()
def _log_likelihoods(policy: Policy, groups: Sequence[Group]) -> list[Tensor]:
    """log p(o_i | prompt) of every completion of each group, (G,) each: its tokens' sum."""
    found = [torch.empty(0) for _ in groups]
    asked = [i for i, group in enumerate(groups) if group.completions]
    for places in policy.passes([groups[i] for i in asked]):
        chosen = [asked[place] for place in places]
        logprobs, _ = policy.logprobs([groups[i] for i in chosen], temperature=1.0)  # (n,)
        lengths = [len(ids) for i in chosen for ids in groups[i].completions]
        sums = iter([part.sum() for part in logprobs.split(lengths)])
        for i in chosen:
            found[i] = torch.stack([next(sums) for _ in groups[i].completions])
    return found


def reference_nll(policy: Policy, examples: list[Any], batch_size: int) -> list[dict[str, float]]:
    """`reference_nll`, -log p of a question's reference answer in nats, and `reference_tokens`.

    The reference answer is the right one in the format, with the reference reasoning before it if
    the data has one, and with its end of sequence.
    """
    found = []
    for start in range(0, len(examples), batch_size):
        groups = []
        batch = examples[start : start + batch_size]
        for prompt, example in zip(policy.encode(batch), batch, strict=True):
            thought = None if example.asked == "direct" else example.reasoning
            groups.append(policy.group(prompt, [example.completion(thought)]))
        for group, likelihood in zip(groups, _log_likelihoods(policy, groups), strict=True):
            tokens = len(group.completions[0])
            found.append({"reference_nll": -likelihood.item(), "reference_tokens": tokens})
    return found


def samples(
    policy: Policy, examples: Sequence[Any], longest: int, *, k: int, temperature: float, seed: int
) -> list[list[str]]:
    """k completions of each question, in `longest` tokens at most: a function of (seed, question
    id) and not of the batch."""
    keys = [(EVALUATION_STREAM, seed, 0, key_word(example.id), 0) for example in examples]
    settings = {"temperature": temperature, "max_completion_length": longest}
    groups = policy.sample(policy.encode(examples), k, keys, **settings)
    return [[policy.decode(completion) for completion in group.completions] for group in groups]
