"""Kept image features: computed once, alone, and never for the wrong image, limits or tower."""

import dataclasses
from pathlib import Path

import pytest
import torch

from grpo.settings.errors import UsageError
from models.open_policy import load_policy
from tests.tiny import NoiseImage, make_model


@dataclasses.dataclass(frozen=True)
class Counted(NoiseImage):
    """Counts how often it is opened."""

    opened: list = dataclasses.field(default_factory=list, compare=False)

    def open(self):
        self.opened.append(1)
        return super().open()


def cache_of(folder: Path, cache: Path | None = None, **kwargs):
    return load_policy(str(folder), device="cpu", cache=cache, **kwargs).vision


@pytest.fixture
def tower_runs(monkeypatch):
    """Counts passes through any vision tower."""
    from transformers import Qwen2VLModel

    runs, inner = [], Qwen2VLModel.get_image_features

    def counted(self, *args, **kwargs):
        runs.append(1)
        return inner(self, *args, **kwargs)

    monkeypatch.setattr(Qwen2VLModel, "get_image_features", counted)
    return runs


def test_features_equal_the_towers_for_the_image_in_a_batch_of_others(tiny_folder):
    vision = cache_of(tiny_folder)
    images = [NoiseImage(1, 84, 56), NoiseImage(2, 56, 56), NoiseImage(3, 112, 84)]
    batch = vision.processor(images=[image.open() for image in images], return_tensors="pt")
    with torch.no_grad():
        out = vision.model.get_image_features(batch["pixel_values"], batch["image_grid_thw"])
    expected = zip(images, out.pooler_output, batch["image_grid_thw"].tolist(), strict=True)
    for image, features, grid in expected:
        ours, ours_grid = vision.features(image)
        torch.testing.assert_close(ours, features, atol=1e-5, rtol=1e-5)
        assert list(ours_grid) == grid
        assert ours.grad_fn is None


def test_an_image_is_opened_once_and_goes_through_the_tower_once(tiny_folder, tower_runs):
    vision = cache_of(tiny_folder)
    image = Counted(4)
    first, _ = vision.features(image)
    again, _ = vision.features(image)
    assert again is first
    assert len(image.opened) == len(tower_runs) == 1
    same_pixels = dataclasses.replace(NoiseImage(4), seed=4)
    vision.features(same_pixels)
    assert len(tower_runs) == 1


def test_the_disk_gives_the_same_features_to_the_next_run(tiny_folder, tmp_path, tower_runs):
    first, grid = cache_of(tiny_folder, tmp_path).features(NoiseImage(5))
    again, again_grid = cache_of(tiny_folder, tmp_path).features(NoiseImage(5))
    assert len(tower_runs) == 1
    assert torch.equal(first, again)
    assert grid == again_grid
    assert [f.suffix for f in tmp_path.rglob("*") if f.is_file()] == [".safetensors"]


def test_another_tower_another_limit_or_another_image_is_not_mixed_up(
    tiny_folder, tmp_path, tower_runs
):
    image = NoiseImage(6, 112, 112)
    cache, other = tmp_path / "cache", make_model(tmp_path / "other", seed=1)
    large, _ = cache_of(tiny_folder, cache).features(image)
    small, _ = cache_of(tiny_folder, cache, max_pixels=56 * 56).features(image)
    assert (len(large), len(small)) == (16, 4)
    assert not torch.equal(cache_of(other, cache).features(image)[0], large)
    assert not torch.equal(cache_of(tiny_folder, cache).features(NoiseImage(7, 112, 112))[0], large)
    assert len(tower_runs) == 4


def test_a_damaged_file_is_computed_again(tiny_folder, tmp_path, tower_runs):
    first, _ = cache_of(tiny_folder, tmp_path).features(NoiseImage(8))
    (file,) = (f for f in tmp_path.rglob("*") if f.is_file())
    file.write_bytes(file.read_bytes()[:50])
    again, _ = cache_of(tiny_folder, tmp_path).features(NoiseImage(8))
    assert torch.equal(first, again)
    assert len(tower_runs) == 2
    cache_of(tiny_folder, tmp_path).features(NoiseImage(8))
    assert len(tower_runs) == 2


def test_without_a_folder_nothing_is_written(tiny_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cache_of(tiny_folder).features(NoiseImage(9))
    assert list(tmp_path.rglob("*")) == []


def test_memory_holds_the_latest_within_its_limit(tiny_folder, monkeypatch, tower_runs):
    vision = cache_of(tiny_folder)
    size = vision.features(NoiseImage(0))[0].nbytes
    monkeypatch.setattr("models.images.features.MEMORY_LIMIT", 2 * size)
    for seed in (0, 1, 0, 2):  # 1 is the least recently used when 2 comes
        vision.features(NoiseImage(seed))
    vision.features(NoiseImage(0))
    assert len(tower_runs) == 3
    vision.features(NoiseImage(1))
    assert len(tower_runs) == 4


def test_a_tower_that_trains_is_refused(tiny_folder):
    vision = cache_of(tiny_folder)
    next(vision.model.visual.parameters()).requires_grad_(True)
    with pytest.raises(UsageError, match=r"vision tower has trainable weights.*freeze"):
        vision.features(NoiseImage(10))


def test_an_image_that_is_all_edge_is_named(tiny_folder):
    with pytest.raises(UsageError, match="noise:11:2000x4"):
        cache_of(tiny_folder).features(NoiseImage(11, 2000, 4))


def test_a_cache_that_cannot_be_written_says_so(tiny_folder, tmp_path):
    (tmp_path / "vision").write_text("a file where the folder should be")
    with pytest.raises(UsageError, match="--cache none"):
        cache_of(tiny_folder, tmp_path).features(NoiseImage(12))


def test_an_image_that_does_not_fit_the_memory_is_named(tiny_folder, monkeypatch):
    vision = cache_of(tiny_folder)

    def full(*args):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(vision.model, "get_image_features", full)
    with pytest.raises(UsageError, match="image noise:1:56x56: out of memory in the vision tower"):
        vision.features(NoiseImage(1))


def test_pooled_features_are_the_mean_over_images_of_their_means(tiny_folder):
    vision = cache_of(tiny_folder)
    images = [NoiseImage(1, 84, 56), NoiseImage(2, 56, 56)]
    means = [sum(vision.features(image)[0]) / len(vision.features(image)[0]) for image in images]
    for some, mean in (([images[0]], means[0]), (images, (means[0] + means[1]) / 2)):
        pooled = torch.tensor(vision.pooled(some))
        torch.testing.assert_close(pooled, mean / mean.norm(), atol=1e-6, rtol=1e-5)
        assert pooled.norm().item() == pytest.approx(1)
