"""A policy as ONE model: the adapter merged into its base, in a folder as the hub has them.

What opens the base opens this folder, plain transformers and so vLLM: weights have their published
names, and config.json, tokenizer and chat template are the base's own files, because a file that
today's transformers writes is not one that yesterday's reads. Two files are ours: the image
processor's, with the limits that the policy saw images under, and a generation_config.json that
says where to stop and nothing else. Qwen2-VL's own says top_k 1, which vLLM would obey.

Weights are saved in the dtype that the base was loaded in. bfloat16 keeps 8 bits of a weight, and
what training added to it may be less than that: load with --dtype float32 to export all of it.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor

from grpo.settings.errors import UsageError
from models import lora
from models.attention import TreeAttention
from models.layers import Layers
from models.loading import load as loading
from models.policy import Policy
from models.tree import Prompt

COPIED = (
    "tokenizer_config.json", "tokenizer.json", "vocab.json", "merges.txt", "added_tokens.json",
    "special_tokens_map.json", "chat_template.json", "chat_template.jinja",
)  # fmt: skip
SHARD_SIZE = "4GB"


@dataclass(frozen=True)
class Gradient:
    """256 x 256 pixels from black to white."""

    key: str = "gradient"

    def open(self) -> Image.Image:
        return Image.linear_gradient("L").convert("RGB")


@dataclass(frozen=True)
class Probe:
    """The question that the two models are compared on."""

    prompt: str = "Which side of the image is brighter?\nA) the upper\nB) the lower"
    images: tuple[Gradient, ...] = (Gradient(),)
    id: str = "export probe"


def export_merged(policy: Policy, folder: Path | str) -> float:
    """Save the merged policy and return by how much it differs from the policy.

    That is the largest difference of any logit of a prompt with an image, between the policy and
    the files opened again in float32. Raises UsageError where `folder` is not empty or cannot be
    written; what lies there afterwards is complete or not there at all.
    """
    folder = Path(folder)
    refuse_taken(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as beside:
            made = Path(beside) / folder.name
            made.mkdir()
            write_folder(policy, made)
            difference = largest_difference(policy, made)
            made.replace(folder)
    except (OSError, SafetensorError) as error:
        problem = getattr(error, "strerror", None) or error
        raise UsageError(f"export to {folder}: {problem}; name another folder") from None
    return difference


def refuse_taken(folder: Path) -> None:
    """Raise UsageError where something is that an export would write over."""
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UsageError(f"export to {folder}: something lies there already; name another folder")


def write_folder(policy: Policy, folder: Path) -> None:
    """All files of the merged model, into an empty folder."""
    source = policy.model.get_base_model().config.name_or_path
    described = base_file(source, "config.json")
    if described is None:
        raise UsageError(f"model {source}: its files are gone; put them back, then export")
    for name in COPIED:
        if (file := base_file(source, name)) is not None:
            shutil.copyfile(file, folder / name)
    config = json.loads(described.read_text("utf-8"))
    dtype = str(policy.dtype).removeprefix("torch.")
    ends = sorted(policy.chat.eos - {policy.chat.end})
    generation = {"eos_token_id": [policy.chat.end, *ends], "pad_token_id": ends[0]}
    processor = json.loads(policy.vision.processor.to_json_string())
    limits = processor["size"]  # and by the names of 2024
    processor |= {"min_pixels": limits["shortest_edge"], "max_pixels": limits["longest_edge"]}
    write_json(folder / "config.json", with_dtype(config, dtype))
    write_json(folder / "generation_config.json", generation)
    write_json(
        folder / "preprocessor_config.json", processor | {"processor_class": "Qwen2VLProcessor"}
    )
    weights = {published(name): tensor for name, tensor in lora.merged(policy.model).items()}
    save_torch_state_dict(
        weights, folder, max_shard_size=SHARD_SIZE, shared_tensors_to_discard=["lm_head.weight"]
    )
    for file in folder.glob("*.safetensors"):  # which makes them for their owner alone
        shutil.copymode(folder / "config.json", file)


def base_file(source: str, name: str) -> Path | None:
    """A file of the base, from its folder or from the hub's cache, where it has one of the name."""
    if Path(source).is_dir():
        file = Path(source) / name
        return file if file.is_file() else None
    try:
        kept = try_to_load_from_cache(source, name)
    except HFValidationError:  # not the name of a model: a folder that is gone
        return None
    return Path(kept) if isinstance(kept, str) else None


def write_json(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def with_dtype(config: dict[str, Any], dtype: str) -> dict[str, Any]:
    """config.json with this dtype wherever it names one.

    >>> with_dtype({"torch_dtype": "bfloat16", "vision_config": {"dtype": "bfloat16"}}, "float32")
    {'torch_dtype': 'float32', 'vision_config': {'dtype': 'float32'}}
    """
    parts = {k: with_dtype(v, dtype) if isinstance(v, dict) else v for k, v in config.items()}
    named = [key for key in ("torch_dtype", "dtype") if key in config]
    return parts | dict.fromkeys(named, dtype)


def published(name: str) -> str:
    """The name that a weight has on the hub.

    >>> published("model.language_model.norm.weight"), published("model.visual.merger.ln_q.bias")
    ('model.norm.weight', 'visual.merger.ln_q.bias')
    """
    return name.replace("model.language_model.", "model.").replace("model.visual.", "visual.")


@torch.no_grad()
def largest_difference(policy: Policy, folder: Path) -> float:
    """Between the policy's logits and those of transformers' own forward over the folder."""
    (prompt,) = policy.encode([Probe()])
    model, _, processor = loading.load(str(folder), torch.float32)
    images = [image.open() for image in Probe().images]
    ids = prompt.input_ids[None]
    theirs = model(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        mm_token_type_ids=(ids == policy.chat.image_pad).int(),
        **processor(images=images, return_tensors="pt"),
    ).logits[0]
    return float((policy_logits(policy, prompt) - theirs).abs().max())


def policy_logits(policy: Policy, prompt: Prompt) -> Tensor:
    """(P, V) float32 on the CPU: the logits after every token of the prompt."""
    ids = prompt.input_ids.to(policy.device)
    layers, x = Layers(policy.language_model), policy.embed(ids, [prompt])
    rope = layers.rope(prompt.position_ids.to(policy.device), x)
    hidden = layers(x, rope, TreeAttention([[len(ids)]]))  # (P, hidden)
    return policy.head(hidden).float().cpu()
