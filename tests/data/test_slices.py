"""Volumes as slices: which are shown, in which order, and what the prompt says of them."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import train
from data.evaluation_questions import control_questions
from data.example import VQAExample, sliced
from data.images import ImageFile, UnusableImage, in_slices
from data.load import LeftOut, load
from data.training_questions import load_questions
from data.volumes import TISSUE, otsu
from grpo.settings.config import Config
from tests.data.scans import grey, write_dicom, write_nifti

AXIAL = [1, 0, 0, 0, 1, 0]
LEVELS = [int(12 * i) for i in range(20)]  # of 20 slices, in the order of the body


def volume(levels: list[int], rows: int = 60) -> np.ndarray:
    """(rows, rows, slices): a bright bar of every slice's own shade on black; slices 0 to 3 and 16
    to 19 have a small one."""
    made = np.zeros((rows, rows, len(levels)), np.int16)
    for i, level in enumerate(levels):
        width = rows // 2 if 4 <= i < 16 else rows // 10
        made[:width, :, i] = 200 + level
    return made


def shades(images: list[Any]) -> list[int]:
    """The brightest value of each picture; files have the window from 200 to 455."""
    return [int(np.asarray(image.open()).max()) for image in images]


def shown(path: Path, count: int) -> list[Any]:
    (images,) = in_slices([ImageFile(path)], count)
    return images


def series(folder: Path, order: list[int], **fields: Any) -> Path:
    """A folder with a file a slice; the names are in another order than the places. A field may be
    a function of the slice."""
    folder.mkdir()
    usual = {"WindowCenter": "328", "WindowWidth": "256", "SeriesInstanceUID": "1.2.3"}
    usual |= {"ImagePositionPatient": lambda i: [0, 0, 3 * i], "ImageOrientationPatient": AXIAL}
    for name, i in enumerate(order):
        header = {k: v(i) if callable(v) else v for k, v in (usual | fields).items()}
        write_dicom(folder, volume(LEVELS)[None, :, :, i], f"{name:03}.dcm", **header)
    return folder


SHUFFLED = np.random.default_rng(0).permutation(20).tolist()
HALF = [LEVELS[i] for i in (5, 8, 11, 14)]  # the middles of four parts of slices 4 to 15


TURNS = {"LPS": 1, "LPI": -1, "RAS": 1, "PSL": 1, "PSR": -1, "LSP": 1, "LSA": -1}


@pytest.mark.parametrize(("axes", "turn"), TURNS.items())
def test_slices_of_nifti_are_spread_over_tissue_in_the_order_of_the_body(
    tmp_path: Path, axes: str, turn: int
) -> None:
    file = write_nifti(tmp_path, volume(LEVELS)[..., ::turn], axes, cal_min=200, cal_max=455)
    assert shades(shown(file, 4)) == pytest.approx(HALF, abs=1)
    assert shades(shown(file, 1)) == pytest.approx([LEVELS[10 if turn == 1 else 9]], abs=1)
    assert len(shown(file, 16)) == 12  # no more hold tissue
    keys = [image.key for image in shown(file, 4)]
    assert len({*keys, ImageFile(file).key}) == 5


def test_a_slice_hangs_as_the_middle_one_does(tmp_path: Path) -> None:
    """The same pixels, whether a slice is asked for or is the middle."""
    made = np.random.default_rng(1).integers(0, 400, (30, 40, 9)).astype(np.int16)
    file = write_nifti(tmp_path, made, "PRS", sizes=(1, 2, 3))
    middle = next(image for image in shown(file, 9) if image.index == 4)
    assert (np.asarray(middle.open()) == np.asarray(ImageFile(file).open())).all()


def test_a_series_is_ordered_by_position_and_not_by_name(tmp_path: Path) -> None:
    pytest.importorskip("pydicom", reason="needs pydicom")
    folder = series(tmp_path / "ct", SHUFFLED)
    (folder / "notes.txt").write_text("no DICOM")
    outside = write_dicom(tmp_path, volume(LEVELS)[None, :, :, 0], "outside.dcm")
    (folder / "link.dcm").symlink_to(outside)
    assert shades(shown(folder, 4)) == pytest.approx(HALF, abs=1)
    mirrored = series(tmp_path / "mr", SHUFFLED, ImageOrientationPatient=[-1, 0, 0, 0, 1, 0])
    assert shades(shown(mirrored, 4)) == pytest.approx(HALF, abs=1)
    assert shades(shown(folder, 1)) == pytest.approx([LEVELS[10]], abs=1)
    assert grey(folder).max() == pytest.approx(LEVELS[10], abs=1)
    (listed,) = in_slices([ImageFile(file) for file in sorted(folder.glob("0*"))], 4)
    assert [image.key for image in listed] == [image.key for image in shown(folder, 4)]
    alone = in_slices([ImageFile(file) for file in sorted(folder.glob("00[0-2]*"))], 1)
    assert [len(part) for part in alone] == [1, 1, 1]  # a list stays one, unless slices are asked


def test_frames_with_places_of_their_own_are_a_volume(tmp_path: Path) -> None:
    pydicom = pytest.importorskip("pydicom", reason="needs pydicom")

    def group(i: int) -> Any:
        whole, place, turned = (pydicom.Dataset() for _ in range(3))
        place.ImagePositionPatient, turned.ImageOrientationPatient = [0, 0, -3 * i], AXIAL
        whole.PlanePositionSequence = pydicom.Sequence([place])
        whole.PlaneOrientationSequence = pydicom.Sequence([turned])
        return whole

    frames = volume(LEVELS[::-1]).transpose(2, 0, 1)  # the first is the head
    window = {"WindowCenter": "328", "WindowWidth": "256"}
    groups = {"PerFrameFunctionalGroupsSequence": [group(i) for i in range(20)]}
    file = write_dicom(tmp_path, frames, **window, **groups)
    assert shades(shown(file, 4)) == pytest.approx(HALF, abs=1)
    clip = write_dicom(tmp_path, frames, "clip.dcm", **window)  # frames in time
    assert shown(clip, 4) == [ImageFile(clip)]
    colours = write_dicom(tmp_path, np.zeros((3, 8, 8, 3), np.uint8), "rgb.dcm")
    assert shown(colours, 4) == [ImageFile(colours)]


FAULTS = {
    "two series": {"SeriesInstanceUID": lambda i: f"1.2.{i % 2}"},
    "one place": {"ImagePositionPatient": lambda i: [0, 0, i // 2]},
    "two directions": {"ImageOrientationPatient": lambda i: AXIAL if i < 4 else [1, 0, 0, 0, 0, 1]},
    "no place": {"ImagePositionPatient": None},
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_folder_that_is_no_volume_is_refused(tmp_path: Path, fault: str) -> None:
    pytest.importorskip("pydicom", reason="needs pydicom")
    folder = series(tmp_path / "ct", [*range(5)], **FAULTS[fault])
    assert shown(folder, 4) == [ImageFile(folder)]
    with pytest.raises(UnusableImage, match=r"grey DICOM series|several directions") as error:
        ImageFile(folder).open()
    assert "\n" not in str(error.value)


def test_of_time_the_middle_volume_is_shown_and_colours_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("nibabel", reason="needs nibabel")
    whole = np.full((60, 60, 20), 90, np.int16)
    moving = np.stack([whole, volume(LEVELS), whole * 9], axis=-1)
    file = write_nifti(tmp_path, moving, cal_min=200, cal_max=455)
    assert shades(shown(file, 4)) == pytest.approx(HALF, abs=1)
    colour = np.zeros((8, 8, 8), [(name, "u1") for name in "RGB"])
    file = write_nifti(tmp_path, colour, name="rgb.nii")
    assert shown(file, 4) == [ImageFile(file)]
    with pytest.raises(UnusableImage):
        ImageFile(file).open()


def test_the_threshold_is_the_one_of_the_largest_variance_between_its_classes() -> None:
    random = np.random.default_rng(2)
    values = np.concatenate([random.normal(10, 3, 5000), random.normal(60, 9, 700)])

    def between(threshold: float) -> float:
        low, high = values[values <= threshold], values[values > threshold]
        return len(low) * len(high) * (low.mean() - high.mean()) ** 2

    candidates = np.linspace(values.min(), values.max(), 257)[1:-1]
    best = max(candidates, key=between)
    assert between(otsu(values)) == pytest.approx(between(best), rel=1e-3)
    assert otsu(np.full(9, 5.0)) < 5.1
    assert 0.1 < TISSUE < 0.5


def question(*images: ImageFile) -> VQAExample:
    return VQAExample("1", images, "Where?", ("left", "right"), 0, "MRI", "side")


def test_the_prompt_says_the_place_of_each_slice(tmp_path: Path) -> None:
    pytest.importorskip("nibabel", reason="needs nibabel")
    file = ImageFile(write_nifti(tmp_path, volume(LEVELS)))
    picture = ImageFile(tmp_path / "a.png")
    asked = sliced(question(file, picture), 3)
    assert len(asked.images) == 4
    told = "The images are: slice 1 of 3, slice 2 of 3, slice 3 of 3, one image.\nWhere?\nA) left"
    assert asked.prompt.startswith(told)
    assert asked.question == "Where?"
    assert sliced(question(file), 1) == question(file)
    assert sliced(question(picture), 8) == question(picture)


def write_questions(folder: Path, count: int = 12) -> Path:
    """Questions about NIfTI volumes, each of its own."""
    rows = []
    for i in range(count):
        made = volume([(7 * i + level) % 250 for level in LEVELS], 56)
        write_nifti(folder, made, name=f"{i}.nii.gz")
        rows.append({"image": f"{i}.nii.gz", "question": "Is it bright?", "options": ["yes", "no"]})
        # All look alike: without splits of their own they would be near copies, all in one.
        rows[-1] |= {"answer": "AB"[i % 2], "modality": "CT", "id": str(i)}
        rows[-1] |= {"split": "train" if i < 8 else "test"}
    (folder / "q.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder / "q.jsonl"


def test_questions_of_a_data_set_are_about_slices(tmp_path: Path) -> None:
    pytest.importorskip("nibabel", reason="needs nibabel")
    spec = f"jsonl:{write_questions(tmp_path)}"
    take = partial(load, spec, "CT", split="train", size=3, seed=0)
    assert [len(example.images) for example in take(slices=8)] == [8] * 3
    assert [len(example.images) for example in take()] == [1] * 3
    assert [e.id for e in take(slices=8)] == [e.id for e in take()]


def test_questions_without_images_speak_of_no_slices(tmp_path: Path) -> None:
    pytest.importorskip("nibabel", reason="needs nibabel")
    sizes = {"train_size": 3, "val_size": 0, "eval_size": 2}
    config = Config(data=f"jsonl:{write_questions(tmp_path)}", modality="CT", slices=8, **sizes)
    config = replace(config, ood="none", blind=True)
    asked, _, tests, _ = load_questions(config, lambda *_: "")
    controls, *_ = control_questions(
        tests, None, config, config, LeftOut(), lambda seen: [[1.0]] * len(seen)
    )
    shown = controls["blank_image"]["CT"]
    assert all("slice 8 of 8" in example.prompt and example.images for example in shown)
    for example in [*asked, *controls["no_image"]["CT"]]:
        assert not example.images
        assert "slice" not in example.prompt


@pytest.mark.slow
def test_a_run_on_eight_slices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("nibabel", reason="needs nibabel")
    monkeypatch.chdir(tmp_path)
    flags = f"--data jsonl:{write_questions(tmp_path)} --modality CT --ood none --slices 8"
    flags += " --recipe phantom --train-size 4 --val-size 0 --eval-size 2 --steps 1 --group-size 2"
    flags += " --prompts-per-step 2 --max-completion-length 4 --device cpu --cache none --out run"
    train.main([*flags.split(), "--dry-run"])
    assert "(32 of images)" in capsys.readouterr().out  # 8 of 2 x 2 tokens
    train.main(flags.split())
    (row, *_) = map(
        json.loads, Path("run/predictions/base-CT-reason.jsonl").read_text().split("\n")[:1]
    )
    assert len({*row["image"]}) == 8
