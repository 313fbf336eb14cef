"""The reference model and LoRA: lines 28 to 33 of README.md's table."""

import ast

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook
from transformers import Qwen2VLForConditionalGeneration, Qwen2VLModel

from models.layers import Layers
from models.linear import Linear
from tests.conformance import oracle
from tests.conformance.oracle import decoded, near, truth
from tests.conftest import randomise
from tests.grpo.cases import config
from tests.models.plain import QUESTIONS, completions


def test_r1_v_64_the_reference_is_the_policy_with_its_adapter_off(fresh, tiny_folder):
    """There, users were not sure whether turning the adapter off gives the first policy.
    Here, to the bit: KL 0.0 at the first step, unchanged after steps, equal to the files' model."""
    policy = fresh()
    groups, _ = decoded(policy, QUESTIONS, 3)
    with torch.no_grad():
        first = policy.logprobs(groups, 1.0)[0]
        with policy.reference():
            assert torch.equal(policy.logprobs(groups, 1.0)[0], first)
    steps, _ = oracle.watched(policy, config(steps=3, kl_coef=0.04))
    assert steps[0].metrics["kl"] == 0.0
    assert not steps[0].updates[0].kl.any()
    assert steps[2].metrics["kl"] > 0.0
    with torch.no_grad():
        assert not torch.equal(policy.logprobs(groups, 1.0)[0], first)
        with policy.reference():
            assert torch.equal(policy.logprobs(groups, 1.0)[0], first)
        assert not torch.equal(policy.logprobs(groups, 1.0)[0], first), "and it is on again"
        untouched = Qwen2VLForConditionalGeneration.from_pretrained(tiny_folder).eval()
        policy.model.get_base_model = lambda: untouched
        exact = truth(policy, QUESTIONS, groups)
    torch.testing.assert_close(first.double(), exact, atol=1e-5, rtol=0)


def test_nova_sky_ai_skyrl_1776_the_sampler_uses_the_adapter_that_trains(fresh):
    """There, with an adapter nothing was learned: sampler and trainer had come apart.
    Here, both read it anew; after an update rollouts change, and still are what is scored."""
    policy = fresh()
    first, _ = decoded(policy, QUESTIONS, 4)
    oracle.watched(policy, config(steps=2, learning_rate=0.05))
    second, at_decode = decoded(policy, QUESTIONS, 4)
    assert completions(second) != completions(first)
    scored = truth(policy, QUESTIONS, second).detach()
    torch.testing.assert_close(at_decode.double(), scored, atol=1e-4, rtol=0)
    drift = policy.logprobs(second, 1.0)[0].detach() - at_decode
    assert drift.abs().max() < 1e-4
    numbers = [sum(int(p.count_nonzero()) for p in policy.parameters())]
    for _ in range(2):
        layers = Layers(policy.language_model).layers
        linears = [part for layer in layers for part in layer if isinstance(part, Linear)]
        read = [tensor for linear in linears for tensor in (linear.a, linear.b)]
        numbers.append(sum(int(tensor.count_nonzero()) for tensor in read))
        for p in policy.parameters():
            p.data.zero_()
    assert numbers == [numbers[0], numbers[0], 0]


def test_unsloth_5039_every_trained_weight_has_a_gradient(fresh):
    """There, adapters sat on modules that the loss never reached, and trained on zeros.
    Here, from the second update on each A and B moves; they sit on the language layers alone."""
    policy = fresh()
    c = config(updates_per_rollout=2, kl_coef=0.0)
    _, seen = oracle.watched(policy, c)
    sizes = [p.numel() for p in policy.parameters()]
    assert len(sizes) == 2 * 7 * 2  # layers, linears, A and B
    assert all(part.any() for part in seen[1][1].split(sizes))
    expected = {
        f"base_model.model.model.language_model.layers.{layer}.{part}.lora_{ab}.weight"
        for layer in range(2)
        for part in (
            *(f"self_attn.{x}_proj" for x in "qkvo"),
            *(f"mlp.{x}_proj" for x in ("gate", "up", "down")),
        )
        for ab in "AB"
    }
    assert set(policy.names) == expected
    trainable = [name for name, p in policy.model.named_parameters() if p.requires_grad]
    assert len(trainable) == len(expected)


def test_microsoft_lora_120_checkpointing_changes_no_gradient(fresh):
    """There, recomputing through frozen inputs cut the graph, and adapters got no gradient.
    Here, gradients with it are those without and those of the truth; it is never reentrant."""
    found = {}
    for switch in ("on", "off"):
        policy = randomise(fresh(gradient_checkpointing=switch))
        c = config(kl_coef=0.04)
        (step,), seen = oracle.watched(policy, c)
        found[switch] = seen[0][1]
        for mine, other in oracle.step_gradients(policy, step, c, seen):
            near(mine, other)
    near(found["on"], found["off"], 1e-6)
    for path, module in oracle.sources().items():
        for node in ast.walk(module):
            if isinstance(node, ast.keyword) and node.arg == "use_reentrant":
                assert ast.unparse(node.value) == "False", path


def test_ms_swift_10214_the_frozen_tower_builds_no_graph(fresh, monkeypatch):
    """There, hooks made the frozen tower's inputs need gradients, and its graph filled the memory.
    Here, features and embeddings have no graph, and each image meets the tower once in a run."""
    runs, inner = [], Qwen2VLModel.get_image_features

    def counted(*args, **kwargs):
        runs.append(torch.is_grad_enabled())
        return inner(*args, **kwargs)

    monkeypatch.setattr(Qwen2VLModel, "get_image_features", counted)
    for switch in ("off", "on"):
        policy, before = fresh(gradient_checkpointing=switch), len(runs)
        oracle.watched(policy, config(steps=2, kl_coef=0.04, updates_per_rollout=2))
        assert len(runs) - before == 3  # images of the three questions, over two steps
        (prompt,) = policy.encode(QUESTIONS[:1])
        assert not prompt.features[0].requires_grad
        assert not policy.embed(prompt.input_ids, prompt.features).requires_grad
        tower = policy.model.get_base_model().model.visual
        assert not any(p.requires_grad or p.grad is not None for p in tower.parameters())
    assert not any(runs)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_verl_omni_73_a_step_of_a_millionth_is_not_lost(fresh, dtype):
    """There, adapters and moments in bfloat16 rounded updates of 1e-6 away.
    Here, both are float32 whatever the base is, and such a rate changes nearly every weight."""
    policy, optimizers = randomise(fresh(dtype=dtype)), []
    start = oracle.flat(policy)
    hook = register_optimizer_step_post_hook(lambda optimizer, *_: optimizers.append(optimizer))
    try:
        oracle.watched(policy, config(learning_rate=1e-6, kl_coef=0.0, max_grad_norm=1.0))
    finally:
        hook.remove()
    assert {p.dtype for p in policy.parameters()} == {torch.float32}
    moments = [m for state in optimizers[0].state.values() for m in state.values() if m.ndim]
    assert len(moments) == 2 * len(policy.parameters())
    assert {m.dtype for m in moments} == {torch.float32}
    moved = (oracle.flat(policy) - start).abs()
    assert float((moved > 0).float().mean()) > 0.98
    assert float(moved.max()) < 2e-6
    assert float(moved.median()) == pytest.approx(1e-6, rel=0.05)  # Adam's first step is the rate
