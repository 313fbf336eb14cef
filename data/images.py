"""Images of questions: where one comes from, and how a file on disk becomes RGB pixels."""

import hashlib
import stat
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
from PIL import Image, ImageOps
from PIL import TiffImagePlugin as Tiff

from data.scans import MAX_PIXELS, check_size, picture, read_scan, stretched
from data.volumes import shown_planes
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
    """An image on disk, opened only when it is used; of a volume, one slice."""

    path: Path
    index: int | None = None  # of the slice, see data/volumes.py: Plane; None: the middle

    @property
    def key(self) -> str:
        """The whole path as given: file names collide between the folders of a data set."""
        return str(self.path) if self.index is None else f"{self.path}#{self.index}"

    @cached_property
    def sha256(self) -> str:
        """The hash of the file's bytes, in hexadecimal."""
        return sha256_of(self.path)

    def open(self) -> Image.Image:
        """The upright image in mode RGB; of a scan or a folder, the middle slice (data/scans.py).

        Raises UnusableImage for a file missing, unreadable or far too large, and UsageError where
        the package that reads such scans is not installed.
        """
        path, index = self.path, self.index
        if path.is_dir():
            return _slices([path], 1)[0].open()
        return explained(self.key, lambda: rgb(read_scan(plain(path), index) or read_picture(path)))


def in_slices(images: Sequence[ImageSource], count: int) -> list[list[ImageSource]]:
    """Each image, as a list of itself alone or, of a volume, of `count` slices (data/volumes.py).

    A folder is a volume, shown by its middle slice if `count` is 1. Above that NIfTI files, DICOM
    files and a list of DICOM files may be volumes, too. What is none (one frame, colours, time) or
    is damaged stays an image.
    """
    files = [image.path for image in images if isinstance(image, ImageFile)]
    if count > 1 and len(images) == len(files) > 1:
        with suppress(UnusableImage):
            return [_slices(files, count)]
    return [_in_slices(image, count) for image in images]


def _in_slices(image: ImageSource, count: int) -> list[ImageSource]:
    if isinstance(image, ImageFile) and (count > 1 or image.path.is_dir()):
        with suppress(UnusableImage):  # no volume; if it is no image either, `open` says why
            return _slices([image.path], count)
    return [image]


def _slices(paths: Sequence[Path], count: int) -> list[ImageSource]:
    planes = explained(str(paths[0]), lambda: shown_planes(tuple(paths), count))
    return [ImageFile(*plane) for plane in planes]


def plain(path: Path) -> Path:
    """`path` if it is a plain file, else OSError: a pipe or a device could block for ever."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError("not a plain file")
    return path


def sha256_of(path: str | Path) -> str:
    """The hash of a file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def explained(name: str, read: Callable[[], Any]) -> Any:
    """What `read` returns. Raises UnusableImage, with `name`, if it fails."""
    try:
        return read()
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


def rgb(image: Image.Image) -> Image.Image:
    """Any mode to RGB."""
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")  # on white, as transformers' own image processor lays it
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")
