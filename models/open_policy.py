"""A configuration, or the name of a model, to its policy."""

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import PeftModel

from grpo.settings.config import Config, cache_folder
from grpo.settings.errors import UsageError
from grpo.settings.flags import flag
from grpo.settings.options import Options
from grpo.settings.recipes import RECIPES
from models import lora
from models.chat import Chat
from models.device import pick_device, pick_dtype
from models.images.features import image_tokens
from models.loading.load import SHIPPED, folder_of, load
from models.policy import Policy

# The settings that a policy is loaded with, besides its model, its adapter and its cache.
LOADED = ("lora_r", "lora_alpha", "max_pixels", "dtype", "device", "seed")
LOADED += ("gradient_checkpointing", "cuda_graphs")
MARGIN = 64  # tokens that another way of asking, or a forced choice, may add to a question

# What each instruction-tuned model was before its instruction tuning.
BASES = {
    "phantom": "phantom-base",
    "Qwen/Qwen2-VL-2B-Instruct": "Qwen/Qwen2-VL-2B",
    "Qwen/Qwen2-VL-7B-Instruct": "Qwen/Qwen2-VL-7B",
}


class Parts(NamedTuple):
    """What a policy is made of."""

    model: PeftModel
    tokenizer: Any
    processor: Any


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


def starting_adapter(config: Config) -> Path | None:
    """The adapter folder that --init sft:RUN names; None for another --init.

    Raises UsageError if there is none, or if that run had other data: with another --data-seed,
    images that the adapter was trained on could be in the test split.
    """
    if not config.init.startswith("sft:"):
        return None
    run = Path(config.init.removeprefix("sft:"))
    if not (run / "adapter").is_dir():
        raise UsageError(f"--init {config.init}: no folder {run}/adapter; name a finished run")
    before = Config.load(run / "config.json")
    for name in ("data", "modality", "data_seed"):
        old, new = getattr(before, name), getattr(config, name)
        if old != new:
            problem = f"it had {flag(name)} {old}, not {new}"
            raise UsageError(f"--init {config.init}: {problem}; use the same")
    return run / "adapter"


def open_policy(config: Config, adapter: Path | None = None) -> Policy:
    """The policy of a run: the model that it names, with a fresh adapter or that of a folder."""
    if config.threads:
        torch.set_num_threads(config.threads)
    given = {name: getattr(config, name) for name in LOADED}
    return load_policy(config.model, adapter=adapter, cache=cache_folder(config.cache), **given)


def scored_policy(options: Options) -> tuple[Config, Path | None, Path]:
    """What evaluate.py scores: its settings, its adapter, and the folder for its answers."""
    given = options.given
    if not options.model:
        run = Path(options.run)
        config = replace(Config.load(run / "config.json"), **given)
        # Answers to questions of another data set are kept apart.
        place = run / "other" / config.data.replace("/", "_") if options.data else run
        return config, run / "adapter", shortened(place)
    given |= {"model": options.model, "modality": options.modality or "MRI"}
    if adapter := Path(options.adapter) if options.adapter else None:
        given["lora_r"], given["lora_alpha"], _ = lora.read_config(adapter)
    recipe = "phantom" if options.model in SHIPPED else "medvlm-r1"
    config = Config(**{**RECIPES[recipe], "recipe": recipe, **given})
    name = f"{Path(options.model).name}-{stamp(options.model, adapter, config.data)}"
    return config, adapter, shortened(Path("runs") / "models" / name)


def shortened(place: Path) -> Path:
    """A folder, with a hash for its name if that is longer than file systems allow (255 bytes).

    >>> shortened(Path("other/phantom:new-kind")), len(shortened(Path("other", "x" * 256)).name)
    (PosixPath('other/phantom:new-kind'), 32)
    """
    name = os.fsencode(place.name)
    return place if len(name) < 256 else place.with_name(hashlib.sha256(name).hexdigest()[:32])


def load_policy(
    model: str,
    *,
    adapter: str | Path | None = None,
    lora_r: int | None = None,
    lora_alpha: int | None = None,
    max_pixels: int | None = None,
    dtype: str = "auto",
    device: str = "auto",
    gradient_checkpointing: str = "auto",
    cuda_graphs: str = "auto",
    cache: Path | None = None,
    seed: int = 0,
) -> Policy:
    """A policy from a hub id, a folder or "phantom". Raises UsageError with a remedy.

    With `adapter` the policy starts as that adapter, and so does its reference; r and alpha default
    to the adapter's own, else to 16 and 32. `seed` draws the LoRA's A. Checkpointing "auto" is off:
    train.py plans it (models/memory). `cuda_graphs` "auto" is on for a GPU that can record. `cache`
    None keeps features in memory only.
    """
    place = pick_device(device)
    base, tokenizer, processor = load(model, pick_dtype(dtype, place), max_pixels)
    r, alpha, *_ = lora.read_config(Path(adapter)) if adapter else (lora.R, lora.ALPHA)
    tuned = lora.attach(base, lora_r or r, lora_alpha or alpha, seed)
    if adapter is not None:
        lora.read(tuned, Path(adapter))
        lora.add_reference(tuned)
    switches = {"checkpointing": gradient_checkpointing == "on", "graphs": cuda_graphs}
    return Policy(tuned.to(place), tokenizer, processor, cache=cache, **switches)


def without_weights(config: Config, device: torch.device, adapter: Path | None) -> Parts:
    """What `open_policy` makes a policy of, as shapes alone: on the meta device, no weight read."""
    dtype = pick_dtype(config.dtype, device)
    base, tokenizer, processor = load(config.model, dtype, config.max_pixels, weights=False)
    with torch.device("meta"):
        tuned = lora.attach(base, config.lora_r, config.lora_alpha, config.seed)
        if adapter is not None:
            lora.add_reference(tuned)
    return Parts(tuned, tokenizer, processor)


def stamp(model: str, adapter: Path | None, *more: str) -> str:
    """A short name for the weight files of a model in a folder and its adapter as they are now."""
    folders = [folder for folder in (folder_of(model), adapter) if folder]
    files = [file for folder in folders for file in folder.glob("*.safetensors")]
    weights = sorted((str(f.absolute()), f.stat().st_size, f.stat().st_mtime_ns) for f in files)
    return hashlib.sha256(repr((model, *more, weights)).encode()).hexdigest()[:8]


def refusal(config: Config) -> Callable[[Any, Sequence[tuple[int, int]]], str]:
    """`refused(example, sizes)`: why the model of a configuration cannot take a question whose
    images have these widths and heights; "" if it can. No weight is read."""
    named = (config.model, torch.float32, config.max_pixels)
    model, tokenizer, processor = load(*named, weights=False)
    chat, most = Chat(tokenizer), model.config.text_config.max_position_embeddings

    def refused(example: Any, sizes: Sequence[tuple[int, int]]) -> str:
        try:
            images = [image_tokens(processor, size) for size in sizes]
        except ValueError:
            return "image is more than 200 times as long as wide"
        ids, _ = chat.encode(example.prompt, images)
        completion = len(chat.encode_text(example.completion(example.reasoning)))
        completion = max(config.max_completion_length, completion)
        if len(ids) + MARGIN + completion > most:
            return "question and --max-completion-length are too long"
        return ""

    return refused
