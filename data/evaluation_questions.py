"""The questions of an evaluation: the tests, the validation, and the questions of the controls."""

import sys
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

from data.controls import altered
from data.controls.priors import Prior, by_letter, by_text
from data.example import VQAExample, in_all_ways, without_images
from data.load import LeftOut, is_drawn, learned_questions, load, load_split, read, with_modality
from data.rows import Skipped, Split, summary
from data.splits import constant_answers, has_constant_answer
from grpo.settings.config import Config
from grpo.settings.errors import UsageError

Tests = dict[str, list[VQAExample]]  # modality -> questions
Pooled = Callable[[Sequence[VQAExample]], Sequence[Sequence[float]]]  # vectors of unit length
SHUFFLE_SEED = 0


def load_tests(config: Config, skipped: LeftOut | None = None) -> Tests:
    """The test questions of each modality to score: the one trained on first, then the unseen.

    Raises UsageError where there are none, and says so where there are fewer than asked for. What
    is left out is added to `skipped`.
    """
    tests = {}
    for modality in (config.modality, *config.ood_modalities):
        examples = load_split(replace(config, modality=modality), "test", config.eval_size, skipped)
        if not examples:
            raise UsageError(f"no {modality} test question of {config.data}; use --eval-size 300")
        constant = constant_answers_in(config.data, modality)
        marked = [replace(e, constant=has_constant_answer(e, constant)) for e in examples]
        tests[modality] = in_all_ways(marked, [config.prompt])
    return tests


@lru_cache(maxsize=64)
def constant_answers_in(spec: str, modality: str) -> dict[tuple[str, str], str]:
    """What has the same answer throughout a modality, see data/splits.py: constant_answers."""
    if is_drawn(spec):
        deck = 280  # the largest deck (phantom:leaky); every deck holds the same answers
        return constant_answers(load(spec, modality, split="val", size=deck, seed=0))
    return constant_answers(with_modality(read(spec).examples, modality))


def control_questions(
    tests: Tests, most: int | None, learned: Config, asked: Config, skipped: LeftOut, pooled: Pooled
) -> tuple[dict[str, Tests], dict[str, Any], dict[str, Any]]:
    """(controls, priors, oracle), all of them empty where no question has options.

    controls: control -> the questions that it asks a model, made of the first `most` of each test
    (None: all, and more controls), none constant if there are others. Permuted ids are `id~order`.
    `pooled` gives a vector for the images of each question, to find the nearest ones.
    priors: prior -> modality -> rows of all questions with options, answered by what
    `learned_questions` teach; none if there are none.
    oracle: control -> modality -> id -> the chance that an oracle of the image changes its answer,
    None if it is not known (controls/altered.py: oracle_of). Without an image it guesses.
    """
    closed = {m: [e for e in examples if e.options] for m, examples in tests.items()}
    if not any(closed.values()):
        return {}, {}, {}
    controls, oracle = defaultdict(dict), defaultdict(dict)
    for modality, examples in closed.items():
        few = ([e for e in examples if not e.constant] or examples)[:most]
        changes, own = altered.oracle_of(examples), {e.id: e for e in few}
        made = _altered(few, changes, pooled if most is None else None)
        oracle["blank_image"][modality] = {e.id: 1 - 1 / len(e.options) for e in few}
        for control in made.keys() & {"shuffled_image", "nearest_image"}:
            oracle[control][modality] = {e.id: changes(own[e.id], e) for e in made[control]}
            made[control] = [altered.resized(e, own[e.id]) for e in made[control]]
        for control in made:
            controls[control][modality] = made[control]
    training = learned_questions(learned, asked, skipped)
    priors = {}
    for name, clues in (("options_prior", by_text), ("majority_letter", by_letter)):
        prior = Prior(clues, training)
        priors[name] = {m: [_row(e, prior) for e in examples] for m, examples in closed.items()}
    return controls, priors if training else {}, oracle


def _altered(few: list[VQAExample], changes: altered.Oracle, pooled: Pooled | None) -> Tests:
    """Control -> its questions, of one modality."""
    turned = [pair for e in few for pair in enumerate(altered.permuted_options(e))]
    made = {
        "blank_image": [altered.blank_image(e) for e in few],
        "shuffled_image": altered.shuffled_images(few, SHUFFLE_SEED),
        "permuted_options": [replace(e, id=f"{e.id}~{k}") for k, e in turned],
    }
    if pooled:
        seen = [e for e in few if e.images]
        made["no_image"] = list(map(without_images, seen))
        made["nearest_image"] = altered.nearest_images(seen, pooled(seen), changes)
        made["none_is_right"] = altered.none_of_the_above(few, right=True)
        made["none_is_wrong"] = altered.none_of_the_above(few, right=False)
    return made


def in_split(config: Config, split: Split, size: int | None, skipped: LeftOut) -> list[VQAExample]:
    """Questions of one split of the training modality: `size`, or as many as the run trains on.

    Prints what is left out on the way.
    """
    examples = load_split(config, split, size or config.train_size, skipped)
    if skipped:
        say_left_out("evaluate.py", skipped)
    return in_all_ways(examples, [config.prompt])


def say_left_out(program: str, skipped: Collection[Skipped]) -> str:
    """How many rows were left out, by reason; printed to stderr, too."""
    print(f"{program}: rows left out: {summary(skipped)}", file=sys.stderr)
    return summary(skipped)


def _row(example: VQAExample, prior: Prior) -> dict[str, Any]:
    shown = {"image": [image.key for image in example.images], "options": example.options}
    facts = {"id": example.id, "patient": example.patient, "constant": example.constant}
    return {**facts, **shown, "correct": prior.chance_right(example)}


def load_validation(config: Config, skipped: LeftOut) -> Tests:
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
    return {name: in_all_ways(examples, [config.prompt]) for name, examples in found.items()}
