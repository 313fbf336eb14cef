"""Hub id, folder or "phantom" -> model, tokenizer, image processor.

Only the types of models/loading/model_types.py, only safetensors, never code from a checkpoint, and
no AutoProcessor: it needs torchvision, for a video processor that is not used here.
"""

import os
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers import Qwen2VLImageProcessorPil as ImageProcessor  # resizes with Pillow
from transformers.utils import logging

from grpo.settings.errors import UsageError
from models.loading import checks
from models.loading.model_types import MODEL_TYPES

# The tiny Qwen2-VL that ships with the project, and an earlier state of its pretraining.
SHIPPED = {name: Path(__file__).parents[1] / name for name in ("phantom", "phantom-base")}


def folder_of(name: str) -> Path:
    """The folder of a shipped model or the folder that is named. It may not exist: a hub id."""
    return SHIPPED.get(name) or Path(os.path.expanduser(name))


def load(
    name: str, dtype: torch.dtype, max_pixels: int | None = None, weights: bool = True
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, Any]:
    """The frozen model (on the CPU, in eval mode), its tokenizer and its image processor.

    `max_pixels` replaces the checkpoint's own limit on an image's size. Without `weights` the model
    is on the meta device, and no file of weights has to be there. Raises UsageError for what is
    missing, broken, out of reach, or of another type.
    """
    source = str(folder_of(name))
    is_folder = Path(source).is_dir()
    if not is_folder and (source.startswith(("/", ".")) or source.count("/") != 1):
        remedy = "give a folder, a hub id like Qwen/Qwen2-VL-2B-Instruct, or phantom"
        raise UsageError(f"model {name}: no such folder; {remedy}")
    try:
        checks.refuse(name, checks.file_problems(source, weights))
        # transformers prints no tables of problems: we raise one line if it matters.
        with ExitStack() as after:
            after.callback(logging.set_verbosity, logging.get_verbosity())
            after.callback(logging.enable_progress_bar)
            logging.set_verbosity_error()
            if is_folder:  # a download should show its progress
                logging.disable_progress_bar()
            tokenizer, processor, model, report = _read(source, dtype, weights)
    except UsageError:
        raise
    except Exception as error:  # hub, json, tokenizers and safetensors raise errors of any kind
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        where = "folder" if is_folder else "hub id (is the network there?)"
        problem = f"model {name}: cannot be loaded from this {where}: {reason}"
        raise UsageError(f"{problem}; download it again, or use --model phantom") from error
    if weights:
        checks.refuse(name, checks.weight_problems(report, model))
    checks.refuse(name, checks.mixture_problems(model.config, tokenizer, processor))
    checks.refuse(name, checks.processor_problems(processor))
    if max_pixels is not None:
        _limit_pixels(processor, max_pixels)
    return model.requires_grad_(False).eval(), tokenizer, processor


def _read(source: str, dtype: torch.dtype, weights: bool) -> tuple[Any, Any, Any, dict[str, Any]]:
    """Tokenizer, image processor, model, and transformers' report on the weights."""
    tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    # Some folders keep the template in a file of its own.
    if tokenizer.chat_template is None and (file := checks.find(source, "chat_template.json")):
        tokenizer.chat_template = checks.read_json(file)["chat_template"]
    processor = ImageProcessor.from_pretrained(source)
    model_class = MODEL_TYPES[PreTrainedConfig.get_config_dict(source)[0]["model_type"]].model
    how = {"dtype": dtype, "attn_implementation": "sdpa"}
    if not weights:
        config = model_class.config_class.from_pretrained(source)
        with torch.device("meta"):
            model = model_class._from_config(config, **how)
        return tokenizer, processor, model, {}
    safe = {"use_safetensors": True, "trust_remote_code": False}
    # Misshapen weights are in the report then, and weight_problems names them.
    told = {"output_loading_info": True, "ignore_mismatched_sizes": True}
    model, report = model_class.from_pretrained(source, **how, **safe, **told)
    return tokenizer, processor, model, report


def _limit_pixels(processor: Any, max_pixels: int) -> None:
    """An image is resized so that its area lies between shortest_edge and longest_edge (pixels)."""
    token = (processor.patch_size * processor.merge_size) ** 2
    if max_pixels < token:
        raise UsageError(f"--max-pixels {max_pixels}: below one image token; use {token} or more")
    smallest = min(dict(processor.size)["shortest_edge"], max_pixels)
    processor.size = type(processor.size)(shortest_edge=smallest, longest_edge=max_pixels)
