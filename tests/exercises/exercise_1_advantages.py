"""Exercise 1: the advantages of a group.

What. GRPO has no value network. It samples G completions o_1 ... o_G of one question, scores each
with a reward r_i, and takes the mean reward of these G as the baseline. The advantage A_i says how
much better a completion is than the others of its own group. It is one number for a completion:
every token of o_i gets the same A_i.

Equation (DeepSeekMath, 2402.03300, section 4.1):

    A_i = (r_i - mean(r_1 ... r_G)) / (std(r_1 ... r_G) + 1e-4)

    std is the unbiased one: it divides the sum of squares by G - 1.
    scale_rewards "none":  A_i = r_i - mean(r)                         (Dr. GRPO, 2503.20783)
    scale_rewards "batch": the std is that of all B G rewards of the step, the mean stays the
                           group's own                                 (2508.08221)

Example. Rewards (1, 0, 1, 0): the mean is 0.5, the unbiased std 0.57735, so A is 0.86587 for a
right and -0.86587 for a wrong answer. Rewards (2, 2, 2, 2): A is 0 for all.

Traps.
* Search-R1#88 and rllm#776: rows of different questions were compared with one another. Nothing
  fails then. An easy question's wrong answers get a positive advantage beside a hard question's
  right ones, and training becomes REINFORCE with a poor baseline.
* ms-swift#3980 and others: projects divide by std with G or with G - 1, and add 1e-4 or 1e-8. With
  G = 4 the first choice alone changes every advantage by 15 %.
* A group of equal rewards must give exact zeros. The float32 mean of seven rewards of 0.1 is not
  0.1. What is left, about 1e-8, is divided by 1e-4, and the group is no longer seen to be without
  signal: it takes a pass through the model, and dynamic sampling keeps it.

Write the function, then run `pytest tests/exercises/exercise_1_advantages.py`. Three hints stand
at the end of this file, each says more than the one before.
"""

from torch import Tensor


def group_advantages(rewards: Tensor, scale_rewards: str = "group") -> Tensor:
    """Advantages (B, G) of the rewards (B, G), float32: B groups of G completions each.

    `scale_rewards` is "group", "none" or "batch". A group of equal rewards gets exact zeros.
    """
    raise NotImplementedError("not begun")


# Hint 1. One reduction over dim=1 with keepdim=True gives (B, 1), which broadcasts against (B, G).
#
# Hint 2. torch's std is the unbiased one by default. For "batch" it takes no dim at all.
#
# Hint 3. Do not compare advantages with 0 to find equal rewards: compare each reward with the first
#   of its group, take all() over dim=1, and put 0 there with masked_fill, after the division.
