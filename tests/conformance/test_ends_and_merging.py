"""Ends, overflow, dropout and merging: lines 23 to 27 of README.md's table."""

import hashlib
import math

import pytest
import torch
from transformers import Qwen2VLForConditionalGeneration

from grpo.loss import clipped_surrogate, importance_ratio, k3_kl, token_weights
from models.export import export_merged
from tests.conformance import oracle
from tests.conformance.oracle import decoded, forbidden, group_of, users_of
from tests.conftest import randomise
from tests.grpo.cases import config
from tests.models import plain
from tests.models.plain import QUESTIONS, after_head


@torch.no_grad()
def test_trl_4970_an_end_counts_and_nothing_comes_after_it(trained):
    """There, masks looked for the pad's id: a true end was masked, or what follows it was not.
    Here, lengths say what exists: both of Qwen's ends stop a row, belong to it and have weight."""
    ends = set(trained.chat.tokenizer.convert_tokens_to_ids(oracle.ENDS))
    assert len(ends) == 2
    groups, _ = decoded(trained, QUESTIONS, 60, temperature=100.0, length=24)
    seen = []
    for group in groups:
        for ids, truncated in zip(group.completions, group.truncated, strict=True):
            *body, last = ids.tolist()
            assert not ends & set(body)
            assert truncated == (last not in ends)
            assert len(ids) == 24 if truncated else last in ends
            seen.append(last)
    assert set(seen) >= ends
    lengths = torch.tensor([len(ids) for group in groups for ids in group.completions])
    weights = token_weights(lengths, "dapo", 24)
    assert len(weights) == lengths.sum() == len(trained.logprobs(groups, 1.0)[0])
    assert (weights > 0).all()
    end = group_of(trained, QUESTIONS[1], (3, 3)).completions
    assert {int(o[-1]) for o in end} == ends
    assert not users_of("pad_token_id")
    assert trained.chat.tokenizer.convert_ids_to_tokens(trained.completion_ids("B").tolist()) == [
        "B",
        "<|im_end|>",
    ]
    kept = trained.decode(torch.tensor([*trained.completion_ids("B", end=False), *ends]))
    assert kept.startswith("B<|"), "one end is taken off, and no more"


@pytest.mark.parametrize("gap", [50.0, -50.0, 1e4, -1e4])
def test_nemo_rl_874_no_exponential_overflows(fresh, gap):
    """There, the exponential of a large log-ratio gave NaN, and the optimizer never recovered.
    Here, value and gradient are finite, held tokens are counted, a bad gradient updates nothing."""
    logprobs = torch.tensor([-1.0, -2.0], requires_grad=True)
    other = logprobs.detach() - torch.tensor([gap, 0.0])
    ratio = importance_ratio(logprobs, other)
    loss = (clipped_surrogate(ratio, -torch.ones(2), 0.2, 0.2) + k3_kl(logprobs, other)).sum()
    loss.backward()
    assert loss.isfinite()
    assert logprobs.grad.isfinite().all()
    assert ratio[0].item() == pytest.approx(math.exp(20.0 if gap > 0 else -20.0), rel=1e-5)

    policy = randomise(fresh())
    start = oracle.flat(policy)
    inner, factor = policy.logprobs, 1e30 if gap > 0 else 0.0

    def steep(*args):  # the same log-probs, whose gradient overflows
        logprobs, entropy = inner(*args)
        return logprobs + factor * (logprobs - logprobs.detach()), entropy

    policy.logprobs = steep
    (step,), seen = oracle.watched(policy, config(kl_coef=0.0, max_grad_norm=0.5))
    assert step.metrics["skipped_updates"] == (gap > 0) == 1 - len(seen)
    assert step.metrics["grad_norm"] > 0.6
    for _, gradient in seen:
        assert float(gradient.norm()) == pytest.approx(0.5, rel=1e-4), "clipped before the update"
    assert oracle.flat(policy).isfinite().all()
    assert torch.equal(oracle.flat(policy), start) == (gap > 0)


@torch.no_grad()
def test_trl_3000_nothing_drops_out(fresh):
    """There, dropout was on in one of rollout, old, new and reference passes, and not in others.
    Here, there is none, no module is left in training mode, and passes repeat to the bit."""
    for switch in ("off", "on"):
        policy = randomise(fresh(gradient_checkpointing=switch))
        assert policy.model.peft_config["default"].lora_dropout == 0.0
        states = []

        def see(logits, p=policy, s=states):
            s.append(
                [m for m in p.model.modules() if isinstance(m, torch.nn.Dropout) and m.training]
            )
            return logits

        with after_head(policy, see):
            groups, _ = decoded(policy, QUESTIONS, 2)
            first, again = (policy.logprobs(groups, 1.0)[0] for _ in range(2))
        assert torch.equal(first, again)
        assert states
        assert not any(states)
        assert not any(module.training for module in policy.model.modules())
        with policy.reference():
            assert torch.equal(policy.logprobs(groups, 1.0)[0], policy.logprobs(groups, 1.0)[0])


def test_trl_6688_frozen_weights_are_the_same_bytes_after_a_run(fresh):
    """There, merging an adapter into bfloat16 weights and back, each rollout, moved the weights.
    Here, nothing is merged in place: what is frozen hashes the same after steps and rollouts."""

    def digest(policy) -> str:
        found = hashlib.sha256()
        for name, p in policy.model.named_parameters():
            if "lora_" not in name:
                found.update(name.encode() + p.detach().view(torch.uint8).numpy().tobytes())
        return found.hexdigest()

    policy = randomise(fresh(dtype="bfloat16"))
    before = digest(policy)
    oracle.watched(policy, config(steps=3, kl_coef=0.04, updates_per_rollout=2))
    decoded(policy, QUESTIONS, 2)
    assert digest(policy) == before
    merging = ("merge_adapter", "unmerge_adapter", "merge_and_unload", "merge", "unmerge")
    in_place = {
        path
        for path, module in oracle.sources().items()
        for node in oracle.ast.walk(module)
        if isinstance(node, oracle.ast.Call)
        and isinstance(node.func, oracle.ast.Attribute)
        and node.func.attr in merging
    }
    assert in_place == set()


@torch.no_grad()
def test_peft_1836_the_merged_model_is_the_policy(fresh, tmp_path):
    """There, a merge in low precision gave a model that answers otherwise than its adapter.
    Here, plain transformers has the policy's logits from the exported folder; the gap is told."""
    policy = randomise(fresh(), scale=0.1)
    told = export_merged(policy, tmp_path / "merged")
    model = Qwen2VLForConditionalGeneration.from_pretrained(tmp_path / "merged").eval()
    largest = 0.0
    for question in QUESTIONS:
        (prompt,) = policy.encode([question])
        batch = plain.inputs(policy, question, prompt)
        batch["attention_mask"] = torch.ones_like(batch["input_ids"])
        theirs = model(**batch).logits[0]
        ours = policy.model.get_base_model()(**batch).logits[0]
        policy.model.get_base_model().model.rope_deltas = None
        largest = max(largest, float((ours - theirs).abs().max()))
    assert largest < 2e-4
    assert told < 2e-4
    assert not forbidden(policy)[decoded(policy, QUESTIONS, 1, 0)[0][0].completions[0]].any()
