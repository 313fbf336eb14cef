"""A random tiny Qwen2-VL or Qwen2.5-VL in the hub's own folder format: the real path, in seconds.

Its weights are larger than an initialisation's, so that attention, positions and images matter to
the output: a wrong mask or position moves log-probs by far more than any tolerance here.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoTokenizer
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from models.loading.model_types import MODEL_TYPES

SPECIAL = [
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>",
    "<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>",
    "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>",
]  # fmt: skip

CHAT_TEMPLATE = """\
{%- for message in messages -%}
{%- if loop.first and message['role'] != 'system' -%}
{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}
{%- endif -%}
{{ '<|im_start|>' + message['role'] + '\n' }}
{%- if message['content'] is string -%}
{{ message['content'] }}
{%- else -%}
{%- for part in message['content'] -%}
{{ '<|vision_start|><|image_pad|><|vision_end|>' if part['type'] == 'image' else part['text'] }}
{%- endfor -%}
{%- endif -%}
{{ '<|im_end|>\n' }}
{%- endfor -%}
{{ '<|im_start|>assistant\n' if add_generation_prompt else '' }}"""

CORPUS = [
    "system You are a helpful assistant user Which side is the lesion on?",
    "A) left B) right <think> the bright spot lies </think> <answer> </answer>",
]

# What Qwen2-VL's own preprocessor_config.json and generation_config.json hold.
PREPROCESSOR = {
    "min_pixels": 3136,
    "max_pixels": 12845056,
    "patch_size": 14,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "image_processor_type": "Qwen2VLImageProcessor",
    "processor_class": "Qwen2VLProcessor",
}
GENERATION = {"do_sample": True, "temperature": 0.01, "top_k": 1, "top_p": 0.001}


# The towers. Qwen2.5-VL's attends within windows of 2 x 2 tokens, but for its last block.
TOWERS = {
    "qwen2_vl": {"embed_dim": 32, "mlp_ratio": 2},
    "qwen2_5_vl": {
        "hidden_size": 32, "intermediate_size": 48, "window_size": 56, "fullatt_block_indexes": [1],
    },
}  # fmt: skip


@dataclass(frozen=True)
class NoiseImage:
    """An image of noise, drawn from its seed."""

    seed: int
    width: int = 56
    height: int = 56

    @property
    def key(self) -> str:
        return f"noise:{self.seed}:{self.width}x{self.height}"

    def open(self) -> Image.Image:
        pixels = np.random.default_rng(self.seed).integers(0, 256, (self.height, self.width, 3))
        return Image.fromarray(pixels.astype(np.uint8))


@dataclass(frozen=True)
class Question:
    """The least that a policy asks of an example."""

    prompt: str
    images: tuple[NoiseImage, ...] = ()
    id: str = "question-1"


def make_tokenizer(folder: Path) -> None:
    """Byte-level BPE with Qwen2's pre-tokenizer, then the special tokens in Qwen2-VL's order."""
    tokenizer = Tokenizer(models.BPE())
    words = pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), "isolated")
    letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, letters])
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=letters.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.model.save(str(folder))
    first = tokenizer.get_vocab_size()
    plain = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False}
    settings = {
        "tokenizer_class": "Qwen2Tokenizer",
        "added_tokens_decoder": {
            str(first + i): {"content": token, "special": True, **plain}
            for i, token in enumerate(SPECIAL)
        },
        "additional_special_tokens": SPECIAL[1:],
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "bos_token": None,
        "unk_token": None,
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def make_model(
    folder: Path,
    hidden: int = 64,
    layers: int = 2,
    scale: float = 0.15,
    seed: int = 0,
    kind: str = "qwen2_vl",
    tied: bool = True,
) -> Path:
    """Write the whole folder; the head has 27 rows more than the tokenizer has tokens. It is the
    embedding if `tied`."""
    folder.mkdir(parents=True, exist_ok=True)
    make_tokenizer(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    token = tokenizer.convert_tokens_to_ids
    heads = 4
    half = hidden // heads // 2  # frequencies of a head, shared out over time, height and width
    sections = [half - 2 * (3 * half // 8), 3 * half // 8, 3 * half // 8]
    model_class, features = MODEL_TYPES[kind].model, {MODEL_TYPES[kind].features: hidden}
    config = model_class.config_class(
        text_config={
            "vocab_size": len(tokenizer) + 27,
            "hidden_size": hidden,
            "intermediate_size": 2 * hidden,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": 2,
            "max_position_embeddings": 512,
            "initializer_range": scale,
            "rope_parameters": {
                "rope_type": "default", "rope_theta": 10_000.0, "mrope_section": sections,
            },
            "bos_token_id": token("<|endoftext|>"),
            "eos_token_id": token("<|im_end|>"),
        },
        vision_config={
            "depth": 2, "num_heads": 2, "initializer_range": scale, **TOWERS[kind], **features,
        },
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
        tie_word_embeddings=tied,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = model_class(config)
        for parameter in model.parameters():
            if parameter.ndim == 1:  # norms start as ones and biases as zeros: a mix-up would hide
                parameter.data += scale * torch.randn(parameter.shape)
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))
    ends = [token("<|im_end|>"), token("<|endoftext|>")]
    generation = GENERATION | {"eos_token_id": ends, "pad_token_id": ends[1]}
    (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder
