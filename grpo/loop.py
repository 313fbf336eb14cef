"""Group Relative Policy Optimization (DeepSeekMath, arXiv 2402.03300), in the order of its
equations. Read this first.

A step has B groups; a group is one prompt and G completions of it. Shapes:

    (B, G)  rewards, advantages
    (N,)    every completion token of the step
    (n,)    the tokens of one pass through the model; `at` (n,) are their places in (N,)

Two things look like bugs and are not. On the first update after a rollout the policy that scores
is the one that sampled: the ratio is exactly 1. The advantages of a group sum to 0, so the `grpo`
loss is 0 but for beta KL; its gradient is not, it is that of REINFORCE with a baseline. And the KL
starts at exactly 0, because training starts at the reference.

The comments give the default equations; `Objective` holds the functions in their place.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.optim import AdamW

from grpo.distributed import sum_gradients, summed
from grpo.interfaces import Draw, Groups, Policy, Reward
from grpo.loss import Objective
from grpo.metrics import Clock, Seen, Step, Tokens, Update, rollout_metrics, update_metrics
from grpo.optim import norm_by_layer, optimizer_step
from grpo.passes import Passes
from grpo.rollout import sample_groups
from grpo.settings.config import Config


def grpo(
    policy: Policy, optimizer: AdamW, draw: Draw, reward: Reward, config: Config, start: int = 0
) -> Iterator[Step]:
    """Train `policy` in place and yield every step. The first `start` steps are done already."""
    for step in range(start, config.steps):
        yield grpo_step(policy, optimizer, draw, reward, config, step)


def grpo_step(
    policy: Policy, optimizer: AdamW, draw: Draw, reward: Reward, config: Config, step: int
) -> Step:
    """Sample, score, compare completions within each group, and update the policy mu times."""
    clock, beta, objective = Clock(policy.device), config.kl_coef, Objective(config)

    # o_1 .. o_G ~ pi_old(. | q) for B questions q, and their rewards r_i
    rollout = sample_groups(policy, draw, reward, config, step)
    clock.lap("rollout")

    # A_i = (r_i - mean(r)) / (std(r) + 1e-4): one for a completion, the same for all its tokens
    advantages = objective.advantages(rollout.rewards, rollout.parts)  # (B, G)
    # 1/G sum_i 1/|o_i| sum_t, or another aggregation: one weight a token of the whole step
    weights = objective.weights(rollout.lengths, rollout.truncated)  # (N,)
    # No advantage: no policy gradient. Without a KL term their pass would add exact zeros.
    in_gradient = advantages.any(dim=1) | (beta > 0)  # (B,)
    in_pass = in_gradient[rollout.row // config.group_size]  # (N,) the tokens of these groups
    tokens = Tokens(weights, advantages.flatten()[rollout.row], policy.device)
    passes = Passes(policy, rollout.groups, in_gradient)

    # log pi_ref(o_t): the policy as this run began
    if beta > 0:
        with torch.no_grad(), policy.reference():
            passes.run(reference_pass, policy, config, tokens)
        summed(tokens.ref_logprobs)  # each process wrote its own places, 0 elsewhere
    clock.lap("reference")

    updates = []
    for update in range(config.updates_per_rollout):
        seen = Seen(tokens.weights, update)
        passes.run(policy_pass, policy, objective, tokens, seen)
        summed(seen.numbers)
        sum_gradients(policy.parameters())
        layers = norm_by_layer(policy.names, optimizer) if step + 1 in config.traced_steps else {}
        gradient = optimizer_step(optimizer, step, config, seen.numbers)
        updates.append(Update(**seen.by_name(in_pass), **gradient, grad_norm_by_layer=layers))
    clock.lap("update")

    numbers = update_metrics(updates, rollout, advantages, in_pass, config)
    return Step(
        metrics={"step": step + 1, **rollout_metrics(rollout), **numbers, **clock.times()},
        rollout=rollout,
        advantages=advantages,
        weights=weights,
        old_logprobs=updates[0].logprobs,  # equal: the weights had not moved; of all processes
        ref_logprobs=tokens.ref_logprobs.cpu() if beta > 0 else None,
        updates=updates,
        suspects=[rollout.examples[b] for b in passes.suspects],
        cuts=passes.cuts,
    )


def reference_pass(
    groups: Groups, at: Tensor, policy: Policy, config: Config, tokens: Tokens
) -> None:
    """log pi_ref(o_t) of one pass."""
    tokens.ref_logprobs[at], _ = policy.logprobs(groups, config.temperature)


def policy_pass(
    groups: Groups, at: Tensor, policy: Policy, objective: Objective, tokens: Tokens, seen: Seen
) -> None:
    """Add the gradient of one pass; all tensors are (n,). If memory runs out a pass runs again, so
    all but gradients is overwritten, never added to."""
    # log pi_theta(o_t)
    logprobs, entropy = policy.logprobs(groups, objective.temperature)
    if seen.update == 0:  # nothing has moved since sampling: this is log pi_old(o_t)
        tokens.old_logprobs[at] = logprobs.detach()

    # rho_t = pi_theta / pi_old
    ratio = objective.ratio(logprobs, tokens.old_logprobs[at], groups)
    # min(rho A, clip(rho, 1 - eps, 1 + eps_high) A)
    surrogate = objective.surrogate(ratio, tokens.advantages[at], logprobs)
    # KL = x - log x - 1, x = pi_ref / pi_theta; without a reference, to the policy itself: 0
    kl = objective.kl(logprobs, tokens.ref_logprobs[at] if objective.beta > 0 else logprobs, ratio)
    # - w (L - beta KL), summed
    loss = -tokens.weights[at] * (surrogate - objective.beta * kl)
    loss.sum().backward()
    seen.keep(at, logprobs=logprobs, ratio=ratio, kl=kl, entropy=entropy, loss=loss)
