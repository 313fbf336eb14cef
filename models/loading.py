"""Hub id, folder or "phantom" -> model, tokenizer, image processor.

Only `qwen2_vl`, only safetensors, never code from a checkpoint, and no AutoProcessor: for Qwen2-VL
it wants torchvision, for a video processor that nobody here needs.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import (
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    Qwen2VLForConditionalGeneration,
)

from grpo.config import UsageError

PHANTOM = Path(__file__).parent / "phantom"  # the tiny Qwen2-VL that ships with the project

# The class that resizes with Pillow; its name has changed between versions.
ImageProcessor = getattr(transformers, "Qwen2VLImageProcessorPil", None) or (
    transformers.Qwen2VLImageProcessor
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


def load(
    name: str, dtype: torch.dtype, max_pixels: int | None = None
) -> tuple[Qwen2VLForConditionalGeneration, PreTrainedTokenizerBase, Any]:
    """The frozen model (on the CPU, in eval mode), its tokenizer and its image processor.

    `max_pixels` replaces the checkpoint's own limit on an image's size. Raises UsageError for what
    is missing, broken, out of reach, or not a Qwen2-VL.
    """
    source = str(PHANTOM) if name == "phantom" else str(Path(name).expanduser())
    if not Path(source).is_dir() and (source.startswith(("/", ".")) or source.count("/") != 1):
        raise UsageError(
            f"model {name}: no such folder; give a folder, a hub id like "
            "Qwen/Qwen2-VL-2B-Instruct, or phantom"
        )
    try:
        _check_type(name, source)
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        processor = ImageProcessor.from_pretrained(source)
        quiet = Path(source).is_dir()  # a download should show its progress, a folder need not
        if quiet:
            transformers.utils.logging.disable_progress_bar()
        model, report = Qwen2VLForConditionalGeneration.from_pretrained(
            source,
            dtype=dtype,
            attn_implementation="sdpa",
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except UsageError:
        raise
    except Exception as error:  # of the hub, json, tokenizers, safetensors: any kind
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        where = "folder" if Path(source).is_dir() else "hub id (is the network there?)"
        raise UsageError(
            f"model {name}: cannot be loaded from this {where}: {reason.rstrip('.')}; "
            "download it again, or use --model phantom"
        ) from error
    finally:
        transformers.utils.logging.enable_progress_bar()
    # transformers fills what a file lacks with random numbers and only warns.
    if lacking := sorted({*report["missing_keys"], *map(str, report.get("mismatched_keys", ()))}):
        raise UsageError(
            f"model {name}: {len(lacking)} weights are missing or misshapen ({lacking[0]}, ...); "
            "download it again"
        )
    if tokenizer.chat_template is None:
        raise UsageError(f"model {name}: has no chat template; use an -Instruct model")
    if model.config.text_config.use_sliding_window:
        raise UsageError(f"model {name}: uses sliding-window attention, which is not supported")
    if max_pixels is not None:
        _limit_pixels(processor, max_pixels)
    return model.requires_grad_(False).eval(), tokenizer, processor


def _check_type(name: str, source: str) -> None:
    config, _ = PreTrainedConfig.get_config_dict(source)
    kind = config.get("model_type")
    if kind is None:
        raise UsageError(f"model {name}: no readable config.json there; give a model's own folder")
    if kind != "qwen2_vl":
        raise UsageError(
            f"model {name}: its type is {kind}; only qwen2_vl (Qwen2-VL, 2B to 72B) is supported"
        )


def _limit_pixels(processor: Any, max_pixels: int) -> None:
    """An image is resized so that its area lies between shortest_edge and longest_edge (pixels)."""
    token = (processor.patch_size * processor.merge_size) ** 2
    if max_pixels < token:
        raise UsageError(f"--max-pixels {max_pixels}: below one image token; use {token} or more")
    smallest = min(dict(processor.size)["shortest_edge"], max_pixels)
    processor.size = type(processor.size)(shortest_edge=smallest, longest_edge=max_pixels)
