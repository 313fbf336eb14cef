"""Exercise 2: what a token weighs in the loss.

What. A step has B G completions of different lengths |o_i|. Each of their N tokens has a term in
the loss. How the terms are averaged decides whether a token of a long completion counts less than
one of a short completion. Here the average is written as one weight for each token, and the loss
is the weighted sum: loss = - sum_t w_t L_t.

Equations, for a token of completion i:

    grpo     w = 1 / (B G |o_i|)                mean in each completion, then over completions
                                                (DeepSeekMath, 2402.03300, eq. 3)
    dapo     w = 1 / sum_j |o_j|                every token of the step counts the same
                                                (DAPO, 2503.14476, eq. 8)
    dr_grpo  w = 1 / (B G L_max)                a constant; L_max is max_completion_length
                                                (Dr. GRPO, 2503.20783)

A completion that is `masked` weighs nothing (DAPO does this to completions that were cut). As in
TRL it still counts among the B G, and its tokens do not count in dapo's sum.

Example. Lengths (1, 3), L_max 4: grpo (1/2, 1/6, 1/6, 1/6), dapo 1/4 each, dr_grpo 1/8 each.

Traps.
* VLM-R1#280 and trl#3138: with the mean of each completion a token of a long wrong answer is
  punished less than one of a short wrong answer, and lengths drift. This is `grpo` as published, so
  it is a choice, and one to know of.
* trl#3021 and ms-swift#10116: the mean was taken in each micro-batch and then divided by the number
  of micro-batches. The gradient then depends on how much memory there is. One denominator for the
  whole step avoids it, which is why this function gets the lengths of all completions of the step.
* L_max is the limit of the settings, not the longest completion of this step. With the latter
  dr_grpo has a length bias again, from step to step.

Write the function, then run `pytest tests/exercises/exercise_2_weights.py`.
"""

from torch import Tensor


def token_weights(
    lengths: Tensor, loss: str, max_completion_length: int, masked: Tensor | bool = False
) -> Tensor:
    """The weight (N,) float32 of every token: those of o_1, then those of o_2, and so on.

    `lengths` (B*G,) int64 holds |o_i| of all completions of the step; N is their sum. `loss` is
    "grpo", "dapo" or "dr_grpo". `masked` (B*G,) bool, or False for none.
    """
    raise NotImplementedError("not begun")


# Hint 1. Compute one weight for each completion first, (B*G,), and repeat it for its tokens last.
#
# Hint 2. tensor.repeat_interleave(lengths) repeats the i-th value lengths[i] times.
#
# Hint 3. `lengths * (masked == 0)` is the number of tokens of each completion that counts, for a
#   tensor and for False alike. Its sum is dapo's denominator; if every completion is masked it is
#   0, so hold it at 1 or more. The weight is `(kept > 0) / denominator`.
