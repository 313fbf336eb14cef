"""Images of other questions: what is right about them, the nearest ones, and their size."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.controls.altered import ResizedImage, nearest_images, oracle_of, resized, shuffled_images
from data.evaluation_questions import control_questions
from data.example import VQAExample
from data.images import ImageFile
from data.load import LeftOut
from data.phantom import questions as phantom
from data.phantom.anatomy import Lesion
from grpo.settings.config import Config


def about(name: str, key: str, gold: int = 0, question: str = "Which?") -> VQAExample:
    """A question about an image that is never opened."""
    return VQAExample(name, (ImageFile(Path(key)),), question, ("x", "y"), gold, "MRI", "")


def true_of(option: str, kind: str, lesions: tuple[Lesion, ...]) -> bool:
    """The slow oracle: is an answer true of a drawn scene?"""
    if kind == "presence":
        return (option == "yes") == bool(lesions)
    if kind == "count":
        return ("none", "one", "two", "three").index(option) == len(lesions)
    if kind == "side":
        return any(option in lesion.quadrant for lesion in lesions)
    return any(getattr(lesion, kind) == option for lesion in lesions)


def test_of_a_phantom_all_is_known_that_its_scene_tells() -> None:
    pool = phantom.load("MRI", split="test", size=240)
    changes = oracle_of(pool)
    assert {changes(e, e) for e in pool} == {0.0}, "its own image leaves the answer right"
    found = []
    for example in shuffled_images(pool, seed=0):
        lesions = example.images[0].scene.lesions
        true = [x for x in example.options if true_of(x, example.question_type, lesions)]
        expected = float(true != [example.answer]) if len(true) == 1 else None
        assert changes(example, example) == expected, example
        found.append(expected)
    assert min(found.count(x) for x in (0.0, 1.0, None)) > 30


def test_of_other_images_the_same_question_tells() -> None:
    pool = [
        about("1", "a", gold=0),
        about("2", "b", gold=1, question="which? "),
        about("3", "c", question="What?"),
    ]
    changes = oracle_of([*pool, about("4", "d", gold=0), about("5", "d", gold=1)])
    assert changes(pool[0], pool[1]) == 1
    assert changes(replace(pool[0], gold=1), pool[1]) == 0
    assert changes(pool[0], pool[2]) is None, "another question"
    assert changes(pool[0], about("", "d")) is None, "two answers are right"
    assert changes(replace(pool[0], options=("x", "z")), pool[1]) is None, "y is no option"


def unit(n: int) -> np.ndarray:
    """(n, 8) random vectors of unit length."""
    vectors = np.random.default_rng(n).normal(size=(n, 8))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_the_nearest_image_is_the_nearest_that_changes_the_answer() -> None:
    pool = phantom.load("CT", split="test", size=60)
    vectors, changes = unit(60), oracle_of(pool)
    found = nearest_images(pool, vectors.tolist(), changes)
    assert [e.id for e in found] == [e.id for e in pool]
    for i, (own, given) in enumerate(zip(pool, found, strict=True)):
        nearness = {j: float(vectors[i] @ vectors[j]) for j in range(60) if j != i}
        different = {j: x for j, x in nearness.items() if changes(own, pool[j]) == 1}
        best = max(different, key=different.__getitem__)
        assert given == replace(own, images=pool[best].images)


def test_if_no_other_answer_is_known_it_is_the_nearest_of_all() -> None:
    pool = [about(str(i), f"{i}.png", question=f"Which, {i}?") for i in range(9)]
    vectors = unit(9)
    for i, given in enumerate(nearest_images(pool, vectors.tolist(), oracle_of(pool))):
        best = max((j for j in range(9) if j != i), key=lambda j: vectors[i] @ vectors[j])
        assert given.images == pool[best].images


def test_a_copy_of_the_own_image_is_never_the_nearest(
    tmp_path: Path, picture: Callable[[Path, int], Path]
) -> None:
    paths = [picture(tmp_path / f"{i}.png", i) for i in range(2)]
    paths.append(Path(shutil.copy(paths[0], tmp_path / "copy.png")))
    pool = [about(str(i), str(path)) for i, path in enumerate(paths)]
    given = nearest_images(pool, [[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]], oracle_of(pool))
    assert [e.images[0].path for e in given] == [paths[1], paths[0], paths[1]]
    assert nearest_images([pool[0], pool[2]], [[1.0], [1.0]], oracle_of(pool)) == []


def test_a_swapped_image_is_as_large_as_the_own_one(tmp_path: Path) -> None:
    for name, size in (("wide", (40, 20)), ("tall", (20, 40)), ("other", (40, 20))):
        Image.effect_noise(size, 50).save(tmp_path / f"{name}.png")
    wide, tall, other = (about(n, str(tmp_path / f"{n}.png")) for n in ("wide", "tall", "other"))
    (image,) = resized(replace(wide, images=tall.images), wide).images
    assert image.open().size == (40, 20)
    assert image.open().mode == "RGB"
    expected = tall.images[0].open().resize((40, 20), Image.Resampling.BICUBIC)
    assert image.open().tobytes() == expected.tobytes()
    assert resized(replace(wide, images=other.images), wide).images == other.images


def test_the_key_of_a_resized_image_changes_with_size_name_and_bytes(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    keys = []
    for shade, size in ((1, (9, 9)), (1, (9, 8)), (2, (9, 9))):
        Image.new("RGB", (4, 4), (shade,) * 3).save(file)
        keys.append(ResizedImage(ImageFile(file), size).key)
    assert len(set(keys)) == 3
    assert keys[0].startswith(str(file))
    assert keys[0].endswith("@9x9")


def never(examples: list[VQAExample]) -> list[list[float]]:
    raise AssertionError("the default controls need no features")


@pytest.mark.parametrize("most", [24, None])
def test_the_default_asks_no_more_than_before(most: int | None) -> None:
    tests = {"MRI": phantom.load("MRI", split="test", size=60)}
    pooled = never if most else lambda examples: unit(len(examples)).tolist()
    config = Config(train_size=24)
    controls, _, oracle = control_questions(tests, most, config, config, LeftOut(), pooled)
    usual = ["blank_image", "shuffled_image", "permuted_options"]
    more = ["no_image", "nearest_image", "none_is_right", "none_is_wrong"]
    assert list(controls) == (usual if most else [*usual, *more])
    asked = most or 60
    assert len(controls["blank_image"]["MRI"]) == len(oracle["shuffled_image"]["MRI"]) == asked
    for example in tests["MRI"][:asked]:
        assert oracle["blank_image"]["MRI"][example.id] == 1 - 1 / len(example.options)
    if not most:
        assert [e.images for e in controls["no_image"]["MRI"]] == [()] * 60
        assert set(oracle["nearest_image"]["MRI"].values()) == {1.0}
