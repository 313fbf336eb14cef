"""The record of a step: whether the loss and its derivative follow from it alone, and what else it
holds. What is compared with it is recomputed in float64 here, without grpo.loss."""

import json
import math
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import train
from grpo.metrics import Step, Update
from grpo.rollout import Rollout
from grpo.run.trace import write_trace
from grpo.settings.errors import UsageError
from grpo.settings.flags import steps_in
from models.policy import Policy
from tests.conftest import randomise
from tests.grpo.cases import config, draw, reward, steps

SETTINGS = {"updates_per_rollout": 3, "kl_coef": 0.04, "temperature": 0.8, "clip_eps": 0.02}
SECOND = 1  # the second of the updates: by then the ratio has moved


def describe(example):
    return {"id": example.id, "question": example.prompt}, [b"png of " + example.id.encode()]


def derivatives(policy: Policy) -> list[Tensor]:
    """Filled as the policy trains: of every update, d loss / d log-prob as autograd has it (N,)."""
    found, plain = [], policy.logprobs

    def watched(groups, temperature):
        logprobs, entropy = plain(groups, temperature)
        if logprobs.requires_grad:
            logprobs.register_hook(found.append)
        return logprobs, entropy

    policy.logprobs = watched
    return found


def read(folder: Path, step: int = 1) -> tuple[dict, dict[str, Tensor]]:
    file = folder / f"step-{step:06d}"
    tensors = load_file(f"{file}.safetensors")
    kinds = {
        name: torch.int64 if name in ("row", "token_ids") else torch.float32 for name in tensors
    }
    assert {name: tensor.dtype for name, tensor in tensors.items()} == kinds
    return json.loads(Path(f"{file}.json").read_text()), tensors


def recomputed(record: dict, tensors: dict[str, Tensor], u: int) -> tuple[Tensor, Tensor]:
    """Of update u, from the record alone: every token's loss and its derivative by log pi, (N,)."""
    settings, wide = record["settings"], {k: v.double() for k, v in tensors.items()}
    row = tensors["row"]
    lengths = torch.bincount(row, minlength=wide["rewards"].numel()).double()
    weights = {
        "grpo": 1 / (len(lengths) * lengths[row]),
        "dapo": torch.full_like(wide["weights"], 1 / len(row)),
        "dr_grpo": torch.full_like(
            wide["weights"], 1 / (len(lengths) * settings["max_completion_length"])
        ),
    }[settings["loss"]]
    advantage = wide["advantages"].flatten()[row]
    logprobs, beta = wide["logprobs"][u], settings["kl_coef"]
    ratio = torch.exp(logprobs - wide["old_logprobs"])
    low, high = 1 - settings["clip_eps"], 1 + settings["clip_eps_high"]
    gain = torch.minimum(ratio * advantage, ratio.clamp(low, high) * advantage)
    free = ~((ratio > high) & (advantage > 0) | (ratio < low) & (advantage < 0))
    log_x = wide["ref_logprobs"] - logprobs
    loss = -weights * (gain - beta * (log_x.exp() - log_x - 1))
    return loss, -weights * (free * ratio * advantage - beta * (1 - log_x.exp()))


def furthest(a: Tensor, b: Tensor) -> float:
    """The largest difference, relative to each value, or to a thousandth of the largest value.

    A token without advantage has its share of the KL alone, x - log x - 1 of an x near 1, of which
    float32 keeps few digits.
    """
    return ((a - b).abs() / b.abs().clamp(min=1e-3 * b.abs().max())).max().item()


@pytest.mark.parametrize("loss", ["grpo", "dapo", "dr_grpo"])
def test_loss_and_its_derivative_follow_from_the_record_of_the_second_of_three_updates(
    fresh, tmp_path, loss
):
    c = config(loss=loss, **SETTINGS)
    policy = randomise(fresh())
    seen = derivatives(policy)
    (step,) = steps(policy, draw, reward, c)
    write_trace(tmp_path, step, c, describe, policy.chat.pieces)
    record, tensors = read(tmp_path)
    losses, slopes = recomputed(record, tensors, SECOND)
    moved = (tensors["ratio"][SECOND] - 1).abs()
    assert (moved > c.clip_eps).any(), "nothing is clipped: the clip is not tried"
    assert furthest(tensors["loss"][SECOND].double(), losses) < 1e-5
    assert furthest(seen[SECOND].double(), slopes) < 1e-5
    logged = [recomputed(record, tensors, u)[0].sum().item() for u in range(3)]
    assert record["metrics"]["loss"] == pytest.approx(sum(logged) / 3, rel=1e-5)
    assert record["metrics"] == step.metrics

    tensors["advantages"][0, 0] *= 1.001  # and the record says something: a slip in it shows
    losses, slopes = recomputed(record, tensors, SECOND)
    assert furthest(tensors["loss"][SECOND].double(), losses) > 1e-4
    assert furthest(seen[SECOND].double(), slopes) > 1e-4


def test_a_completion_has_its_text_tokens_reward_and_advantage(fresh, tmp_path):
    def apart(examples, texts, ids=()):  # a reward that does not apply to every completion
        totals, parts = reward(examples, texts)
        return totals, parts | {"some": [None if i % 2 else 1.0 for i in range(len(texts))]}

    c = config(max_completion_length=80)
    policy = randomise(fresh())
    (step,) = steps(policy, draw, apart, c)
    write_trace(tmp_path, step, c, describe, policy.chat.pieces)
    record, tensors = read(tmp_path)
    rows = [(g, one) for g in record["groups"] for one in g["completions"]]
    assert [g["id"] for g in record["groups"]] == ["one", "none", "two"]
    assert [g["zero_variance"] for g in record["groups"]] == [False, True, False]
    assert {one["truncated"] for _, one in rows} == {True, False}, "one kind is not tried"
    for i, (_, one) in enumerate(rows):
        ids = tensors["token_ids"][tensors["row"] == i]
        assert one["text"] == policy.decode(ids)
        assert one["tokens"] == [policy.chat.tokenizer.decode([token]) for token in ids.tolist()]
        ended = one["tokens"][-1] in ("<|im_end|>", "<|endoftext|>")
        assert ended != one["truncated"]
        assert one["reward"] == tensors["rewards"].flatten()[i]
        assert one["advantage"] == tensors["advantages"].flatten()[i]
        assert one["parts"] == {"sum": one["reward"], "some": None if i % 2 else 1.0}


def test_a_step_without_a_baseline_is_recorded_too(fresh, tmp_path):
    """Its advantages are its rewards: one memory, which a safetensors file cannot hold twice."""
    c = config(baseline="none", scale_rewards="none")
    policy = randomise(fresh())
    (step,) = steps(policy, draw, reward, c)
    assert step.advantages.data_ptr() == step.rollout.rewards.data_ptr(), "nothing is shared"
    write_trace(tmp_path, step, c, describe, policy.chat.pieces)
    _, tensors = read(tmp_path)
    assert torch.equal(tensors["advantages"], tensors["rewards"])


def test_layers_make_up_the_norm_of_the_gradient_and_only_of_a_traced_step(fresh):
    c = config(steps=2, trace_steps="2", updates_per_rollout=2)
    first, second = steps(randomise(fresh()), draw, reward, c)
    assert [u.grad_norm_by_layer for u in first.updates] == [{}, {}]
    for u in second.updates:
        assert list(u.grad_norm_by_layer) == ["layers.0", "layers.1"]
        total = math.hypot(*u.grad_norm_by_layer.values())
        assert total == pytest.approx(u.grad_norm, rel=1e-5)
        assert min(u.grad_norm_by_layer.values()) > 0


def test_tokens_without_a_pass_and_a_reference_that_is_not_are_nan(fresh, tmp_path):
    c = config(kl_coef=0.0)
    policy = randomise(fresh())
    (step,) = steps(policy, draw, reward, c)
    assert step.ref_logprobs is None
    write_trace(tmp_path, step, c, describe, policy.chat.pieces)
    _, tensors = read(tmp_path)
    still = tensors["row"] // 4 == 1  # the group of equal rewards
    for name in ("logprobs", "ratio", "entropy", "loss"):
        assert torch.equal(tensors[name][0].isnan(), still)
    assert torch.equal(tensors["old_logprobs"].isnan(), still)
    assert tensors["ref_logprobs"].isnan().all()


def test_a_run_traces_the_steps_that_it_is_told_to(tmp_path):
    flags = ["--recipe", "phantom", "--device", "cpu", "--cache", "none", "--eval-size", "0"]
    flags += ["--steps", "2", "--train-size", "12", "--prompts-per-step", "2", "--group-size", "2"]
    train.main([*flags, "--trace-steps", "2", "--out", str(tmp_path / "second")])
    train.main([*flags, "--trace-steps", "0", "--out", str(tmp_path / "none")])
    assert not (tmp_path / "none" / "trace").exists()
    folder = tmp_path / "second" / "trace"
    assert len(list(folder.glob("step-*"))) == 2
    record, _ = read(folder, 2)
    lines = (tmp_path / "second" / "metrics.jsonl").read_text().splitlines()
    assert record["metrics"].items() <= json.loads(lines[1]).items()
    assert {"time/rollout", "time/update", "memory/peak_mb"} <= record["metrics"].keys()
    assert list(record["updates"][0]["grad_norm_by_layer"]) == [f"layers.{i}" for i in range(4)]
    for group in record["groups"]:
        assert group["id"].startswith("phantom-MRI-train-")
        assert group["question"] in group["prompt"]
        assert group["gold"] in "ABCD"
        (image,) = group["images"]
        assert (folder / image).read_bytes().startswith(b"\x89PNG")


def made(groups: int, size: int = 2) -> Step:
    """A step of many small groups, by hand: every completion is one token."""
    made_of = [
        SimpleNamespace(
            completions=[torch.tensor([b])] * size,
            truncated=[False] * size,
            sampling_logprobs=[torch.zeros(1)] * size,
        )
        for b in range(groups)
    ]
    rewards = torch.arange(groups * size, dtype=torch.float32).view(groups, size)
    examples = [SimpleNamespace(id=str(b), prompt="?") for b in range(groups)]
    rollout = Rollout(examples, made_of, [["x"] * size] * groups, rewards, {"sum": rewards})
    flat, *seen = (rewards.flatten() + i for i in range(6))
    update = Update(*seen, grad_norm=math.nan, learning_rate=1.0, skipped_updates=1.0)
    metrics = {"step": 1, "loss": math.nan}
    return Step(metrics, rollout, rewards.clone(), flat, flat.clone(), flat.clone(), [update])


def pieces(ids: Tensor) -> list[str]:
    return [str(i) for i in ids.tolist()]


def test_of_a_large_step_the_first_64_groups_are_kept_and_the_rest_counted(tmp_path):
    step = made(70)
    write_trace(tmp_path, step, config(), describe, pieces)
    record, tensors = read(tmp_path)
    assert [g["id"] for g in record["groups"]] == [str(b) for b in range(64)]
    assert record["groups_left_out"] == 6
    assert tensors["rewards"].shape == (64, 2)
    assert tensors["row"].tolist() == list(range(128))
    for name in ("weights", "old_logprobs", "ref_logprobs"):
        assert torch.equal(tensors[name], getattr(step, name)[:128]), name
    for name in ("logprobs", "ratio", "kl", "entropy", "loss"):
        assert torch.equal(tensors[name], getattr(step.updates[0], name)[None, :128]), name
    assert {len(t) for name, t in tensors.items() if t.ndim == 1} == {128}
    assert record["updates"][0]["grad_norm"] is None, "JSON knows no NaN"
    assert record["metrics"]["loss"] is None


def test_an_image_is_kept_once(tmp_path):
    same = lambda example: ({"id": example.id}, [b"the same", b"another"])  # noqa: E731
    write_trace(tmp_path, made(3), config(), same, pieces)
    record, _ = read(tmp_path)
    assert len(list((tmp_path / "images").iterdir())) == 2
    for group in record["groups"]:
        assert [(tmp_path / i).read_bytes() for i in group["images"]] == [b"the same", b"another"]


@pytest.mark.parametrize("cut", ["safetensors", "json"])
def test_a_run_that_is_cut_off_leaves_whole_files_and_the_json_last(tmp_path, cut):
    write_trace(tmp_path, made(2), config(), describe, pieces)
    second = made(2)
    second.metrics["step"] = 2
    (tmp_path / f"step-000002.{cut}.{os.getpid()}.part").mkdir()  # where the disk fails
    with pytest.raises(OSError, match="step-000002"):
        write_trace(tmp_path, second, config(), describe, pieces)
    read(tmp_path)
    assert not (tmp_path / "step-000002.json").exists()
    assert (tmp_path / "step-000002.safetensors").exists() == (cut == "json")


def test_which_steps_are_traced():
    named = {
        ("auto", 1): [1],
        ("auto", 19): list(range(1, 20)),
        ("auto", 200): list(range(10, 201, 10)),
        ("auto", 205): [*range(11, 205, 11), 205],
        ("0", 200): [],
        ("50, 1,2", 200): [1, 2, 50],
    }
    assert {asked: sorted(steps_in(*asked)) for asked in named} == named
    for text, total in named:
        assert config(trace_steps=text, steps=total).traced_steps == steps_in(text, total)


def test_what_names_no_steps_is_refused():
    for text in ("", "all", "-1", "1,,2", "1.5"):
        with pytest.raises(UsageError, match=f"--trace-steps {text}: "):
            config(trace_steps=text)
