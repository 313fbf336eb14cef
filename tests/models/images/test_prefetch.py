"""Prefetched images: the same results, the same errors, and nothing left behind."""

import dataclasses
import os
import sys
import threading
from pathlib import Path

import pytest
import torch

import models.images.prefetch
from data.images import ImageFile
from grpo.distributed import share
from grpo.settings.errors import UsageError
from models.images.prefetch import Prefetcher, prefetching
from models.open_policy import load_policy
from tests.grpo import cases
from tests.programs import Program, join
from tests.tiny import NoiseImage, Question

IMAGES = [NoiseImage(seed, 56 + 28 * (seed % 3), 84) for seed in range(6)]


@dataclasses.dataclass(frozen=True)
class Sized:
    """The result of any image, of so many bytes."""

    nbytes: int = 1
    images: list[NoiseImage] = dataclasses.field(default_factory=list)  # it is the result of

    def of_image(self, image: NoiseImage) -> "Sized":
        self.images.append(image)
        return self


@dataclasses.dataclass(frozen=True)
class Gated(NoiseImage):
    """Opens once it may, and notes in which thread."""

    gate: threading.Event = dataclasses.field(default_factory=threading.Event, compare=False)
    opened: list = dataclasses.field(default_factory=list, compare=False)

    def open(self):
        self.gate.wait(60)
        self.opened.append(threading.current_thread())
        return super().open()


def settled(prefetcher: Prefetcher) -> None:
    """Wait until its threads have done what they may."""
    for thread in list(prefetcher._threads):
        join(thread)


def vision_of(folder: Path, cache: Path | None = None):
    return load_policy(str(folder), device="cpu", cache=cache).vision


def test_features_are_those_of_a_run_that_prepares_nothing(tiny_folder, tmp_path):
    plain = [vision_of(tiny_folder).features(image) for image in IMAGES]
    for cache in (None, tmp_path, tmp_path):  # in memory, cold, warm
        vision = vision_of(tiny_folder, cache)
        vision.prefetch(IMAGES)
        for image, (expected, grid) in zip(IMAGES, plain, strict=True):
            features, ours = vision.features(image)
            assert torch.equal(features, expected)
            assert ours == grid


def test_a_thread_opens_what_was_said_and_the_main_thread_what_was_not(tiny_folder):
    vision = vision_of(tiny_folder)
    said, unsaid = Gated(1), Gated(2)
    said.gate.set()
    unsaid.gate.set()
    vision.prefetch([said])
    settled(vision._prefetcher)
    for image in (said, unsaid):
        vision.features(image)
    assert len(said.opened) == len(unsaid.opened) == 1
    assert said.opened != [threading.main_thread()] == unsaid.opened


def test_an_image_under_way_is_waited_for_and_not_opened_twice(tiny_folder):
    vision, image = vision_of(tiny_folder), Gated(3)
    vision.prefetch([image])
    threading.Timer(0.1, image.gate.set).start()
    features, _ = vision.features(image)
    assert torch.equal(features, vision_of(tiny_folder).features(NoiseImage(3))[0])
    assert len(image.opened) == 1


def test_images_in_memory_are_not_prepared_again(tiny_folder):
    vision = vision_of(tiny_folder)
    vision.features(IMAGES[0])
    vision.prefetch(IMAGES[:2])
    settled(vision._prefetcher)
    assert list(vision._prefetcher._begun) == [IMAGES[1].key]


def test_a_damaged_image_is_named_as_before_and_only_when_asked(tiny_folder, tmp_path):
    file = tmp_path / "scan.png"
    file.write_bytes(b"not an image")
    edge = NoiseImage(1, 2000, 4)
    vision = vision_of(tiny_folder)
    vision.prefetch([ImageFile(file), edge, IMAGES[0]])
    settled(vision._prefetcher)
    vision.features(IMAGES[0])
    for bad in (ImageFile(file), edge):
        with pytest.raises(UsageError) as before:
            vision_of(tiny_folder).features(bad)
        for _ in range(2):  # the second time it is not prefetched
            with pytest.raises(type(before.value)) as error:
                vision.features(bad)
            assert str(error.value) == str(before.value)


def test_what_is_not_said_again_is_forgotten():
    sized = Sized()
    prefetcher = Prefetcher(sized.of_image)
    prefetcher.prefetch(IMAGES[:3])
    settled(prefetcher)
    prefetcher.prefetch(IMAGES[2:4])
    settled(prefetcher)
    assert list(prefetcher._begun) == [image.key for image in IMAGES[2:4]]


def test_results_that_wait_are_bounded_and_room_is_used_again(monkeypatch):
    monkeypatch.setattr(models.images.prefetch, "WORKERS", 1)
    monkeypatch.setattr(models.images.prefetch, "LIMIT", 20)
    sized = Sized(10)
    prefetcher = Prefetcher(sized.of_image)
    prefetcher.prefetch(IMAGES)
    settled(prefetcher)
    assert sized.images == IMAGES[:2]
    prefetcher.take(IMAGES[5])  # not begun: done at once, by whoever asks
    prefetcher.take(IMAGES[0])
    settled(prefetcher)
    assert sized.images == [*IMAGES[:2], IMAGES[5], IMAGES[2]]


def test_no_thread_outlives_its_work(tiny_folder):
    policy = load_policy(str(tiny_folder), device="cpu")
    config = cases.config(steps=3)
    draw = prefetching(cases.draw, policy.prefetch, share, config.prompts_per_step, 3)
    before = threading.active_count()
    list(cases.steps(policy, draw, cases.reward, config))
    settled(policy.vision._prefetcher)
    assert threading.active_count() == before
    assert not policy.vision._prefetcher._begun


def test_a_step_says_its_own_questions_and_those_of_the_next(monkeypatch):
    def draw(*place: int) -> str:
        return "{}.{}.{}".format(*place)

    said = []
    told = prefetching(draw, said.append, share, 3, 2)
    for place in [(0, 0, 0), (0, 1, 0), (0, 2, 0), (0, 1, 1), (0, 0, 1), (1, 0, 0)]:
        assert told(*place) == draw(*place)
    now, then = ([draw(step, slot, 0) for slot in range(3)] for step in (0, 1))
    assert [list(dict.fromkeys(questions)) for questions in said] == [now + then, then]
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setenv("RANK", "2")
    told(1, 0, 0)
    assert list(dict.fromkeys(said[-1])) == [then[2], then[0], then[1]]  # its own first


ENDS = """
import sys, time
from models.images.prefetch import Prefetcher, prefetching

class Image:
    def __init__(self, key): self.key = key

    def wait(self, image):
        print("begun", flush=True)
        time.sleep(0.2 if image.key else {first})

owner = Image(None)
prefetcher = Prefetcher(owner.wait)
prefetcher.prefetch([Image(i) for i in range(1000)])
sys.exit(3)
"""


@pytest.mark.slow
@pytest.mark.parametrize("first", [0.2, 1000], ids=["slow", "hangs"])
def test_the_end_of_a_program_begins_nothing_more_and_says_nothing(first):
    words = [sys.executable, "-c", ENDS.replace("{first}", str(first))]
    ended = Program(*words).finish(60)
    assert (ended.returncode, ended.stderr) == (3, "")
    assert ended.stdout.count("begun") <= models.images.prefetch.WORKERS


@pytest.mark.slow
@pytest.mark.skipif("MEDVQA_DATA" not in os.environ, reason="MEDVQA_DATA names no real images")
def test_real_images_prepared_by_threads_are_the_same(hub_folder):
    place = Path(os.environ["MEDVQA_DATA"]) / "omnimedvqa" / "Images"
    files = sorted(f for f in place.rglob("*") if f.suffix.lower() in (".png", ".jpg"))
    asked = [Question("What?", (ImageFile(file),)) for file in files[:: len(files) // 12][:12]]
    limits = {"device": "cpu", "max_pixels": 200_704}
    expected = load_policy(str(hub_folder), **limits).encode(asked)
    policy = load_policy(str(hub_folder), **limits)
    policy.prefetch(asked)
    for ours, theirs in zip(policy.encode(asked), expected, strict=True):
        assert torch.equal(ours.features[0], theirs.features[0])
        assert torch.equal(ours.input_ids, theirs.input_ids)
