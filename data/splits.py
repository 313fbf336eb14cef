"""Which images train, validate and test, and which of their questions are drawn.

An image never crosses a split, whatever questions are about it and whatever name it goes by: images
that share their bytes, stand together in one question or are of one patient go together; so do near
copies, unless the data set comes split. A group's split is a hash of the seed and its name, so it
does not depend on other rows, on their order, or on where the data is.

A data set that comes split keeps its splits, but for images and patients that are in two of them:
those stay in test, or else in validation, and their questions in the other are left out. If it has
no validation questions, groups of its training images are set apart for them.
"""

import hashlib
import os
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from itertools import chain, zip_longest
from pathlib import Path

from data.example import VQAExample
from data.images import ImageSource, plain, sha256_of
from data.readers.parquet import ParquetImage
from data.rows import HELD_OUT, Skipped, Split, fold

TEST_SHARE = 0.4  # of the image groups; a modality may be small, and a test of 100 says little
VAL_SHARE = 0.125  # of the groups that are not test
MIN_CONSTANT = 5  # fewer answers may agree by chance


def image_groups(
    examples: Sequence[VQAExample], root: Path, near: Iterable[Sequence[str]] = ()
) -> dict[str, str]:
    """Example id -> name of its group of images: the least of their paths, relative to `root`.

    `near`: pairs of images that go together, see near_copies.py. The images of a patient do, too:
    the patient stands for a path that is less than all others, so it names the group.
    """
    parent: dict[str, str] = {}

    def find(path: str) -> str:
        while parent.setdefault(path, path) != path:
            parent[path] = parent[parent[path]]
            path = parent[path]
        return path

    def keys_of(example: VQAExample) -> list[str]:
        patient = [os.path.join(root, f" {example.patient}")] if example.patient else []
        return patient + [image.key for image in example.images]

    equal = copies(image for example in examples for image in example.images)
    for keys in chain(map(keys_of, examples), equal, near):
        roots = {find(key) for key in keys}
        parent.update(dict.fromkeys(roots, min(roots, default="")))  # the least path is the root

    def name(example: VQAExample) -> str:
        if not (keys := keys_of(example)):
            return f"question: {fold(example.question)}"
        return os.path.relpath(find(keys[0]), root)

    return {example.id: name(example) for example in examples}


def copies(images: Iterable[ImageSource]) -> list[list[str]]:
    """The sets of two or more keys whose images have equal bytes, in files or in parquet rows."""
    by_key = {image.key: image for image in images}
    inside = [key for key, image in by_key.items() if isinstance(image, ParquetImage)]
    files = [key for key, image in by_key.items() if not isinstance(image, ParquetImage)]
    return [*same_content(files), *_parts(inside, lambda key: by_key[key].sha256)]


def same_content(paths: Sequence[str]) -> list[list[str]]:
    """The sets of two or more files with equal bytes. Most are told apart without reading all."""
    sets = [list(paths)]
    for key in (_size, _tail, sha256_of):
        sets = [part for paths in sets for part in _parts(paths, key)]
    return sets


def _parts(paths: Sequence[str], key: Callable[[str], Hashable]) -> list[list[str]]:
    """The sets of two or more paths of which `key` is equal."""
    parts: dict[Hashable, list[str]] = defaultdict(list)
    for path in paths:
        try:
            parts[key(path)].append(path)
        except OSError:  # an unreadable file shares nothing; it is reported when it is drawn
            continue
    return [part for part in parts.values() if len(part) > 1]


def _size(path: str) -> int:
    return plain(Path(path)).stat().st_size


def _tail(path: str) -> bytes:
    """The last 4 kB: in compressed images nearly as good as the whole."""
    with open(path, "rb") as file:
        file.seek(max(0, os.path.getsize(path) - 4096))
        return file.read()


def split_of(group: str, seed: int) -> Split:
    """The split of an image group, by `TEST_SHARE` and `VAL_SHARE`."""
    return "test" if _unit("test", seed, group) < TEST_SHARE else _carved(group, seed)


def _carved(group: str, seed: int) -> Split:
    return "val" if _unit("val", seed, group) < VAL_SHARE else "train"


def assign(
    groups: Mapping[str, str], official: Mapping[str, Split], seed: int
) -> dict[str, Split | None]:
    """Id -> split of every question of `groups` (id -> image group); None: left out.

    `official`: id -> the split it comes with. A question that comes with none goes where its image
    is, or else by `split_of`.
    """
    held: dict[str, set[Split]] = defaultdict(set)  # group -> the splits it comes in
    for id, split in official.items():
        held[groups[id]].add(split)
    has_val = "val" in official.values()

    def split(id: str, group: str) -> Split | None:
        if group not in held:
            return split_of(group, seed)
        first = next(name for name in ("test", "val", "train") if name in held[group])
        if official.get(id, first) != first:
            return None
        return _carved(group, seed) if first == "train" and not has_val else first

    return {id: split(id, group) for id, group in groups.items()}


def in_two_splits(
    examples: Iterable[VQAExample], splits: Mapping[str, Split | None]
) -> list[Skipped]:
    """A `Skipped` for each question that `assign` leaves out."""
    left_out = [e for e in examples if splits[e.id] is None]
    return [Skipped(HELD_OUT, e.images[0].key if e.images else "", e.id) for e in left_out]


def balanced_order(examples: Iterable[VQAExample], seed: int) -> list[VQAExample]:
    """All examples, shuffled, question types in turn: any first n are as balanced as can be."""
    by_type: dict[str, list[VQAExample]] = defaultdict(list)
    for example in sorted(examples, key=lambda example: _unit("draw", seed, example.id)):
        by_type[example.question_type].append(example)
    turns = zip_longest(*(by_type[name] for name in sorted(by_type)))
    return [example for turn in turns for example in turn if example is not None]


def constant_answers(examples: Iterable[VQAExample]) -> dict[tuple[str, str], str]:
    """The answers known without an image after seeing `examples` (training, one modality).

    ("type", question type) or ("question", folded question) -> the one answer it ever has, for
    those met `MIN_CONSTANT` times or more. `has_constant_answer`: whether an example is among them.
    """
    answers: dict[tuple[str, str], list[str]] = defaultdict(list)
    for example in examples:
        for name in _names(example):
            answers[name].append(fold(example.answer))
    often = {name: texts for name, texts in answers.items() if len(texts) >= MIN_CONSTANT}
    return {name: texts[0] for name, texts in often.items() if len(set(texts)) == 1}


def has_constant_answer(example: VQAExample, constant: dict[tuple[str, str], str]) -> bool:
    """Whether `constant_answers` holds the type of this example, or its question."""
    return any(name in constant for name in _names(example))


def _names(example: VQAExample) -> list[tuple[str, str]]:
    by_type, by_question = ("type", example.question_type), ("question", fold(example.question))
    return [by_type, by_question] if example.question_type else [by_question]


def _unit(*name: object) -> float:
    """A number in [0, 1) that is a function of `name` alone, on every machine and Python."""
    digest = hashlib.sha256("\0".join(map(str, name)).encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
