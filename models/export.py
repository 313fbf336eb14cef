"""A policy as ONE model: the adapter merged into its base, in a folder as the hub has them.

What opens the base opens this folder, plain transformers and so vLLM: weights have their published
names, and config.json, tokenizer and chat template are the base's own files, because a file that
today's transformers writes is not one that yesterday's reads. Two files are ours: the image
processor's, with the limits that the policy saw images under, and a generation_config.json that
says where to stop and nothing else. Qwen2-VL's own says top_k 1, which vLLM would obey.

Weights are saved in the dtype that the base was loaded in. bfloat16 keeps 8 bits of a weight, and
what training added to it may be less than that: load with --dtype float32 to export all of it.
"""

import json
import shutil
import tempfile
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from PIL import Image
from safetensors import SafetensorError

from grpo.settings.errors import UsageError
from models import lora
from models.attention import TreeAttention
from models.layers import Layers
from models.loading.checks import find
from models.loading.load import load
from models.loading.model_types import MODEL_TYPES
from models.policy import Policy

COPIED = (
    "tokenizer_config.json", "tokenizer.json", "vocab.json", "merges.txt", "added_tokens.json",
    "special_tokens_map.json", "chat_template.json", "chat_template.jinja",
)  # fmt: skip
SHARD_SIZE = "4GB"


# What the two models are compared on; the image is 256 x 256 pixels from black to white.
GRADIENT = SimpleNamespace(key="gradient", open=lambda: Image.linear_gradient("L").convert("RGB"))
QUESTION = "Which side of the image is brighter?\nA) the upper\nB) the lower"
PROBE = SimpleNamespace(id="export probe", prompt=QUESTION, images=(GRADIENT,))


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
        if file := base_file(source, name):
            shutil.copyfile(file, folder / name)
    named = partial(with_dtype, dtype=str(policy.dtype).removeprefix("torch."))
    config = json.loads(described.read_text("utf-8"), object_hook=named)
    ends = sorted(policy.chat.eos - {policy.chat.end})
    generation = {"eos_token_id": [policy.chat.end, *ends], "pad_token_id": ends[0]}
    processor = json.loads(policy.vision.processor.to_json_string())
    limits = processor["size"]  # and by the names of 2024
    processor |= {"min_pixels": limits["shortest_edge"], "max_pixels": limits["longest_edge"]}
    processor["processor_class"] = MODEL_TYPES[config["model_type"]].processor
    made = {"config": config, "generation_config": generation, "preprocessor_config": processor}
    for name, content in made.items():
        (folder / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n", "utf-8")
    weights = {published(name): tensor for name, tensor in lora.merged(policy.model).items()}
    tied = {"shared_tensors_to_discard": ["lm_head.weight"]}
    save_torch_state_dict(weights, folder, max_shard_size=SHARD_SIZE, **tied)
    for file in folder.glob("*.safetensors"):  # which makes them for their owner alone
        shutil.copymode(folder / "config.json", file)


def base_file(source: str, name: str) -> Path | None:
    """A file of the base, from its folder or from the hub's cache, where it has one of the name."""
    try:
        return find(source, name, local_files_only=True)
    except OSError:  # not the name of a model: a folder that is gone
        return None


def with_dtype(part: dict[str, Any], dtype: str) -> dict[str, Any]:
    """A part of config.json with this dtype where it names one.

    >>> with_dtype({"torch_dtype": "bfloat16", "hidden_size": 8}, "float32")
    {'torch_dtype': 'float32', 'hidden_size': 8}
    """
    return part | dict.fromkeys(part.keys() & {"torch_dtype", "dtype"}, dtype)


def published(name: str) -> str:
    """The name that a weight has on the hub.

    >>> published("model.language_model.norm.weight"), published("model.visual.merger.ln_q.bias")
    ('model.norm.weight', 'visual.merger.ln_q.bias')
    """
    return name.replace("model.language_model.", "model.").replace("model.visual.", "visual.")


@torch.no_grad()
def largest_difference(policy: Policy, folder: Path) -> float:
    """Between the policy's logits and those of transformers' own forward over the folder."""
    (prompt,) = policy.encode([PROBE])
    model, _, processor = load(str(folder), torch.float32)
    ids = prompt.input_ids[None]
    inputs = processor(images=[GRADIENT.open()], return_tensors="pt")
    inputs["mm_token_type_ids"] = (ids == policy.chat.image_pad).int()
    theirs = model(input_ids=ids, attention_mask=torch.ones_like(ids), **inputs).logits[0]
    ids = ids[0].to(policy.device)
    layers, x = Layers(policy.language_model), policy.embed(ids, prompt.features)
    rope = layers.rope(prompt.position_ids.to(policy.device), x)
    hidden = layers(x, rope, TreeAttention([[len(ids)]]))  # (P, hidden)
    return float((policy.head(hidden).float().cpu() - theirs).abs().max())
