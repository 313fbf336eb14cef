"""Images of questions: where one comes from, and how a file on disk becomes RGB pixels."""

import hashlib
import stat
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np
from PIL import Image, ImageOps
from PIL import TiffImagePlugin as Tiff

from data.scans import MAX_PIXELS, check_size, picture, read_scan, stretched
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
        """The whole path as given: file names collide between the folders of a data set."""
        return str(self.path)

    @cached_property
    def sha256(self) -> str:
        """The hash of the file's bytes, in hexadecimal."""
        return sha256_of(self.path)

    def open(self) -> Image.Image:
        """The upright image in mode RGB; of a medical scan, one slice (data/scans.py).

        Raises UnusableImage for a file missing, unreadable or far too large, and UsageError where
        the package that reads such scans is not installed.
        """
        path = self.path
        return decoded(str(path), lambda: read_scan(plain(path)) or read_picture(path))


def plain(path: Path) -> Path:
    """`path` if it is a plain file, else OSError: a pipe or a device could block for ever."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError("not a plain file")
    return path


def sha256_of(path: str | Path) -> str:
    """The hash of a file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def decoded(name: str, read: Callable[[], Image.Image]) -> Image.Image:
    """The image `read` returns, in mode RGB. Raises UnusableImage, with `name`, if it fails."""
    try:
        return _rgb(read())
    except ModuleNotFoundError as error:
        package = {"nibabel": "nibabel"}.get(error.name, "pydicom>=3")
        problem = f"image {name} needs {package}, which is not installed"
        raise UsageError(f'{problem}: pip install "{package}"') from None
    except Image.DecompressionBombError:
        problem = f"claims more than {MAX_PIXELS:,} pixels: scale it down"
    except FileNotFoundError:
        problem = "is missing: put it there"
    except Exception as error:  # the decoders raise almost anything on bad bytes
        what = " ".join(f"{type(error).__name__}: {error}".split())
        problem = f"cannot be read ({what}): replace it"
    raise UnusableImage(f"image {name} {problem}, or begin a run without its question")


def read_picture(file: Path | BinaryIO) -> Image.Image:
    """The upright image of a file, or of its bytes in a stream.

    Numbers of more than 8 bits are stretched: no format says how many of 16 bits are used (12 is
    common), and Pillow clips at 255. Raises ValueError for a TIFF that Pillow misreads.
    """
    with Image.open(file, formats=FORMATS) as image:  # reads the header only
        check_size(image.height, image.width)
        upright = ImageOps.exif_transpose(image)
        tags = getattr(image, "tag_v2", {})  # of a TIFF
    if upright.mode == "P" and max(tags.get(Tiff.COLORMAP, (256,))) < 256:  # 8 bits, not 16
        upright.putpalette(bytes(tags[Tiff.COLORMAP]), "RGB;L")
    planes = tags.get(Tiff.PLANAR_CONFIGURATION) == 2 and tags[Tiff.BITSPERSAMPLE][1:2] == (16,)
    signed = set(tags.get(Tiff.SAMPLEFORMAT, ())) == {2}
    if not (planes or signed or upright.mode[0] in "IF"):
        return upright
    swapped = tags and tags.prefix == b"MM" and upright.mode in ("I", "F")
    if planes or (swapped and tags.get(Tiff.COMPRESSION, 1) != 1):
        raise ValueError("Pillow misreads planes of 16 bits, and compressed big-endian numbers")
    values = np.asarray(upright)
    if tags and upright.mode in ("L", "I"):  # Pillow reads all 8 bits as unsigned, 32 as signed
        values = values.view(f"{'i' if signed else 'u'}{values.itemsize}")
    shades = stretched(values.astype(np.float64))
    # Pillow knows that 0 is white for numbers of up to 8 bits.
    return picture(1 - shades if tags.get(Tiff.PHOTOMETRIC_INTERPRETATION) == 0 else shades)


def _rgb(image: Image.Image) -> Image.Image:
    """Any mode to RGB."""
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")  # on white, as transformers' own image processor lays it
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")
