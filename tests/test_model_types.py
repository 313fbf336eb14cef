"""20 steps of training of each type of model, on phantoms.

Qwen2.5-VL has the text weights of the shipped model and a random tower here, so its reward can rise
by the form of its answers, and by letters that are right without looking. This says nothing of what
its real weights would learn.
"""

import json
import shutil
from pathlib import Path
from statistics import fmean

import pytest
import torch

import train
from models.loading.load import SHIPPED, load
from models.loading.model_types import MODEL_TYPES

TOWER = {"depth": 2, "num_heads": 4, "hidden_size": 64, "intermediate_size": 128}
TOWER |= {"out_hidden_size": 128, "window_size": 56, "fullatt_block_indexes": [1]}


def grafted(folder: Path) -> Path:
    """A Qwen2.5-VL: the text model of phantom, and a random tower."""
    phantom, _, _ = load("phantom", torch.float32)
    known = phantom.config.to_dict()
    ids = {name: known[name] for name in known if name.endswith("_token_id")}
    model_class = MODEL_TYPES["qwen2_5_vl"].model
    text = known["text_config"] | {"model_type": "qwen2_5_vl_text"}
    towers = {"text_config": text, "vision_config": TOWER, "tie_word_embeddings": True}
    torch.manual_seed(0)
    model = model_class(model_class.config_class(**towers, **ids))
    model.model.language_model.load_state_dict(phantom.model.language_model.state_dict())
    model.save_pretrained(folder)
    for file in SHIPPED["phantom"].iterdir():
        if not (folder / file.name).exists():
            shutil.copyfile(file, folder / file.name)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("kind", MODEL_TYPES)
def test_the_reward_of_a_tiny_model_rises(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = grafted(tmp_path / "model") if kind == "qwen2_5_vl" else "phantom"
    flags = f"--recipe phantom --model {model} --steps 20 --warmup-steps 4 --eval-size 0 --out run"
    flags += " --val-size 0 --device cpu --cache none --quiet"
    train.main(flags.split())
    steps = list(map(json.loads, Path("run/metrics.jsonl").read_text().splitlines()))
    for name in ("reward", "rewards/format/mean", "rewards/accuracy/mean"):
        values = [step[name] for step in steps]
        first, last = fmean(values[:5]), fmean(values[-5:])
        print(f"{kind}: {name} of the first five steps {first:.2f}, of the last {last:.2f}")
        assert last > first + (0.2 if name == "reward" else 0)
