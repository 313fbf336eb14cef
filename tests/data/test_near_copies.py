"""Near copies: planted ones are found, equal shades alone make none, splits keep them together.

The pairs among the real MRI images are listed in near_copies_of_mri.json.
"""

import hashlib
import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from data import near_copies
from data.audit.audit import Options, audit
from data.images import ImageFile
from data.load import splits_of
from data.near_copies import agreement, details, kept_near_copies, thumbnail
from data.training_questions import load_questions
from grpo.settings.config import Config

ROOT = Path(os.environ.get("MEDVQA_DATA", "")) / "omnimedvqa"
LIST = Path(__file__).with_name("near_copies_of_mri.json")
needs_images = pytest.mark.skipif(
    not os.environ.get("MEDVQA_DATA") or not ROOT.is_dir(),
    reason="needs real images: set MEDVQA_DATA to their folder",
)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/medvqa-grpo/near_copies"


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


def cropped(image: Image.Image, share: float) -> Image.Image:
    width, height = image.size
    x, y = round(width * share), round(height * share)
    return image.crop((x, y, width - x, height - y))


KINDS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "brightness": lambda image: ImageEnhance.Brightness(image).enhance(1.3),
    "JPEG": lambda image: jpeg(image, 30),
    "resize": lambda image: image.resize((image.width * 3 // 5, image.height * 3 // 5)),
    "5 % crop": lambda image: cropped(image, 0.05),
}


def planted(folder: Path, originals: list[Image.Image]) -> dict[str, list[str]]:
    """Originals 0, 1, .. and one copy of each, as PNG: 20 of each kind. Kind -> keys of copies."""
    folder.mkdir(exist_ok=True)
    found: dict[str, list[str]] = {kind: [] for kind in KINDS}
    for i, image in enumerate(originals):
        kind = list(KINDS)[i % len(KINDS)]
        image.save(folder / f"{i:03d}.png")
        KINDS[kind](image).save(folder / f"{i:03d}-copy.png")
        found[kind].append(f"{i:03d}")
    return found


def recall(folder: Path, kinds: dict[str, list[str]]) -> tuple[dict[str, int], int]:
    """(kind -> how many of its copies are found, pairs found that were not planted)."""
    files = sorted(folder.glob("*.png"))
    pairs = near_copies.near_copies(map(ImageFile, files))
    names = {frozenset(Path(key).stem.removesuffix("-copy") for key in pair) for pair in pairs}
    found = {kind: sum({name} in names for name in part) for kind, part in kinds.items()}
    return found, sum(len(pair) == 2 for pair in names)


def textures(count: int) -> list[Image.Image]:
    """Pictures of blotches, no two alike."""
    random = np.random.default_rng(0)
    small = random.integers(0, 200, (count, 9, 9), dtype=np.uint8)
    return [Image.fromarray(levels).resize((160, 160)).convert("RGB") for levels in small]


def test_planted_copies_are_found_and_nothing_else(tmp_path: Path) -> None:
    found, others = recall(tmp_path, planted(tmp_path, textures(80)))
    assert found == dict.fromkeys(KINDS, 20)
    assert others == 0


@needs_images
@pytest.mark.slow
def test_planted_copies_of_real_images_are_found(tmp_path: Path) -> None:
    """20 of each kind; the originals are 80 of the 800 MRI images of which none is in the list."""
    listed = {name for pair in json.loads(LIST.read_text())["pairs"] for name in pair}
    files = [file for file in mri() if name_of(file) not in listed]
    kinds = planted(tmp_path, [Image.open(file).convert("RGB") for file in files[::9][:80]])
    found, others = recall(tmp_path, kinds)
    print(found)
    assert min(found.values()) >= 19
    assert others == 0


def mri() -> list[Path]:
    return sorted((ROOT / "Images/Brain Tumor MRI (derived)").rglob("*.jpg"))


def name_of(file: Path) -> str:
    """Its class and name, and the hash of its bytes."""
    digest = hashlib.sha256(file.read_bytes()).hexdigest()[:16]
    return f"{file.parent.name}/{file.name} {digest}"


@needs_images
@pytest.mark.slow
def test_the_near_copies_among_800_real_mri_images_are_those_listed() -> None:
    files = mri()
    found = near_copies.near_copies(map(ImageFile, files))
    pairs = [sorted(name_of(Path(key)) for key in pair) for pair in found]
    known = json.loads(LIST.read_text())["pairs"]
    assert len(files) == 800
    # Decoders differ by a grey level: a pair at the threshold may change sides.
    assert len({*map(tuple, pairs)} ^ {*map(tuple, known)}) <= 2


def pair_of(first: Image.Image, second: Image.Image, tmp_path: Path) -> list[tuple[str, str]]:
    first.save(tmp_path / "a.png")
    second.save(tmp_path / "b.png")
    return near_copies.near_copies(ImageFile(tmp_path / f"{name}.png") for name in "ab")


def test_a_shift_is_aligned_and_without_alignment_it_would_be_missed(tmp_path: Path) -> None:
    (image,) = textures(1)
    assert pair_of(image, image.crop((0, 0, 152, 160)), tmp_path)
    a, b = (details(thumbnail(ImageFile(tmp_path / f"{name}.png"))) for name in "ab")
    assert np.corrcoef(a.ravel(), b.ravel())[0, 1] < 0.9
    assert agreement(a, b, ((0, 0), (0, 0.04))) > 0.99


def test_images_of_equal_shades_are_near_by_hash_and_not_confirmed(tmp_path: Path) -> None:
    """Two pictures alike in their wide shades, with other details."""
    random = np.random.default_rng(0)
    wide = Image.fromarray(random.integers(0, 200, (6, 6), np.uint8))
    shades = np.asarray(wide.resize((160, 160)), float)
    images = []
    for _ in range(2):
        fine = Image.fromarray(random.integers(0, 40, (32, 32), np.uint8)).resize((160, 160))
        images.append(Image.fromarray((shades + fine).clip(0, 255).astype(np.uint8)))
    assert pair_of(*images, tmp_path) == []
    thumbs = {name: thumbnail(ImageFile(tmp_path / f"{name}.png")) for name in "ab"}
    assert list(near_copies.proposed(thumbs))


def test_blank_and_unreadable_images_are_no_copies(tmp_path: Path) -> None:
    grey = Image.new("L", (40, 40), 90)
    assert pair_of(grey, Image.new("L", (40, 40), 91), tmp_path) == []
    (tmp_path / "a.png").write_bytes(b"no picture")
    assert near_copies.near_copies([ImageFile(tmp_path / "a.png")]) == []


def test_pairs_are_kept_until_a_file_changes(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = textures(2)
    planted(tmp_path / "x", [first])
    images = [ImageFile(file) for file in sorted((tmp_path / "x").iterdir())]
    pairs = kept_near_copies(images)
    assert len(pairs) == 1
    (kept,) = cache.iterdir()
    kept.write_text("[]")  # so a pair can only come from comparing again
    assert kept_near_copies(images) == []
    second.save(images[0].path)
    os.utime(images[0].path, (1, 1))
    assert kept_near_copies(images) == []
    first.save(images[0].path)
    os.utime(images[0].path, (2, 2))
    assert kept_near_copies(images) == pairs
    for folder in ("/dev/null", "~nobody-of-this-name/x"):  # no cache can be written there
        monkeypatch.setenv("XDG_CACHE_HOME", folder)
        assert kept_near_copies(images) == pairs


def test_images_are_compared_again_if_their_file_of_pairs_is_damaged(
    tmp_path: Path, cache: Path
) -> None:
    planted(tmp_path / "x", textures(1))
    images = [ImageFile(file) for file in (tmp_path / "x").iterdir()]
    pairs = kept_near_copies(images)
    assert len(pairs) == 1
    (kept,) = cache.iterdir()
    for content in (b"", b'[["a', b"\xff"):
        kept.write_bytes(content)
        assert kept_near_copies(images) == pairs


def test_too_many_images_are_not_compared_and_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    planted(tmp_path / "x", textures(1))
    images = [ImageFile(file) for file in (tmp_path / "x").iterdir()]
    monkeypatch.setattr(near_copies, "MOST_IMAGES", 1)
    assert kept_near_copies(images) == []
    assert capsys.readouterr().err == "2 images: only data.audit looks for near copies\n"


def own(folder: Path, split: dict[str, str] | None = None) -> str:
    """A jsonl file with a question about each image of a folder."""
    rows = []
    for file in sorted(folder.glob("*.png")):
        row: dict[str, Any] = {"image": file.name, "question": "Which?", "options": ["x", "y"]}
        row |= {"answer": "x", "modality": "MRI", "id": file.stem}
        rows.append(row | ({"split": split[file.stem[3:]]} if split else {}))
    (folder / "own.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return f"jsonl:{folder}/own.jsonl"


def test_near_copies_stay_in_one_split_of_ours(tmp_path: Path) -> None:
    planted(tmp_path, textures(20))
    spec = own(tmp_path)
    splits = splits_of(spec, 3)
    names = [f"{i:03d}" for i in range(20)]
    assert [splits[name] for name in names] == [splits[f"{name}-copy"] for name in names]
    assert set(splits.values()) == {"train", "val", "test"}
    figures = audit(spec, Options(seed=3))
    assert figures["leaks"]["near"] == []
    assert figures["copies"]["near"] == 20


def test_near_copies_across_the_splits_of_the_data_are_listed_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    planted(tmp_path, textures(20))
    spec = own(tmp_path, {"": "train", "-copy": "test"})
    assert sorted(splits_of(spec, 0).values()).count("test") == 20
    near = audit(spec, Options())["leaks"]["near"]
    listed = [[Path(key).name for key in pair] for pair in near]
    assert listed == [[f"{i:03d}-copy.png", f"{i:03d}.png"] for i in range(20)]
    flags = ["--data", spec, "--modality", "MRI", "--ood", "none", "--eval-size", "12"]
    capsys.readouterr()
    examples, _, tests, _ = load_questions(Config.from_flags(flags), lambda *_: "")
    both = {example.id for example in examples} & {e.id.removesuffix("-copy") for e in tests["MRI"]}
    assert 5 < len(both) <= 12  # of the training images some validate
    line = f"train.py: {len(both)} test images are near copies of training images (see data.audit)"
    assert line in capsys.readouterr().err.splitlines()
