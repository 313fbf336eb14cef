"""Files that are no images, or more than an image: each is refused in one line."""

import io
import os
import struct
import zlib
from pathlib import Path

import pytest
from PIL import Image

from data.images import ImageFile, UnusableImage
from data.showing import as_png
from grpo.settings.errors import one_line
from tests.hostile.every import try_every
from tests.hostile.pictures import (
    FORMS,
    SIZE,
    encoded,
    noise,
    opened,
    png_header,
    refused,
    with_chunk,
)

PNG = FORMS["png"]
NOT_AN_IMAGE = {
    "no bytes": b"",
    "one byte": b"\x89",
    "text": b"this is no image",
    "HTML": b"<!doctype html><img src=x>",
    "JSON": b'{"image": 1}',
    "zeros": bytes(10_000),
    "ones": b"\xff" * 10_000,
    "PDF": b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n",
    "zip": b"PK\x03\x04" + bytes(100),
    "ELF": b"\x7fELF" + bytes(100),
    "pickle": b"\x80\x04c__builtin__\neval\n.",
    "numpy": b"\x93NUMPY\x01\x00v\x00{'descr': '|O', 'fortran_order': False, 'shape': (1,), }",
    "git-lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
    "SVG": b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>',
    "PNG signature alone": PNG[:8],
    "PNG without pixels": PNG[:33] + PNG[-12:],
    "PNG of bad checksum": PNG[:29] + b"\0\0\0\0" + PNG[33:],
    "PNG of width 0": png_header(0, 10),
    "PNG of few pixels": png_header(500, 500),
    "JPEG of two markers": b"\xff\xd8\xff\xd9",
    "GIF of no frame": b"GIF89a\x01\x00\x01\x00\x00\x00\x00;",
    "TIFF whose directory is itself": b"II*\x00\x08\x00\x00\x00\x00\x00\x08\x00\x00\x00",
    "BMP of negative size": b"BM" + struct.pack("<IHHIIiiHH", 54, 0, 0, 54, 40, -5, -5, 1, 24),
    "WEBP of lies": b"RIFF\xff\xff\xff\xffWEBPVP8 \xff\xff\xff\xff" + bytes(20),
}


def test_what_is_no_image_is_one_line(tmp_path: Path) -> None:
    file = tmp_path / "image.png"

    def is_refused(name: str) -> None:
        file.write_bytes(NOT_AN_IMAGE[name])
        refused(file, "cannot be read")

    try_every(is_refused, NOT_AN_IMAGE)


EPS = (
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n"
    b"(/tmp/written) (w) file closefile\nshowpage\n%%EOF\n"
)
FOREIGN = {  # formats that Pillow opens and no image of a data set has
    "EPS, a program for Ghostscript": EPS,
    "EPS of a picture": encoded(noise(), "EPS"),
    "PCX": encoded(noise(), "PCX"),
    "TGA": encoded(noise(), "TGA"),
    "SGI": encoded(noise(), "SGI"),
    "ICO": encoded(noise(), "ICO"),
    "PDF of a picture": encoded(noise(), "PDF"),
    "WMF": b"\xd7\xcd\xc6\x9a\x00\x00" + bytes(40),
    "XBM": b"#define x_width 8\n#define x_height 8\nstatic char x_bits[] = {0,0,0,0,0,0,0,0};",
}


def test_a_format_that_no_data_set_has_is_not_decoded(tmp_path: Path) -> None:
    file = tmp_path / "image.png"

    def is_refused(name: str) -> None:
        file.write_bytes(FOREIGN[name])
        refused(file, "cannot be read")

    try_every(is_refused, FOREIGN)


BOMBS = {
    "60,000 x 60,000": png_header(60_000, 60_000),
    "8,001 x 8,000": png_header(8_001, 8_000),
    "2^31 wide": png_header(2**31 - 1, 1),
    "GIF of 65,535 x 65,535": b"GIF89a"
    + b"\xff" * 4
    + bytes(3)
    + b","
    + bytes(4)
    + b"\1\0\1\0\0\2\2L\1\0;",
    "BMP of 30,000 x 30,000": b"BM"
    + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, 30_000, 30_000, 1, 24, 0, 0, 0, 0, 0, 0),
}


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_before_it_is_decoded(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("it was decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", refuse)
    file = tmp_path / "bomb"
    file.write_bytes(BOMBS[name])
    refused(file, "claims more than")


METADATA = {
    "EXIF of garbage": with_chunk(PNG, b"eXIf", b"garbage"),
    "EXIF that points beyond": with_chunk(PNG, b"eXIf", b"MM\0*\xff\xff\xff\xff"),
    "a profile of garbage": with_chunk(PNG, b"iCCP", b"x\0\0garbage"),
    "a text without end": with_chunk(PNG, b"tEXt", b"a\0" + b"x" * 100_000),
    "a text that unpacks to 100 MB": with_chunk(
        PNG, b"zTXt", b"a\0\0" + zlib.compress(bytes(10**8), 9)
    ),
    "an unknown chunk": with_chunk(PNG, b"evIl", b"\0" * 50),
    "bytes after the end": PNG + b"PK\x03\x04<script>" * 100,
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", METADATA)
def test_odd_metadata_leaves_the_pixels_or_gets_one_line(name: str, tmp_path: Path) -> None:
    file = tmp_path / "image.png"
    file.write_bytes(METADATA[name])
    found = opened(file)
    if found is None:
        refused(file, "cannot be read")
    else:
        assert found.tobytes() == noise().tobytes()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("place", [(0, 0), (3, 2)], ids=["first", "later"])
def test_pixels_that_are_no_numbers_do_not_make_a_black_picture(
    value: float, place: tuple[int, int], tmp_path: Path
) -> None:
    image = Image.frombytes("F", (4, 4), struct.pack("16f", *range(16)))
    image.putpixel(place, value)
    file = tmp_path / "scan.tif"
    file.write_bytes(encoded(image, "TIFF"))
    found = opened(file)
    if found is None:
        refused(file, "not a finite number")
    else:
        assert found.getextrema()[0] == (0, 255)


def test_a_folder_is_no_image(tmp_path: Path) -> None:
    refused(tmp_path, "no DICOM or NIfTI file")


def test_a_missing_image_is_named(tmp_path: Path) -> None:
    refused(tmp_path / "none.png", "is missing")


@pytest.mark.parametrize("ending", ["png", "dcm", "nii", "nii.gz"])
def test_a_named_pipe_is_not_waited_on(ending: str, tmp_path: Path) -> None:
    if ending != "png":
        pytest.importorskip("pydicom" if ending == "dcm" else "nibabel", reason="reads such scans")
    pipe = tmp_path / f"pipe.{ending}"
    os.mkfifo(pipe)
    refused(pipe, "not a plain file")


@pytest.mark.parametrize("device", ["/dev/zero", "/dev/urandom", "/dev/null"])
def test_a_device_is_no_image(device: str, tmp_path: Path) -> None:
    (tmp_path / "image.png").symlink_to(device)
    refused(tmp_path / "image.png", "not a plain file")


def test_a_loop_of_links_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    refused(tmp_path / "a", "cannot be read")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_file_that_may_not_be_read_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "image.png").write_bytes(PNG)
    (tmp_path / "image.png").chmod(0)
    refused(tmp_path / "image.png", "PermissionError")


@pytest.mark.parametrize("name", ["a\nb.png", "\x1b[2J.png", "‮gnp.png", "\udcff.png", "\0"])
def test_odd_names_do_not_reach_a_terminal(name: str, tmp_path: Path) -> None:
    with pytest.raises(UnusableImage) as error:
        ImageFile(tmp_path / name).open()
    assert one_line(str(error.value)).isprintable()


def test_no_file_is_left_open_and_nothing_is_kept(tmp_path: Path) -> None:
    """What an image is decoded to does not hang on to the file, so it may be replaced."""
    file = tmp_path / "image.png"
    file.write_bytes(PNG)
    image = ImageFile(file).open()
    file.unlink()
    assert Image.open(io.BytesIO(as_png(image))).size == SIZE
