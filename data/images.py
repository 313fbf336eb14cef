"""Images of questions: where one comes from, and how a file on disk becomes RGB pixels."""

import math
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from PIL import Image, ImageOps

from data.scans import MAX_PIXELS, check_size, scan_reader
from grpo.settings.errors import UsageError

# The formats accepted. Pillow opens more; EPS is a program, which Ghostscript would run.
FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "PPM", "JPEG2000")


class UnusableImage(UsageError):
    """One image cannot be used. Callers catch this error and leave its questions out."""


class ImageSource(Protocol):
    """Where an image comes from: a file or a drawn scene. Nothing is decoded before `open`."""

    @property
    def key(self) -> str:
        """A stable name: equal keys mean equal pixels."""

    def open(self) -> Image.Image:
        """The image in mode RGB."""


@dataclass(frozen=True)
class ImageFile:
    """An image on disk, opened only when it is used."""

    path: Path

    @property
    def key(self) -> str:
        """The whole path as given: base names collide between the folders of a data set."""
        return str(self.path)

    def open(self) -> Image.Image:
        """The upright image in mode RGB; of a medical scan, one slice (data/scans.py).

        Raises UnusableImage for a file missing, unreadable or far too large, and UsageError where
        the package that reads such scans is not installed.
        """
        read = scan_reader(self.path) or read_picture
        return decoded(str(self.path), lambda: read(plain(self.path)))


def plain(path: Path) -> Path:
    """`path` if it is a plain file, else OSError: a pipe or a device could block for ever."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError("not a plain file")
    return path


def decoded(name: str, read: Callable[[], Image.Image]) -> Image.Image:
    """The image `read` returns, in mode RGB. Raises UnusableImage, with `name`, if it fails."""
    try:
        return _rgb(read())
    except Image.DecompressionBombError:
        problem = f"claims more than {MAX_PIXELS:,} pixels: scale it down"
    except FileNotFoundError:
        problem = "is missing: put it there"
    except Exception as error:  # the decoders raise almost anything on bad bytes
        what = " ".join(f"{type(error).__name__}: {error}".split())
        problem = f"cannot be read ({what}): replace it"
    raise UnusableImage(f"image {name} {problem}, or begin a run without its question")


def read_picture(file: Path | BinaryIO) -> Image.Image:
    """The upright image of a file, or of its bytes in a stream."""
    with Image.open(file, formats=FORMATS) as image:  # reads the header only
        check_size(image.height, image.width)
        return ImageOps.exif_transpose(image)


def _rgb(image: Image.Image) -> Image.Image:
    """Any mode to RGB. Pillow clips above 255: a 16-bit scan would be white, so it is scaled."""
    if image.mode.startswith("I") or image.mode == "F":
        # No format says how many of the 16 bits are used (12 is common): stretch the image's range.
        image = image.convert("F")
        low, high = image.getextrema()
        if not (math.isfinite(low) and math.isfinite(high)):
            raise ValueError("a pixel is not a finite number")
        scale = 255 / (high - low) if high > low else 0.0
        image = image.point(lambda value: value * scale + (-low * scale)).convert("L")
    elif "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")  # on white, as transformers' own image processor lays it
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")
