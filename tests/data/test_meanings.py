"""Header fields of DICOM and NIfTI that change what a value means: followed, or refused."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data.images import ImageFile, UnusableImage
from tests.data.scans import grey, write_dicom, write_nifti
from tests.hostile.every import try_every

RAMP = np.tile(np.linspace(0, 1, 41), (21, 1))[None]  # one frame of 21 rows and 41 columns
SHADES = np.array([0, 128, 255])  # of the left, the middle and the right of RAMP
CT12 = (RAMP * 4095).astype(np.uint16)
TWELVE = {"BitsStored": 12}


def across(shades: np.ndarray) -> np.ndarray:
    """The left, middle and right of the middle row."""
    row = shades[len(shades) // 2]
    return row[[0, len(row) // 2, -1]]


def check_shown(path: Path, expected: np.ndarray = SHADES) -> None:
    assert np.abs(across(grey(path)) - expected).max() <= 1


def check_refused(path: Path, says: str) -> None:
    with pytest.raises(UnusableImage, match=says) as error:
        ImageFile(path).open()
    assert "\n" not in str(error.value)


def test_a_file_is_known_by_what_is_in_it(tmp_path: Path) -> None:
    scan = write_dicom(tmp_path, CT12, **TWELVE)
    Image.fromarray((RAMP[0] * 255).astype(np.uint8)).save(tmp_path / "picture.png")

    def is_shown(name: str) -> None:
        shutil.copy(tmp_path / "picture.png" if name == "photo.dcm" else scan, tmp_path / name)
        check_shown(tmp_path / name)

    try_every(is_shown, ["IM0001", "a.dicom", "a.ima", "a.DCM", "a.png", "a.nii", "photo.dcm"])


def padded(value: int, dtype: type = np.int16) -> np.ndarray:
    """RAMP from 0 to 200 between margins of that value."""
    pixels = (RAMP * 200).astype(dtype)
    return np.pad(pixels, ((0, 0), (0, 0), (8, 8)), constant_values=np.array(value).astype(dtype))


TWO_VALUES = padded(-2000)
TWO_VALUES[:, :, :4] = -1500
OUTSIDE = padded(0x8FFF, np.uint16)
LATE = {"WindowCenter": "100.5", "WindowWidth": "201"}
PADDINGS: list[tuple[np.ndarray, dict[str, Any]]] = [
    (padded(-2000), {"PixelPaddingValue": -2000}),
    (padded(63_536, np.uint16), {"PixelPaddingValue": 63_536}),
    (padded(-2000), {"PixelPaddingValue": -2000, "PhotometricInterpretation": "MONOCHROME1"}),
    (padded(-2000), {"PixelPaddingValue": -2000, "RescaleSlope": "2", "RescaleIntercept": "-9"}),
    (padded(30_000), {"PixelPaddingValue": 30_000, **LATE}),
    (TWO_VALUES, {"PixelPaddingValue": -2000, "PixelPaddingRangeLimit": -1025}),
    (TWO_VALUES, {"PixelPaddingValue": -1025, "PixelPaddingRangeLimit": -2000}),
    (OUTSIDE, {"PixelPaddingValue": 0x8FFF, "BitsStored": 12}),  # pydicom makes it 0xFFF
]


def test_padding_is_black_and_counts_in_no_stretch(tmp_path: Path) -> None:
    def is_right(case: int) -> None:
        pixels, fields = PADDINGS[case]
        shades = grey(write_dicom(tmp_path, pixels, **fields))
        assert shades[:, :8].max() == shades[:, -8:].max() == 0
        inverse = fields.get("PhotometricInterpretation") == "MONOCHROME1"
        expected = SHADES[::-1] if inverse else SHADES
        assert np.abs(across(shades[:, 8:-8]) - expected).max() <= 1

    try_every(is_right, range(len(PADDINGS)))


@pytest.mark.exhaustive
def test_padding_may_be_written_with_the_other_sign_or_as_floating_point(tmp_path: Path) -> None:
    pydicom = pytest.importorskip("pydicom", reason="needs pydicom")
    file = pydicom.dcmread(write_dicom(tmp_path, padded(-2000), PixelPaddingValue=-2000))
    file.add_new("PixelPaddingValue", "US", 63_536)
    file.save_as(tmp_path / "unsigned.dcm")
    assert (grey(tmp_path / "unsigned.dcm")[:, 8:-8] == grey(tmp_path / "x.dcm")[:, 8:-8]).all()
    file["PixelPaddingValue"].value = None  # no value: no padding
    file.save_as(tmp_path / "none.dcm")
    assert grey(tmp_path / "none.dcm")[:, 8:-8].min() > 200
    pixels = padded(-2000).astype(np.float32)
    fields = {"FloatPixelData": pixels.tobytes(), "FloatPixelPaddingValue": -2000.0}
    shades = grey(write_dicom(tmp_path, pixels, **fields))
    assert np.abs(across(shades[:, 8:-8]) - SHADES).max() <= 1


def test_colours_reach_white_at_the_bits_that_are_stored(tmp_path: Path) -> None:
    colours = np.stack([CT12] * 3, axis=-1)
    check_shown(write_dicom(tmp_path, colours, **TWELVE))
    check_shown(write_dicom(tmp_path, colours << 4))


def table(bits: int, entries: np.ndarray) -> Any:
    """A VOI table from 0 on, as one item of a sequence."""
    pydicom = pytest.importorskip("pydicom", reason="needs pydicom")
    item = pydicom.Dataset()
    item.LUTDescriptor = [len(entries), 0, bits]
    item.add_new("LUTData", "US", entries.tolist())
    return [item]


PLACES = np.arange(4096)
BITS: dict[str, tuple[np.ndarray, dict[str, Any]]] = {
    "an overlay in the unused bits": (CT12 | 0x8000, TWELVE),
    "no sign in the unused bits": ((CT12 ^ 0x800).astype(np.int16), TWELVE),
    "rescale": (CT12, {"RescaleSlope": "0.5", "RescaleIntercept": "-1024"}),
    "a table of 8 bits": (CT12, {"VOILUTSequence": lambda: table(8, PLACES // 16)}),
    "a table of 12 bits": (CT12, {"VOILUTSequence": lambda: table(12, PLACES)}),
    "a window that is no width": (CT12, {"WindowCenter": "2000", "WindowWidth": "-400"}),
    "a window below 1": (CT12, {"WindowCenter": "2000", "WindowWidth": "0.5"}),
    "a window without a center": (CT12, {"WindowWidth": "400"}),
    "a window function without a name": (
        CT12,
        {"WindowCenter": "2048", "WindowWidth": "4096", "VOILUTFunction": ""},
    ),
    "identity": (CT12, {"PresentationLUTShape": "IDENTITY"}),
}


@pytest.mark.exhaustive
def test_padding_is_black_whatever_the_table_makes_of_it(tmp_path: Path) -> None:
    white_first = {"VOILUTSequence": table(16, np.linspace(65_535, 0, 201).astype(int))}
    shades = grey(write_dicom(tmp_path, padded(-2000), PixelPaddingValue=-2000, **white_first))
    assert shades[:, :8].max() == 0
    assert np.abs(across(shades[:, 8:-8]) - SHADES[::-1]).max() <= 1


def test_values_are_shown_as_the_header_means_them(tmp_path: Path) -> None:
    def is_shown(name: str) -> None:
        pixels, fields = BITS[name]
        made = {field: value() if callable(value) else value for field, value in fields.items()}
        check_shown(write_dicom(tmp_path, pixels, **made))

    try_every(is_shown, BITS)


@pytest.mark.exhaustive
def test_a_picture_is_inverted_once(tmp_path: Path) -> None:
    inverse = {"PresentationLUTShape": "INVERSE"}
    for fields in (inverse, {**inverse, "PhotometricInterpretation": "MONOCHROME1"}):
        check_shown(write_dicom(tmp_path, CT12, **fields), SHADES[::-1])
    slope = {"RescaleSlope": "-1", "RescaleIntercept": "0"}
    check_shown(write_dicom(tmp_path, CT12, **slope), SHADES[::-1])


UNKNOWN = ("HSV", "ARGB", "CMYK", "YBR_PARTIAL_422", "YBR_PARTIAL_420", "NONSENSE")


def test_what_is_not_known_of_values_is_refused(tmp_path: Path) -> None:
    check_refused(write_dicom(tmp_path, CT12 << 4, BitsStored=12, HighBit=15), "HighBit 15")
    colours = np.stack([(RAMP * 255).astype(np.uint8)] * 3, axis=-1)

    def is_refused(meaning: str) -> None:
        check_refused(write_dicom(tmp_path, colours, PhotometricInterpretation=meaning), meaning)

    try_every(is_refused, UNKNOWN)


@pytest.mark.exhaustive
def test_colours_of_every_kind_are_the_same_colours(tmp_path: Path) -> None:
    pixels = pytest.importorskip("pydicom.pixels", reason="needs pydicom")
    colours = np.stack([(RAMP * most).astype(np.uint8) for most in (255, 127, 0)], axis=-1)
    planes = np.moveaxis(colours, -1, 1).reshape(colours.shape)
    luminance = pixels.convert_color_space(colours, "RGB", "YBR_FULL")
    expected = np.asarray(ImageFile(write_dicom(tmp_path, colours)).open()).astype(int)
    for found in (
        write_dicom(tmp_path, planes, "planes.dcm", PlanarConfiguration=1),
        write_dicom(tmp_path, luminance, "ybr.dcm", PhotometricInterpretation="YBR_FULL"),
    ):
        assert np.abs(np.asarray(ImageFile(found).open()) - expected).max() <= 1


@pytest.mark.exhaustive
def test_a_palette_is_followed_or_refused(tmp_path: Path) -> None:
    indices = (RAMP * 255).astype(np.uint8)

    def palette(bits: int, entries: np.ndarray) -> dict[str, Any]:
        fields: dict[str, Any] = {"PhotometricInterpretation": "PALETTE COLOR"}
        for name in ("Red", "Green", "Blue"):
            fields[f"{name}PaletteColorLookupTableDescriptor"] = [len(entries), 0, bits]
            fields[f"{name}PaletteColorLookupTableData"] = entries.tobytes()
        return fields

    ramp = np.arange(256)
    check_shown(write_dicom(tmp_path, indices, **palette(8, ramp.astype(np.uint8))))
    check_shown(write_dicom(tmp_path, indices, **palette(16, (ramp * 257).astype(np.uint16))))
    check_shown(write_dicom(tmp_path, indices, **palette(16, ramp.astype(np.uint16))))
    long = palette(8, (PLACES // 16).astype(np.uint8))
    check_refused(write_dicom(tmp_path, CT12, **long), "modulo 256")


SPACINGS: list[tuple[dict[str, Any], tuple[int, int]]] = [
    ({"PixelSpacing": ["2", "1"]}, (41, 42)),
    ({"PixelSpacing": ["1", "2"]}, (82, 21)),
    ({"ImagerPixelSpacing": ["0.2", "0.1"]}, (41, 42)),
    ({"PixelAspectRatio": ["1", "3"]}, (123, 21)),
    ({"PixelSpacing": ["0.493", "0.5"]}, (41, 21)),  # nearly square
    ({"PixelSpacing": ["0", "0"]}, (41, 21)),
    ({"PixelSpacing": "0.5"}, (41, 21)),
]

VOXELS = [("LPS", (1, 3, 9), (21, 123)), ("PLS", (3, 1, 9), (41, 63)), ("LIP", (2, 2, 9), (21, 41))]


def test_pixels_and_voxels_become_square(tmp_path: Path) -> None:
    def is_square(case: int) -> None:
        fields, size = SPACINGS[case]
        path = write_dicom(tmp_path, CT12, **fields)
        assert ImageFile(path).open().size == size
        check_shown(path)

    try_every(is_square, range(len(SPACINGS)))
    volume = np.moveaxis(RAMP, 0, -1).copy()  # 21 along the first axis, 41 along the second
    for axes, sizes, size in VOXELS:
        path = write_nifti(tmp_path, volume, axes, sizes=sizes)
        assert ImageFile(path).open().size == size


def test_of_complex_voxels_the_magnitude_is_shown(tmp_path: Path) -> None:
    magnitude = np.linspace(0, 9, 41)[None, :, None].repeat(21, axis=0)
    turning = (magnitude * np.exp(1j * np.arange(41))[None, :, None]).astype(np.complex64)
    expected = grey(write_nifti(tmp_path, magnitude.astype(np.float32)))
    assert np.abs(grey(write_nifti(tmp_path, turning)) - expected).max() <= 1


def test_a_mask_of_few_voxels_is_seen(tmp_path: Path) -> None:
    mask = np.zeros((50, 50, 1), np.uint8)
    mask[20:22, 24:26] = 3  # fewer than 0.5 %
    assert np.count_nonzero(grey(write_nifti(tmp_path, mask)) == 255) == 4
