"""The way of the real weights, without them: a folder in the hub's form through everything.

Where MEDVQA_DATA is set, with Qwen2-VL's own vocabulary and on real images; elsewhere with the
tests' tiny vocabulary, on phantoms. The head has the published 151,936 rows in both cases.
"""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import Qwen2VLForConditionalGeneration

import evaluate
import train
from models.export import export_merged
from models.open_policy import load_policy
from models.policy import Policy
from tests.conftest import randomise
from tests.models import plain
from tests.models.hub import HEAD_ROWS, INDEX, SHARDS
from tests.tiny import NoiseImage, Question

PLACE = os.environ.get("MEDVQA_DATA")
DATA = f"omnimedvqa:{PLACE}/omnimedvqa" if PLACE else "phantom"
HUB_ID = "Qwen/Qwen2-VL-2B-Instruct"
QUESTION = Question("Where is it?\nA) left\nB) right", (NoiseImage(1, 84, 56),))
LENGTH = 8
# How far two log-probs of one token may lie apart. Measured here 3e-6, and 0.03 in bfloat16, which
# rounds a logit of 4 by up to 0.01.
ENVELOPE = {torch.float32: 1e-4, torch.bfloat16: 0.1}


@pytest.fixture(
    scope="module", params=["float32", pytest.param("bfloat16", marks=pytest.mark.slow)]
)
def policy(request, hub_folder) -> Policy:
    return randomise(load_policy(str(hub_folder), device="cpu", dtype=request.param))


def rollout(policy: Policy):
    """(prompt, completions, their log-probs at decode time, flat)."""
    (prompt,) = policy.encode([QUESTION])
    drawn = plain.rollout_with_logprobs(policy, [prompt], 4, [(0, 42, 1, 0, 0)], 1.0, LENGTH)
    (group,) = drawn.groups([prompt])
    rows = zip(drawn.logprobs, drawn.lengths, strict=True)
    return group, torch.cat([row[:n] for row, n in rows])


def test_the_folder_is_as_the_hub_has_it(hub_folder):
    index = json.loads((hub_folder / INDEX).read_text())
    assert set(index["weight_map"].values()) == set(SHARDS)
    assert "lm_head.weight" not in index["weight_map"]
    assert {name.split(".")[0] for name in index["weight_map"]} == {"model", "visual"}
    config = json.loads((hub_folder / "config.json").read_text())
    assert "text_config" not in config
    assert config["rope_scaling"]["type"] == "mrope"
    assert json.loads((hub_folder / "generation_config.json").read_text())["top_k"] == 1


def test_every_setting_of_the_flat_config_reaches_the_model(policy, hub_folder):
    text = policy.language_model.config
    assert text.rope_parameters["mrope_section"] == [2, 3, 3]
    assert text.rope_parameters["rope_theta"] == 1_000_000.0
    assert (text.hidden_size, text.num_key_value_heads, text.rms_norm_eps) == (64, 2, 1e-6)
    assert policy.max_length == 32_768
    assert policy.head.weight.shape == (HEAD_ROWS, 64)
    assert policy.head.weight.data_ptr() == policy.language_model.embed_tokens.weight.data_ptr()
    stored = load_file(hub_folder / SHARDS[0]) | load_file(hub_folder / SHARDS[1])
    kept = stored["model.layers.1.mlp.up_proj.weight"].to(policy.dtype)
    assert torch.equal(policy.language_model.layers[1].mlp.up_proj.get_base_layer().weight, kept)


@pytest.mark.skipif(PLACE is None, reason="MEDVQA_DATA names no vocabulary of Qwen2-VL")
def test_the_true_vocabulary_has_its_published_ids(policy):
    chat = policy.chat
    assert (chat.end, chat.image_pad) == (151_645, 151_655)
    assert chat.eos == {151_645, 151_643}
    assert int(policy.banned.sum()) == HEAD_ROWS - 151_657 + 5
    (prompt,) = policy.encode([QUESTION])
    start, system, newline = prompt.input_ids[:3].tolist()
    assert (start, chat.tokenizer.decode([system, newline])) == (151_644, "system\n")
    image = [151_652, *[151_655] * 6, 151_653]  # start, 3 x 2 tokens, end
    assert "".join(map(chr, image)) in "".join(map(chr, prompt.input_ids.tolist()))


def test_what_is_sampled_is_what_is_scored(policy):
    group, at_decode = rollout(policy)
    rows = [o.tolist() for o in group.completions]
    assert len({tuple(row) for row in rows}) == 4  # although generation_config says top_k 1
    scored, _ = policy.logprobs([group], 1.0)
    torch.testing.assert_close(at_decode, scored.detach(), atol=ENVELOPE[policy.dtype], rtol=0)


@torch.no_grad()
def test_the_tree_equals_plain_transformers(policy):
    group, _ = rollout(policy)
    ours, _ = policy.logprobs([group], 1.0)
    with torch.autocast("cpu", policy.dtype, enabled=policy.dtype != torch.float32):
        theirs = [plain.logprobs(policy, QUESTION, group.prompt, o, 1.0) for o in group.completions]
    torch.testing.assert_close(ours, torch.cat(theirs), atol=ENVELOPE[policy.dtype], rtol=0)


@torch.no_grad()
def test_a_saved_adapter_opens_in_plain_peft(hub_folder, tmp_path):
    policy = randomise(load_policy(str(hub_folder), device="cpu"))
    policy.save(tmp_path)
    group, _ = rollout(policy)
    expected, _ = policy.logprobs([group], 1.0)
    base = Qwen2VLForConditionalGeneration.from_pretrained(hub_folder, dtype=torch.float32)
    policy.model = PeftModel.from_pretrained(base.eval(), tmp_path)
    theirs = [plain.logprobs(policy, QUESTION, group.prompt, o, 1.0) for o in group.completions]
    torch.testing.assert_close(expected, torch.cat(theirs), atol=1e-4, rtol=0)


def test_a_hub_id_is_read_from_the_hubs_cache_and_exported_in_the_hubs_form(
    hub_folder, tmp_path, monkeypatch
):
    """The id of the real model, found where huggingface_hub keeps what it has downloaded."""
    repository = tmp_path / "cache" / f"models--{HUB_ID.replace('/', '--')}"
    shutil.copytree(hub_folder, repository / "snapshots" / "0123abcd")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123abcd")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    policy = randomise(load_policy(HUB_ID, device="cpu"))
    policy.save(tmp_path / "adapter")
    saved = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert saved["base_model_name_or_path"] == HUB_ID

    merged = tmp_path / "merged"
    assert export_merged(policy, merged) < 1e-4
    theirs, ours = (json.loads((f / "config.json").read_text()) for f in (hub_folder, merged))
    assert ours == theirs | {"torch_dtype": "float32"}
    names = json.loads((hub_folder / INDEX).read_text())["weight_map"].keys()
    assert load_file(merged / "model.safetensors").keys() == names
    assert {f.name for f in hub_folder.iterdir()} - {f.name for f in merged.iterdir()} == {
        *SHARDS, INDEX,
    }  # fmt: skip
    again = load_policy(str(merged), device="cpu")  # a model like any other
    assert len(again.encode([QUESTION])[0].input_ids) == len(policy.encode([QUESTION])[0].input_ids)


@pytest.fixture
def program(hub_folder, tmp_path, monkeypatch):
    """Runs train.py's main on this model, as typed in an empty folder.

    A random model earns no other reward than one for the sheer length of what it says.
    """
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(
        "def long(prompts, completions, **_):\n    return [*map(len, completions)]\n"
    )
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    flags = f"--recipe medvlm-r1 --model {hub_folder} --data {DATA} --modality MRI --ood CT"
    flags += " --device cpu --train-size 8 --eval-size 2 --steps 2 --group-size 4"
    flags += " --reward format=1,mine.py:long=1"
    flags += f" --prompts-per-step 2 --max-completion-length {LENGTH} --learning-rate 1e-3"
    return lambda more: train.main([*flags.split(), *more.split()])


def steps(run: str) -> list[dict]:
    return [json.loads(line) for line in Path(run, "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_sft_then_grpo_from_its_adapter_then_evaluation(program, capsys):
    program("--method sft --out sft")
    assert [step["step"] for step in steps("sft")] == [1, 2]
    program("--init sft:sft --out grpo")
    assert [step["step"] for step in steps("grpo")] == [1, 2]
    assert steps("grpo")[0]["kl"] == 0.0  # against the adapter it began with
    assert steps("grpo")[0]["ratio/max"] == 1.0
    assert steps("grpo")[1]["kl"] > 0.0
    before, after = (
        load_file(f"{run}/adapter/adapter_model.safetensors") for run in ("sft", "grpo")
    )
    for name in before:  # both runs moved every weight of the adapter
        assert before[name].any()
        assert not torch.equal(before[name], after[name])
    evaluate.main(["--run", "grpo", "--ood", "CT", "--controls", "none", "--json", "table.json"])
    table = json.loads(Path("table.json").read_text())
    summary = json.loads(Path("grpo/summary.json").read_text())
    assert table["results"] == summary["results"]
    assert table["results"]["trained"]["CT"]["n"]
    assert f"on {DATA}, trained on MRI" in capsys.readouterr().out


@pytest.mark.slow
def test_bfloat16_goes_the_same_way(program):
    program("--dtype bfloat16 --out run --eval-size 0 --prompts-per-step 1")
    assert json.loads(Path("run/config.json").read_text())["resolved"]["dtype"] == "bfloat16"
    assert steps("run")[0]["kl"] == 0.0
    assert steps("run")[1]["kl"] > 0.0
    adapter = load_file("run/adapter/adapter_model.safetensors")
    assert {tensor.dtype for tensor in adapter.values()} == {torch.float32}
