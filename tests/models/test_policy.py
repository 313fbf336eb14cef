"""Encode, the reference, updates, gradients, saving: the policy as the algorithm meets it."""

import gc
import weakref

import torch
from transformers import Qwen2VLForConditionalGeneration

from models import distribution as law
from models.images.features import hash_tensors
from models.layers import Layers
from models.policy import CPU_ACTIVATION
from models.sampling.cuda_graph import GraphSampler
from tests.conftest import randomise
from tests.models import plain
from tests.models.plain import (
    KEYS,
    QUESTIONS,
    after_head,
    completions,
    rollout,
    rollout_with_logprobs,
)
from tests.models.sampling.recorded import Called


def update(policy, groups, learning_rate=0.02):
    """One plain gradient step on the log-probs; the gradients, before they are cleared."""
    logprobs, _ = policy.logprobs(groups, 1.0)
    (torch.linspace(-1, 2, len(logprobs)) * logprobs).sum().backward()
    gradients = [parameter.grad for parameter in policy.parameters()]
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter -= learning_rate * parameter.grad / parameter.grad.norm().clamp(min=1e-9)
            parameter.grad = None
    return gradients


# Reference


def test_the_reference_is_the_base_bit_for_bit(tiny_folder, fresh):
    policy = fresh()
    groups = rollout(policy)
    logprobs, _ = policy.logprobs(groups, 1.0)
    with policy.reference():
        reference, _ = policy.logprobs(groups, 1.0)
    assert torch.equal(logprobs, reference)  # step 0: B is zero, so the KL is exactly 0
    assert logprobs.requires_grad
    assert not reference.requires_grad

    randomise(policy)
    with policy.reference():
        assert torch.equal(policy.logprobs(groups, 1.0)[0], reference)
        ours = plain.logits(policy, QUESTIONS[0], groups[0].prompt, groups[0].completions[0])
    assert not torch.equal(policy.logprobs(groups, 1.0)[0], reference)
    untouched = Qwen2VLForConditionalGeneration.from_pretrained(tiny_folder).eval()
    policy.model.get_base_model = lambda: untouched
    theirs = plain.logits(policy, QUESTIONS[0], groups[0].prompt, groups[0].completions[0])
    assert torch.equal(ours, theirs)


def test_a_starting_adapter_is_its_own_frozen_reference(fresh, trained, tmp_path):
    trained.save(tmp_path)
    policy = fresh(adapter=tmp_path)
    groups = rollout(policy)
    assert completions(groups) == completions(rollout(trained))
    before, _ = policy.logprobs(groups, 1.0)
    with policy.reference():
        reference, _ = policy.logprobs(groups, 1.0)
    assert torch.equal(before, reference)
    assert torch.equal(before, trained.logprobs(groups, 1.0)[0])

    with policy.base():  # below the reference, there is still the base
        assert torch.equal(policy.logprobs(groups, 1.0)[0], fresh().logprobs(groups, 1.0)[0])

    trainable = [p for p in policy.model.parameters() if p.requires_grad]
    assert len(trainable) == len(policy.parameters())
    update(policy, groups)
    with policy.reference():
        assert torch.equal(policy.logprobs(groups, 1.0)[0], reference)
    after, _ = policy.logprobs(groups, 1.0)
    assert not torch.equal(after, before)
    assert [p for p in policy.model.parameters() if p.requires_grad] == trainable

    policy.save(tmp_path / "second")  # the trained adapter alone is the complete policy
    again = fresh(adapter=tmp_path / "second")
    assert torch.equal(again.logprobs(groups, 1.0)[0], after)


def prefetch(policy):
    policy.vision.prefetch(image for question in QUESTIONS for image in question.images)
    rollout(policy)


def replay(policy):
    policy.sampler = GraphSampler(Called)
    rollout(policy)


def compare(policy):
    with policy.reference():
        policy.logprobs(rollout(policy), 1.0)


def test_a_policy_is_freed_without_the_garbage_collector(fresh, tmp_path):
    """Two models of a large size, one after the other, must not need room for both."""
    fresh().save(tmp_path)
    for use in (rollout, replay, prefetch, compare, lambda policy: update(policy, rollout(policy))):
        policy = fresh(adapter=tmp_path)
        use(policy)
        parts = (policy, policy.vision, policy.head.weight, policy.parameters()[0], policy.model)
        held = list(map(weakref.ref, parts))
        gc.disable()
        try:
            del policy, parts
            assert [ref() for ref in held] == [None] * len(held), use
        finally:
            gc.enable()


# Updates and gradients


def test_an_update_reaches_the_sampler_at_once_and_leaves_the_base_alone(fresh):
    policy = fresh()
    base = [(n, p) for n, p in policy.model.named_parameters() if "lora_" not in n]
    before_hash, storage = hash_tensors(base), [p.data_ptr() for p in policy.parameters()]
    first = rollout(policy)
    for _ in range(4):
        update(policy, first, learning_rate=0.3)
    second = rollout(policy)
    assert completions(second) != completions(first)
    assert [p.data_ptr() for p in policy.parameters()] == storage
    # What samples is what is scored, after the updates too.
    decoded = rollout_with_logprobs(policy, policy.encode(QUESTIONS), 4, KEYS, 1.0, 12)
    at_decode = [row[:n] for row, n in zip(decoded.logprobs, decoded.lengths, strict=True)]
    scored, _ = policy.logprobs(second, 1.0)
    torch.testing.assert_close(torch.cat(at_decode), scored.detach(), atol=1e-4, rtol=0)
    assert hash_tensors(base) == before_hash
    assert not any(p.requires_grad for _, p in base)


def test_every_lora_parameter_has_a_gradient_on_the_second_step(fresh):
    policy = fresh()
    groups = rollout(policy)
    update(policy, groups)  # on the first B is zero, so A has none
    gradients = update(policy, groups)
    assert len(gradients) == 2 * 7 * 2  # layers, linears, A and B
    assert all(gradient is not None and gradient.abs().max() > 0 for gradient in gradients)


def test_lora_sits_on_the_seven_linears_of_every_language_layer_and_nowhere_else(trained):
    names = [n for n, m in trained.model.named_modules() if hasattr(m, "lora_A")]
    parts = ["self_attn." + p for p in ("q_proj", "k_proj", "v_proj", "o_proj")]
    parts += ["mlp." + p for p in ("gate_proj", "up_proj", "down_proj")]
    stem = "base_model.model.model.language_model.layers"
    assert sorted(names) == sorted(f"{stem}.{i}.{part}" for i in range(2) for part in parts)
    assert {p.dtype for p in trained.parameters()} == {torch.float32}


def test_checkpointing_gives_the_same_gradients_and_tokens(fresh, monkeypatch):
    gradients, tokens, calls = [], [], []
    layer = Layers._layer
    monkeypatch.setattr(Layers, "_layer", lambda *args: calls.append(1) or layer(*args))
    for switch in ("on", "off"):
        policy = randomise(fresh(gradient_checkpointing=switch))
        assert policy.checkpointing == (switch == "on")
        groups = rollout(policy)
        calls.clear()
        gradients.append(update(policy, groups))
        assert len(calls) == (4 if switch == "on" else 2)  # layers ran again in the backward pass
        tokens.append(completions(groups) + completions(rollout(policy)))
    assert tokens[0] == tokens[1]
    for on, off in zip(*gradients, strict=True):
        torch.testing.assert_close(on, off, atol=1e-6, rtol=1e-5)


def test_the_chunked_head_equals_the_naive_one(trained, monkeypatch):
    groups = rollout(trained)
    expected, expected_entropy = trained.logprobs(groups, 0.7)
    (gradient,) = torch.autograd.grad(expected.sum(), trained.parameters()[:1])

    monkeypatch.setattr(law, "HEAD_LOGITS", 5 * len(trained.banned))  # five rows a chunk
    rows = []
    with after_head(trained, lambda logits: rows.append(len(logits)) or logits):
        logprobs, entropy = trained.logprobs(groups, 0.7)
        (chunked,) = torch.autograd.grad(logprobs.sum(), trained.parameters()[:1])
    assert max(rows) == 5
    assert sum(rows) == 2 * len(logprobs)  # forward, and again in the backward pass
    torch.testing.assert_close(logprobs, expected, atol=5e-6, rtol=0)
    torch.testing.assert_close(chunked, gradient, atol=1e-5, rtol=1e-5)

    with torch.no_grad():
        raw = plain.logits(trained, QUESTIONS[0], groups[0].prompt, groups[0].completions[0])
    p = torch.softmax(raw[:, ~trained.banned] / 0.7, dim=-1)
    naive = -(p * p.log()).sum(dim=-1)
    torch.testing.assert_close(entropy[: len(naive)], naive, atol=1e-5, rtol=0)
    torch.testing.assert_close(entropy, expected_entropy, atol=5e-6, rtol=0)
    assert not entropy.requires_grad


def test_a_pass_on_a_cpu_has_no_activation_wider_than_its_cache(trained):
    width = trained.language_model.config.intermediate_size * trained.dtype.itemsize
    assert CPU_ACTIVATION - width < trained.token_budget * width <= CPU_ACTIVATION


def test_passes_hold_every_group_once_within_the_token_budget(trained, monkeypatch):
    groups = [g for length in (3, 30, 9, 18) for g in rollout(trained, length=length)]
    monkeypatch.setattr(trained, "token_budget", 260)
    plan = trained.passes(groups)
    assert sorted(i for part in plan for i in part) == list(range(12))
    for part in plan:
        assert len(part) == 1 or sum(groups[i].row_length for i in part) <= 260
    assert 1 < len(plan) < 12
    assert trained.passes(groups) == plan
