"""Exercise 6: the law of a sample, and a draw from it.

What. The ratio of exercise 3 compares probabilities of a token under two policies. That has a
meaning only if the token was drawn from the very distribution that is scored. So one function says
what this distribution is, and both the sampler and the loss call it.

Equations:

    law     p = softmax(logits / temperature) over the allowed tokens; a banned one has p = 0
    draw    with u uniform in [0, 1), the token is the first whose cumulative sum is ABOVE u:
            c_k = p_1 + ... + p_k,   token = min { k : c_k > u c_V }

Banned are tokens that a completion must not hold, such as image placeholders, and the rows that the
head has beyond the vocabulary. Their mass goes to the others: they have none in the normaliser.

Example. p = (0, 1/4, 1/2, 0, 1/4), c = (0, 1/4, 3/4, 3/4, 1): u = 0 draws token 1, for token 0 has
no probability; u = 0.2501 draws token 2, u = 0.7501 token 4.

Traps.
* trl#3029, miles#68: tokens were drawn at a temperature and scored without one. At 0.7 half of the
  log-probs of the tests' tiny model are then off by more than 0.1.
* R1-V#91, verl#7038: the policy drew an image placeholder, and the next forward pass failed, in one
  case after eight hours. To ban it in the sampler alone leaves it in the scorer's normaliser.
* trl#6789, prime-rl#2601: a default top_k of 50 cut the samples while log-probs were of the whole
  vocabulary.
* Float32 sums over 151,936 tokens end up to 1e-5 away from 1, so that a draw near an edge takes the
  neighbour, or a token that has no probability.

Write both functions, then run `pytest tests/exercises/exercise_6_sampling.py`.
"""

from torch import Tensor


def law(logits: Tensor, temperature: float, banned: Tensor) -> Tensor:
    """Logits (n, V), in bfloat16 or float32, to float32 logits (n, V) whose softmax is the law.

    `banned` (V,) bool. Has a gradient with respect to `logits`, and does not change them.
    """
    raise NotImplementedError("not begun")


def draw(logits: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens (n,) int64 of softmax(logits (n, V)) at u (n,) float64, and their log-probs (n,).

    A token is -1 where no token has a probability, as if logits are NaN; its log-prob then means
    nothing.
    """
    raise NotImplementedError("not begun")


# Hint 1. A probability of 0 is a logit of minus infinity. Go to float32 before you divide. In
#   `draw` go to float64 before the softmax.
#
# Hint 2. torch.searchsorted finds the place of u in the cumulative sum. By default it returns the
#   first entry that is at least u; right=True returns the first above u.
#
# Hint 3. Multiply u by the last entry of the cumulative sum, since that is not exactly 1; hold the
#   place at V - 1 at most; gather the drawn probability, and where it is not > 0 return -1 (NaN > 0
#   is False). The project's own function sums blocks of 128 first, which is faster on a GPU.
