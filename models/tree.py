"""A group as ONE packed row `[prompt | o_1 | ... | o_G]`: its ids, positions and targets.

The prompt, with its hundreds of image tokens, is computed once per group, forward and backward. A
completion sees the prompt and itself, never another completion (models/attention.py), and its
positions continue where the prompt's end, so every hidden state equals the one of the plain
sequence `[prompt | o_i]`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from grpo.settings.errors import UsageError


@dataclass(frozen=True)
class Prompt:
    """One encoded prompt: text and images, ready for the language model."""

    input_ids: Tensor  # (P,) int64, every image's `<|image_pad|>` expanded to its n_i tokens
    position_ids: Tensor  # (3, P) int64: time, height and width of M-RoPE
    features: tuple[Tensor, ...]  # one (n_i, hidden) an image, in the order of the text
    text: str  # the rendered chat text, one `<|image_pad|>` an image
    id: str = ""  # the example's, for messages

    @property
    def next_position(self) -> int:
        """Where a completion's positions start, on all three axes: max(prompt) + 1."""
        return int(self.position_ids.max()) + 1

    def check_length(self, completion: int, most: int, given: bool = False) -> None:
        """Raise UsageError if a model of at most `most` positions has no room for a completion,
        `given` or drawn."""
        length = len(self.input_ids)
        room = most - length
        if completion <= room:
            return
        images = sum(len(feature) for feature in self.features)
        remedy = "use a smaller --max-pixels or leave it out"
        if length - images + completion > most:  # too long without any image
            remedy = "shorten its text or leave it out"
            if room > 0 and not given:
                remedy = f"use --max-completion-length {room}"
        raise UsageError(
            f"example {self.id}: its prompt has {length} tokens ({images} of images), which with "
            f"{completion} of completion is more than the model's {most}; {remedy}"
        )

    def followed_by(self, ids: Tensor, text: str) -> "Prompt":
        """The prompt with the tokens (n,) of a text after it."""
        positions = (self.next_position + torch.arange(len(ids))).expand(3, -1)
        return replace(
            self,
            input_ids=torch.cat([self.input_ids, ids]),
            position_ids=torch.cat([self.position_ids, positions], dim=1),
            text=self.text + text,
        )


@dataclass(frozen=True)
class Group:
    """A prompt and its G completions: the unit of everything in this project."""

    prompt: Prompt
    completions: list[Tensor]  # G tensors (|o_i|,) int64, EOS included when drawn, nothing after it
    truncated: list[bool]  # no EOS was drawn: stopped by the maximum length
    # G tensors (|o_i|,) float32: log-probs that the tokens were drawn with. None: given, not drawn
    sampling_logprobs: list[Tensor] | None = None

    @property
    def row_length(self) -> int:
        """Length of the packed row. A completion's last token predicts nothing: no input."""
        length = len(self.prompt.input_ids)
        for completion in self.completions:
            length += max(0, len(completion) - 1)
        return length


@dataclass(frozen=True)
class Tree:
    """Several groups, one after another, without a pad. T is the sum of their row lengths.

    One group with P = 2, o_1 = (a, b, c) and o_2 = (d, e), as indices into T = 5 and W = 4:

        input_ids   p p a b d          a completion's last token is no input
        wanted      1 2 3 4            the last of the prompt, and all after it
        targets     a b c d e
        predictors  0 1 2 0 3          the prompt's last state predicts a and d
    """

    input_ids: Tensor  # (T,) int64, on the CPU
    position_ids: Tensor  # (3, T) int64
    lengths: list[list[int]]  # a list a group: number of inputs of the prompt, o_1, ... o_G
    features: list[Tensor]  # of all images, in the order of the image tokens
    targets: Tensor  # (N,) int64: all completion tokens, group-major, then completion-major
    wanted: Tensor  # (W,) int64 into T: the positions whose hidden states predict something
    predictors: Tensor  # (N,) int64 into W: the hidden state that predicts each target


def rope_positions(
    input_ids: Tensor, image_grids: Sequence[tuple[int, int, int]], image_token_id: int, merge: int
) -> Tensor:
    """M-RoPE positions (3, P) of a prompt (P,) whose images have the patch grids (t, h, w).

    Text counts up on all three axes alike. An image's tokens carry their place in the merged grid
    (h/merge by w/merge), offset by the position it starts at; what follows continues after the
    largest. (Qwen2-VL, section 2.1.)
    Raises RuntimeError where the placeholders and the grids do not match.
    """
    is_image = input_ids == image_token_id
    expected = sum(map(math.prod, image_grids)) // merge**2
    if int(is_image.sum()) != expected:
        raise RuntimeError(f"{int(is_image.sum())} image tokens for {expected} image features")
    starts = is_image.nonzero().flatten().tolist()
    pieces = []
    # Text counts up by 1. An image at position s has, for its token in row i and column j of the
    # merged grid, the position (s, s + i, s + j), and text continues after the largest of them: an
    # image takes max(h, w) / merge positions but h w / merge^2 tokens.
    at, offset = 0, 0  # tokens and positions so far
    for t, h, w in image_grids:
        text = starts[0] - at
        grid = torch.cartesian_prod(*map(torch.arange, (t, h // merge, w // merge)))
        pieces += [torch.arange(text).expand(3, -1) + offset, grid.T + offset + text]
        offset = int(pieces[-1].max()) + 1
        at, starts = starts[0] + len(grid), starts[len(grid) :]
    pieces.append(torch.arange(len(input_ids) - at).expand(3, -1) + offset)
    return torch.cat(pieces, dim=1)


def pack(groups: Sequence[Group], device: torch.device | str = "cpu") -> Tree:
    """The trees of these groups, flat."""
    ids, positions, lengths, wanted, predictors, targets, features = [], [], [], [], [], [], []
    start, first = 0, 0  # where the group begins, among all positions and among the wanted ones
    for group in groups:
        prompt = group.prompt
        ids.append(prompt.input_ids)
        positions.append(prompt.position_ids)
        lengths.append([len(prompt.input_ids)])
        targets += group.completions
        features += prompt.features
        at = first + 1
        for completion in group.completions:
            given = completion[:-1]
            ids.append(given)
            # Every completion continues at max(prompt) + 1, as if it were the only one.
            after = torch.arange(len(given)) + prompt.next_position
            positions.append(after.expand(3, -1))
            lengths[-1].append(len(given))
            if len(completion):
                # The prompt's last position predicts the first token of EVERY completion; its other
                # tokens are predicted by the token before them.
                predictors += [first, *range(at, at + len(given))]
            at += len(given)
        wanted.append(torch.arange(start + lengths[-1][0] - 1, start + sum(lengths[-1])))
        start, first = start + sum(lengths[-1]), at
    return Tree(
        input_ids=torch.cat(ids),
        position_ids=torch.cat(positions, dim=1).to(device),
        lengths=lengths,
        features=features,
        targets=torch.cat(targets).to(device),
        wanted=torch.cat(wanted).to(device),
        predictors=torch.tensor(predictors, dtype=torch.int64, device=device),
    )


def place_images(embeds: Tensor, places: Tensor, features: Sequence[Tensor]) -> Tensor:
    """Put the features of images, (n_i, hidden) each, into embeds (T, hidden) at the places of the
    image tokens (n,).

    In place, which is safe: the embedding is frozen. Raises RuntimeError if the number of features
    is not that of image tokens.
    """
    given, wanted = sum(map(len, features)), len(places)
    if given != wanted:  # torch would broadcast one feature to all tokens, and ignore none at all
        raise RuntimeError(f"{wanted} image tokens for {given} image features")
    if features:
        embeds.index_copy_(0, places.to(embeds.device), torch.cat(features).to(embeds))
    return embeds


def plan_passes(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Indices of the groups that share a pass of at most `budget` tokens: best fit, longest first.

    The plan depends on lengths alone. So old, new and reference log-probs are computed in the same
    shapes, and an on-policy ratio is exactly 1. A row longer than the budget has its own pass.

    >>> plan_passes([10, 40, 12, 9, 5], budget=36)
    [[1], [2, 0, 3, 4]]
    """
    plan: list[list[int]] = []
    room: list[int] = []  # tokens left in each pass
    for i in sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True):
        best = -1  # the pass with the least room that is enough
        for p, left in enumerate(room):
            if lengths[i] <= left and (best < 0 or left < room[best]):
                best = p
        if best < 0:
            plan.append([])
            room.append(budget)
        plan[best].append(i)
        room[best] -= lengths[i]
    return plan
