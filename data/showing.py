"""Describe a question for the record of a step: its fields as JSON and its images as small PNGs."""

import io
from contextlib import suppress
from typing import Any

from PIL import Image

from data.example import VQAExample
from data.images import UnusableImage

MOST_PIXELS = 256  # a side: at most 200 kB as a PNG, whatever the image


def described(example: VQAExample) -> tuple[dict[str, Any], list[bytes]]:
    """The facts of a question, ready for JSON, and its images as PNG files of at most 256 pixels.

    An image whose file is gone is left out: training needs its kept features only.
    """
    names = ("id", "question", "options", "modality", "question_type", "asked", "prompt")
    facts = {name: getattr(example, name) for name in names}
    pictures = []
    for image in example.images:
        with suppress(UnusableImage):
            pictures.append(as_png(image.open()))
    return facts | {"gold": example.letter or " / ".join(example.right_answers)}, pictures


def asked_and_gold(example: VQAExample) -> dict[str, str]:
    """Return the question with its options, and the right answer, as one line of text each."""
    choices = zip(example.letters, example.options, strict=True)
    question = " ".join([example.question, *(f"{letter}) {text}" for letter, text in choices)])
    gold = f"{example.letter}) {example.answer}" if example.options else ""
    return {"question": question, "gold": gold or " / ".join(example.right_answers)}


def as_png(image: Image.Image) -> bytes:
    """A PNG file of the image, shrunk where a side is longer than 256 pixels."""
    image.thumbnail((MOST_PIXELS, MOST_PIXELS))
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=3)  # of grain as small as 6, in half the time
    return file.getvalue()
