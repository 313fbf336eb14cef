"""Exercise 8: the pass of a group.

What. Everything comes together. `Policy.logprobs` takes groups through the model as trees (exercise
5) and scores their tokens under the law (exercise 6). `policy_pass` takes the groups of one pass,
computes each token's loss (exercises 2 to 4) and adds its gradient to that of the other passes.

Equations, for every token:

    log pi_theta(o_t) = log softmax(logits / temperature)[o_t], over the allowed tokens
    rho = pi_theta / pi_old,   L = min(rho A, clip(rho) A),   KL = x - log x - 1
    loss = - sum_t w_t (L_t - beta KL_t)

A step has `updates_per_rollout` updates on one rollout, and an update has as many passes as memory
needs. Three rules follow:

    old log-probs are those of update 0, without a gradient; later updates keep them
    the weights w_t already hold the denominator of the whole step: a pass sums, and never averages
    a pass may run again, after memory ran out: what it writes it overwrites, and never adds to

Without a reference (beta 0) the KL is computed against the policy's own log-probs, so that it is 0.

Traps.
* trl#2708, trl#3681: logits one off (exercise 5). trl#3029: no temperature (exercise 6).
* trl#3021, ms-swift#10116: `loss.mean()` in each pass, so that a gradient depends on the passes.
* verl#2996: old log-probs were computed by another pass, in other shapes. In bfloat16 the ratio of
  the first update was then not 1. Here they are the detached numbers of the first update itself.
* Old log-probs written at every update: the ratio is always 1, the clip never acts, and mu updates
  are mu steps of plain REINFORCE on stale samples. No curve shows it but that of the ratio.
* trl#2927: the logits of all tokens at once, (N, 151936), are most of the memory. `score` of
  models/distribution.py runs the head in chunks, and you may use it.

Write both, then run `pytest tests/exercises/exercise_8_pass.py`.
"""

from collections.abc import Sequence

from torch import Tensor

from grpo.interfaces import Groups
from grpo.interfaces import Policy as AnyPolicy
from grpo.loss import Objective
from grpo.metrics import Seen, Tokens
from models import policy as models_policy
from models.tree import Group


class Policy(models_policy.Policy):
    """The policy, of whose parts `logprobs` needs these:

    device, banned (V,)             where the model is; the tokens that are never drawn
    embed(input_ids, features)      (T, hidden): embeddings, with image features in their places
    head(hidden)                    logits (n, V) of states (n, hidden)
    language_model, checkpointing   for Layers(language_model, checkpointing) of models/layers.py:
      layers.rope(positions (3, T), embeds)              M-RoPE's cos and sin
      layers(embeds, rope, attend, wanted)               states (W, hidden) at the places `wanted`
    """

    def logprobs(self, groups: Sequence[Group], temperature: float) -> tuple[Tensor, Tensor]:
        """log pi_theta (N,) float32 of all completion tokens, in the order of `pack`'s targets, and
        the entropy (N,) of the distribution that each is drawn from, without a gradient."""
        raise NotImplementedError("not begun")


def policy_pass(
    groups: Groups, at: Tensor, policy: AnyPolicy, objective: Objective, tokens: Tokens, seen: Seen
) -> None:
    """Add the gradient of the groups of one pass to that of the parameters.

    `at` (n,) are the places of their tokens among the N of the step; index with it the four tensors
    (N,) of `tokens`: weights, advantages, old_logprobs, ref_logprobs.
    `objective` has temperature, beta and three functions: ratio(logprobs, old_logprobs, groups),
    surrogate(ratio, advantages, logprobs) and kl(logprobs, ref_logprobs, ratio).
    `seen.update` counts updates from 0. Tell it last what the pass saw:
    seen.keep(at, logprobs=, ratio=, kl=, entropy=, loss=), (n,) each.
    """
    raise NotImplementedError("not begun")


# Hint 1. `logprobs` is six lines: pack, Layers, embed, rope, layers, score; TreeAttention(lengths)
#   is what the layers call as `attend`. `policy_pass` has the order of the equations above.
#
# Hint 2. The layers return states at `tree.wanted`, W of them. Index them with `tree.predictors` to
#   get one for each target. In `policy_pass` write tokens.old_logprobs[at] if seen.update is 0.
#
# Hint 3. score(head, hidden (N, hidden), targets, temperature, banned) returns both results of
#   `logprobs`. The loss of a token is -w (L - beta KL); call backward() on its sum.
