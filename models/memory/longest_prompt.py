"""The longest prompt of a run, found without its vision tower."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from operator import itemgetter
from typing import Any

from models.chat import Chat, Example


def longest_prompt(
    chat: Chat, processor: Any, examples: Sequence[Example]
) -> tuple[Example, int, int]:
    """The example with the most prompt tokens, their number, and how many are of images.

    An image's size says how many tokens it takes. Images are opened from the longest text on, until
    no other can be longer even if its images were as large as they may be.
    """
    most = processor.size["longest_edge"] // (processor.patch_size * processor.merge_size) ** 2

    @cache
    def words(text: str, images: int) -> int:
        return len(chat.encode(text, [0] * images)[0])

    @cache
    def tokens_of(image: Any) -> int:
        width, height = image.open().size
        with suppress(ValueError):  # the processor refuses one that is 200 times as long as wide
            return processor.get_number_of_image_patches(height, width) // processor.merge_size**2
        return 0

    def bound(example: Example) -> int:
        return words(example.prompt, len(example.images)) + most * len(example.images)

    best = (examples[0], 0, 0)
    for example in sorted(examples, key=bound, reverse=True):
        if bound(example) <= best[1]:
            break
        images = sum(map(tokens_of, example.images))
        tokens = words(example.prompt, len(example.images)) + images
        best = max(best, (example, tokens, images), key=itemgetter(1))
    return best
