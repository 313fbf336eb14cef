"""One question about images, closed or open: all that the rest of the project knows of data."""

import math
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import ascii_uppercase
from typing import Any, BinaryIO, Protocol

from PIL import Image, ImageOps

from data.prompts import completion_text, user_text
from data.scans import MAX_PIXELS, check_size, scan_reader
from grpo.settings.errors import UsageError

# Of all that Pillow opens, what images come in. EPS is a program: Ghostscript would run it.
FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "PPM", "JPEG2000")


class UnusableImage(UsageError):
    """One image file is at fault, so that its questions can be left out."""


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
        return decoded(str(self.path), lambda: read(_plain(self.path)))


def _plain(path: Path) -> Path:
    """The path of a plain file: a named pipe would be waited on for ever, a device never ends."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError("not a plain file")
    return path


def decoded(name: str, read: Callable[[], Image.Image]) -> Image.Image:
    """What `read` gives, in mode RGB. Raises UnusableImage, with the name, for any fault of it."""
    try:
        return _rgb(read())
    except Image.DecompressionBombError:
        problem = f"claims more than {MAX_PIXELS:,} pixels: scale it down"
    except FileNotFoundError:
        problem = "is missing: put it there"
    except Exception as error:  # the decoders raise almost anything on bad bytes
        what = " ".join(f"{type(error).__name__}: {error}".split())
        problem = f"cannot be read ({what}): replace it"
    raise UnusableImage(f"image {name} {problem}, or leave its question out")


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


@dataclass(frozen=True)
class VQAExample:
    """A question, its options, which is right, and the images it is about (0, 1 or several).

    An open question has no options and is answered in words; `references` are the right answers.
    """

    id: str
    images: tuple[ImageSource, ...]
    question: str
    options: tuple[str, ...]
    gold: int  # index into options; of an open question, into references
    modality: str  # "MRI", "CT", "XRAY", ...
    question_type: str
    reasoning: str = ""  # the reference reasoning, where the data has one
    dataset: str = ""
    asked: str = "reason"  # a way of asking: a key of data.prompts.INSTRUCTIONS
    constant: bool = False  # its answer is known without looking: data.splits.constant_answers
    references: tuple[str, ...] = ()  # of an open question: every wording that counts as right
    findings: tuple[str, ...] | None = None  # what the image shows, one phrase each; None: unknown
    answer_type: str = ""  # "closed" or "open" as the data set says; "": closed if it has options

    @property
    def letters(self) -> tuple[str, ...]:
        """("A", "B", ...), one an option."""
        return tuple(ascii_uppercase[: len(self.options)])

    @property
    def letter(self) -> str:
        """The letter of the right option; "" of an open question."""
        return ascii_uppercase[self.gold] if self.options else ""

    @property
    def answer(self) -> str:
        """The text of the right answer."""
        return (self.options or self.references)[self.gold]

    @property
    def right_answers(self) -> tuple[str, ...]:
        """Every wording of the right answer; with options, that of the right one."""
        return (self.answer,) if self.options else self.references

    @property
    def closed(self) -> bool:
        """Whether it is reported among the closed questions, as VQA-RAD and SLAKE tell them."""
        return self.answer_type.lower() == "closed" if self.answer_type else bool(self.options)

    @property
    def prompt(self) -> str:
        """The user's turn, as `data.prompts` words it."""
        return user_text(self.question, self.options, self.asked)

    def completion(self, reasoning: str | None, answer: str | None = None) -> str:
        """An answer in the format, the right one by default; `reasoning` None: no think block."""
        right = self.letter if self.options else self.answer
        return completion_text(reasoning, right if answer is None else answer)


def columns(examples: Sequence[VQAExample]) -> dict[str, list[Any]]:
    """What a reward function is told of each question, by name."""
    names = {"answer": "letter", "references": "right_answers"}
    same = ("question", "letters", "options", "modality", "question_type", "reasoning", "findings")
    names |= {name: name for name in (*same, "asked", "id")}
    return {column: [getattr(e, name) for e in examples] for column, name in names.items()}
