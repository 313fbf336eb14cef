"""The slow way: each completion alone through transformers' own forward, the objective by the
textbook in float64. Nothing here is packed, kept, chunked, or taken from grpo/ or distribution.py.
"""

import ast
import statistics
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from grpo.metrics import Step
from grpo.settings.config import Config
from models.policy import Policy
from models.tree import Group
from tests.grpo.cases import draw, reward, steps
from tests.grpo.test_loop import at_each_update, gradients
from tests.models import plain
from tests.tiny import NoiseImage, Question

ROOT = Path(__file__).parents[2]
VISION = ["<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"]
ENDS = ["<|im_end|>", "<|endoftext|>"]

MANY = [
    Question(
        f"{'Is it so? ' * (i % 4)}Case {i}",
        tuple(NoiseImage(10 * i + j, 56 + 28 * (i % 3), 56 + 28 * j) for j in range(i % 3)),
        f"case-{i}",
    )
    for i in range(9)
]  # 0, 1 and 2 images, of many sizes


def forbidden(policy: Policy) -> Tensor:
    """(V,) bool: what a completion must not hold, asked of the tokenizer."""
    tokenizer = policy.chat.tokenizer
    rows = policy.head.weight.shape[0]
    vision = set(tokenizer.convert_tokens_to_ids(VISION))
    return torch.tensor([i in vision or i >= len(tokenizer) for i in range(rows)])


def law(policy: Policy, question: Question, group: Group, row: int, temperature: float) -> Tensor:
    """(|o|, V) float64 log-probs over the vocabulary at every token of one completion."""
    logits = plain.logits(policy, question, group.prompt, group.completions[row]).double()
    allowed = logits.masked_fill(forbidden(policy), -torch.inf)
    return torch.log_softmax(allowed / temperature, dim=-1)


def truth(
    policy: Policy, questions: Sequence[Question], groups: Sequence[Group], temperature: float = 1.0
) -> Tensor:
    """(N,) float64: the log-prob of every completion token, one forward a completion."""
    return torch.cat(
        [
            law(policy, question, group, row, temperature).gather(1, ids[:, None])[:, 0]
            for question, group in zip(questions, groups, strict=True)
            for row, ids in enumerate(group.completions)
        ]
    )


def group_of(policy: Policy, question: Question, sizes: Sequence[int], seed: int = 3) -> Group:
    """Completions of these sizes, of tokens at random, the last one an end of sequence."""
    generator = torch.Generator().manual_seed(seed)
    words = (~forbidden(policy)).nonzero()[:, 0]
    ends = policy.chat.tokenizer.convert_tokens_to_ids(ENDS)
    (prompt,) = policy.encode([question])
    drawn = [words[torch.randint(len(words), (n,), generator=generator)] for n in sizes]
    for i, ids in enumerate(drawn):
        ids[-1] = ends[i % 2]
    return Group(prompt, drawn, [False] * len(drawn))


def advantages(rewards: Sequence[float], scale: str = "group") -> list[float]:
    """(r - mean) / (std + 1e-4), with the unbiased std; zeros where all are equal."""
    if len(set(rewards)) == 1:
        return [0.0] * len(rewards)
    mean = statistics.fmean(rewards)
    by = statistics.stdev(rewards) + 1e-4 if scale == "group" else 1.0
    return [(r - mean) / by for r in rewards]


def weight(c: Config, lengths: Sequence[int], i: int) -> float:
    """What a token of completion i counts."""
    if c.loss == "grpo":
        return 1 / lengths[i] / len(lengths)
    return 1 / sum(lengths) if c.loss == "dapo" else 1 / len(lengths) / c.max_completion_length


def objective(policy: Policy, step: Step, c: Config, old: Tensor, ref: Tensor) -> Tensor:
    """The loss of all completions of a step, token by token; old and ref are (N,) of it."""
    rollout = step.rollout
    lengths = [len(ids) for group in rollout.groups for ids in group.completions]
    scores = [a for row in rollout.rewards.tolist() for a in advantages(row, c.scale_rewards)]
    logprobs = truth(policy, rollout.examples, rollout.groups, c.temperature)
    low, high = 1 - c.clip_eps, 1 + (c.clip_eps_high or c.clip_eps)
    total, at = torch.zeros((), dtype=torch.float64), 0
    for i, length in enumerate(lengths):
        for t in range(at, at + length):
            ratio = torch.exp(logprobs[t] - old[t])
            gain = torch.minimum(ratio * scores[i], ratio.clamp(low, high) * scores[i])
            x = torch.exp(ref[t] - logprobs[t])
            gain = gain - c.kl_coef * (x - torch.log(x) - 1)
            total = total - weight(c, lengths, i) * gain
        at += length
    return total


def gradient(policy: Policy, loss: Tensor) -> Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, policy.parameters())])


def flat(policy: Policy) -> Tensor:
    """All trainable weights as one vector, copied."""
    return torch.cat([p.detach().flatten() for p in policy.parameters()]).clone()


def put(policy: Policy, weights: Tensor) -> None:
    """The inverse of `flat`."""
    with torch.no_grad():
        for p, part in zip(
            policy.parameters(),
            weights.split([p.numel() for p in policy.parameters()]),
            strict=True,
        ):
            p.copy_(part.view_as(p))


def watched(
    policy: Policy, c: Config, reward=reward, draw=draw
) -> tuple[list[Step], list[tuple[Tensor, Tensor]]]:
    """Train, and of every update the weights and the gradient just before it."""
    seen: list[tuple[Tensor, Tensor]] = []
    with at_each_update(lambda _: seen.append((flat(policy), gradients(policy)))):
        return list(steps(policy, draw, reward, c)), seen


def step_gradients(policy: Policy, step: Step, c: Config, seen) -> Iterator[tuple[Tensor, Tensor]]:
    """(found, expected) gradient of every update of a step; leaves `policy` at the last weights."""
    at = (step.rollout.examples, step.rollout.groups, c.temperature)
    put(policy, seen[0][0])
    with torch.no_grad():
        old = truth(policy, *at)
        with without_adapter(policy):
            ref = truth(policy, *at)
    for weights, found in seen:
        put(policy, weights)
        yield found, gradient(policy, objective(policy, step, c, old, ref))


def without_adapter(policy: Policy):
    return policy.model.disable_adapter()


def near(a: Tensor, b: Tensor, tolerance: float = 1e-5) -> None:
    assert b.norm() > 1e-4, "nothing to compare"
    assert (a - b).norm() <= tolerance * b.norm()


def alike(a: Tensor, b: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(a.detach().double(), b.detach().double(), atol=tolerance, rtol=0)


def decoded(policy: Policy, questions, size: int, temperature: float = 1.0, length: int = 12):
    """Groups as sampled, and (N,) their log-probs as the decoder had them."""
    prompts = policy.encode(questions)
    keys = [(0, 42, 1, i, 0) for i in range(len(prompts))] if temperature else None
    rollout = plain.rollout_with_logprobs(policy, prompts, size, keys, temperature, length)
    rows = zip(rollout.logprobs, rollout.lengths.tolist(), strict=True)
    return rollout.groups(prompts), torch.cat([row[:n] for row, n in rows])


@lru_cache(maxsize=1)
def sources() -> dict[str, ast.Module]:
    """Every file of the product, parsed."""
    places = [ROOT / "train.py", ROOT / "evaluate.py"]
    for package in ("grpo", "models", "data", "rewards"):
        places += sorted((ROOT / package).rglob("*.py"))
    return {str(p.relative_to(ROOT)): ast.parse(p.read_text(encoding="utf-8")) for p in places}


def words_of(module: ast.Module) -> set[str]:
    """Every name, attribute, keyword and import of a file; not its strings and comments."""
    found = set()
    for node in ast.walk(module):
        if isinstance(node, ast.Name):
            found.add(node.id)
        elif isinstance(node, ast.Attribute):
            found.add(node.attr)
        elif isinstance(node, ast.keyword | ast.arg) and node.arg:
            found.add(node.arg)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found |= {part for alias in node.names for part in alias.name.split(".")}
    return found


def users_of(*words: str) -> set[str]:
    """The product's files that use any of these words in code."""
    return {path for path, module in sources().items() if words_of(module) & set(words)}
