"""Small bugs, as (name, thread, file, old text, new text): what peers had, what a slip could make.

The test of that thread is tried first, as it is the one that ought to see the bug.
The old text must occur exactly once in its file; it is kept short, so that it survives editing.
"""

from tests.conformance.mutations_of_models import LAW, LOOP, MODELS, ROLLOUT, TREE

LOSS, OPTIM = "grpo/loss.py", "grpo/optim.py"
ADVANTAGES, PARSE = "grpo/advantages.py", "rewards/answers.py"
METRICS, REWARDS = "grpo/metrics.py", "rewards/scoring.py"

MUTATIONS = [
    *MODELS,
    # Loss
    ("log-ratio not held", "nemo_rl_874", LOSS,
     "(numerator - denominator).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)",
     "(numerator - denominator)"),
    ("clip at the wrong side", "trl_3144", LOSS, "return torch.min(ratio.clamp(",
     "return torch.max(ratio.clamp("),
    ("no clip", "trl_3144", LOSS, "ratio.clamp(1 - clip_eps, 1 + clip_eps_high)", "ratio"),
    ("the upper bound ignored", "trl_3144", LOSS, "1 - clip_eps, 1 + clip_eps_high)",
     "1 - clip_eps, 1 + clip_eps)"),
    ("clip counted whatever the sign", "trl_3144", LOSS,
     "(ratio < 1 - clip_eps) & (advantages < 0)", "(ratio < 1 - clip_eps)"),
    ("KL by k1", "trl_3029", LOSS, "return log_x.exp() - log_x - 1", "return -log_x"),
    ("KL the other way round", "minimind_775", LOSS, "log_ratio(ref_logprobs, logprobs)",
     "log_ratio(logprobs, ref_logprobs)"),
    ("KL's sign", "minimind_775", LOOP, "surrogate - objective.beta",
     "surrogate + objective.beta"),
    ("the ratio upside down", "minimind_775", LOSS,
     "return log_ratio(logprobs, old_logprobs).exp()",
     "return log_ratio(old_logprobs, logprobs).exp()"),
    ("old log-probs move with the policy", "minimind_775", LOOP,
     "if seen.update == 0:", "if True:"),
    ("old log-probs not detached", "minimind_775", LOOP,
     "tokens.old_logprobs[at] = logprobs.detach()",
     "tokens.old_logprobs = tokens.old_logprobs.index_put((at,), logprobs)"),
    ("the mean of each pass", "trl_3021", LOOP, "loss.sum().backward()",
     "(loss.mean() * 9).backward()"),
    ("dapo as a mean of completions", "vlm_r1_280", LOSS,
     '"dapo": kept.sum().clamp(min=1).double().expand(rows)', '"dapo": rows * lengths.double()'),
    ("dr_grpo by the longest of the batch", "vlm_r1_280", LOSS,
     "rows * max_completion_length, dtype", "rows * int(lengths.max()), dtype"),
    ("weights of grpo not by length", "vlm_r1_280", LOSS, '"grpo": rows * lengths.double()',
     '"grpo": rows * lengths.double().mean().expand(rows)'),
    # Groups
    ("biased std", "ms_swift_3980", ADVANTAGES, "rewards.std(dim=1, keepdim=True)",
     "rewards.std(dim=1, keepdim=True, unbiased=False)"),
    ("epsilon 1e-8", "ms_swift_3980", ADVANTAGES, "keepdim=True) + 1e-4)", "keepdim=True) + 1e-8)"),
    ("advantage over the whole batch", "search_r1_88", ADVANTAGES,
     "rewards - rewards.mean(dim=1, keepdim=True)", "rewards - rewards.mean()"),
    ("std over the whole batch", "search_r1_88", ADVANTAGES, "(rewards.std(dim=1, keepdim=True) +",
     "(rewards.std() +"),
    ("groups without signal contribute", "trl_5588", ADVANTAGES,
     "advantages.masked_fill(equal, 0.0)", "advantages"),
    ("groups without signal leave the KL too", "trl_5588", LOOP,
     "advantages.any(dim=1) | (beta > 0)", "advantages.any(dim=1)"),
    ("no signal told by a mean", "trl_3708", ADVANTAGES,
     "(rewards == rewards[:, :1]).all(dim=1, keepdim=True)",
     "(rewards.mean(dim=1) == rewards[:, 0])[:, None]"),
    ("rewards of another group", "search_r1_88", ROLLOUT, "list(totals[start:end])",
     "list(totals[: end - start])"),
    ("dynamic sampling does not fill again", "trl_3708", ROLLOUT, "if not slots or attempt ==",
     "if True or not slots or attempt =="),
    ("the reward's std over all groups", "trl_3857", METRICS, "rollout.rewards.std(dim=1).mean()",
     "rollout.rewards.std()"),
    # Optimizer
    ("no zero_grad", "trl_3021", OPTIM, "optimizer.zero_grad(", "dict("),
    ("clipping after the update", "nemo_rl_874", OPTIM,
     "torch.nn.utils.clip_grad_norm_(_parameters(optimizer), config.max_grad_norm)",
     "torch.nn.utils.get_total_norm([p.grad for p in _parameters(optimizer)])"),
    ("a bad gradient is used", "nemo_rl_874", OPTIM, "    if finite:", "    if True:"),
    ("Adam in bfloat16", "verl_omni_73", OPTIM, "    return AdamW(parameters, lr",
     "    for parameter in parameters:\n        parameter.data = parameter.data.bfloat16()\n"
     "        parameter.grad = parameter.grad.bfloat16()\n    return"
     " torch.optim.AdamW(parameters, lr"),
    ("half the learning rate", "verl_omni_73", OPTIM, '["lr"] = rate', '["lr"] = rate / 2'),
    # Rewards
    ("an empty answer is right", "visual_rft_176", PARSE, "return said.strip() or None",
     "return said.strip()"),
    ("a letter read from the article", "lm_evaluation_harness_4188", PARSE,
     "if alone := _LETTER.fullmatch(said):", "if alone := _LETTER.match(said):"),
    ("two answers: the first counts", "lm_evaluation_harness_4188", PARSE,
     'if text.count("<answer>") != 1 or text.count("</answer>") != 1:',
     'if "<answer>" not in text or "</answer>" not in text:'),
    ("an option found inside the answer", "lm_evaluation_harness_4188", PARSE,
     "_normal(option) in wordings", "any(_normal(option) in wording for wording in wordings)"),
    ("an empty wording matches an empty answer", "visual_rft_176", "rewards/words.py",
     "return bool(answer) and answer in", "return answer in"),
    ("None is zero", "trl_none", REWARDS,
     "else _number(value)", "else _number(value or 0)"),
    ("a reward's weight forgotten", "trl_none", REWARDS, "totals[i] += reward.weight * value",
     "totals[i] += value"),
    # Operations
    ("all logits at once", "trl_2927", LAW, "rows = max(1, HEAD_LOGITS // len(banned))",
     "rows = len(targets)"),
    ("the order of questions remembers", "nemo_rl_108", "data/training_questions.py",
     "return examples[shuffled(epoch)[i]]",
     "return examples[shuffled(epoch)[(i + shuffled.cache_info().hits) % len(examples)]]"),
    ("a pass may exceed the budget", "trl_6411", TREE, "if lengths[i] <= left", "if left > 0"),
    ("metrics kept until the end", "trl_2045", "grpo/run/metrics_log.py",
     "self.lines.flush()", "pass"),
]  # fmt: skip
