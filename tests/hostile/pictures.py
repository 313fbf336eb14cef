"""Pictures as files hold them, and what can be wrong with the bytes of one."""

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from data.images import ImageFile, UnusableImage

SIZE = (40, 30)


def noise() -> Image.Image:
    """A picture whose every part differs, the same each time."""
    values = bytes((7 * i * i + 13 * i) % 251 for i in range(SIZE[0] * SIZE[1] * 3))
    return Image.frombytes("RGB", SIZE, values)


def encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    """The bytes of an image as a file of that format."""
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def chunk(name: bytes, content: bytes) -> bytes:
    """One chunk of a PNG file."""
    check = struct.pack(">I", zlib.crc32(name + content))
    return struct.pack(">I", len(content)) + name + content + check


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims that size and holds a few bytes of it."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + head + body


def with_chunk(png: bytes, name: bytes, content: bytes) -> bytes:
    """A PNG with one more chunk after its header, which ends at byte 33."""
    return png[:33] + chunk(name, content) + png[33:]


def sixteen_bits() -> Image.Image:
    """A ramp of 12-bit greys in 16 bits, as a scanner writes it."""
    ramp = b"".join(struct.pack("<H", 4 * i % 4096) for i in range(SIZE[0] * SIZE[1]))
    return Image.frombytes("I;16", SIZE, ramp)


def animation(form: str) -> bytes:
    """Three frames: red, green, blue."""
    frames = [Image.new("RGB", SIZE, colour) for colour in ("#ff0000", "#00ff00", "#0000ff")]
    options: dict[str, Any] = {"lossless": True} if form == "WEBP" else {}
    more = {"save_all": True, "append_images": frames[1:], "duration": 50}
    return encoded(frames[0], form, **more, **options)


def transparent_palette() -> Image.Image:
    """Left half black, right half a colour that is transparent."""
    image = Image.new("P", SIZE, 0)
    image.putpalette([0, 0, 0, 255, 0, 0] + [0] * 762)
    image.paste(1, (SIZE[0] // 2, 0, *SIZE))
    image.info["transparency"] = 1
    return image


FORMS = {
    "png": encoded(noise(), "PNG"),
    "jpeg": encoded(noise(), "JPEG", quality=95),
    "webp": encoded(noise(), "WEBP", lossless=True),
    "tiff": encoded(noise(), "TIFF"),
    "gif": encoded(noise(), "GIF"),
    "bmp": encoded(noise(), "BMP"),
}


def opened(file: Path) -> Image.Image | None:
    """The picture, or None where it is refused."""
    try:
        return ImageFile(file).open()
    except UnusableImage:
        return None


def refused(file: Path, says: str = "") -> str:
    """The line that refuses an image; it names the file and is one line."""
    with pytest.raises(UnusableImage) as error:
        ImageFile(file).open()
    text = str(error.value)
    assert str(file) in text
    assert says in text
    assert "\n" not in text
    assert len(text) < 1000 + len(str(file))
    return text
