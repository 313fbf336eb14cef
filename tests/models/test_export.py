"""The merged folder: plain transformers opens it and says what the policy says."""

import errno
import json
import shutil
import stat
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, GenerationConfig, Qwen2VLForConditionalGeneration

from grpo.settings.errors import UsageError
from models import export
from models.export import export_merged, largest_difference
from models.loading import load as loading
from models.open_policy import load_policy
from tests.conftest import randomise
from tests.models import plain
from tests.models.plain import QUESTIONS


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory) -> tuple[Path, float]:
    folder = tmp_path_factory.mktemp("export") / "merged"
    return folder, export_merged(trained, folder)


def test_plain_transformers_answers_as_the_policy_does(trained, exported):
    folder, difference = exported
    assert difference < 1e-4
    model = Qwen2VLForConditionalGeneration.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    processor = loading.ImageProcessor.from_pretrained(folder)
    answers = trained.sample(
        trained.encode(QUESTIONS), 1, None, temperature=0.0, max_completion_length=16
    )
    for question, group in zip(QUESTIONS, answers, strict=True):
        ids = group.prompt.input_ids[None]
        batch = {"input_ids": ids, "mm_token_type_ids": (ids == trained.chat.image_pad).int()}
        if question.images:
            images = [image.open() for image in question.images]
            batch |= processor(images=images, return_tensors="pt")
        said = model.generate(
            **batch,
            do_sample=False,
            max_new_tokens=16,
            # A random model would say what a trained one never does: a token without a meaning.
            suppress_tokens=trained.banned.nonzero().flatten().tolist(),
        )
        assert torch.equal(said[0, ids.shape[1] :], group.completions[0])
        expanded = group.prompt.text
        for feature in group.prompt.features:
            expanded = expanded.replace("<|image_pad|>", "<pad>" * len(feature), 1)
        again = tokenizer(expanded.replace("<pad>", "<|image_pad|>"), return_tensors="pt")
        assert torch.equal(again["input_ids"], ids)


def test_the_difference_is_measured_on_the_files(trained, tiny_folder):
    assert largest_difference(trained, tiny_folder) > 0.01  # the base, without what was learned


def test_the_folder_has_the_hubs_names_and_nothing_else(exported, tiny_folder):
    folder, _ = exported
    assert {file.name for file in folder.iterdir()} == {
        "config.json", "generation_config.json", "preprocessor_config.json", "model.safetensors",
        "tokenizer_config.json", "vocab.json", "merges.txt",
    }  # fmt: skip
    weights, base = load_file(folder / "model.safetensors"), tiny_folder / "model.safetensors"
    assert weights.keys() == load_file(base).keys()
    assert {name.split(".")[0] for name in weights} == {"model", "visual"}  # the head is tied
    assert json.loads((folder / "config.json").read_text())["dtype"] == "float32"
    assert (folder / "model.safetensors").stat().st_mode & stat.S_IRGRP


def test_what_lora_is_on_is_merged_and_the_rest_is_the_base(exported, trained, tiny_folder):
    folder, _ = exported
    merged, base = (load_file(f / "model.safetensors") for f in (folder, tiny_folder))
    changed = {name for name in base if not torch.equal(merged[name], base[name])}
    assert changed == {n for n in base if "_proj.weight" in n and n.startswith("model.layers")}
    name = "model.layers.1.mlp.down_proj"
    pair = dict(trained.model.named_parameters())
    stem = f"base_model.model.{name.replace('model.', 'model.language_model.', 1)}"
    a, b = (pair[f"{stem}.lora_{x}.default.weight"].detach().double() for x in "AB")
    expected = base[f"{name}.weight"].double() + 32 / 16 * b @ a
    torch.testing.assert_close(merged[f"{name}.weight"].double(), expected, atol=1e-7, rtol=1e-6)


def test_nothing_in_the_folder_changes_how_an_answer_is_drawn(tiny_folder, tmp_path):
    policy = load_policy(str(tiny_folder), device="cpu", max_pixels=50_176)
    export_merged(policy, tmp_path / "out")
    assert GenerationConfig.from_pretrained(tiny_folder).top_k == 1
    config = GenerationConfig.from_pretrained(tmp_path / "out").to_diff_dict()
    config.pop("transformers_version")
    end, text_end = (policy.completion_ids("")[0], min(policy.chat.eos))
    assert config == {"eos_token_id": [end, text_end], "pad_token_id": text_end}
    processor = loading.ImageProcessor.from_pretrained(tmp_path / "out")
    assert dict(processor.size) == dict(policy.vision.processor.size)
    kept = json.loads((tmp_path / "out" / "preprocessor_config.json").read_text())
    assert (kept["min_pixels"], kept["max_pixels"]) == (3136, 50_176)


def test_a_policy_that_began_as_an_adapter_is_merged_once(fresh, trained, exported, tmp_path):
    trained.save(tmp_path / "adapter")
    policy = fresh(adapter=tmp_path / "adapter")  # it has a second adapter, the reference
    assert export_merged(policy, tmp_path / "out") < 1e-4
    mine, other = (load_file(f / "model.safetensors") for f in (tmp_path / "out", exported[0]))
    assert all(torch.equal(mine[name], other[name]) for name in other)


def test_bfloat16_is_saved_as_it_was_loaded_and_the_difference_says_so(fresh, exported, tmp_path):
    policy = randomise(fresh(dtype="bfloat16"))
    difference = export_merged(policy, tmp_path / "out")
    assert {t.dtype for t in load_file(tmp_path / "out" / "model.safetensors").values()} == {
        torch.bfloat16
    }
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"
    # Logits of about 1: the rounding of two layers of sums, and of the weights. Measured 0.13.
    assert 100 * exported[1] < difference < 0.4


def test_a_large_model_is_saved_in_shards_with_their_index(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "SHARD_SIZE", "100KB")
    assert export_merged(trained, tmp_path / "out") < 1e-4
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    shards = {file.name for file in (tmp_path / "out").glob("*.safetensors")}
    assert set(index["weight_map"].values()) == shards
    assert len(shards) > 1


def test_an_export_leaves_the_policy_as_it_was(fresh, tmp_path):
    policy = randomise(fresh())
    groups = plain.rollout(policy)
    before, _ = policy.logprobs(groups, 1.0)
    export_merged(policy, tmp_path / "out")
    assert torch.equal(policy.logprobs(groups, 1.0)[0], before)


def test_what_lies_there_is_never_written_over(trained, tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "config.json").write_text("mine")
    for taken in ("file", "full"):
        with pytest.raises(UsageError, match=f"{taken}: something lies there.*another folder"):
            export_merged(trained, tmp_path / taken)
    assert (tmp_path / "file").read_text() == "mine"
    assert (tmp_path / "full" / "config.json").read_text() == "mine"
    assert len(list(tmp_path.rglob("*"))) == 3
    (tmp_path / "empty").mkdir()
    export_merged(trained, tmp_path / "empty")
    assert (tmp_path / "empty" / "config.json").is_file()


def test_an_export_that_fails_leaves_nothing_behind(trained, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(export, "save_torch_state_dict", full)
    with pytest.raises(UsageError, match=r"^export to .*out: No space left.*another folder$"):
        export_merged(trained, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_base_that_is_gone_is_named(tiny_folder, tmp_path):
    moved = shutil.copytree(tiny_folder, tmp_path / "base")
    policy = load_policy(str(moved), device="cpu")
    shutil.rmtree(moved)
    with pytest.raises(UsageError, match=f"model {moved}: its files are gone"):
        export_merged(policy, tmp_path / "out")
