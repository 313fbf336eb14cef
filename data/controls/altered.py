"""Altered questions, on which a model that uses the image must do worse, or equally well.

`blank_image` and `shuffled_images` replace the image: the accuracy that remains needs no image.
`permuted_options` moves the right answer under other letters: a model that reads the options
is equally accurate. An altered example keeps its id. Controls that need no model are in
data/controls/priors.py.
"""

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from data.example import VQAExample
from data.rows import fold
from data.splits import image_groups

GREY = (128, 128, 128)


@dataclass(frozen=True)
class BlankImage:
    """A uniform mid-grey image, `width` by `height` pixels."""

    width: int
    height: int

    @property
    def key(self) -> str:
        """One a size, so that the features of all blank images of a size are computed once."""
        return f"blank/{self.width}x{self.height}"

    def open(self) -> Image.Image:
        """The image in mode RGB."""
        return Image.new("RGB", (self.width, self.height), GREY)


def blank_image(example: VQAExample) -> VQAExample:
    """The question about grey images of the same sizes (its own are opened to know them)."""
    images = tuple(BlankImage(*image.open().size) for image in example.images)
    return replace(example, images=images)


def shuffled_images(examples: Sequence[VQAExample], seed: int) -> list[VQAExample]:
    """The questions, each with the images of another of the same modality: a derangement.

    The images of `examples` are all used, each as often as before, and no question gets one with
    the key or the bytes of its own. That needs no image to belong to more than half of the
    questions: the surplus of one that does is left out of the list, as are questions without an
    image. Questions with two images swap among themselves. The order is that of `examples`, whose
    ids must differ; who gets what depends on the seed and not on that order.
    """
    group_of = image_groups(examples, Path())
    pools: dict[tuple, dict[str, list[VQAExample]]] = defaultdict(lambda: defaultdict(list))
    for example in sorted(examples, key=lambda example: example.id):
        if example.images:
            pools[example.modality, len(example.images)][group_of[example.id]].append(example)
    given = {}
    for groups in pools.values():
        given |= _deranged(list(groups.values()), random.Random(seed))
    return [replace(e, images=given[e.id]) for e in examples if e.id in given]


def _deranged(groups: list[list[VQAExample]], generator: random.Random) -> dict[str, tuple]:
    """Id -> images of a question of another group, for all but the largest group's surplus.

    With the groups one after another, a step as long as the largest leaves every group, and does
    not come round to it again if the others together are as long.
    """
    for group in (groups, *groups):
        generator.shuffle(group)
    largest = max(groups, key=len)
    del largest[sum(map(len, groups)) - len(largest) :]
    row = [example for group in groups for example in group]
    step = len(largest)
    return {e.id: row[(i + step) % len(row)].images for i, e in enumerate(row)}


def coincidences(examples: Sequence[VQAExample], shuffled: Sequence[VQAExample]) -> tuple[int, int]:
    """(same, asked) of `shuffled_images(examples, seed)`, both out of len(shuffled).

    `asked`: questions that `examples` ask of the images given, too, in the same words. `same`: and
    a right answer is the same text, so that the shuffled image is as good as the right one.
    """
    answers: dict[tuple[frozenset[str], str], set[str]] = defaultdict(set)
    for example in examples:
        answers[_asked(example)] |= _right(example)
    known = [(_right(e), answers[_asked(e)]) for e in shuffled if _asked(e) in answers]
    return sum(bool(right & other) for right, other in known), len(known)


def _right(example: VQAExample) -> set[str]:
    return {fold(answer) for answer in example.right_answers}


def _asked(example: VQAExample) -> tuple[frozenset[str], str]:
    return frozenset(image.key for image in example.images), fold(example.question)


def permuted_options(example: VQAExample) -> list[VQAExample]:
    """The cyclic permutations of the options, as many as there are, the example itself first.

    In number k, the option at place i has moved to place (i + k) modulo their number, and the right
    answer with it: over all of them it stands under each letter once. An open question has nothing
    to permute, and gives none.

    >>> example = VQAExample("1", (), "Which?", ("a", "b", "c"), 2, "MRI", "")
    >>> [(turned.options, turned.gold) for turned in permuted_options(example)]
    [(('a', 'b', 'c'), 2), (('c', 'a', 'b'), 0), (('b', 'c', 'a'), 1)]
    """
    options, n = example.options, len(example.options)
    return [
        replace(example, options=options[n - k :] + options[: n - k], gold=(example.gold + k) % n)
        for k in range(n)
    ]
