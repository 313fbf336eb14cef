"""Hub id, folder or "phantom" -> model, tokenizer, image processor.

Only `qwen2_vl`, only safetensors, never code from a checkpoint, and no AutoProcessor: for Qwen2-VL
it wants torchvision, for a video processor that nobody here needs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError, safe_open
from transformers import (
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    Qwen2VLForConditionalGeneration,
)
from transformers.utils import cached_file

from grpo.config import UsageError

# The tiny Qwen2-VL that ships with the project, and an earlier state of its pretraining.
SHIPPED = {name: Path(__file__).parent / name for name in ("phantom", "phantom-base")}

# The class that resizes with Pillow; its name has changed between versions.
ImageProcessor = getattr(transformers, "Qwen2VLImageProcessorPil", None) or (
    transformers.Qwen2VLImageProcessor
)

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

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def pick_device(device: str) -> torch.device:
    """The device; "auto" takes a GPU where there is one. Raises UsageError for one that is not."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if not re.fullmatch(r"cpu|cuda(:\d+)?", device, re.ASCII):  # not mps, meta, ...: untested here
        raise UsageError(f"device {device}: unknown; use --device auto, cpu, cuda or cuda:N")
    try:
        picked = torch.device(device)
        torch.empty(0, device=picked)
    except (RuntimeError, AssertionError):
        raise UsageError(f"device {device}: is not on this machine; use --device cpu") from None
    return picked


def pick_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """The dtype; "auto" is bfloat16 on a GPU, else float32. Raises UsageError for others."""
    if dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    if dtype not in DTYPES:
        raise UsageError(f"dtype {dtype}: unknown; use auto, {' or '.join(DTYPES)}")
    return DTYPES[dtype]


def folder_of(name: str) -> Path:
    """The folder that a model's name stands for, if it stands for one and not for a hub id."""
    return SHIPPED.get(name) or Path(name).expanduser()


def load(
    name: str, dtype: torch.dtype, max_pixels: int | None = None
) -> tuple[Qwen2VLForConditionalGeneration, PreTrainedTokenizerBase, Any]:
    """The frozen model (on the CPU, in eval mode), its tokenizer and its image processor.

    `max_pixels` replaces the checkpoint's own limit on an image's size. Raises UsageError for what
    is missing, broken, out of reach, or not a Qwen2-VL.
    """
    source = str(folder_of(name))
    is_folder = Path(source).is_dir()
    if not is_folder and (source.startswith(("/", ".")) or source.count("/") != 1):
        raise UsageError(
            f"model {name}: no such folder; give a folder, a hub id like "
            "Qwen/Qwen2-VL-2B-Instruct, or phantom"
        )
    try:
        _check_type(name, source)
        if is_folder:
            _check_files(name, Path(source))
        with _quiet(progress=not is_folder):  # a download should show its progress
            tokenizer, processor, model, report = _read(source, dtype)
    except UsageError:
        raise
    except Exception as error:  # of the hub, json, tokenizers, safetensors: any kind
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        where = "folder" if is_folder else "hub id (is the network there?)"
        raise UsageError(
            f"model {name}: cannot be loaded from this {where}: {reason.rstrip('.')}; "
            "download it again, or use --model phantom"
        ) from error
    _check_weights(name, report)
    _check_fit(name, model.config, tokenizer, processor)
    if max_pixels is not None:
        _limit_pixels(processor, max_pixels)
    return model.requires_grad_(False).eval(), tokenizer, processor


def _read(source: str, dtype: torch.dtype) -> tuple[Any, Any, Any, dict[str, Any]]:
    """Tokenizer, image processor, model, and transformers' report on the weights."""
    tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    if tokenizer.chat_template is None:  # kept with the processor in some folders
        file = cached_file(
            source, "chat_template.json", _raise_exceptions_for_missing_entries=False
        )
        if file is not None:
            tokenizer.chat_template = json.loads(Path(file).read_text("utf-8"))["chat_template"]
    processor = ImageProcessor.from_pretrained(source)
    model, report = Qwen2VLForConditionalGeneration.from_pretrained(
        source,
        dtype=dtype,
        attn_implementation="sdpa",
        use_safetensors=True,
        trust_remote_code=False,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # then they are in the report, where _check_weights looks
    )
    return tokenizer, processor, model, report


@contextmanager
def _quiet(progress: bool) -> Iterator[None]:
    """Without transformers' tables of what is wrong: it is said in one line, or does not matter."""
    logging = transformers.utils.logging
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    if not progress:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        logging.enable_progress_bar()


def _check_type(name: str, source: str) -> None:
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


def _check_files(name: str, folder: Path) -> None:
    """transformers makes an empty tokenizer where its files are missing, and names no bad shard."""
    sizes = {file.name: file.stat().st_size for file in folder.iterdir() if file.is_file()}
    lacking = [" or ".join(names) for names in NEEDED if not any(sizes.get(n) for n in names)]
    if lacking:
        pickled = any(file.startswith("pytorch_model") for file in sizes)
        remedy = "only safetensors are read, save it so" if pickled else "download it again"
        raise UsageError(f"model {name}: lacks {', '.join(lacking)}; {remedy}")
    _refuse_damaged(name, folder, [file for names in NEEDED for file in names if file in sizes])
    if WEIGHTS not in sizes:
        index = json.loads((folder / INDEX).read_text("utf-8"))
        _refuse_damaged(name, folder, sorted(set(index["weight_map"].values())))


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
            json.loads(file.read_text("utf-8"))
        elif file.suffix == ".safetensors":
            with safe_open(file, framework="pt"):
                pass
    except (ValueError, OSError, SafetensorError) as error:
        return f"is damaged or only half downloaded ({error}); download it again"
    return None


def _check_weights(name: str, report: dict[str, Any]) -> None:
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


def _check_fit(name: str, config: Any, tokenizer: Any, processor: Any) -> None:
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


def _limit_pixels(processor: Any, max_pixels: int) -> None:
    """An image is resized so that its area lies between shortest_edge and longest_edge (pixels)."""
    token = (processor.patch_size * processor.merge_size) ** 2
    if max_pixels < token:
        raise UsageError(f"--max-pixels {max_pixels}: below one image token; use {token} or more")
    smallest = min(dict(processor.size)["shortest_edge"], max_pixels)
    processor.size = type(processor.size)(shortest_edge=smallest, longest_edge=max_pixels)
