"""Image files: the right picture, or one line that names the file and what to do."""

from pathlib import Path

import pytest
from PIL import Image

from data.images import ImageFile
from data.showing import as_png
from tests.hostile.every import try_every
from tests.hostile.pictures import (
    FORMS,
    SIZE,
    animation,
    encoded,
    noise,
    opened,
    refused,
    sixteen_bits,
    transparent_palette,
)

ENDS = [0, 1, 2, 4, 8, 12, 16, 20]  # bytes missing at the end, where a decoder might not notice


def lengths(form: str) -> list[int]:
    """The lengths in bytes to which an image of that form is cut."""
    size = len(FORMS[form])
    ends = [size - n for n in ENDS] if form in ("png", "jpeg", "webp") else []
    return [*(size * n // 100 for n in range(0, 100, 10)), *ends]


@pytest.mark.parametrize("form", FORMS)
def test_a_truncated_image_is_refused_or_whole(form: str, tmp_path: Path) -> None:
    """Never half a picture with a grey rest, which a model would be asked about."""
    (tmp_path / "whole").write_bytes(FORMS[form])
    whole = ImageFile(tmp_path / "whole").open()

    def refused_or_whole(length: int) -> None:
        (tmp_path / "cut").write_bytes(FORMS[form][:length])
        found = opened(tmp_path / "cut")
        if found is None:
            refused(tmp_path / "cut")
        else:
            assert found.tobytes() == whole.tobytes()
            assert len(FORMS[form]) - length <= max(ENDS)

    try_every(refused_or_whole, lengths(form))


MODES = {
    "1x1": (Image.new("RGB", (1, 1), "red"), "PNG", (255, 0, 0)),
    "1 bit": (Image.new("1", SIZE, 1), "PNG", (255, 255, 255)),
    "grey": (Image.new("L", SIZE, 77), "PNG", (77, 77, 77)),
    "grey with alpha": (Image.new("LA", SIZE, (77, 0)), "PNG", (255, 255, 255)),
    "RGB with alpha": (Image.new("RGBA", SIZE, (9, 9, 9, 0)), "PNG", (255, 255, 255)),
    "palette": (Image.new("P", SIZE, 0), "PNG", (0, 0, 0)),
    "palette with transparency": (transparent_palette(), "PNG", (0, 0, 0)),
    "CMYK": (Image.new("CMYK", SIZE, (0, 255, 255, 0)), "TIFF", (255, 0, 0)),
    "CMYK JPEG": (Image.new("CMYK", SIZE, (0, 0, 0, 255)), "JPEG", (0, 0, 0)),
    "16 bit": (sixteen_bits(), "PNG", (0, 0, 0)),
    "16 bit TIFF": (sixteen_bits(), "TIFF", (0, 0, 0)),
    "32 bit": (Image.new("I", SIZE, 70_000), "TIFF", (0, 0, 0)),
    "float": (Image.new("F", SIZE, 0.5), "TIFF", (0, 0, 0)),
    "LAB": (Image.new("LAB", SIZE, (0, 128, 128)), "TIFF", None),
    "very wide": (Image.new("L", (2000, 1), 5), "PNG", (5, 5, 5)),
    "very high": (Image.new("L", (1, 2000), 5), "PNG", (5, 5, 5)),
}


@pytest.mark.parametrize("name", MODES)
def test_every_mode_is_shown_as_it_is_meant(name: str, tmp_path: Path) -> None:
    image, form, first = MODES[name]
    file = tmp_path / "image"
    file.write_bytes(encoded(image, form))
    found = ImageFile(file).open()
    assert (found.mode, found.size) == ("RGB", image.size)
    assert first is None or found.getpixel((0, 0)) == first
    if name == "palette with transparency":  # white shows where nothing is
        assert found.getpixel((SIZE[0] - 1, 0)) == (255, 255, 255)
    if name.startswith("16 bit"):  # stretched, and not clipped to white
        assert len(found.getcolors()) > 100
    assert as_png(found).startswith(b"\x89PNG")


@pytest.mark.parametrize("form", ["GIF", "PNG", "WEBP", "TIFF"])
def test_of_an_animation_the_first_frame_is_shown(form: str, tmp_path: Path) -> None:
    (tmp_path / "moving").write_bytes(animation(form))
    red, green, blue = ImageFile(tmp_path / "moving").open().getpixel((3, 3))
    assert (red > 250, green < 5, blue < 5) == (True, True, True)


TURNED = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
@pytest.mark.parametrize("orientation", [*TURNED, 0, 9, 65535])
def test_an_image_is_shown_upright_whatever_its_orientation(
    orientation: int, form: str, tmp_path: Path
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    (tmp_path / "turned").write_bytes(encoded(noise(), form, exif=exif))
    turn = TURNED.get(orientation)  # none of the eight: as it is
    upright = noise() if turn is None else noise().transpose(turn)
    assert ImageFile(tmp_path / "turned").open().tobytes() == upright.tobytes()
