"""Questions asked in many ways during training: diversity prompting, and options in any order."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from data.evaluation_questions import one_asked
from data.example import VQAExample
from data.training_questions import generator
from grpo.settings.config import key_word

Draw = Callable[[int, int, int], VQAExample]


def varied(draw: Draw, seed: int, ways: Sequence[str], shuffle_options: bool) -> Draw:
    """`draw` with each question asked in one of `ways`, and its options in a random order if asked.

    Diversity prompting is RARL's (arXiv 2506.06600); a new order of the options whenever a question
    comes up leaves a policy nothing to learn about letters. Both are a function of (seed, step,
    question), whichever slot the question fills.
    """

    def asked(step: int, slot: int, attempt: int = 0) -> VQAExample:
        example = draw(step, slot, attempt)
        random = generator(seed, step, key_word(example.id))
        way = ways[random.integers(len(ways))]
        if shuffle_options:
            example = reordered(example, random.permutation(len(example.options)).tolist())
        return one_asked(example, way)

    return asked


def in_all_ways(examples: Sequence[VQAExample], ways: Sequence[str]) -> list[VQAExample]:
    """Every question in each of `ways`: all that training may ask, but for the options' order."""
    return [one_asked(example, way) for way in ways for example in examples]


def reordered(example: VQAExample, order: Sequence[int]) -> VQAExample:
    """The same question with option `order[i]` in place i.

    >>> example = VQAExample("1", (), "Which side?", ("left", "right"), 1, "MRI", "side")
    >>> reordered(example, [1, 0]).options, reordered(example, [1, 0]).letter
    (('right', 'left'), 'A')
    """
    if not order:
        return example
    options = tuple(example.options[i] for i in order)
    return replace(example, options=options, gold=list(order).index(example.gold))
