"""Exercise 4: the KL term.

What. The KL term holds the policy near the reference it started from. The true divergence is a sum
over the whole vocabulary at every token. GRPO estimates it from the one token that was sampled.

Equation (Schulman's k3, joschu.net/blog/kl-approx.html; DeepSeekMath, 2402.03300, eq. 4):

    x  = pi_ref(o_t) / pi_theta(o_t)
    KL = x - log x - 1

Tokens that pi_theta draws make it right on average: E[x] = 1, so E[KL] = E[-log x], which is
KL(pi_theta || pi_ref). It is never negative and is 0 where the two agree; -log x alone ("k1") has
the same mean, is often negative, and varies more.

Example. log pi_theta -1, log pi_ref -0.5: log x = 0.5 and KL = 1.64872 - 0.5 - 1 = 0.14872. The
gradient by log pi_theta is 1 - x = -0.64872: the policy makes this token less likely than the
reference does, and a loss with + beta KL makes it likelier again.

Traps.
* The other way round, x = pi_theta / pi_ref, is also never negative and also 0 where they agree.
  Curves look sane. Its mean under pi_theta is not KL(pi_theta || pi_ref), and it explodes where the
  policy is sure and the reference is not.
* NeMo-RL#874, verl#751, OpenRLHF#931: x overflowed where a token is far less likely under the
  policy than under the reference. KL rose to 1e9 or NaN, Adam's moments were spoilt, and the model
  wrote "!!!!!" from then on. The project holds log x within +-20.
* A value without a gradient, as from `with torch.no_grad()` around both log-probs, is right in
  every curve and does nothing. Only the reference has no gradient.

Write the function, then run `pytest tests/exercises/exercise_4_kl.py`.
"""

from torch import Tensor


def k3_kl(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """KL (N,) of every token from its log-probs under the policy (N,) and the reference (N,).

    Finite, and with a finite gradient, however far the two are apart.
    """
    raise NotImplementedError("not begun")


# Hint 1. Stay in log-probs: log x is a difference, and only one exp is needed.
#
# Hint 2. Hold the difference within +-20 first, and use the held one in both places.
#
# Hint 3. log_x = (ref_logprobs - logprobs).clamp(-20, 20); the rest is the equation.
