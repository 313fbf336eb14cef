"""One multiple-choice question about images: all that the rest of the project knows of data."""

from dataclasses import dataclass
from pathlib import Path
from string import ascii_uppercase
from typing import Protocol

from PIL import Image, ImageOps

from data.prompts import user_text
from grpo.config import UsageError

MAX_PIXELS = 64_000_000  # 8000 x 8000: above any detector, far below what a crafted file can claim


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
        """The upright image in mode RGB. UsageError for a file unreadable or far too large."""
        try:
            with Image.open(self.path) as image:  # reads the header only
                if image.width * image.height > MAX_PIXELS:
                    raise Image.DecompressionBombError
                return _rgb(ImageOps.exif_transpose(image))
        except Image.DecompressionBombError:
            problem = f"claims more than {MAX_PIXELS:,} pixels: scale it down"
        except FileNotFoundError:
            problem = "is missing: put it there"
        except Exception as error:  # the decoders raise almost anything on bad bytes
            problem = f"cannot be read ({type(error).__name__}: {error}): replace it"
        raise UsageError(f"image {self.path} {problem}, or leave its question out")


def _rgb(image: Image.Image) -> Image.Image:
    """Any mode to RGB. Pillow clips above 255: a 16-bit scan would be white, so it is scaled."""
    if image.mode.startswith("I") or image.mode == "F":
        # No format says how many of the 16 bits are used (12 is common): stretch the image's range.
        image = image.convert("F")
        low, high = image.getextrema()
        scale = 255 / (high - low) if high > low else 0.0
        image = image.point(lambda value: value * scale + (-low * scale)).convert("L")
    elif image.mode == "P":
        image = image.convert("RGBA")  # a palette with transparency warns on its way to RGB
    return image.convert("RGB")


@dataclass(frozen=True)
class VQAExample:
    """A question, its options, which is right, and the images it is about (0, 1 or several)."""

    id: str
    images: tuple[ImageSource, ...]
    question: str
    options: tuple[str, ...]
    gold: int  # index into options
    modality: str  # "MRI", "CT", "XRAY", ...
    question_type: str
    reasoning: str = ""  # the reference reasoning, where the data has one
    dataset: str = ""

    @property
    def letters(self) -> tuple[str, ...]:
        """("A", "B", ...), one an option."""
        return tuple(ascii_uppercase[: len(self.options)])

    @property
    def letter(self) -> str:
        """The letter of the right option."""
        return ascii_uppercase[self.gold]

    @property
    def answer(self) -> str:
        """The text of the right option."""
        return self.options[self.gold]

    @property
    def prompt(self) -> str:
        """The user's turn, as `data.prompts` words it."""
        return user_text(self.question, self.options)
