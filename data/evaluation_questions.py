"""The questions of an evaluation: the tests, the validation, and the questions of the controls."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from data.controls.altered import blank_image, coincidences, permuted_options, shuffled_images
from data.controls.priors import MajorityLetter, OptionsPrior
from data.example import VQAExample, one_asked
from data.load import constant_answers_in, load, load_split
from data.rows import Skipped
from data.splits import has_constant_answer
from grpo.settings.config import Config
from grpo.settings.errors import UsageError

Tests = dict[str, list[VQAExample]]  # modality -> questions
SHUFFLE_SEED = 0


def load_tests(config: Config, skipped: set[Skipped] | None = None) -> Tests:
    """The test questions of each modality to score: the one trained on first, then the unseen.

    Raises UsageError where there are none, and says so where there are fewer than asked for. What
    is left out is added to `skipped`.
    """
    tests = {}
    for modality in (config.modality, *config.ood_modalities):
        size, seed = config.eval_size, config.data_seed
        examples = load(config.data, modality, split="test", size=size, seed=seed, skipped=skipped)
        if not examples:
            remedy = "use --eval-size 300" if not config.eval_size else "leave it out of --ood"
            raise UsageError(f"--data {config.data}: no {modality} test question; {remedy}")
        if len(examples) < config.eval_size:
            there = f"{len(examples)} {modality} test questions, all that there are"
            print(f"{there}; {config.eval_size} were asked for", file=sys.stderr)
        constant = constant_answers_in(config.data, modality)
        marked = [replace(e, constant=has_constant_answer(e, constant)) for e in examples]
        tests[modality] = asked(marked, config.prompt)
    return tests


def asked(examples: Sequence[VQAExample], way: str) -> list[VQAExample]:
    """The same questions asked in another way, one of `data.prompts.WAYS`."""
    return [one_asked(example, way) for example in examples]


def few(tests: Tests, most: int | None) -> Tests:
    """The first `most` questions of each test (None: all), with options, none constant.

    A modality of open questions alone has none of them.
    """
    closed = {m: [e for e in examples if e.options] for m, examples in tests.items()}
    headline = {m: [e for e in c if not e.constant] or c for m, c in closed.items()}
    return {modality: examples[:most] for modality, examples in headline.items()}


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

    All are about images of the training side of the split, so no test image is used. An unseen
    modality without such images is left out and named.
    """
    found = {config.modality: load_split(config, "val", config.val_size, skipped)}
    for modality in config.ood_modalities:
        unseen = replace(config, modality=modality)
        try:
            found[modality] = load_split(unseen, "val", config.val_size, skipped)
        except UsageError as error:
            print(f"train.py: {modality} is not validated: {error}", file=sys.stderr)
    return {modality: asked(examples, config.prompt) for modality, examples in found.items()}
