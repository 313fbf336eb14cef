"""DICOM and NIfTI files, written here by the packages that read them, opened as pictures."""

import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.images import ImageFile, UnusableImage
from data.load import LeftOut, take_usable
from data.rows import Skipped
from data.scans import MAX_PIXELS
from grpo.settings.errors import UsageError
from tests.data.scans import grey, write_dicom, write_nifti
from tests.data.test_example import example


@pytest.fixture
def dicom(tmp_path: Path) -> Any:
    """Writes a DICOM file, see tests/data/scans.py."""
    return partial(write_dicom, tmp_path)


@pytest.fixture
def nifti(tmp_path: Path) -> Any:
    """Writes a NIfTI file, see tests/data/scans.py."""
    return partial(write_nifti, tmp_path)


# Stored values of a CT; rescaled by 1 and -1024 they are -1000, -160, 40, 240, 3000 Hounsfield.
STORED = np.array([[[24, 864, 1064, 1264, 4024]]], dtype=np.uint16)
CT = {"RescaleSlope": "1", "RescaleIntercept": "-1024"}


@pytest.mark.parametrize(
    ("window", "shades"),
    [
        # PS3.3 C.11.2.1.2: ((x - (c - 0.5)) / (w - 1) + 0.5) * 255
        ({"WindowCenter": "40", "WindowWidth": "401"}, [0, 0, 128, 255, 255]),
        ({"WindowCenter": ["40", "600"], "WindowWidth": ["401", "10"]}, [0, 0, 128, 255, 255]),
        (
            {"WindowCenter": "40", "WindowWidth": "2", "VOILUTFunction": "LINEAR_EXACT"},
            [0, 0, 128, 255, 255],
        ),
        (
            {"WindowCenter": "40", "WindowWidth": "400", "VOILUTFunction": "SIGMOID"},
            [0, 30, 128, 225, 255],
        ),
        ({}, [0, 54, 66, 79, 255]),  # no window: from the least value to the greatest, nearly
    ],
)
def test_stored_values_go_through_rescale_and_the_first_window(
    dicom: Any, window: dict[str, Any], shades: list[int]
) -> None:
    assert np.abs(grey(dicom(STORED, **CT, **window)) - shades).max() <= 1


def test_where_high_means_dark_the_picture_is_inverted(dicom: Any) -> None:
    window = {**CT, "WindowCenter": "40", "WindowWidth": "401"}
    plain = grey(dicom(STORED, **window))
    assert (
        grey(dicom(STORED, **window, PhotometricInterpretation="MONOCHROME1")) == 255 - plain
    ).all()


def test_signed_values_are_read_as_signed(dicom: Any) -> None:
    pixels = np.array([[[-100, 0, 100]]], dtype=np.int16)
    assert grey(dicom(pixels, WindowCenter="0", WindowWidth="201")).tolist() == [[1, 128, 255]]


def test_of_many_frames_the_middle_one_is_shown(dicom: Any) -> None:
    pixels = np.arange(5, dtype=np.uint8).repeat(6).reshape(5, 2, 3) * 60
    shades = grey(dicom(pixels, WindowCenter="128", WindowWidth="256"))
    assert shades.tolist() == [[120] * 3] * 2


def test_an_enhanced_file_has_a_window_for_each_frame(dicom: Any) -> None:
    pydicom = pytest.importorskip("pydicom", reason="needs pydicom")
    Dataset, Sequence = pydicom.Dataset, pydicom.Sequence

    def group(center: str) -> Dataset:
        voi, rescale, whole = Dataset(), Dataset(), Dataset()
        voi.WindowCenter, voi.WindowWidth = center, "401"
        rescale.RescaleSlope, rescale.RescaleIntercept = "1", "-1024"
        whole.FrameVOILUTSequence = Sequence([voi])
        whole.PixelValueTransformationSequence = Sequence([rescale])
        return whole

    frames = np.concatenate([STORED, STORED, STORED])
    own = dicom(
        frames, PerFrameFunctionalGroupsSequence=[group(center) for center in ("0", "40", "9")]
    )
    assert np.abs(grey(own) - [0, 0, 128, 255, 255]).max() <= 1
    shared = dicom(frames, SharedFunctionalGroupsSequence=[group("40")])
    assert np.abs(grey(shared) - [0, 0, 128, 255, 255]).max() <= 1


def test_a_colour_file_keeps_its_colours(dicom: Any) -> None:
    pixels = np.array([[[[250, 10, 0], [0, 20, 200]]]], dtype=np.uint8)
    image = ImageFile(dicom(pixels)).open()
    assert [image.getpixel((x, 0)) for x in (0, 1)] == [(250, 10, 0), (0, 20, 200)]


def test_a_file_that_claims_too_many_pixels_is_not_decoded(dicom: Any) -> None:
    path = dicom(STORED, Rows=60_000, Columns=60_000)
    with pytest.raises(UnusableImage, match=rf"x\.dcm claims more than {MAX_PIXELS:,} pixels"):
        ImageFile(path).open()


HEAD = np.array([[0, 1], [2, 3], [4, 5]], dtype=np.float32)  # left-right by front-back


@pytest.mark.parametrize("name", ["x.nii", "x.nii.gz", "X.NII.GZ"])
def test_the_middle_slice_of_the_last_axis_is_shown_in_the_files_window(
    nifti: Any, name: str
) -> None:
    volume = np.stack([HEAD * 0, HEAD, HEAD * 7], axis=-1)
    shades = grey(nifti(volume, name=name, cal_min=0, cal_max=5))
    assert shades.tolist() == [[0, 102, 204], [51, 153, 255]]  # front up, patient's right on left


def test_of_a_series_the_middle_volume_is_shown(nifti: Any) -> None:
    series = np.zeros((3, 2, 3, 5), dtype=np.int16)
    series[:, :, 1, 2] = HEAD
    assert grey(nifti(series, cal_max=5)).tolist() == [[0, 102, 204], [51, 153, 255]]


@pytest.mark.parametrize(
    ("axes", "stored"),
    [("LPS", HEAD), ("RAS", HEAD[::-1, ::-1]), ("PLS", HEAD.T), ("ARS", HEAD.T[::-1, ::-1])],
)
def test_a_slice_hangs_the_same_way_however_it_is_stored(
    nifti: Any, axes: str, stored: np.ndarray
) -> None:
    shades = grey(nifti(stored[..., None].copy(), axes=axes, cal_max=5))
    assert shades.tolist() == [[0, 102, 204], [51, 153, 255]]


def test_in_a_slice_from_the_side_the_head_is_up_and_the_face_on_the_left(nifti: Any) -> None:
    shades = grey(nifti(HEAD[:, ::-1, None].copy(), axes="PSL", cal_max=5))  # back by head
    assert shades.tolist() == [[0, 102, 204], [51, 153, 255]]


def test_without_a_window_a_slice_is_stretched_but_for_its_outliers(nifti: Any) -> None:
    values = np.linspace(100, 200, 40 * 40, dtype=np.float32).reshape(40, 40, 1)
    values[0, 0], values[1, 1] = 1e9, np.nan
    shades = grey(nifti(values))
    assert (shades.min(), shades.max()) == (0, 255)
    assert 120 <= np.median(shades) <= 135
    assert (grey(nifti(np.full((4, 4, 1), 7, dtype=np.int16))) == 0).all()


def test_damaged_scans_are_unusable_in_one_line(tmp_path: Path) -> None:
    for name, package in {"x.dcm": "pydicom", "x.nii": "nibabel", "x.nii.gz": "nibabel"}.items():
        pytest.importorskip(package, reason=f"needs {package}")
        (tmp_path / name).write_bytes(b"not a scan" * 100)
        with pytest.raises(UnusableImage, match=rf"{name} cannot be read") as error:
            ImageFile(tmp_path / name).open()
        assert "\n" not in str(error.value)
        with pytest.raises(UnusableImage, match="is missing"):
            ImageFile(tmp_path / f"gone-{name}").open()


@pytest.mark.parametrize(
    ("name", "package", "module"),
    [
        ("a.dcm", "pydicom>=3", "pydicom.pixels"),
        ("a.nii", "nibabel", "nibabel"),
        ("A.nii.GZ", "nibabel", "nibabel"),
    ],
)
def test_without_its_package_a_scan_stops_the_program_and_is_not_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, package: str, module: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    (tmp_path / name).write_bytes(b"a scan" if "nii" in name else bytes(128) + b"DICM")
    question = replace(example(("yes", "no"), 0), images=(ImageFile(tmp_path / name),))
    with pytest.raises(UsageError, match=f'{name} needs {package}.*: pip install "{package}"'):
        take_usable([question], 1, LeftOut())


def test_a_damaged_picture_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"a scan")
    question = example(("yes", "no"), 0)
    bad = replace(question, images=(ImageFile(tmp_path / "a.png"),))
    skipped = LeftOut()
    assert take_usable([bad, question], 1, skipped) == [question]
    assert skipped == {Skipped("image cannot be read", str(tmp_path / "a.png"), "1")}
