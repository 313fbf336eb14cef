"""The published questions and real images under MEDVQA_DATA, read as a user's data would be."""

import hashlib
import os
from collections import Counter
from pathlib import Path

import pytest

from data.load import load, modalities, read
from data.rows import Skipped
from data.splits import constant_answers, has_constant_answer, same_content

ROOT = os.environ.get("MEDVQA_DATA", "")
FOLDER = Path(ROOT) / "omnimedvqa"
SPEC = f"omnimedvqa:{FOLDER}"

pytestmark = pytest.mark.skipif(
    not ROOT or not FOLDER.is_dir(), reason="needs real images: set MEDVQA_DATA to their folder"
)

SPLITS = ("train", "val", "test")
ALL = 10**6


def test_questions_and_images_are_those_counted_when_the_set_was_made() -> None:
    listing = read(SPEC)
    images: dict[str, set[str]] = {}
    for example in listing.examples:
        images.setdefault(example.modality, set()).update(image.key for image in example.images)
    assert Counter(e.modality for e in listing.examples) == {"MRI": 1600, "CT": 457, "XRAY": 788}
    assert {name: len(keys) for name, keys in images.items()} == {
        "MRI": 800,
        "CT": 221,
        "XRAY": 570,
    }
    file = "QA_information/Open-access/Chest CT Scan.json"
    assert listing.skipped == (
        Skipped("two options are equal", file, "Chest CT Scan_00817"),
        Skipped("two options are equal", file, "Chest CT Scan_00838"),
        Skipped("modality is unknown", file, "Chest CT Scan_02519"),
    )


@pytest.mark.slow
def test_every_image_opens_as_rgb() -> None:
    keys = {image.key: image for e in read(SPEC).examples for image in e.images}
    sizes = set()
    for image in keys.values():
        opened = image.open()
        assert opened.mode == "RGB"
        sizes.add(opened.size)
    assert {(81, 45), (1288, 865), (224, 224)} <= sizes


@pytest.mark.slow
def test_some_images_lie_under_two_paths_and_those_are_found() -> None:
    paths = sorted({image.key for e in read(SPEC).examples for image in e.images})
    by_hash: dict[str, list[str]] = {}
    for path in paths:
        by_hash.setdefault(hashlib.sha256(Path(path).read_bytes()).hexdigest(), []).append(path)
    shared = sorted(group for group in by_hash.values() if len(group) > 1)
    assert len(shared) == 99
    assert sorted(same_content(paths)) == shared


@pytest.mark.slow
def test_no_image_is_shared_between_splits_by_path_or_by_content() -> None:
    seen: dict[str, set[str]] = {split: set() for split in SPLITS}
    for split in SPLITS:
        for modality in modalities(SPEC):
            for example in load(SPEC, modality, split=split, size=ALL, seed=0):
                for image in example.images:
                    digest = hashlib.sha256(Path(image.key).read_bytes()).hexdigest()
                    seen[split] |= {image.key, digest}
    for one, other in (("train", "test"), ("train", "val"), ("val", "test")):
        assert not seen[one] & seen[other]
    assert sum(key.startswith("/") for split in SPLITS for key in seen[split]) == 800 + 221 + 570


def test_the_default_sizes_can_be_drawn_for_training_on_mri() -> None:
    train = load(SPEC, "MRI", split="train", size=600, seed=0)
    test = load(SPEC, "MRI", split="test", size=300, seed=0)
    assert (len(train), len(test)) == (600, 300)
    assert set(Counter(e.question_type for e in test).values()) == {100}


@pytest.mark.slow
def test_modality_and_organ_questions_are_found_constant_in_mri() -> None:
    train = load(SPEC, "MRI", split="train", size=600, seed=0)
    constant = constant_answers(train)
    assert constant["type", "Modality Recognition"] == "mri"
    assert constant["type", "Anatomy Identification"] == "brain"
    for modality in modalities(SPEC):
        for example in load(SPEC, modality, split="test", size=ALL, seed=0):
            leaks = example.question_type in ("Modality Recognition", "Anatomy Identification")
            assert has_constant_answer(example, constant) == leaks
