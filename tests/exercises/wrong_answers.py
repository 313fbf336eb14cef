"""Typical errors, most of them from the traps of the exercises. Each changes one thing in the
project's own function. WRONG_ANSWERS has them by the name of the blank, each with how the grader's
words begin."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from grpo import advantages, loss
from models import attention, distribution, tree
from models import policy as models_policy
from models.sampling import sampler


def by_group(rewards: Tensor, scale: str, mean: Tensor, ddof: int = 1, eps: float = 1e-4) -> Tensor:
    """(r - mean) / (std + eps) where rewards are scaled by group, the project's own elsewhere."""
    if scale != "group":
        return advantages.group_advantages(rewards, scale)
    return (rewards - mean) / (rewards.std(dim=1, keepdim=True, correction=ddof) + eps)


def no_zeros(rewards, scale="group"):
    return by_group(rewards, scale, rewards.mean(dim=1, keepdim=True))


def std_of_g(rewards, scale="group"):
    return by_group(rewards, scale, rewards.mean(dim=1, keepdim=True), ddof=0)


def small_epsilon(rewards, scale="group"):
    return by_group(rewards, scale, rewards.mean(dim=1, keepdim=True), eps=1e-8)


def mean_of_the_step(rewards, scale="group"):
    return by_group(rewards, scale, rewards.mean())


def longest_as_limit(lengths, kind, most, masked=False):
    return loss.token_weights(lengths, kind, int(lengths.max()), masked)


def tokens_for_completions(lengths, kind, most, masked=False):
    return loss.token_weights(lengths, "dapo" if kind == "grpo" else kind, most, masked)


def masked_tokens_counted(lengths, kind, most, masked=False):
    weights = loss.token_weights(lengths, kind, most)
    return weights * (torch.as_tensor(masked).expand(len(lengths)).repeat_interleave(lengths) == 0)


def causal_alone(self, layer, query, key, value):
    lengths = [[sum(group)] for group in self.lengths]
    return attention.TreeAttention(lengths)(layer, query, key, value)


def across_groups(self, layer, query, key, value):
    flat = [self.lengths[0][0], *self.lengths[0][1:], *(n for g in self.lengths[1:] for n in g)]
    return attention.TreeAttention([flat])(layer, query, key, value)


def detached_prompt(self, layer, query, key, value):
    first = self.lengths[0][0]
    key, value = (torch.cat([x[:first].detach(), x[first:]]) for x in (key, value))
    return attention.TreeAttention(self.lengths)(layer, query, key, value)


def moved(groups, device, change: Callable[[tree.Group, Tensor], Tensor]) -> tree.Tree:
    """The packed groups with other positions (3, n) of each group's completions."""
    packed, at = tree.pack(groups, device), 0
    positions = packed.position_ids.clone()
    for group in groups:
        first, at = at + len(group.prompt.input_ids), at + group.row_length
        positions[:, first:at] = change(group, positions[:, first:at])
    return replace(packed, position_ids=positions)


def positions_by_tokens(groups, device="cpu"):
    """A completion starts at the number of tokens of its prompt."""
    return moved(groups, device, lambda g, p: p + len(g.prompt.input_ids) - g.prompt.next_position)


def positions_of_one_row(groups, device="cpu"):
    """Completions continue one another, as in a plain sequence."""
    return moved(groups, device, lambda g, p: g.prompt.next_position + torch.arange(p.shape[1]))


def one_off(groups, device="cpu"):
    packed = tree.pack(groups, device)
    return replace(packed, predictors=(packed.predictors + 1).clamp(max=len(packed.wanted) - 1))


def banned_kept(logits, temperature, banned):
    return logits.float() / temperature


def no_temperature(logits, temperature, banned):
    return distribution.law(logits, 1.0, banned)


def divided_in_place(logits, temperature, banned):
    return logits.float().div_(temperature).masked_fill(banned, -torch.inf)


def by_search(logits: Tensor, u: Tensor, right: bool = True, dtype=torch.float64):
    p = logits.softmax(dim=-1, dtype=dtype)
    cdf = p.cumsum(dim=-1)
    found = torch.searchsorted(cdf, u[:, None].to(dtype) * cdf[:, -1:], right=right)
    tokens = found.clamp(max=p.shape[1] - 1)
    drawn = p.gather(1, tokens)
    return tokens.masked_fill(~(drawn > 0), -1)[:, 0], drawn.log()[:, 0].float()


def first_at_least(logits, u):
    return by_search(logits, u, right=False)


def in_float32(logits, u):
    return by_search(logits, u, dtype=torch.float32)


def top_50(logits, u):
    least = logits.topk(min(50, logits.shape[1]), dim=-1).values[:, -1:]
    return by_search(logits.masked_fill(logits < least, -torch.inf), u)


def end_left_out(self, start, drawn):
    done = sampler.Rollout.add(self, start, drawn)
    self.lengths[self.row[done]] -= 1
    return done


def last_end(self, start, drawn):
    ends = torch.isin(drawn[0], self._ends)
    done = sampler.Rollout.add(self, start, drawn)
    last = ends.shape[1] - ends.flip(1).int().argmax(dim=1)
    self.lengths[self.row[done]] = start + last[done]
    return done


def one_of_two_ends(self, start, drawn):
    self._ends = torch.tensor([7])
    return sampler.Rollout.add(self, start, drawn)


def places_for_rows(self, start, drawn):
    lengths = self.lengths.clone()
    done = sampler.Rollout.add(self, start, drawn)
    lengths[: len(done)][done] = self.lengths[self.row[done]]
    self.lengths = lengths
    return done


def scored_without_temperature(self, groups, temperature):
    return models_policy.Policy.logprobs(self, groups, 1.0)


def scored_one_off(self, groups, temperature):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models_policy, "pack", one_off)
        return models_policy.Policy.logprobs(self, groups, temperature)


def detached_states(self, groups, temperature):
    logprobs, entropy = models_policy.Policy.logprobs(self, groups, temperature)
    first = torch.cat([torch.arange(len(o)) == 0 for g in groups for o in g.completions])
    return logprobs.where(~first, logprobs.detach()), entropy


def passed(
    groups, at, policy, objective, tokens, seen, *, old=True, detach=True, reduce=Tensor.sum, kl=-1
):
    """policy_pass with a choice: old log-probs kept after update 0, and detached; how losses are
    added; the sign of the KL term."""
    logprobs, entropy = policy.logprobs(groups, objective.temperature)
    if seen.update == 0 or not old:
        tokens.old_logprobs[at] = logprobs.detach()
    before = tokens.old_logprobs[at]
    if not detach:  # equal numbers, through which the gradient of the ratio cancels
        before = before + logprobs - logprobs.detach()
    ratio = objective.ratio(logprobs, before, groups)
    gain = objective.surrogate(ratio, tokens.advantages[at], logprobs)
    ref = tokens.ref_logprobs[at] if objective.beta > 0 else logprobs
    term = objective.kl(logprobs, ref, ratio)
    loss = -tokens.weights[at] * (gain + kl * objective.beta * term)
    reduce(loss).backward()
    seen.keep(at, logprobs=logprobs, ratio=ratio, kl=term, entropy=entropy, loss=loss)


def averaged(*given):
    passed(*given, reduce=Tensor.mean)


def old_of_every_update(*given):
    passed(*given, old=False)


def ratio_without_gradient(*given):
    passed(*given, detach=False)


def kl_rewarded(*given):
    passed(*given, kl=1)


def method(parent: type, name: str, wrong: Callable[..., Any]) -> type:
    """A class with the wrong method, under the name of the error."""
    return type(wrong.__name__, (parent,), {name: wrong})


def named(name: str, answer: Callable[..., Any]) -> Callable[..., Any]:
    answer.__name__ = name
    return answer


def without_min(ratio, a, low, high, delta=torch.inf):
    return ratio.clamp(1 - low, min(1 + high, delta)) * a


def one_bound(ratio, a, low, high, delta=torch.inf):
    return loss.clipped_surrogate(ratio, a, low, low, delta)


def delta_ignored(ratio, a, low, high, delta=torch.inf):
    return loss.clipped_surrogate(ratio, a, low, high)


TREE, ROLLOUT, POLICY = attention.TreeAttention, sampler.Rollout, models_policy.Policy
WRONG_ANSWERS = {
    "group_advantages": [
        (mean_of_the_step, "advantages, scale_rewards group, rewards"),
        (std_of_g, "advantages, scale_rewards group, rewards"),
        (small_epsilon, "advantages, scale_rewards group"),
        (no_zeros, "seven rewards of 0.1"),
    ],
    "token_weights": [
        (longest_as_limit, "weights, loss dr_grpo"),
        (tokens_for_completions, "weights, loss grpo"),
        (masked_tokens_counted, "weights, loss dapo, lengths .*masked"),
    ],
    "importance_ratio": [
        (named("inverted", lambda p, q: loss.importance_ratio(q, p)), "rho: "),
        (named("detached", lambda p, q: loss.importance_ratio(p, q).detach()), "rho: no gradient"),
        (named("unheld", lambda p, q: (p - q).exp()), "rho where log-probs are 10000 apart: inf"),
    ],
    "clipped_surrogate": [
        (without_min, "L with the bounds"),
        (one_bound, r"L with the bounds \(0.2, 0.28"),
        (delta_ignored, r"L with the bounds \(0.1, 0.1, 1.3"),
    ],
    "k3_kl": [
        (named("inverted", lambda p, ref: loss.k3_kl(ref, p)), "KL: "),
        (named("k1", lambda p, ref: p - ref), "KL: "),
        (named("detached", lambda p, ref: loss.k3_kl(p.detach(), ref)), "KL: no gradient"),
        (
            named("unheld", lambda p, ref: (ref - p).exp() - (ref - p) - 1),
            "KL where log-probs are -10000 apart: inf",
        ),
    ],
    "TreeAttention.__call__": [
        (method(TREE, "__call__", causal_alone), "attention of a pass"),
        (method(TREE, "__call__", across_groups), "attention of a pass"),
        (method(TREE, "__call__", detached_prompt), "gradient of keys"),
    ],
    "pack": [
        (positions_by_tokens, "the position of that token"),
        (positions_of_one_row, "the position of that token"),
        (one_off, "the token that predicts each target"),
    ],
    "law": [
        (banned_kept, "softmax of"),
        (no_temperature, "softmax of"),
        (divided_in_place, "the logits that were given"),
    ],
    "draw": [
        (first_at_least, "tokens with the probabilities"),
        (in_float32, "tokens from"),
        (top_50, "tokens from 643"),
    ],
    "Rollout.add": [
        (method(ROLLOUT, "add", end_left_out), "completion of"),
        (method(ROLLOUT, "add", last_end), "completion of .*drawn 3 at a time"),
        (method(ROLLOUT, "add", one_of_two_ends), "which rows ended"),
        (method(ROLLOUT, "add", places_for_rows), "completion of"),
    ],
    "Policy.logprobs": [
        (method(POLICY, "logprobs", scored_without_temperature), ".*at temperature 0.7"),
        (method(POLICY, "logprobs", scored_one_off), "log-probs of completion tokens"),
        (method(POLICY, "logprobs", detached_states), "gradient of the LoRA weights"),
    ],
    "policy_pass": [
        (averaged, "gradient by log pi, update 1"),
        (old_of_every_update, "loss of every token, update 2"),
        (ratio_without_gradient, "gradient by log pi, update 1"),
        (kl_rewarded, "loss of every token, update 1"),
    ],
}
