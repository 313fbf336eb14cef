"""What is loaded, and one clear line for everything that is not."""

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from grpo.settings.errors import UsageError
from models.loading import load as loading
from models.open_policy import load_policy
from tests.models.hub import INDEX, SHARDS, make_hub_folder
from tests.tiny import make_model


@pytest.fixture
def copy(tiny_folder, tmp_path) -> Path:
    return Path(shutil.copytree(tiny_folder, tmp_path / "copy"))


@pytest.fixture(scope="module")
def sharded(tmp_path_factory) -> Path:
    """A folder as the hub's, with a tokenizer that loads fast. Read only."""
    return make_hub_folder(tmp_path_factory.mktemp("hub") / "model")


def edit(file: Path, **changes) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def message(*args, **kwargs) -> str:
    with pytest.raises(UsageError) as error:
        load_policy(*args, **{"device": "cpu", **kwargs})
    text = str(error.value)
    assert "\n" not in text
    return text


def test_phantom_is_the_folder_beside_the_code():
    assert Path(loading.__file__).parents[1] / "phantom" == loading.SHIPPED["phantom"]


def test_a_folder_that_is_not_there_is_named_with_a_remedy(tmp_path):
    text = message(str(tmp_path / "nothing"))
    assert "no such folder" in text
    assert "phantom" in text


def test_a_hub_id_out_of_reach_is_one_line(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "network" in message("nobody/there")


@pytest.mark.parametrize("kind", ["qwen3_vl", "llama"])
def test_another_model_type_says_what_is_supported(copy, kind):
    edit(copy / "config.json", model_type=kind)
    supported = "qwen2_vl (Qwen2-VL, 2B to 72B) and qwen2_5_vl (Qwen2.5-VL, 3B to 72B)"
    said = f"model {copy}: its type is {kind}; only {supported} are supported"
    assert message(str(copy)) == said


def test_a_config_that_is_no_json_is_one_line(copy):
    (copy / "config.json").write_text("{ not json")
    assert "config.json' is not a valid JSON" in message(str(copy))


def test_a_folder_without_a_config_is_one_line(copy):
    (copy / "config.json").unlink()
    assert f"{copy}: no readable config.json" in message(str(copy))
    (copy / "config.json").write_text("[]")
    assert f"{copy}: no readable config.json" in message(str(copy))


def drop(*names: str):
    return lambda folder: [(folder / name).unlink() for name in names]


def fill(name: str, text: str):
    return lambda folder: (folder / name).write_text(text)


def halve(name: str):
    def cut(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) // 2])

    return cut


def change(name: str, **changes):
    return lambda folder: edit(folder / name, **changes)


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3989163248\n"
BASE_TEMPLATE = "{% for m in messages %}{% if 'text' in m %}{{ m['text'] }}{% endif %}{% endfor %}"
FAULTS = {
    "a shard not downloaded": (drop(SHARDS[1]), f"{SHARDS[1]} is missing; download it again"),
    "a shard half downloaded": (halve(SHARDS[1]), f"{SHARDS[1]} is damaged or only half downl"),
    "a shard that is a web page": (fill(SHARDS[0], "<html>"), f"{SHARDS[0]} is damaged"),
    "a clone without git-lfs": (fill(SHARDS[0], POINTER), f"{SHARDS[0]} is a git-lfs pointer"),
    "no index": (drop(INDEX), f"lacks model.safetensors or {INDEX}; download"),
    "half an index": (halve(INDEX), f"{INDEX} is damaged"),
    "no vocabulary": (drop("vocab.json"), "lacks tokenizer.json or vocab.json; download"),
    "no tokenizer files": (
        drop("vocab.json", "merges.txt"),
        "lacks tokenizer.json or vocab.json, tokenizer.json or merges.txt; download",
    ),
    "merges of no bytes": (fill("merges.txt", ""), "lacks tokenizer.json or merges.txt"),
    "half a tokenizer": (halve("tokenizer_config.json"), "tokenizer_config.json is damaged"),
    "no processor": (drop("preprocessor_config.json"), "lacks preprocessor_config.json or"),
    "other patches": (change("preprocessor_config.json", patch_size=16), "different patches"),
    "quantized": (change("config.json", quantization_config={"bits": 4}), "are quantized"),
    "another vocabulary size": (
        change("config.json", vocab_size=151_552),
        "1 weights are missing or misshapen (model.language_model.embed_tokens.weight",
    ),
    "a layer too many": (change("config.json", num_hidden_layers=1), "have no place in the model"),
    "another tokenizer": (change("config.json", image_token_id=7), "are of two models"),
    "a base model's template": (
        change("tokenizer_config.json", chat_template=BASE_TEMPLATE),
        "use an -Instruct model",
    ),
}


@pytest.mark.parametrize(
    "fault",
    [*FAULTS][:1] + [pytest.param(fault, marks=pytest.mark.exhaustive) for fault in [*FAULTS][1:]],
)
def test_a_broken_hub_folder_gets_one_line_that_names_what_is_wrong(
    sharded, tmp_path, fault, capfd, caplog, monkeypatch
):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)  # for caplog
    folder = Path(shutil.copytree(sharded, tmp_path / "model"))
    break_it, says = FAULTS[fault]
    break_it(folder)
    text = message(str(folder))
    assert text.startswith(("model ", "the chat template of "))
    assert str(folder) in text
    assert says in text
    assert capfd.readouterr().err == ""  # no progress bar before it,
    assert caplog.messages == []  # and no warning of transformers'


@pytest.mark.slow
def test_a_template_that_only_the_processor_has_is_used(sharded, tmp_path):
    folder = Path(shutil.copytree(sharded, tmp_path / "model"))
    config = json.loads((folder / "tokenizer_config.json").read_text())
    template = config.pop("chat_template")
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    _, tokenizer, _ = loading.load(str(folder), torch.float32)
    assert tokenizer.chat_template == template
    (folder / "chat_template.json").unlink()
    assert "has no chat template; use an -Instruct model" in message(str(folder))


def test_missing_weights_are_an_error_and_not_random_numbers(copy):
    weights = load_file(copy / "model.safetensors")
    for name in [name for name in weights if "layers.1.mlp" in name]:
        del weights[name]
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    assert "3 weights are missing" in message(str(copy))


def test_pickled_weights_are_refused(copy):
    weights = load_file(copy / "model.safetensors")
    (copy / "model.safetensors").unlink()
    torch.save(weights, copy / "pytorch_model.bin")
    assert "only safetensors are read" in message(str(copy))


def test_a_tokenizer_that_is_not_qwen2_vls_is_refused(copy):
    config = json.loads((copy / "tokenizer_config.json").read_text())
    added = config["added_tokens_decoder"]
    config["added_tokens_decoder"] = {
        k: v for k, v in added.items() if v["content"] != "<|video_pad|>"
    }
    config["additional_special_tokens"].remove("<|video_pad|>")
    (copy / "tokenizer_config.json").write_text(json.dumps(config))
    assert "<|video_pad|>" in message(str(copy))


def test_a_limit_on_pixels_below_one_token_is_refused_and_a_larger_one_is_kept(tiny_folder):
    assert "--max-pixels 100" in message(str(tiny_folder), max_pixels=100)
    _, _, processor = loading.load(str(tiny_folder), torch.float32, max_pixels=401_408)
    assert (processor.size["shortest_edge"], processor.size["longest_edge"]) == (3136, 401_408)
    _, _, processor = loading.load(str(tiny_folder), torch.float32)
    assert processor.size["longest_edge"] == 12_845_056


def test_an_unknown_device_or_dtype_is_one_line(tiny_folder):
    for device in ("tpu", "meta", "mps", "cuda:", "cuda:x", "cpu:0", ""):
        assert f"device {device}: unknown" in message(str(tiny_folder), device=device)
    assert "device cuda:99: is not" in message(str(tiny_folder), device="cuda:99")
    assert "float64" in message(str(tiny_folder), dtype="float64")


@pytest.mark.slow
def test_adapters_that_do_not_fit_are_refused_with_the_reason(trained, tiny_folder, tmp_path):
    saved, base = tmp_path / "adapter", str(tiny_folder)
    trained.save(saved)
    assert "--lora-r 16" in message(base, adapter=saved, lora_r=8)
    assert "--lora-r" in message(base, adapter=saved, lora_alpha=64)
    other = make_model(tmp_path / "other", seed=1)  # the same shapes, other weights
    assert f"use --model with its own base ({tiny_folder})" in message(str(other), adapter=saved)
    smaller = make_model(tmp_path / "smaller", layers=1)
    (saved / "base.json").unlink()  # as in an adapter that peft wrote
    assert "has base_model.model.model.language_model.layers.1." in message(
        str(smaller), adapter=saved
    )
    (saved / "base.json").write_text("[]")
    assert "damaged" in message(base, adapter=saved)
    (saved / "base.json").unlink()
    content = (saved / "adapter_model.safetensors").read_bytes()
    (saved / "adapter_model.safetensors").write_bytes(content[: len(content) // 2])
    assert "damaged (Error while deserializing" in message(base, adapter=saved)
    edit(saved / "adapter_config.json", use_dora=True)
    assert "not plain LoRA (use_dora True)" in message(base, adapter=saved)
    (saved / "adapter_config.json").write_text("[]")
    assert "damaged" in message(base, adapter=saved)
    (saved / "adapter_config.json").unlink()
    assert "adapter_config.json" in message(base, adapter=saved)


def test_a_pickled_adapter_is_never_opened(trained, tiny_folder, tmp_path):
    trained.save(tmp_path)
    weights = load_file(tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_model.safetensors").unlink()
    torch.save(weights, tmp_path / "adapter_model.bin")
    assert "only safetensors" in message(str(tiny_folder), adapter=tmp_path)


def test_an_adapter_from_a_moved_base_is_still_at_home(trained, copy, tmp_path):
    trained.save(tmp_path / "adapter")
    policy = load_policy(str(copy), adapter=tmp_path / "adapter", device="cpu")
    for mine, other in zip(policy.parameters(), trained.parameters(), strict=True):
        assert torch.equal(mine, other)
