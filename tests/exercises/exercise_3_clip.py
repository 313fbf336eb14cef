"""Exercise 3: the importance ratio and the clip.

What. A rollout costs more than an update, so one rollout may serve several updates. From the second
on, the policy that is trained is no longer the one that sampled. The ratio rho corrects for this,
and the clip stops a token from moving further once its probability has changed by a fifth or so.

Equations (PPO, 1707.06347, eq. 7; two bounds as in DAPO, 2503.14476):

    rho = pi_theta(o_t) / pi_old(o_t) = exp(log pi_theta - log pi_old)
    L   = min(rho A, clip(rho, 1 - eps, 1 + eps_high) A)

    A < 0 and a large rho are not bounded by this. With `delta` they are:
    L   = min(min(rho, delta) A, clip(rho) A)                       (INTELLECT-2, 2505.07291)

The gradient of the clip is what matters. It is 0 in two cases of four:

    rho 1.5, A  1   L  1.2   dL/drho  0     it has become likelier by enough
    rho 1.5, A -1   L -1.5   dL/drho -1     bad and likelier: the full gradient must pull it back
    rho 0.5, A  1   L  0.5   dL/drho  1     good and less likely: likewise
    rho 0.5, A -1   L -0.8   dL/drho  0     it has become less likely by enough

Traps.
* minimind#775, trl#3120, R1-V#51: "the ratio is always 1, the clip never acts, the loss is 0". On
  the first update after a rollout this is right, because nothing has moved. The gradient is not 0,
  since d rho / d log pi = rho. Whoever then detaches the ratio, or computes it without a graph,
  has the same numbers and trains nothing.
* clip(rho) A without the min looks the same in the first and last case. In the other two it has no
  gradient, so a token that went the wrong way can never come back.
* trl#3144: a token counts as clipped where the clip took its gradient. A test of rho alone counts
  the two middle cases too.
* NeMo-RL#874: a log-ratio of 100 overflows exp in float32. Infinity times a gradient of 0 is NaN,
  and one such token spoils the step. The project holds the log-ratio within +-20 before exp.

Write both functions, then run `pytest tests/exercises/exercise_3_clip.py`.
"""

from math import inf

from torch import Tensor


def importance_ratio(logprobs: Tensor, old_logprobs: Tensor) -> Tensor:
    """rho (N,) of every token from its log-probs (N,) now and when it was sampled (N,).

    Finite, and with a finite gradient, however far the two are apart.
    """
    raise NotImplementedError("not begun")


def clipped_surrogate(
    ratio: Tensor, advantages: Tensor, clip_eps: float, clip_eps_high: float, delta: float = inf
) -> Tensor:
    """L (N,) of every token from its ratio (N,) and the advantage (N,) of its completion."""
    raise NotImplementedError("not begun")


# Hint 1. Tensor.clamp does both the holding within +-20 and the clip. Its gradient is 0 outside of
#   the bounds.
#
# Hint 2. Multiply by A before you take the min: with A < 0 the smaller product is the one of the
#   larger ratio.
#
# Hint 3. torch.min(ratio.clamp(max=delta) * A, ratio.clamp(low, high) * A) has the right gradient
#   by itself. Nothing has to be masked.
