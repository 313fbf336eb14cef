"""Log-probs, the ratio and the law of samples: lines 15 to 22 of README.md's table."""

import dataclasses
import json
import math
import shutil

import pytest
import torch

from grpo.loss import clipped, clipped_surrogate
from grpo.settings.config import Config
from models import linear as products
from models.distribution import draw
from models.open_policy import load_policy
from tests.conformance import oracle
from tests.conformance.oracle import alike, decoded, group_of, law, near, truth, users_of
from tests.conftest import randomise
from tests.grpo.cases import config
from tests.models.plain import QUESTIONS, completions


def test_trl_3029_temperature_in_logprobs(fresh):
    """There, samples had a temperature and the log-probs, old, new or reference, had none.
    Here, at 0.7 all are the truth at 0.7, and the gradient agrees with finite differences."""
    policy, c = randomise(fresh()), config(temperature=0.7, kl_coef=0.04)
    groups, at_decode = decoded(policy, QUESTIONS, 4, temperature=0.7)
    expected = truth(policy, QUESTIONS, groups, 0.7).detach()
    alike(at_decode, expected, 1e-4)
    ours, _ = policy.logprobs(groups, 0.7)
    alike(ours, expected)
    assert (expected - truth(policy, QUESTIONS, groups, 1.0)).abs().median() > 0.1

    weights = torch.linspace(-1, 2, len(ours))
    direction = torch.randn(len(oracle.flat(policy)), generator=torch.Generator().manual_seed(0))
    slope = float(oracle.gradient(policy, (weights * ours).sum()) @ direction)
    start, sides = oracle.flat(policy), []
    for h in (1e-3, -1e-3):
        oracle.put(policy, start + h * direction)
        sides.append(float((weights * truth(policy, QUESTIONS, groups, 0.7).detach()).sum()))
    assert slope == pytest.approx((sides[0] - sides[1]) / 2e-3, rel=0.02)

    oracle.put(policy, start)
    (step,), seen = oracle.watched(policy, c)
    for found, gradient in oracle.step_gradients(policy, step, c, seen):
        near(found, gradient)
    oracle.put(policy, start)
    at = (step.rollout.examples, step.rollout.groups, 0.7)
    alike(step.old_logprobs, truth(policy, *at))
    with policy.model.disable_adapter():
        alike(step.ref_logprobs, truth(policy, *at))


@torch.no_grad()
def test_ms_swift_5967_generation_config_is_not_read(tiny_folder, tmp_path, trained):
    """There, the checkpoint's own top_k 1 reached the sampler and all completions were equal.
    Here, a group's rows differ, and samples are the same whatever that file says."""
    text = (tiny_folder / "generation_config.json").read_text()
    assert json.loads(text) | {"top_k": 1, "top_p": 0.001, "temperature": 0.01} == json.loads(text)
    expected = completions(decoded(trained, QUESTIONS, 6)[0])
    for part in (expected[:6], expected[6:12], expected[12:]):
        assert len(set(map(tuple, part))) == 6
    other = tmp_path / "model"
    shutil.copytree(tiny_folder, other)
    plain_file = {"do_sample": False, "temperature": 5.0, "top_k": 0, "eos_token_id": [7]}
    (other / "generation_config.json").write_text(json.dumps(plain_file))
    policy = randomise(load_policy(str(other), device="cpu"))
    assert completions(decoded(policy, QUESTIONS, 6)[0]) == expected
    assert users_of("generation_config", "GenerationConfig", "generate") == set()


@pytest.mark.parametrize("temperature", [0.7, 3.0])
@torch.no_grad()
def test_trl_6789_samples_come_from_the_whole_distribution(trained, temperature):
    """There, a default top_k of 50 cut samples while log-probs were of the whole vocabulary.
    Here, every slice of the truth, its tail too, is drawn as often as it should be."""
    count = 4000
    (group,), at_decode = decoded(trained, QUESTIONS[:1], count, temperature, length=1)
    p = law(trained, QUESTIONS[0], group, 0, temperature)[0].exp()  # (V,)
    drawn = torch.cat(group.completions)
    order = p.argsort(descending=True)
    for ids in (order[:1], order[1:10], order[10:50], order[50:120], order[120:]):
        share = float(p[ids].sum())
        found = float(torch.isin(drawn, ids).double().mean())
        assert abs(found - share) < 4.5 * math.sqrt(share * (1 - share) / count) + 1e-9
    assert float(p[order[50:]].sum()) > 0.02
    alike((p[drawn].log() - at_decode).exp(), torch.ones(count), 1e-4)  # the ratio
    logits, k = torch.linspace(-1, 1, 151_936), torch.arange(0, 151_936, 9_001)  # Qwen2-VL's size
    p = logits.softmax(dim=0, dtype=torch.float64)
    for inside in (1e-3, 0.5, 0.999):  # near an edge, where float32 would take the neighbour
        tokens, _ = draw(logits.expand(len(k), -1), p.cumsum(dim=0)[k] - (1 - inside) * p[k])
        assert torch.equal(tokens, k)
    names = {field.name for field in dataclasses.fields(Config)}
    assert not names & {"top_k", "top_p", "min_p", "typical_p", "repetition_penalty"}


@pytest.mark.parametrize("kl_coef", [0.0, 0.04])
def test_minimind_775_ratio_one_and_loss_zero_still_train(fresh, kl_coef):
    """There, users took a ratio of 1 and a loss of 0 for a broken run, and sometimes it was.
    Here, the first update has both and REINFORCE's gradient; with several, the ratio moves."""
    policy = randomise(fresh())
    c = config(kl_coef=kl_coef, updates_per_rollout=3)
    (step,), seen = oracle.watched(policy, c)
    first = step.updates[0]
    assert torch.equal(first.ratio[first.ratio.isfinite()], torch.ones(()).expand(
        int(first.ratio.isfinite().sum())))  # fmt: skip
    assert step.metrics["ratio/max"] > 1.0
    if kl_coef == 0.0:
        assert abs(float(first.loss.nansum())) < 1e-6
        oracle.put(policy, seen[0][0])
        rollout, at = step.rollout, 0
        logprobs, total = truth(policy, rollout.examples, rollout.groups), torch.zeros(())
        scores = [a for row in rollout.rewards.tolist() for a in oracle.advantages(row)]
        for score, length in zip(scores, rollout.lengths.tolist(), strict=True):
            total = total - score * logprobs[at : at + length].mean() / len(scores)
            at += length
        near(seen[0][1], oracle.gradient(policy, total))
    for found, gradient in oracle.step_gradients(policy, step, c, seen):
        near(found, gradient)


@pytest.mark.parametrize(
    ("ratio", "advantage", "value", "slope", "where"),
    [
        (1.5, 2.0, 2.56, 0.0, "high"),
        (1.5, -2.0, -3.0, -2.0, ""),
        (0.5, 2.0, 1.0, 2.0, ""),
        (0.5, -2.0, -1.6, 0.0, "low"),
        (1.25, 2.0, 2.5, 2.0, ""),  # above 1.2 and below 1.28: the upper bound is its own
        (0.75, -2.0, -1.6, 0.0, "low"),
        (1.0, 2.0, 2.0, 2.0, ""),
        (1.0, -2.0, -2.0, -2.0, ""),
    ],
)
def test_trl_3144_a_clip_counts_where_it_takes_the_gradient(ratio, advantage, value, slope, where):
    """There, users argued over which tokens a share of clipped tokens counts.
    Here, those whose gradient the clip took, by the advantage's sign, low and high apart."""
    r, a = torch.tensor([ratio], requires_grad=True), torch.tensor([advantage])
    surrogate = clipped_surrogate(r, a, 0.2, 0.28)
    surrogate.sum().backward()
    assert (surrogate.item(), r.grad.item()) == pytest.approx((value, slope))
    low, high = clipped(r, a, 0.2, 0.28)
    assert (low.item(), high.item()) == (where == "low", where == "high")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_verl_2996_the_on_policy_ratio_is_exactly_one(fresh, dtype):
    """There, old and new log-probs of one policy differed, as their batches had other shapes.
    Here, the first update's ratio is 1 to the bit for every token, in any plan of passes."""
    for budget in (1, 150, 10**6):
        policy = randomise(fresh(dtype=dtype))
        policy.token_budget = budget
        (step,), _ = oracle.watched(policy, config(kl_coef=0.04, updates_per_rollout=2))
        assert torch.equal(step.updates[0].ratio, torch.ones_like(step.weights))
        assert torch.equal(step.updates[0].logprobs, step.old_logprobs)
        assert not torch.equal(step.updates[1].ratio, torch.ones_like(step.weights))


@torch.no_grad()
def test_transformers_31267_old_logprobs_are_the_scorers(fresh, monkeypatch):
    """There, log-probs kept while decoding were used as the old ones, and differ in low precision.
    Here, the old ones are a forward's, to the bit; decoding is within 1e-4; products round once."""
    before, policy = randomise(fresh()), randomise(fresh())
    with torch.enable_grad():
        (step,), _ = oracle.watched(policy, config(kl_coef=0.04))
    assert torch.equal(before.logprobs(step.rollout.groups, 1.0)[0], step.old_logprobs)
    before.chat.eos |= frozenset(range(0, 300, 6))  # rows end at all times, others move up
    for questions in (QUESTIONS, QUESTIONS[::-1]):  # so that each prompt is one of the first to go
        groups, at_decode = decoded(before, questions, 8, length=20)
        assert len({len(ids) for group in groups for ids in group.completions}) > 4
        alike(at_decode, truth(before, questions, groups), 1e-4)
    monkeypatch.setattr(products, "has_bfloat16", lambda: False)
    generator = torch.Generator().manual_seed(0)
    x, weight, bias, dy = (
        torch.randn(shape, generator=generator).bfloat16()
        for shape in ((99, 64), (48, 64), (48,), (99, 48))
    )
    once = torch.nn.functional.linear(x.float(), weight.float(), bias.float()).bfloat16()
    assert torch.equal(products.linear(x, weight, bias), once)
    assert torch.equal(
        products.linear_backward(dy, weight), (dy.float() @ weight.float()).bfloat16()
    )


@torch.no_grad()
def test_trl_2708_every_position_has_the_truth(trained):
    """There, logits were cut one off, or positions after the end were attended to.
    Here, every token's log-prob is the naive one: the first, the end, and of rows of one token."""
    for question in QUESTIONS:
        for sizes in ((1,), (2, 1), (7, 3, 1, 5)):
            group = group_of(trained, question, sizes)
            ours = trained.logprobs([group], 1.0)[0].split(list(sizes))
            for row, ids in enumerate(group.completions):
                table = law(trained, question, group, row, 1.0)  # (|o|, V)
                for t, token in enumerate(ids.tolist()):
                    assert float(ours[row][t]) == pytest.approx(float(table[t, token]), abs=1e-5)
                assert int(ids[-1]) in trained.chat.eos
