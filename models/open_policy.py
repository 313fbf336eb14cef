"""A configuration to its policy."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch

from grpo.settings.config import Config, cache_folder
from grpo.settings.errors import UsageError
from models.loading.load import folder_of
from models.policy import Policy, load_policy

# What each instruction-tuned model was before its instruction tuning.
BASES = {
    "phantom": "phantom-base",
    "Qwen/Qwen2-VL-2B-Instruct": "Qwen/Qwen2-VL-2B",
    "Qwen/Qwen2-VL-7B-Instruct": "Qwen/Qwen2-VL-7B",
}


def starting_model(model: str, init: str) -> str:
    """The model that a run with `--init` starts from (Zhu et al., 2505.13973: initialisation).

    >>> starting_model("phantom", "base"), starting_model("phantom", "instruct")
    ('phantom-base', 'phantom')
    """
    if init != "base" or model in BASES.values():
        return model
    if model not in BASES:
        raise UsageError(f"--init base: no base of {model} is known; name it with --model")
    return BASES[model]


def open_policy(config: Config, adapter: Path | None = None) -> Policy:
    """The policy of a run: the model it names, with fresh adapters or those of a folder."""
    if config.threads:
        torch.set_num_threads(config.threads)
    return load_policy(
        config.model,
        adapter=adapter,
        lora_r=config.lora_r,
        lora_alpha=config.lora_alpha,
        max_pixels=config.max_pixels,
        dtype=config.dtype,
        device=config.device,
        gradient_checkpointing=config.gradient_checkpointing,
        cache=cache_folder(config.cache),
        seed=config.seed,
    )


def stamp(model: str, adapter: Path | None, *more: str) -> str:
    """A short name for the weight files of a model in a folder and its adapter as they are now."""
    folders = [folder for folder in (folder_of(model), adapter) if folder]
    files = [file for folder in folders for file in folder.glob("*.safetensors")]
    weights = sorted((str(f.absolute()), f.stat().st_size, f.stat().st_mtime_ns) for f in files)
    return hashlib.sha256(repr((model, *more, weights)).encode()).hexdigest()[:8]
