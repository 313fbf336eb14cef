"""An adapter on disk: a plain peft folder that anybody can open."""

import json

import torch
from peft import PeftModel
from transformers import Qwen2VLForConditionalGeneration

from models.open_policy import load_policy
from tests.models import plain
from tests.models.plain import QUESTIONS, rollout


def test_peft_opens_a_saved_adapter_and_computes_the_same(trained, tiny_folder, tmp_path):
    trained.save(tmp_path)
    groups = rollout(trained)
    expected, _ = trained.logprobs(groups, 1.0)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(tiny_folder)
    assert {f.name for f in tmp_path.iterdir()} == {
        "adapter_config.json", "adapter_model.safetensors", "base.json",
    }  # fmt: skip

    other = load_policy(str(tiny_folder), device="cpu")
    base = Qwen2VLForConditionalGeneration.from_pretrained(tiny_folder).eval()
    other.model = PeftModel.from_pretrained(base, tmp_path)
    with torch.no_grad():
        theirs = [
            plain.logprobs(other, question, group.prompt, o, 1.0)
            for question, group in zip(QUESTIONS, groups, strict=True)
            for o in group.completions
        ]
    torch.testing.assert_close(expected.detach(), torch.cat(theirs), atol=1e-5, rtol=0)


def test_loading_an_adapter_changes_values_in_place(trained, fresh, tmp_path):
    trained.save(tmp_path)
    policy = fresh()
    storage = [p.data_ptr() for p in policy.parameters()]
    policy.load(tmp_path)
    assert [p.data_ptr() for p in policy.parameters()] == storage
    for mine, other in zip(policy.parameters(), trained.parameters(), strict=True):
        assert torch.equal(mine, other)


def test_the_seed_draws_the_lora_and_nothing_else_does(fresh):
    torch.manual_seed(1)
    one, two, three = (fresh(seed=seed).parameters() for seed in (5, 5, 6))
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(one, three, strict=True))
