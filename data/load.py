"""Data sets, one `VQAExample` for all of them.

`phantom`, `phantom:leaky`, `phantom:new-kind`   drawn scenes (data/phantom/): not medical data
`omnimedvqa:FOLDER`              as it lies on disk; no single licence, each source has its own
`huatuo:FILE_OR_FOLDER`          Medical_Multimodal_Evaluation_Data; licence not found
`vqa-rad:FILE_OR_FOLDER`         VQA-RAD, the hub's parquet or the OSF JSON; CC0-1.0
`slake:FOLDER`                   SLAKE, its English questions; CC-BY-4.0, says its page on the hub
`vqa-med-2019:FOLDER`            ImageCLEF's VQA-Med 2019; see its page for terms
`path-vqa:FILE_OR_FOLDER`        PathVQA, the hub's parquet; MIT, the images are their publishers'
`pmc-vqa:FILE_OR_FOLDER`         PMC-VQA, version 2 or 1; CC-BY-SA, which we could not verify
`medvlthinker-eval:FILE_OR_FOLDER`  MedVLThinker-Eval, tests of six sets; licence not found
`silvar-med:FOLDER`              SilVar-Med's annotated SLAKE images; licence not found
`jsonl:FILE`                     your own questions (data/readers/jsonl.py)

A name with a `-` is read by the file with a `_`, whose docstring tells the format. Those in
data/readers/hub.py are fetched from the hub when they are named alone, as in `--data vqa-rad`.
"""

import hashlib
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache, partial
from importlib import import_module
from itertools import chain
from pathlib import Path

from data.example import VQAExample, sliced
from data.images import ImageSource, UnusableImage
from data.near_copies import kept_near_copies
from data.phantom import questions as phantom
from data.readers.common import NoFiles
from data.readers.download import HUB, fetch
from data.rows import Listing, Skipped, Split, modality_name, summary
from data.splits import assign, balanced_order, image_groups, in_two_splits
from grpo.settings.config import Config
from grpo.settings.errors import UsageError
from grpo.settings.flags import names_in

ALL = "ALL"  # every modality of a data set together
READERS = (*HUB, "vqa-med-2019", "silvar-med", "jsonl")


# (question, width and height of each image) -> why the model cannot take it; "" if it can
Refusal = Callable[[VQAExample, list[tuple[int, int]]], str]


@dataclass(eq=False, repr=False)
class LeftOut(set[Skipped]):
    """What has been left out so far. `refused` tells which questions the model cannot take."""

    refused: Refusal = lambda *_: ""


Skips = LeftOut | None  # where to add what is left out; None: nowhere


def load(
    spec: str,
    modality: str,
    *,
    split: Split,
    size: int,
    seed: int,
    skipped: Skips = None,
    slices: int = 1,
) -> list[VQAExample]:
    """`size` questions of one modality (`ALL`: of every one) from one split, or all if fewer.

    Questions are balanced over question types; their images are opened once, to see that they can
    be, and passed over if `skipped.refused`. A volume is shown by `slices` slices. What was left
    out on the way, of every split and modality, is added to `skipped`.
    """
    modality = modality_name(modality) or modality
    if is_drawn(spec):
        variant = spec.partition(":")[2]
        return phantom.load(modality, split=split, size=size, seed=seed, variant=variant)
    listing = read(spec)
    skipped = LeftOut() if skipped is None else skipped
    there = with_modality(listing.examples, modality)
    if not there:
        counts = Counter(example.modality for example in listing.examples).most_common(20)
        has = ", ".join(f"{name} ({count})" for name, count in counts)
        raise UsageError(f"{spec} has no {modality} questions; in --modality and --ood, use {has}")
    splits = splits_of(spec, seed)
    pool = [example for example in there if splits[example.id] == split]
    skipped.update(listing.skipped, in_two_splits(listing.examples, splits))
    ordered = map(partial(sliced, count=slices), balanced_order(pool, seed))
    taken = take_usable(ordered, size, skipped)
    if size > 0 and not taken:
        remedy = "put its files there" if listing.splits else "try another --data-seed"
        problem = f"no usable {modality} image in its {split} split ({len(there)} questions in all)"
        raise UsageError(f"{spec} has {problem}, {summary(skipped)}: add images, or {remedy}")
    return taken


def take_usable(ordered: Iterable[VQAExample], size: int, skipped: LeftOut) -> list[VQAExample]:
    """The first `size` examples whose images open and that the model takes.

    What is passed over on the way is added to `skipped`: found now, before a long run starts.
    """
    taken: list[VQAExample] = []
    size_of = cache(_size_of)  # several questions share an image
    for example in ordered:
        if len(taken) == size:
            break
        sizes = [size_of(image) for image in example.images]
        problem = "image cannot be read" if None in sizes else skipped.refused(example, sizes)
        if problem:
            place = sizes.index(None) if None in sizes else 0
            key = example.images[place].key if sizes else ""
            skipped.add(Skipped(problem, key, example.id))
        else:
            taken.append(example)
    return taken


def _size_of(image: ImageSource) -> tuple[int, int] | None:
    try:
        return image.open().size
    except UnusableImage:
        return None


def load_split(config: Config, split: Split, size: int, skipped: Skips = None) -> list[VQAExample]:
    """Questions of the training modality; says so when there are fewer than asked for."""
    spec, modality, seed = config.data, config.modality, config.data_seed
    more = {"skipped": skipped, "slices": config.slices}
    examples = load(spec, modality, split=split, size=size, seed=seed, **more)
    if len(examples) < size:
        found = f"{len(examples)} {modality} questions for {split}"
        print(f"{found}, all that can be used; {size} were asked for", file=sys.stderr)
    return examples


def learned_questions(learned: Config, asked: Config, skipped: LeftOut) -> list[VQAExample]:
    """The training questions of the configuration `learned`, from which the priors learn.

    If they cannot be read (their data has moved), those of the data that is `asked`; none if it has
    no training questions either. Both is said. `skipped` is told of the data that is asked only.
    """
    for spec in dict.fromkeys(map(learned_from, (learned.data, asked.data))):
        config = with_names(replace(learned, data=spec))
        skips = skipped if spec == asked.data else LeftOut(skipped.refused)
        try:
            return load_split(config, "train", config.train_size, skips)
        except UsageError as error:
            remedy = "the priors learn from --data, or are left out"
            print(f"evaluate.py: {error}; {remedy}", file=sys.stderr)
    return []


def with_names(config: Config) -> Config:
    """The configuration with its modalities under the names that the data goes by."""
    unseen = (modality_name(name) or name for name in names_in(config.ood))
    name = modality_name(config.modality) or config.modality
    return replace(config, modality=name, ood=",".join(unseen) or "none")


def fingerprint(examples: Sequence[VQAExample] | None) -> str:
    """A hash of the questions' ids, in order."""
    ids = "\n".join(example.id for example in examples or ())
    return hashlib.sha256(ids.encode()).hexdigest()


@lru_cache(maxsize=4)
def splits_of(spec: str, seed: int) -> dict[str, Split | None]:
    """Id -> split of every question of a data set on disk; None: left out, see data/splits.py.

    Images are grouped over all modalities: one may be listed under two of them.
    """
    listing = read(spec)
    near = [] if listing.splits else kept_near_copies(chain(*(e.images for e in listing.examples)))
    return assign(image_groups(listing.examples, listing.root, near), listing.splits, seed)


def with_modality(examples: Iterable[VQAExample], modality: str) -> list[VQAExample]:
    """The examples of one modality, or all of them for `ALL`."""
    return [example for example in examples if modality in (example.modality, ALL)]


def modalities(spec: str) -> tuple[str, ...]:
    """The modalities a data set has, the largest first."""
    if is_drawn(spec):
        return phantom.MODALITIES
    return tuple(name for name, _ in Counter(e.modality for e in read(spec).examples).most_common())


def is_drawn(spec: str) -> bool:
    """Whether the questions of a data set are phantoms: drawn, and not medical data."""
    return spec.partition(":")[0] == "phantom"


def learned_from(spec: str) -> str:
    """The data set that a policy asked `spec` was trained on: a withheld one has no training."""
    return "phantom" if spec == "phantom:new-kind" else spec


@lru_cache(maxsize=4)  # train, val and test of several modalities are loaded from one listing
def read(spec: str) -> Listing:
    """All usable questions of a data set on disk, and all rows left out. No image is opened."""
    name, _, place = spec.partition(":")
    if name not in READERS:
        folders = ", ".join(f"{name}:FOLDER" for name in READERS if name != "jsonl")
        raise UsageError(f"no data set {name!r}: use phantom, {folders} or jsonl:FILE")
    if not place and name not in HUB:
        raise UsageError(f"{name} needs a place: --data {name}:PATH")
    reader = import_module(f"data.readers.{name.replace('-', '_')}")
    path = Path(os.path.expanduser(place)) if place else fetch(name)
    try:
        listing = reader.read(path)
    except NoFiles:
        what = "no data there" if path.exists() else "no file or folder there"
        raise UsageError(f"{name}:{path}: {what}; expected {reader.EXPECTED}") from None
    if not listing.examples:
        raise UsageError(f"{spec} has no usable question: {summary(listing.skipped)}")
    return listing
