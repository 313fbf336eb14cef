"""Phantoms: balance by count, truth by a second reading of the scene, splits that never meet."""

import re
from collections import Counter
from itertools import product

import numpy as np
import pytest

from data.example import VQAExample
from data.phantom import questions as phantom
from data.phantom.anatomy import (
    BONE,
    CALCIUM,
    MODALITIES,
    SCALP,
    SIZE,
    label_map,
    place_lesions,
    render,
)
from data.phantom.questions import KINDS, NEW_KIND
from grpo.settings.errors import UsageError

DECK = 240


def truth(example: VQAExample) -> str:
    """The answer read off the label map and the scene's geometry, not off how it was drawn."""
    scene = example.images[0].scene
    labels = label_map(scene)
    head = np.argwhere(labels > 0)
    middle_y, middle_x = (head.min(0) + head.max(0)) / 2
    lesions = scene.lesions
    if example.question_type == "presence":
        return "yes" if (labels > 5).any() else "no"
    if example.question_type == "count":
        return ("none", "one", "two", "three")[len(lesions)]
    (lesion,) = lesions  # the other questions speak of "the lesion": it must be the only one
    y, x = np.argwhere(labels > 5).mean(0)
    side, height = "left" if x < middle_x else "right", "upper" if y < middle_y else "lower"
    wide = np.ptp(np.argwhere(labels > 5)[:, 1]) > 15
    return {
        "side": side,
        "quadrant": f"{height} {side}",
        "size": "large" if wide else "small",
        "kind": lesion.kind,
    }[example.question_type]


def cells(examples: list[VQAExample]) -> dict[str, Counter]:
    found: dict[str, Counter] = {}
    for e in examples:
        key = (frozenset(e.options), e.answer, e.letter)
        found.setdefault(e.question_type, Counter())[key] += 1
    return found


@pytest.mark.parametrize("modality", MODALITIES)
def test_the_default_test_set_is_exactly_stratified(modality):
    examples = phantom.load(modality, split="test", size=1200)
    found = cells(examples)
    assert {t: sum(c.values()) for t, c in found.items()} == dict.fromkeys(phantom.TYPES, 200)
    for question_type, count in found.items():
        answers = phantom.TYPES[question_type][1]
        shown = {options for options, _, _ in count}
        assert len(shown) == (1 if len(answers) == 2 else 7)  # all of it and, of four, every pair
        wanted = {
            (options, gold, letter)
            for options in shown
            for gold, letter in product(options, "ABCD"[: len(options)])
        }
        assert set(count) == wanted
        assert len(set(count.values())) == 1, "every cell equally often"


@pytest.mark.parametrize("size", [DECK, 5 * DECK])
def test_always_the_same_letter_scores_chance_exactly(size):
    examples = phantom.load("CT", split="test", size=size)
    chance = sum(1 / len(e.options) for e in examples) / size
    assert chance == pytest.approx(0.45)
    for letters in ("A", "B"):
        score = sum(e.letter == letters for e in examples) / size
        assert score == pytest.approx(chance)


def test_any_rule_on_the_option_texts_scores_chance_exactly():
    """The first option in alphabetical order, the longest text, ...: none knows anything."""
    examples = phantom.load("MRI", split="test", size=DECK)
    chance = sum(1 / len(e.options) for e in examples)
    for rule in (min, max, lambda options: max(options, key=lambda o: (len(o), o))):
        assert sum(rule(e.options) == e.answer for e in examples) == pytest.approx(chance)


@pytest.mark.parametrize("modality", MODALITIES)
def test_every_answer_is_true_and_the_only_true_one(modality):
    for example in phantom.load(modality, split="train", size=DECK, seed=3):
        assert example.answer == truth(example), example.id
        assert len(set(example.options)) == len(example.options)


def test_the_reference_reasoning_names_every_lesion():
    for example in phantom.load("MRI", split="train", size=60):
        lesions = example.images[0].scene.lesions
        said = re.findall(
            r"(small|large) ([a-z ]+), ((?:upper|lower) (?:left|right))", example.reasoning
        )
        assert said == [(lesion.size, lesion.kind, lesion.quadrant) for lesion in lesions]


@pytest.mark.slow
def test_splits_and_seeds_share_no_scene():
    drawn = [
        *(("pretrain", m, 0) for m in MODALITIES),
        *(("train", m, s) for m in MODALITIES for s in (0, 1, 42, 9_999, 10_042, 2**31 - 1)),
        *(("val", m, 0) for m in MODALITIES),
        *(("test", m, 0) for m in MODALITIES),
    ]
    seeds, hashes = [], []
    for split, modality, seed in drawn:
        scenes = [
            e.images[0].scene for e in phantom.load(modality, split=split, size=120, seed=seed)
        ]
        seeds += [scene.seed for scene in scenes]
        hashes += [scene.hash for scene in scenes]
    assert len(set(seeds)) == len(seeds)
    assert len(set(hashes)) == len(hashes)


def test_test_questions_are_the_same_for_every_run_and_training_questions_are_not():
    def ids(split: str, seed: int) -> list[str]:
        return [e.id for e in phantom.load("MRI", split=split, size=12, seed=seed)]

    assert ids("test", 1) == ids("test", 2)
    assert ids("val", 1) == ids("val", 2)
    assert set(ids("train", 1)).isdisjoint(ids("train", 2))
    assert set(ids("train", 42)).isdisjoint(ids("train", 10_042))
    assert ids("train", 1) == ids("train", 1)


def test_the_withheld_kind_is_only_in_its_own_set():
    for split in ("pretrain", "train", "val", "test"):
        usual = phantom.load("MRI", split=split, size=DECK)
        assert {lesion.kind for e in usual for lesion in e.images[0].scene.lesions} == set(KINDS)
        assert not any(NEW_KIND in e.prompt + e.reasoning for e in usual)
    new = phantom.load("MRI", split="test", size=200, variant="new-kind")
    assert {lesion.kind for e in new for lesion in e.images[0].scene.lesions} == {NEW_KIND}
    assert "kind" not in {e.question_type for e in new}
    for split in ("pretrain", "train"):
        with pytest.raises(UsageError, match="withheld from training"):
            phantom.load("MRI", split=split, size=1, variant="new-kind")


def test_an_id_says_which_variant_an_example_is_of():
    ids = [phantom.load("CT", split="test", size=1, variant=v)[0].id for v in phantom.VARIANTS]
    assert ids == [
        "phantom-CT-test-31000000000",
        "phantom-CT-leaky-test-31000000000",
        "phantom-CT-new-kind-test-31000000000",
    ]


def test_modality_questions_live_in_the_leaky_set_alone():
    for modality in MODALITIES:
        leaky = phantom.load(modality, split="test", size=280, variant="leaky")
        asked = [e for e in leaky if e.question_type == "modality"]
        assert len(asked) == 40
        assert {e.answer for e in asked} == {phantom.MODALITY_NAMES[modality]}
        assert Counter(e.letter for e in asked) == dict.fromkeys("ABCD", 10)
    assert "modality" not in {e.question_type for e in phantom.load("CT", split="test", size=240)}


@pytest.mark.parametrize("modality", MODALITIES)
def test_a_picture_is_drawn_the_same_every_time_and_shows_its_lesions(modality):
    seed = 11
    empty = place_lesions(seed, [])
    assert np.array_equal(render(empty, modality), render(empty, modality))
    for kind in (*KINDS, NEW_KIND):
        scene = place_lesions(seed, [(kind, "large", "lower right")])
        with_lesion, without = (render(s, modality).astype(int) for s in (scene, empty))
        (lesion,) = scene.lesions
        y, x = np.mgrid[0:SIZE, 0:SIZE]
        inside = np.hypot(x - lesion.x, y - lesion.y) < lesion.radius
        outside = np.hypot(x - lesion.x, y - lesion.y) > lesion.radius * 1.2 + 6
        change = np.abs(with_lesion - without)
        assert change[inside].mean() > 12, f"{kind} is hard to see on {modality}"
        assert change[outside].mean() < 1


def test_each_physics_shows_bone_and_calcium_its_own_way():
    scene = place_lesions(5, [("calcification", "large", "upper left")])
    labels = label_map(scene)
    mean = {
        m: {t: render(scene, m)[labels == t].mean() for t in (SCALP, BONE, CALCIUM)}
        for m in MODALITIES
    }
    assert mean["MRI"][BONE] < 60  # no mobile protons: dark
    assert mean["CT"][BONE] > 250  # above the window: white
    assert mean["XRAY"][BONE] > mean["XRAY"][SCALP]
    assert mean["MRI"][CALCIUM] < 100 < mean["CT"][CALCIUM]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"modality": "PET"}, "it has MRI, CT, XRAY"),
        ({"variant": "hard"}, "phantom:leaky"),
        ({"size": 10**6}, "at most 100000"),
    ],
)
def test_bad_requests_say_what_there_is(arguments, message):
    wanted = {"modality": "MRI", "split": "test", "size": 12} | arguments
    with pytest.raises(UsageError, match=message):
        phantom.load(wanted.pop("modality"), **wanted)
