"""Phantom questions: visual question answering whose every answer is known exactly. Not medical
data.

Each example is drawn answer first: question type, options shown, which of them is right and under
which letter, all by a balanced deck; then a scene is made in which that answer is true and the only
true one. So nobody scores above chance without looking: option texts, their order and the question
say nothing about the answer.

Splits draw their scenes from disjoint ranges of seeds. Validation and test are the same for every
run seed. Variants: "" (the task, a deck of 240), "leaky" (adds `modality` questions, whose answer
is constant within a modality, as real benchmarks have them: 280) and "new-kind" (every lesion is of
the kind that pretraining and training never show, and is not asked for: 200; never trained on).
"""

from collections.abc import Iterator, Sequence
from itertools import combinations, islice

import numpy as np

from data.example import VQAExample
from data.phantom.anatomy import MODALITIES, PhantomImage, Scene, place_lesions
from grpo.settings.errors import UsageError

KINDS = ("cyst", "solid mass", "abscess", "calcification")
NEW_KIND = "spiculated mass"  # withheld from pretraining and from training
QUADRANTS = ("upper left", "upper right", "lower left", "lower right")
COUNTS = ("none", "one", "two", "three")
SIZES = ("small", "large")
TYPES: dict[str, tuple[str, tuple[str, ...]]] = {  # type -> question, answers
    "presence": ("Is there a lesion in this image?", ("yes", "no")),
    "side": ("On which side of the image is the lesion?", ("left", "right")),
    "quadrant": ("In which quadrant of the image is the lesion?", QUADRANTS),
    "count": ("How many lesions does this image show?", COUNTS),
    "size": ("How large is the lesion?", SIZES),
    "kind": ("What kind of lesion is it?", KINDS),
}
MODALITY_QUESTION = "Which imaging technique made this image?"
MODALITY_NAMES = dict(zip(MODALITIES, ("MRI", "CT", "X-ray"), strict=True))
NEVER_RIGHT = ("ultrasound", "PET scan", "mammogram", "endoscopy", "thermography")
VARIANTS = ("", "leaky", "new-kind")
# A deck holds 40 questions of each type: every (options, gold, letter) equally often.
CELLS_A_TYPE = 40

_FIRST_SEED = {"pretrain": 0, "train": 10**10, "val": 2 * 10**10, "test": 3 * 10**10}
_SEEDS_A_DRAW, _DRAWS = 10**5, 10**4  # at most 100,000 examples a draw, 10,000 draws a range
_BEYOND = 10**11  # above all these ranges: the draws of run seeds from 10,000 on

Cell = tuple[tuple[str, ...], str, int]  # options shown (a set), gold text, letter index


def load(
    modality: str, *, split: str, size: int, seed: int = 0, variant: str = ""
) -> list[VQAExample]:
    """`size` phantom questions of one modality; multiples of a deck are exactly balanced."""
    if modality not in MODALITIES:
        there = ", ".join(MODALITIES)
        raise UsageError(f"phantom data has no modality {modality!r}; it has {there}")
    if variant not in VARIANTS:
        remedy = "use phantom, phantom:leaky or phantom:new-kind"
        raise UsageError(f"no phantom set {variant!r}; {remedy}")
    trains = split in ("train", "pretrain")
    if variant == "new-kind" and trains:
        remedy = "train on --data phantom and evaluate the run on it"
        raise UsageError(f"phantom:new-kind is withheld from training; {remedy}")
    if size > _SEEDS_A_DRAW:
        raise UsageError(f"at most {_SEEDS_A_DRAW} phantom questions a split, not {size}")
    first = _first_seed(split, modality, seed if trains else 0)
    name = f"phantom-{modality}-{variant}-{split}" if variant else f"phantom-{modality}-{split}"
    drawn = enumerate(islice(_decks(variant, modality, first), size), first)
    return [_example(name, scene_seed, modality, variant, *asked) for scene_seed, asked in drawn]


def _first_seed(split: str, modality: str, seed: int) -> int:
    """Scene seed of a draw's first question. No two (split, modality, run seed) share a scene."""
    place = MODALITIES.index(modality)
    if seed < _DRAWS:
        return _FIRST_SEED[split] + (place * _DRAWS + seed) * _SEEDS_A_DRAW
    kind = place + len(MODALITIES) * (split == "train")
    return _BEYOND + (seed * 2 * len(MODALITIES) + kind) * _SEEDS_A_DRAW


def _decks(variant: str, modality: str, seed: int) -> Iterator[tuple[str, Cell]]:
    """Endless shuffled decks of (type, cell): types in turn, its cells equally often in each."""
    types = [t for t in TYPES if not (variant == "new-kind" and t == "kind")]
    types += ["modality"] if variant == "leaky" else []
    rng = np.random.default_rng([seed, 5])
    while True:
        piles = [(t, rng.permutation(CELLS_A_TYPE)) for t in types]
        for j in range(CELLS_A_TYPE):
            for question_type, order in piles:
                cells = _cells(question_type, modality)
                yield question_type, cells[order[j] % len(cells)]


def _cells(question_type: str, modality: str) -> list[Cell]:
    """All (options, gold, letter) of a type: its full set of answers and, of four, every pair."""
    if question_type == "modality":
        others = [name for name in MODALITY_NAMES.values() if name != MODALITY_NAMES[modality]]
        sets = [(MODALITY_NAMES[modality], *others, wrong) for wrong in NEVER_RIGHT]
        return [(shown, shown[0], letter) for shown in sets for letter in range(4)]
    answers = TYPES[question_type][1]
    sets = [answers] if len(answers) == 2 else [answers, *combinations(answers, 2)]
    return [
        (shown, gold, letter) for shown in sets for gold in shown for letter in range(len(shown))
    ]


def _scene(
    seed: int, question_type: str, gold: str, rng: np.random.Generator, variant: str
) -> Scene:
    """A scene in which the gold answer is true; what the question leaves open is uniform."""
    number = 1  # of lesions: one where the question speaks of "the lesion"
    if question_type == "count":
        number = COUNTS.index(gold)
    elif question_type == "presence":
        number = int(rng.integers(1, 4)) if gold == "yes" else 0
    elif question_type == "modality":
        number = int(rng.integers(0, 4))
    quadrants = [QUADRANTS[i] for i in rng.permutation(4)]
    if question_type in ("side", "quadrant"):
        quadrants = [q for q in quadrants if gold in q]
    wanted = []
    for quadrant in quadrants[:number]:
        kind = gold if question_type == "kind" else KINDS[rng.integers(4)]
        size = gold if question_type == "size" else SIZES[rng.integers(2)]
        wanted.append((NEW_KIND if variant == "new-kind" else kind, size, quadrant))
    return place_lesions(seed, wanted)


def _example(
    name: str, seed: int, modality: str, variant: str, question_type: str, cell: Cell
) -> VQAExample:
    """The question of a cell about the scene of a seed."""
    shown, gold, letter = cell
    rng = np.random.default_rng([seed, 0])
    scene = _scene(seed, question_type, gold, rng, variant)
    wrong = [option for option in shown if option != gold]
    options = [wrong[i] for i in rng.permutation(len(wrong))]
    options.insert(letter, gold)
    question = MODALITY_QUESTION if question_type == "modality" else TYPES[question_type][0]
    shape = {"options": tuple(options), "gold": letter, "question_type": question_type}
    known = {"reasoning": report(scene), "findings": findings(scene), "dataset": "phantom"}
    images = (PhantomImage(scene, modality),)
    return VQAExample(f"{name}-{seed}", images, question, modality=modality, **shape, **known)


def findings(scene: Scene) -> tuple[str, ...]:
    """What the scene holds, a phrase a lesion."""
    return tuple(f"{lesion.size} {lesion.kind}, {lesion.quadrant}" for lesion in scene.lesions)


def true_answers(findings: Sequence[str]) -> dict[str, set[str]]:
    """Question -> its answers that are true of a scene with these findings.

    >>> true = true_answers(["small cyst, upper left", "large abscess, lower left"])
    >>> true[TYPES["side"][0]], true[TYPES["count"][0]]
    ({'left'}, {'two'})
    """
    seen = "; ".join(findings)
    found = {question: {a for a in answers if a in seen} for question, answers in TYPES.values()}
    found[TYPES["presence"][0]] = {"yes" if findings else "no"}
    found[TYPES["count"][0]] = {COUNTS[len(findings)]}
    return found


def report(scene: Scene) -> str:
    """The reference reasoning: all lesions of the scene, in the same grammar for every question.

    >>> wanted = [("cyst", "small", "upper left"), ("abscess", "large", "lower left")]
    >>> report(place_lesions(0, wanted))
    'Two lesions: small cyst, upper left; large abscess, lower left.'
    >>> report(place_lesions(0, []))
    'No lesion.'
    """
    if not scene.lesions:
        return "No lesion."
    number = COUNTS[len(scene.lesions)].capitalize()
    noun = "lesion" if len(scene.lesions) == 1 else "lesions"
    return f"{number} {noun}: {'; '.join(findings(scene))}."
