"""Controls: each takes away or moves just what it says, and nothing else of the question."""

import random
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from data.controls.altered import (
    BlankImage,
    blank_image,
    none_of_the_above,
    permuted_options,
    shuffled_images,
)
from data.example import VQAExample
from data.images import ImageFile
from data.phantom import questions as phantom
from grpo.settings.errors import UsageError
from tests.data.cases import check_each


def about(
    name: str, *keys: str, modality: str = "MRI", question: str = "Which?", gold: int = 0
) -> VQAExample:
    """A question about images that are never opened."""
    images = tuple(ImageFile(Path(key)) for key in keys)
    return VQAExample(name, images, question, ("x", "y"), gold, modality, "")


def keys(example: VQAExample) -> list[str]:
    return [image.key for image in example.images]


def without_images(example: VQAExample) -> VQAExample:
    return replace(example, images=())


def test_blank_images_are_uniform_and_of_the_size_of_the_image(tmp_path: Path) -> None:
    Image.effect_noise((30, 20), 50).save(tmp_path / "a.png")
    turned = Image.Exif()
    turned[0x0112] = 6  # stored on its side: opens 7 wide, 9 high
    Image.new("RGB", (9, 7)).save(tmp_path / "b.jpg", exif=turned)
    example = VQAExample(
        "1",
        (ImageFile(tmp_path / "a.png"), ImageFile(tmp_path / "b.jpg")),
        "Which?",
        ("x", "y"),
        1,
        "CT",
        "",
    )
    blank = blank_image(example)
    assert without_images(blank) == without_images(example)
    opened = [image.open() for image in blank.images]
    assert [image.size for image in opened] == [image.open().size for image in example.images]
    assert [image.size for image in opened] == [(30, 20), (7, 9)]
    for image in opened:
        assert image.mode == "RGB"
        assert image.getextrema() == ((128, 128),) * 3


def test_blank_images_share_a_key_if_and_only_if_they_share_a_size() -> None:
    one, two = (blank_image(e) for e in phantom.load("MRI", split="test", size=2))
    assert keys(one) == keys(two)
    sizes = ((4, 8), (8, 4), (4, 4))
    assert len({BlankImage(*size).key for size in sizes}) == len(sizes)


def test_a_blank_control_of_an_unreadable_image_says_which(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"gone\.png is missing"):
        blank_image(about("1", str(tmp_path / "gone.png")))


def test_a_question_without_images_is_its_own_blank_control_and_is_not_shuffled() -> None:
    assert blank_image(about("1")) == about("1")
    two = [about("1"), about("2", question="Where?")]
    assert shuffled_images(two, seed=0) == []


def random_pool(generator: random.Random) -> list[VQAExample]:
    """Questions of two modalities and of one or two images, several to an image."""
    pool = []
    for modality in ("MRI", "CT"):
        images = [f"{modality}{i}" for i in range(generator.randint(1, 6))]
        for i in range(generator.randint(0, 12)):
            shown = generator.sample(images, min(len(images), generator.choice((1, 1, 2))))
            pool.append(about(f"{modality}-{i}", *shown, modality=modality))
    return pool


def check_shuffled(seed: int) -> None:
    pool = random_pool(random.Random(seed))
    shuffled = shuffled_images(pool, seed)
    before = {example.id: example for example in pool}
    assert [e.id for e in shuffled] == [i for i in before if i in {e.id for e in shuffled}]
    for example in shuffled:
        old = before[example.id]
        assert without_images(example) == without_images(old)
        assert not set(keys(example)) & set(keys(old))
        assert all(key.startswith(example.modality) for key in keys(example))
        assert len(example.images) == len(old.images)
    kept = [before[example.id] for example in shuffled]
    assert Counter(e.images for e in shuffled) == Counter(e.images for e in kept)


def test_nobody_keeps_an_image_and_images_are_given_as_often_as_they_were_there() -> None:
    check_each(check_shuffled, range(200))


@pytest.mark.parametrize(
    ("askings", "left"),
    [([1, 1], 2), ([3, 3], 6), ([3, 2, 1], 6), ([4, 2, 1], 6), ([5, 1], 2), ([5], 0), ([1], 0)],
)
def test_only_the_surplus_of_an_image_of_most_questions_is_left_out(
    askings: list[int], left: int
) -> None:
    pool = [about(f"{i}-{j}", f"image{i}") for i, n in enumerate(askings) for j in range(n)]
    for seed in range(20):
        assert len(shuffled_images(pool, seed)) == left


def test_an_image_under_another_name_counts_as_the_same(
    tmp_path: Path, picture: Callable[[Path, int], Path]
) -> None:
    paths = [picture(tmp_path / f"{i}.png", i) for i in range(4)]
    paths += [shutil.copy(path, tmp_path / f"copy of {path.name}") for path in paths]
    pool = [about(str(i), str(path)) for i, path in enumerate(paths)]
    for seed in range(20):
        for example in shuffled_images(pool, seed):
            old = paths[int(example.id)].read_bytes()
            assert Path(example.images[0].key).read_bytes() != old


def test_a_shuffle_is_a_function_of_the_seed_and_not_of_the_order_or_the_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = phantom.load("CT", split="test", size=60)
    given = {e.id: keys(e) for e in shuffled_images(pool, seed=3)}
    assert len(given) == 60
    monkeypatch.chdir(tmp_path)
    assert {e.id: keys(e) for e in shuffled_images(pool[::-1], seed=3)} == given
    assert {e.id: keys(e) for e in shuffled_images(pool, seed=4)} != given


def test_shuffles_give_every_other_image_its_turn() -> None:
    pool = [about(str(i), f"image{i}") for i in range(4)]
    given = Counter(keys(shuffled_images(pool, seed)[0])[0] for seed in range(300))
    assert given.keys() == {"image1", "image2", "image3"}
    assert min(given.values()) > 60  # 100 expected, standard deviation 8


def check_permutations(number: int) -> None:
    options = tuple("pqrs"[:number])
    for gold in range(number):
        example = VQAExample("1", (), "Which?", options, gold, "MRI", "")
        turned = permuted_options(example)
        assert turned[0] == example
        assert sorted(e.gold for e in turned) == list(range(number))
        for k, one in enumerate(turned):
            assert one.id == example.id
            assert one.answer == example.answer
            assert [one.options[(i + k) % number] for i in range(number)] == list(options)


def test_permutations_move_the_answer_under_every_letter_once() -> None:
    check_each(check_permutations, [2, 3, 4])


def test_none_of_the_above_takes_the_place_of_the_right_option_or_of_a_wrong_one() -> None:
    for example in phantom.load("CT", split="test", size=60):
        right, wrong = (none_of_the_above([example], right=x) for x in (True, False))
        if "none" in example.options:
            assert right == wrong == []
            continue
        (right,), (wrong,) = right, wrong
        assert right.answer == "None of the above"
        assert wrong.answer == example.answer
        for altered in (right, wrong):
            assert (altered.id, altered.gold) == (example.id, example.gold)
            changed = [a for a, b in zip(altered.options, example.options, strict=True) if a != b]
            assert changed == ["None of the above"]


@pytest.mark.parametrize(
    ("option", "kept"),
    [
        ("none", False),
        ("None of these", False),
        ("all of the above", False),
        ("Neither", False),
        ("nonethnic", True),
        ("above the heart", True),
    ],
)
def test_a_question_whose_options_say_none_already_is_left_out(option: str, kept: bool) -> None:
    example = VQAExample("1", (), "Which?", ("x", option), 0, "MRI", "")
    assert bool(none_of_the_above([example], right=True)) == kept
