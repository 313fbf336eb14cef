"""What a checkpoint's files must be, and fit to each other: one clear line for all else.

Nothing here runs code from a checkpoint, and no pickle is opened.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import PreTrainedConfig
from transformers.utils import cached_file

from grpo.settings.errors import UsageError

# What a folder must hold; of names in one tuple, one is enough.
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
NEEDED = (
    ("config.json",),
    ("tokenizer_config.json",),
    ("tokenizer.json", "vocab.json"),
    ("tokenizer.json", "merges.txt"),
    ("preprocessor_config.json", "processor_config.json"),
    (WEIGHTS, INDEX),
)


def refuse_pipes(name: str, folder: Path) -> None:
    """A named pipe in place of a file would be waited on for ever."""
    for file in folder.iterdir():
        if file.exists() and not (file.is_file() or file.is_dir()):
            raise UsageError(f"model {name}: {file.name} is no plain file; download it again")


def check_type(name: str, source: str) -> None:
    config, _ = PreTrainedConfig.get_config_dict(source)
    kind = config.get("model_type") if isinstance(config, dict) else None
    if kind is None:
        raise UsageError(f"model {name}: no readable config.json there; give a model's own folder")
    if kind != "qwen2_vl":
        raise UsageError(
            f"model {name}: its type is {kind}; only qwen2_vl (Qwen2-VL, 2B to 72B) is supported"
        )
    if "quantization_config" in config:
        raise UsageError(
            f"model {name}: its weights are quantized, which is not supported; use the model that "
            "it was made from, such as Qwen/Qwen2-VL-2B-Instruct"
        )


def refuse_detours(name: str, source: str) -> None:
    """transformers follows an index to pickles, and an adapter's config to the base it names."""
    adapter, index = (
        cached_file(source, file, _raise_exceptions_for_missing_entries=False)
        for file in ("adapter_config.json", INDEX)
    )
    if adapter:
        raise UsageError(f"model {name}: holds an adapter; name its base, or take the adapter out")
    shards = set(read_json(Path(index))["weight_map"].values()) if index else ()
    if odd := [s for s in shards if s != Path(s).name or not s.endswith(".safetensors")]:
        problem = f"{INDEX} leads to {odd[0]}; only safetensors of its own are read, save it so"
        raise UsageError(f"model {name}: {problem}")


def read_json(file: Path) -> Any:
    return json.loads(file.read_text("utf-8"))


def check_files(name: str, folder: Path) -> None:
    """transformers makes an empty tokenizer where its files are missing, and names no bad shard."""
    sizes = {file.name: file.stat().st_size for file in folder.iterdir() if file.is_file()}
    lacking = [" or ".join(names) for names in NEEDED if not any(sizes.get(n) for n in names)]
    if lacking:
        pickled = any(file.startswith("pytorch_model") for file in sizes)
        remedy = "only safetensors are read, save it so" if pickled else "download it again"
        raise UsageError(f"model {name}: lacks {', '.join(lacking)}; {remedy}")
    _refuse_damaged(name, folder, [file for names in NEEDED for file in names if file in sizes])
    if WEIGHTS not in sizes:
        _refuse_damaged(name, folder, sorted(set(read_json(folder / INDEX)["weight_map"].values())))


def _refuse_damaged(name: str, folder: Path, files: Sequence[str]) -> None:
    for file in files:
        if problem := _problem(folder / file):
            raise UsageError(f"model {name}: {file} {problem}")


def _problem(file: Path) -> str | None:
    """What is wrong with a file. That of weights says in its header how long it must be."""
    if not file.is_file():
        return "is missing; download it again"
    with file.open("rb") as opened:
        if opened.read(24) == b"version https://git-lfs.":
            return "is a git-lfs pointer, not the file itself; run git lfs pull there"
    try:
        if file.suffix == ".json":
            read_json(file)
        elif file.suffix == ".safetensors":
            with safe_open(file, framework="pt"):
                pass
    except (ValueError, OSError, SafetensorError) as error:
        return f"is damaged or only half downloaded ({error}); download it again"
    return None


def check_weights(name: str, report: dict[str, Any], model: nn.Module) -> None:
    """transformers fills what a file lacks with random numbers, drops the rest, and only warns."""
    misshapen = {key if isinstance(key, str) else key[0] for key in report["mismatched_keys"]}
    lacking = sorted({*report["missing_keys"], *misshapen})
    if lacking:
        raise UsageError(
            f"model {name}: {len(lacking)} weights are missing or misshapen ({lacking[0]}, ...); "
            "download it again"
        )
    if extra := sorted(report["unexpected_keys"]):
        raise UsageError(
            f"model {name}: {len(extra)} of its weights have no place in the model that its "
            f"config.json describes ({extra[0]}, ...); download it again"
        )
    # A sum holds whatever in a tensor is not finite, and takes a fraction of the time of looking.
    if bad := [key for key, weight in model.named_parameters() if not weight.sum().isfinite()]:
        raise UsageError(
            f"model {name}: {len(bad)} weights hold what is no finite number ({bad[0]}, ...); "
            "download it again"
        )


def check_fit(name: str, config: Any, tokenizer: Any, processor: Any) -> None:
    """Files of two models in one folder load without a word."""
    if tokenizer.chat_template is None:
        raise UsageError(f"model {name}: has no chat template; use an -Instruct model")
    if config.text_config.use_sliding_window:
        raise UsageError(f"model {name}: uses sliding-window attention, which is not supported")
    pad = tokenizer.get_vocab().get("<|image_pad|>", config.image_token_id)  # none: see Chat
    if pad != config.image_token_id or len(tokenizer) > config.text_config.vocab_size:
        raise UsageError(
            f"model {name}: its tokenizer and its config.json are of two models (image token {pad} "
            f"and {config.image_token_id}); download it again"
        )
    tower = config.vision_config
    patches = (tower.patch_size, tower.spatial_merge_size, tower.temporal_patch_size)
    if patches != (processor.patch_size, processor.merge_size, processor.temporal_patch_size):
        raise UsageError(
            f"model {name}: its preprocessor_config.json and its config.json cut images into "
            "different patches; download it again"
        )


def check_processor(name: str, processor: Any) -> None:
    """One blank picture now, rather than the first real one at some step."""
    try:
        pixels = processor(images=[Image.new("RGB", (56, 56))], return_tensors="pt")["pixel_values"]
        problem = "" if pixels.isfinite().all() else "makes numbers that are not finite"
    except Exception as error:  # of sizes, means and factors of any type
        problem = f"cannot prepare an image ({error})"
    if problem:
        raise UsageError(f"model {name}: its preprocessor_config.json {problem}; download it again")
