"""Named configurations, every value with its source.

A setting that a recipe leaves out has Config's default, which is ours where no source is named
here. "ours" marks a value that no paper gives, or that our set-up needs different. MedVLM-R1 is
arXiv 2502.19634 and the code released with it, RARL is 2506.06600, Zhu et al. 2505.13973. The full
text of the last two was not at hand: "paper" marks what their abstracts and pages say, "summary"
what third parties say of them.
"""

from typing import Any

# What the papers' recipes share: the model of all three (paper; Zhu et al.: summary); MedVLM-R1
# reports no validation, and its released script has 512 tokens (for the others both are ours).
PAPERS = {"model": "Qwen/Qwen2-VL-2B-Instruct", "val_size": 0, "max_completion_length": 512}
RECIPES: dict[str, dict[str, Any]] = {
    # The tiny model on generated phantom images, for a laptop CPU. All numbers are ours.
    "phantom": {
        "train_size": 2400,
        "val_size": 240,
        "eval_size": 1200,  # a modality; phantoms cost nothing, and intervals shrink
        "prompts_per_step": 16,
        "steps": 60,
        "max_completion_length": 48,
        "learning_rate": 1.2e-3,  # far above a real model's: the LoRA of a tiny one is tiny
        "warmup_steps": 6,
        "length_cap": 24,  # words; three lesions take 16
        "kl_coef": 0.0,  # the run is short, and should leave the base's habits behind
    },
    # MedVLM-R1: 600 MRI questions, tested on MRI, CT and X-ray. Config's defaults are its values:
    #   paper: modality MRI, ood CT,XRAY; train_size 600 (the released code takes 500); eval_size
    #     300 of each modality; reward format=1,accuracy=1, the plain sum, 0 to 2
    #   released script: prompts_per_step 4 (2 GPUs x 1 prompt x 2 accumulated); max_pixels 401,408,
    #     which are 512 visual tokens; the shuffle's seed 42
    #   released trainer: temperature 1, fixed there; loss grpo, the mean of each completion, then
    #     of the batch; scale_rewards group; updates_per_rollout 1, so that the clip never acts
    #   TRL's default at the time (0 today): kl_coef 0.04, k3 in the loss
    #   Trainer's defaults: lr_schedule linear, warmup_steps 0, max_grad_norm 1, weight_decay 0
    #   ours: steps 300, which are 600 questions x 2 epochs / 4 prompts; lora_r 16, lora_alpha 32;
    #     learning_rate 1e-5, for LoRA: the paper tuned all weights at 1e-6
    "medvlm-r1": {
        **PAPERS,
        "data": "huatuo",  # the collection its released code reads; fetched from the hub
        "group_size": 4,  # released script: --num_generations 4
    },
    # RARL: LoRA, a reward for the answer and one for the reasoning, diversity prompting. Its
    # formulae, weights, prompts, learning rate, group size and beta were not found. By Config's
    # defaults: loss grpo (paper: GRPO), prompt reason (paper: reasoning prompting at inference).
    "rarl": {
        **PAPERS,
        "data": "silvar-med",  # summary: a subset of it; wants --data silvar-med:FOLDER
        "modality": "ALL",  # it names none
        "ood": "none",  # unseen are other data sets: evaluate.py --data vqa-rad and others
        "train_size": 1000,  # summary: 500 to 1,000
        "lora_r": 8,  # summary
        "lora_alpha": 16,  # ours
        "diversity": "explain,direct,open",  # summary: explanation-required, short-form, open-ended
        "reward": "format=1,correctness=1,reasoning=1",  # paper: both; judged: ours
        "steps": 500,  # ours: 1,000 questions x 2 epochs / 4 prompts
    },
    # Zhu et al.: what each of four dimensions does to medical GRPO. This is their plain GRPO; the
    # dimensions are flags: --init base or sft:RUN; --reward ...,semantic=1 --judge ...;
    # --reward ...,length-ecr=1 or length-cwr=1; --loss dr_grpo --scale-rewards none and
    # --shuffle-options. Beta, learning rate and steps were not found. By Config's defaults:
    # group_size 8, loss grpo, reward format=1,accuracy=1, which the others are added to (summary);
    # kl_coef 0.04 (summary: with KL; the value is ours, as MedVLM-R1).
    "clinical": {
        **PAPERS,
        "data": "pmc-vqa",  # summary
        "modality": "ALL",  # it names none
        "ood": "none",
        "train_size": 10_000,  # summary
        "eval_size": 7_000,  # summary
        "steps": 2_500,  # ours: one epoch
        "length_cap": 200,  # ours, words
    },
}

# Cards sold as "16 GB" report a little less than 16e9 bytes.
BIG_ENOUGH = 15.5e9


def recipe_for(memory: float | None) -> tuple[str, str]:
    """Return the recipe for a machine and the reason in a few words.

    `memory` is the bytes of its CUDA device; None: there is none, or it is not to be used.

    >>> recipe_for(None)
    ('phantom', 'no CUDA device')
    >>> recipe_for(40e9)
    ('medvlm-r1', 'a CUDA device of 40 GB')
    """
    if memory is None:
        return "phantom", "no CUDA device"
    size = f"a CUDA device of {memory / 1e9:.0f} GB"
    if memory < BIG_ENOUGH:
        return "phantom", f"{size}, too small for a 2B model"
    return "medvlm-r1", size


def cuda_bytes(device: str) -> float | None:
    """Return the memory of the CUDA device, None if there is none; `device` as in Config."""
    import torch  # here, because the import takes seconds and --help does not need it

    if not torch.cuda.is_available():
        return None
    where = device if device.startswith("cuda") else "cuda"
    try:
        return float(torch.cuda.get_device_properties(where).total_memory)
    except (RuntimeError, AssertionError):  # no such device: models/loading refuses it later
        return None


# Second spellings of flags, for users of TRL: its name -> ours, where the two differ.
TRL_NAMES = {
    "num_generations": "group_size", "beta": "kl_coef", "num_iterations": "updates_per_rollout",
    "epsilon": "clip_eps", "epsilon_high": "clip_eps_high", "delta": "clip_delta",
    "importance_sampling_level": "ratio", "use_bias_correction_kl": "kl", "loss_type": "loss",
    "mask_truncated_completions": "mask_truncated", "output_dir": "out", "save_steps": "save_every",
    "multi_objective_aggregation": "combine_rewards", "save_total_limit": "keep_checkpoints",
    "resume_from_checkpoint": "resume",
}  # fmt: skip
# TRL's values of a setting, in lower case -> ours, where the two differ.
TRL_VALUES: dict[tuple[str, str], dict[str, str]] = {
    ("loss", "cispo"): {"loss": "dapo", "surrogate": "cispo"},
    ("combine_rewards", "sum_then_normalize"): {"combine_rewards": "sum"},
    ("combine_rewards", "normalize_then_sum"): {"combine_rewards": "normalized"},
    ("kl", "true"): {"kl": "k3-corrected"},
    ("kl", "false"): {"kl": "k3"},
}
