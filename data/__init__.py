"""Data sets, one `VQAExample` for all of them.

`phantom`, `phantom:leaky`, `phantom:new-kind`   drawn scenes (data/phantom.py): not medical data
`omnimedvqa:FOLDER`                              OmniMedVQA as it lies on disk (data/omnimedvqa.py)
`huatuo:FILE_OR_FOLDER`                          Medical_Multimodal_Evaluation_Data (data/huatuo.py)
`jsonl:FILE`                                     your own questions (data/jsonl.py)

`omnimedvqa` and `huatuo` alone are fetched from the hub (data/download.py).
"""

from collections import Counter
from functools import lru_cache
from pathlib import Path

from data import huatuo, jsonl, omnimedvqa
from data.download import HUB, fetch
from data.example import VQAExample
from data.rows import Listing, Skipped, modality_name, summary
from data.splits import (
    Split,
    balanced_order,
    constant_answers,
    image_groups,
    split_of,
    take_readable,
)
from grpo.config import UsageError

_READERS = {"omnimedvqa": omnimedvqa.read, "huatuo": huatuo.read, "jsonl": jsonl.read}


def load(
    spec: str,
    modality: str,
    *,
    split: Split,
    size: int,
    seed: int,
    skipped: set[Skipped] | None = None,
) -> list[VQAExample]:
    """`size` questions of one modality from one split, or all there are if fewer.

    Questions are balanced over question types; their images are opened once, to see that they can
    be. What was left out on the way, of every split and modality, is added to `skipped`.
    """
    modality = modality_name(modality) or modality
    if _name(spec) == "phantom":
        from data import phantom  # needs numpy, which real data does not

        return phantom.load(modality, split=split, size=size, seed=seed, variant=_place(spec))
    listing = read(spec)
    counts = Counter(example.modality for example in listing.examples)
    if modality not in counts:
        has = ", ".join(f"{name} ({count})" for name, count in counts.most_common())
        raise UsageError(f"{spec} has no {modality} questions; choose from what it has: {has}")
    groups = _groups(spec)
    pool = [
        example
        for example in listing.examples
        if example.modality == modality and split_of(groups[example.id], seed) == split
    ]
    taken, unreadable = take_readable(balanced_order(pool, seed), size)
    if skipped is not None:
        skipped.update(listing.skipped, unreadable)
    if size > 0 and not taken:
        raise UsageError(
            f"{spec} has no usable {modality} image in its {split} split ({counts[modality]} "
            f"questions in all): add images, or try another --data-seed"
        )
    return taken


def modalities(spec: str) -> tuple[str, ...]:
    """The modalities a data set has, the largest first."""
    if _name(spec) == "phantom":
        from data import phantom

        return phantom.MODALITIES
    return tuple(name for name, _ in Counter(e.modality for e in read(spec).examples).most_common())


def learned_from(spec: str) -> str:
    """The data set that a policy asked `spec` was trained on: a withheld one has no training."""
    return "phantom" if spec == "phantom:new-kind" else spec


@lru_cache(maxsize=64)
def constant(spec: str, modality: str) -> dict[tuple[str, str], str]:
    """What has the same answer throughout a modality, see data/splits.py: constant_answers."""
    if _name(spec) == "phantom":
        deck = 280  # the largest, of phantom:leaky; every deck holds the same answers
        return constant_answers(load(spec, modality, split="val", size=deck, seed=0))
    return constant_answers(e for e in read(spec).examples if e.modality == modality)


@lru_cache(maxsize=4)  # train, val and test of several modalities are loaded from one listing
def read(spec: str) -> Listing:
    """All usable questions of a data set on disk, and all rows left out. No image is opened."""
    name, place = _name(spec), _place(spec)
    if name not in _READERS:
        kinds = "phantom, omnimedvqa:FOLDER, huatuo:FILE_OR_FOLDER or jsonl:FILE"
        raise UsageError(f"no data set {name!r}: use {kinds}")
    if not place and name not in HUB:
        raise UsageError(f"{name} needs a place: --data {name}:PATH")
    listing = _READERS[name](Path(place).expanduser() if place else fetch(name))
    if not listing.examples:
        raise UsageError(f"{spec} has no usable question: {summary(listing.skipped)}")
    return listing


@lru_cache(maxsize=4)
def _groups(spec: str) -> dict[str, str]:
    """Image groups over all modalities: an image may be listed under two of them."""
    listing = read(spec)
    return image_groups(listing.examples, listing.root)


def _name(spec: str) -> str:
    return spec.partition(":")[0]


def _place(spec: str) -> str:
    return spec.partition(":")[2]
