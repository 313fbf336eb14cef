"""All that a model is asked in an evaluation: the tests, and the questions of the controls."""

import hashlib
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import data.load
from data.controls.altered import blank_image, coincidences, permuted_options, shuffled_images
from data.controls.priors import MajorityLetter, OptionsPrior
from data.example import VQAExample
from data.rows import BY_DESIGN, Skipped, modality_name, summary
from data.splits import constant_answers, has_constant_answer
from grpo.settings.config import Config
from grpo.settings.errors import UsageError
from grpo.settings.flags import names_in

Tests = dict[str, list[VQAExample]]  # modality -> questions
SHUFFLE_SEED = 0


def with_names(config: Config) -> Config:
    """The configuration with its modalities under the names that the data goes by."""
    unseen = (modality_name(name) or name for name in names_in(config.ood))
    name = modality_name(config.modality) or config.modality
    return replace(config, modality=name, ood=",".join(unseen) or "none")


def load_split(config: Config, split: str, size: int, skipped: set[Skipped]) -> list[VQAExample]:
    """Questions of the training modality; says so when there are fewer than asked for."""
    examples = data.load.load(
        config.data, config.modality, split=split, size=size, seed=config.data_seed, skipped=skipped
    )
    if len(examples) < size:
        found = f"{len(examples)} {config.modality} questions for {split}"
        print(f"{found}, all that there are; {size} were asked for", file=sys.stderr)
    return examples


def load_tests(config: Config, skipped: set[Skipped] | None = None) -> Tests:
    """The test questions of each modality to score: the one trained on first, then the unseen.

    Raises UsageError where there are none, and says so where there are fewer than asked for. What
    is left out is added to `skipped`.
    """
    tests = {}
    for modality in (config.modality, *config.ood_modalities):
        size, seed = config.eval_size, config.data_seed
        examples = data.load.load(
            config.data, modality, split="test", size=size, seed=seed, skipped=skipped
        )
        if not examples:
            remedy = "use --eval-size 300" if not config.eval_size else "leave it out of --ood"
            raise UsageError(f"--data {config.data}: no {modality} test question; {remedy}")
        if len(examples) < config.eval_size:
            there = f"{len(examples)} {modality} test questions, all that there are"
            print(f"{there}; {config.eval_size} were asked for", file=sys.stderr)
        constant = data.load.constant(config.data, modality)
        marked = [replace(e, constant=has_constant_answer(e, constant)) for e in examples]
        tests[modality] = asked(marked, config.prompt)
    return tests


def fingerprint(examples: Sequence[VQAExample] | None) -> str:
    """A hash of the questions' ids, in order."""
    ids = "\n".join(example.id for example in examples or ())
    return hashlib.sha256(ids.encode()).hexdigest()


def asked(examples: Sequence[VQAExample], way: str) -> list[VQAExample]:
    """The same questions asked in another way, one of `data.prompts.WAYS`."""
    return [one_asked(example, way) for example in examples]


def one_asked(example: VQAExample, way: str) -> VQAExample:
    """A question asked in another way; "open" hides the options, and the answer is wanted in words.

    >>> example = VQAExample("1", (), "Which side?", ("left", "right"), 1, "MRI", "side")
    >>> print(one_asked(example, "open").prompt)
    Which side?
    Reason inside <think> </think>, then give a few words inside <answer> </answer>, nothing else.
    """
    if way != "open":
        return replace(example, asked=way)
    right = {"options": (), "references": example.right_answers, "gold": 0}
    return replace(example, asked="reason", **(right if example.options else {}))


def few(tests: Tests, most: int | None) -> Tests:
    """The first `most` questions of each test (None: all), with options, none constant.

    A modality of open questions alone has none of them.
    """
    closed = {m: [e for e in examples if e.options] for m, examples in tests.items()}
    headline = {m: [e for e in of if not e.constant] or of for m, of in closed.items()}
    return {modality: examples[:most] for modality, examples in headline.items()}


def training(config: Config) -> list[VQAExample]:
    """The questions that a run of this configuration trains on."""
    spec, size, seed = data.load.learned_from(config.data), config.train_size, config.data_seed
    return data.load.load(spec, config.modality, split="train", size=size, seed=seed)


def controls(tests: Tests) -> dict[str, Tests]:
    """The questions of the controls that ask a model. Permuted ids are `id~order`."""
    return {
        "blank_image": {m: [blank_image(e) for e in examples] for m, examples in tests.items()},
        "shuffled_image": {m: shuffled_images(e, SHUFFLE_SEED) for m, e in tests.items()},
        "permuted_options": {
            modality: [
                replace(turned, id=f"{turned.id}~{order}")
                for example in examples
                for order, turned in enumerate(permuted_options(example))
            ]
            for modality, examples in tests.items()
        },
    }


def coinciding(tests: Tests, shuffled: Tests) -> dict[str, tuple[int, int]]:
    """Shuffled images that are as good as the right one, see controls/altered.py: coincidences."""
    return {m: coincidences(tests[m], shuffled[m]) for m in tests}


def priors(
    training: Sequence[VQAExample], tests: Tests
) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """The controls that ask no model, as rows: what the training questions alone teach."""
    known = {"options_prior": OptionsPrior, "majority_letter": MajorityLetter}
    closed = [example for example in training if example.options]
    fitted = {name: prior.fit(closed) for name, prior in known.items()}
    return {
        name: {m: [_row(e, prior.chance_right(e)) for e in tests[m] if e.options] for m in tests}
        for name, prior in fitted.items()
    }


def _row(example: VQAExample, correct: float) -> dict[str, Any]:
    return {
        "id": example.id,
        "image": [image.key for image in example.images],
        "options": example.options,
        "constant": example.constant,
        "correct": correct,
    }


def load_validation(config: Config, skipped: set[Skipped]) -> Tests:
    """The questions of --eval-every by modality: the one trained on, then the unseen.

    All are on training images, those of an unseen modality on its own: nothing is learned of the
    test. An unseen modality without such images is left out and named.
    """
    found = {config.modality: load_split(config, "val", config.val_size, skipped)}
    for modality in config.ood_modalities:
        of = replace(config, modality=modality)
        try:
            found[modality] = load_split(of, "val", config.val_size, skipped)
        except UsageError as error:
            print(f"train.py: {modality} is not validated: {error}", file=sys.stderr)
    return {modality: asked(examples, config.prompt) for modality, examples in found.items()}


def say_of_data(
    config: Config,
    examples: Sequence[VQAExample],
    tests: Tests,
    skipped: set[Skipped],
) -> None:
    """What to know of the data before training. With --strict, a bad row is the end of it."""
    faults = [row for row in skipped if row.reason not in BY_DESIGN]
    if faults and config.strict:
        first = min(faults, key=lambda row: (row.file, row.row))
        where = f"the first is {first.row or 'all'} of {first.file}: {first.reason}"
        raise UsageError(f"--strict: {summary(faults)}; {where}; mend them, or leave --strict out")
    if skipped:
        print(f"train.py: rows left out: {summary(skipped)}", file=sys.stderr)
    if tests and (constant := constant_answers(examples)):
        counts = ", ".join(
            f"{sum(has_constant_answer(e, constant) for e in test)} of {len(test)} {modality}"
            for modality, test in tests.items()
        )
        print(f"train.py: test questions with one answer in training: {counts}", file=sys.stderr)
