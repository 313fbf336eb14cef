"""The checks of exercises 5 to 8: each raises Wrong if an answer differs from the oracle."""

import copy
import math
import random
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor

import grpo.loop
from grpo.settings.config import Config
from models import distribution
from models import policy as models_policy
from models.open_policy import load_policy
from models.sampling import sampler
from tests.conformance import oracle
from tests.conftest import randomise
from tests.exercises.comparing import Wrong, close, same, same_list
from tests.grpo import test_oracle
from tests.models import test_tree
from tests.models.plain import QUESTIONS
from tests.models.sampling.test_sampler import by_one_sum
from tests.tiny import make_model


@cache
def tiny_policy() -> models_policy.Policy:
    """A random tiny Qwen2-VL whose adapter matters."""
    with tempfile.TemporaryDirectory() as folder:
        return randomise(load_policy(str(make_model(Path(folder) / "model")), device="cpu"))


def groups_of(policy: models_policy.Policy) -> list:
    """Completions of questions with one, no and two images; one completion is a single token."""
    sizes = [(5, 1, 8), (3, 2), (4, 6)]
    return [oracle.group_of(policy, q, n) for q, n in zip(QUESTIONS, sizes, strict=True)]


def same_logprobs(what: str, policy: models_policy.Policy, temperature: float) -> None:
    """Log-probs and gradient of a policy are those of transformers, one completion at a time."""
    groups = groups_of(policy)
    found = policy.logprobs(groups, temperature)[0]
    expected = oracle.truth(policy, QUESTIONS, groups, temperature)
    at = f"{what} at temperature {temperature}"
    same(f"log-probs of completion tokens, {at}", found, expected)
    weights = torch.linspace(-1, 2, len(found))
    found, expected = (oracle.gradient(policy, (weights * p).sum()) for p in (found, expected))
    close(f"gradient of the LoRA weights, {at}", found, expected)


def tree_attention(answer: type) -> None:
    for lengths in ([[3, 2, 2]], [[4, 3, 0, 2]], [[1, 1], [5, 2, 6, 6]]):
        segments, given, slopes = test_tree.attention_case(lengths)
        found, expected = answer(lengths)(0, *given), test_tree.dense(segments, *given)
        what = f"of a pass with the lengths {lengths}"
        same(f"attention {what}", found, expected)
        if not found.requires_grad:
            raise Wrong(f"attention {what}: no gradient reaches queries, keys and values")
        both = (torch.autograd.grad((part * slopes).sum(), given) for part in (found, expected))
        for name, mine, other in zip(("queries", "keys", "values"), *both, strict=True):
            same(f"gradient of {name} {what}", mine, other)


def pack(answer: Callable) -> None:
    policy = tiny_policy()
    groups = groups_of(policy)
    tree = answer(groups)
    places, ids, positions = tree.wanted[tree.predictors], [], []
    for group in groups:
        last, after = int(group.prompt.input_ids[-1]), group.prompt.next_position - 1
        for completion in group.completions:
            ids += [last, *completion[:-1].tolist()]
            positions += range(after, after + len(completion))
    same("targets", tree.targets, torch.cat([o for group in groups for o in group.completions]))
    same("the token that predicts each target", tree.input_ids[places], ids)
    same("the position of that token, on three axes", tree.position_ids[:, places], [positions] * 3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models_policy, "pack", answer)
        same_logprobs("of the tiny Qwen2-VL with your pack", policy, 1.0)


def law(answer: Callable) -> None:
    given, banned = torch.tensor([[0.0, 1.0, 2.0, 3.0]]), torch.tensor([False, False, False, True])
    weights = [math.exp(x / 0.5) for x in (0.0, 1.0, 2.0)]
    expected = [[w / sum(weights) for w in weights] + [0.0]]
    for dtype in (torch.bfloat16, torch.float32):
        logits = given.to(dtype, copy=True)
        found = answer(logits, 0.5, banned)
        what = "softmax of the logits [0, 1, 2, 3] at temperature 0.5, the last one banned"
        same(what, found.softmax(dim=-1), expected)
        if found.dtype != torch.float32:
            raise Wrong(f"logits of {found.dtype} in place of torch.float32")
        if not torch.equal(logits.float(), given):
            raise Wrong("the logits that were given are changed in place")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distribution, "law", answer)
        for temperature in (1.0, 0.7):
            same_logprobs("of the tiny Qwen2-VL with your law", tiny_policy(), temperature)


def draw(answer: Callable) -> None:
    generator = torch.Generator().manual_seed(0)
    p = torch.tensor([0.0, 0.25, 0.5, 0.0, 0.25, 0.0])
    u = torch.tensor([0.0, 0.2499, 0.2501, 0.7499, 0.7501, 0.9999]).double()
    tokens, logprobs = answer(p.log().expand(6, -1), u)
    what = f"with the probabilities {p.tolist()} at u {[round(x, 4) for x in u.tolist()]}"
    same(f"tokens {what}", tokens, [1, 1, 2, 2, 4, 4], 0.0)
    same(f"log-probs {what}", logprobs, p[[1, 1, 2, 2, 4, 4]].log())
    for size in (7, 643):
        logits = 3 * torch.randn(500, size, generator=generator)
        logits[:, torch.rand(size, generator=generator) < 0.3] = -torch.inf
        u = torch.rand(500, generator=generator, dtype=torch.float64)
        same_draw(f"from {size} tokens", answer, logits, u)
    # Qwen2-VL's vocabulary, just inside the edges of a token: float32 sums take its neighbour.
    logits, tokens = torch.linspace(-1, 1, 151_936), torch.arange(4_000, 151_936, 9_001)
    p = logits.softmax(dim=0, dtype=torch.float64)
    u = p.cumsum(dim=0)[tokens] - 0.001 * p[tokens]
    same_draw("from 151936 tokens, near an edge", answer, logits.expand(len(tokens), -1), u)
    found, _ = answer(torch.full((1, 5), torch.nan), torch.tensor([0.5]).double())
    same("the token where no logit is finite", found, [-1], 0.0)


def same_draw(what: str, answer: Callable, logits: Tensor, u: Tensor) -> None:
    expected, distance = by_one_sum(logits, u)
    tokens, logprobs = answer(logits, u)
    clear = distance > 1e-12  # from an edge, where rounding decides
    same(f"tokens {what}", tokens[clear], expected[clear], 0.0)
    scored = logits.double().log_softmax(dim=-1).gather(1, expected[:, None])[:, 0]
    same(f"log-probs {what}", logprobs[clear], scored[clear])


def ends(answer: type) -> None:
    """Rows are drawn in windows, and a finished row leaves: its place goes to another."""
    rng = random.Random(0)
    for window in (1, 3):
        drawn = torch.tensor([[rng.randrange(10) for _ in range(12)] for _ in range(20)])
        task = sampler.Task(None, None, None, frozenset({7, 9}), ["prompt"], [], 20,
                            torch.zeros(20, 12), 1.0, 12)  # fmt: skip
        rollout = answer(task)
        for start in range(0, 12, window):
            tokens = drawn[rollout.row, start : start + window].double()
            done = rollout.add(start, torch.stack([tokens, -tokens]))
            over = [bool({7, 9} & {*row}) for row in tokens.int().tolist()]
            same(f"which rows ended, {window} at a time", done, over, 0.0)
            rollout.row = rollout.row[~done].flip(0)  # others move to the places of those that end
        (group,) = rollout.groups(["prompt"])
        for i, row in enumerate(drawn.tolist()):
            stop = next((t for t, token in enumerate(row) if token in (7, 9)), None)
            expected = row if stop is None else row[: stop + 1]
            what = f"of {row}, drawn {window} at a time, with the ends 7 and 9"
            same_list(f"completion {what}", group.completions[i].tolist(), expected)
            same_list(f"truncated {what}", group.truncated[i], stop is None)
            logprobs = group.sampling_logprobs[i]
            same(f"log-probs {what}", logprobs, [-float(token) for token in expected])


def logprobs(answer: type) -> None:
    policy = copy.copy(tiny_policy())
    policy.__class__ = answer
    for temperature in (1.0, 0.7):
        same_logprobs("of the tiny Qwen2-VL", policy, temperature)
    groups = groups_of(policy)
    tables = [
        oracle.law(policy, question, group, row, 0.7)
        for question, group in zip(QUESTIONS, groups, strict=True)
        for row in range(len(group.completions))
    ]
    entropy = torch.cat([torch.special.entr(table.exp()).sum(dim=-1) for table in tables])
    found = policy.logprobs(groups, 0.7)[1]
    same("entropy at temperature 0.7", found, entropy)
    if found.requires_grad:
        raise Wrong("entropy: it has a gradient, which keeps all logits in memory")


def policy_pass(answer: Callable) -> None:
    """Through the running loop, with two updates a step, in one pass or several."""
    for seed in range(12):
        rng = random.Random(seed)
        case, c = test_oracle.random_case(rng), test_oracle.random_config(rng)
        c = Config(**{**vars(c), "loss": test_oracle.LOSSES[seed % 3]})
        whats = ("loss of every token", "gradient by log pi")
        names = (f"{what}, update {update}" for update in (1, 2) for what in whats)

        def compare(found: Tensor, expected: list[float], names=names, seed=seed) -> None:
            passes = "one pass" if seed % 2 else "a pass for each group"
            same(f"{next(names)}, {passes}", found, expected)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(grpo.loop, "policy_pass", answer)
            patch.setattr(test_oracle, "close", compare)
            test_oracle.agrees(case, c, together=bool(seed % 2))
