"""A question and its images -> the ids of the user's turn, in the model's own chat format.

What a user or a data set wrote stays TEXT: a question with `<|image_pad|>` or `<|im_end|>` in it is
tokenised letter by letter there, or it would add image tokens without an image, or end the turn.
"""

import re
from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from grpo.settings.errors import UsageError
from models.images.features import ImageSource

PLACE = "\ue000"  # stands for the user's text while the template is rendered; a private character
IMAGE_PAD, BANNED = "<|image_pad|>", (
    "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip
STOPS = ("<|im_end|>", "<|endoftext|>")  # both of Qwen's end tokens stop a completion


class Example(Protocol):
    """What a question must offer (data/example.py has it)."""

    id: str
    prompt: str
    images: tuple[ImageSource, ...]


class Chat:
    """A tokenizer with its chat template. `eos` are the ids that end a completion."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        vocabulary = tokenizer.get_vocab()
        if lacking := [token for token in (*STOPS, *BANNED) if token not in vocabulary]:
            problem = f"the tokenizer {tokenizer.name_or_path} lacks {', '.join(lacking)}"
            raise UsageError(f"{problem}; it is not Qwen2-VL's")
        self.end, self.eos = vocabulary[STOPS[0]], frozenset(vocabulary[stop] for stop in STOPS)
        self.image_pad = vocabulary[IMAGE_PAD]
        specials = sorted(tokenizer.added_tokens_encoder, key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, specials)))
        self._frame = lru_cache(maxsize=None)(self._render)
        self._frame(1)  # complains of an unsuitable template now rather than at the first question

    def banned(self, head_rows: int) -> Tensor:
        """(head_rows,) bool: vision placeholders, and head rows that no token of the tokenizer has.

        A completion with an image token in it would want features that do not exist.
        """
        ids = torch.arange(head_rows)
        vision = torch.tensor(self.tokenizer.convert_tokens_to_ids(list(BANNED)))
        return (ids >= len(self.tokenizer)) | torch.isin(ids, vision)

    def encode_text(self, text: str, special: bool = False) -> list[int]:
        """Ids of a text; nothing in it is special unless it is the template's own (`special`). Half
        of a surrogate pair becomes "?"."""
        text = text.encode("utf-8", "replace").decode()
        ids = self.tokenizer(text, add_special_tokens=False, split_special_tokens=not special)
        return ids["input_ids"]

    def pieces(self, ids: Tensor) -> list[str]:
        """The text of every token (n,) by itself; half of a character shows as U+FFFD."""
        return [self.tokenizer.decode([i], skip_special_tokens=False) for i in ids.tolist()]

    def encode(self, text: str, image_tokens: list[int]) -> tuple[Tensor, str]:
        """Ids (P,) of a user's turn, and the chat text, whose pads are not expanded.

        The images come first, then the text. `image_tokens` says how many ids each image takes.
        """
        head, before, after, tail = self._frame(len(image_tokens))
        ids, images = [], iter(image_tokens)
        for token in self.encode_text(head, special=True):
            ids += [token] * (next(images) if token == self.image_pad else 1)
        # What stands between two special tokens is tokenised as a whole, as in the plain text.
        ids += self.encode_text(before + text + after) + self.encode_text(tail, special=True)
        return torch.tensor(ids), head + before + text + after + tail

    def _render(self, images: int) -> tuple[str, str, str, str]:
        """The template around the user's text: (head, before, after, tail), split at the special
        tokens nearest to it."""
        content = [{"type": "image"}] * images + [{"type": "text", "text": PLACE}]
        turn = [{"role": "user", "content": content}]
        render = self.tokenizer.apply_chat_template
        try:
            chat = render(turn, tokenize=False, add_generation_prompt=True)
            if chat.count(PLACE) != 1 or chat.count(IMAGE_PAD) != images:
                raise ValueError(f"does not write {images} images as {IMAGE_PAD} and the text once")
        except Exception as error:  # a template is a program of its own and may raise anything
            problem = f"the chat template of {self.tokenizer.name_or_path} fails ({error})"
            remedy = "use an -Instruct model, which has Qwen2-VL's own template"
            raise UsageError(f"{problem}; {remedy}") from None
        left, right = chat.split(PLACE)
        start = max((match.end() for match in self._special.finditer(left)), default=0)
        following = self._special.search(right)
        end = following.start() if following else len(right)
        return left[:start], left[start:], right[:end], right[end:]
