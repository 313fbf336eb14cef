"""The longest prompt of a run, found without its vision tower."""

from __future__ import annotations

from collections.abc import Sequence
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
    texts = {example.prompt: len(example.images) for example in examples}
    words = {text: len(chat.encode(text, [0] * images)[0]) for text, images in texts.items()}
    kept: dict[str, int] = {}  # image -> tokens

    def image_tokens(example: Example) -> int:
        for image in example.images:
            if image.key not in kept:
                kept[image.key] = tokens_of(processor, *image.open().size)
        return sum(kept[image.key] for image in example.images)

    def bound(example: Example) -> int:
        return words[example.prompt] + most * len(example.images)

    best = (examples[0], 0, 0)
    for example in sorted(examples, key=bound, reverse=True):
        if bound(example) <= best[1]:
            break
        images = image_tokens(example)
        if words[example.prompt] + images > best[1]:
            best = (example, words[example.prompt] + images, images)
    return best


def tokens_of(processor: Any, width: int, height: int) -> int:
    """Tokens of an image of this size; 0 for one that the processor refuses (200 to 1)."""
    try:
        patches = processor.get_number_of_image_patches(height, width)
    except ValueError:
        return 0
    return patches // processor.merge_size**2
