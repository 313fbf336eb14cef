"""Tags of TIFF that change what a value means, and the law by which numbers become shades."""

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data.images import ImageFile
from tests.data.scans import grey, write_dicom
from tests.hostile.every import try_every
from tests.hostile.pictures import refused

RAMP = np.tile(np.linspace(0, 1, 41), (21, 1))  # 21 rows and 41 columns


def tiff(file: Path, planes: list[np.ndarray], order: str = "<", **tags: list[int]) -> Path:
    """A TIFF file of planes (rows, columns[, samples]), with tags by "tNUMBER".

    Of the values of Compression, 1 (none) and 8 (deflate) are known.
    """
    rows, columns = planes[0].shape[:2]
    samples = len(planes) * (planes[0].shape[2] if planes[0].ndim == 3 else 1)
    contents = [plane.astype(plane.dtype.newbyteorder(order)).tobytes() for plane in planes]
    if tags.get("t259") == [8]:
        contents = list(map(zlib.compress, contents))
    found = {256: [columns], 257: [rows], 258: [planes[0].dtype.itemsize * 8] * samples}
    found |= {259: [1], 262: [2 if samples == 3 else 1], 273: [0] * len(planes), 277: [samples]}
    found |= {278: [rows], 279: [len(content) for content in contents]}
    found |= {284: [2 if len(planes) > 1 else 1], 339: [1] * samples}
    found |= {int(name[1:]): values for name, values in tags.items()}
    end = 8 + 2 + 12 * len(found) + 4
    start = end + sum(4 * len(values) for values in found.values())
    found[273] = [start + sum(map(len, contents[:i])) for i in range(len(contents))]
    directory, beyond = b"", b""
    for tag, values in sorted(found.items()):
        kind, letter = (4, "I") if tag in (273, 279) else (3, "H")
        content = struct.pack(f"{order}{len(values)}{letter}", *values)
        if len(content) > 4:
            content, beyond = struct.pack(f"{order}I", end + len(beyond)), beyond + content
        directory += struct.pack(f"{order}HHI", tag, kind, len(values)) + content.ljust(4, b"\0")
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}IH", 8, len(found))
    whole = head + directory + bytes(4) + beyond
    file.write_bytes(whole.ljust(start, b"\0") + b"".join(contents))
    return file


def across(path: Path) -> list[int]:
    """The shades on the left, in the middle and on the right of the middle row."""
    row = grey(path)[10]
    return row[[0, 20, 40]].tolist()


def numbers(kind: str, low: float, high: float) -> list[np.ndarray]:
    """One plane from `low` to `high`."""
    return [(RAMP * (high - low) + low).astype(kind)]


SHOWN: dict[str, tuple[list[np.ndarray], dict[str, Any], list[int]]] = {
    "12 of 16 bits, 0 is white": (numbers("u2", 0, 4095), {"t262": [0]}, [255, 128, 0]),
    "floating point, 0 is white": (
        numbers("f4", 0, 1),
        {"t262": [0], "t339": [3]},
        [255, 128, 0],
    ),
    "8 bits, 0 is white": (numbers("u1", 0, 255), {"t262": [0]}, [255, 128, 0]),
    "8 bits, signed": (numbers("i1", -100, 100), {"t339": [2]}, [0, 128, 255]),
    "16 bits, signed": (numbers("i2", -2000, 2000), {"t339": [2]}, [0, 128, 255]),
    "32 bits": (numbers("u4", 0, 2**32 - 1), {}, [0, 128, 255]),
    "32 bits, signed": (numbers("i4", -(2**31), 2**31 - 1), {"t339": [2]}, [0, 128, 255]),
    "16 bits": (numbers("u2", 0, 4095), {}, [0, 128, 255]),
    "16 bits, big-endian": (numbers("u2", 0, 4095), {"order": ">"}, [0, 128, 255]),
    "16 bits, signed, big-endian": (
        numbers("i2", -2000, 2000),
        {"t339": [2], "order": ">"},
        [0, 128, 255],
    ),
    "a palette of 8 bits": (
        numbers("u1", 0, 255),
        {"t262": [3], "t320": list(range(256)) * 3},
        [0, 128, 255],
    ),
    "a palette": (
        numbers("u1", 0, 255),
        {"t262": [3], "t320": list(range(0, 65_536, 257)) * 3},
        [0, 128, 255],
    ),
    "a grey with a palette that nothing uses": (
        numbers("u1", 0, 255),
        {"t320": [0] * 768},
        [0, 128, 255],
    ),
    "planes of 8 bits": (numbers("u1", 0, 255) * 3, {}, [0, 128, 255]),
}
REFUSED: dict[str, tuple[list[np.ndarray], dict[str, Any]]] = {
    "planes of 16 bits": (numbers("u2", 0, 65_535) * 3, {}),
    "16 bits, 0 is white, big-endian": (numbers("u2", 0, 9), {"t262": [0], "order": ">"}),
    "16 bits, signed, 0 is white": (numbers("i2", -9, 9), {"t262": [0], "t339": [2]}),
    "32 bits, 0 is white": (numbers("u4", 0, 9), {"t262": [0]}),
    "floating point, big-endian, compressed": (
        numbers("f4", 0, 1),
        {"t339": [3], "t259": [8], "order": ">"},
    ),
    "16 bits, signed, big-endian, compressed": (
        numbers("i2", -9, 9),
        {"t339": [2], "t259": [8], "order": ">"},
    ),
    "64 bits": (numbers("f8", 0, 1), {"t339": [3]}),
    "half precision": (numbers("f2", 0, 1), {"t339": [3]}),
    "complex": (numbers("c8", 0, 1), {"t339": [6]}),
    "numbers of no kind": (numbers("u2", 0, 9), {"t339": [4]}),
    "a mask": (numbers("u1", 0, 255), {"t262": [4]}),
    "signed colours": ([np.zeros((21, 41, 3), np.int8)], {"t339": [2] * 3}),
    "floating-point colours": ([np.zeros((21, 41, 3), np.float32)], {"t339": [3] * 3}),
}


def test_numbers_are_shown_as_the_tags_mean_them(tmp_path: Path) -> None:
    def is_shown(name: str) -> None:
        planes, tags, expected = SHOWN[name]
        found = across(tiff(tmp_path / "a.tif", planes, **tags))
        assert np.abs(np.subtract(found, expected)).max() <= 1, found

    try_every(is_shown, SHOWN)


def test_what_pillow_does_not_read_is_refused(tmp_path: Path) -> None:
    def is_refused(name: str) -> None:
        planes, tags = REFUSED[name]
        refused(tiff(tmp_path / "a.tif", planes, **tags), "cannot be read")

    try_every(is_refused, REFUSED)


@pytest.mark.exhaustive
def test_compression_changes_no_shade(tmp_path: Path) -> None:
    def is_same(name: str) -> None:
        planes, tags, _ = SHOWN[name]
        plain = tiff(tmp_path / "a.tif", planes, **tags)
        compressed = tiff(tmp_path / "b.tif", planes, **tags, t259=[8])
        if tags.get("order") == ">" and "t339" in tags:
            refused(compressed, "big-endian")
        else:
            assert across(compressed) == across(plain)

    try_every(is_same, SHOWN)


def saturated() -> np.ndarray:
    """12 bits in 16, with one saturated pixel."""
    values = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64)
    values[0, 0] = 65_535
    return values


def test_one_saturated_pixel_darkens_no_picture_in_any_format(tmp_path: Path) -> None:
    """One law of stretching for PNG, JPEG 2000, TIFF and DICOM."""
    values = saturated()
    Image.fromarray(values).save(tmp_path / "a.png")
    expected = grey(tmp_path / "a.png")
    assert np.percentile(expected, 99) > 250
    Image.fromarray(values.astype(np.float32)).save(tmp_path / "float.tif")
    for name in ("a.tif", "a.jp2"):
        Image.fromarray(values).save(tmp_path / name)
    for name in ("a.tif", "a.jp2", "float.tif"):
        assert (grey(tmp_path / name) == expected).all(), name
    assert (grey(write_dicom(tmp_path, values[None])) == expected).all()


def test_a_few_bright_pixels_are_seen(tmp_path: Path) -> None:
    values = np.zeros((100, 100), np.uint16)
    values[50, 50] = 4000  # fewer than 0.5 %
    Image.fromarray(values).save(tmp_path / "a.png")
    assert np.argwhere(grey(tmp_path / "a.png") == 255).tolist() == [[50, 50]]


def test_8_bits_are_shown_as_they_are(tmp_path: Path) -> None:
    values = np.full((21, 41), 77, np.uint8)
    values[0, 0] = 99
    for name in ("a.png", "a.tif", "a.bmp", "a.gif"):
        Image.fromarray(values).save(tmp_path / name)
        assert (np.asarray(ImageFile(tmp_path / name).open()) == values[..., None]).all(), name
