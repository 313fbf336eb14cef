"""Adapters that peft wrote: read so that every weight moves as far as peft moves it, or refused."""

import copy
import json
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import Qwen2VLForConditionalGeneration

from models import lora
from models.open_policy import load_policy
from tests.hostile.every import try_every

LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
NEW, OLD = "base_model.model.model.language_model.layers.", "base_model.model.model.layers."


def of_language(name: str) -> bool:
    return "language_model" in name


@cache
def loaded(folder: Path) -> Qwen2VLForConditionalGeneration:
    return Qwen2VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)


def base(folder: Path) -> Qwen2VLForConditionalGeneration:
    """The model without an adapter, to be changed."""
    return copy.deepcopy(loaded(folder))


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft's, of missing keys
        yield


def written(model: Path, folder: Path, **settings: Any) -> Path:
    """An adapter of peft's in `folder`, every weight of it random."""
    settings = {"r": 4, "lora_alpha": 8, "target_modules": LINEARS} | settings
    tuned = get_peft_model(base(model), LoraConfig(**settings))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    tuned.save_pretrained(str(folder))
    return folder


def moved(model: Path, adapter: Path) -> dict[str, Tensor]:
    """By how much peft moves each weight of the language model."""
    before = base(model).state_dict()
    after = PeftModel.from_pretrained(base(model), str(adapter)).merge_and_unload().state_dict()
    return {name: after[name] - before[name] for name in after if of_language(name)}


def renamed(folder: Path, change: Callable[[str], str]) -> None:
    """Give the weights of an adapter other names."""
    tensors = {change(name): tensor for name, tensor in load_file(folder / lora.WEIGHTS).items()}
    save_file(tensors, folder / lora.WEIGHTS)


def is_read_as_peft_reads_it(model: Path, adapter: Path, expected: dict[str, Tensor]) -> None:
    policy = load_policy(str(model), adapter=adapter, device="cpu")
    ours, before = lora.merged(policy.model), base(model).state_dict()
    assert max(float(change.abs().max()) for change in expected.values()) > 0.01
    for name, change in expected.items():
        torch.testing.assert_close(ours[name] - before[name], change, rtol=1e-4, atol=1e-5)


KINDS: dict[str, dict[str, Any]] = {
    "q and v at a broken alpha": {"target_modules": ["q_proj", "v_proj"], "lora_alpha": 22.627},
    "q and v": {"target_modules": ["q_proj", "v_proj"]},
    "alpha of no whole number": {"lora_alpha": 22.627},
    "alpha below 1": {"lora_alpha": 0.3},
    "rsLoRA": {"use_rslora": True},
    "rsLoRA of both": {"use_rslora": True, "lora_alpha": 5.5, "r": 3},
    "one layer": {"layers_to_transform": [1]},
    "one layer by a number": {"layers_to_transform": 0, "layers_pattern": "layers"},
    "without some": {"exclude_modules": ["down_proj"]},
    "by a pattern": {"target_modules": r".*language_model.*(q_proj|up_proj)"},
    "gaussian": {"init_lora_weights": "gaussian"},
    "orthogonal": {"init_lora_weights": "orthogonal"},
    "of no start": {"init_lora_weights": False},
    "dropout": {"lora_dropout": 0.05, "task_type": "CAUSAL_LM"},
    "fan in, fan out": {"fan_in_fan_out": True},
}


def try_kinds(kinds: list[str], model: Path, place: Path) -> None:
    def is_read(kind: str) -> None:
        adapter = written(model, place / kind, **KINDS[kind])
        is_read_as_peft_reads_it(model, adapter, moved(model, adapter))

    try_every(is_read, kinds)


def test_an_adapter_moves_each_weight_as_peft_does(tiny_folder: Path, tmp_path: Path) -> None:
    try_kinds(["q and v at a broken alpha"], tiny_folder, tmp_path)


@pytest.mark.exhaustive
def test_another_base_by_name_is_said(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Qwen2.5-VL-7B has the shapes of Qwen2-VL-7B, and a base may lie in any folder."""
    adapter = written(tiny_folder, tmp_path)
    file = adapter / lora.CONFIG
    named = {"base_model_name_or_path": "Qwen/Qwen2.5-VL-7B-Instruct"}
    file.write_text(json.dumps(json.loads(file.read_text()) | named))
    load_policy(str(tiny_folder), adapter=adapter, device="cpu")
    said = f"its config names Qwen/Qwen2.5-VL-7B-Instruct as its base, not {tiny_folder}\n"
    assert capsys.readouterr().err.endswith(said)


@pytest.mark.exhaustive
def test_every_kind_moves_each_weight_as_peft_does(tiny_folder: Path, tmp_path: Path) -> None:
    try_kinds(list(KINDS), tiny_folder, tmp_path)


NAMES: dict[str, Callable[[str], str]] = {
    "transformers before 4.52": lambda name: name.replace(NEW, OLD),
    "with the adapter's name": lambda name: name.replace(".weight", ".default.weight"),
    "old, with the adapter's name": lambda name: name.replace(NEW, OLD).replace(
        ".weight", ".default_0.weight"
    ),
    "without peft's prefix": lambda name: name.removeprefix("base_model.model."),
    "of the text model": lambda name: name.replace(NEW, "base_model.model.layers."),
    "of Qwen2VLModel": lambda name: name.replace(NEW, "base_model.model.language_model.layers."),
    "of FSDP": lambda name: name.replace(".layers.", "._fsdp_wrapped_module.layers."),
}


def try_layouts(layouts: list[str], model: Path, place: Path) -> None:
    def is_read(layout: str) -> None:
        adapter = written(model, place / layout)
        expected = moved(model, adapter)
        renamed(adapter, NAMES[layout])
        is_read_as_peft_reads_it(model, adapter, expected)

    try_every(is_read, layouts)


def test_the_layout_of_names_before_transformers_4_52_is_read(
    tiny_folder: Path, tmp_path: Path
) -> None:
    try_layouts(["transformers before 4.52"], tiny_folder, tmp_path)


@pytest.mark.exhaustive
def test_every_layout_of_names_is_read(tiny_folder: Path, tmp_path: Path) -> None:
    try_layouts(list(NAMES), tiny_folder, tmp_path)
