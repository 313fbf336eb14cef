"""A configuration to its policy."""

from __future__ import annotations

from pathlib import Path

import torch

from grpo.config import Config, user_cache
from models.policy import Policy, load_policy


def open_policy(config: Config, adapter: Path | None = None) -> Policy:
    """The policy of a run: the model it names, with fresh adapters or those of a folder."""
    if config.threads:
        torch.set_num_threads(config.threads)
    cache = {"auto": user_cache(), "none": None}.get(config.cache, Path(config.cache))
    return load_policy(
        config.model,
        adapter=adapter,
        lora_r=config.lora_r,
        lora_alpha=config.lora_alpha,
        max_pixels=config.max_pixels,
        dtype=config.dtype,
        device=config.device,
        gradient_checkpointing=config.gradient_checkpointing,
        cache=cache,
        seed=config.seed,
    )
