"""The sampler draws exactly the distribution that is scored, whatever the layout."""

import math

import pytest
import torch

from grpo.settings.errors import UsageError
from models.distribution import BLOCK, draw, law, uniforms
from models.sampling import kv_cache
from models.sampling import sampler as sampling
from models.sampling.kv_cache import KVCache
from models.tree import Group
from tests.models import plain

LENGTH = 24


def keys(count, attempt=0):
    return [(0, 42, 1, i, attempt) for i in range(count)]


def as_lists(groups):
    return [[o.tolist() for o in group.completions] for group in groups]


def sample(policy, prompts, group_size=6, temperature=1.0, length=LENGTH, attempt=0):
    return policy.sample(
        prompts,
        group_size,
        None if temperature == 0 else keys(len(prompts), attempt),
        temperature=temperature,
        max_completion_length=length,
    )


@pytest.fixture
def prompts(trained):
    return trained.encode(plain.QUESTIONS)


@pytest.fixture
def many_stops(trained, monkeypatch):
    """One token in six ends a row, so rows finish at all times and the batch is compacted."""
    stops = frozenset(range(0, len(trained.chat.tokenizer), 6))
    monkeypatch.setattr(trained.chat, "eos", stops | trained.chat.eos)
    return trained


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_decode_time_logprobs_equal_the_packed_forwards(many_stops, prompts, temperature):
    policy = many_stops
    rollout = plain.rollout_with_logprobs(policy, prompts, 6, keys(3), temperature, LENGTH)
    scored, _ = policy.logprobs(sample(policy, prompts, temperature=temperature), temperature)
    at_decode = [row[:n] for row, n in zip(rollout.logprobs, rollout.lengths, strict=True)]
    assert rollout.stopped.any()
    assert len(set(rollout.lengths.tolist())) > 4
    torch.testing.assert_close(torch.cat(at_decode), scored.detach(), atol=1e-4, rtol=0)


@torch.no_grad()
def test_greedy_equals_the_teacher_forced_argmax(trained, prompts):
    groups = sample(trained, prompts, group_size=1, temperature=0)
    for question, group in zip(plain.QUESTIONS, groups, strict=True):
        (completion,) = group.completions
        logits = plain.logits(trained, question, group.prompt, completion)
        logits[:, trained.banned] = -torch.inf
        assert torch.equal(logits.argmax(dim=-1), completion)


def test_a_batch_of_prompts_draws_what_each_prompt_draws_alone(many_stops, prompts):
    policy = many_stops
    together = as_lists(sample(policy, prompts))
    for i, prompt in enumerate(prompts):
        alone = policy.sample(
            [prompt], 6, keys(3)[i : i + 1], temperature=1.0, max_completion_length=LENGTH
        )
        # Equal unless a uniform lies within rounding of an edge, which none of these does.
        assert as_lists(alone) == [together[i]]


def test_a_prefill_in_small_batches_draws_the_same(trained, prompts, monkeypatch):
    expected = as_lists(sample(trained, prompts))
    monkeypatch.setattr(kv_cache, "PREFILL_TOKENS", 1)
    assert as_lists(sample(trained, prompts)) == expected


def test_garbage_in_unused_slots_changes_nothing(trained, prompts, monkeypatch):
    expected = as_lists(sample(trained, prompts))

    def dirty(*args, **kwargs):
        cache = KVCache(*args, **kwargs)
        for name in {"prompts", "own"} & vars(cache).keys():
            getattr(cache, name).fill_(1e4)
        return cache

    monkeypatch.setattr(sampling, "KVCache", dirty)
    assert as_lists(sample(trained, prompts)) == expected


def test_group_rows_differ_although_generation_config_says_top_k_1(trained, prompts, tiny_folder):
    assert '"top_k": 1' in (tiny_folder / "generation_config.json").read_text()
    for group in as_lists(sample(trained, prompts)):
        assert len({tuple(row) for row in group}) == 6


def test_another_attempt_draws_other_completions_and_the_same_one_the_same(trained, prompts):
    first = as_lists(sample(trained, prompts))
    assert as_lists(sample(trained, prompts)) == first
    assert as_lists(sample(trained, prompts, attempt=1)) != first


def test_a_longer_limit_continues_the_same_completions(trained, prompts):
    short, long = sample(trained, prompts, length=8), sample(trained, prompts, length=16)
    for one, other in zip(as_lists(short), as_lists(long), strict=True):
        assert [row[:8] for row in other] == one


def test_sampled_frequencies_fit_the_softmax(trained, prompts):
    count, temperature = 6000, 0.7
    (group,) = sample(trained, prompts[:1], count, temperature, length=1)
    observed = torch.bincount(torch.cat(group.completions), minlength=len(trained.banned))
    with torch.no_grad():
        logits = plain.logits(trained, plain.QUESTIONS[0], group.prompt, group.completions[0])
    logits[:, trained.banned] = -torch.inf
    expected = count * torch.softmax(logits[0].double() / temperature, dim=-1)
    often = expected >= 5  # the rest is one bin
    observed = torch.cat([observed[often], observed[~often].sum()[None]])
    expected = torch.cat([expected[often], expected[~often].sum()[None]])
    freedom = len(expected) - 1
    assert freedom > 50
    statistic = float(((observed - expected) ** 2 / expected).sum())
    # Wilson and Hilferty: the cube root of chi-square over its mean is normal. 4 sigma.
    spread = 2 / (9 * freedom)
    assert abs(((statistic / freedom) ** (1 / 3) - (1 - spread)) / math.sqrt(spread)) < 4


def test_banned_ids_have_no_mass_in_sampler_and_scorer(trained, prompts):
    # Hot, so that all ids are about equally likely: 32 of 341 are banned, and 2,880 are drawn.
    groups = sample(trained, prompts, group_size=40, temperature=100.0)
    drawn = torch.cat([o for group in groups for o in group.completions])
    assert int(trained.banned.sum()) == 27 + 5
    assert not trained.banned[drawn].any()
    every = torch.arange(len(trained.banned))
    group = Group(prompts[0], [every[i : i + 1] for i in every], [True] * len(every))
    with torch.no_grad():
        logprobs, _ = trained.logprobs([group], 1.0)
    assert torch.equal(logprobs == -torch.inf, trained.banned)
    assert float(logprobs.double().exp().sum()) == pytest.approx(1.0, abs=1e-5)


def test_the_policy_cannot_draw_an_image_token_even_if_it_is_by_far_the_likeliest(trained):
    logits = torch.zeros(1, len(trained.banned))
    logits[0, trained.chat.image_pad] = 1e4
    tokens, _ = draw(
        law(logits.expand(999, -1), 1.0, trained.banned), torch.linspace(0, 0.999, 999).double()
    )
    assert not trained.banned[tokens].any()


def test_both_end_tokens_stop_a_row_and_belong_to_it(trained, prompts):
    groups = sample(trained, prompts, group_size=60, temperature=100.0)
    ends = trained.chat.eos
    assert sorted(trained.chat.tokenizer.convert_ids_to_tokens(list(ends))) == [
        "<|endoftext|>",
        "<|im_end|>",
    ]
    seen = set()
    for group in groups:
        for completion, truncated in zip(group.completions, group.truncated, strict=True):
            *body, last = completion.tolist()
            assert not ends & set(body)
            assert truncated == (last not in ends)
            assert len(completion) == LENGTH or not truncated
            seen |= {last} & ends
    assert seen == ends


def test_inverting_the_cdf_takes_the_interval_that_u_falls_into():
    logits = torch.tensor([0.0, 0.25, 0.5, 0.0, 0.25, 0.0]).log().expand(6, -1)
    largest = math.nextafter(1.0, 0.0)
    u = torch.tensor([0.0, 0.2499, 0.2501, 0.7499, 0.7501, largest], dtype=torch.float64)
    tokens, logprobs = draw(logits, u)
    assert tokens.tolist() == [1, 1, 2, 2, 4, 4]
    assert torch.allclose(logprobs.exp(), torch.tensor([0.25, 0.25, 0.5, 0.5, 0.25, 0.25]))


def by_one_sum(logits: torch.Tensor, u: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The oracle of `draw`: tokens by one cumulative sum, and each u's distance from an edge."""
    cdf = logits.softmax(dim=-1, dtype=torch.float64).cumsum(dim=-1)
    threshold = u[:, None] * cdf[:, -1:]
    at = torch.searchsorted(cdf, threshold, right=True)
    edges = torch.nn.functional.pad(cdf, (1, 0)).gather(1, torch.cat([at, at + 1], dim=1))
    return at[:, 0], (edges - threshold).abs().amin(dim=1)


@pytest.mark.parametrize(
    ("draws", "size"),
    [(10_000, 5 * BLOCK + 3), pytest.param(1_000_000, 2 * BLOCK + 45, marks=pytest.mark.exhaustive),
     pytest.param(2_000, 151_936, marks=pytest.mark.slow)],
)  # fmt: skip
def test_sums_of_blocks_draw_the_tokens_of_one_sum(draws, size):
    """But where u lies within 1e-12 of an edge."""
    torch.manual_seed(0)
    differ = 0
    for part in torch.arange(draws).split(1_000):
        logits = torch.randn(len(part), size) * 10 ** torch.empty(len(part), 1).uniform_(-1, 2)
        logits[:, torch.rand(size) < 0.3] = -torch.inf
        u = torch.rand(len(part), dtype=torch.float64)
        expected, distance = by_one_sum(logits, u)
        found, logprobs = draw(logits, u)
        other = found != expected
        assert float(distance[other].max() if other.any() else 0) < 1e-12
        differ += int(other.sum())
        scored = logits.log_softmax(dim=-1).gather(1, found[:, None])[:, 0]
        assert torch.allclose(logprobs, scored, rtol=1e-5, atol=1e-5)
    assert differ <= draws * 1e-5


def test_an_edge_of_the_cdf_draws_a_token_that_has_a_probability():
    torch.manual_seed(0)
    logits = torch.randn(1, 3 * BLOCK).masked_fill(torch.rand(3 * BLOCK) < 0.5, -torch.inf)
    cdf = logits.softmax(dim=-1, dtype=torch.float64).cumsum(dim=-1)[0]
    for u in (cdf, cdf.nextafter(cdf + 1), cdf.nextafter(cdf - 1)):
        tokens, _ = draw(logits.expand(len(u), -1), u.clamp(0, math.nextafter(1.0, 0.0)))
        assert (tokens >= 0).all()
        assert not logits[0, tokens].isinf().any()


def test_logits_that_are_not_finite_raise_instead_of_drawing(trained):
    logits = torch.zeros(3, 5)
    logits[1:] = torch.nan
    tokens, _ = draw(logits, torch.tensor([0.1, 0.9, 0.2]).double())
    assert tokens.tolist() == [0, -1, -1]


def test_a_question_whose_logits_are_not_finite_is_named(trained, prompts, monkeypatch):
    def law_of(logits, *rest):  # the second question's rows, four each
        logits = law(logits, *rest)
        logits[4:8] = torch.nan
        return logits

    monkeypatch.setattr(sampling, "law", law_of)
    with pytest.raises(UsageError, match="example none: the model's logits are not finite"):
        sample(trained, prompts, group_size=4)


@pytest.mark.parametrize(
    "most", [5, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 2, 9, 17))]
)
def test_memory_that_runs_out_while_drawing_changes_no_token(trained, prompts, monkeypatch, most):
    """Half of the prompts at a time, then half of the rows: the uniforms stay each row's own."""
    expected, tried = as_lists(sample(trained, prompts)), []

    def small(layers, embeds, group_size, slots):
        """A cache that only `most` rows fit into."""
        tried.append(len(embeds) * group_size)
        if tried[-1] > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return KVCache(layers, embeds, group_size, slots)

    monkeypatch.setattr(sampling, "KVCache", small)
    assert as_lists(sample(trained, prompts)) == expected
    assert max(tried) > most >= min(tried)
    rows = plain.rollout_with_logprobs(trained, prompts, 6, keys(3), 1.0, LENGTH)
    assert rows.logprobs.shape == rows.tokens.shape


def test_memory_that_does_not_hold_one_row_is_an_error(trained, prompts, monkeypatch):
    def full(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(sampling, "KVCache", full)
    with pytest.raises(UsageError, match="example one: out of memory with one completion"):
        sample(trained, prompts)


def test_uniforms_depend_on_the_key_of_their_row_alone():
    table = uniforms([(0, 1, 2), (0, 1, 3)], 3, 5)
    assert table.shape == (6, 5)
    assert torch.equal(uniforms([(0, 1, 3)], 2, 5), table[3:5])
    assert len(table.unique()) == 30


def test_greedy_refuses_a_group(trained, prompts):
    with pytest.raises(ValueError, match="group_size 1"):
        sample(trained, prompts, group_size=2, temperature=0)
