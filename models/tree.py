"""A group as ONE packed row `[prompt | o_1 | ... | o_G]`: its ids, positions and attention mask.

The prompt, with its hundreds of image tokens, is computed once per group, forward and backward. A
completion sees the prompt and itself, never another completion, and its positions continue where
the prompt's end, so every hidden state equals the one of the plain sequence `[prompt | o_i]`.
Two rows of the mask of a prompt p p and the completions a b and c d:

              p p a b c d
          b   1 1 1 1 0 0
          d   1 1 0 0 1 1
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


@dataclass(frozen=True)
class Prompt:
    """One encoded prompt: text and images, ready for the language model."""

    input_ids: Tensor  # (P,) int64, every image's `<|image_pad|>` expanded to its n_i tokens
    position_ids: Tensor  # (3, P) int64: time, height and width of M-RoPE
    features: tuple[Tensor, ...]  # one (n_i, hidden) an image, in the order of the text
    text: str  # the rendered chat text, one `<|image_pad|>` an image
    id: str = ""  # of the example, for messages

    @property
    def next_position(self) -> int:
        """Where a completion's positions start, on all three axes: max(prompt) + 1."""
        return int(self.position_ids.max()) + 1

    def followed_by(self, ids: Tensor, text: str) -> Prompt:
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

    @property
    def row_length(self) -> int:
        """Length of the packed row. The last token of a completion predicts nothing: no input."""
        return len(self.prompt.input_ids) + sum(max(0, len(o) - 1) for o in self.completions)


@dataclass(frozen=True)
class Tree:
    """Several groups, one packed row each, padded at the end to the longest."""

    input_ids: Tensor  # (n, T) int64
    position_ids: Tensor  # (3, n, T) int64
    mask: Tensor  # (n, 1, T, T) bool: query may see key
    targets: Tensor  # (N,) int64: all completion tokens, group-major, then completion-major
    predictors: Tensor  # (N,) int64 into the n*T positions: whose hidden state predicts the target


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
    expected = sum(t * h * w for t, h, w in image_grids) // merge**2
    if int(is_image.sum()) != expected:
        raise RuntimeError(f"{int(is_image.sum())} image tokens for {expected} image features")
    starts = is_image.nonzero().flatten().tolist()
    pieces = []
    at, offset = 0, 0  # tokens and positions so far: an image takes fewer positions than tokens
    for t, h, w in image_grids:
        text = starts[0] - at
        grid = torch.cartesian_prod(*(torch.arange(side) for side in (t, h // merge, w // merge)))
        pieces += [torch.arange(text).expand(3, -1) + offset, grid.T + offset + text]
        offset = int(pieces[-1].max()) + 1
        at, starts = starts[0] + len(grid), starts[len(grid) :]
    pieces.append(torch.arange(len(input_ids) - at).expand(3, -1) + offset)
    return torch.cat(pieces, dim=1)


def pack(groups: Sequence[Group], device: torch.device | str = "cpu") -> Tree:
    """The tree rows of these groups. T is the longest row; pads see only themselves."""
    length = max(group.row_length for group in groups)
    ids, positions, segments, predictors = [], [], [], []
    for row, group in enumerate(groups):
        prompt = group.prompt
        # The prompt's last position predicts the first token of EVERY completion.
        last = row * length + len(prompt.input_ids) - 1
        row_ids, row_positions = [prompt.input_ids], [prompt.position_ids]
        row_segments = [torch.zeros(len(prompt.input_ids), dtype=torch.int64)]
        at = last + 1
        for i, completion in enumerate(group.completions, start=1):
            inputs = completion[:-1]
            row_ids.append(inputs)
            row_positions.append((torch.arange(len(inputs)) + prompt.next_position).expand(3, -1))
            row_segments.append(torch.full((len(inputs),), i))
            if len(completion):
                predictors += [last, *range(at, at + len(inputs))]
            at += len(inputs)
        ids.append(torch.cat(row_ids))
        positions.append(torch.cat(row_positions, dim=1).T)
        segments.append(torch.cat(row_segments))

    position_ids = pad_sequence(positions, batch_first=True).permute(2, 0, 1)  # (3, n, T)
    segment = pad_sequence(segments, batch_first=True, padding_value=-1)  # (n, T)
    return Tree(
        input_ids=pad_sequence(ids, batch_first=True).to(device),
        position_ids=position_ids.to(device),
        mask=tree_mask(segment.to(device)),
        targets=torch.cat([o for group in groups for o in group.completions]).to(device),
        predictors=torch.tensor(predictors, dtype=torch.int64, device=device),
    )


def tree_mask(segment: Tensor) -> Tensor:
    """(n, 1, T, T) bool from segments (n, T): 0 the prompt, i completion i, -1 a pad.

    >>> tree_mask(torch.tensor([[0, 1, 2, -1]]))[0, 0].int().tolist()
    [[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 1]]
    """
    query, key = segment[:, :, None], segment[:, None, :]
    sees = (query == key) & (query >= 0) | (key == 0) & (query > 0)  # (n, T, T)
    causal = torch.ones(sees.shape[1:], dtype=torch.bool, device=segment.device).tril()
    # A pad sees itself, because a softmax over nothing is NaN.
    itself = torch.eye(sees.shape[1], dtype=torch.bool, device=segment.device)
    return (sees & causal | itself).unsqueeze(1)


def place_images(embeds: Tensor, is_image: Tensor, prompts: Sequence[Prompt]) -> Tensor:
    """Put the prompts' image features into embeds (n, T, hidden) at the image tokens (n, T) bool.

    In place, which is safe: the embedding is frozen. A wrong number of features raises.
    """
    features = [feature for prompt in prompts for feature in prompt.features]
    given, wanted = sum(map(len, features)), int(is_image.sum())
    if given != wanted:  # one would be broadcast to all, and none be ignored
        raise RuntimeError(f"{wanted} image tokens for {given} image features")
    if features:
        embeds[is_image] = torch.cat(features).to(embeds)
    return embeds


def plan_passes(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Which rows share a pass: the longest first, as many as fit in `budget` tokens, pads included.

    Old, new and reference log-probs of a step so run in the same shapes, and an on-policy ratio is
    exactly 1. A row longer than the budget goes alone.

    >>> plan_passes([10, 40, 12, 9], budget=36)
    [[1], [2, 0, 3]]
    """
    plan: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if plan and lengths[plan[-1][0]] * (len(plan[-1]) + 1) <= budget:
            plan[-1].append(i)
        else:
            plan.append([i])
    return plan
