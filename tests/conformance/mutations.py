"""Small bugs, as (name, thread, file, old text, new text): what peers had, what a slip could make.

The test of that thread is tried first, as it is the one that ought to see the bug.
The old text must occur exactly once in its file; it is kept short, so that it survives editing.
"""

LAW, TREE, SAMPLING = "models/law.py", "models/tree.py", "models/sampling.py"
DECODE, POLICY, VISION = "models/decode.py", "models/policy.py", "models/vision.py"
RECOMPUTE = "models/recompute.py"
CHAT, LORA, LOSS = "models/chat.py", "models/lora.py", "grpo/loss.py"
LOOP, ROLLOUT, OPTIM = "grpo/loop.py", "grpo/rollout.py", "grpo/optim.py"
ADVANTAGES, PARSE = "grpo/advantages.py", "rewards/parse.py"
METRICS, REWARDS = "grpo/metrics.py", "rewards/__init__.py"

TOP_50 = "logits.masked_fill(logits < logits.topk(min(50, len(logits[0])))[0][:, -1:], -torch.inf)"
DETACH_PROMPT = """\
            width = len(groups[0].prompt.input_ids)
            parts = [
                part
                for layer in self.language_model.layers
                for part in (layer.self_attn.k_proj, layer.self_attn.v_proj)
            ]
            cut = lambda m, a, o: torch.cat([o[:, :width].detach(), o[:, width:]], dim=1)
            hooks = [part.register_forward_hook(cut) for part in parts]
            hidden = sampling.run(self.language_model, embeds, tree.position_ids, tree.mask)
            for hook in hooks:
                hook.remove()
"""
SCORE_RUN = (
    "            hidden = sampling.run(self.language_model, embeds, tree.position_ids, tree.mask)\n"
)
REENCODED = """\
        return [
            self.group(g.prompt, [self.decode(o) for o in g.completions])
            for g in rollout.groups(prompts)
        ]
"""

MUTATIONS = [
    # Positions, padding, images
    ("completions at one-dimensional positions", "unsloth_zoo_614", TREE,
     "return int(self.position_ids.max()) + 1", "return len(self.input_ids)"),
    ("completions start one position early", "unsloth_zoo_614", TREE,
     "return int(self.position_ids.max()) + 1", "return int(self.position_ids.max())"),
    ("completions scored one position late", "verl_4243", TREE,
     "torch.arange(len(inputs)) + prompt.next_position",
     "torch.arange(len(inputs)) + prompt.next_position + 1"),
    ("decoding one position late", "transformers_40490", SAMPLING,
     "decoder.step(chosen, position + step,", "decoder.step(chosen, position + step + 1,"),
    ("height and width swapped", "unsloth_zoo_614", TREE, "(t, h // merge, w // merge))",
     "(t, w // merge, h // merge))"),
    ("text after an image starts at its token count", "unsloth_zoo_614", TREE,
     "offset = int(pieces[-1].max()) + 1", "offset = offset + text + len(grid)"),
    ("predictors shifted by one", "trl_2708", TREE,
     "predictors += [last, *range(at, at + len(inputs))]",
     "predictors += [last - 1, *range(at - 1, at - 1 + len(inputs))]"),
    ("first token predicted by the first completion's state", "trl_2708", TREE,
     "predictors += [last, *", "predictors += [at, *"),
    ("completions see each other", "areal_217", TREE,
     "(query == key) & (query >= 0) | (key == 0) & (query > 0)", "(query >= 0) & (key >= 0)"),
    ("mask not causal", "areal_217", TREE, "return (sees & causal | itself)",
     "return (sees | itself)"),
    ("completions do not see the prompt", "areal_217", TREE, "| (key == 0) & (query > 0)", ""),
    ("two images swapped", "trl_4488", TREE, "torch.cat(features)", "torch.cat(features[::-1])"),
    ("images dropped on a mismatch", "trl_1_16", TREE, "    if features:",
     "    if features and int(is_image.sum()) == sum(map(len, features)):"),
    ("mismatch of images not refused", "trl_1_16", TREE, "if int(is_image.sum()) != expected:",
     "if False:"),
    ("pads between prompt and completion attended to", "unsloth_zoo_840", SAMPLING,
     "(slots >= row_lengths) & (slots < start)", "(slots >= row_lengths) & (slots < 0)"),
    ("the last pad taken for the prompt's end", "unsloth_zoo_840", SAMPLING,
     "ends = torch.tensor([len(embed) - 1 for", "ends = torch.tensor([padded.shape[1] - 1 for"),
    ("images kept by file name", "trl_4488", VISION,
     "name = self._names[image.key] = self._name(pixels)", "name = image.key.rsplit('/')[-1]"),
    ("images kept by size", "trl_4488", VISION, 'digest.update(pixels.convert("RGB").tobytes())',
     'digest.update(b"")'),
    ("prompts cut at the model's length", "open_r1_multimodal_28", POLICY,
     "            prompts.append(Prompt(ids, positions, features, text, example.id))",
     "            ids, positions = ids[: self.max_length], positions[:, : self.max_length]\n"
     "            prompts.append(Prompt(ids, positions, features, text, example.id))"),
    ("a long prompt is let through", "open_r1_multimodal_28", POLICY, "if completion <= room:",
     "if True:"),
    # Log-probs and the law of samples
    ("no temperature in the scorer", "trl_3029", LAW, "law(head(hidden), temperature, banned)",
     "law(head(hidden), 1.0, banned)"),
    ("no temperature in the sampler", "trl_3029", SAMPLING, "temperature or 1.0, banned",
     "1.0, banned"),
    ("no temperature for the reference", "trl_3029", LOOP,
     "ref_logprobs[tokens], _ = policy.logprobs(groups, config.temperature)",
     "ref_logprobs[tokens], _ = policy.logprobs(groups, 1.0)"),
    ("temperature applied twice", "trl_3029", LAW, "(logits.float() / temperature)",
     "(logits.float() / temperature**2)"),
    ("top_k 50 in the sampler", "trl_6789", LAW,
     "torch.softmax(logits, dim=-1, dtype=torch.float64)",
     f"torch.softmax({TOP_50}, dim=-1, dtype=torch.float64)"),
    ("generation_config read", "ms_swift_5967", POLICY, "                temperature=temperature,",
     "                temperature=self.model.get_base_model().generation_config.temperature,"),
    ("vision tokens not banned in the sampler", "r1_v_91", SAMPLING, "temperature or 1.0, banned)",
     "temperature or 1.0, banned & False)"),
    ("vision tokens not banned in the scorer", "r1_v_91", LAW,
     "law(head(hidden), temperature, banned)", "law(head(hidden), temperature, banned & False)"),
    ("the image token not banned at all", "r1_v_91", CHAT, "torch.isin(ids, vision)",
     "torch.isin(ids, vision[:-2])"),
    ("unused rows of the head not banned", "r1_v_91", CHAT, "(ids >= len(self.tokenizer)) |",
     "(ids < 0) |"),
    ("stop at one end token only", "trl_4970", CHAT,
     "frozenset(vocabulary[stop] for stop in STOPS)", "frozenset([self.end])"),
    ("a wrong id for the end", "trl_4970", CHAT, "self.end, self.eos = vocabulary[STOPS[0]]",
     "self.end, self.eos = vocabulary[STOPS[1]]"),
    ("the end masked", "trl_4970", SAMPLING, "done_at[row[done]] = step + 1",
     "done_at[row[done]] = max(step, 1)"),
    ("one token after the end kept", "trl_4970", SAMPLING, "done_at[row[done]] = step + 1",
     "done_at[row[done]] = min(step + 2, max_length)"),
    ("compaction mixes rows up", "transformers_31267", SAMPLING,
     "row[holes], chosen[holes] = row[sources], chosen[sources]",
     "chosen[holes] = chosen[sources]"),
    ("compaction forgets the cache", "transformers_31267", SAMPLING,
     "cache.move(sources.to(device), holes.to(device))", "pass"),
    ("compaction forgets positions", "transformers_31267", SAMPLING,
     "position[holes], mask[holes] = position[sources], mask[sources]",
     "mask[holes] = mask[sources]"),
    ("random numbers keyed without the row", "ms_swift_5967", LAW, "SeedSequence([*key, j])",
     "SeedSequence([*key])"),
    ("random numbers keyed without the step", "nemo_rl_108", ROLLOUT,
     "config.seed, step, slot, attempt)", "config.seed, slot, attempt)"),
    ("random numbers keyed without the seed", "open_instruct_648", ROLLOUT,
     "(TRAIN_STREAM, config.seed, step", "(TRAIN_STREAM, 0, step"),
    ("random numbers of torch's global state", "nemo_rl_108", LAW,
     "np.random.Generator(np.random.Philox(np.random.SeedSequence([*key, j]))).random(length)",
     "torch.rand(length, dtype=torch.float64).numpy()"),
    ("CDF in float32", "trl_6789", LAW, "cdf = probabilities.cumsum(dim=-1)",
     "cdf = probabilities.float().cumsum(dim=-1).double()"),
    ("CDF searched from the other side", "r1_v_91", LAW, "threshold, right=True",
     "threshold, right=False"),
    ("ids decoded and encoded again", "trl_6718", POLICY,
     "        return rollout.groups(prompts)\n", REENCODED),
    ("decode-time log-probs of the wrong row", "transformers_31267", SAMPLING,
     "logprobs[row, step] = picked.cpu()", "logprobs[: len(row), step] = picked.cpu()"),
    ("special tokens stripped from texts", "trl_4970", POLICY, "skip_special_tokens=False, clean",
     "skip_special_tokens=True, clean"),
    # Decoding read off the weights
    ("the adapter left out of decoding", "nova_sky_ai_skyrl_1776", DECODE,
     "return y if self.a is None else", "return y if True else"),
    ("the adapter's scale left out of decoding", "nova_sky_ai_skyrl_1776", DECODE,
     "alpha=self.scale", "alpha=1.0"),
    ("a stale copy of the adapter decodes", "nova_sky_ai_skyrl_1776", DECODE,
     "a.to(dtype), b.to(dtype), module",
     "*module.__dict__.setdefault('kept', (a.to(dtype).clone(), b.to(dtype).clone())), module"),
    ("the adapter stays on where it is off", "sglang_27140", DECODE, "if module.disable_adapters:",
     "if False:"),
    ("the norm's epsilon wrong in decoding", "transformers_40490", DECODE,
     "eps = norm.variance_epsilon", "eps = 1e-3"),
    # Reference and LoRA
    ("adapters on in the reference", "r1_v_64", POLICY,
     "with torch.no_grad(), self.model.disable_adapter():", "with torch.no_grad():"),
    ("dropout on", "trl_3000", LORA, "lora_dropout=0.0", "lora_dropout=0.1"),
    ("training mode", "trl_3000", POLICY, "self.model = model.eval()",
     "self.model = model.train()"),
    ("a layer stays in training mode", "trl_3000", RECOMPUTE, "layer.training = False", "pass"),
    ("checkpointing reentrant", "microsoft_lora_120", RECOMPUTE,
     "partial(checkpoint, use_reentrant=False)", "partial(checkpoint, use_reentrant=True)"),
    ("the prompt detached", "areal_217", POLICY, SCORE_RUN, DETACH_PROMPT),
    ("LoRA on q and v only", "unsloth_5039", LORA, "(q|k|v|o)_proj", "(q|v)_proj"),
    ("LoRA in the dtype of its base", "verl_omni_73", LORA, "autocast_adapter_dtype=True",
     "autocast_adapter_dtype=False"),
    ("merging rounds its product", "peft_1836", LORA, "tensor.float() + delta",
     "tensor + delta.bfloat16()"),
    ("merging forgets the scale", "peft_1836", LORA, 'layer.get_delta_weight("default")',
     'layer.get_delta_weight("default") / layer.scaling["default"]'),
    ("the tower runs with a graph", "ms_swift_10214", VISION,
     "    @torch.no_grad()\n    def _compute", "    def _compute"),
    ("the tower runs again for every question", "ms_swift_10214", VISION,
     "return self._memory[name]", "return self._memory.pop(name)"),
    # Loss
    ("log-ratio not held", "nemo_rl_874", LOSS,
     "(numerator - denominator).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)",
     "(numerator - denominator)"),
    ("clip at the wrong side", "trl_3144", LOSS, "return torch.min(ratio * advantages",
     "return torch.max(ratio * advantages"),
    ("no clip", "trl_3144", LOSS, "ratio.clamp(1 - clip_eps, 1 + clip_eps_high)", "ratio"),
    ("the upper bound ignored", "trl_3144", LOSS, "1 - clip_eps, 1 + clip_eps_high)",
     "1 - clip_eps, 1 + clip_eps)"),
    ("clip counted whatever the sign", "trl_3144", LOSS,
     "(ratio < 1 - clip_eps) & (advantages < 0)", "(ratio < 1 - clip_eps)"),
    ("KL by k1", "trl_3029", LOSS, "return log_x.exp() - log_x - 1", "return -log_x"),
    ("KL the other way round", "minimind_775", LOSS, "log_ratio(ref_logprobs, logprobs)",
     "log_ratio(logprobs, ref_logprobs)"),
    ("KL's sign", "minimind_775", LOOP, "surrogate - beta * kl", "surrogate + beta * kl"),
    ("the ratio upside down", "minimind_775", LOSS,
     "return log_ratio(logprobs, old_logprobs).exp()",
     "return log_ratio(old_logprobs, logprobs).exp()"),
    ("old log-probs move with the policy", "minimind_775", LOOP, "if update == 0:", "if True:"),
    ("old log-probs not detached", "minimind_775", LOOP, "old_logprobs[tokens] = logprobs.detach()",
     "old_logprobs = old_logprobs.index_put((tokens,), logprobs)"),
    ("the mean of each pass", "trl_3021", LOOP, "loss.sum().backward()",
     "(loss.mean() * 9).backward()"),
    ("dapo as a mean of completions", "vlm_r1_280", LOSS,
     '"dapo": lengths.sum().double().expand(rows)', '"dapo": rows * lengths.double()'),
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
     "advantages.masked_fill(zero_variance(rewards)[:, None], 0.0)", "advantages"),
    ("groups without signal leave the KL too", "trl_5588", LOOP,
     "zero_variance(rollout.rewards) | (beta > 0)", "zero_variance(rollout.rewards)"),
    ("no signal told by a mean", "trl_3708", ADVANTAGES, "(rewards == rewards[:, :1]).all(dim=1)",
     "(rewards.mean(dim=1) == rewards[:, 0])"),
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
    ("Adam in bfloat16", "verl_omni_73", OPTIM, "    return torch.optim.AdamW(parameters, lr",
     "    for parameter in parameters:\n        parameter.data = parameter.data.bfloat16()\n"
     "        parameter.grad = parameter.grad.bfloat16()\n    return"
     " torch.optim.AdamW(parameters, lr"),
    ("half the learning rate", "verl_omni_73", OPTIM, '            group["lr"] = rate',
     '            group["lr"] = rate / 2'),
    # Rewards
    ("an empty answer is right", "visual_rft_176", PARSE, "return said.strip() or None",
     "return said.strip()"),
    ("a letter read from the article", "lm_evaluation_harness_4188", PARSE,
     "if alone := _LETTER.fullmatch(said):", "if alone := _LETTER.match(said):"),
    ("two answers: the first counts", "lm_evaluation_harness_4188", PARSE,
     'if text.count("<answer>") != 1 or text.count("</answer>") != 1:',
     'if "<answer>" not in text or "</answer>" not in text:'),
    ("an option found inside the answer", "lm_evaluation_harness_4188", PARSE,
     "option and option == _normal(said)", "option and option in _normal(said)"),
    ("an empty wording matches an empty answer", "visual_rft_176", "rewards/words.py",
     "return bool(answer) and answer in", "return answer in"),
    ("None is zero", "trl_none", REWARDS,
     "[None if value is None else float(value) for value in values]",
     "[float(value or 0) for value in values]"),
    ("a reward's weight forgotten", "trl_none", REWARDS, "terms = [weight * value for",
     "terms = [value for"),
    # Operations
    ("all logits at once", "trl_2927", LAW, "rows = max(1, HEAD_LOGITS // len(banned))",
     "rows = len(targets)"),
    ("the order of questions remembers", "nemo_rl_108", "data/order.py",
     "return examples[shuffled(epoch)[i]]",
     "return examples[shuffled(epoch)[(i + shuffled.cache_info().hits) % len(examples)]]"),
    ("a pass may exceed the budget", "trl_6411", TREE, "* (len(plan[-1]) + 1) <= budget",
     "<= budget"),
    ("metrics kept until the end", "trl_2045", "grpo/record.py", "self.lines.flush()", "pass"),
]  # fmt: skip
