"""Group Relative Policy Optimization (GRPO), written by hand. Read `loop.py` first.

A step takes B prompts and draws G completions o_1 ... o_G of each from the policy itself. Each
completion gets a reward r_i, and is compared with its own group only:

    A_i = (r_i - mean(r)) / (std(r) + 1e-4)                           advantages.py

so no value network is needed. Then, for mu updates, over the tokens t of the completions:

    rho = exp(log pi_theta - log pi_old)                              loss.py
    surrogate = min(rho A, clip(rho, 1 - epsilon, 1 + epsilon_high) A)
    KL = exp(log pi_ref - log pi_theta) - (log pi_ref - log pi_theta) - 1
    loss = mean of -(surrogate - beta KL)

`loss` says what the mean is taken over: each completion first (grpo), all tokens alike (dapo), or
a constant number of slots (dr_grpo). pi_ref is the policy with its adapters off.

The tensors are flat: the N completion tokens of a step lie one after another, EOS included and
nothing behind it, so that there is no padding and no mask to get wrong.

The policy itself, images and text are behind the `Policy` protocol of loop.py: this package
imports torch, safetensors and jinja2 (tqdm for the bar) and knows no model.

References: GRPO, arXiv 2402.03300; DAPO, 2503.14476; Dr. GRPO, 2503.20783; MedVLM-R1, 2502.19634.
"""
