"""Exercise 5: a group as a tree, its mask and its positions.

What. All G completions of a group have the same prompt, and with an image the prompt is most of the
tokens. So a group goes through the model as ONE row, [prompt | o_1 | ... | o_G], and the prompt is
computed once. Each completion must see what it would see if it were alone:

    the mask: a token sees the earlier tokens of its prompt and of its own completion, and itself

          p p a b c d       2 tokens of a prompt, o_1 with the inputs a b, o_2 with c d
      p   1
      p   1 1
      a   1 1 1
      b   1 1 1 1
      c   1 1     1
      d   1 1     1 1

    the positions: every completion starts at max(positions of its prompt) + 1, as if it were the
    only one, on all three axes of M-RoPE (Qwen2-VL, 2409.12191, section 2.1)

The last token of a completion predicts nothing, so it is no input. The first token of EVERY
completion is predicted by the same state, that of the prompt's last token. With P = 2,
o_1 = (a, b, c) and o_2 = (d, e):

    input_ids   p p a b d       T = 5 inputs
    wanted      1 2 3 4         their places whose states predict something: W = 4
    targets     a b c d e       N = 5
    predictors  0 1 2 0 3       for each target a place among the W

Traps.
* unsloth-zoo#614: image rows were trained for months with one-dimensional positions. An image takes
  fewer positions than it has tokens, so max(prompt) + 1 is less than the length of the prompt. The
  loss falls all the same.
* areal#217: packed rows of Qwen2.5-VL had wrong positions. Others forbid packing with images.
* trl#2708, ms-swift#3069: the slice of the logits was one off, so that each token was scored with
  the distribution of the token after it. The first token of a completion shows it best.
* A mask that is causal alone lets o_2 read o_1, which may hold the answer. Values stay plausible.
* To detach the prompt, or its keys and values, saves memory and loses the gradient through the
  prompt, which is the sum over all completions.

Write both, then run `pytest tests/exercises/exercise_5_tree.py`.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from models import attention
from models.tree import Group, Tree


class TreeAttention(attention.TreeAttention):
    """The attention of one pass. Its `lengths` has a list for each group: the number of inputs of
    the prompt, o_1, ... o_G. A completion of one token has 0 inputs."""

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """The attention's result (T, heads * d) from the queries (T, heads, d) and the keys and
        values (T, kv_heads, d) of all groups, one after another.

        heads / kv_heads queries share a key head: query heads 0, 1, ... the first one. Scores are
        divided by sqrt(d). `layer` has no meaning here. You may compute the whole (T, T) mask.
        """
        raise NotImplementedError("not begun")


def pack(groups: Sequence[Group], device: torch.device | str = "cpu") -> Tree:
    """The trees of these groups, flat, one group after another; models/tree.py lists the fields.

    Of a group you need `prompt.input_ids` (P,), `prompt.position_ids` (3, P), `prompt.features` (a
    tuple with one tensor an image) and `completions`, G tensors (|o_i|,). `input_ids` stays on the
    CPU; the other tensors go to `device`.
    """
    raise NotImplementedError("not begun")


# Hint 1. Give each of the T tokens two numbers: its group, and its part, 0 for the prompt and i for
#   o_i. The mask follows from these two and from the order. For `pack`, count two things as you go:
#   places among all inputs (T) and among the wanted ones (W).
#
# Hint 2. sees[i, j] = j <= i and the same group and (part_j == 0 or part_j == part_i). In `pack` a
#   group adds 1 + (its completions' inputs) to W: the last of its prompt, and all after it.
#
# Hint 3. F.scaled_dot_product_attention(q, k, v, attn_mask=sees, enable_gqa=True) takes (heads, T,
#   d) and a bool mask; move the heads to the front and back, then flatten the last two dimensions.
#   In `pack`, the predictors of a completion of n tokens are first, at, at + 1, ... at + n - 2: the
#   place of the prompt's last token, then those of its own inputs; `at` then grows by n - 1.
