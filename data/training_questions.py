"""The questions of training: which is asked when, in which way, and what an answer should be.

Which question fills a slot is a function of (seed, step, slot, attempt): nothing is remembered from
one step to the next, so a resumed run asks the same questions.
"""

import json
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import chain
from pathlib import Path

import numpy as np

from data.evaluation_questions import Tests, load_tests, load_validation, say_left_out
from data.example import VQAExample, one_asked, without_images
from data.load import LeftOut, Refusal, is_drawn, load_split, read
from data.near_copies import kept_near_copies
from data.rows import BY_DESIGN, Skipped, summary
from data.splits import constant_answers, has_constant_answer
from grpo.settings.config import SHUFFLE_STREAM, Config, key_word
from grpo.settings.errors import UsageError

Draw = Callable[[int, int, int], VQAExample]  # (step, slot, attempt) -> a question


def training_draw(examples: Sequence[VQAExample], config: Config) -> Draw:
    """Which question of training fills a slot of a step, and how it is asked."""
    draw = question_order(examples, config.seed, config.prompts_per_step)
    return varied(draw, config.seed, config.ways, config.shuffle_options)


def question_order(examples: Sequence[VQAExample], seed: int, prompts_per_step: int) -> Draw:
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


def varied(draw: Draw, seed: int, ways: Sequence[str], shuffle_options: bool) -> Draw:
    """`draw` with each question asked in one of `ways`, and its options in a random order if asked.

    Diversity prompting is RARL's (arXiv 2506.06600); a new order of the options whenever a question
    comes up leaves a policy nothing to learn about letters. Both are a function of (seed, step,
    question), whichever slot the question fills.
    """

    def asked(step: int, slot: int, attempt: int = 0) -> VQAExample:
        example = draw(step, slot, attempt)
        if len(ways) == 1 and not shuffle_options:
            return one_asked(example, ways[0])
        random = generator(seed, step, key_word(example.id))
        way = ways[random.integers(len(ways))]
        if shuffle_options and example.options:
            example = reordered(example, random.permutation(len(example.options)).tolist())
        return one_asked(example, way)

    return asked


def reordered(example: VQAExample, order: Sequence[int]) -> VQAExample:
    """The same question with option `order[i]` in place i.

    >>> example = VQAExample("1", (), "Which side?", ("left", "right"), 1, "MRI", "side")
    >>> reordered(example, [1, 0]).options, reordered(example, [1, 0]).letter
    (('right', 'left'), 'A')
    """
    options = tuple(example.options[i] for i in order)
    return replace(example, options=options, gold=list(order).index(example.gold))


def kept(examples: Sequence[VQAExample], config: Config) -> list[VQAExample]:
    """Those whose pass rate in the file --pass-rates lies within --keep; prints how many.

    Raises UsageError if a flag, the file or a question in it is missing, or if none is kept.
    """
    given, n = f"--pass-rates {config.pass_rates} --keep {config.keep}", len(examples)
    try:
        low, high = map(float, str(config.keep).split(","))
        rows = map(json.loads, Path(config.pass_rates).read_text(encoding="utf-8").splitlines())
        rates = {(row["id"], row["question"]): row["correct"] / row["n"] for row in rows}
    except (OSError, TypeError, ValueError, LookupError, ArithmeticError, RuntimeError):
        raise UsageError(f"{given}: give a file of evaluate.py, and two shares LOW,HIGH") from None
    if lacking := [e.id for e in examples if (e.id, e.question) not in rates]:
        problem = f"the file lacks {len(lacking)} of {n} training questions, {lacking[0]} first"
        raise UsageError(f"{given}: {problem}; make it of the same data, with --eval-size {n}")
    found = [e for e in examples if low <= rates[e.id, e.question] <= high]
    if not found:
        raise UsageError(f"{given}: keeps none of {n} training questions; use --keep 0,1")
    print(f"train.py: --keep {config.keep}: {len(found)} of {n} questions", file=sys.stderr)
    return found


def with_shuffled_answers(examples: Sequence[VQAExample], seed: int) -> list[VQAExample]:
    """The same questions and images, the right answers permuted among those of the same options.

    If all questions of the same options have one answer, as if no two have the same, they exchange
    the places of their right options with others of as many options. The answers of open questions
    are permuted within a question type. Each answer is right as often as before, but no image says
    for which question: what a policy gains, it does not owe to what images show. The reference
    reasoning and the findings say what an image shows, and are removed.
    """
    answers = defaultdict(set)
    for example in examples:
        answers[frozenset(example.options)].add(example.answer)

    def alike(example: VQAExample) -> tuple[list[str], int, str]:
        if len(answers[frozenset(example.options)]) < 2:
            return [], len(example.options), ""
        return sorted(example.options), 0, "" if example.options else example.question_type

    order = generator(seed, key_word("answers")).permutation(len(examples))
    # Sorting is stable: those who give their answers stay in random order within a kind.
    givers = sorted((examples[i] for i in order), key=alike)
    found = {}
    for taker, giver in zip(sorted(examples, key=alike), givers, strict=True):
        gold = taker.options.index(giver.answer) if alike(taker)[0] else giver.gold
        answered = replace(taker, gold=gold, references=giver.references)
        found[taker.id] = replace(answered, reasoning="", findings=None)
    return [found[example.id] for example in examples]


def sft_target(config: Config, examples: Sequence[VQAExample]) -> Callable[[VQAExample], str]:
    """The completion that supervised training imitates: the label alone, or reasoning and label.

    The reference reasoning is privileged: GRPO never sees it. Raises UsageError if reasoning is to
    be imitated and a question asks for none or has none.
    """
    reasons = config.sft_target == "reasoning"
    if config.method == "sft" and reasons and config.ways == ("direct",):
        raise UsageError("--sft-target reasoning: the questions ask for none; use answer")
    without = [example.id for example in examples if not example.reasoning]
    if config.method == "sft" and reasons and without:
        problem = f"{len(without)} questions have no reference reasoning, {without[0]} first"
        raise UsageError(f"--sft-target reasoning: {problem}; use answer")

    def target(example: VQAExample) -> str:
        thought = example.reasoning if reasons else ""
        return example.completion(None if example.asked == "direct" else thought)

    return target


def load_questions(
    config: Config, refused: Refusal
) -> tuple[list[VQAExample], Tests, Tests, LeftOut]:
    """The training questions, validation and test questions by modality, and the rows left out.

    `refused` says which questions the model cannot take: they are left out, too.
    """
    skipped = LeftOut(refused)
    examples = load_split(config, "train", config.train_size, skipped)
    if config.pass_rates or config.keep:
        examples = kept(examples, config)
    if config.blind:
        print("train.py: --blind: a control, images are not shown in training", file=sys.stderr)
        examples = list(map(without_images, examples))
    if config.shuffle_answers:
        given, examples = examples, with_shuffled_answers(examples, config.seed)
        others = sum(a.answer != b.answer for a, b in zip(given, examples, strict=True))
        said = f"--shuffle-answers: a control, {others} of {len(given)} answers are permuted"
        print(f"train.py: {said}", file=sys.stderr)
    validation = load_validation(config, skipped) if config.eval_every else {}
    tests = load_tests(config, skipped) if config.eval_size else {}
    say_of_data(config, examples, tests, skipped)
    return examples, validation, tests, skipped


def say_of_data(
    config: Config, examples: Sequence[VQAExample], tests: Tests, skipped: set[Skipped]
) -> None:
    """Print to stderr what was left out of the data, and how many test answers are constant; of a
    data set that comes split, how many test images are near copies of training images.

    Raises UsageError with --strict if a row could not be used.
    """
    faults = [row for row in skipped if row.reason not in BY_DESIGN]
    if faults and config.strict:
        first = min(faults, key=lambda row: (row.file, row.row))
        where = f"the first is {first.row or 'all'} of {first.file}: {first.reason}"
        raise UsageError(f"--strict: {summary(faults)}; {where}; mend them, or leave --strict out")
    if skipped:
        say_left_out("train.py", skipped)
    if tests and (constant := constant_answers(examples)):
        known = {m: sum(has_constant_answer(e, constant) for e in tests[m]) for m in tests}
        counts = ", ".join(f"{known[m]} of {len(tests[m])} {m}" for m in tests)
        print(f"train.py: test questions with one answer in training: {counts}", file=sys.stderr)
    if tests and not is_drawn(config.data) and read(config.data).splits:
        trained = {image.key for example in examples for image in example.images}
        near = kept_near_copies(chain(*(e.images for e in chain(examples, *tests.values()))))
        if found := {key for pair in near if trained & set(pair) for key in pair} - trained:
            what = f"{len(found)} test images are near copies of training images (see data.audit)"
            print(f"train.py: {what}", file=sys.stderr)
