"""An untrained tiny Qwen2-VL as a hub folder: tokenizer, chat template, random weights."""

import json
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, Qwen2VLConfig, Qwen2VLForConditionalGeneration
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

PARTS = ("object_ref", "box", "quad", "vision")
PAIRS = [f"<|{part}_{end}|>" for part in PARTS for end in ("start", "end")]
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *PAIRS]
SPECIAL += ["<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"]
SIZE = 256 + 600  # of the vocabulary: bytes and merges
# The chat format of Qwen2-VL: a default system turn, then turns of text and images.
CHAT_TEMPLATE = (
    "{% for m in messages %}"
    "{% if loop.first and m.role != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ m.role }}\n"
    "{% if m.content is string %}{{ m.content }}{% else %}{% for part in m.content %}"
    "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_tokenizer(corpus: list[str], folder: Path) -> None:
    """Byte-level BPE with Qwen2's pre-tokenizer, trained on `corpus`, then the special tokens."""
    tokenizer = Tokenizer(models.BPE())
    words = pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), "isolated")
    in_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, in_bytes])
    alphabet = in_bytes.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=SIZE, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer.model.save(str(folder))  # vocab.json, merges.txt
    plain = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False}
    tokens = [{"content": token, "special": True, **plain} for token in SPECIAL]
    added = {str(i): token for i, token in enumerate(tokens, tokenizer.get_vocab_size())}
    settings = {
        "tokenizer_class": "Qwen2Tokenizer",
        "added_tokens_decoder": added,
        "additional_special_tokens": SPECIAL[1:],
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "unk_token": None,
        "bos_token": None,
        "model_max_length": 2048,
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=1) + "\n")


def make_model(tokenizer: AutoTokenizer, seed: int) -> Qwen2VLForConditionalGeneration:
    """A random Qwen2-VL of 2 million parameters; its head has more rows than the vocabulary."""
    token = tokenizer.convert_tokens_to_ids
    spread = {"initializer_range": 0.06}  # about 1 / sqrt(hidden): it sees sooner
    tied = {"tie_word_embeddings": True}
    rope = {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [4, 6, 6]}
    text = {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4} | spread | tied
    text |= {"vocab_size": -(-len(tokenizer) // 64) * 64 + 64, "max_position_embeddings": 2048}
    text |= {"num_attention_heads": 4, "num_key_value_heads": 2, "rope_parameters": rope}
    text |= {"bos_token_id": token("<|endoftext|>"), "eos_token_id": token("<|im_end|>")}
    tower = {"depth": 4, "embed_dim": 128, "num_heads": 4, "hidden_size": 128} | spread
    ids = {f"{name}_token_id": token(f"<|{name}|>") for name in ("vision_start", "vision_end")}
    ids |= {f"{name}_token_id": token(f"<|{name}_pad|>") for name in ("image", "video")}
    config = Qwen2VLConfig(text_config=text, vision_config=tower, **ids, **tied)
    torch.manual_seed(seed)
    return Qwen2VLForConditionalGeneration(config)
