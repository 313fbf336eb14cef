"""Recipes, and which one a machine gets when none is typed."""

from types import SimpleNamespace
from typing import get_args

import pytest

from grpo.settings import recipes
from grpo.settings.config import Config, Recipe
from grpo.settings.flags import flag


def test_every_recipe_is_a_choice_and_makes_a_valid_config() -> None:
    assert {"auto", *recipes.RECIPES} == {*get_args(Recipe)}
    for name, values in recipes.RECIPES.items():
        assert vars(Config(**values, recipe=name)).items() >= values.items()


def test_the_published_values_hold_also_where_they_are_defaults() -> None:
    """Of MedVLM-R1's paper and released code; another default must not change the recipe."""
    published = {
        "modality": "MRI", "ood": "CT,XRAY", "train_size": 600, "eval_size": 300, "val_size": 0,
        "group_size": 4, "prompts_per_step": 4, "steps": 300, "max_completion_length": 512,
        "temperature": 1.0, "reward": "format=1,accuracy=1", "loss": "grpo", "kl_coef": 0.04,
        "scale_rewards": "group", "updates_per_rollout": 1, "learning_rate": 1e-5, "lora_r": 16,
        "lora_alpha": 32, "lr_schedule": "linear", "warmup_steps": 0, "max_grad_norm": 1.0,
        "weight_decay": 0.0, "max_pixels": 401_408, "seed": 42,
    }  # fmt: skip
    assert vars(Config(**recipes.RECIPES["medvlm-r1"])).items() >= published.items()
    for name in ("rarl", "clinical"):
        made = Config(**recipes.RECIPES[name])
        assert (made.loss, made.prompt, made.group_size) == ("grpo", "reason", 8), name
        assert (made.kl_coef, made.max_completion_length) == (0.04, 512), name


def test_the_machine_chooses_the_recipe() -> None:
    memories = {None: "phantom", 8e9: "phantom", 15.8e9: "medvlm-r1", 141e9: "medvlm-r1"}
    assert {memory: recipes.recipe_for(memory)[0] for memory in memories} == memories


def test_a_device_that_is_not_there_chooses_like_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)  # as on a machine with a GPU

    assert recipes.cuda_bytes("cuda:99") is None
    assert Config.from_flags(["--device", "cuda:99", "--quiet"]).recipe == "phantom"


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch as on a machine with a GPU of 40 GB."""
    properties = SimpleNamespace(total_memory=40e9)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda where: properties)


def test_a_large_gpu_takes_the_published_recipe_whole_and_says_so(
    card: None, capsys: pytest.CaptureFixture[str]
) -> None:
    config = Config.from_flags([])

    assert config == Config(**recipes.RECIPES["medvlm-r1"], recipe="medvlm-r1")
    assert (config.model, config.data) == ("Qwen/Qwen2-VL-2B-Instruct", "huatuo")
    assert capsys.readouterr().err == (
        "train.py: a CUDA device of 40 GB: recipe medvlm-r1 (--recipe chooses)\n"
    )


def test_model_and_data_override_the_chosen_recipe_each_alone(card: None) -> None:
    for name in ("model", "data"):
        chosen = Config.from_flags([flag(name), "phantom"])
        named = Config.from_flags(["--recipe", "phantom", flag(name), "x"])
        assert (chosen.overrides(), named.overrides()) == ({name: "phantom"}, {name: "x"})


def test_the_choice_of_recipe_is_said_in_one_line_and_recorded(
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = Config.from_flags(["--device", "cpu", "--modality", "CT"])

    assert config.recipe == "phantom"
    assert config.overrides() == {"device": "cpu", "modality": "CT"}
    assert capsys.readouterr().err == (
        "train.py: no CUDA device: recipe phantom (--recipe chooses)\n"
    )
