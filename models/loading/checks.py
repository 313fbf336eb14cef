"""What a checkpoint's files must be, and that they fit each other.

A check is a generator of problems, each half a line for the user; `refuse` raises the first. Checks
run in order, and each may rely on those before it. Nothing here runs code from a checkpoint, and no
pickle is opened.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any

from PIL import Image
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import PreTrainedConfig
from transformers.utils import cached_file

from grpo.settings.errors import UsageError
from models.loading.model_types import MODEL_TYPES

# What a folder must hold; of names in one tuple, one is enough.
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
NEEDED = (
    ("config.json",), ("tokenizer_config.json",), ("tokenizer.json", "vocab.json"),
    ("tokenizer.json", "merges.txt"), ("preprocessor_config.json", "processor_config.json"),
    (WEIGHTS, INDEX),
)  # fmt: skip
AGAIN = "; download it again"


def refuse(name: str, problems: Iterator[str]) -> None:
    """Raise UsageError for the first problem, if there is one."""
    for problem in problems:
        raise UsageError(f"model {name}: {problem}")


def find(source: str, name: str, **where: bool) -> Path | None:
    """A file of a folder or a hub id; None if there is none of this name."""
    file = cached_file(source, name, _raise_exceptions_for_missing_entries=False, **where)
    return Path(file) if file else None


def read_json(file: Path) -> Any:
    return json.loads(file.read_text("utf-8"))


def file_problems(source: str, weights: bool = True) -> Iterator[str]:
    """Problems of a folder or a hub id, before it is read, with its `weights` or without."""
    folder = Path(source)
    for file in folder.glob("*"):
        if file.exists() and not (file.is_file() or file.is_dir()):
            # Reading a named pipe in place of a file would wait for ever.
            yield f"{file.name} is no plain file{AGAIN}"
    yield from _type(source)
    if folder.is_dir():
        yield from _files(folder, NEEDED if weights else NEEDED[:-1])
    yield from _detours(source)


def _type(source: str) -> Iterator[str]:
    config = None
    with suppress(TypeError):  # raised for a list by the oldest transformers admitted
        config, _ = PreTrainedConfig.get_config_dict(source)
    kind = config.get("model_type") if isinstance(config, dict) else None
    if kind is None:
        yield "no readable config.json there; give a model's own folder"
    if str(kind) not in MODEL_TYPES:
        supported = " and ".join(f"{name} ({each.name})" for name, each in MODEL_TYPES.items())
        yield f"its type is {kind}; only {supported} are supported"
    if "quantization_config" in config:
        problem = "its weights are quantized, which is not supported"
        yield f"{problem}; use what it was made from, such as Qwen/Qwen2-VL-2B-Instruct"


def _files(folder: Path, needed: Sequence[tuple[str, ...]]) -> Iterator[str]:
    """transformers makes an empty tokenizer if its files are missing, and names no bad shard."""
    sizes = {file.name: file.stat().st_size for file in folder.iterdir() if file.is_file()}
    lacking = [" or ".join(names) for names in needed if not any(sizes.get(n) for n in names)]
    if lacking:
        pickled = any(file.startswith("pytorch_model") for file in sizes)
        remedy = "; only safetensors are read, save it so" if pickled else AGAIN
        yield f"lacks {', '.join(lacking)}{remedy}"
    for name in chain.from_iterable(needed):
        if name in sizes:
            yield from _damage(folder, name)
    if needed is NEEDED and WEIGHTS not in sizes:
        for shard in sorted(set(read_json(folder / INDEX)["weight_map"].values())):
            yield from _damage(folder, shard)


def _damage(folder: Path, name: str) -> Iterator[str]:
    """Whether a file is damaged. One of weights says in its header how long it must be."""
    file = folder / name
    if not file.is_file():
        yield f"{name} is missing{AGAIN}"
    with file.open("rb") as opened:
        if opened.read(24) == b"version https://git-lfs.":
            yield f"{name} is a git-lfs pointer, not the file itself; run git lfs pull there"
    try:
        if file.suffix == ".json":
            read_json(file)
        elif file.suffix == ".safetensors":
            safe_open(file, framework="pt")
    except (ValueError, OSError, SafetensorError) as error:
        yield f"{name} is damaged or only half downloaded ({error}){AGAIN}"


def _detours(source: str) -> Iterator[str]:
    """transformers follows an index to pickles, and an adapter's config to the base it names."""
    if find(source, "adapter_config.json"):
        yield "holds an adapter; name its base, or take the adapter out"
    index = find(source, INDEX)
    for shard in set(read_json(index)["weight_map"].values()) if index else ():
        if shard != Path(shard).name or not shard.endswith(".safetensors"):
            yield f"{INDEX} leads to {shard}; only safetensors of its own are read, save it so"


def weight_problems(report: dict[str, Any], model: nn.Module) -> Iterator[str]:
    """Problems of the weights. `report` is transformers': it fills missing weights with random
    numbers, drops the rest, and only warns."""
    misshapen = {key if isinstance(key, str) else key[0] for key in report["mismatched_keys"]}
    lacking, extra = {*report["missing_keys"], *misshapen}, report["unexpected_keys"]
    # A sum is not finite if any number is not, and it is much faster than looking at each.
    bad = [key for key, weight in model.named_parameters() if not weight.sum().isfinite()]
    problems = {
        "weights are missing or misshapen": sorted(lacking),
        "of its weights have no place in the model that its config.json describes": sorted(extra),
        "weights hold what is no finite number": bad,
    }
    for problem, keys in problems.items():
        if keys:
            yield f"{len(keys)} {problem} ({keys[0]}, ...){AGAIN}"


def mixture_problems(config: Any, tokenizer: Any, processor: Any) -> Iterator[str]:
    """Files of two models in one folder load without an error."""
    if tokenizer.chat_template is None:
        yield "has no chat template; use an -Instruct model"
    text, tower, image = config.text_config, config.vision_config, config.image_token_id
    if (width := getattr(tower, MODEL_TYPES[config.model_type].features)) != text.hidden_size:
        yield f"its features have {width} numbers, its text model takes {text.hidden_size}{AGAIN}"
    if text.use_sliding_window:
        yield "uses sliding-window attention, which is not supported"
    pad = tokenizer.get_vocab().get("<|image_pad|>", image)  # none: see Chat
    if pad != image or len(tokenizer) > text.vocab_size:
        yield f"its tokenizer and config.json are of two models (image token {pad}, {image}){AGAIN}"
    patches = (tower.patch_size, tower.spatial_merge_size, tower.temporal_patch_size)
    if patches != (processor.patch_size, processor.merge_size, processor.temporal_patch_size):
        yield f"its preprocessor_config.json and config.json make different patches{AGAIN}"


def processor_problems(processor: Any) -> Iterator[str]:
    """Prepare one blank picture now, rather than the first real one at some step."""
    try:
        pixels = processor(images=[Image.new("RGB", (56, 56))], return_tensors="pt")["pixel_values"]
        problem = "" if pixels.isfinite().all() else "makes numbers that are not finite"
    except Exception as error:  # sizes, means and factors may have any type
        problem = f"cannot prepare an image ({error})"
    if problem:
        yield f"its preprocessor_config.json {problem}{AGAIN}"
