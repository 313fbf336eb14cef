"""A folder exactly as the hub's Qwen/Qwen2-VL-2B-Instruct or Qwen/Qwen2.5-VL-3B-Instruct, but with
small random weights.

Its quirks are the ones that a folder written by today's transformers does not have: weights in two
shards under the names of 2024, no head in them (it is the embedding), everything about the text
model at the top level of config.json with `rope_scaling` of type mrope, and the chat template
written twice.
"""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoTokenizer

from models.loading.model_types import MODEL_TYPES
from tests.tiny import GENERATION, PREPROCESSOR, SPECIAL, make_tokenizer

HEAD_ROWS = 151_936  # the published vocabulary; the tokenizer has 151,657 of them
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
INDEX = "model.safetensors.index.json"


def make_hub_folder(
    folder: Path, tokenizer: Path | None = None, seed: int = 0, kind: str = "qwen2_vl"
) -> Path:
    """Write the folder; `tokenizer` has the published vocabulary (None: the tests' own tiny one).

    Weights are bfloat16, and larger than an initialisation's for the reason given in tests/tiny.py.
    """
    folder.mkdir(parents=True)
    if tokenizer is None:
        make_tokenizer(folder)
    else:
        for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
            shutil.copyfile(tokenizer / name, folder / name)
    ids = AutoTokenizer.from_pretrained(folder)
    template = json.loads((folder / "tokenizer_config.json").read_text())["chat_template"]
    write(folder / "chat_template.json", {"chat_template": template})
    processor = PREPROCESSOR | {"processor_class": MODEL_TYPES[kind].processor}
    write(folder / "preprocessor_config.json", processor)
    end, start = (ids.convert_tokens_to_ids(token) for token in ("<|im_end|>", "<|endoftext|>"))
    plain = {"bos_token_id": start, "pad_token_id": start, "eos_token_id": [end, start]}
    write(
        folder / "generation_config.json", plain | GENERATION | {"transformers_version": "4.37.0"}
    )
    config = hub_config({name: ids.convert_tokens_to_ids(name) for name in SPECIAL})
    write(folder / "config.json", config | PUBLISHED[kind])
    write_weights(folder, random_weights(folder, seed, kind))
    return folder


def write(file: Path, content: dict) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n")


def hub_config(ids: dict[str, int]) -> dict:
    """config.json as published for the 2B model, but for its sizes."""
    return {
        "architectures": ["Qwen2VLForConditionalGeneration"],
        "attention_dropout": 0.0,
        "bos_token_id": ids["<|endoftext|>"],
        "eos_token_id": ids["<|im_end|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
        "vision_token_id": ids["<|vision_pad|>"],
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
        "hidden_act": "silu",
        "hidden_size": 64,
        "initializer_range": 0.02,
        "intermediate_size": 128,
        "max_position_embeddings": 32768,
        "max_window_layers": 2,
        "model_type": "qwen2_vl",
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "sliding_window": 32768,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.41.2",
        "use_cache": True,
        "use_sliding_window": False,
        "vision_config": {
            "depth": 2,
            "embed_dim": 32,
            "mlp_ratio": 4,
            "num_heads": 2,
            "in_chans": 3,
            "hidden_size": 64,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "spatial_patch_size": 14,
            "temporal_patch_size": 2,
        },
        "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
        "vocab_size": HEAD_ROWS,
    }


# What config.json of the 3B model says in place of what the 2B model's does.
PUBLISHED = {
    "qwen2_vl": {},
    "qwen2_5_vl": {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "model_type": "qwen2_5_vl",
        "max_position_embeddings": 128000,
        "vision_config": {
            "depth": 2,
            "hidden_act": "silu",
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_heads": 2,
            "in_chans": 3,
            "out_hidden_size": 64,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "spatial_patch_size": 14,
            "window_size": 112,
            "fullatt_block_indexes": [1],
            "tokens_per_second": 2,
            "temporal_patch_size": 2,
        },
    },
}


def random_weights(
    folder: Path, seed: int, kind: str = "qwen2_vl", scale: float = 0.15
) -> dict[str, Tensor]:
    """bfloat16 weights for the folder's config.json, under their published names."""
    generator = torch.Generator().manual_seed(seed)
    with torch.device("meta"):
        config = MODEL_TYPES[kind].model.config_class.from_pretrained(folder)
        model = MODEL_TYPES[kind].model(config)
    weights = {}
    for name, parameter in model.named_parameters():  # a tied head is not a parameter of its own
        published = name.replace("model.visual.", "visual.").replace("language_model.", "")
        values = scale * torch.randn(parameter.shape, generator=generator)
        is_norm = parameter.ndim == 1 and not name.endswith("bias")
        weights[published] = (1 + values if is_norm else values).to(torch.bfloat16)
    return weights


def write_weights(folder: Path, weights: dict[str, Tensor]) -> None:
    """Two shards and their index."""
    names = list(weights)
    half = len(names) // 2
    parts = dict(zip(SHARDS, (names[:half], names[half:]), strict=True))
    for shard, members in parts.items():
        part = {name: weights[name] for name in members}
        save_file(part, folder / shard, metadata={"format": "pt"})
    index = {
        "metadata": {"total_size": sum(tensor.nbytes for tensor in weights.values())},
        "weight_map": {name: shard for shard, members in parts.items() for name in members},
    }
    write(folder / INDEX, index)
