"""Which question is asked when: a function of (seed, step, slot, attempt), so without memory."""

from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np

from data.example import VQAExample
from grpo.settings.config import SHUFFLE_STREAM


def question_order(
    examples: Sequence[VQAExample], seed: int, prompts_per_step: int
) -> Callable[[int, int, int], VQAExample]:
    """`draw(step, slot, attempt)`: the question that fills a slot of a step.

    First attempts go through the examples epoch by epoch, each time in a new order. A later attempt
    (dynamic sampling: the group before it had no signal) takes any question, by its own random key.
    """

    @lru_cache(maxsize=2)
    def shuffled(epoch: int) -> np.ndarray:
        return generator(seed, epoch).permutation(len(examples))  # (n,)

    def draw(step: int, slot: int, attempt: int = 0) -> VQAExample:
        if attempt:
            return examples[generator(seed, step, slot, attempt).integers(len(examples))]
        epoch, i = divmod(step * prompts_per_step + slot, len(examples))
        return examples[shuffled(epoch)[i]]

    return draw


def generator(*key: int) -> np.random.Generator:
    """The random numbers of a key, apart from those of sampling."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence((SHUFFLE_STREAM, *key))))
