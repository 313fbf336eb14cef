"""Altered questions, on which a model that uses the image must do worse, or equally well.

`blank_image` and `shuffled_images` replace the image: the accuracy that remains needs no image.
`permuted_options` moves the right answer under other letters: a model that reads the options
is equally accurate. `none_of_the_above` replaces an option: a model that knows the right answer
misses it if it is gone. An altered example keeps its id. `oracle_of` knows what is right
about the image of another question. Controls that need no model are in data/controls/priors.py.
"""

import random
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import chain
from pathlib import Path

import numpy as np
from PIL import Image

from data.example import VQAExample
from data.images import ImageSource
from data.phantom.questions import true_answers
from data.rows import fold
from data.splits import image_groups

# Whether an oracle of the image changes its answer to a question about the images of another.
Oracle = Callable[[VQAExample, VQAExample], float | None]
GREY = (128, 128, 128)
NONE = "None of the above"
# An option that says so already: a second one would be as right.
SAYS_NONE = re.compile(r"\b(none|neither|of the above)\b", re.IGNORECASE)


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


@cache
def size_of(image: ImageSource) -> tuple[int, int]:
    """(width, height) of an image, which is opened once."""
    return image.open().size


def blank_image(example: VQAExample) -> VQAExample:
    """The question about grey images of the same sizes (its own are opened to know them)."""
    images = tuple(BlankImage(*size_of(image)) for image in example.images)
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


@dataclass(frozen=True)
class ResizedImage:
    """An image scaled to `size`, (width, height) in pixels."""

    image: ImageSource
    size: tuple[int, int]

    @property
    def key(self) -> str:
        """The image's own key, the hash of its bytes if it is in a file, and the size."""
        content = getattr(self.image, "sha256", "")[:16]
        return "{}#{}@{}x{}".format(self.image.key, content, *self.size)

    def open(self) -> Image.Image:
        """The image in mode RGB."""
        return self.image.open().resize(self.size, Image.Resampling.BICUBIC)


def resized(swapped: VQAExample, own: VQAExample) -> VQAExample:
    """`swapped` with each image as large as the one in its place in `own`: the number of image
    tokens must tell nothing."""
    pairs = [(i, size_of(o)) for i, o in zip(swapped.images, own.images, strict=True)]
    images = (i if size_of(i) == size else ResizedImage(i, size) for i, size in pairs)
    return replace(swapped, images=tuple(images))


def oracle_of(examples: Iterable[VQAExample]) -> Oracle:
    """(question, other) -> 1.0 if another option of the question is right about the images of
    `other`, 0.0 if the same one is; None if no option is known to be, or several are.

    Known are the right answers to a question in the same words about these images and, of phantoms,
    all that follows from their findings.
    """
    known: dict[tuple[frozenset[str], str], set[str]] = defaultdict(set)
    for e in examples:
        seen = true_answers(e.findings or ()) if e.dataset == "phantom" else {}
        for question, answers in [*seen.items(), (e.question, e.right_answers)]:
            known[_shown(e), fold(question)] |= set(map(fold, answers))

    def changes(example: VQAExample, other: VQAExample) -> float | None:
        right = known.get((_shown(other), fold(example.question)), ())
        options = enumerate(example.options if right else ())
        places = [i for i, option in options if fold(option) in right]
        return float(places != [example.gold]) if len(places) == 1 else None

    return changes


def _shown(example: VQAExample) -> frozenset[str]:
    return frozenset(image.key for image in example.images)


def nearest_images(
    examples: Sequence[VQAExample], vectors: Sequence[Sequence[float]], changes: Oracle
) -> list[VQAExample]:
    """The questions, each with the nearest images about which another of its options is right.

    `vectors` (n, hidden) hold a vector of unit length for the images of each example: the nearest
    ones have the largest cosine. If no such answer is known, the nearest of all others are taken.
    Images with the key or the bytes of its own are never given; a question is left out if there
    are no others, as many as its own.
    """
    group_of, near, found = image_groups(examples, Path()), np.asarray(vectors), []
    for own, vector in zip(examples, near, strict=True):
        ordered = [examples[i] for i in np.argsort(-(near @ vector), kind="stable")]
        others = [e for e in ordered if group_of[e.id] != group_of[own.id]]
        others = [e for e in others if len(e.images) == len(own.images)]
        different = (e for e in others if changes(own, e) == 1)
        nearest = next(chain(different, others), None)
        found += [replace(own, images=nearest.images)] if nearest else []
    return found


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


def none_of_the_above(examples: Sequence[VQAExample], *, right: bool) -> list[VQAExample]:
    """The questions with "None of the above" in place of the right option, which makes that right,
    or else in place of the wrong option after it. One in which an option says so is left out.

    >>> example = VQAExample("1", (), "Which?", ("a", "b", "c"), 2, "MRI", "")
    >>> none_of_the_above([example], right=False)[0].options
    ('None of the above', 'b', 'c')
    """
    fit = (e for e in examples if not any(map(SAYS_NONE.search, e.options)))
    places = ((e, (e.gold + (not right)) % len(e.options)) for e in fit)
    return [replace(e, options=(*e.options[:i], NONE, *e.options[i + 1 :])) for e, i in places]
