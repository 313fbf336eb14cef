"""What the vision tower is given: the pixels that transformers' own Qwen2-VL processor makes.

The policy has the hub's limits and the recipe's --max-pixels.
"""

import itertools
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import Qwen2VLModel

from data.images import ImageFile
from grpo.settings.config import Config
from models.loading import load as loading
from models.open_policy import load_policy
from models.policy import Policy
from tests.models.each import failures
from tests.tiny import PREPROCESSOR, Question

MAX_PIXELS = Config().max_pixels  # as MedVLM-R1
# Width, height and how many tokens of 28 x 28 pixels the image becomes.
SIZES = [
    (448, 448, 16 * 16),
    (81, 45, 3 * 2),  # 81/28 and 45/28, rounded
    (1408, 1112, 25 * 20),  # shrunk by sqrt(1408 * 1112 / 401,408) = 1.975, rounded down
    (20, 20, 2 * 2),  # enlarged to at least 56 x 56
    (28 * 100, 28, 100),
]


@pytest.fixture(scope="module")
def policy(hub_folder) -> Policy:
    return load_policy(str(hub_folder), device="cpu", max_pixels=MAX_PIXELS)


@pytest.fixture
def seen(monkeypatch) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The pixels and the grid of every image that enters the tower."""
    given, inner = [], Qwen2VLModel.get_image_features

    def watched(self, pixels, grid):
        given.append((pixels, grid))
        return inner(self, pixels, grid)

    monkeypatch.setattr(Qwen2VLModel, "get_image_features", watched)
    return given


def reference(file: Path) -> dict[str, torch.Tensor]:
    """By a processor with the hub's own settings, from the file as Pillow opens it."""
    limits = {"shortest_edge": PREPROCESSOR["min_pixels"], "longest_edge": MAX_PIXELS}
    processor = loading.ImageProcessor(**PREPROCESSOR)
    with Image.open(file) as image:
        return processor(images=[image], size=limits, return_tensors="pt")


def is_the_same(policy: Policy, seen: list, file: Path) -> int:
    """Encode a question about the file, compare, and return how many tokens it took."""
    (prompt,) = policy.encode([Question("What is this?", (ImageFile(file),))])
    pixels, grid = seen[-1]
    expected = reference(file)
    assert torch.equal(grid, expected["image_grid_thw"])
    assert pixels.dtype == torch.float32
    assert torch.equal(pixels, expected["pixel_values"])
    tokens = int((prompt.input_ids == policy.chat.image_pad).sum())
    assert tokens == len(prompt.features[0]) == int(grid.prod()) // 4
    return tokens


def test_any_size_and_mode_is_prepared_as_transformers_does(policy, seen, tmp_path):
    def check(mode: str, size: tuple[int, int, int]) -> None:
        width, height, tokens = size
        generator = np.random.default_rng([width, len(mode)])
        noise = generator.integers(0, 256, (height, width, 3), np.uint8)
        file = tmp_path / f"{mode}-{width}-{height}.png"
        Image.fromarray(noise).convert(mode).save(file)  # an RGBA is opaque, as real scans are
        assert is_the_same(policy, seen, file) == tokens

    assert not failures(check, itertools.product(("RGB", "L", "RGBA"), SIZES))


@pytest.mark.skipif("MEDVQA_DATA" not in os.environ, reason="MEDVQA_DATA names no real images")
@pytest.mark.slow
def test_fifty_real_images_are_prepared_as_transformers_does(policy, seen):
    place = Path(os.environ["MEDVQA_DATA"]) / "omnimedvqa" / "Images"
    files = sorted(file for file in place.rglob("*") if file.suffix.lower() in (".png", ".jpg"))
    chosen = files[:: len(files) // 50][:50]  # of every folder
    with_modes = {Image.open(file).mode for file in chosen}
    assert with_modes >= {"L", "RGB"}
    assert len(chosen) == len({is_the_same(policy, seen, f) and f for f in chosen}) == 50
    assert len(seen) == 50
