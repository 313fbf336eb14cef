"""LoRA on the language model: attach, save, open. Adapters on disk are plain peft folders.

    y = W x + (alpha / r) B A x        W frozen, A (r, in) random, B (out, r) zero at the start

On the seven linears of every language-model layer. Nothing of the vision tower, whose features are
kept, and nothing of embedding and head.
"""

import copy
import hashlib
import json
import re
import sys
import warnings
from collections import Counter
from pathlib import Path
from typing import Any, NoReturn

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as serialized
from torch import Tensor
from transformers import PreTrainedModel

from grpo.settings.errors import UsageError

R, ALPHA = 16, 32  # on the real model; ours
MOST_R = 4096  # a file may say any number, and memory is taken for it before its weights are read
TARGETS = (
    r"model\.language_model\.layers\.\d+\."
    r"(self_attn\.(q|k|v|o)_proj|mlp\.(gate|up|down)_proj)"
)
WEIGHTS, CONFIG, BASE = "adapter_model.safetensors", "adapter_config.json", "base.json"
# The fields of adapter_config.json that may have any value: they are honoured, or say nothing of
# what A and B mean. Of any other field only peft's default is read.
FREE = (
    "r", "lora_alpha", "use_rslora", "target_modules", "exclude_modules", "layers_to_transform",
    "layers_pattern", "lora_dropout", "fan_in_fan_out", "inference_mode", "task_type", "revision",
    "base_model_name_or_path", "auto_mapping", "peft_version", "ensure_weight_tying", "eva_config",
    "corda_config", "lora_ga_config", "loftq_config", "runtime_config", "qalora_group_size",
)  # fmt: skip
# How A and B may have begun, beside the default. Any other start (pissa, olora, corda, loftq,
# lora_ga) takes B A out of the base first, so what is saved holds a part of W.
START, STARTS = "init_lora_weights", ("gaussian", "orthogonal", "eva")
MERGE = "if peft can merge it into its base (merge_and_unload), give the merged folder as --model"
# A weight's name in any layout: of transformers before 4.52, or with the name of an adapter.
NAME = re.compile(r"^(?!.*visual).*\b(layers\.\d+\.\w+\.\w+_proj\.lora_[AB])(\.\w+)?\.weight$")
OURS = r"base_model.model.model.language_model.\1.weight"


def attach(model: PreTrainedModel, r: int, alpha: int, seed: int) -> PeftModel:
    """The model with a trainable float32 adapter named "default"; A drawn from `seed`, B zero."""
    config = LoraConfig(r=r, lora_alpha=alpha, lora_dropout=0.0, target_modules=TARGETS)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers by an old name
        torch.manual_seed(seed)
        return get_peft_model(model, config, autocast_adapter_dtype=True)


def weights(model: PeftModel, adapter: str = "default") -> dict[str, Tensor]:
    """The adapter's parameters by the names they have on disk, in the order of the layers."""
    infix = f".{adapter}."
    named = model.named_parameters()
    return {name.replace(infix, "."): p for name, p in named if "lora_" in name and infix in name}


def add_reference(model: PeftModel) -> None:
    """A second, frozen adapter "reference" that equals "default" as it is now."""
    model.add_adapter("reference", copy.deepcopy(model.peft_config["default"]))
    _copy(weights(model), weights(model, "reference"))
    model.set_adapter("default")


def save(model: PeftModel, folder: Path) -> None:
    """Write "default" alone. `base.json` says which base it belongs to, whatever its path is."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: p.detach().cpu().contiguous() for name, p in weights(model).items()}
    (folder / WEIGHTS).write_bytes(serialized(tensors, metadata={"format": "pt"}))
    config = copy.copy(model.peft_config["default"])
    config.inference_mode = True
    config.save_pretrained(str(folder))
    base = {"name": config.base_model_name_or_path, "fingerprint": fingerprint(model)}
    (folder / BASE).write_text(json.dumps(base, indent=2) + "\n", encoding="utf-8")


@torch.no_grad()
def merged(model: PeftModel) -> dict[str, Tensor]:
    """All weights of the base by its own names, with W + (alpha / r) B A in place of W.

    Computed in float32 and rounded once, to the base's dtype; on the CPU. The model stays as it is:
    merging in place and back again would move the frozen weights.
    """
    base = model.get_base_model()
    layers = {n: m for n, m in base.named_modules() if isinstance(m, LoraLayer)}
    tensors = {}
    for name, tensor in base.state_dict().items():
        if layer := layers.get(name.removesuffix(".base_layer.weight")):
            delta = layer.get_delta_weight("default")  # (out, in) float32, scaled
            tensor = (tensor.float() + delta).to(tensor.dtype)
        elif "_proj." in name:  # linears of one input lie together; a file must not hold views
            tensor = tensor.clone()
        if "lora_" not in name:
            tensors[name.replace(".base_layer.", ".")] = tensor.cpu()
    return tensors


def read_config(folder: Path) -> tuple[int, int, dict[str, Any]]:
    """(r, alpha, the whole config) of a saved adapter. `read` makes up for a rounded alpha.

    Raises UsageError unless it is LoRA in safetensors, as the formula above has it.
    """
    if not (folder / CONFIG).is_file():
        _refuse(folder, f"no {CONFIG} there; give the adapter/ folder of a run")
    if not (folder / WEIGHTS).is_file():
        _refuse(folder, f"no {WEIGHTS} there; only safetensors are read, save it again so")
    try:
        config = json.loads((folder / CONFIG).read_text("utf-8"))
        r, alpha, plain = int(config["r"]), config["lora_alpha"], LoraConfig().to_dict()
        if not 0 < r <= MOST_R or r != config["r"] or not 0 < alpha < 2**53:
            raise ValueError(f"r {config['r']} and alpha {alpha}")
        odd = [(k, v) for k, v in config.items() if k not in FREE and v and v != plain.get(k)]
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        _refuse(folder, f"damaged {CONFIG} ({error!r}); save it again")
    if named := ", ".join(f"{k} {v!s:.40}" for k, v in odd if k != START or v not in STARTS):
        _refuse(folder, f"not plain LoRA ({named}); {MERGE}")
    return r, max(1, round(alpha)), config


def read(model: PeftModel, folder: Path) -> None:
    """Copy a saved adapter into "default", in place: the optimizer's tensors stay the same ones.
    A linear that the adapter is not on has B = 0.

    Raises UsageError where it was made for another base, rank or set of linears.
    """
    r, alpha, config = read_config(folder)
    own = model.peft_config["default"]
    if (r, alpha) != (own.r, own.lora_alpha):
        problem = f"has r {r} and alpha {alpha}, not {own.r} and {own.lora_alpha}"
        _refuse(folder, f"{problem}; use --lora-r {r} --lora-alpha {alpha}")
    try:
        tensors = load_file(folder / WEIGHTS)
        made_for = json.loads((folder / BASE).read_text()) if (folder / BASE).is_file() else {}
        expected = made_for.get("fingerprint") or fingerprint(model)
    except (OSError, SafetensorError, ValueError, AttributeError, RecursionError) as error:
        _refuse(folder, f"damaged ({error}); save it again")
    trained_on = made_for.get("name") or config.get("base_model_name_or_path")
    remedy = f"use --model with its own base ({trained_on}), or, {MERGE}"
    if expected != fingerprint(model):
        _refuse(folder, f"was trained on another base than {own.base_model_name_or_path}; {remedy}")
    if not made_for and Path(str(trained_on)).name != Path(own.base_model_name_or_path).name:
        said = f"its config names {trained_on} as its base, not"
        print(f"adapter {folder}: {said} {own.base_model_name_or_path}", file=sys.stderr)
    target, found = weights(model), {}
    scale = config["lora_alpha"] / alpha * (r**0.5 if config.get("use_rslora") else 1)
    for key, tensor in tensors.items():
        name = NAME.sub(OURS, key)
        if name in found or name not in target or tensor.shape != target[name].shape:
            _refuse(folder, f"has {key} {[*tensor.shape]}, which has no place here; {remedy}")
        if not (tensor.is_floating_point() and tensor.isfinite().all()):
            _refuse(folder, f"{key} holds what is no finite number; train it again")
        found[name] = tensor.float() * scale if ".lora_B." in name else tensor
    on = Counter(name.partition(".lora_")[0] for name in found)
    if not on or min(on.values()) < 2:
        _refuse(folder, f"lacks A or B of {min(on, key=on.get, default='all')}; save it again")
    nothing = {n: torch.zeros_like(p) if ".lora_B." in n else p for n, p in target.items()}
    _copy(nothing | found, target)


def _refuse(folder: Path, problem: str) -> NoReturn:
    raise UsageError(f"adapter {folder}: {problem}") from None


def fingerprint(model: PeftModel) -> str:
    """A short hash that tells base models apart, of a few of their tensors: it must be cheap.

    In bfloat16, so that a base loaded in float32 and in bfloat16 is the same base.
    """
    inner = model.get_base_model().model.language_model
    last = inner.layers[-1]
    digest = hashlib.sha256()
    for tensor in (inner.norm.weight, last.self_attn.k_proj.weight, last.mlp.down_proj.weight):
        raw = tensor.detach().cpu().to(torch.bfloat16).contiguous().flatten().view(torch.uint8)
        digest.update(f"{tuple(tensor.shape)}".encode() + raw.numpy().tobytes())
    return digest.hexdigest()[:16]


@torch.no_grad()
def _copy(source: dict[str, Tensor], target: dict[str, Tensor]) -> None:
    for name, parameter in target.items():
        parameter.copy_(source[name])
